"""Tests of how ``cdi explain`` predicts an import on one machine without writing to it."""

from __future__ import annotations

import json

import pytest

from cdi.api.errors import AlreadyExists, Conflict, InternalError, InvalidManifest, NotFound
from cdi.client.apply import apply
from cdi.client.locate import locate
from cdi.client.request import Request
from cdi.explain.local import explain, explain_request
from cdi.explain.local_overlay import LocalOverlay
from cdi.explain.result import document
from cdi.local.home import Home
from cdi.reconcile.datavolume.attempts import ANNOTATION
from cdi.store.base import Key
from cdi.store.file_store import OBJECT_LIMIT, LocalStore

MIB = 1 << 20
BLANK, UPLOAD = {"blank": {}}, {"upload": {}}


@pytest.fixture
def home(tmp_path):
    home = Home.find(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def store(home):
    return LocalStore(home.objects)


def volume(source, name="golden", size="8Mi", **spec):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"source": source, "storage": {"resources": {"requests": {"storage": size}}}, **spec},
    }


def clone_of(name):
    return {"pvc": {"namespace": "default", "name": name}}


def explained(home, *manifests):
    with LocalOverlay.open(home) as overlay:
        return [explain(overlay, key) for key in overlay.apply(manifests, namespace="default")]


def files(home):
    return {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}


def owned_claim(store, dv, **metadata):
    owner = {"apiVersion": dv["apiVersion"], "kind": "DataVolume", "name": dv["metadata"]["name"], "controller": True}
    metadata |= {"name": dv["metadata"]["name"], "namespace": "default"}
    metadata["ownerReferences"] = [{**owner, "uid": dv["metadata"]["uid"]}]
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}}
    return store.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


def test_a_manifest_is_explained_up_to_its_plan_and_nothing_is_written(home):
    before = files(home)
    (told,) = explained(home, volume(BLANK))
    assert told.refusal is None
    assert (told.plan.path, told.plan.disk_size, told.requested) == ("blank", 8 * MIB, 8 * MIB)
    assert [claim["metadata"]["name"] for claim in told.dry_run.claims] == ["golden"]
    assert files(home) == before


def test_an_upload_waits_until_it_is_given_a_file(home, tmp_path):
    (told,) = explained(home, volume(UPLOAD))
    assert "cdi upload" in told.dry_run.waits
    assert told.refusal is None
    (tmp_path / "image.raw").write_bytes(b"\1" * MIB)
    told = explain_request(home, Request(place=locate(str(tmp_path / "image.raw"))), "default", "golden")
    assert told.refusal is None
    assert told.found.virtual_size == MIB


def test_a_missing_source_is_an_error_because_only_the_user_can_create_it(home):
    (told,) = explained(home, volume(clone_of("absent")))
    assert isinstance(told.refusal, NotFound)
    assert told.dry_run.reason == "CloneWithoutSource"
    assert document(told)["waits"] == told.dry_run.waits


def test_a_volume_of_the_same_file_is_a_source_that_is_not_filled_yet(home):
    first, second = explained(home, volume(BLANK), volume(clone_of("golden"), name="copy"))
    assert first.refusal is None
    assert second.dry_run.worker is None
    assert second.dry_run.waits


def test_a_stored_volume_is_explained_from_its_beginning(home, store):
    apply(store, [volume(BLANK)])
    dv = store.get(Key.of("dv", "default", "golden"))
    store.update_status({**dv, "status": {"phase": "Failed"}})
    owned_claim(store, dv, annotations={ANNOTATION: json.dumps({"attempt": 3, "failures": 3})})
    before = files(home)
    with LocalOverlay.open(home) as overlay:
        told = explain(overlay, Key.of("dv", "default", "golden"))
    assert told.refusal is None
    assert told.dry_run.worker.attempt == 1
    assert told.dry_run.claims == ()
    assert files(home) == before


def test_files_of_the_user_are_not_overwritten(home):
    home.disk("default", "golden").parent.mkdir(parents=True)
    home.disk("default", "golden").write_bytes(b"mine")
    (told,) = explained(home, volume(BLANK))
    assert isinstance(told.refusal, Conflict)


def test_a_changed_spec_is_rejected_as_by_apply(home, store):
    apply(store, [volume(BLANK)])
    with pytest.raises(InvalidManifest):
        explained(home, volume(UPLOAD))
    with pytest.raises(InvalidManifest):
        explained(home, volume(BLANK, name="other"), volume(UPLOAD, name="other"))
    with pytest.raises(AlreadyExists):
        explain_request(home, Request(place=locate("/nowhere.img")), "default", "golden")


def test_an_object_that_the_store_would_refuse_is_refused(home):
    large = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "x" * OBJECT_LIMIT}}
    with pytest.raises(InvalidManifest, match="more than"):
        explained(home, large)


def test_a_damaged_object_is_named_with_its_real_path(home):
    path = home.objects / "datavolumes" / "default" / "golden.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(InternalError) as caught:
        explained(home, volume(BLANK))
    assert caught.value.where == str(path)


def test_what_does_not_exist_is_not_explained(home):
    with LocalOverlay.open(home) as overlay, pytest.raises(NotFound):
        explain(overlay, Key.of("dv", "default", "absent"))
