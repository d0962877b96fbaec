"""Growth: slopes of those who lived long enough, without their warm-up, the worst of them."""

from collections.abc import Callable, Iterator

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.observe.growth import LEAST_SPAN_SECONDS, WARM_UP_SECONDS, growth
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

SAMPLE_SECONDS = 5.0
LONG = int((WARM_UP_SECONDS + LEAST_SPAN_SECONDS) / SAMPLE_SECONDS) + 2
BEGAN = 20.0  # the first step; before it nothing is counted as warm


def stepped(peer: str) -> ev.Entry:
    event = ev.StepCommitted(
        epoch=0, stage=Stage(0), step=Step(0), chain=Chain(b""), digest=Digest(b""), cover=(),
        expected=b"", loss=None, val_loss=None, skipped=False, tokens=1, seconds=1.0,
    )  # fmt: skip
    return ev.Entry(at=BEGAN, peer=PeerId(peer), event=event)


def watch(
    peer: str,
    *,
    samples: int,
    leak_bytes: int = 0,
    files: float = 0,
    tasks: float = 0,
    links: Callable[[int], int] = lambda _: 5,
) -> Iterator[ev.Entry]:
    """A peer that swells in its warm-up and leaks so much a second afterwards."""
    yield stepped(peer)
    for number in range(samples):
        age = number * SAMPLE_SECONDS
        warm = 10**8 if age >= WARM_UP_SECONDS else int(age * 10**6)
        event = ev.Resources(
            rss_bytes=warm + int(age) * leak_bytes,
            descriptors=10 + 6 * links(number) + int(age * files),
            threads=9,
            tasks=30 + int(age * tasks),
            daemon_rss_bytes=5 * 10**7 + int(age) * leak_bytes // 10,
            daemon_descriptors=5 + 3 * links(number),
            links=links(number),
        )
        yield ev.Entry(at=BEGAN + age, peer=PeerId(peer), event=event)


def test_the_fastest_growing_counts_in_each_and_the_warm_up_does_not() -> None:
    steady = list(watch("steady", samples=LONG))
    leaking = list(watch("leaking", samples=LONG, leak_bytes=1000, files=0.2))
    busy = list(watch("busy", samples=LONG, tasks=0.4))
    calm, all_of_them = growth(steady), growth([*steady, *leaking, *busy])
    assert calm is not None
    assert all_of_them is not None
    assert calm.rss_bytes_per_minute == pytest.approx(0.0)
    assert (all_of_them.peers, all_of_them.threads_per_minute) == (3, pytest.approx(0.0))
    assert all_of_them.rss_bytes_per_minute == pytest.approx(60_000.0)
    assert all_of_them.daemon_rss_bytes_per_minute == pytest.approx(6_000.0)
    assert all_of_them.descriptors_per_minute == pytest.approx(12.0, rel=0.05)
    assert all_of_them.daemon_descriptors_per_minute == pytest.approx(0.0)
    assert all_of_them.tasks_per_minute == pytest.approx(24.0, rel=0.05)


def test_what_goes_with_the_links_is_no_leak() -> None:
    def more(number: int) -> int:
        return 3 + number // 8

    calm = growth(watch("calm", samples=LONG, links=more))
    leaking = growth(watch("leaking", samples=LONG, links=more, files=0.2))
    assert calm is not None
    assert leaking is not None
    assert calm.descriptors_per_minute > 5.0
    assert calm.links_per_minute == pytest.approx(calm.descriptors_per_minute / 6)
    assert calm.descriptors_beyond_links_per_minute == pytest.approx(0.0, abs=1e-6)
    assert calm.daemon_descriptors_beyond_links_per_minute == pytest.approx(0.0, abs=1e-6)
    assert leaking.descriptors_beyond_links_per_minute == pytest.approx(12.0, rel=0.1)


def test_who_was_killed_does_not_count() -> None:
    doomed = list(watch("doomed", samples=LONG, leak_bytes=10**6))
    killed = ev.FaultFired(fault="kill", target="doomed")
    assert growth(doomed) is not None
    assert growth([*doomed, ev.Entry(at=500.0, peer=PeerId("doomed"), event=killed)]) is None


def test_who_did_not_live_long_enough_says_nothing() -> None:
    young = LONG - int(LEAST_SPAN_SECONDS / SAMPLE_SECONDS)
    assert growth(watch("young", samples=young, leak_bytes=10**6)) is None


def test_who_never_took_a_step_says_nothing() -> None:
    assert growth(list(watch("waiting", samples=LONG, files=1.0))[1:]) is None


def test_who_was_hardly_ever_awake_says_nothing() -> None:
    frozen = list(watch("frozen", samples=LONG, files=1.0))
    assert growth([frozen[0], frozen[-3], frozen[-1]]) is None


def test_who_came_late_says_nothing_beside_those_who_lived_twice_as_long() -> None:
    old = list(watch("old", samples=4 * LONG, leak_bytes=10))
    late = list(watch("late", samples=LONG, leak_bytes=10**6))
    alone, both = growth(old), growth([*old, *late])
    assert alone == both
    assert growth(late) is not None
