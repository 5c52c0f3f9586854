from __future__ import annotations

import base64

import pytest

from cdi.api.errors import CdiError, Conflict, InvalidManifest
from cdi.client.apply import apply, keys_of
from cdi.client.document import Document
from cdi.store.base import Key, update_with_retry
from cdi.store.file_store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "objects")


def data_volume(name="a", *, url="http://s/i", **metadata):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, **metadata},
        "spec": {"source": {"http": {"url": url}}, "storage": {"resources": {"requests": {"storage": "1Gi"}}}},
    }


def actions(store, *manifests):
    return [a.action for a in apply(store, manifests)]


KEY = Key("datavolumes", "default", "a")


def test_created_then_unchanged_then_configured(store):
    assert actions(store, data_volume()) == ["created"]
    assert actions(store, data_volume()) == ["unchanged"]
    assert actions(store, data_volume(labels={"x": "y"})) == ["configured"]
    assert store.get(KEY)["metadata"]["labels"] == {"x": "y"}


def test_what_the_manifest_no_longer_sets_goes_and_what_others_set_stays(store):
    apply(store, [data_volume(annotations={"mine": "1", "also": "2"}, labels={"l": "1"})])
    update_with_retry(store, KEY, lambda body: body["metadata"]["annotations"].update({"theirs": "3"}))
    assert actions(store, data_volume(annotations={"also": "2"})) == ["configured"]
    metadata = store.get(KEY)["metadata"]
    assert metadata["annotations"].keys() - {"cdi.kubevirt.io/applied"} == {"also", "theirs"}
    assert "labels" not in metadata


def test_a_spec_does_not_change(store):
    apply(store, [data_volume()])
    with pytest.raises(InvalidManifest, match="Cannot update DataVolume Spec"):
        apply(store, [data_volume(url="http://s/other")])


def test_status_and_identity_are_not_applied(store):
    exported = {
        **data_volume(uid="x", resourceVersion="5", creationTimestamp="2020-01-01T00:00:00Z", finalizers=["f"]),
        "status": {"phase": "Succeeded"},
    }
    apply(store, [exported])
    body = store.get(KEY)
    assert "status" not in body
    assert body["metadata"]["uid"] != "x"
    assert "finalizers" not in body["metadata"]
    assert actions(store, exported) == ["unchanged"]


def test_owners_and_status_survive_a_second_apply(store):
    apply(store, [data_volume()])
    store.update_status({**store.get(KEY), "status": {"phase": "Succeeded"}})
    owner = {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u"}
    update_with_retry(store, KEY, lambda body: body["metadata"].update({"ownerReferences": [owner]}))
    assert actions(store, data_volume()) == ["unchanged"]
    assert store.get(KEY)["status"] == {"phase": "Succeeded"}
    assert store.get(KEY)["metadata"]["ownerReferences"] == [owner]


def test_nothing_is_written_where_one_manifest_is_wrong(store):
    with pytest.raises(InvalidManifest):
        apply(store, [data_volume(), data_volume("b", url="ftp://s/i")])
    assert store.list("dv") == []


def test_a_list_is_its_items(store):
    listed = {"apiVersion": "v1", "kind": "List", "items": [data_volume("a"), data_volume("b")]}
    assert actions(store, listed) == ["created", "created"]
    nested = data_volume()
    for _ in range(9):
        nested = {"apiVersion": "v1", "kind": "List", "items": [nested]}
    with pytest.raises(InvalidManifest, match="nested"):
        apply(store, [nested])


def test_string_data_of_a_secret_becomes_data(store):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "data": {"a": base64.b64encode(b"old").decode(), "b": "Yg=="},
        "stringData": {"a": "new"},
    }
    assert actions(store, secret) == ["created"]
    body = store.get(Key("secrets", "default", "s"))
    assert body["data"] == {"a": base64.b64encode(b"new").decode(), "b": "Yg=="}
    assert "stringData" not in body
    assert actions(store, secret) == ["unchanged"]


@pytest.mark.parametrize(
    "kind", ["VolumeImportSource", "ObjectTransfer", "UploadTokenRequest", "VirtualMachine", "Event"]
)
def test_kinds_without_effect_here_are_refused(store, kind):
    manifest = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": {"source": {"blank": {}}},
    }
    with pytest.raises(InvalidManifest):
        apply(store, [manifest])


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        5,
        "text",
        [],
        {},
        {"kind": "List", "items": [5]},
        {"kind": ["List"], "items": []},
        {"kind": "DataVolume", "apiVersion": 5},
    ],
)
def test_what_is_no_manifest_is_refused(store, manifest):
    with pytest.raises(CdiError):
        apply(store, [manifest])


def test_what_is_being_deleted_cannot_be_applied(store):
    apply(store, [data_volume()])
    update_with_retry(store, KEY, lambda body: body["metadata"].update({"finalizers": ["f"]}))
    store.delete(KEY)
    with pytest.raises(Conflict):
        apply(store, [data_volume()])


def test_what_is_wrong_is_told_with_its_file_and_line(store):
    right, wrong = data_volume("a"), data_volume("b", labels={"k": 1})
    documents = [Document(origin="dv.yaml", line=1, body=right), Document(origin="dv.yaml", line=9, body=wrong)]
    with pytest.raises(InvalidManifest) as refused:
        apply(store, documents)
    assert refused.value.where == "dv.yaml:9: DataVolume b"
    listed = {"apiVersion": "v1", "kind": "List", "items": [right, {"apiVersion": "v1", "kind": "Pod"}]}
    with pytest.raises(CdiError) as refused:
        apply(store, [Document(origin="-", line=4, body=listed)])
    assert refused.value.where.startswith("standard input:4, items[1]")
    apply(store, [right])
    with pytest.raises(InvalidManifest) as refused:
        apply(store, [Document(origin="dv.yaml", line=3, body=data_volume("a", url="http://s/other"))])
    assert refused.value.where == "dv.yaml:3: datavolume default/a"


@pytest.mark.parametrize(
    "body", [5, None, [], {"kind": "DataVolume"}, {"kind": "DataVolume", "metadata": {"name": True}}]
)
def test_what_cannot_be_deleted_is_told_with_its_place(body):
    with pytest.raises(InvalidManifest) as refused:
        keys_of([Document(origin="dv.yaml", line=3, body=body)])
    assert refused.value.where.startswith("dv.yaml:3")
    for word in ("NoneType", "bool", "int ", "dict"):
        assert word not in refused.value.message.replace("boolean", "").replace("integer", "")
