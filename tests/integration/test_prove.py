"""Boot proofs as the worker makes them: boot sectors that print a text, and a Debian guest."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdi.api.errors import BootFailed, Interrupted
from cdi.api.proof import MAX_RESULT, ProofJob, ProofResult
from tests.integration.test_boot import HALT, boot_sector

ROOT = Path(__file__).parents[2]
BOOT = 900.0  # seconds, for an emulated guest on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    status: int
    result: ProofResult
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The worker as a process, with a directory in place of a pod's emptyDir."""

    directory: Path

    def start(self, job: ProofJob) -> subprocess.Popen[str]:
        (self.directory / "job").write_text(job.to_json())
        self.temporary.mkdir()
        command = [sys.executable, "-m", "cdi.worker", "prove"]
        command += [f"--job={self.directory}/job", f"--termination-log={self.directory}/end"]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def finish(self, process: subprocess.Popen[str]) -> Proof:
        _, log = process.communicate()
        text = (self.directory / "end").read_text()
        assert len(text) <= MAX_RESULT
        left = [path for path in self.temporary.rglob("*") if path.is_file() and path.name != "lock"]
        assert left == []
        return Proof(status=process.returncode, result=ProofResult.from_json(text), log=log)

    def prove(self, job: ProofJob) -> Proof:
        before = digest(job.disk)
        proof = self.finish(self.start(job))
        assert digest(job.disk) == before
        assert proof.result.id == job.id
        return proof

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker").mkdir()
    return Worker(directory=tmp_path / "worker")


@pytest.fixture
def small(tmp_path):
    """Return the job for a small disk that begins with these bytes."""

    def make(first: bytes = b"", **more) -> ProofJob:
        path = tmp_path / "disk.img"
        path.write_bytes(first.ljust(1 << 20, b"\0"))
        path.chmod(0o444)
        return ProofJob(id="uid-1", disk=str(path), **({"memory": 64 << 20, "timeout": 90.0} | more))

    return make


def test_a_guest_that_comes_up_is_proven(worker, small):
    proof = worker.prove(small(boot_sector(b"\r\ngolden login: ", HALT)))
    assert proof.status == 0
    assert proof.result.booted
    assert proof.result.failure is None
    assert proof.result.message == "a login prompt: golden login:"
    assert proof.result.accelerator in ("kvm", "tcg")
    assert "golden login:" in proof.result.console
    assert "console: " in proof.log
    assert "booted in" in proof.log


def test_a_disk_without_a_boot_sector_is_not_proven(worker, small):
    proof = worker.prove(small())
    assert proof.status == BootFailed.exit_status
    assert not proof.result.booted
    assert proof.result.failure is None
    assert "No bootable device" in proof.result.message
    assert "did not boot" in proof.log


def test_a_panic_is_the_result_with_its_console(worker, small):
    text = b"[ 1.0] Kernel panic - not syncing: VFS: no root\r\n"
    proof = worker.prove(small(boot_sector(text, HALT)))
    assert proof.status == BootFailed.exit_status
    assert "the kernel panicked" in proof.result.message
    assert "VFS: no root" in proof.result.console


def test_a_guest_that_prints_without_end_fits_into_the_message(worker, small):
    # mov dx,0x3f8; mov al,'"'; out dx,al; jmp to the out: characters that JSON escapes, as fast as they go.
    code = bytes.fromhex("baf803 b022 ee ebfd".replace(" ", ""))
    proof = worker.prove(small(code.ljust(510, b"\0") + b"\x55\xaa", timeout=3.0))
    assert proof.status == BootFailed.exit_status
    assert not proof.result.booted


def test_only_the_expected_text_proves_it(worker, small):
    proof = worker.prove(small(boot_sector(b"\r\nx login: \r\n", HALT), expect="all services up", timeout=4.0))
    assert not proof.result.booted
    assert "expected text did not appear" in proof.result.message


def test_a_signal_interrupts_it_and_proves_nothing(worker, small):
    process = worker.start(small(boot_sector(b"still starting\r\n", HALT)))
    assert process.stderr is not None
    for line in process.stderr:
        if "console: " in line:
            break
    process.send_signal(signal.SIGTERM)
    proof = worker.finish(process)
    assert proof.status == Interrupted.exit_status
    assert proof.result.failure is not None
    assert proof.result.failure.code == "Interrupted"
    assert not proof.result.booted


# --- a real system ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest(tmp_path_factory) -> Path:
    """Return the raw disk of a small Debian."""
    directory = tmp_path_factory.mktemp("guest")
    subprocess.run([sys.executable, ROOT / "scripts/guest-image", directory / "guest.qcow2"], check=True)
    disk = directory / "guest.img"
    subprocess.run(["qemu-img", "convert", "-O", "raw", directory / "guest.qcow2", disk], check=True)
    (directory / "guest.qcow2").unlink()
    return disk


@pytest.mark.timeout(1800)
def test_a_debian_boots(worker, guest):
    proof = worker.prove(ProofJob(id="uid-1", disk=str(guest), memory=512 << 20, timeout=BOOT))
    assert proof.status == 0, proof.log[-4000:]
    assert "login" in proof.result.message
    assert proof.result.seconds < BOOT


@pytest.mark.timeout(1800)
def test_the_small_guest_boots(worker, tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts/guest-image", "--small", tmp_path / "guest.qcow2"], check=True)
    disk = tmp_path / "guest.img"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "guest.qcow2", disk], check=True)
    proof = worker.prove(ProofJob(id="uid-1", disk=str(disk), memory=192 << 20, timeout=BOOT))
    assert proof.status == 0, proof.log[-4000:]
    assert "golden login:" in proof.result.message


@pytest.mark.timeout(1800)
def test_a_debian_without_its_kernel_is_not_proven(worker, guest, tmp_path):
    broken = tmp_path / "broken.img"
    subprocess.run(["cp", "--sparse=always", guest, broken], check=True)
    with broken.open("r+b") as file:
        file.seek(1 << 20)  # the root file system
        file.write(bytes(1 << 20))
    proof = worker.prove(ProofJob(id="uid-1", disk=str(broken), memory=512 << 20, timeout=BOOT))
    assert proof.status == BootFailed.exit_status, proof.log[-4000:]
    assert "the boot loader stopped at its prompt" in proof.result.message
    assert "GNU GRUB" in proof.result.console
