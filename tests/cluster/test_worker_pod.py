"""The worker in real pods under restricted Pod Security, without a controller."""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import io
import json
import random
import ssl
import tarfile
import time
import uuid

import pytest

from cdi.api.job import (
    BlockTargetSpec,
    DirectoryTargetSpec,
    FileTargetSpec,
    HttpSourceSpec,
    Job,
    Limits,
    Outcome,
    Policy,
    Progress,
    RegistrySourceSpec,
    Tls,
)
from tests.cluster.objects import claim, is_phase
from tests.cluster.volumes import converted
from tests.cluster.worker_pods import DEVICE, DISK, JOURNALS, RESTRICTED, exit_status, last_words, looker, worker
from tests.faults.server import FaultServer
from tests.vmdk_writer import needs_qemu

SLOW = 120.0
MIB = 1 << 20

each_mode = pytest.mark.parametrize("mode", ["Filesystem", "Block"])


@pytest.fixture
def restricted(namespace):
    labels = [f"{name}={value}" for name, value in RESTRICTED.items()]
    namespace.run("label", "namespace", namespace.namespace, *labels)
    return namespace


@pytest.fixture
def server(cluster):
    with FaultServer(host=cluster.host_address) as server:
        yield server


@pytest.fixture(scope="session")
def disk():
    """Return 16 MiB of a disk: data, zeros, data at the end."""
    data = random.Random(4).randbytes(5 * MIB)
    return data[: 4 * MIB] + bytes(11 * MIB) + data[4 * MIB :]


@pytest.fixture(scope="session")
def image(disk, tmp_path_factory):
    """Return a function that returns the same disk in any format of qemu-img."""
    directory = tmp_path_factory.mktemp("images")
    return functools.cache(functools.partial(converted, disk, directory))


def job_for(url, mode, size=16 * MIB, **fields):
    target = BlockTargetSpec(path=DEVICE) if mode == "Block" else FileTargetSpec(path=DISK)
    fields = {"id": str(uuid.uuid4()), "journal": JOURNALS[mode], "source": HttpSourceSpec(url=url)} | fields
    return Job(target=fields.pop("target", target), size=size, **fields)


def ask(address, path):
    """Return the worker's response to a GET request; its certificate is self-signed."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, 8443, timeout=60, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body.decode()
    finally:
        connection.close()


def kept(journal):
    """Return the watermark of a journal's text."""
    return json.loads(journal)["watermark"] if journal else 0


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Volume:
    """A new claim, the worker pods that fill it and a pod that reads it."""

    def __init__(self, cluster, kubectl, cdi_image, mode, size="64Mi"):
        self._cluster, self._kubectl, self._image, self.mode = cluster, kubectl, cdi_image, mode
        self.name = f"volume-{uuid.uuid4().hex[:6]}"
        storage = next(each for each in cluster.storage_classes() if each.csi and not each.waits)
        kubectl.create(claim(self.name, storage.name, mode=mode, size=size))

    def start(self, name, job, **options):
        self._kubectl.create(worker(name, self._image, job, self.name, self.mode, **options))

    def end(self, name):
        """Return the pod after its end."""
        return self._kubectl.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), SLOW)

    def address(self, name):
        """Return the pod's address once the worker answers, about a second after its start."""
        ready = self._kubectl.wait("pod", name, "running", is_phase("Running", "Succeeded", "Failed"), SLOW)
        assert ready["status"]["phase"] == "Running", self._kubectl.logs(name)
        address = ready["status"]["podIP"]
        until = time.monotonic() + SLOW
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                ask(address, "/healthz")
                return address
            time.sleep(0.2)
        raise AssertionError(self._kubectl.logs(name))

    def until_under_way(self, name, least=MIB):
        """Return the response to /progress once at least `least` bytes are done, and journaled for a block volume."""
        address = self.address(name)
        until = time.monotonic() + SLOW
        while time.monotonic() < until:
            told = json.loads(ask(address, "/progress"))
            if told["progress"]["done"] >= least and (self.mode == "Filesystem" or kept(told["journal"]) >= least):
                return told
            time.sleep(0.2)
        raise AssertionError(self._kubectl.logs(name))

    def fill(self, job, **options):
        name = f"worker-{uuid.uuid4().hex[:6]}"
        self.start(name, job, **options)
        document = self.end(name)
        print(self._kubectl.logs(name))
        print(document["status"]["containerStatuses"])
        return document

    def look(self, script):
        name = f"look-{uuid.uuid4().hex[:6]}"
        self._kubectl.create(looker(name, self._cluster.image, script, self.name, self.mode))
        document = self.end(name)
        output = self._kubectl.logs(name)
        assert document["status"]["phase"] == "Succeeded", output
        return output.strip()

    def digest(self, size):
        path = DEVICE if self.mode == "Block" else DISK
        return self.look(f"head -c {size} {path} | sha256sum").split()[0]


@pytest.fixture
def volume(cluster, restricted, cdi_image):
    return lambda mode, **options: Volume(cluster, restricted, cdi_image, mode, **options)


@each_mode
@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk"])
def test_an_image_over_http(volume, server, image, disk, form, mode):
    content = image(form)
    checksum = "sha256:" + sha256(content)
    into = volume(mode)
    ended = into.fill(job_for(server.put(f"/disk.{form}", content), mode, checksum=checksum))
    words = last_words(ended)
    assert exit_status(ended) == 0
    assert words["message"] == "Import Complete"
    assert words["scratchSpaceRequired"] is False
    assert "checksum" in words["outcome"]["verified_by"]
    assert into.digest(len(disk)) == sha256(disk)
    if mode == "Filesystem":
        # Owner and group have access, and there is no other file.
        found = into.look("ls -A /data; stat -c '%a %u %g' /data/disk.img").split()
        assert [each for each in found if each != "lost+found"] == ["disk.img", "660", "107", "107"]


def test_a_container_disk(volume, server, image, disk):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo("disk/disk.qcow2")
        member.size = len(image("qcow2"))
        tar.addfile(member, io.BytesIO(image("qcow2")))
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small"]},
        }
    ).encode()
    kinds = "application/vnd.oci.image"
    blobs = [(f"{kinds}.config.v1+json", configuration), (f"{kinds}.layer.v1.tar", layer.getvalue())]
    config, disk_layer = (
        {"mediaType": kind, "digest": f"sha256:{sha256(content)}", "size": len(content)} for kind, content in blobs
    )
    manifest = {"schemaVersion": 2, "mediaType": f"{kinds}.manifest.v1+json", "config": config, "layers": [disk_layer]}
    server.put("/v2/", b"{}")
    server.put("/v2/disk/manifests/1", json.dumps(manifest).encode(), content_type=manifest["mediaType"])
    for _, content in blobs:
        server.put(f"/v2/disk/blobs/sha256:{sha256(content)}", content)
    into = volume("Filesystem")
    source = RegistrySourceSpec(url=f"docker://{server.host}:{server.port}/disk:1", tls=Tls(insecure=True))
    ended = into.fill(job_for("", "Filesystem", source=source))
    assert exit_status(ended) == 0
    assert last_words(ended)["labels"] == {"instancetype.kubevirt.io/default-instancetype": "u1.small"}
    assert into.digest(len(disk)) == sha256(disk)


def test_an_archive_is_all_that_the_volume_has(volume, server):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in {"etc/motd": b"welcome", ".cdi/theirs": b"their own"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    into = volume("Filesystem")
    target = DirectoryTargetSpec(path="/data")
    url = server.put("/a.tar", archive.getvalue())
    ended = into.fill(job_for(url, "Filesystem", size=None, target=target, content_type="archive"))
    assert exit_status(ended) == 0
    found = into.look("cd /data; cat etc/motd; echo; cat .cdi/theirs; echo; find . -type f | sort; ls -A").splitlines()
    assert found[:4] == ["welcome", "their own", "./.cdi/theirs", "./etc/motd"]
    assert set(found[4:]) <= {".cdi", "etc", "lost+found"}


# --- Failures


@each_mode
def test_a_wrong_checksum_leaves_nothing(volume, server, image, mode):
    into = volume(mode)
    ended = into.fill(job_for(server.put("/disk.raw", image("raw")), mode, checksum=f"sha256:{'0' * 64}"))
    words = last_words(ended)
    assert exit_status(ended) == 5
    assert words["outcome"]["failure"]["code"] == "ChecksumMismatch"
    assert words["message"].endswith(words["outcome"]["failure"]["message"])
    assert "journal" not in words
    if mode == "Filesystem":
        assert set(into.look("ls -A /data").split()) <= {"lost+found"}
    else:
        assert into.digest(16 * MIB) == sha256(bytes(16 * MIB))


@each_mode
def test_an_image_that_is_larger_than_the_disk(volume, server, image, mode):
    into = volume(mode)
    ended = into.fill(job_for(server.put("/disk.qcow2", image("qcow2")), mode, size=8 * MIB))
    words = last_words(ended)
    assert exit_status(ended) == 6
    assert words["outcome"]["failure"]["code"] == "TargetTooSmall"
    assert words["outcome"]["written"] == 0


def test_scratch_space_is_asked_for_and_used(volume, server, image, disk):
    into, scratch = volume("Filesystem"), volume("Filesystem")
    job = job_for(server.put("/disk.vmdk", needs_qemu(disk), ranges=False), "Filesystem")
    words = last_words(into.fill(job))
    assert words["scratchSpaceRequired"] is True
    assert words["outcome"]["failure"]["code"] == "ScratchNeeded"
    ended = into.fill(dataclasses.replace(job, scratch="/scratch"), scratch=scratch.name)
    assert exit_status(ended) == 0
    assert last_words(ended)["outcome"]["scratch"] > 0
    assert into.digest(len(disk)) == sha256(disk)


def test_a_pod_without_enough_memory_is_killed_for_that(volume, server, image):
    into = volume("Filesystem")
    ended = into.fill(job_for(server.put("/disk.raw", image("raw")), "Filesystem"), memory="20M")
    state = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)


def test_the_page_cache_of_a_large_import_is_within_the_limit(volume, server):
    raw = random.Random(5).randbytes(100 * MIB) * 4
    content = needs_qemu(raw)
    into, scratch = (volume("Filesystem", size="600Mi") for _ in range(2))
    job = job_for(server.put("/disk.vmdk", content), "Filesystem", size=None, checksum="sha256:" + sha256(content))
    job = dataclasses.replace(job, scratch="/scratch")
    assert exit_status(into.fill(job, memory="250M", scratch=scratch.name)) == 0
    assert into.digest(400 * MIB) == sha256(raw)


# --- A running worker


def test_a_running_worker_tells_its_progress_and_takes_new_limits(volume, restricted, server, image, disk):
    into = volume("Block")
    # Without new limits it would take ten minutes.
    job = job_for(server.put("/disk.raw", image("raw")), "Block", policy=Policy(bandwidth=28 << 10))
    into.start("worker", job)
    address = into.address("worker")
    told = json.loads(ask(address, "/progress"))
    assert set(told) == {"progress", "journal"}
    assert Progress.from_json(json.dumps(told["progress"])).total == len(disk)
    metrics = ask(address, "/metrics").splitlines()
    assert metrics[1] == "# TYPE kubevirt_cdi_import_progress_total counter"
    assert metrics[2].startswith(f'kubevirt_cdi_import_progress_total{{ownerUID="{job.id}"}} ')
    limits = Limits(connections=2).to_json()
    restricted.run("annotate", "pod", "worker", f"cdi.kubevirt.io/limits={limits}")
    assert exit_status(into.end("worker")) == 0
    assert "limits: bandwidth not limited, connections 2" in restricted.logs("worker")
    assert into.digest(len(disk)) == sha256(disk)


def slow_job(server, image, mode):
    """Build a job that is limited to 1 MiB/s so that it can be interrupted."""
    content = image("raw")
    policy = Policy(bandwidth=1 << 20)
    return job_for(server.put("/disk.raw", content), mode, checksum="sha256:" + sha256(content), policy=policy)


def go_on(into, job, disk, journal):
    """Run a second pod at full speed, and assert that it resumes and completes the import."""
    words = last_words(into.fill(dataclasses.replace(job, policy=Policy()), journal=journal))
    assert words["message"] == "Import Complete"
    outcome = Outcome.from_json(json.dumps(words["outcome"]))
    assert outcome.resumed_at >= MIB
    assert outcome.fetched < len(disk) - MIB + (1 << 18)
    assert "checksum" in outcome.verified_by
    assert into.digest(len(disk)) == sha256(disk)


@each_mode
def test_a_pod_that_is_told_to_end_is_gone_on_with(volume, restricted, server, image, disk, mode):
    into = volume(mode)
    job = slow_job(server, image, mode)
    into.start("first", job)
    into.until_under_way("first")
    stop = "import os, signal; os.kill(1, signal.SIGTERM)"
    restricted.run("exec", "first", "--", "/usr/bin/python3", "-c", stop)
    ended = into.end("first")
    words = last_words(ended)
    assert exit_status(ended) == 130
    assert words["outcome"]["failure"]["code"] == "Interrupted"
    # On a file system, the worker stores the journal itself.
    assert ("journal" in words) == (mode == "Block")
    go_on(into, job, disk, words.get("journal", ""))
    if mode == "Filesystem":
        assert set(into.look("ls -A /data").split()) <= {"disk.img", "lost+found"}


@each_mode
def test_a_pod_that_dies_is_gone_on_with(volume, cluster, restricted, server, image, disk, mode):
    into = volume(mode)
    job = slow_job(server, image, mode)
    into.start("first", job)
    told = into.until_under_way("first")
    container = restricted.get("pod", "first")["status"]["containerStatuses"][0]["containerID"].partition("//")[2]
    cluster.run("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)
    assert exit_status(into.end("first")) == 137
    go_on(into, job, disk, told["journal"] or "")
