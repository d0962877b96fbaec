"""A corpus large enough for a GPU: the Python sources of pinned packages, 114 MB of them.

    python -m benchmarks.texts FILE

Fetches the wheels below from the package registry and writes their modules, in the order of
their names, into one file: the same bytes wherever it is run, so that runs on several machines
can be compared. ``losses --size long`` sees each of its bytes at most once.

Refused: a corpus of a hub. It needs an account, a mirror or an agreement, and this needs pip.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGES = (
    "ansible-core==2.19.14",
    "django==5.2.8",
    "networkx==3.5",
    "sympy==1.14.0",
    "torch_geometric==2.8.1",
    "transformers==4.57.1",
    "twisted==26.10.0",
)
"""Large, in plain Python, and from different trades; wheels that are equal on every machine."""


def fetch(packages: Iterable[str], folder: Path) -> None:
    """Download the wheels of ``packages`` alone into ``folder``.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    wheels = ["--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*pip, *wheels, *packages], check=True)  # noqa: S603 -- our own list


def sources(folder: Path) -> Iterator[bytes]:
    """The modules of all wheels in ``folder``, wheel by wheel, in the order of their names."""
    for path in sorted(folder.glob("*.whl"), key=lambda path: path.name.lower()):
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(name for name in wheel.namelist() if name.endswith(".py")):
                yield wheel.read(name)


@click.command(help=__doc__)
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def main(output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fetch(PACKAGES, Path(folder))
        size = output.write_bytes(b"".join(sources(Path(folder))))
    click.echo(f"{output}: {size:,} bytes")


if __name__ == "__main__":
    main()
