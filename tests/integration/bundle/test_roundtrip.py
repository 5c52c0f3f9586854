"""Tests of bundles from one machine to another without a network, and of what skopeo reads in them."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

from tests.integration.bundle.conftest import GUEST, keys, offer


def skopeo(*words):
    return subprocess.run(["skopeo", "--insecure-policy", *map(str, words)], capture_output=True, check=True).stdout


def objects(cdi, kind):
    return json.loads(cdi("get", kind, "-o", "json").stdout)["items"]


def listed(cdi, path, *options):
    return json.loads(cdi("bundle", "list", path, "-o", "json", *options).stdout)


@pytest.mark.root
class TestFromARegistry:
    def test_the_image_keeps_its_digest_and_is_imported_without_a_network(self, from_registry, elsewhere, tmp_path):
        bundle = tmp_path / "golden.tar"
        done = from_registry.cdi("bundle", "create", "-o", bundle, "fedora", "--insecure")
        assert f"fedora: {from_registry.digest} (the registry's image)" in done.stdout
        done = elsewhere("bundle", "import", bundle)
        volume = f"fedora-{from_registry.digest.partition(':')[2][:12]}"
        assert done.stdout == "datasource/fedora created\n"
        assert elsewhere.disk(volume).read_bytes() == GUEST
        (source,) = objects(elsewhere, "datasource")
        assert source["spec"]["source"]["pvc"] == {"namespace": "default", "name": volume}
        assert source["metadata"]["labels"]["instancetype.kubevirt.io/default-preference"] == "on.amd64"

    def test_the_import_can_be_repeated(self, from_registry, elsewhere, tmp_path):
        from_registry.cdi("bundle", "create", "-o", tmp_path / "b.tar", "fedora", "--insecure")
        elsewhere("bundle", "import", tmp_path / "b.tar", "fedora")
        assert elsewhere("bundle", "import", tmp_path / "b.tar").stdout == "datasource/fedora unchanged\n"

    def test_a_directory_is_read_in_place_and_by_skopeo(self, from_registry, elsewhere, tmp_path):
        bundle = tmp_path / "golden"
        from_registry.cdi("bundle", "create", "-o", bundle, "fedora", "--insecure")
        raw = skopeo("inspect", "--raw", f"oci:{bundle}:fedora")
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == from_registry.digest
        facts = json.loads(skopeo("--override-arch", "amd64", "inspect", f"oci:{bundle}:fedora"))
        assert facts["Env"] == ["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=on.amd64"]
        elsewhere("bundle", "import", bundle)
        (volume,) = objects(elsewhere, "pvc")
        assert elsewhere.disk(volume["metadata"]["name"]).read_bytes() == GUEST

    def test_skopeo_pushes_the_image_to_a_registry_from_which_it_is_imported(
        self, from_registry, cdi, registries, tmp_path
    ):
        bundle = tmp_path / "golden.tar"
        from_registry.cdi("bundle", "create", "-o", bundle, "fedora", "--insecure")
        target = f"docker://{registries.open.address}/inside/{bundle.parent.name}:v1"
        skopeo(
            "--override-arch", "amd64", "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{bundle}:fedora", target
        )
        cdi("import", target, "--insecure", "--name", "inside")
        assert cdi.disk("inside").read_bytes() == GUEST

    def test_the_same_golden_image_gives_the_same_bytes(self, from_registry, tmp_path):
        for name in ("one.tar", "two.tar"):
            from_registry.cdi("bundle", "create", "-o", tmp_path / name, "fedora", "--insecure")
        assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()

    def test_an_image_that_the_registry_lost_is_bundled_from_its_volume(self, from_registry, registries, tmp_path):
        name = from_registry.url.rpartition("/")[0].rpartition("docker://")[2]
        repository = from_registry.url.removeprefix("docker://").rpartition(":")[0]
        assert name
        subprocess.run(
            ["skopeo", "delete", "--tls-verify=false", f"docker://{repository}@{from_registry.digest}"], check=True
        )
        words = ("bundle", "create", "-o", tmp_path / "b.tar", "fedora", "--insecure")
        done = from_registry.cdi(*words, status=3)
        assert "error[VersionGone]: the registry no longer has" in done.stderr
        assert "--from volume" in done.stderr
        done = from_registry.cdi(*words, "--from", "volume")
        assert "(made from the disk)" in done.stdout

    def test_an_interrupted_bundle_is_continued(self, from_registry, tmp_path):
        bundle, partial = tmp_path / "b.tar", tmp_path / "b.tar.partial"
        words = ("bundle", "create", "-o", bundle, "fedora", "--insecure")
        from_registry.cdi(*words)
        whole = bundle.read_bytes()
        # What a killed command leaves: a layer that is half there, and one blob that is damaged.
        subprocess.run(["mkdir", partial], check=True)
        subprocess.run(["tar", "-xf", bundle, "-C", partial], check=True)
        blobs = sorted((partial / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
        layer = blobs[-1]
        (layer.parent / f".{layer.name}.partial").write_bytes(layer.read_bytes()[: 1 << 20])
        layer.unlink()
        blobs[0].write_bytes(b"x" * blobs[0].stat().st_size)
        (layer.parent / ("0" * 64)).write_bytes(b"left over")
        bundle.unlink()
        from_registry.cdi(*words)
        assert bundle.read_bytes() == whole
        assert not partial.exists()


@pytest.mark.root
class TestFromAVolume:
    def test_a_disk_becomes_a_container_disk_that_skopeo_and_an_import_read(
        self, from_file, cdi, elsewhere, registries, tmp_path
    ):
        bundle = tmp_path / "golden.tar"
        cdi("bundle", "create", "-o", bundle, "local")
        facts = json.loads(skopeo("inspect", f"oci-archive:{bundle}:local"))
        assert facts["Env"] == ["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=fedora"]
        cdi("import", f"oci-archive:{bundle}:local", "--name", "again")
        assert cdi.disk("again").read_bytes() == GUEST
        target = f"docker://{registries.open.address}/local/{tmp_path.name}:v1"
        skopeo("copy", "-q", "--dest-tls-verify=false", f"oci-archive:{bundle}:local", target)
        cdi("import", target, "--insecure", "--name", "pushed")
        assert cdi.disk("pushed").read_bytes() == GUEST
        elsewhere("bundle", "import", bundle)
        (volume,) = objects(elsewhere, "pvc")
        disk = elsewhere.disk(volume["metadata"]["name"])
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, from_file.url], check=True)

    def test_the_same_disk_gives_the_same_bytes(self, from_file, cdi, tmp_path):
        for name in ("one.tar", "two.tar"):
            cdi("bundle", "create", "-o", tmp_path / name, "local")
        assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()

    def test_several_images_share_one_bundle_and_are_imported_by_name(
        self, from_registry, from_file, cdi, elsewhere, tmp_path
    ):
        bundle = tmp_path / "b.tar"
        cdi("bundle", "create", "-o", bundle, "local", "fedora", "--insecure")
        assert [one["name"] for one in listed(cdi, bundle)] == ["fedora", "local"]
        elsewhere("bundle", "import", bundle, "local")
        assert [one["metadata"]["name"] for one in objects(elsewhere, "datasource")] == ["local"]
        done = elsewhere("bundle", "import", bundle, "other", status=2)
        assert "no golden image 'other'; it has fedora, local" in done.stderr

    def test_a_signed_statement_vouches_for_a_converted_disk(self, from_file, cdi, elsewhere, tmp_path):
        private, public = keys(tmp_path)
        _, stranger = keys(tmp_path, "stranger")
        bundle = tmp_path / "b.tar"
        cdi("bundle", "create", "-o", bundle, "local", "--sign-key", private)
        done = elsewhere("bundle", "import", bundle, "--record-key", stranger, status=5)
        assert "error[SignatureInvalid]" in done.stderr
        assert objects(elsewhere, "dv") == []
        assert listed(elsewhere, bundle, "--record-key", public)[0]["recordKey"]
        elsewhere("bundle", "import", bundle, "--record-key", public)
        assert [one["metadata"]["name"] for one in objects(elsewhere, "datasource")] == ["local"]

    def test_without_a_statement_a_required_key_refuses(self, from_file, cdi, elsewhere, tmp_path):
        _, public = keys(tmp_path)
        cdi("bundle", "create", "-o", tmp_path / "b.tar", "local")
        done = elsewhere("bundle", "import", tmp_path / "b.tar", "--record-key", public, status=5)
        assert "error[SignatureMissing]" in done.stderr


def test_a_version_is_fetched_again_with_the_headers_of_its_import(cdi, nginx, qcow2, tmp_path):
    nginx.put("headed.qcow2", qcow2.read_bytes())
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token"}, "stringData": {"t": "X-Token: hush"}}
    http = {"url": nginx.url("headed.qcow2", "headed"), "extraHeaders": ["X-Image: os"]}
    volume = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "headed-1"},
        "spec": {
            "source": {"http": {**http, "secretExtraHeaders": ["token"]}},
            "storage": {"resources": {"requests": {"storage": "12Mi"}}},
        },
    }
    cdi("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": [secret, volume]}))
    cdi("wait", "dv/headed-1")
    offer(cdi, "headed", "headed-1")
    bundle = tmp_path / "headed.tar"
    cdi("bundle", "create", "-o", bundle, "--from", "source", "headed")
    assert b"hush" not in bundle.read_bytes()
    assert [one["name"] for one in listed(cdi, bundle)] == ["headed"]


def test_a_name_of_nothing_is_refused(cdi, tmp_path):
    done = cdi("bundle", "create", "-o", tmp_path / "b.tar", "nothing", status=2)
    assert "there is no DataSource and no volume default/nothing" in done.stderr
    assert not list(tmp_path.glob("b.tar*"))


def test_a_directory_with_other_files_is_not_written_to(from_file, cdi, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/precious").write_text("x")
    done = cdi("bundle", "create", "-o", tmp_path / "d", "local", status=6)
    assert "does not belong to a bundle" in done.stderr
    assert (tmp_path / "d/precious").read_text() == "x"
