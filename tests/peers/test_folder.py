"""The folder of checkpoints: whose it is, and what is refused before anything begins."""

from pathlib import Path

import pytest

from p2ptrain.errors import UserError
from p2ptrain.run import RunSpec, digest
from peers.folder import owned, refuse_to_replace, refuse_to_wait

RUN = digest(RunSpec())
OTHER_RUN = "0" * 32


def test_who_forgets_to_resume_does_not_replace_old_checkpoints(tmp_path: Path) -> None:
    """Without ``--resume`` a stopped run would begin again, over what lies there."""
    refuse_to_replace(tmp_path, RUN)
    (tmp_path / f"{OTHER_RUN}.stage-0.epoch-0.step-5.safetensors").touch()
    refuse_to_replace(tmp_path, RUN)
    (tmp_path / f"{RUN}.stage-0.epoch-0.step-5.safetensors").touch()
    refuse_to_replace(tmp_path, RUN)  # whoever wrote it did not come to the header
    (tmp_path / f"{RUN}.stage-0.epoch-0.step-5.header").touch()
    with pytest.raises(UserError, match="add --resume"):
        refuse_to_replace(tmp_path, RUN)


def test_who_resumes_alone_with_nothing_is_not_left_waiting(tmp_path: Path) -> None:
    (tmp_path / f"{OTHER_RUN}.stage-0.epoch-0.step-5.header").touch()
    (tmp_path / f"{RUN}.stage-0.epoch-0.step-5.safetensors").touch()  # without a header: nothing
    with pytest.raises(UserError, match=f"holds no checkpoint of run {RUN}.*leave out --resume"):
        refuse_to_wait(tmp_path, RUN)
    (tmp_path / f"{RUN}.stage-0.epoch-0.step-5.header").touch()
    refuse_to_wait(tmp_path, RUN)


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with owned(tmp_path / "new"), pytest.raises(UserError, match="in use by another running"):
        owned(tmp_path / "new").__enter__()
    with owned(tmp_path / "new"), owned(None):
        pass
