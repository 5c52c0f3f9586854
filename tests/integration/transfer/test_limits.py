"""Tests of limits that change while a worker runs, and of stopping a worker."""

import hashlib
import json
import random
import signal
import subprocess
import threading
from dataclasses import replace

import pytest

from cdi.api.errors import Retry
from cdi.api.job import Credentials, GcsSourceSpec, Limits, RegistrySourceSpec, Tls
from tests.faults.server import Fault
from tests.integration.transfer.worker_process import Worker, disk_job

MIB = 1 << 20
STOP_TIMEOUT = 45.0
"""Seconds within which a worker ends when told to; it would give up a silent server after 60."""


@pytest.fixture(scope="module")
def image():
    return random.Random(4).randbytes(24 * MIB)


@pytest.fixture
def worker(tmp_path):
    made = []

    def make(job):
        made.append(Worker(job, tmp_path))
        return made[0]

    yield make
    for one in made:
        one.close()


def limit(worker, **limits):
    new = worker.path("control.json.tmp")
    new.write_text(Limits(**limits).to_json())
    new.rename(worker.path("control.json"))


def done(worker):
    return (worker.progress() or {}).get("done", 0)


def fetched(worker):
    return (worker.progress() or {}).get("fetched", 0)


@pytest.mark.parametrize("ranges", [True, False])
def test_bandwidth_is_raised_under_way(image, fault_server, worker, tmp_path, ranges):
    url = fault_server.put("/disk", image, ranges=ranges)
    # At this rate the import would take four hours, far longer than the test's time-out.
    running = worker(disk_job("raise", url, tmp_path, bandwidth=2000)).start()
    running.wait_for(lambda: fetched(running) > 0)
    assert fetched(running) < MIB + (1 << 19)
    limit(running)
    assert running.outcome().failure is None
    assert running.path("disk.img").read_bytes() == image


def test_bandwidth_is_lowered_under_way(image, fault_server, worker, tmp_path):
    url = fault_server.put("/disk", image)
    running = worker(disk_job("lower", url, tmp_path, bandwidth=8 * MIB)).start()
    running.wait_for(lambda: done(running) > 0)
    limit(running, bandwidth=20_000)
    # The new limit must hold once the control file has been read twice.
    for _ in range(3):
        before = running.path("progress.json").stat().st_ino
        running.wait_for(lambda before=before: running.path("progress.json").stat().st_ino != before)
    first = fetched(running)
    before = running.path("progress.json").stat().st_ino
    running.wait_for(lambda: running.path("progress.json").stat().st_ino != before)
    # Half a second at the former rate would be 4 MiB; at this one it is at most a grain for each connection.
    assert fetched(running) - first < MIB
    limit(running)
    assert running.outcome().failure is None


def test_a_limit_that_is_there_from_the_start_holds(image, fault_server, worker, tmp_path):
    url = fault_server.put("/disk", image)
    running = worker(disk_job("there", url, tmp_path))
    limit(running, bandwidth=100_000)
    running.start()
    running.wait_for(lambda: fetched(running) > 0)
    assert fetched(running) < 4 * MIB
    limit(running)
    assert running.outcome().failure is None


def test_a_control_file_of_nonsense_changes_nothing(image, fault_server, worker, tmp_path):
    url = fault_server.put("/disk", image)
    running = worker(disk_job("nonsense", url, tmp_path, bandwidth=12 * MIB))
    running.path("control.json").write_text("{")
    running.start()
    running.wait_for(lambda: done(running) > 0)
    running.path("control.json").write_text('{"bandwidth": "fast", "colour": 1}')
    assert running.outcome().failure is None
    assert running.path("disk.img").read_bytes() == image


def test_fewer_connections_are_used_once_it_is_said(image, fault_server, worker, tmp_path):
    def slow(request):
        return Fault(drip=(256 << 10, 0.05)) if request.range not in (None, (0, 0)) else None

    url = fault_server.put("/disk", image, always=slow)
    running = worker(disk_job("connections", url, tmp_path, connections=4)).start()
    running.wait_for(lambda: len({r.connection for r in fault_server.asked("/disk")}) >= 4)
    limit(running, connections=1)
    # Pieces in progress are completed first.
    running.wait_for(lambda: done(running) >= 16 * MIB)
    count = len(fault_server.asked("/disk"))
    assert running.outcome().failure is None
    late = fault_server.asked("/disk")[count:]
    assert len({request.connection for request in late}) <= 1
    assert running.path("disk.img").read_bytes() == image


class Busy:
    """Responses in progress: each response with a piece blocks at the gate."""

    def __init__(self):
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, request):
        if request.range is None or request.range[1] - request.range[0] < 1000 or self.gate.is_set():
            return
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(60)
        with self.lock:
            self.now -= 1
        return


@pytest.fixture
def busy():
    busy = Busy()
    yield busy
    busy.gate.set()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "qcow2-zlib"])
def test_more_connections_are_used_once_it_is_said(kind, busy, image, fault_server, worker, tmp_path):
    """Five pieces are requested at the same time, where two were planned."""
    data = image
    if kind != "raw":
        packed = ["-c"] if kind == "qcow2-zlib" else []
        (tmp_path / "raw").write_bytes(image)
        subprocess.run(
            ["qemu-img", "convert", *packed, "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "qcow2"],
            check=True,
        )
        data = (tmp_path / "qcow2").read_bytes()
    # The probe and the requests for a qcow2's tables are answered at once.
    url = fault_server.put("/disk", data)
    running = worker(
        disk_job("more", url, tmp_path, connections=2, checksum="sha256:" + hashlib.sha256(data).hexdigest())
    )
    fault_server.file("/disk").always = lambda request: (
        busy(request) if request.range and request.range[0] >= MIB else None
    )
    running.start()
    running.wait_for(lambda: busy.now == 2)
    limit(running, connections=5)
    running.wait_for(lambda: busy.now == 5)
    assert busy.most == 5
    busy.gate.set()
    assert running.outcome().failure is None
    assert running.path("disk.img").read_bytes() == image


def test_limits_that_make_no_sense_are_not_taken(image, fault_server, worker, tmp_path):
    url = fault_server.put("/disk", image)
    running = worker(disk_job("negative", url, tmp_path, bandwidth=12 * MIB))
    running.path("control.json").write_text('{"bandwidth": 0, "connections": -1}')
    assert running.start().outcome().failure is None
    assert running.path("disk.img").read_bytes() == image


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_a_journal_that_is_gone_on_with(image, fault_server, worker, tmp_path, number):
    digest = "sha256:" + hashlib.sha256(image).hexdigest()

    url = fault_server.put("/disk", image)
    # At this rate it ends four seconds after the test has seen enough.
    running = worker(disk_job("stop", url, tmp_path, bandwidth=4 * MIB, checksum=digest)).start()
    running.wait_for(lambda: done(running) >= 8 * MIB)
    running.process.send_signal(number)
    outcome = running.outcome()
    assert outcome.failure.code == "Interrupted"
    assert outcome.failure.retry is Retry.BACKOFF
    assert outcome.failure.exit_status == running.process.returncode == 130
    # The journal records everything done, not only what was done at the last checkpoint.
    mark = running.journal()["watermark"]
    assert mark == running.progress()["done"] >= 8 * MIB
    assert not running.path("disk.img").exists()
    limit(running)
    outcome = running.start().outcome()
    assert outcome.failure is None
    assert outcome.resumed_at == mark
    assert outcome.digest == digest
    # The beginning is read once more for inspection; completed parts are not fetched again.
    assert outcome.fetched <= len(image) - mark + MIB
    assert running.path("disk.img").read_bytes() == image
    assert running.journal() is None


@pytest.mark.parametrize("fault", [Fault(stall_after=1000), Fault(status=503, retry_after="600"), Fault(delay=600)])
@pytest.mark.parametrize("ranges", [True, False])
def test_it_stops_at_once_wherever_it_waits(image, fault_server, worker, tmp_path, fault, ranges):
    """It may wait for a server that is silent, one that is busy, or a response."""
    first = [Fault()] if ranges else []
    url = fault_server.put("/disk", image, ranges=ranges, faults=[*first, fault], always=fault)
    running = worker(disk_job("wait", url, tmp_path)).start()
    running.wait_for(lambda: len(fault_server.asked("/disk")) > len(first) and running.progress())
    running.process.send_signal(signal.SIGTERM)
    assert running.outcome(STOP_TIMEOUT).failure.code == "Interrupted"


SILENT = [Fault(stall_after=0), Fault(delay=600)]


@pytest.mark.parametrize("fault", SILENT)
@pytest.mark.parametrize("signature", ["ignore", "require"])
def test_it_stops_while_it_looks_for_checksums(image, fault_server, worker, tmp_path, fault, signature):
    url = fault_server.put("/disk", image)
    fault_server.put("*", b"x", always=fault)
    policy = {"discover_checksum": True, "signature": signature, "require_checksum": True, "keyring": str(tmp_path)}
    running = worker(disk_job("sums", url, tmp_path, **policy)).start()
    running.wait_for(lambda: fault_server.asked("/SHA256SUMS"))
    running.process.send_signal(signal.SIGTERM)
    assert running.outcome(STOP_TIMEOUT).failure.code == "Interrupted"


@pytest.fixture
def service_account(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()

    def make(token_uri):
        path = tmp_path / "credentials.json"
        path.write_text(
            json.dumps({"type": "service_account", "client_email": "a@b", "private_key": pem, "token_uri": token_uri})
        )
        return str(path)

    return make


@pytest.mark.parametrize("fault", SILENT)
def test_it_stops_while_it_asks_for_a_token(fault_server, worker, tmp_path, service_account, fault):
    credentials = Credentials(service_account_file=service_account(fault_server.put("/token", b"x", always=fault)))
    source = GcsSourceSpec(url="gs://bucket/disk", endpoint=fault_server.origin, credentials=credentials)
    running = worker(replace(disk_job("token", "http://unused", tmp_path), source=source)).start()
    running.wait_for(lambda: fault_server.asked("/token"))
    running.process.send_signal(signal.SIGTERM)
    assert running.outcome(STOP_TIMEOUT).failure.code == "Interrupted"


@pytest.mark.parametrize("fault", SILENT)
def test_it_stops_while_it_asks_a_registry(fault_server, worker, tmp_path, fault):
    fault_server.put("*", b"x", always=fault)
    url = fault_server.origin.replace("http:", "docker:") + "/disk:latest"
    source = RegistrySourceSpec(url=url, tls=Tls(insecure=True))
    running = worker(replace(disk_job("registry", "http://unused", tmp_path), source=source)).start()
    running.wait_for(lambda: fault_server.requests or fault_server.connections)
    running.process.send_signal(signal.SIGTERM)
    assert running.outcome(STOP_TIMEOUT).failure.code == "Interrupted"


def test_asked_twice_it_still_ends_once(image, fault_server, worker, tmp_path):
    url = fault_server.put("/disk", image)
    running = worker(disk_job("twice", url, tmp_path, bandwidth=4 * MIB)).start()
    running.wait_for(lambda: done(running) > 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        running.process.send_signal(number)
    assert running.outcome().failure.code == "Interrupted"
    assert running.journal() is not None


def test_stopping_a_stream_leaves_nothing_to_go_on_with(image, fault_server, worker, tmp_path):
    url = fault_server.put("/disk", image, ranges=False)
    running = worker(disk_job("stream", url, tmp_path, bandwidth=8 * MIB)).start()
    running.wait_for(lambda: done(running) >= 4 * MIB)
    running.process.send_signal(signal.SIGTERM)
    outcome = running.outcome()
    assert (outcome.failure.code, outcome.failure.retry) == ("Interrupted", Retry.BACKOFF)
    assert running.journal() is None
    limit(running)
    outcome = running.start().outcome()
    assert (outcome.failure, outcome.resumed_at) == (None, 0)
    assert running.path("disk.img").read_bytes() == image
