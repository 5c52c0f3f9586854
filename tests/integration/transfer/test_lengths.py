"""Tests that a length from a server, an archive or a registry is bounded before it is used."""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cdi.api.errors import Interrupted
from cdi.api.job import DirectoryTargetSpec, FileTargetSpec, HttpSourceSpec, Job, Policy, RegistrySourceSpec, Tls
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault, FaultServer

TIB = 1 << 40
GIANT = (1 << 63) - 1
DISK = b"\xff" * 100_000


def job(source: HttpSourceSpec | RegistrySourceSpec, tmp_path: Path, **more: object) -> Job:
    made = Job(
        id="x",
        source=source,
        target=FileTargetSpec(path=str(tmp_path / "disk.img")),
        policy=Policy(retries=0, stall_timeout=10, discover_checksum=False),
    )
    return replace(made, **more)


def sparse_tar(size: int) -> bytes:
    """Return an archive of one member in GNU's old sparse format: `size` bytes, none of them stored."""
    header = bytearray(tarfile.TarInfo("disk.img").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def plain_tar(size: int) -> bytes:
    """Return an archive whose member claims `size` bytes and ends soon."""
    member = tarfile.TarInfo("disk.img")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


@pytest.mark.parametrize("length", [64 * TIB + 1, GIANT, GIANT + 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_announces_more_than_an_image_can_have_is_refused(
    fault_server: FaultServer, tmp_path: Path, length: int, ranges: bool
) -> None:
    fault = Fault(total=length) if ranges else Fault(headers=(("Content-Length", str(length)),), stall_after=1000)
    url = fault_server.put("/disk.raw", DISK, ranges=ranges, always=fault)
    one = job(HttpSourceSpec(url=url), tmp_path)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "FormatUnsupported"
    assert str(length) in outcome.failure.message and "64 TiB" in outcome.failure.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digits", [20, 5000])
def test_a_length_of_too_many_digits_is_refused_by_their_number(
    fault_server: FaultServer, tmp_path: Path, digits: int
) -> None:
    fault = Fault(headers=(("Content-Length", "9" * digits),), stall_after=0)
    one = job(HttpSourceSpec(url=fault_server.put("/disk.raw", DISK, ranges=False, always=fault)), tmp_path)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "SourceProtocolError"
    assert f"{digits} digits" in outcome.failure.message


@pytest.mark.parametrize("make", [sparse_tar, plain_tar])
@pytest.mark.parametrize("archive", [True, False])
def test_a_tar_member_of_more_than_an_image_can_have_is_refused(
    fault_server: FaultServer, tmp_path: Path, make, archive: bool
) -> None:
    one = job(HttpSourceSpec(url=fault_server.put("/a.tar", make(GIANT))), tmp_path)
    if archive:
        one = replace(one, content_type="archive", target=DirectoryTargetSpec(path=str(tmp_path)))
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "FormatUnsupported", outcome.failure
    assert str(GIANT) in outcome.failure.message


def test_a_registry_layer_of_more_than_an_image_can_have_is_refused(fault_server: FaultServer, tmp_path: Path) -> None:
    """The registry serves it in chunks, so that only the manifest has its length."""
    layer, config = sparse_tar(1000), b'{"architecture": "amd64", "os": "linux"}'

    def described(content: bytes, kind: str, size: int) -> dict[str, object]:
        return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": size}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described(config, "application/vnd.oci.image.config.v1+json", len(config)),
            "layers": [described(layer, "application/vnd.oci.image.layer.v1.tar", 65 * TIB)],
        }
    ).encode()
    fault_server.put("/v2/", b"{}")
    fault_server.put("/v2/a/b/manifests/t", manifest)
    for content in (layer, config):
        path = f"/v2/a/b/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
        fault_server.put(path, content, ranges=False, always=Fault(framing="chunked"))
    name = fault_server.origin.partition("://")[2]
    one = job(RegistrySourceSpec(url=f"docker://{name}/a/b:t", tls=Tls(insecure=True)), tmp_path)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "FormatUnsupported", outcome.failure


@pytest.mark.parametrize("size", [GIANT, GIANT - 510])
def test_a_requested_size_beyond_every_offset_is_refused(fault_server: FaultServer, tmp_path: Path, size: int) -> None:
    one = job(HttpSourceSpec(url=fault_server.put("/disk.raw", DISK)), tmp_path, size=size)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "TargetUnsuitable", outcome.failure


def test_terabytes_of_zeros_that_nothing_is_fetched_for_can_be_cancelled(
    fault_server: FaultServer, tmp_path: Path
) -> None:
    """A sparse member of a tar archive decodes to them from a single block."""
    one = job(HttpSourceSpec(url=fault_server.put("/a.tar", sparse_tar(60 * TIB))), tmp_path)
    control = TransferControl(one)
    ended = threading.Event()
    outcomes = []

    def run() -> None:
        outcomes.append(transfer(one, control))
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    while control.meter.phase != "transferring":
        assert not ended.wait(0.01)
    control.cancel()
    assert ended.wait(120)
    assert outcomes[0].failure.code == Interrupted.__name__
