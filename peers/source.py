"""Which source tree this is: what a report and a failing seed name, so that both can be repeated.

Refused: a version number alone. Between two releases it says nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

GIT_SECONDS = 5.0
"""For one local answer of git; without it the version is named."""


def source_commit() -> str:
    """The commit of this source tree, ``+`` if it has changes; outside one, the version."""
    git = shutil.which("git")
    if git is None:
        return version("p2ptrain")
    try:
        found = subprocess.run(  # noqa: S603 -- a fixed command
            [git, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            timeout=GIT_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return version("p2ptrain")
    return found.stdout.strip()
