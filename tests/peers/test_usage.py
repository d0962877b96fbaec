"""Growth: slopes of those who lived long enough, without their warm-up, the worst of them."""

import pytest

from peers.usage import LEAST_SAMPLES, SAMPLE_SECONDS, WARM_UP_SECONDS, Usage

LONG = int(WARM_UP_SECONDS / SAMPLE_SECONDS) + LEAST_SAMPLES + 2


def watch(usage: Usage, peer: str, *, samples: int, leak_bytes: int = 0, files: float = 0) -> None:
    """A peer that swells in its warm-up and leaks so much a second afterwards."""
    for number in range(samples):
        now = number * SAMPLE_SECONDS
        warm = 10**8 if now >= WARM_UP_SECONDS else int(now * 10**6)
        usage.add(
            peer,
            now=now,
            rss_bytes=warm + int(now) * leak_bytes,
            descriptors=40 + int(now * files),
            threads=9,
        )


def test_the_fastest_growing_counts_and_the_warm_up_does_not() -> None:
    usage = Usage()
    watch(usage, "steady", samples=LONG)
    watch(usage, "leaking", samples=LONG, leak_bytes=1000, files=0.2)
    watch(usage, "killed", samples=LONG, leak_bytes=10**6)
    steady, both = usage.growth(["steady"]), usage.growth(["steady", "leaking"])
    assert steady is not None
    assert both is not None
    assert steady.rss_bytes_per_minute == pytest.approx(0.0)
    assert (both.peers, both.threads_per_minute) == (2, pytest.approx(0.0))
    assert both.rss_bytes_per_minute == pytest.approx(60_000.0)
    assert both.descriptors_per_minute == pytest.approx(12.0, rel=0.05)


def test_who_did_not_live_long_enough_says_nothing() -> None:
    usage = Usage()
    watch(usage, "young", samples=LEAST_SAMPLES, leak_bytes=10**6)
    assert usage.growth(["young", "unseen"]) is None


def test_samples_are_taken_now_and_then() -> None:
    usage = Usage()
    assert [usage.due(now) for now in (1.0, 2.0, 5.9, 6.0, 6.1)] == [
        True,
        False,
        False,
        True,
        False,
    ]
