import logging
import signal

import pytest

from cdi.logs import LogFormat, configure


@pytest.fixture(autouse=True)
def signals():
    """Restore the test process's signal handlers, which the worker replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def worker_log():
    """Log as a worker's process does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure(LogFormat.TEXT)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("cdi").setLevel(logging.NOTSET)
