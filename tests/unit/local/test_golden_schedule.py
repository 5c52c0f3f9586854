"""Tests of the keeper of schedules with a real supervisor that runs in this process."""

from __future__ import annotations

import threading

import pytest

from cdi.api.errors import CdiError
from cdi.local.backend import LocalBackend
from cdi.local.golden_schedule import Keeper
from cdi.local.supervisor import Supervisor
from cdi.store.base import Key

GROUP = "cdi.kubevirt.io"
MAX_STARTS = 3


def create_cron(backend, name, *, schedule="0 3 * * *", secret="missing"):
    source = {"http": {"url": "http://127.0.0.1:9/image.qcow2", "secretRef": secret}}
    storage = {"resources": {"requests": {"storage": "1Gi"}}}
    return backend.store.create(
        {
            "apiVersion": f"{GROUP}/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "schedule": schedule,
                "managedDataSource": name,
                "template": {"spec": {"source": source, "storage": storage}},
            },
        }
    )


class Machine(LocalBackend):
    """A backend whose supervisor runs in this process until it is idle, and which ends the keeper in the end."""

    def __init__(self, root, stop):
        super().__init__(root)
        self.home.make()
        self.stop, self.starts = stop, 0

    def start_supervisor(self):
        self.starts += 1
        if self.starts > MAX_STARTS:
            self.stop.set()
        supervisor = Supervisor(self.home, linger=0)
        try:
            return supervisor.run()
        finally:
            supervisor.close()


@pytest.mark.parametrize(
    ("settings", "words"), [({}, "missing"), ({"schedule": "61 * * * *"}, "the schedule is invalid")]
)
def test_a_poll_that_cannot_be_started_is_reported_and_the_run_ends(tmp_path, settings, words):
    stop, lines = threading.Event(), []
    machine = Machine(tmp_path / "home", stop)
    create_cron(machine, "fedora", **settings)
    (failure,) = Keeper(machine, report=lines.append).run_due(stop)
    assert isinstance(failure, CdiError)
    assert words in failure.message
    assert lines == [f"default/fedora: {failure.message}"]
    assert not stop.is_set()


def test_an_image_whose_poll_cannot_be_started_does_not_hide_another(tmp_path):
    stop = threading.Event()
    machine = Machine(tmp_path / "home", stop)
    for name in ("debian", "fedora"):
        create_cron(machine, name, secret=f"{name}-login")
    failures = Keeper(machine).run_due(stop)
    assert sorted(failure.message.count("debian-login") for failure in failures) == [0, 1]


def test_an_old_failure_is_not_reported_while_the_supervisor_has_not_exited(tmp_path):
    stop = threading.Event()
    machine = Machine(tmp_path / "home", stop)
    create_cron(machine, "fedora")
    machine.start_supervisor()  # leaves the failure

    class Busy(Machine):
        def start_supervisor(self):
            self.starts += 1
            if self.starts > MAX_STARTS:
                self.store.delete(Key.of("dataimportcron", "default", "fedora"))
            return False

    assert Keeper(Busy(tmp_path / "home", stop)).run_due(stop) == []
