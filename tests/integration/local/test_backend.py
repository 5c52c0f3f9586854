"""Tests of the local backend as a command uses it, with a real supervisor, workers and web server."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from cdi import atomic_file
from cdi.api.errors import (
    AlreadyExists,
    BackingFileRefused,
    ChecksumMismatch,
    InvalidManifest,
    NotFound,
    SourceNotFound,
    SourceUnauthorized,
    TargetTooSmall,
    UsageError,
    WaitTimeout,
)
from cdi.api.job import Limits
from cdi.client.status_view import failure_of
from cdi.local.backend import LocalBackend
from cdi.local.processes import with_arguments
from tests.faults.server import FaultServer

MIB = 1 << 20


def data_volume(name, source, *, size="8Mi", spec=None, **metadata):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, **metadata},
        "spec": {"source": source, "storage": {"resources": {"requests": {"storage": size}}}, **(spec or {})},
    }


def secret(name, **values):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


@pytest.fixture
def embedded(tmp_path):
    embedded = LocalBackend(tmp_path / "home")
    yield embedded
    deadline = time.monotonic() + 60
    home = embedded.home
    while time.monotonic() < deadline and (
        atomic_file.is_locked(home.supervisor_lock)
        or any(embedded._launcher.alive(u) for u in embedded._launcher.known())
    ):
        for pid in with_arguments("--home", str(home.root)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for uid in embedded._launcher.known():
            embedded._launcher.stop(uid, grace=0)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def image(nginx):
    """Return a qcow2 file on the server, and the disk that it contains."""
    raw = bytearray(4 * MIB)
    raw[MIB : 2 * MIB] = random.Random(1).randbytes(MIB)
    path = nginx.put("runtime/disk.raw", bytes(raw))
    qcow2 = nginx.root / "runtime" / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(path), str(qcow2)], check=True)
    return bytes(raw)


def http(nginx, name="disk.qcow2", way="", *, tls=False, **more):
    return {"http": {"url": nginx.url(f"runtime/{name}", way, tls=tls), **more}}


def test_a_manifest_becomes_a_volume(embedded, nginx, image):
    seen = []
    (applied,) = embedded.apply([data_volume("a", http(nginx))])
    assert (applied.kind, applied.namespace, applied.name, applied.action) == ("DataVolume", "default", "a", "created")
    body = embedded.wait(
        "dv", None, "a", timeout=60, on_update=lambda b, p: seen.append((b.get("status", {}).get("phase"), p))
    )
    assert body["status"]["phase"] == "Succeeded"
    assert embedded.volume_path(None, "a").read_bytes() == image + bytes(4 * MIB)
    assert embedded.outcome(None, "a").format == "qcow2"
    assert embedded.progress_of(embedded.get("dv", None, "a")).phase == "done"
    assert [phase for phase, _ in seen][-1] == "Succeeded"
    assert [e["reason"] for e in embedded.events(None, "a")][-1] == "ImportSucceeded"
    assert failure_of(embedded.get("dv", None, "a")) is None
    assert embedded.get("pvc", None, "a")["status"]["capacity"] == {"storage": "8Mi"}
    assert [o["metadata"]["name"] for o in embedded.list("DataVolume")] == ["a"]
    list(embedded.log(None, "a", follow=True))


def test_the_error_of_a_worker_is_the_error_of_wait(embedded, nginx, image):
    checksum = "sha256:" + "0" * 64
    embedded.apply(
        [
            data_volume("a", http(nginx, "none")),
            data_volume("b", http(nginx, checksum=checksum)),
            data_volume("c", http(nginx), size="1Mi"),
        ]
    )
    with pytest.raises(SourceNotFound):
        embedded.wait("dv", None, "a", timeout=60, patient=False)
    with pytest.raises(ChecksumMismatch):
        embedded.wait("dv", None, "b", timeout=60)
    with pytest.raises(TargetTooSmall, match=f"{4 * MIB}"):
        embedded.wait("dv", None, "c", timeout=60)
    assert failure_of(embedded.get("dv", None, "b")).code == "ChecksumMismatch"
    assert not embedded.home.disk("default", "b").exists()
    assert embedded.wait("dv", None, "c", until="Failed", timeout=60)["status"]["phase"] == "Failed"


def test_secrets_certificates_and_checksums_reach_the_worker(embedded, nginx, image, until):
    digest = "sha256:" + hashlib.sha256((nginx.root / "runtime/disk.qcow2").read_bytes()).hexdigest()
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "ca"},
        "data": {"x": (nginx.ca_dir / "any-name-at-all").read_text()},
    }
    source = http(nginx, way="private", tls=True, secretRef="login", certConfigMap="ca", checksum=digest)
    embedded.apply(
        [data_volume("a", source), config_map, secret("login", accessKeyId=nginx.user, secretKey=nginx.password)]
    )
    embedded.wait("dv", None, "a", timeout=60)
    assert embedded.outcome(None, "a").digest == digest

    def forgotten():
        with contextlib.suppress(FileNotFoundError):  # removed while they were read
            files = [path.read_text(errors="replace") for path in embedded.home.workers.rglob("*") if path.is_file()]
            return all(nginx.password not in text for text in files)
        return False

    # They are removed after the status was written.
    until(forgotten)


def test_a_wrong_password_waits_for_the_right_one(embedded, nginx, image):
    embedded.apply(
        [
            data_volume("a", http(nginx, way="private", secretRef="login")),
            secret("login", accessKeyId=nginx.user, secretKey="wrong"),
        ]
    )
    with pytest.raises(SourceUnauthorized):
        embedded.wait("dv", None, "a", timeout=60, patient=False)
    with pytest.raises(WaitTimeout, match="ImportInProgress"):
        embedded.wait("dv", None, "a", timeout=0.3)
    embedded.apply([secret("login", accessKeyId=nginx.user, secretKey=nginx.password)])
    assert embedded.wait("dv", None, "a", timeout=45)["status"]["restartCount"] == 1


def test_an_upload_of_a_file(embedded, nginx, image, tmp_path):
    embedded.apply([data_volume("a", {"upload": {}})])
    embedded.upload(None, "a", nginx.root / "runtime/disk.qcow2")
    embedded.wait("dv", None, "a", timeout=60)
    assert embedded.volume_path(None, "a").read_bytes()[: 4 * MIB] == image
    with pytest.raises(AlreadyExists):
        embedded.upload(None, "a", nginx.root / "runtime/disk.qcow2")
    with pytest.raises(UsageError):
        embedded.upload(None, "a", tmp_path / "none")
    embedded.apply([data_volume("b", {"blank": {}})])
    with pytest.raises(UsageError, match="is not an upload target"):
        embedded.upload(None, "b", nginx.root / "runtime/disk.qcow2")


def test_an_upload_of_a_stream_and_another_after_it_broke(embedded, nginx, image):
    data = (nginx.root / "runtime/disk.qcow2").read_bytes()
    embedded.apply([data_volume("a", {"upload": {}})])
    broken, whole = os.pipe(), os.pipe()
    for (reader, writer), content in ((broken, data[:70_000]), (whole, data)):
        feeder = threading.Thread(target=_feed, args=(writer, content))
        feeder.start()
        embedded.upload_stream(None, "a", reader, len(data))
        os.close(reader)
        feeder.join()
        if content is not data:
            _eventually(lambda: failure_of(embedded.get("dv", None, "a")))
            assert embedded.get("dv", None, "a")["status"]["phase"] == "UploadReady"
    embedded.wait("dv", None, "a", timeout=60)
    assert embedded.volume_path(None, "a").read_bytes()[: 4 * MIB] == image


def test_after_a_refused_upload_another_is_not_blamed_for_it(embedded, nginx, image, tmp_path):
    overlay = tmp_path / "overlay.qcow2"
    base = str(nginx.root / "runtime/disk.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", str(overlay)], check=True)
    embedded.apply([data_volume("a", {"upload": {}})])
    for _ in range(2):
        embedded.upload(None, "a", overlay)
        with pytest.raises(BackingFileRefused):
            embedded.wait("dv", None, "a", timeout=60)
    with open(base, "rb") as file:
        embedded.upload_stream(None, "a", file.fileno())
    embedded.wait("dv", None, "a", timeout=60)
    assert embedded.volume_path(None, "a").read_bytes()[: 4 * MIB] == image


def test_an_archive_is_unpacked_and_cloned(embedded, nginx):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        entry = tarfile.TarInfo("etc/hostname")
        entry.size = 6
        tar.addfile(entry, io.BytesIO(b"golden"))
    nginx.put("runtime/tree.tar.gz", content.getvalue())
    embedded.apply([data_volume("a", http(nginx, "tree.tar.gz"), spec={"contentType": "archive"})])
    embedded.wait("dv", None, "a", timeout=60)
    embedded.apply([data_volume("b", {"pvc": {"namespace": "default", "name": "a"}})])
    embedded.wait("dv", None, "b", timeout=60)
    assert (embedded.volume_path(None, "b") / "etc/hostname").read_bytes() == b"golden"


def test_blank_volumes_and_their_preallocation(embedded):
    embedded.apply([data_volume("a", {"blank": {}}), data_volume("b", {"blank": {}}, spec={"preallocation": True})])
    for name in "ab":
        embedded.wait("dv", None, name, timeout=60)
    a, b = embedded.volume_path(None, "a").stat(), embedded.volume_path(None, "b").stat()
    assert a.st_size == b.st_size == 8 * MIB
    assert a.st_blocks < b.st_blocks
    assert embedded.get("pvc", None, "b")["metadata"]["annotations"]["cdi.kubevirt.io/storage.preallocation"] == "true"


def test_limits_are_kept_and_told(embedded, nginx):
    nginx.put("runtime/large.raw", random.Random(3).randbytes(16 * MIB))
    embedded.apply([data_volume("a", http(nginx, "large.raw", "slow"), size="16Mi")])
    _eventually(lambda: embedded.limit(None, "a", bandwidth=10 * MIB, connections=3))
    annotations = embedded.get("dv", None, "a")["metadata"]["annotations"]
    assert annotations["cdi.kubevirt.io/policy.bandwidth"] == str(10 * MIB)
    for wrong in ({"connections": 1000}, {"connections": -1}, {"bandwidth": -1}, {"bandwidth": 1 << 62}):
        with pytest.raises(InvalidManifest):
            embedded.limit(None, "a", **wrong)
    assert embedded.get("dv", None, "a")["metadata"]["annotations"] == annotations
    embedded.delete("dv", None, "a")


def test_a_limit_that_is_not_given_stays_as_it_was_written(embedded, nginx):
    nginx.put("runtime/large.raw", random.Random(3).randbytes(16 * MIB))
    by_hand = {"cdi.kubevirt.io/policy.bandwidth": "2Mi"}
    embedded.apply([data_volume("a", http(nginx, "large.raw", "slow"), size="16Mi", annotations=by_hand)])
    _eventually(lambda: embedded.limit(None, "a", connections=3))
    uid = embedded.get("pvc", None, "a")["metadata"]["uid"]
    told = Limits.from_json(embedded.home.worker(uid).control.read_text())
    assert told == Limits(bandwidth=2 * MIB, connections=3)
    embedded.delete("dv", None, "a")


def test_deleting_while_it_runs_leaves_nothing(embedded, nginx):
    nginx.put("runtime/large.raw", random.Random(3).randbytes(16 * MIB))
    embedded.apply([data_volume("a", http(nginx, "large.raw", "slow"), size="16Mi")])
    _eventually(lambda: embedded.progress_of(embedded.get("dv", None, "a")))
    embedded.delete("dv", None, "a")
    for kind in ("dv", "pvc"):
        with pytest.raises(NotFound):
            embedded.get(kind, None, "a")
    assert os.listdir(embedded.home.volumes) == []
    with pytest.raises(NotFound):
        embedded.delete("dv", None, "a")


def test_a_volume_can_outlive_its_datavolume(embedded, nginx, image):
    embedded.apply([data_volume("a", http(nginx))])
    embedded.wait("dv", None, "a", timeout=60)
    embedded.delete("dv", None, "a", cascade=False)
    assert embedded.volume_path(None, "a").read_bytes()[: 4 * MIB] == image
    embedded.apply([data_volume("a", http(nginx), annotations={"cdi.kubevirt.io/allowClaimAdoption": "true"})])
    embedded.wait("dv", None, "a", timeout=60)


def test_a_deleted_pvc_of_a_datavolume_is_imported_again(embedded, nginx, image):
    embedded.apply([data_volume("a", http(nginx))])
    embedded.wait("dv", None, "a", timeout=60)
    former = embedded.get("pvc", None, "a")["metadata"]["uid"]
    embedded.delete("pvc", None, "a")
    present = set()
    end = time.monotonic() + 60
    while not present - {former} and time.monotonic() < end:
        with contextlib.suppress(NotFound):
            present.add(embedded.get("pvc", None, "a")["metadata"]["uid"])
    assert present - {former}
    embedded.wait("dv", None, "a", timeout=60)
    assert embedded.volume_path(None, "a").read_bytes()[: 4 * MIB] == image


# --- failures and restarts ----------------------------------------------------------------------------------------

APPLY = """
import sys
from pathlib import Path
from cdi.local.backend import LocalBackend
embedded = LocalBackend(Path(sys.argv[1]))
for name in sys.argv[3:]:
    print(embedded.apply([{
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": name},
        "spec": {"source": {"http": {"url": sys.argv[2]}}, "storage": {"resources": {"requests": {"storage": "8Mi"}}}},
    }])[0].action, flush=True)
"""


def test_two_commands_at_once_create_each_object_once(embedded, nginx, image):
    names = [f"v{n}" for n in range(5)]
    command = [sys.executable, "-c", APPLY, str(embedded.home.root), nginx.url("runtime/disk.qcow2"), *names]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [sorted(pair) for pair in zip(*told, strict=True)] == [["created", "unchanged"]] * 5
    for name in names:
        embedded.wait("dv", None, name, timeout=60)
        assert embedded.get("dv", None, name)["status"]["restartCount"] == 0


def test_a_command_killed_after_it_applied_has_lost_nothing(embedded, nginx, image):
    command = [
        sys.executable,
        "-c",
        APPLY + "import time; time.sleep(60)",
        str(embedded.home.root),
        nginx.url("runtime/disk.qcow2"),
        "a",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "created\n"
        os.killpg(process.pid, signal.SIGKILL)
    _eventually(lambda: embedded.get("dv", None, "a").get("status", {}).get("phase") == "Succeeded")


def test_supervisors_and_workers_killed_at_random_converge(embedded, nginx, image):
    chance = random.Random(7)
    names = [f"v{n}" for n in range(6)]
    clones = [f"c{n}" for n in range(2)]
    embedded.apply([data_volume(name, http(nginx)) for name in names])
    embedded.apply([data_volume(c, {"pvc": {"namespace": "default", "name": names[0]}}) for c in clones])
    killed = 0
    deadline = time.monotonic() + 90
    while killed < 15 and time.monotonic() < deadline:
        time.sleep(chance.uniform(0.05, 0.6))
        victims = with_arguments("--home", str(embedded.home.root))
        for uid in embedded._launcher.known() if chance.random() < 0.3 else []:
            victims += with_arguments("--status-dir", str(embedded.home.worker(uid).path))
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        embedded.apply([])
        if all(_phase(embedded, name) == "Succeeded" for name in names + clones):
            break
    for name in names + clones:
        embedded.wait("dv", None, name, timeout=100)
        disk = embedded.volume_path(None, name)
        assert disk.read_bytes() == image + bytes(4 * MIB)
        assert os.listdir(disk.parent) == ["disk.img"]
    assert killed
    for name in clones + names:
        embedded.delete("dv", None, name)
    assert os.listdir(embedded.home.volumes) == []
    _eventually(lambda: embedded._launcher.known() == [])


def test_the_supervisor_goes_when_there_is_nothing_left(embedded, nginx, image):
    embedded.apply([data_volume("a", http(nginx))])
    embedded.wait("dv", None, "a", timeout=60)
    _eventually(lambda: not atomic_file.is_locked(embedded.home.supervisor_lock))
    embedded.apply([data_volume("b", http(nginx))])
    embedded.wait("dv", None, "b", timeout=60)


def _feed(writer, content):
    with contextlib.suppress(BrokenPipeError), open(writer, "wb") as file:
        file.write(content)


def _phase(embedded, name):
    return embedded.get("dv", None, name).get("status", {}).get("phase")


def _eventually(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)
    return found


def test_many_callers_start_one_supervisor(embedded):
    from cdi.local.supervisor import ensure_supervisor

    for _ in range(20):
        ensure_supervisor(embedded.home)
    assert len(_eventually(lambda: with_arguments("--home", str(embedded.home.root)))) == 1


def test_each_goes_through_the_proxy_of_whoever_applied_it(embedded, monkeypatch):
    for name in [name for name in os.environ if name.lower() in ("http_proxy", "no_proxy")]:
        monkeypatch.delenv(name)
    content = random.Random(3).randbytes(MIB)
    with FaultServer() as one, FaultServer() as other:
        for name, proxy in (("a", one), ("b", other)):
            proxy.put("/disk.raw", content)
            monkeypatch.setenv("http_proxy", proxy.origin)
            embedded.apply([data_volume(name, {"http": {"url": "http://images.example/disk.raw"}})])
        for name in ("a", "b"):
            embedded.wait("dv", None, name, timeout=60)
            assert embedded.volume_path(None, name).read_bytes()[:MIB] == content
        for proxy in (one, other):
            assert any(request.target == "http://images.example/disk.raw" for request in proxy.requests)
