"""Tests of commands to golden images that others change at the same time; both act between two requests of a command."""

from __future__ import annotations

import pytest

from cdi.api.errors import Conflict, GoldenCommandRefused, WaitTimeout
from cdi.api.golden import REVOKE, command_label
from cdi.client.golden_commands import run_command, withdraw, write_command
from cdi.client.golden_view import get
from cdi.local.backend import LocalBackend
from cdi.store.base import Key, update_with_retry

GROUP = "cdi.kubevirt.io"
KEY = Key.of("dataimportcron", "default", "fedora")


class Machine(LocalBackend):
    """A backend on which `after_read` and `after_write` run once, after the next read or write of the image."""

    after_read = after_write = None

    def get(self, kind, namespace, name):
        body = super().get(kind, namespace, name)
        action, self.after_read = self.after_read, None
        if action:
            action()
        return body

    def annotate(self, *arguments, **more):
        body = super().annotate(*arguments, **more)
        action, self.after_write = self.after_write, None
        if action:
            action()
        return body

    def change(self, value, condition=None):
        """Write the annotation, None to remove it, and the condition, as another client or the controller does."""

        def change(body):
            annotations = body["metadata"].setdefault("annotations", {})
            annotations.pop(REVOKE, None)
            if value is not None:
                annotations[REVOKE] = value
            if condition is not None:
                body["status"] = {"conditions": [condition]}

        update_with_retry(self.store, KEY, change)

    @property
    def pending(self):
        return (self.store.get(KEY)["metadata"].get("annotations") or {}).get(REVOKE)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr("cdi.local.backend.ensure_supervisor", lambda home: False)
    machine = Machine(tmp_path / "home")
    machine.home.make()
    source = {"http": {"url": "https://images.example/fedora.qcow2"}}
    machine.store.create(
        {
            "apiVersion": f"{GROUP}/v1beta1",
            "kind": "DataImportCron",
            "metadata": {"name": "fedora", "namespace": "default"},
            "spec": {"schedule": "", "managedDataSource": "fedora", "template": {"spec": {"source": source}}},
        }
    )
    return machine


@pytest.fixture
def image(machine):
    return get(machine, "default", "fedora")


def refusal(value, text="is not known"):
    return {
        "type": "GoldenSettings",
        "status": "False",
        "reason": "CommandRefused",
        "message": f"{command_label(REVOKE, value)}: {text}",
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    }


def test_a_command_whose_annotation_is_gone_was_carried_out(machine, image):
    machine.after_write = lambda: machine.change(None)
    assert REVOKE not in run_command(machine, image, REVOKE, "v1", timeout=0).annotations


def test_a_command_that_was_replaced_is_not_reported_as_carried_out(machine, image):
    machine.after_write = lambda: machine.change("v2")
    with pytest.raises(Conflict, match="'v2' has replaced 'v1'"):
        run_command(machine, image, REVOKE, "v1", timeout=0)
    assert machine.pending == "v2"


def test_a_command_that_is_written_between_reading_and_writing_is_not_replaced(machine, image):
    machine.after_read = lambda: machine.change("v1")
    with pytest.raises(Conflict, match="'v1' has not been carried out"):
        write_command(machine, image, REVOKE, "v2")
    assert machine.pending == "v1"


def test_an_image_that_was_changed_otherwise_is_read_again(machine, image):
    machine.after_read = lambda: machine.change(None, refusal("v0"))
    write_command(machine, image, REVOKE, "v1")
    assert machine.pending == "v1"


def test_two_authors_of_the_same_command_are_both_told_that_it_was_refused(machine, image):
    machine.change("v1")
    # The other one has seen the refusal first, and withdrawn the command.
    machine.after_write = lambda: machine.change(None, refusal("v1"))
    with pytest.raises(GoldenCommandRefused, match="is not known"):
        run_command(machine, image, REVOKE, "v1", timeout=0)


def test_a_refusal_of_the_same_command_before_does_not_count(machine, image):
    machine.change(None, refusal("v1"))
    with pytest.raises(WaitTimeout):
        run_command(machine, image, REVOKE, "v1", timeout=0)
    assert machine.pending == "v1"


def test_withdrawing_keeps_a_command_that_has_replaced_it(machine, image):
    machine.change("v1")
    machine.after_read = lambda: machine.change("v2")
    withdraw(machine, image, REVOKE, "v1")
    assert machine.pending == "v2"


def test_a_value_that_another_one_begins_with_is_told_from_it(machine, image):
    machine.after_write = lambda: machine.change("v1", refusal("v1: CVE"))
    with pytest.raises(WaitTimeout):
        run_command(machine, image, REVOKE, "v1", timeout=0)
