"""Tests of the retry budget, which all requests of a transfer to its source share, counted at the server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job, Outcome, Policy, RegistrySourceSpec, Tls
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault, FaultServer, Request

RETRIES = 3
DISK = bytes(range(256)) * 4096
BUSY = Fault(status=503, retry_after="0")
BREAK = Fault(drop_after=1000)
NOTHING = Fault(drop_after=0)


def run(source: HttpSourceSpec | RegistrySourceSpec, tmp_path: Path, *, connections: int = 1) -> Outcome:
    one = Job(
        id="x",
        source=source,
        target=FileTargetSpec(path=str(tmp_path / "disk.img")),
        policy=Policy(retries=RETRIES, discover_checksum=False, connections=connections, stall_timeout=30),
    )
    return transfer(one, TransferControl(one))


def alternating(first: Fault, second: Fault) -> Callable[[Request], Fault]:
    return lambda request: second if request.number % 2 else first


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (BUSY, "SourceUnavailable"),
        (NOTHING, "SourceTruncated"),
        (BREAK, "SourceTruncated"),
        (alternating(BUSY, BREAK), "SourceTruncated"),
        (alternating(BREAK, BUSY), "SourceUnavailable"),
    ],
    ids=["opening", "reading nothing", "reading", "opening first", "reading first"],
)
def test_a_server_without_ranges_is_asked_once_and_so_often_again(
    fault_server: FaultServer, tmp_path: Path, behaviour: Fault | Callable[[Request], Fault], code: str
) -> None:
    url = fault_server.put("/disk", DISK, ranges=False, always=behaviour)
    outcome = run(HttpSourceSpec(url=url), tmp_path)
    assert outcome.failure is not None
    assert outcome.failure.code == code
    assert len(fault_server.asked("/disk")) == RETRIES + 1


def test_a_read_that_never_gives_a_byte_is_tried_again_in_place_so_often(
    fault_server: FaultServer, tmp_path: Path
) -> None:
    url = fault_server.put("/disk", DISK, always=lambda request: None if request.range == (0, 0) else NOTHING)
    outcome = run(HttpSourceSpec(url=url), tmp_path)
    assert outcome.failure is not None
    asked = [request for request in fault_server.asked("/disk") if request.range != (0, 0)]
    assert len(asked) == RETRIES + 1


def test_a_change_of_the_content_and_a_fault_of_opening_spend_the_same_budget(
    fault_server: FaultServer, tmp_path: Path
) -> None:
    """Every probe fails once and every content is a new one; with separate budgets there would be four rounds."""
    versions = iter(range(1000))

    def behave(request: Request) -> Fault:
        if request.range == (0, 0) and request.number % 2 == 0:
            return BUSY
        return Fault(etag=f'"{next(versions)}"')

    url = fault_server.put("/disk", DISK, always=behave)
    outcome = run(HttpSourceSpec(url=url), tmp_path)
    assert outcome.failure is not None
    probes = [request for request in fault_server.asked("/disk") if request.range == (0, 0)]
    assert len(probes) <= RETRIES + 1


def test_connections_that_fail_together_spend_the_budget_once(fault_server: FaultServer, tmp_path: Path) -> None:
    """An outage of as many attempts as there are retries is survived, whatever the number of connections."""
    disk, together, outages = DISK * 16, threading.Barrier(4), iter(range(4 * RETRIES))

    def behave(request: Request) -> Fault | None:
        begin, end = request.range or (0, None)
        if end is None or end - begin < 1 << 20 or next(outages, None) is None:
            return None
        together.wait(60)
        return BUSY

    url = fault_server.put("/disk", disk, always=behave)
    outcome = run(HttpSourceSpec(url=url), tmp_path, connections=4)
    assert outcome.failure is None, outcome.failure
    assert (tmp_path / "disk.img").read_bytes() == disk
    assert next(outages, None) is None


def described(content: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def test_the_requests_to_a_registry_spend_one_budget(fault_server: FaultServer, tmp_path: Path) -> None:
    """Two requests fail twice each, together more often than there are retries."""
    config = b'{"architecture": "amd64", "os": "linux"}'
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [described(b"x" * 512, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()
    for path, content in (
        ("/v2/", b"{}"),
        ("/v2/a/b/manifests/t", manifest),
        (f"/v2/a/b/blobs/sha256:{hashlib.sha256(config).hexdigest()}", config),
    ):
        fault_server.put(path, content, faults=[] if path == "/v2/" else [BUSY, BUSY])
    name = fault_server.origin.partition("://")[2]
    outcome = run(RegistrySourceSpec(url=f"docker://{name}/a/b:t", tls=Tls(insecure=True)), tmp_path)
    assert outcome.failure is not None
    assert outcome.failure.code == "SourceUnavailable"
    # The failures within the budget, one more, and the two requests that were answered.
    assert len(fault_server.requests) == RETRIES + 1 + 2
