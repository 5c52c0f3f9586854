"""Tests of a supervisor's rounds in this process, with scripted workers."""

from __future__ import annotations

import contextlib
import json
import os
import time

import pytest

from cdi import atomic_file
from cdi.api.errors import AlreadyExists
from cdi.client.apply import apply
from cdi.local.environment import Environments
from cdi.local.event_recorder import MAX_EVENTS, EventRecorder
from cdi.local.lister import Setting
from cdi.local.reconcilers.reconciler import Task
from cdi.local.supervisor import Supervisor
from cdi.local.uploads import LocalUploads
from cdi.local.worker_slots import MAX_WORKERS
from cdi.reconcile.settings import Retries
from cdi.store.base import Key, update_with_retry
from cdi.store.file_store import LocalStore


def data_volume(name="a", deed="ok", *, source=None, size="1Mi", **metadata):
    source = source or {"http": {"url": f"http://fake/{deed}"}}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, **metadata},
        "spec": {"source": source, "storage": {"resources": {"requests": {"storage": size}}}},
    }


class Bench:
    def __init__(self, home, launcher):
        self.home, self.launcher = home, launcher
        self.store = LocalStore(home.objects)
        self.supervisor = None
        self.restart()

    def restart(self):
        if self.supervisor is not None:
            self.supervisor.close()
        setting = Setting(retries=Retries(base=0.05, base_on_change=0.05, longest_on_change=0.3, patience=0.3))
        self.supervisor = Supervisor(self.home, launcher=self.launcher, setting=setting, linger=0.2)

    def apply(self, *manifests):
        return apply(self.store, manifests)

    def get(self, name, plural="datavolumes"):
        return self.store.get(Key(plural, "default", name))

    def phase(self, name):
        return self.get(name).get("status", {}).get("phase")

    def ready(self, name):
        return {"reason": "", "message": "", **self.get(name)["status"].get("detail", {})}

    def exists(self, name, plural="datavolumes"):
        try:
            self.get(name, plural)
        except Exception:
            return False
        return True

    def step_until(self, until, condition):
        def go():
            self.supervisor.step(0.05)
            return condition()

        return until(go)

    def phases(self, until, **wanted):
        self.step_until(until, lambda: all(self.phase(name) == phase for name, phase in wanted.items()))


@pytest.fixture
def bench(home, launcher):
    bench = Bench(home, launcher)
    yield bench
    bench.supervisor.close()


def test_it_serves_until_nothing_is_left_and_then_goes(bench, until):
    bench.apply(data_volume("a"), data_volume("b", "die-once"), data_volume("c", "fail-ImageCorrupt"))
    assert bench.supervisor.run()
    assert [bench.phase(name) for name in "abc"] == ["Succeeded", "Succeeded", "Failed"]
    assert bench.get("b")["status"]["restartCount"] == 1
    assert bench.ready("c")["reason"] == "ImageCorrupt"
    assert bench.home.disk("default", "a").stat().st_size == 1 << 20


def test_there_is_one_of_it(bench):
    with atomic_file.locked(bench.home.supervisor_lock):
        assert not bench.supervisor.run()


def test_no_more_workers_run_than_may_and_the_first_come_first(bench, until):
    bench.apply(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "CDIConfig",
            "metadata": {"name": "config", "annotations": {MAX_WORKERS: "2"}},
            "spec": {},
        }
    )
    names = [f"v{number}" for number in range(5)]
    for name in names:
        bench.apply(data_volume(name, "hang"))
        bench.supervisor.step(0)
        bench.supervisor.step(0)
    bench.step_until(until, lambda: [bench.phase(n) for n in names].count("ImportInProgress") == 2)
    for _ in range(5):
        bench.supervisor.step(0.02)
    assert [bench.phase(n) for n in names] == ["ImportInProgress"] * 2 + ["ImportScheduled"] * 3
    assert "one of 2 workers" in bench.ready("v2")["message"]
    bench.store.delete(Key("datavolumes", "default", "v0"))
    bench.step_until(until, lambda: bench.phase("v2") == "ImportInProgress")
    assert bench.phase("v3") == "ImportScheduled"
    bench.apply(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "CDIConfig",
            "metadata": {"name": "config", "annotations": {MAX_WORKERS: "9"}},
            "spec": {},
        }
    )
    bench.step_until(until, lambda: bench.phase("v3") == bench.phase("v4") == "ImportInProgress")


def test_an_upload_that_starts_after_the_supervisor_has_seen_its_request_is_followed(
    bench, until, tmp_path, monkeypatch
):
    class Late:
        """A launcher before whose start the supervisor handles every change, and finds nothing to do."""

        def __getattr__(self, name):
            return getattr(bench.launcher, name)

        def start(self, action, read_input, **options):
            for _ in range(5):
                bench.supervisor.step(0)
            return bench.launcher.start(action, read_input, **options)

    bench.apply(data_volume("a", source={"upload": {}}))
    bench.phases(until, a="UploadReady")
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    monkeypatch.setattr("cdi.local.uploads.ensure_supervisor", lambda home: False)  # it is this process
    with open(tmp_path / "disk", "rb") as file:
        LocalUploads(bench.home, bench.store, Late()).stream(Key("datavolumes", "default", "a"), file.fileno(), 4096)
    assert bench.supervisor.run(), "until nothing is left to do"
    assert bench.phase("a") == "Succeeded"


def test_another_supervisor_goes_on_with_what_runs(bench, until):
    bench.apply(data_volume("a", "hang"), data_volume("b", "slow"))
    bench.phases(until, a="ImportInProgress")
    bench.restart()
    bench.phases(until, a="ImportInProgress", b="Succeeded")
    assert bench.get("a")["status"]["restartCount"] == 0


def test_deleting_takes_worker_claim_volume_and_events(bench, until):
    bench.apply(data_volume("a", "hang"))
    bench.phases(until, a="ImportInProgress")
    (uid,) = bench.launcher.known()
    assert bench.home.volume("default", "a").is_dir()
    bench.store.delete(Key("datavolumes", "default", "a"))
    bench.step_until(until, lambda: not bench.exists("a", "persistentvolumeclaims") and not bench.store.list("events"))
    bench.step_until(until, lambda: not bench.launcher.known())
    assert not bench.launcher.alive(uid)
    assert os.listdir(bench.home.volumes) == []


def test_a_deletion_that_was_interrupted_is_finished(bench, until):
    bench.apply(data_volume("a"))
    bench.phases(until, a="Succeeded")
    bench.store.delete(Key("datavolumes", "default", "a"))
    bench.restart()
    bench.step_until(until, lambda: not bench.exists("a", "persistentvolumeclaims"))
    assert not bench.home.volume("default", "a").exists()


def test_a_new_life_of_a_name_begins_empty(bench, until):
    bench.apply(data_volume("a"))
    bench.phases(until, a="Succeeded")
    first = bench.get("a", "persistentvolumeclaims")["metadata"]["uid"]
    bench.store.delete(Key("datavolumes", "default", "a"))
    bench.apply(data_volume("a", "fail-ImageCorrupt"))
    bench.phases(until, a="Failed")
    assert bench.get("a", "persistentvolumeclaims")["metadata"]["uid"] != first
    assert not bench.home.disk("default", "a").exists()


def test_what_a_person_must_change_keeps_it_waiting_until_then(bench, until):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"accessKeyId": "a", "secretKey": "b"},
    }
    bench.apply(data_volume("a", source={"http": {"url": "http://fake/ok", "secretRef": "s"}}))
    bench.phases(until, a="PVCBound")
    assert "Secret default/s does not exist" in bench.ready("a")["message"]
    bench.apply(secret)
    bench.phases(until, a="Succeeded")
    (uid,) = bench.launcher.known()
    assert not bench.home.worker(uid).inputs.exists()


def test_a_directory_that_holds_files_is_not_taken(bench, until):
    directory = bench.home.volume("default", "a")
    directory.mkdir(parents=True)
    (directory / "disk.img").write_text("precious")
    bench.apply(data_volume("a"))
    bench.step_until(until, lambda: bench.phase("a") == "Pending" and "already holds" in bench.ready("a")["message"])
    bench.store.delete(Key("datavolumes", "default", "a"))
    bench.step_until(until, lambda: not bench.exists("a", "persistentvolumeclaims"))
    assert (directory / "disk.img").read_text() == "precious"


def test_a_claim_made_by_hand_takes_its_directory_and_can_be_adopted_and_cloned(bench, until):
    directory = bench.home.volume("default", "a")
    directory.mkdir(parents=True)
    (directory / "disk.img").write_bytes(b"x" * (1 << 20))
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "a"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    bench.apply(claim, data_volume("a", annotations={"cdi.kubevirt.io/allowClaimAdoption": "true"}))
    bench.phases(until, a="Succeeded")
    bench.apply(data_volume("b", source={"pvc": {"namespace": "default", "name": "a"}}, size="2Mi"))
    bench.phases(until, b="Succeeded")
    assert bench.home.disk("default", "b").read_bytes() == b"x" * (1 << 20) + bytes(1 << 20)


def test_one_broken_object_does_not_stop_the_others(bench, until):
    bench.apply(data_volume("a"), data_volume("b"))
    path = bench.home.objects / "datavolumes" / "default" / "a.json"
    text = path.read_text()
    path.write_text(text.replace('"spec":{', '"spec":{"storage":5,"source":7},"was":{'))
    for name, replacement in {"c": '"spec":[],"was":{', "d": '"status":7,"was":{'}.items():
        (path.parent / f"{name}.json").write_text(text.replace('"a"', f'"{name}"').replace('"spec":{', replacement))
    bench.phases(until, b="Succeeded")


def test_datasources_and_crons_get_their_conditions(bench, until):
    cdi = {"apiVersion": "cdi.kubevirt.io/v1beta1"}
    bench.apply(
        {**cdi, "kind": "DataSource", "metadata": {"name": "golden"}, "spec": {"source": {"pvc": {"namespace": "default", "name": "a"}}}},
        {**cdi, "kind": "DataVolume", "metadata": {"name": "b"}, "spec": {"sourceRef": {"kind": "DataSource", "name": "golden"}, "storage": {}}},
        {**cdi, "kind": "DataImportCron", "metadata": {"name": "c"}, "spec": {"schedule": "", "managedDataSource": "x", "template": {"metadata": {}, "spec": {"source": {"registry": {"url": "docker://r/i"}}, "storage": {"resources": {"requests": {"storage": "1Gi"}}}}}}},
    )  # fmt: skip
    bench.step_until(until, lambda: bench.phase("b") == "Pending")
    bench.apply(data_volume("a"))
    bench.phases(until, a="Succeeded", b="Succeeded")
    bench.step_until(until, lambda: bench.get("golden", "datasources")["status"]["conditions"][0]["status"] == "True")
    conditions = bench.get("c", "dataimportcrons")["status"]["conditions"]
    assert [one["reason"] for one in conditions] == ["NoImport", "NoDigest"]
    assert bench.get("x", "datasources")["spec"]["source"] == {}
    assert bench.home.disk("default", "b").read_bytes() == bench.home.disk("default", "a").read_bytes()


def test_events_of_an_object_count_up_and_are_bounded(bench, until):
    bench.apply(data_volume("a"))
    bench.phases(until, a="Succeeded")
    body, recorder = bench.get("a"), EventRecorder(bench.store)
    from cdi.reconcile.actions import Event

    for number in range(MAX_EVENTS + 10):
        recorder.record(body, Event(type="Normal", reason="R", message=str(number)), time.time() + 10)
    recorder.record(body, Event(type="Normal", reason="R", message=str(number)), time.time() + 20)
    assert recorder.events_of(body)[-1]["count"] == 2
    bench.restart()
    bench.step_until(until, lambda: len(bench.store.list("events")) == MAX_EVENTS)
    assert recorder.events_of(body)[-1]["message"] == str(number)


def test_owners_elsewhere_do_not_make_an_orphan(bench, until):
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm", "uid": "u"}
    bench.apply(data_volume("a", ownerReferences=[owner]))
    bench.phases(until, a="Succeeded")
    bench.restart()
    for _ in range(5):
        bench.supervisor.step(0)
    assert bench.phase("a") == "Succeeded"


def test_a_volume_that_cannot_be_removed_is_tried_again(bench, until, monkeypatch):
    import shutil

    bench.apply(data_volume("a"))
    bench.phases(until, a="Succeeded")
    really, calls = shutil.rmtree, []

    def fail(path, *args, **kw):
        if str(path) == str(bench.home.volume("default", "a")) and not calls:
            calls.append(path)
            raise OSError(16, "busy")
        return really(path, *args, **kw)

    monkeypatch.setattr(shutil, "rmtree", fail)
    bench.store.delete(Key("datavolumes", "default", "a"))
    bench.step_until(until, lambda: not bench.exists("a", "persistentvolumeclaims"))
    assert calls


def test_conflicting_writers_do_not_disturb(bench, until):
    bench.apply(data_volume("a", "slow"))
    while bench.phase("a") != "Succeeded":
        bench.supervisor.step(0.02)
        with contextlib.suppress(AlreadyExists):
            update_with_retry(
                bench.store,
                Key("datavolumes", "default", "a"),
                lambda b: b["metadata"].update({"labels": {"n": os.urandom(4).hex()}}),
            )


def test_workers_get_the_environment_of_whoever_applied(bench, until, monkeypatch):
    environments = Environments(bench.home)
    for name in ("a", "b"):
        monkeypatch.setenv("AWS_PROFILE", f"of-{name}")
        with environments.kept() as keep:
            apply(bench.store, [data_volume(name, "hang")], before_write=keep)
    monkeypatch.setenv("AWS_PROFILE", "of-the-supervisor")
    monkeypatch.setenv("GITHUB_TOKEN", "a secret value")
    bench.apply(data_volume("c", "hang"))
    bench.phases(until, a="ImportInProgress", b="ImportInProgress", c="ImportInProgress")

    def environment(name):
        path = bench.home.worker(bench.get(name, "persistentvolumeclaims")["metadata"]["uid"]).path
        return json.loads(until(lambda: atomic_file.read(path / "environment.json")))

    seen = {name: environment(name) for name in "abc"}
    assert [seen[name].get("AWS_PROFILE") for name in "abc"] == ["of-a", "of-b", None]
    assert not any("GITHUB_TOKEN" in found for found in seen.values())


def test_environments_are_forgotten_with_what_they_were_for(bench, until):
    environments = Environments(bench.home)
    with environments.kept() as keep:
        apply(bench.store, [data_volume("a"), data_volume("b", "hang")], before_write=keep)
    keys = [Key("datavolumes", "default", name) for name in "ab"]
    bench.phases(until, a="Succeeded", b="ImportInProgress")
    bench.step_until(until, lambda: environments.of(keys[0]) is None)
    assert environments.of(keys[1]) is not None
    bench.store.delete(keys[1])
    bench.step_until(until, lambda: environments.of(keys[1]) is None)


def test_what_cannot_be_written_is_told_in_the_conditions_logged_once_and_tried_again(bench, until, caplog):
    bench.home.workers.rmdir()
    bench.home.workers.write_text("in the way")
    bench.apply(data_volume("a"))
    bench.step_until(until, lambda: bench.phase("a") and bench.ready("a")["reason"] == "TargetUnsuitable")
    assert "cannot use the workers' files: Not a directory" in bench.ready("a")["message"]
    tries = []
    original = bench.launcher.observe

    def observe(claim):
        tries.append(claim)
        return original(claim)

    bench.launcher.observe = observe
    bench.step_until(until, lambda: len(tries) == 2)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if line.startswith("datavolume default/a: error[TargetUnsuitable]")]) == 1
    bench.home.workers.unlink()
    bench.phases(until, a="Succeeded")
    assert bench.ready("a")["reason"] != "TargetUnsuitable"


def test_a_claim_that_cannot_have_its_directory_is_told_by_its_datavolume(bench, until):
    bench.home.volumes.rmdir()
    bench.home.volumes.write_text("in the way")
    bench.apply(data_volume("a"))
    bench.step_until(until, lambda: bench.phase("a") and bench.ready("a")["reason"] == "TargetUnsuitable")
    for _ in range(5):
        bench.supervisor.step(0.02)
    assert "cannot use the volume's directory" in bench.ready("a")["message"]
    bench.home.volumes.unlink()
    bench.phases(until, a="Succeeded")


def test_garbage_that_cannot_be_removed_is_tried_again_and_nothing_else_waits_for_it(bench, until, caplog):
    bench.home.workers.rmdir()
    bench.home.workers.write_text("in the way")
    bench.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}})
    bench.step_until(until, lambda: any("garbage collection" in record.getMessage() for record in caplog.records))
    bench.home.workers.unlink()
    bench.apply(data_volume("a"))
    bench.phases(until, a="Succeeded")
    bench.step_until(until, lambda: Task.GARBAGE_COLLECTION not in bench.supervisor._errors)
