import signal

import pytest


@pytest.fixture(autouse=True)
def signals():
    """The worker takes over the process's signals; the tests' process wants its own back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
