from __future__ import annotations

import io
import json

import pytest

from cdi.api.errors import InvalidManifest, UsageError
from cdi.api.policy import CHECKSUM, PREFIX, RECORD_DIGEST
from cdi.batch.load import load_batch
from cdi.explain.item import size_of

SUM = f"sha256:{'a' * 64}"
URL = "https://h/a.qcow2"


def load(tmp_path, images, *, namespace="default", **more):
    file = tmp_path / "images.yaml"
    file.write_text(json.dumps({"images": images, **more}))
    return load_batch([str(file)], namespace=namespace)


def one(tmp_path, entry, **more):
    (item,) = load(tmp_path, [{"name": "a", **entry}], **more).items
    return item


def refused(tmp_path, images, **more):
    with pytest.raises(InvalidManifest) as caught:
        load(tmp_path, images, **more)
    return caught.value.what


def manifests(tmp_path, *bodies):
    file = tmp_path / "dv.yaml"
    file.write_text("\n---\n".join(json.dumps(body) for body in bodies))
    return load_batch([str(file)])


def data_volume(name="a", source=None, storage=None, **spec):
    source = {"http": {"url": URL}} if source is None else source
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name},
        "spec": {"source": source, "storage": storage or {}, **spec},
    }


# --- lists of images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("http://h/a", {"http": {"url": "http://h/a"}}),
        ("HTTPS://h/a?b=c", {"http": {"url": "https://h/a?b=c"}}),
        ("s3://b/k", {"s3": {"url": "s3://b/k"}}),
        ("gs://b/k", {"gcs": {"url": "gs://b/k"}}),
        ("docker://h/i:t", {"registry": {"url": "docker://h/i:t"}}),
        ("sub/a.qcow2", {"upload": {}}),
        ("/srv/a.qcow2", {"upload": {}}),
    ],
)
def test_the_scheme_says_what_kind_of_source_it_is(tmp_path, url, source):
    item = one(tmp_path, {"url": url})
    assert item.manifest["spec"]["source"] == source
    assert item.url == url.replace("HTTPS", "https")
    assert item.unsized
    assert item.pinnable


def test_paths_begin_where_the_file_is(tmp_path):
    assert one(tmp_path, {"url": "sub/a.qcow2"}).path == tmp_path / "sub/a.qcow2"
    archive = one(tmp_path, {"url": "oci-archive:sub/a.tar:x"})
    assert archive.manifest["spec"]["source"]["registry"]["url"] == f"oci-archive:{tmp_path}/sub/a.tar:x"
    assert archive.url == "oci-archive:sub/a.tar:x"
    assert one(tmp_path, {"url": f"file://{tmp_path}/a"}).path == tmp_path / "a"


def test_everything_reaches_the_datavolume(tmp_path):
    item = one(
        tmp_path,
        {
            "url": URL,
            "size": "10Gi",
            "checksum": SUM,
            "contentType": "kubevirt",
            "storage": {"storageClassName": "fast"},
            "preallocation": True,
            "labels": {"a": "b"},
            "annotations": {"c": "d"},
            "policy": {"engine": "qemu", "connections": 4, "requireChecksum": True},
            "secretRef": "login",
            "certConfigMap": "ca",
        },
    )
    assert item.manifest["metadata"] == {
        "name": "a",
        "namespace": "default",
        "labels": {"a": "b"},
        "annotations": {
            "c": "d",
            RECORD_DIGEST: "true",
            f"{PREFIX}engine": "qemu",
            f"{PREFIX}connections": "4",
            f"{PREFIX}requireChecksum": "true",
        },
    }
    assert item.manifest["spec"] == {
        "source": {"http": {"url": URL, "checksum": SUM, "secretRef": "login", "certConfigMap": "ca"}},
        "contentType": "kubevirt",
        "preallocation": True,
        "storage": {"storageClassName": "fast", "resources": {"requests": {"storage": "10Gi"}}},
    }
    assert not item.unsized


def test_a_checksum_of_a_source_without_a_field_for_it(tmp_path):
    for url in ("s3://b/k", "docker://h/i", "a.raw"):
        assert one(tmp_path, {"url": url, "checksum": SUM}).manifest["metadata"]["annotations"][CHECKSUM] == SUM


def test_defaults_are_for_those_that_do_not_say_otherwise(tmp_path):
    common = {
        "size": "1Gi",
        "storage": {"storageClassName": "slow"},
        "labels": {"a": "1", "b": "1"},
        "policy": {"connections": 2},
        "secretRef": "login",
        "certConfigMap": "ca",
        "namespace": "images",
    }
    images = [
        {"name": "a", "url": URL},
        {"name": "b", "url": "a.raw", "size": "2Gi", "labels": {"b": "2"}, "policy": {"connections": 3}},
        {"name": "c", "url": "gs://b/k", "storage": {"resources": {"requests": {"storage": "3Gi"}}}},
        {"name": "d", "source": {"http": {"url": URL}}, "pvc": {"accessModes": ["ReadWriteOnce"]}, "namespace": "x"},
        {"name": "e", "source": {"pvc": {"namespace": "images", "name": "a"}}},
    ]
    a, b, c, d, e = load(tmp_path, images, defaults=common).items
    assert [size_of(item.manifest) for item in (a, b, c, d, e)] == ["1Gi", "2Gi", "3Gi", "1Gi", "1Gi"]
    assert a.manifest["spec"]["source"]["http"] == {"url": URL, "secretRef": "login", "certConfigMap": "ca"}
    assert b.manifest["spec"]["source"] == {"upload": {}}
    assert b.manifest["metadata"]["labels"] == {"a": "1", "b": "2"}
    assert b.manifest["metadata"]["annotations"][f"{PREFIX}connections"] == "3"
    assert c.manifest["spec"]["source"]["gcs"] == {"url": "gs://b/k", "secretRef": "login"}
    assert "storage" not in d.manifest["spec"]
    assert d.manifest["spec"]["source"] == {"http": {"url": URL}}
    assert [item.label for item in (a, d)] == ["images/a", "x/d"]
    assert e.source == a.claim


def test_the_namespace_of_the_command_is_for_those_that_name_none(tmp_path):
    item = one(tmp_path, {"url": URL}, namespace="prod")
    assert (item.namespace, item.label) == ("prod", "a")


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    images = [
        {"name": "A_b", "url": "ftp://h/a"},
        {"url": URL, "sise": "1Gi"},
        {"name": "c", "url": URL, "source": {"http": {"url": URL, "chekum": 1}}},
        {"name": "d", "url": URL, "size": "big", "labels": {"x": 1}},
        {"name": "e", "url": URL, "size": "1Gi", "storage": {"resources": {"requests": {"storage": "1Gi"}}}},
        {"name": "f"},
        "g",
        {"name": "h", "url": URL, "checksum": "sha256:1", "policy": {"engine": "vmware"}},
        {"name": "i", "url": "s3://bucket", "pvc": {}},
        {"name": "j", "url": "https://user:pass@h/a"},
        {"name": "k", "url": "-"},
        {"name": "l", "source": {"blank": {}}, "checksum": SUM},
        {"name": "m", "url": "docker://h/i", "contentType": "archive"},
        {"name": "n", "source": {"upload": {}}},
        {"name": "o", "url": "a.raw", "certConfigMap": "ca"},
        {"name": "p", "source": {"blank": {}}},
        {"name": "q", "url": URL, "policy": {"connections": 65}},
        {"name": "r", "url": URL, "secretRef": "Not A Name", "size": "1Ki"},
    ]
    what = refused(tmp_path, images, defaults={"colour": "red", "name": "x"}, version=2)
    for words in (
        "version: no such field",
        "defaults.colour: no such field",
        "defaults.name: no such field",
        "images[0].url: the URL scheme ftp: is not supported",
        "images[1].name: Required value",
        "images[2].source.http.chekum: no such field",
        "images[3].size: Invalid value",
        "images[3].labels.x: Invalid value",
        "images[4].size: the size is also set in the PVC's request",
        "images[5]: url is missing",
        "images[6]: must be of type object, not string",
        "images[7].checksum: sha256 requires 64 hex digits",
        "images[8].url: Invalid source URL",
        "images[8].pvc.accessModes: Required value",
        "images[9].url: it contains a user",
        "images[10].url: a batch does not read images from standard input",
        "images[11].checksum: this source fetches no content",
        "images[12].contentType: ContentType must be kubevirt",
        "images[12].size: the volume of an archive needs a size",
        "images[13].source.upload: uploads are not supported in a batch",
        "images[14].certConfigMap: a source of kind file does not support it",
        "images[15].size: an empty disk needs a size",
        "images[16].policy.connections: ",
        "images[17].secretRef: Name of Secret",
        "images[17].size: Storage size 1Ki is smaller",
    ):
        assert words in what, words
    assert "pass" not in what.replace("password", "")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("images: []", "images: a list of images is required"),
        ("images: {a: b}", "images: a list of images is required"),
        ("defaults: []\nimages: [{name: a, url: b}]", ""),
        ("defaults: 5\nimages: [{name: a, url: b}]", "defaults: must be of type object, not integer"),
        ("- a", "neither a list of images"),
        ("just text", "neither a list of images"),
        ("kind: 5", "neither a list of images"),
        ("images: [{name: no, url: a}]", "images[0].name: Invalid value"),
        ("images: [{name: a, name: b, url: c}]", "duplicate key 'name'"),
        ("images: [{name: a, url: c, policy: {connections: [1]}}]", "images[0].policy.connections"),
        ("images: [{name: a, url: c, source: 5}]", "images[0].source"),
        ("images: [{name: a, url: c, storage: {resources: {requests: 5}}}]", "images[0].storage.resources.requests"),
        ("images: [{1: a, url: c}]", "must be of type string, not integer"),
        ("kind: Pod\napiVersion: v1", "Pod"),
        ("kind: DataVolume\napiVersion: cdi.kubevirt.io/v1beta1", "metadata and spec are required"),
        ("kind: DataVolume\napiVersion: cdi.kubevirt.io/v1beta1\nmetadata: {}\nspec: {storage: 5}", "spec.storage"),
        ("kind: DataVolume\napiVersion: cdi.kubevirt.io/v1beta1\nmetadata: {}\nspec: {pvc: []}", "spec.pvc"),
    ],
)
def test_files_that_are_something_else(body, words):
    if not words:
        assert load_batch(["-"], stdin=io.BytesIO(body.encode())).items
        return
    with pytest.raises(InvalidManifest) as caught:
        load_batch(["-"], stdin=io.BytesIO(body.encode()))
    assert words in str(caught.value)


def test_nothing_to_import(tmp_path):
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n")
    with pytest.raises(UsageError, match="no image"):
        load_batch([str(tmp_path)])
    with pytest.raises(UsageError):
        load_batch([str(tmp_path / "none.yaml")])


# --- manifests ------------------------------------------------------------------------------------------------------


def test_manifests_and_what_stands_beside_them(tmp_path):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    items = [data_volume("b", {"blank": {}}, {"resources": {"requests": {"storage": "1Gi"}}})]
    batch = manifests(tmp_path, data_volume(), secret, {"kind": "List", "apiVersion": "v1", "items": items})
    assert [item.label for item in batch.items] == ["a", "b"]
    assert [item.unsized for item in batch.items] == [True, False]
    assert [item.pinnable for item in batch.items] == [True, False]
    assert batch.others == ({**secret, "metadata": {"name": "s", "namespace": "default"}},)
    assert batch.directory == tmp_path


def test_whoever_says_so_has_no_digest_recorded(tmp_path):
    body = data_volume()
    body["metadata"]["annotations"] = {RECORD_DIGEST: "false"}
    (item,) = manifests(tmp_path, body).items
    assert item.manifest["metadata"]["annotations"] == {RECORD_DIGEST: "false"}


def test_all_that_is_wrong_with_manifests_is_told_at_once(tmp_path):
    bodies = [
        data_volume("a", {"http": {"url": "ftp://x"}}),
        data_volume("b", {"http": {"url": URL, "chekum": "x"}}),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "A"}},
        data_volume("c", {"upload": {}}),
        data_volume("d", pvc={}),
    ]
    del bodies[0]["spec"]["storage"]
    with pytest.raises(InvalidManifest) as caught:
        manifests(tmp_path, *bodies)
    for words in (
        "DataVolume a: spec.source.http.url: Invalid source URL",
        "DataVolume b: spec.source.http.chekum: no such field",
        "Secret A: metadata.name",
        "DataVolume c: spec.source.upload: uploads are not supported",
        "DataVolume d: spec.storage: Duplicate storage definition",
    ):
        assert words in caught.value.what


# --- several images together ----------------------------------------------------------------------------------------


def test_names_that_clash(tmp_path):
    images = [{"name": "a", "url": URL}, {"name": "a", "url": URL}, {"name": "a", "url": URL, "namespace": "other"}]
    what = refused(tmp_path, images)
    assert "images[1]: the name a is already used by" in what
    assert "images[2]" not in what
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"}}
    claim["spec"] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    with pytest.raises(InvalidManifest, match="a PersistentVolumeClaim a is given as well"):
        manifests(tmp_path, data_volume(), claim)


def test_clones_that_wait_for_themselves(tmp_path):
    def clone(name, of):
        return {"name": name, "source": {"pvc": {"namespace": "default", "name": of}}}

    what = refused(tmp_path, [clone("a", "b"), clone("b", "c"), clone("c", "a"), clone("d", "a"), clone("e", "e")])
    assert [name for name in "abcde" if f"the volume {name} is a clone of itself" in what] == ["a", "b", "c", "e"]
    a, _ = load(tmp_path, [clone("a", "b"), clone("b", "elsewhere")]).items
    assert a.source is not None
    assert not a.unsized


def test_the_lock_file_lies_where_all_files_are(tmp_path):
    for name in ("x/a", "x/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "i.yaml").write_text(json.dumps({"images": [{"name": name[-1], "url": URL}]}))
    batch = load_batch([str(tmp_path / "x/a"), str(tmp_path / "x/*/i.yaml").replace("*", "b")])
    assert batch.directory == tmp_path / "x"


@pytest.mark.parametrize(("size", "asked"), [(1, 1 << 20), (5 << 20, 5 << 20), ((5 << 20) + 1, (5 << 20) + 512)])
def test_a_disk_for_an_image(tmp_path, size, asked):
    item = one(tmp_path, {"url": URL, "pvc": {"accessModes": ["ReadWriteOnce"]}})
    from cdi.api.quantity import Quantity

    assert Quantity.parse(size_of(item.sized(size))).bytes == asked
    assert size_of(item.manifest) is None
    assert size_of(one(tmp_path, {"url": URL, "size": "1Gi"}).sized(size)) == "1Gi"


def test_no_secret_of_a_url_is_kept(tmp_path):
    assert one(tmp_path, {"url": f"{URL}?X-Amz-Signature=abc"}).url == URL
    (item,) = manifests(tmp_path, data_volume(source={"http": {"url": "https://u:p@h/a?token=x"}})).items
    assert item.url == "https://h/a"
