"""The folder of a peer's checkpoints: whose it is, and whether it fits what the peer is to do.

    in use by another running peer      said first: nothing else about it matters
    holds this run, without --resume    refused: the run would begin again over it
    holds nothing, with --resume        refused where nobody else can give anything

Invariant: nothing in the folder is changed here.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from p2ptrain.core.checkpoint import listed
from p2ptrain.data.store import sole_owner
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from p2ptrain.units import RunId


def owned(folder: Path | None) -> AbstractContextManager[None]:
    """Own ``folder``, if there is one, for the time of the ``with``; it is made if missing.

    Raises:
        UserError: another running peer keeps its checkpoints there, or it cannot be made.
    """
    return nullcontext() if folder is None else sole_owner(folder)


def refuse_to_replace(folder: Path, run: RunId) -> None:
    """A run whose peers have all stopped would begin again, over what they had reached.

    Raises:
        UserError: the folder holds checkpoints of this run.
    """
    if _holds(folder, run):
        raise UserError(
            f"{folder} holds checkpoints of this run, which a run that begins again would "
            "replace: add --resume to go on from them (or to join those who do), or name "
            "another folder"
        )


def refuse_to_wait(folder: Path, run: RunId) -> None:
    """Who begins a swarm of its own to resume, and holds nothing, waits for nobody.

    Raises:
        UserError: the folder holds no checkpoint of this run.
    """
    if not _holds(folder, run):
        raise UserError(
            f"--resume: {folder} holds no checkpoint of run {run}, and with --new-swarm alone "
            "there is nobody to get one from: name the folder that has one, give "
            "--initial-peers ADDRESS of a peer that resumes, or leave out --resume to begin"
        )


def _holds(folder: Path, run: RunId) -> bool:
    """A state without its header is nothing: whoever wrote it did not come to the end."""
    return bool(listed((path.name for path in folder.iterdir()), run))
