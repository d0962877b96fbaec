"""What every test may rely on, however the tests were started."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Signals arrive: who starts the tests behind a shell or under nohup has some ignored.

    Children inherit that, and then no test can press Ctrl-C. What is handled here is not
    inherited: they begin with the default.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: None)
