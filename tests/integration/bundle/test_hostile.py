"""Tests of bundles that were damaged or forged: nothing is offered, nothing outside is read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from cdi.api.dataimportcron import GoldenVersion
from cdi.api.errors import ArchiveUnsafe, CdiError, SourceError
from cdi.api.origin import canonical
from cdi.bundle.contents import GOLDEN, GOLDEN_TYPE, Bundle, GoldenDocument
from cdi.bundle.disk_image import build_disk_image
from cdi.bundle.install import check
from cdi.bundle.layout import REF_NAME, LayoutWriter
from tests.integration.bundle.conftest import GUEST, keys


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle in a directory, with one golden image made from a disk."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(GUEST)
    writer = LayoutWriter(tmp_path / "bundle")
    image = build_disk_image(writer, disk, architecture="amd64", labels={})
    version = GoldenVersion(name="fedora-1", digest=f"sha256:{'a1' * 32}", state="Available")
    document = GoldenDocument(name="fedora", version=version, original=False)
    golden = writer.artifact(GOLDEN_TYPE, image, document.to_json())
    writer.finish(
        [
            {**image, "annotations": {REF_NAME: "fedora"}},
            {**golden, "annotations": {REF_NAME: f"fedora{GOLDEN}"}},
        ]
    )
    return tmp_path / "bundle"


def index_of(bundle: Path) -> dict:
    return json.loads((bundle / "index.json").read_text())


def blobs(bundle: Path) -> list[Path]:
    """The blobs, the layer last."""
    return sorted((bundle / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)


def packed(bundle: Path) -> Path:
    target = bundle.with_suffix(".tar")
    with tarfile.open(target, "w") as tar:
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            tar.add(path, str(path.relative_to(bundle)))
    return target


def checked(path: Path):
    with Bundle(path) as opened:
        return [check(opened, name, None) for name in opened.names]


def test_an_intact_bundle_is_accepted_in_both_forms(bundle):
    assert [one.image.name for one in checked(bundle)] == ["fedora"]
    assert [one.volume for one in checked(packed(bundle))] == ["fedora-a1a1a1a1a1a1"]


@pytest.mark.parametrize("number", range(4))
def test_an_altered_document_is_refused(bundle, number):
    """Manifests, config and description are verified before anything is imported."""
    small = [path for path in blobs(bundle)[:-1] if path.read_bytes() != b"{}"]
    path = small[number]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for form in (bundle, packed(bundle)):
        with pytest.raises(CdiError) as refused:
            checked(form)
        assert refused.value.code == "ChecksumMismatch"


def test_an_altered_layer_is_refused_at_the_import_and_nothing_is_offered(bundle, cdi):
    layer = blobs(bundle)[-1]
    content = bytearray(layer.read_bytes())
    content[-3000] ^= 1
    layer.write_bytes(content)
    done = cdi("bundle", "import", packed(bundle), status=5)
    assert "error[ChecksumMismatch]" in done.stderr
    assert json.loads(cdi("get", "datasource", "-o", "json").stdout)["items"] == []


@pytest.mark.parametrize("cut", [1, 700, 5000, 1 << 20])
def test_a_truncated_file_is_refused_before_anything_is_written(bundle, cut):
    file = packed(bundle)
    os.truncate(file, file.stat().st_size - 10240 - cut)
    with pytest.raises(CdiError):
        checked(file)


def test_a_removed_layer_is_refused(bundle):
    blobs(bundle)[-1].unlink()
    with pytest.raises(SourceError, match="lacks the blob"):
        checked(bundle)


@pytest.mark.parametrize("place", ["blob", "directory", "blobs", "index"])
def test_symbolic_links_are_not_followed(bundle, place, tmp_path):
    layer = blobs(bundle)[-1]
    victim = {
        "blob": layer,
        "directory": bundle / "blobs/sha256",
        "blobs": bundle / "blobs",
        "index": bundle / "index.json",
    }[place]
    moved = tmp_path / "elsewhere"
    victim.rename(moved)
    victim.symlink_to(moved)
    with pytest.raises(CdiError):
        checked(bundle)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "blobs/sha256/../../../outside"])
def test_names_that_lead_outside_name_nothing(bundle, name):
    file = packed(bundle)
    with tarfile.open(file, "a") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert [one.image.name for one in checked(file)] == ["fedora"]


def test_a_link_in_the_tar_is_no_blob(bundle):
    layer = blobs(bundle)[-1]
    layer.unlink()
    file = packed(bundle)
    with tarfile.open(file, "a") as tar:
        info = tarfile.TarInfo(f"blobs/sha256/{layer.name}")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(SourceError, match="lacks the blob"):
        checked(file)


def test_a_member_that_occurs_twice_is_refused(bundle):
    file = packed(bundle)
    with tarfile.open(file, "a") as tar:
        tar.add(bundle / "index.json", "index.json")
    with pytest.raises(ArchiveUnsafe, match="twice"):
        checked(file)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda index: index["manifests"].append(index["manifests"][0]), "BundleInvalid"),
        (lambda index: index["manifests"].pop(0), "BundleInvalid"),
        (lambda index: index["manifests"].pop(1), "BundleInvalid"),
        (lambda index: index.update(manifests=index["manifests"] * 600), "NestedTooDeep"),
        (lambda index: index.update(manifests="x"), "SourceProtocolError"),
        (lambda index: index["manifests"][1]["annotations"].update({REF_NAME: f"../x{GOLDEN}"}), "BundleInvalid"),
        (lambda index: index["manifests"][0].update(size=1 << 40), "SourceProtocolError"),
    ],
)
def test_a_hostile_index_is_refused(bundle, change, code):
    index = index_of(bundle)
    change(index)
    (bundle / "index.json").write_text(json.dumps(index))
    with pytest.raises(CdiError) as refused:
        checked(bundle)
    assert refused.value.code in (code, "ChecksumMismatch")


def test_a_huge_index_is_refused_without_reading_it(bundle):
    os.truncate(bundle / "index.json", 1 << 40)
    with pytest.raises(SourceError, match="the limit is"):
        checked(bundle)


def replace_document(bundle: Path, body: bytes) -> None:
    """Replace the description by `body`, with matching digests everywhere."""
    writer_root = bundle
    index = index_of(bundle)
    entry = index["manifests"][1]
    path = writer_root / "blobs/sha256" / entry["digest"].partition(":")[2]
    manifest = json.loads(path.read_bytes())

    def put(content: bytes, old: dict) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        (bundle / "blobs/sha256" / digest).write_bytes(content)
        return {**old, "digest": f"sha256:{digest}", "size": len(content)}

    manifest["layers"][0] = put(body, manifest["layers"][0])
    index["manifests"][1] = put(canonical(manifest), entry)
    (bundle / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 4000,
        b'{"name":"fedora","version":{"name":"x","digest":"sha256:00","state":"y"},"original":false}',
        b'{"name":"other","version":{"name":"x","digest":"sha256:%s","state":"y"},"original":false}' % (b"0" * 64),
        b'{"name":"fedora","version":7,"original":false}',
        b" " * (257 << 10),
    ],
)
def test_a_hostile_description_is_refused(bundle, body):
    replace_document(bundle, body)
    with pytest.raises(CdiError) as refused:
        checked(bundle)
    assert refused.value.code == "BundleInvalid"


def test_an_image_under_another_versions_name_is_refused(bundle):
    """A registry's image must have the digest of the version that it claims to be."""
    version = GoldenVersion(name="fedora-1", digest=f"sha256:{'b2' * 32}", state="Available")
    replace_document(bundle, GoldenDocument(name="fedora", version=version, original=True).to_json())
    with pytest.raises(CdiError) as refused:
        checked(bundle)
    assert refused.value.code == "ChecksumMismatch"


def test_a_cron_in_the_bundle_gets_no_schedule(bundle, cdi):
    version = GoldenVersion(name="fedora-1", digest=f"sha256:{'a1' * 32}", state="Available")
    cron = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"name": "fedora", "namespace": "kube-system"},
        "spec": {
            "schedule": "* * * * *",
            "managedDataSource": "fedora",
            "template": {
                "spec": {
                    "source": {"registry": {"url": "docker://host/x"}},
                    "storage": {"resources": {"requests": {"storage": "1Gi"}}},
                }
            },
        },
    }
    replace_document(bundle, GoldenDocument(name="fedora", version=version, original=False, cron=cron).to_json())
    cdi("bundle", "import", bundle, "--with-cron")
    (made,) = json.loads(cdi("get", "dataimportcron", "-o", "json").stdout)["items"]
    assert (made["metadata"]["namespace"], made["spec"]["schedule"]) == ("default", "")


def test_another_kind_in_place_of_the_cron_is_refused(bundle, cdi):
    version = GoldenVersion(name="fedora-1", digest=f"sha256:{'a1' * 32}", state="Available")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "fedora"}, "data": {}}
    replace_document(bundle, GoldenDocument(name="fedora", version=version, original=False, cron=secret).to_json())
    done = cdi("bundle", "import", bundle, "--with-cron", status=4)
    assert "error[BundleInvalid]" in done.stderr
    assert json.loads(cdi("get", "secret", "-o", "json").stdout)["items"] == []


def test_a_wrong_key_file_is_an_error_of_the_key(bundle, cdi, tmp_path):
    private, _ = keys(tmp_path)
    done = cdi("bundle", "import", bundle, "--record-key", private, status=5)
    assert "error[SigningKeyInvalid]" in done.stderr or "error[SignatureMissing]" in done.stderr
