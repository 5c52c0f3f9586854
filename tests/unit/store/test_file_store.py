from __future__ import annotations

import json
import stat
import subprocess
import sys

import pytest

from cdi.api.errors import InternalError, NotFound
from cdi.api.kinds import STORED, kind_named
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

COUNT = """
import sys
from pathlib import Path
from cdi.store.base import Key, update_with_retry
from cdi.store.file_store import LocalStore
store = LocalStore(Path(sys.argv[1]))
key = Key("configmaps", "default", "c")
def add(body):
    body["data"]["n"] = str(int(body["data"]["n"]) + 1)
for _ in range(15):
    update_with_retry(store, key, add)
"""


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "objects")


def config_map(name="c"):
    return {"kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": "0"}}


def test_processes_do_not_lose_each_others_writes(store, tmp_path):
    store.create(config_map())
    command = [sys.executable, "-c", COUNT, str(tmp_path / "objects")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    body = store.get(Key("configmaps", "default", "c"))
    assert body["data"]["n"] == "45"
    assert body["metadata"]["generation"] == 46


def test_versions_go_on_when_the_counter_is_lost(store, tmp_path):
    made = store.create(config_map())
    for text in (None, b"garbage"):
        counter = tmp_path / "objects" / ".version"
        counter.unlink() if text is None else counter.write_bytes(text)
        newer = store.update({**made, "data": {"n": str(text)}})
        assert int(newer["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
        made = newer


def test_secrets_are_for_their_owner_only(store, tmp_path):
    store.create({"kind": "Secret", "metadata": {"name": "s"}, "data": {}})
    path = tmp_path / "objects" / "secrets" / "default" / "s.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "objects").stat().st_mode) == 0o700


def test_a_damaged_object_is_named_and_hides_no_other(store, tmp_path):
    store.create(config_map("good"))
    path = tmp_path / "objects" / "configmaps" / "default" / "bad.json"
    for text in [
        "{",
        "[]",
        "{}",
        '{"metadata":{"uid":5}}',
        '{"metadata":{"uid":"x","name":"../y"},"kind":"ConfigMap"}',
    ]:
        path.write_text(text)
        with pytest.raises(InternalError, match=r"bad\.json"):
            store.get(Key("configmaps", "default", "bad"))
        with store.watch(["configmaps"]) as watch:
            assert [c.key.name for c in watch.poll(0)] == ["good"]


def test_a_leftover_of_a_killed_writer_is_no_object(store, tmp_path):
    store.create(config_map())
    (tmp_path / "objects" / "configmaps" / "default" / ".0badc0de").write_text("half")
    assert len(store.list("configmaps")) == 1


def test_objects_are_plain_files_that_a_person_can_read(store, tmp_path):
    made = store.create(config_map())
    assert json.loads((tmp_path / "objects/configmaps/default/c.json").read_text()) == made


def test_cluster_wide_objects_ignore_a_namespace(store):
    store.create({"kind": "CDIConfig", "metadata": {"name": "config", "namespace": "x"}, "spec": {}})
    assert store.get(Key.of("cdiconfig", "y", "config"))["metadata"].get("namespace") is None


def test_every_name_of_a_kind_finds_it():
    for word in ("dv", "dvs", "DataVolume", "datavolumes", "DATAVOLUME"):
        assert kind_named(word).plural == "datavolumes"
    assert kind_named("pvc").kind == "PersistentVolumeClaim"
    assert {kind_named(k.plural) for k in STORED} == set(STORED)
    with pytest.raises(NotFound):
        kind_named("pods")


def test_reading_writes_nothing_not_even_its_directory(store, tmp_path):
    assert store.list("configmaps") == []
    assert store.version() == 0
    with pytest.raises(NotFound):
        store.get(Key("configmaps", "default", "c"))
    with store.watch(["configmaps"]) as watch:
        assert watch.poll(0) == []
        assert list(tmp_path.iterdir()) == []
        store.create(config_map())
        assert [change.type for change in watch.poll(0)] == ["ADDED"]
        assert watch.poll(0) == []
