"""The worker in real pods, under restricted Pod Security: no controller, only what the kubelet shows and keeps."""

import hashlib
import random
import subprocess
import uuid
from pathlib import Path

import pytest

from cdi.api.job import BlockTargetSpec, FileTargetSpec, HttpSourceSpec, Job, Policy
from tests.cluster.objects import claim, is_phase
from tests.cluster.worker_pods import DEVICE, DISK, JOURNALS, RESTRICTED, exit_status, last_words, looker, worker
from tests.faults.server import FaultServer

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
    """16 MiB of a disk: data, zeros, data at the end."""
    data = random.Random(4).randbytes(5 * MIB)
    return data[: 4 * MIB] + bytes(11 * MIB) + data[4 * MIB :]


@pytest.fixture(scope="session")
def image(disk, tmp_path_factory):
    """The same disk in any format that qemu-img writes."""
    directory = tmp_path_factory.mktemp("images")
    (directory / "raw").write_bytes(disk)

    def make(form):
        path = directory / form
        if not path.exists():
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, directory / "raw", path], check=True)
        return path.read_bytes()

    return make


def job_for(url, mode, size=16 * MIB, **fields):
    target = BlockTargetSpec(path=DEVICE) if mode == "Block" else FileTargetSpec(path=DISK)
    fields = {"id": str(uuid.uuid4()), "journal": JOURNALS[mode]} | fields
    return Job(source=HttpSourceSpec(url=url), target=target, size=size, **fields)


class Volume:
    """A new claim, the worker pods that fill it and a pod that looks at it."""

    def __init__(self, cluster, kubectl, cdi_image, mode, size="64Mi"):
        self._cluster, self._kubectl, self._image, self.mode = cluster, kubectl, cdi_image, mode
        self.name = f"volume-{uuid.uuid4().hex[:6]}"
        storage = next(each for each in cluster.storage_classes() if each.csi and not each.waits)
        kubectl.create(claim(self.name, storage.name, mode=mode, size=size))

    def start(self, name, job, **options):
        self._kubectl.create(worker(name, self._image, job, self.name, self.mode, **options))

    def end(self, name):
        """The pod at its end."""
        return self._kubectl.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), SLOW)

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
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    into = volume(mode)
    ended = into.fill(job_for(server.put(f"/disk.{form}", content), mode, checksum=checksum))
    words = last_words(ended)
    assert exit_status(ended) == 0
    assert words["message"] == "Import Complete"
    assert words["scratchSpaceRequired"] is False
    assert "checksum" in words["outcome"]["verified_by"]
    assert into.digest(len(disk)) == hashlib.sha256(disk).hexdigest()
    if mode == "Filesystem":
        # The owner and group may use it, and nothing but the disk is left.
        found = into.look("ls -A /data; stat -c '%a %u %g' /data/disk.img").split()
        assert [each for each in found if each != "lost+found"] == ["disk.img", "660", "107", "107"]
