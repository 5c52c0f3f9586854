"""Cleanup after a test that used a CDI_HOME."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from cdi import atomic_file
from cdi.api.errors import NotFound
from cdi.local.backend import LocalBackend
from cdi.local.launcher import Launcher


def end_embedded(path: Path) -> None:
    """Delete every DataVolume of a CDI_HOME, and wait until its supervisor and workers have ended."""
    if not path.exists():
        return
    embedded = LocalBackend(path)
    # A supervisor ends when no work is left. A DataImportCron would create its DataVolume again, so it is deleted first.
    for kind in ("dataimportcron", "dv"):
        for body in embedded.list(kind):
            with contextlib.suppress(NotFound):
                embedded.delete(kind, body["metadata"]["namespace"], body["metadata"]["name"])
    home, launcher = embedded.home, Launcher(embedded.home)
    deadline = time.monotonic() + 60
    # A process that is still running would write into the test's directory while that is being removed.
    while time.monotonic() < deadline:
        for uid in launcher.known():
            with contextlib.suppress(Exception):
                launcher.stop(uid, grace=0)
        if not atomic_file.is_locked(home.supervisor_lock) and not any(launcher.alive(uid) for uid in launcher.known()):
            break
        time.sleep(0.1)
