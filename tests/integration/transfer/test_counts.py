"""Tests that an outcome's fetched and written bytes are the actual ones."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tempfile
from pathlib import Path

import pytest

from cdi.api.job import BlockTargetSpec, FileTargetSpec, HttpSourceSpec, Job, Outcome, Policy, TargetSpec
from cdi.image.plan import plan
from cdi.transfer import context
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import FaultServer

MIB = 1 << 20
DATA = 6 * MIB
SIZE = 96 * MIB


@pytest.fixture(scope="module")
def vhdx(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("vhdx")
    with open(directory / "raw", "wb") as file:
        file.truncate(SIZE)
        for place in range(3):
            file.seek(place * 32 * MIB)
            file.write(random.Random(place).randbytes(DATA // 3))
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "vhdx", directory / "raw", directory / "image"], check=True
    )
    return (directory / "image").read_bytes()


def carried_out(content: bytes, target: TargetSpec) -> tuple[Outcome, TransferControl, int]:
    """Import an image with QEMU."""
    with FaultServer() as server, tempfile.TemporaryDirectory() as scratch:
        url = server.put("/image", content)
        job = Job(
            id="x",
            source=HttpSourceSpec(url=url),
            target=target,
            scratch=scratch,
            checksum="sha256:" + hashlib.sha256(content).hexdigest(),
            policy=Policy(discover_checksum=False, engine="qemu"),
        )
        control = TransferControl(job)
        outcome = transfer(job, control)
    assert outcome.failure is None, outcome.failure
    return outcome, control, len(content)


def test_what_qemu_reads_is_fetched_hashed_and_spooled_in_one(
    vhdx: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    monkeypatch.setattr(context, "plan_for", lambda facts: plans.append(plan(facts)) or plans[-1])
    outcome, _, length = carried_out(vhdx, FileTargetSpec(path=str(tmp_path / "disk.img")))
    assert outcome.path == "qemu-spool"
    assert outcome.scratch == length
    assert "checksum" in outcome.verified_by
    assert plans[0].fetch_bytes == length
    # The probe and the read of the header are added.
    assert length <= outcome.fetched <= length + MIB


def test_only_the_data_is_written_to_a_file(vhdx: bytes, tmp_path: Path) -> None:
    outcome, control, _ = carried_out(vhdx, FileTargetSpec(path=str(tmp_path / "disk.img")))
    taken = os.stat(tmp_path / "disk.img").st_blocks * 512
    assert DATA <= taken <= outcome.written <= DATA + 4 * MIB
    assert control.progress().written == outcome.written


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="this kernel has no loop devices")
def test_only_the_data_is_written_to_a_device(vhdx: bytes, tmp_path: Path) -> None:
    with open(tmp_path / "backing", "wb") as file:
        file.truncate(SIZE)
    device = subprocess.run(
        ["losetup", "--find", "--show", str(tmp_path / "backing")], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        outcome, _, _ = carried_out(vhdx, BlockTargetSpec(path=device))
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert DATA <= outcome.written <= DATA + 4 * MIB
