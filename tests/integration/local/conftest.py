from __future__ import annotations

import contextlib
import time

import pytest

from cdi.local.home import Home
from cdi.local.launcher import Launcher

FAKE = "tests.integration.local.fake_worker"


@pytest.fixture
def home(tmp_path):
    home = Home.find(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def launcher(home):
    """Yield a launcher, and end the workers that it started."""
    launcher = Launcher(home, import_module=FAKE)
    yield launcher
    deadline = time.monotonic() + 60
    for uid in launcher.known():
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if launcher.stop(uid, grace=0):
                    break
            time.sleep(0.02)
    launcher._processes.reap()


@pytest.fixture
def until():
    """Return a function that waits for a condition, for at most 60 seconds."""

    def wait(condition):
        deadline = time.monotonic() + 60
        while not (found := condition()):
            assert time.monotonic() < deadline, "it never came to be"
            time.sleep(0.02)
        return found

    return wait
