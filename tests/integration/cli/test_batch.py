"""Tests of ``cdi batch`` as a process, with real web servers, supervisor and workers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import time

import pytest

from cdi import atomic_file
from cdi.local.backend import LocalBackend
from cdi.local.processes import with_arguments
from tests.faults.server import Fault
from tests.integration.fixtures_registry import OciLayout

MIB = 1 << 20
SLOW = 4 * MIB
"""Bytes that take four seconds to serve."""


class Machine:
    """``cdi batch`` with a CDI_HOME, in a directory of its own."""

    def __init__(self, cdi):
        self._cdi = cdi
        self.path = cdi.cwd
        self.home = cdi.home
        self.disk = cdi.disk
        self.embedded = LocalBackend(cdi.home)

    def start(self, *arguments):
        return self._cdi.start("batch", *arguments)

    def batch(self, *arguments, status=0):
        """Run a batch to its end and return its output and errors."""
        done = self._cdi("batch", *arguments, status=status)
        return done.stdout, done.stderr

    def results(self, *arguments, status=0):
        """Return the results of ``--output json`` by name."""
        out, _ = self.batch(*arguments, "-o", "json", status=status)
        report = json.loads(out)
        assert report["exitStatus"] == status
        return {image["name"]: image for image in report["images"]}

    def write(self, images, name="images.yaml", **more):
        (self.path / name).write_text(json.dumps({"images": images, **more}))
        return name

    def lock(self):
        return json.loads((self.path / "cdi.lock").read_text())["images"]

    def kill(self):
        """Kill supervisor and workers."""
        launcher = self.embedded._launcher
        deadline = time.monotonic() + 60
        while atomic_file.is_locked(self.embedded.home.supervisor_lock) or any(map(launcher.alive, launcher.known())):
            assert time.monotonic() < deadline
            for pid in with_arguments("--home", str(self.home)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for uid in launcher.known():
                launcher.stop(uid, grace=0)
            time.sleep(0.05)


@pytest.fixture
def machine(cdi):
    machine = Machine(cdi)
    yield machine
    machine.kill()


def raw_disk(seed, size=2 * MIB):
    disk = bytearray(size)
    disk[MIB // 2 : MIB // 2 + 5000] = random.Random(seed).randbytes(5000)
    return bytes(disk)


@pytest.fixture
def qcow2(tmp_path):
    """Return a function that makes compressed qcow2 files out of disks."""

    def make(raw):
        source, target = tmp_path / "one.raw", tmp_path / "one.qcow2"
        source.write_bytes(raw)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(source), str(target)], check=True)
        content = target.read_bytes()
        source.unlink()
        target.unlink()
        return content

    return make


def http(server, number, **more):
    return {"name": f"i{number:02}", "url": server.url(f"/i{number:02}"), **more}


def asked(server):
    return [request.path for request in server.requests]


# --- complete runs ------------------------------------------------------------------------------------------------


def test_twenty_images_of_which_two_fail(machine, fault_server, nginx, qcow2):
    images = []
    for number in range(20):
        disk = raw_disk(number)
        if number % 2:
            nginx.put(f"batch/i{number:02}", qcow2(disk))
            images.append({"name": f"i{number:02}", "url": nginx.url(f"batch/i{number:02}")})
        else:
            fault_server.put(f"/i{number:02}", disk, etag=f'"v{number}"')
            images.append(http(fault_server, number, size="4Mi"))
    images[7]["url"] = nginx.url("batch/none")
    images[12]["checksum"] = "sha256:" + "0" * 64
    out, err = machine.batch(machine.write(images), "--keep-going", "--jobs", 3, status=1)
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert out.splitlines()[0].split() == ["NAME", "RESULT", "SIZE", "FORMAT", "TIME", "RATE", "DIGEST"]
    assert sum(row[1] == "imported" for row in rows.values()) == 18
    assert rows["i07"][1] == rows["i12"][1] == "failed"
    (missing,) = [line for line in err.splitlines() if line.startswith("i07: error")]
    assert "error[SourceNotFound]" in missing
    assert "Try: " in missing
    (damaged,) = [line for line in err.splitlines() if line.startswith("i12: error")]
    assert "error[ChecksumMismatch]" in damaged
    lock = machine.lock()
    assert sorted(lock) == [f"i{n:02}" for n in range(20) if n not in (7, 12)]
    for number in range(20):
        if number in (7, 12):
            assert not machine.disk(f"i{number:02}").exists()
            continue
        disk = raw_disk(number)
        size = 2 * MIB if number % 2 else 4 * MIB
        assert machine.disk(f"i{number:02}").read_bytes() == disk.ljust(size, b"\0")
    content = (nginx.root / "batch/i01").read_bytes()
    assert lock["i01"] == {
        "url": nginx.url("batch/i01"),
        "validator": lock["i01"]["validator"],
        "length": len(content),
        "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "virtualSize": 2 * MIB,
        "format": "qcow2",
    }
    assert lock["i02"]["validator"] == '"v2"'
    # On the second run only requests that show that nothing has changed are made, and the two failures are retried.
    fault_server.put("/i12", raw_disk(12))
    images[12]["checksum"] = f"sha256:{hashlib.sha256(raw_disk(12)).hexdigest()}"
    before = machine.disk("i00").stat()
    fault_server.requests.clear()
    results = machine.results(machine.write(images), "-k", status=1)
    verdicts = [results[f"i{n:02}"]["result"] for n in range(20)]
    assert verdicts == ["failed" if n == 7 else "imported" if n == 12 else "unchanged" for n in range(20)]
    assert machine.disk("i00").stat() == before
    assert all(
        request.range == (0, 0)
        for request in fault_server.requests
        if request.path != "/i12" and "i" in request.path[:2]
    )
    assert len(machine.lock()) == 19


def test_after_the_first_failure_none_is_begun(machine, fault_server):
    fault_server.put("/i01", raw_disk(1))
    fault_server.put("/i02", raw_disk(2))
    images = [http(fault_server, n, size="2Mi") for n in range(3)]
    results = machine.results(machine.write(images), "--jobs", 1, status=1)
    assert [results[f"i{n:02}"]["result"] for n in range(3)] == ["failed", "skipped", "skipped"]
    assert results["i00"]["error"]["code"] == "SourceNotFound"
    assert "/i01" not in asked(fault_server)


# --- lock files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pinned(machine, fault_server):
    """Import and pin two images and delete their volumes."""
    for number in range(2):
        fault_server.put(f"/i{number:02}", raw_disk(number), etag=f'"v{number}"')
    machine.write([http(fault_server, n, size="2Mi") for n in range(2)])
    machine.batch("images.yaml")
    for number in range(2):
        machine.embedded.delete("dv", None, f"i{number:02}")
    return machine


def test_a_locked_batch_imports_what_is_pinned(pinned, fault_server):
    lock = (pinned.path / "cdi.lock").read_bytes()
    results = pinned.results("images.yaml", "--locked")
    assert {image["result"] for image in results.values()} == {"imported"}
    assert (pinned.path / "cdi.lock").read_bytes() == lock
    assert {image["result"] for image in pinned.results("images.yaml", "--locked").values()} == {"unchanged"}


def test_a_locked_batch_refuses_what_moved_before_it_touches_a_volume(pinned, fault_server):
    fault_server.put("/i01", raw_disk(99), etag='"v99"')
    out, err = pinned.batch("images.yaml", "--locked", "--keep-going", status=5)
    (line,) = [line for line in err.splitlines() if line.startswith("i01: error")]
    assert "error[LockMismatch]" in line
    assert '"v1" is pinned' in line
    assert '"v99"' in line
    assert pinned.embedded.list("dv") == []
    assert os.listdir(pinned.home / "volumes") == []


def test_a_locked_batch_notices_content_that_moved_behind_the_same_tag(pinned, fault_server):
    fault_server.put("/i01", raw_disk(99), etag='"v1"')
    results = pinned.results("images.yaml", "--locked", "--keep-going", status=5)
    assert results["i00"]["result"] == "imported"
    assert results["i01"]["error"]["code"] == "ChecksumMismatch"
    assert not pinned.disk("i01").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lock: lock.pop("i00"), "does not pin it"),
        (lambda lock: lock["i00"].update(url="http://elsewhere/"), "http://elsewhere/ is pinned"),
        (lambda lock: lock["i00"].update(length=7), "7 bytes are pinned"),
        (lambda lock: lock["i00"].update(digest=None), "no digest"),
    ],
)
def test_what_the_lock_file_does_not_say_is_refused(pinned, change, words):
    body = json.loads((pinned.path / "cdi.lock").read_text())
    change(body["images"])
    (pinned.path / "cdi.lock").write_text(json.dumps(body))
    results = pinned.results("images.yaml", "--locked", status=5)
    assert results["i00"]["result"] == "refused"
    assert words in results["i00"]["error"]["message"]
    assert results["i01"]["result"] == "skipped"


def test_without_a_lock_file_nothing_is_locked(machine, fault_server):
    fault_server.put("/i00", raw_disk(0))
    machine.write([http(fault_server, 0)])
    _, err = machine.batch("images.yaml", "--locked", status=5)
    assert "error[LockMismatch]: there is no lock file" in err
    (machine.path / "cdi.lock").write_text("{")
    _, err = machine.batch("images.yaml", status=2)
    assert "error[InvalidManifest]: the lock file" in err


def test_an_image_that_moved_is_told_and_replaced_when_asked(machine, fault_server):
    for number in range(2):
        fault_server.put(f"/i{number:02}", raw_disk(number), etag=f'"v{number}"')
    machine.write([http(fault_server, n) for n in range(2)])
    machine.batch("images.yaml")
    fault_server.put("/i01", raw_disk(9, 3 * MIB), etag='"v9"')
    results = machine.results("images.yaml")
    assert (results["i00"]["result"], results["i01"]["result"]) == ("unchanged", "outdated")
    assert machine.disk("i01").read_bytes() == raw_disk(1)
    assert machine.lock()["i01"]["validator"] == '"v1"'
    results = machine.results("images.yaml", "--update")
    assert (results["i00"]["result"], results["i01"]["result"]) == ("unchanged", "imported")
    assert machine.disk("i01").read_bytes() == raw_disk(9, 3 * MIB)
    assert machine.lock()["i01"]["validator"] == '"v9"'


def test_a_volume_that_is_not_what_is_pinned(machine, fault_server):
    fault_server.put("/i00", raw_disk(0), etag='"v0"')
    machine.write([http(fault_server, 0)])
    machine.batch("images.yaml")
    lock = (machine.path / "cdi.lock").read_text()
    fault_server.put("/i00", raw_disk(5), etag='"v5"')
    machine.batch("images.yaml", "--update")
    fault_server.put("/i00", raw_disk(0), etag='"v0"')
    (machine.path / "cdi.lock").write_text(lock)
    results = machine.results("images.yaml", "--locked", status=5)
    assert "the volume has" in results["i00"]["error"]["message"]
    assert machine.disk("i00").read_bytes() == raw_disk(5)
    assert machine.results("images.yaml", "--locked", "--update")["i00"]["result"] == "imported"
    assert machine.disk("i00").read_bytes() == raw_disk(0)


# --- interruptions ----------------------------------------------------------------------------------------------


@pytest.fixture
def slow(machine, nginx):
    """Provide four images, two of which take several seconds."""
    images = []
    for number in range(4):
        data = random.Random(number).randbytes(SLOW if number < 2 else MIB)
        nginx.put(f"batch/s{number}", data)
        images.append({"name": f"s{number}", "url": nginx.url(f"batch/s{number}", "slow" if number < 2 else "")})
        images[-1]["size"] = "8Mi"
        images[-1]["policy"] = {"connections": 1}
    machine.write(images)
    return machine


def under_way(machine, *names):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if all(machine.embedded.progress_of(machine.embedded.get("dv", None, name)).fetched > 0 for name in names):
                return
        time.sleep(0.02)
    pytest.fail("they were not begun")


def test_ctrl_c_leaves_what_runs_to_the_background(slow):
    with slow.start("images.yaml", "--jobs", 2) as process:
        under_way(slow, "s0", "s1")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "error[Interrupted]" in err
    assert "s0, s1 continue in the background; 2 not started" in err
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["running", "running", "skipped", "skipped"]
    results = slow.results("images.yaml", "--jobs", 2)
    assert {image["result"] for image in results.values()} <= {"imported", "unchanged"}
    for number in range(4):
        data = random.Random(number).randbytes(SLOW if number < 2 else MIB)
        assert slow.disk(f"s{number}").read_bytes() == data.ljust(8 * MIB, b"\0")
        assert slow.embedded.get("dv", None, f"s{number}")["status"].get("restartCount", 0) == 0
    assert sorted(slow.lock()) == ["s0", "s1", "s2", "s3"]


def test_a_batch_that_is_killed_is_gone_on_with(slow):
    with slow.start("images.yaml", "--jobs", 2, "-o", "json") as process:
        under_way(slow, "s0", "s1")
        process.kill()
        process.communicate(timeout=60)
    results = slow.results("images.yaml", "--jobs", 4)
    assert {image["result"] for image in results.values()} <= {"imported", "unchanged"}
    for number in range(4):
        data = random.Random(number).randbytes(SLOW if number < 2 else MIB)
        assert slow.disk(f"s{number}").read_bytes() == data.ljust(8 * MIB, b"\0")
    assert sorted(slow.lock()) == ["s0", "s1", "s2", "s3"]


def test_everything_killed_is_gone_on_with(slow):
    with slow.start("images.yaml", "--jobs", 2) as process:
        under_way(slow, "s0", "s1")
        process.kill()
        process.communicate(timeout=60)
    slow.kill()
    results = slow.results("images.yaml", "--jobs", 4)
    assert {image["result"] for image in results.values()} == {"imported"}
    for number in range(2):
        assert slow.disk(f"s{number}").read_bytes() == random.Random(number).randbytes(SLOW).ljust(8 * MIB, b"\0")


def test_time_that_runs_out(slow):
    _, err = slow.batch("images.yaml", "--jobs", 1, "--timeout", "1s", status=8)
    assert "error[WaitTimeout]" in err
    assert {image["result"] for image in slow.results("images.yaml").values()} <= {"imported", "unchanged"}


# --- contents of a batch ------------------------------------------------------------------------------------------


def test_manifests_with_their_secrets(machine, nginx, qcow2):
    nginx.put("batch/m", qcow2(raw_disk(1)))
    body = f"""
apiVersion: v1
kind: Secret
metadata: {{name: login}}
stringData: {{accessKeyId: {nginx.user}, secretKey: {nginx.password}}}
---
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {{name: a}}
spec:
  source: {{http: {{url: "{nginx.url("batch/m", "private")}", secretRef: login}}}}
  storage: {{}}
---
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {{name: b, namespace: other}}
spec:
  source: {{pvc: {{namespace: default, name: a}}}}
  storage: {{}}
"""
    (machine.path / "more").mkdir()
    (machine.path / "more/all.yaml").write_text(body)
    for names in (["more"], ["more/*.yaml"]):
        results = machine.results(*names, "--jobs", 1)
        assert set(results) == {"a", "b"}
    assert results["b"]["result"] == "unchanged"
    assert machine.disk("a").read_bytes() == machine.disk("b", "other").read_bytes() == raw_disk(1)
    assert list(json.loads((machine.path / "more/cdi.lock").read_text())["images"]) == ["a"]
    assert nginx.password not in (machine.path / "more/cdi.lock").read_text()


def test_sizes_are_those_of_the_images(machine, nginx, qcow2):
    disk = raw_disk(1, 3 * MIB)
    nginx.put("batch/raw", disk)
    nginx.put("batch/odd", disk[:-100])
    packed = subprocess.run(["zstd", "-q", "-c"], input=disk, stdout=subprocess.PIPE, check=True).stdout
    nginx.put("batch/raw.zst", packed)
    (machine.path / "sub").mkdir()
    (machine.path / "sub/local.qcow2").write_bytes(qcow2(disk))
    (machine.path / "sub/small.raw").write_bytes(disk[: MIB // 4])
    images = [
        {"name": "raw", "url": nginx.url("batch/raw")},
        {"name": "odd", "url": nginx.url("batch/odd", "plain")},
        {"name": "zst", "url": nginx.url("batch/raw.zst")},
        {"name": "local", "url": "local.qcow2"},
        {"name": "small", "url": "./small.raw"},
    ]
    machine.write(images, "sub/images.yaml")
    results = machine.results("sub/images.yaml")
    assert {name: image["size"] for name, image in results.items()} == {
        "raw": 3 * MIB,
        "odd": 3 * MIB,
        "zst": 3 * MIB,
        "local": 3 * MIB,
        "small": MIB,
    }
    assert machine.disk("local").read_bytes() == machine.disk("zst").read_bytes() == disk
    assert {image["result"] for image in machine.results("sub/images.yaml").values()} == {"unchanged"}
    # The same files in another place are the same images.
    (machine.path / "sub/local.qcow2").rename(machine.path / "old")
    (machine.path / "sub/local.qcow2").write_bytes((machine.path / "old").read_bytes())
    machine.embedded.delete("dv", None, "local")
    assert machine.results("sub/images.yaml", "--locked")["local"]["result"] == "imported"


def container(layout, disk, architecture):
    layer = layout.layer({"disk/": b"", "disk/disk.img": disk})
    layout.entries.clear()
    return layout.image([layer], tag="one", architecture=architecture)["digest"]


def test_container_images_are_held_to_their_manifest(machine, registries, tmp_path):
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    layout = OciLayout(tmp_path / "layout")
    digest = container(layout, raw_disk(1), architecture)
    registries.push(layout, "one", "public/batch:one")
    layout.archive(tmp_path / "image.tar")
    images = [{"name": "remote", "url": registries.open.url("public/batch:one")}]
    images.append({"name": "archive", "url": "oci-archive:image.tar"})
    machine.batch(machine.write(images))
    assert machine.disk("remote").read_bytes() == machine.disk("archive").read_bytes() == raw_disk(1)
    assert machine.lock()["remote"]["validator"] == machine.lock()["archive"]["validator"] == digest
    assert machine.lock()["archive"]["url"] == "oci-archive:image.tar"
    assert machine.lock()["remote"]["virtualSize"] == 2 * MIB
    for name in ("remote", "archive"):
        machine.embedded.delete("dv", None, name)
    assert {image["result"] for image in machine.results("images.yaml", "--locked").values()} == {"imported"}
    moved = container(layout, raw_disk(2), architecture)
    registries.push(layout, "one", "public/batch:one")
    _, err = machine.batch("images.yaml", "--locked", status=5)
    assert f"{digest} is pinned, but the source has {moved}" in err
    results = machine.results("images.yaml")
    assert (results["remote"]["result"], results["archive"]["result"]) == ("outdated", "unchanged")


def test_objects_in_s3_are_held_to_their_digest(machine, s3):
    for name in ("a", "b"):
        s3.put(name, raw_disk(ord(name)))
    images = [
        {"name": name, "source": {"s3": {"url": s3.url(name), "secretRef": "keys"}}, "policy": {"region": "us-east-1"}}
        for name in ("a", "b")
    ]
    images[0]["checksum"] = f"sha256:{hashlib.sha256(raw_disk(ord('a'))).hexdigest()}"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    secret["stringData"] = {"accessKeyId": "AKIA", "secretKey": "secret"}
    (machine.path / "secret.yaml").write_text(json.dumps(secret))
    machine.batch(machine.write(images), "secret.yaml")
    for name in ("a", "b"):
        assert machine.disk(name).read_bytes() == raw_disk(ord(name))
        machine.embedded.delete("dv", None, name)
    assert machine.lock()["a"]["digest"] == images[0]["checksum"]
    assert {i["result"] for i in machine.results("images.yaml", "secret.yaml", "--locked").values()} == {"imported"}
    images[0]["checksum"] = "sha256:" + "0" * 64
    results = machine.results(machine.write(images), "secret.yaml", "--locked", status=5)
    assert (results["a"]["result"], results["b"]["result"]) == ("refused", "skipped")


def test_a_wrong_password_ends_the_waiting_and_a_right_one_is_taken_up(machine, nginx):
    nginx.put("batch/p", raw_disk(1))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    batch = machine.write([{"name": "p", "url": nginx.url("batch/p", "private"), "size": "2Mi", "secretRef": "login"}])
    _, err = machine.batch(batch, status=2)
    assert "default/login does not exist" in err
    for password, status in (("wrong", 1), (nginx.password, 0)):
        body = {**secret, "stringData": {"accessKeyId": nginx.user, "secretKey": password}}
        (machine.path / "secret.yaml").write_text(json.dumps(body))
        results = machine.results(batch, "secret.yaml", status=status)
        assert (results["p"]["error"] or {}).get("code") == ("SourceUnauthorized" if status else None)


def test_names_that_are_taken(machine, fault_server):
    fault_server.put("/i00", raw_disk(0))
    machine.batch(machine.write([http(fault_server, 0, size="2Mi")]))
    _, err = machine.batch(machine.write([http(fault_server, 0, size="4Mi")]), status=2)
    assert "images[0]: datavolume default/i00 exists" in err
    assert machine.results("images.yaml", "--update")["i00"]["size"] == 4 * MIB
    machine.embedded.delete("dv", None, "i00", cascade=False)
    _, err = machine.batch("images.yaml", status=2)
    assert "persistentvolumeclaim default/i00 exists and has another owner" in err
    _, err = machine.batch(machine.write([http(fault_server, 0), http(fault_server, 0)]), status=2)
    assert "images[1]: the name i00 is already used by images.yaml: images[0]" in err


def test_a_passing_fault_is_waited_out(machine, fault_server):
    fault_server.put("/i00", raw_disk(0), faults=[Fault(status=503, retry_after="0"), Fault(status=500)])
    assert machine.results(machine.write([http(fault_server, 0)]))["i00"]["result"] == "imported"
