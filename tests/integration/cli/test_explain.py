"""Tests that ``cdi explain`` predicts what an import then does, and changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import subprocess

import pytest

MIB = 1 << 20
GUEST = random.Random(5).randbytes(2 * MIB) + bytes(6 * MIB)
DV = """
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {{name: {name}, annotations: {{{notes}}}}}
spec:
  source: {source}
  storage: {{resources: {{requests: {{storage: {size}}}}}}}
---
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image")
    (directory / "guest.raw").write_bytes(GUEST)
    path = directory / "guest.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", directory / "guest.raw", path], check=True
    )
    return path


@pytest.fixture
def manifest(tmp_path):
    def write(source, *, name="golden", size="8Mi", notes="", more=""):
        text = DV.format(name=name, source=json.dumps(source), size=size, notes=notes) + more
        (tmp_path / "m.yaml").write_text(text)
        return "m.yaml"

    return write


def told(cdi, *arguments, status=0, **options):
    return json.loads(cdi("explain", *arguments, "-o", "json", status=status, **options).stdout)


def snapshot(cdi):
    return sorted(str(path) for path in cdi.home.rglob("*") if path.is_file() and "supervisor" not in path.name)


class TestManifests:
    def test_the_plan_is_what_then_happens(self, cdi, nginx, image, manifest):
        nginx.put("e/g.qcow2", image.read_bytes())
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        nginx.put("e/SHA256SUMS", f"{digest}  g.qcow2\n".encode())
        name = manifest({"http": {"url": nginx.url("e/g.qcow2", "moved")}}, size="12Mi")
        body = told(cdi, "-f", name)
        assert body["source"]["redirectedTo"] == nginx.url("e/g.qcow2")
        assert body["source"]["tls"] == "plain"
        assert body["source"]["byteRanges"]
        assert body["image"]["virtualSize"] == 8 * MIB
        assert body["expected"]["digests"] == [{"digest": f"sha256:{digest}", "by": "SHA256SUMS"}]
        assert body["size"] == {"requested": 12 * MIB, "requiredOfPvc": 8 * MIB * 106 // 100 + 1}
        assert body["plan"]["scratchBytes"] == 0
        assert body["space"]["needed"] == 2 * MIB
        assert body["refusal"] is None
        assert snapshot(cdi) == []
        cdi("apply", "-f", name, "--wait")
        outcome = json.loads(next(cdi.home.glob("workers/*/outcome.json")).read_text())
        assert outcome["path"] == body["plan"]["path"] == "qcow2-ranged"
        assert outcome["disk_size"] == body["plan"]["diskSize"]
        assert outcome["fetched"] <= body["plan"]["fetchBytes"] * 1.5
        assert told(cdi, "dv/golden")["plan"] == body["plan"]

    def test_secrets_of_the_same_file_are_used(self, cdi, nginx, image, manifest):
        nginx.put("s.qcow2", image.read_bytes())
        certificate = (nginx.ca_dir / "any-name-at-all").read_text()
        login = {"accessKeyId": nginx.user, "secretKey": nginx.password}
        more = "\n---\n".join(
            json.dumps({"apiVersion": "v1", "metadata": {"name": "x"}, **one})
            for one in ({"kind": "Secret", "stringData": login}, {"kind": "ConfigMap", "data": {"ca": certificate}})
        )
        source = {"url": nginx.url("s.qcow2", "private", tls=True), "secretRef": "x", "certConfigMap": "x"}
        body = told(cdi, "-f", manifest({"http": source}, more=more))
        assert body["source"]["tls"] == "checked"
        assert snapshot(cdi) == []
        missing = cdi("explain", "-f", manifest({"http": source}), status=2)
        assert "It would wait" in missing.stdout
        assert "error[NotFound]" in missing.stderr

    def test_refusals_are_the_errors_they_would_be(self, cdi, nginx, image, manifest):
        nginx.put("r.qcow2", image.read_bytes())
        url = nginx.url("r.qcow2")
        small = told(cdi, "-f", manifest({"http": {"url": url}}, size="4Mi"), status=6)
        assert small["refusal"]["code"] == "TargetTooSmall"
        assert small["image"]["virtualSize"] == 8 * MIB
        unknown = 'cdi.kubevirt.io/policy.requireChecksum: "true"'
        assert (
            told(cdi, "-f", manifest({"http": {"url": url}}, notes=unknown), status=5)["refusal"]["code"]
            == "ChecksumMissing"
        )
        nonsense = 'cdi.kubevirt.io/policy.engine: "warp"'
        invalid = cdi("explain", "-f", manifest({"http": {"url": url}}, notes=nonsense), status=2).stderr
        assert "InvalidManifest" in invalid and "policy.engine" in invalid
        assert (
            told(cdi, "-f", manifest({"http": {"url": nginx.url("none")}}), status=3)["refusal"]["code"]
            == "SourceNotFound"
        )
        vddk = {"vddk": {"url": "https://v", "uuid": "u", "backingFile": "f", "thumbprint": "t", "secretRef": "s"}}
        assert told(cdi, "-f", manifest(vddk), status=3)["refusal"]["code"] == "SourceNotSupported"
        assert "InvalidManifest" in cdi("explain", "-f", manifest({"http": {}}), status=2).stderr

    def test_sources_that_fetch_nothing(self, cdi, image, manifest):
        blank = told(cdi, "-f", manifest({"blank": {}}))
        assert (blank["plan"]["path"], blank["plan"]["diskSize"]) == ("blank", 8 * MIB)
        upload = told(cdi, "-f", manifest({"upload": {}}))
        assert "cdi upload" in upload["waits"]
        clone = {"pvc": {"namespace": "default", "name": "source"}}
        waits = cdi("explain", "-f", manifest(clone), status=2)
        assert "does not exist" in waits.stdout
        cdi("import", image, "--name", "source")
        body = told(cdi, "-f", manifest(clone))
        assert body["operation"] == "Clone"
        assert body["clone"]["source"] == str(cdi.disk("source"))
        assert body["clone"]["size"] == 8 * MIB
        assert 2 * MIB <= body["clone"]["allocated"] < 3 * MIB
        shared = body["clone"]["reflink"]
        assert body["clone"]["strategy"] == ("reflink" if shared else "copy")
        (cost,) = body["clone"]["costs"]
        assert cost == "no block is copied" if shared else f"({body['clone']['allocated']} bytes)" in cost
        said = cdi("explain", "-f", manifest(clone)).stdout
        assert body["clone"]["why"] in said
        assert cost in said
        assert told(cdi, "-f", manifest(clone, size="4Mi"), status=6)["refusal"]["code"] == "TargetTooSmall"

    def test_many_are_explained_one_after_another(self, cdi, manifest):
        more = DV.format(name="second", source='{"upload": {}}', size="1Mi", notes="")
        found = told(cdi, "-f", manifest({"blank": {}}, more=more))
        assert [one["name"] for one in found] == ["golden", "second"]
        assert "datavolume: default/second" in cdi("explain", "-f", "m.yaml").stdout

    def test_a_directory_that_is_not_empty_is_told(self, cdi, manifest):
        cdi.disk("golden").parent.mkdir(parents=True)
        cdi.disk("golden").write_bytes(b"mine")
        body = told(cdi, "-f", manifest({"blank": {}}), status=2)
        assert "already holds files" in body["refusal"]["message"]


class TestPlaces:
    def test_a_url_with_the_options_of_import(self, cdi, nginx, image):
        nginx.put("u.qcow2", image.read_bytes())
        body = told(cdi, nginx.url("u.qcow2"), "--engine", "qemu", "--preallocate")
        assert (body["name"], body["plan"]["path"]) == ("u", "qemu-spool")
        assert (body["plan"]["diskSize"], body["plan"]["scratchBytes"]) == (8 * MIB, len(image.read_bytes()))
        assert body["space"]["needed"] == body["plan"]["diskSize"] + body["plan"]["scratchBytes"]
        assert told(cdi, nginx.url("u.qcow2"), "--size", "1Mi", status=6)["refusal"]["code"] == "TargetTooSmall"
        assert told(cdi, nginx.url("u.qcow2", "plain"))["plan"]["path"] == "qcow2-stream"

    def test_files_and_standard_input(self, cdi, image, tmp_path):
        (tmp_path / "raw.gz").write_bytes(gzip.compress(GUEST))
        body = told(cdi, "raw.gz")
        assert (body["plan"]["path"], body["image"]["wrappers"]) == ("raw-stream", ["gz"])
        body = told(cdi, "-", input=image.read_bytes(), text=False)
        assert body["plan"]["path"] == "qcow2-stream"

    def test_a_container_image(self, cdi, registries, oci_layout, image):
        oci_layout.image([oci_layout.layer({"disk/d.qcow2": image.read_bytes()})], tag="t")
        digest = registries.push(oci_layout, "t", "public/explained:v1")
        body = told(cdi, registries.open.url("public/explained:v1"), "--insecure", "--arch", "amd64")
        assert body["container"]["digest"] == digest
        assert [one["by"] for one in body["expected"]["digests"]] == ["registry digest"]
        assert body["plan"]["path"] == "qcow2-stream"

    def test_a_signature(self, cdi, nginx, image, tmp_path):
        if not (shutil.which("gpg") and shutil.which("gpgv")):
            pytest.skip("gpg is not installed")
        home = tmp_path / "gpg"
        home.mkdir(mode=0o700)
        gpg = ["gpg", "--homedir", home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""]
        subprocess.run(
            [*gpg, "--quick-gen-key", "a@example.org", "ed25519", "sign", "0"], check=True, capture_output=True
        )
        (tmp_path / "keys").write_bytes(subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout)
        sums = f"{hashlib.sha256(image.read_bytes()).hexdigest()}  g.qcow2\n".encode()
        signature = subprocess.run(
            [*gpg, "--detach-sign", "-o", "-"], input=sums, check=True, capture_output=True
        ).stdout
        nginx.put("sig/g.qcow2", image.read_bytes())
        nginx.put("sig/SHA256SUMS", sums)
        nginx.put("sig/SHA256SUMS.gpg", signature)
        options = [nginx.url("sig/g.qcow2"), "--keyring", "keys", "--signature", "require"]
        assert any(by.startswith("signature by") for by in told(cdi, *options)["expected"]["verified"])
        nginx.put("sig/SHA256SUMS", sums.replace(b"g.qcow2", b"g.qcow2\n"))
        assert told(cdi, *options, status=5)["refusal"]["code"] == "SignatureInvalid"
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)

    def test_what_cannot_be_meant(self, cdi, manifest):
        manifest({"blank": {}})
        assert "UsageError" in cdi("explain", status=2).stderr
        assert "UsageError" in cdi("explain", "-f", "m.yaml", "x.img", status=2).stderr
        assert "--size" in cdi("explain", "-f", "m.yaml", "--size", "1Gi", status=2).stderr
        assert "NotFound" in cdi("explain", "dv/none", status=2).stderr
