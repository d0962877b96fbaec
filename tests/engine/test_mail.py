"""The post: control at once, frames in tasks of their own, failures told to who sent."""

# ruff: noqa: ARG002 - stand-ins take what the real ones take

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.engine import mail as mail_module
from p2ptrain.engine.mail import Mail
from p2ptrain.engine.roster import Roster
from p2ptrain.errors import LinkError
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire.messages import SeatStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")
MESSAGE: Any = object()


class Links:
    """Fails as often as told, then takes the frame."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.broadcasts: list[tuple[Sequence[PeerId], Any]] = []
        self.frames: list[PeerId] = []

    def send(self, peer: PeerId, message: Any) -> None:
        self.broadcast((peer,), message)

    def broadcast(self, peers: Sequence[PeerId], message: Any) -> None:
        self.broadcasts.append((tuple(peers), message))

    async def send_data(self, peer: PeerId, message: Any, payload: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise LinkError("broken", peer=peer)
        self.frames.append(peer)


async def shipped(links: Links, *, tries: int) -> list[float]:
    """Ship one frame; when it was told to have failed."""
    failures: list[float] = []
    async with asyncio.TaskGroup() as group:
        mail = Mail(links, Roster(ME), group.create_task)  # type: ignore[arg-type]
        mail.ship(A, MESSAGE, (b"x",), failures.append, tries=tries)
    return failures


@pytest.mark.asyncio
async def test_a_frame_that_goes_out_is_no_failure() -> None:
    links = Links()
    assert await shipped(links, tries=1) == []
    assert links.frames == [A]


@pytest.mark.asyncio
async def test_a_frame_that_does_not_is_told_once() -> None:
    links = Links(failures=5)
    assert len(await shipped(links, tries=1)) == 1
    assert links.failures == 4


@pytest.mark.asyncio
async def test_it_is_tried_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_module, "RESEND_SECONDS", 0.0)
    links = Links(failures=2)
    assert await shipped(links, tries=3) == []
    assert links.frames == [A]
    links = Links(failures=3)
    assert len(await shipped(links, tries=3)) == 1
    assert links.frames == []


def test_one_message_to_many_is_sent_to_each_once_in_order() -> None:
    links = Links()
    mail = Mail(links, Roster(ME), lambda job: job)  # type: ignore[arg-type, return-value]
    mail.tell_all([B, A, B], MESSAGE)
    assert links.broadcasts == [((A, B), MESSAGE)]


def test_seats_are_those_that_live_here_and_elsewhere() -> None:
    roster = Roster(ME)
    status = SeatStatus(
        stage=Stage(1), state="serving", version=Step(0), rate=0.0, queue=0, parked=0
    )
    for peer in (B, ME, A):
        roster.hear(peer, [status])
    roster.lost(B)
    mail = Mail(Links(), roster, lambda job: job)  # type: ignore[arg-type, return-value]
    assert mail.seats(Stage(1)) == (A, ME)
    assert mail.seats(Stage(0)) == ()
    assert mail.everyone() == (A, ME)


@pytest.mark.asyncio
@pytest.mark.parametrize("failures", [0, 1])
async def test_who_asks_for_it_is_told_when_the_frame_is_out(failures: int) -> None:
    told: list[str] = []
    async with asyncio.TaskGroup() as group:
        mail = Mail(Links(failures), Roster(ME), group.create_task)  # type: ignore[arg-type]
        mail.ship(
            A, MESSAGE, (b"x",), lambda _now: told.append("failed"), sent=lambda: told.append("out")
        )
    assert told == ["failed" if failures else "out"]
