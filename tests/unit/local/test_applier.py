"""Tests of plans of DataImportCrons on one machine: one write for annotations and status, deletion, inheritance."""

from __future__ import annotations

import pytest

from cdi.api.errors import InternalError, NotFound
from cdi.local.applier import PlanApplier
from cdi.local.environment import Environments
from cdi.local.launcher import Launcher
from cdi.local.tasks import Tasks
from cdi.reconcile.actions import CreateObject, DeleteObject, Plan
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

GROUP = "cdi.kubevirt.io"
CRON = {
    "apiVersion": f"{GROUP}/v1beta1",
    "kind": "DataImportCron",
    "metadata": {"name": "os", "namespace": "default", "annotations": {"a": "1", "b": "2"}},
    "spec": {"schedule": "", "managedDataSource": "os", "template": {"spec": {}}},
}
KEY = Key("dataimportcrons", "default", "os")
VOLUME = {
    "apiVersion": f"{GROUP}/v1beta1",
    "kind": "DataVolume",
    "metadata": {"name": "os-1", "namespace": "default"},
    "spec": {"source": {"blank": {}}, "storage": {}},
}


@pytest.fixture
def store(home):
    return LocalStore(home.objects)


@pytest.fixture
def applier(home, store):
    return PlanApplier(store, Launcher(home), lambda ref: {}, Environments(home), Tasks(home))


def test_annotations_and_status_are_one_write(store, applier):
    body = store.create(CRON)
    before = store.version()
    plan = Plan(annotations={"a": None, "c": "3"}, status={"versions": [{"name": "x"}]})
    applier.apply(plan, body, 0.0)
    after = store.get(KEY)
    assert store.version() == before + 1
    assert after["metadata"]["annotations"] == {"b": "2", "c": "3"}
    assert after["status"] == {"versions": [{"name": "x"}]}


def test_a_concurrent_change_wins_and_nothing_is_lost(store, applier):
    body = store.create(CRON)
    changed = store.get(KEY)
    changed["metadata"]["annotations"]["golden"] = "new"
    store.update(changed)
    applier.apply(Plan(annotations={"a": None}, status={"versions": []}), body, 0.0)
    after = store.get(KEY)
    assert after["metadata"]["annotations"] == {"a": "1", "b": "2", "golden": "new"}
    assert "status" not in after


def test_annotations_of_another_kind_are_not_written_with_its_status(store, applier):
    body = store.create(VOLUME)
    with pytest.raises(InternalError):
        applier.apply(Plan(annotations={"a": "1"}), body, 0.0)


def test_an_object_is_deleted_only_if_it_still_is_the_same(store, applier):
    cron, volume = store.create(CRON), store.create(VOLUME)
    action = DeleteObject(plural="datavolumes", namespace="default", name="os-1", uid="another")
    applier.apply(Plan(actions=(action,)), cron, 0.0)
    assert store.get(Key.of("dv", "default", "os-1"))
    action = DeleteObject(plural="datavolumes", namespace="default", name="os-1", uid=volume["metadata"]["uid"])
    applier.apply(Plan(actions=(action, action)), cron, 0.0)
    with pytest.raises(NotFound):
        store.get(Key.of("dv", "default", "os-1"))


def test_an_import_gets_the_environment_of_its_cron(home, store, applier, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    environments = Environments(home)
    with environments.kept() as keep:
        keep(KEY)
    monkeypatch.delenv("https_proxy")
    applier.apply(Plan(actions=(CreateObject(body=VOLUME),)), store.create(CRON), 0.0)
    found = environments.of(Key("datavolumes", "default", "os-1"))
    assert found is not None
    assert found["https_proxy"] == "http://proxy.example:3128"
    # Both have a file of their own, even with the same name.
    environments.collect(lambda key: key.plural == "dataimportcrons")
    assert environments.of(Key("datavolumes", "default", "os-1")) is None
    assert environments.of(KEY) is not None
