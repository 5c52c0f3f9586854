import signal

import pytest


@pytest.fixture(autouse=True)
def signals():
    """Restore the test process's signal handlers, which the worker replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
