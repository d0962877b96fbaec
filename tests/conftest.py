"""What every test may rely on, however the tests were started."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# One commit, one verdict: the same examples every time, however slow the machine is. To search
# for new ones: HYPOTHESIS_PROFILE=search make test.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_configure() -> None:
    """Signals arrive: who starts the tests behind a shell or under nohup has some ignored.

    Children inherit that, and then no test can press Ctrl-C. What is handled here is not
    inherited: they begin with the default.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: None)
