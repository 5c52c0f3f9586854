"""Tests of ``cdi inspect`` with every kind of source."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess

import pytest

from tests import corpus
from tests.integration.fixtures_registry import tar_of

MIB = 1 << 20
GUEST = random.Random(3).randbytes(2 * MIB) + bytes(6 * MIB)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Return a compressed qcow2 of 8 MiB with 2 MiB of data."""
    directory = tmp_path_factory.mktemp("image")
    (directory / "guest.raw").write_bytes(GUEST)
    path = directory / "guest.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", directory / "guest.raw", path], check=True
    )
    return path


def told(cdi, *arguments, **options):
    return json.loads(cdi("inspect", *arguments, "-o", "json", **options).stdout)


def checks(body):
    return {check["name"]: check["passed"] for check in body["checks"]}


class TestPlaces:
    def test_a_file(self, cdi, image):
        body = told(cdi, image)
        assert body["image"]["format"] == "qcow2"
        assert body["image"]["virtualSize"] == 8 * MIB
        assert body["image"]["dataBytes"] == 2 * MIB
        assert body["source"]["length"] == image.stat().st_size
        assert all(checks(body).values())
        assert checks(body)["backing file"]
        assert body["refusal"] is None
        assert not (cdi.home / "objects").exists()

    @pytest.mark.parametrize("way", ["", "plain", "moved", "chunked"])
    def test_http(self, cdi, nginx, image, way):
        nginx.put("i.qcow2", image.read_bytes())
        body = told(cdi, nginx.url("i.qcow2", way), "--digest")
        assert body["image"]["virtualSize"] == 8 * MIB
        assert body["digest"] == f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"
        assert body["source"]["byteRanges"] == (way in ("", "moved"))
        assert body["source"]["redirectedTo"] == (nginx.url("i.qcow2") if way == "moved" else None)

    def test_https_with_an_authority_and_credentials(self, cdi, nginx, image, tmp_path):
        nginx.put("i.qcow2", image.read_bytes())
        (tmp_path / "password").write_text(nginx.password + "\n")
        login = ["--username", nginx.user, "--password-file", "password"]
        authority = ["--ca", nginx.ca_dir / "any-name-at-all"]
        url = nginx.url("i.qcow2", "private", tls=True)
        assert told(cdi, url, *login, *authority)["image"]["format"] == "qcow2"
        assert told(cdi, url, *login, "--insecure")["image"]["format"] == "qcow2"
        assert "SourceTlsUntrusted" in cdi("inspect", url, *login, status=3).stderr
        assert "SourceUnauthorized" in cdi("inspect", url, *authority, status=3).stderr
        bearing = url.replace("://", f"://{nginx.user}:p%C3%A4ssword@")
        shown = cdi("inspect", bearing, *authority)
        assert "ssword" not in shown.stdout + shown.stderr

    def test_s3(self, cdi, s3, image, tmp_path):
        s3.put("i.qcow2", image.read_bytes())
        (tmp_path / "key").write_text("secret")
        options = ["--endpoint", s3.endpoint, "--region", "us-east-1", "--username", "AKIA", "--password-file", "key"]
        body = told(cdi, f"s3://{s3.bucket}/i.qcow2", *options)
        assert body["image"]["virtualSize"] == 8 * MIB

    def test_gcs(self, cdi, gcs_standin, image, tmp_path):
        account = gcs_standin.account()
        (tmp_path / "key.json").write_text(json.dumps(account.info(gcs_standin.token_uri)))
        gcs_standin.put("images", "i.qcow2", image.read_bytes(), public=False, readers=frozenset({account.email}))
        options = ["gs://images/i.qcow2", "--endpoint", gcs_standin.origin]
        assert told(cdi, *options, "--credentials-file", "key.json")["image"]["virtualSize"] == 8 * MIB
        assert "SourceUnauthorized" in cdi("inspect", *options, status=3).stderr

    def test_a_containers_disk_and_its_labels(self, cdi, registries, oci_layout, image):
        env = ["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small"]
        disk = oci_layout.layer({"disk/": b"", "disk/d.qcow2": image.read_bytes()})
        entry = oci_layout.image([disk, oci_layout.layer({"etc/x": b"x"})], env=env, tag="t")
        registries.push(oci_layout, "t", "public/inspected:t")
        body = told(cdi, registries.open.url("public/inspected:t"), "--insecure", "--arch", "amd64")
        assert body["container"]["digest"] == entry["digest"]
        assert body["container"]["diskLayer"] == 1
        assert body["container"]["labels"] == {"instancetype.kubevirt.io/default-instancetype": "u1.small"}
        assert (body["image"]["format"], body["image"]["wrappers"]) == ("qcow2", ["gz", "tar"])

    def test_an_oci_archive(self, cdi, oci_layout, image, tmp_path):
        oci_layout.image([oci_layout.layer({"disk/d.img": image.read_bytes()}, "none")], tag="t")
        oci_layout.archive(tmp_path / "a.tar")
        assert told(cdi, "oci-archive:a.tar:t", "--arch", "amd64")["image"]["format"] == "qcow2"

    def test_standard_input(self, cdi, image):
        body = told(cdi, "-", "--digest", input=gzip.compress(image.read_bytes()), text=False)
        assert (body["image"]["format"], body["image"]["wrappers"]) == ("qcow2", ["gz"])
        assert body["image"]["virtualSize"] == 8 * MIB


class TestContent:
    def test_compressed_raw_tells_its_size_at_its_end(self, cdi, tmp_path):
        (tmp_path / "r.img.gz").write_bytes(gzip.compress(GUEST))
        assert told(cdi, "r.img.gz")["image"]["virtualSize"] is None
        assert told(cdi, "r.img.gz", "--digest")["image"]["virtualSize"] == len(GUEST)

    def test_partitions_and_volumes(self, cdi, tmp_path):
        (tmp_path / "gpt.img").write_bytes(corpus.with_gpt(bytes(4 * MIB)))
        assert "gpt" in told(cdi, "gpt.img")["image"]["details"]["partition table"]

    def test_an_archive(self, cdi, tmp_path):
        (tmp_path / "a.tar").write_bytes(tar_of({"a": b"1", "b": b"2"}))
        assert told(cdi, "a.tar", "--content-type", "archive")["image"]["format"] == "archive"
        assert "DiskNotInImage" in cdi("inspect", "a.tar", "--digest", status=3).stderr

    def test_for_people(self, cdi, image):
        shown = cdi("inspect", image).stdout
        assert "virtual size: 8 MiB (8388608 bytes)" in shown
        assert "backing file" in shown


class TestRefusals:
    def test_an_overlay_shows_every_check_and_ends_with_its_status(self, cdi, image, tmp_path):
        overlay = tmp_path / "overlay.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay], check=True)
        body = json.loads(cdi("inspect", overlay, "-o", "json", "--digest", status=4).stdout)
        assert body["refusal"]["code"] == "BackingFileRefused"
        assert body["refusal"]["exitStatus"] == 4
        assert checks(body)["backing file"] is False
        assert checks(body)["encryption"] is True
        assert body["digest"] == f"sha256:{hashlib.sha256(overlay.read_bytes()).hexdigest()}"
        done = cdi("inspect", overlay, status=4)
        assert "FAIL" in done.stdout
        assert done.stderr.startswith("error[BackingFileRefused]: ")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("content", "code", "status"),
        [
            (b"<!DOCTYPE html><html><body>log in</body></html>", "SourceNotAnImage", 3),
            (b"PK\x03\x04" + bytes(2000), "FormatUnsupported", 4),
            (b"", "FormatUnrecognised", 4),
            (gzip.compress(corpus.qcow2(crypt=1)), "EncryptionRefused", 4),
            (gzip.compress(GUEST)[:9000], "ContentTruncated", 4),
        ],
        ids=["html", "zip", "empty", "encrypted", "truncated"],
    )
    def test_what_is_no_image(self, cdi, tmp_path, content, code, status):
        (tmp_path / "x").write_bytes(content)
        body = json.loads(cdi("inspect", "x", "-o", "json", "--digest", status=status).stdout)
        assert body["refusal"]["code"] == code
        assert False in checks(body).values()

    def test_what_is_not_there(self, cdi, nginx, tmp_path):
        assert "SourceNotFound" in cdi("inspect", "nothing", status=3).stderr
        body = json.loads(cdi("inspect", nginx.url("nothing"), "-o", "json", status=3).stdout)
        assert checks(body) == {"source": False}
        os.mkfifo(tmp_path / "fifo")
        assert "SourceNotSupported" in cdi("inspect", "fifo", status=3).stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ("ftp://h/x",),
            ("x.img", "--region", "r"),
            ("http://h/x", "--arch", "arm64"),
            ("gs://b/x", "--username", "u"),
            ("http://h/x", "--header", "no colon"),
            ("http://h/x", "--password-file", "missing"),
            ("http://h/x", "--secret", "s", "--username", "u"),
        ],
        ids=str,
    )
    def test_options_that_do_not_fit(self, cdi, arguments):
        done = cdi("inspect", *arguments, status=3 if arguments[0].startswith("ftp") else 2)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
