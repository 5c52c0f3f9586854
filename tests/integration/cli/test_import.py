"""Tests of ``cdi import`` into volumes, files and devices, from every kind of source."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import signal
import stat
import subprocess
import tarfile
import threading
import time

import pytest

from tests.faults.server import Fault

MIB = 1 << 20
GUEST = random.Random(4).randbytes(2 * MIB) + bytes(6 * MIB)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image")
    (directory / "guest.raw").write_bytes(GUEST)
    path = directory / "guest.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", directory / "guest.raw", path], check=True
    )
    return path


def objects(cdi, kind):
    return json.loads(cdi("get", kind, "-o", "json").stdout)["items"]


class TestIntoAVolume:
    def test_a_url_alone_is_enough(self, cdi, nginx, image):
        nginx.put("Guest_1.qcow2", image.read_bytes())
        done = cdi("import", nginx.url("Guest_1.qcow2"))
        assert done.stdout == "datavolume/guest-1 created\n"
        assert cdi.disk("guest-1").read_bytes() == GUEST
        again = cdi("import", nginx.url("Guest_1.qcow2"))
        assert again.stdout == "datavolume/guest-1 unchanged\n"

    def test_its_options_reach_the_worker(self, cdi, nginx, image):
        nginx.put("o.qcow2", image.read_bytes())
        digest = f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"
        done = cdi(
            "import", nginx.url("o.qcow2"), "--name", "o", "--size", "12Mi", "--checksum", digest, "--engine", "qemu",
            "--connections", 2, "--bandwidth", "100M", "--preallocate", "--require-checksum", "-o", "json",
        )  # fmt: skip
        body = json.loads(done.stdout)
        assert (body["phase"], body["volume"]) == ("Succeeded", str(cdi.disk("o")))
        outcome = body["outcome"]
        assert outcome["path"] == "qemu-spool"
        assert outcome["preallocated"]
        assert outcome["digest"] == digest
        assert "checksum" in outcome["verified_by"]
        assert cdi.disk("o").stat().st_size == 12 * MIB
        assert cdi.disk("o").stat().st_blocks * 512 >= 12 * MIB
        job = json.loads(next(cdi.home.glob("workers/*/job.json")).read_text())
        assert (job["policy"]["connections"], job["policy"]["bandwidth"]) == (2, 100_000_000)

    def test_credentials_go_with_the_datavolume(self, cdi, nginx, image, tmp_path):
        nginx.put("p.qcow2", image.read_bytes())
        (tmp_path / "password").write_text(nginx.password)
        (tmp_path / "headers").write_text("X-Token: hush-hush\n")
        done = cdi(
            "import", nginx.url("p.qcow2", "private", tls=True), "--username", nginx.user, "--password-file", "password",
            "--ca", nginx.ca_dir / "any-name-at-all", "--secret-header-file", "headers", "--header", "X-Other: quiet",
        )  # fmt: skip
        assert cdi.disk("p").read_bytes() == GUEST
        assert "ssword" not in done.stdout + done.stderr
        told = json.dumps(objects(cdi, "dv"))
        for word in (nginx.password, "hush-hush", "quiet", nginx.user):
            assert word not in told
        for job in cdi.home.glob("workers/*/*"):
            if job.is_file():
                assert b"hush-hush" not in job.read_bytes()
        assert {one["metadata"]["name"] for one in objects(cdi, "secrets")} == {"p-import", "p-import-headers"}
        assert len(objects(cdi, "configmaps")) == 1
        cdi("delete", "dv/p")
        deadline = time.monotonic() + 60
        while objects(cdi, "secrets") or objects(cdi, "configmaps"):
            assert time.monotonic() < deadline, "the secrets of a DataVolume that is gone stay"

    def test_a_secret_of_somebody_else_is_not_touched(self, cdi, nginx, image, tmp_path):
        nginx.put("q.qcow2", image.read_bytes())
        (tmp_path / "s.yaml").write_text(
            "{apiVersion: v1, kind: Secret, metadata: {name: q-import}, stringData: {accessKeyId: a, secretKey: b}}"
        )
        cdi("apply", "-f", "s.yaml")
        done = cdi("import", nginx.url("q.qcow2"), "--username", "u", status=2)
        assert "AlreadyExists" in done.stderr
        assert objects(cdi, "dv") == []

    def test_s3_with_a_secret(self, cdi, s3, image, tmp_path):
        s3.put("i.qcow2", image.read_bytes())
        (tmp_path / "s.yaml").write_text(
            "{apiVersion: v1, kind: Secret, metadata: {name: k}, stringData: {accessKeyId: AKIA, secretKey: secret}}"
        )
        cdi("apply", "-f", "s.yaml")
        options = ["--endpoint", s3.endpoint, "--region", "us-east-1", "--secret", "k", "--addressing", "path"]
        cdi("import", f"s3://{s3.bucket}/i.qcow2", *options)
        assert cdi.disk("i").read_bytes() == GUEST

    def test_a_container_image_over_plain_http(self, cdi, registries, oci_layout, image):
        oci_layout.image([oci_layout.layer({"disk/d.qcow2": image.read_bytes()})], tag="t")
        registries.push(oci_layout, "t", "public/imported:v1")
        url = registries.open.url("public/imported:v1")
        cdi("import", url, "--insecure", "--arch", "amd64")
        assert cdi.disk("imported-v1").read_bytes() == GUEST

    def test_a_file_and_the_size_of_compressed_content(self, cdi, tmp_path):
        (tmp_path / "raw.img.gz").write_bytes(gzip.compress(GUEST))
        shown = [
            line.split()[1] for line in cdi("import", "raw.img.gz").stderr.splitlines() if line.startswith("raw: ")
        ]
        order = ["Inspecting", "Pending", "UploadReady", "Succeeded"]
        assert shown == sorted(shown, key=order.index)
        assert cdi.disk("raw").read_bytes() == GUEST
        (tmp_path / "tiny.img").write_bytes(b"tiny" * 1000)
        cdi("import", "tiny.img")
        assert cdi.disk("tiny").read_bytes() == b"tiny" * 1000 + bytes(MIB - 4000)

    def test_standard_input(self, cdi, image):
        refused = cdi("import", "-", "--name", "a", input=GUEST, text=False, status=2)
        assert b"--size" in refused.stderr
        cdi("import", "-", "--name", "p", input=gzip.compress(image.read_bytes()), text=False)
        assert cdi.disk("p").read_bytes() == GUEST
        assert b"--name" in cdi("import", "-", "--size", "8Mi", input=b"", text=False, status=2).stderr
        cdi("import", "-", "--name", "a", "--size", "8Mi", input=image.read_bytes(), text=False)
        assert cdi.disk("a").read_bytes() == GUEST
        with image.open("rb") as file:
            cdi("import", "-", "--name", "b", stdin=file)
        assert cdi.disk("b").read_bytes() == GUEST

    def test_an_archive(self, cdi, tmp_path):
        with tarfile.open(tmp_path / "site.tar.gz", "w:gz") as tar:
            info = tarfile.TarInfo("etc/motd")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"hi"))
        assert "--size" in cdi("import", "site.tar.gz", "--content-type", "archive", status=2).stderr
        cdi("import", "site.tar.gz", "--content-type", "archive", "--size", "10Mi")
        assert (cdi.disk("site").parent / "etc/motd").read_text() == "hi"

    def test_what_would_fail_leaves_nothing(self, cdi, nginx, tmp_path):
        (tmp_path / "page.img").write_bytes(b"<!DOCTYPE html><html></html>")
        assert "SourceNotAnImage" in cdi("import", "page.img", status=3).stderr
        assert "SourceNotFound" in cdi("import", nginx.url("missing.img"), status=3).stderr
        assert objects(cdi, "dv") == []

    def test_a_failure_is_told_with_its_status(self, cdi, nginx, image):
        nginx.put("f.qcow2", image.read_bytes())
        wrong = "sha256:" + "0" * 64
        done = cdi("import", nginx.url("f.qcow2"), "--checksum", wrong, status=5)
        assert "error[ChecksumMismatch]" in done.stderr
        assert not cdi.disk("f").exists()
        small = cdi("import", nginx.url("f.qcow2"), "--name", "g", "--size", "1Mi", status=6)
        assert "error[TargetTooSmall]" in small.stderr

    def test_another_image_does_not_take_a_name(self, cdi, nginx, image):
        nginx.put("a.qcow2", image.read_bytes())
        nginx.put("b.qcow2", image.read_bytes())
        cdi("import", nginx.url("a.qcow2"), "--name", "n")
        assert "AlreadyExists" in cdi("import", nginx.url("b.qcow2"), "--name", "n", status=2).stderr
        assert "AlreadyExists" in cdi("import", nginx.url("a.qcow2"), "--name", "n", "--size", "9Mi", status=2).stderr

    def test_no_wait_and_an_interrupt_leave_it_working(self, cdi, fault_server):
        interrupted = threading.Event()
        stalls = Fault(stall_after=MIB, resume=interrupted)
        fault_server.put("/slow.raw", random.Random(1).randbytes(4 * MIB), faults=[stalls] * 100)
        url = fault_server.url("/slow.raw")
        begun = cdi("import", url, "--no-wait", "--connections", 1)
        assert begun.stdout == "datavolume/slow created\n"
        waiting = cdi.start("import", url, "--connections", "1")
        for line in waiting.stderr:
            if "slow:" in line and "InProgress" in line:
                break
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=60)
        assert waiting.returncode == 130
        assert "continues in the background" in said
        interrupted.set()
        cdi("wait", "dv/slow")
        assert cdi.disk("slow").stat().st_size == 4 * MIB


class TestToAFile:
    def test_without_a_datavolume(self, cdi, nginx, image, tmp_path):
        nginx.put("t.qcow2", image.read_bytes())
        done = cdi("import", nginx.url("t.qcow2"), "--to", "out/../disk.img", "-o", "json")
        assert (tmp_path / "disk.img").read_bytes() == GUEST
        assert stat.S_IMODE((tmp_path / "disk.img").stat().st_mode) & 0o007 == 0
        assert json.loads(done.stdout)["outcome"]["path"] == "qcow2-ranged"
        assert list((cdi.home / "direct").iterdir()) == []
        assert not any((cdi.home / "objects").glob("*/*/*"))
        assert "AlreadyExists" in cdi("import", nginx.url("t.qcow2"), "--to", "disk.img", status=2).stderr
        cdi("import", nginx.url("t.qcow2"), "--to", "disk.img", "--force", "--size", "9Mi")
        assert (tmp_path / "disk.img").stat().st_size == 9 * MIB

    def test_standard_input(self, cdi, image, tmp_path):
        cdi("import", "-", "--to", "d.img", input=gzip.compress(image.read_bytes()), text=False)
        assert (tmp_path / "d.img").read_bytes() == GUEST

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_the_same_command_goes_on(self, cdi, nginx, tmp_path, how):
        content = random.Random(2).randbytes(8 * MIB)
        nginx.put("r.raw", content)
        command = ["import", nginx.url("r.raw", "slow"), "--to", "r.img", "--connections", "1", "--bandwidth", "3M"]
        first = cdi.start(*command)
        deadline = time.monotonic() + 60
        journals = lambda: list(cdi.home.glob("direct/*/journal"))  # noqa: E731
        while not (journals() and json.loads(journals()[0].read_text())["watermark"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(how)
        _, said = first.communicate(timeout=60)
        assert first.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
        if how is signal.SIGINT:
            assert "the same command again" in said
        assert not (tmp_path / "r.img").exists()
        done = cdi(*command, "-o", "json")
        assert json.loads(done.stdout)["outcome"]["resumed_at"] > 0
        assert (tmp_path / "r.img").read_bytes() == content
        assert list((cdi.home / "direct").iterdir()) == []

    def test_a_failure_leaves_nothing(self, cdi, nginx, image, tmp_path):
        nginx.put("w.qcow2", image.read_bytes())
        done = cdi("import", nginx.url("w.qcow2"), "--to", "w.img", "--checksum", "sha256:" + "0" * 64, status=5)
        assert "ChecksumMismatch" in done.stderr
        assert list(tmp_path.glob(".w*")) == list(tmp_path.glob("w*")) == []
        assert list((cdi.home / "direct").iterdir()) == []

    def test_what_does_not_fit_together_is_refused(self, cdi, tmp_path):
        (tmp_path / "x.img").write_bytes(bytes(MIB))
        for options in (["--name", "n"], ["--no-wait"], ["--timeout", "3s"]):
            assert "UsageError" in cdi("import", "x.img", "--to", "y.img", *options, status=2).stderr
        assert "UsageError" in cdi("import", "x.img", "--force", status=2).stderr
        assert "UsageError" in cdi("import", "x.img", "--signature", "require", status=2).stderr

    @pytest.mark.parametrize(
        ("target", "kind"),
        [
            ("/dev/null", "a character device"),
            ("/dev/full", "a character device"),
            ("fifo", "a FIFO"),
            ("link", "a symbolic link"),
            ("dangling", "a symbolic link"),
            ("socket", "a socket"),
            (".", "a directory"),
        ],
    )
    def test_what_is_no_place_for_a_disk_is_named_and_never_to_be_removed(self, cdi, tmp_path, target, kind):
        (tmp_path / "x.img").write_bytes(bytes(MIB))
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to("x.img")
        (tmp_path / "dangling").symlink_to("nothing")
        os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
        for force in ([], ["--force"]):
            said = cdi("import", "x.img", "--to", target, *force, status=6).stderr
            assert "error[TargetUnsuitable]: --to requires a new file, a regular file with --force, or a block " in said
            assert f"this is {kind} (" in said
            assert "remove" not in said
            assert "volume" not in said
        assert (tmp_path / "x.img").read_bytes() == bytes(MIB)

    @pytest.mark.root
    def test_a_block_device(self, cdi, image, tmp_path):
        if os.geteuid() != 0:
            pytest.skip("needs root")
        backing = tmp_path / "backing"
        backing.write_bytes(b"\xff" * (10 * MIB))
        device = subprocess.run(
            ["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            cdi("import", image, "--to", device)
        finally:
            subprocess.run(["losetup", "-d", device], check=True)
        assert backing.read_bytes() == GUEST + bytes(2 * MIB)
