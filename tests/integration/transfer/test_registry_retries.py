"""Tests of a registry that is briefly unavailable: the import is only delayed, whichever request fails."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdi.api.job import FileTargetSpec, Job, Policy, RegistrySourceSpec, Tls
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault, FaultServer
from tests.integration.fixtures_registry import tar_of

DISK = bytes(range(256)) * 4096
LAYER = tar_of({"disk/": b"", "disk/x.img": DISK})
CONFIG = json.dumps({"architecture": "amd64", "os": "linux"}).encode()


def described(content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def at(content: bytes) -> str:
    return f"/v2/a/b/blobs/sha256:{hashlib.sha256(content).hexdigest()}"


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [described(LAYER, "application/vnd.oci.image.layer.v1.tar")],
    }
).encode()
PATHS = {"/v2/": b"{}", "/v2/a/b/manifests/t": MANIFEST, at(CONFIG): CONFIG, at(LAYER): LAYER}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def job(server: FaultServer, tmp_path: Path, *, retries: int = 3) -> Job:
    name = server.origin.partition("://")[2]
    return Job(
        id="x",
        source=RegistrySourceSpec(url=f"docker://{name}/a/b:t", tls=Tls(insecure=True)),
        target=FileTargetSpec(path=str(tmp_path / "disk.img")),
        policy=Policy(retries=retries, stall_timeout=5),
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, retry_after="0"),
        Fault(status=429, body=b'{"errors":[{"code":"TOOMANYREQUESTS"}]}'),
        Fault(drop_after=0),
    ],
    ids=["503", "429", "dropped"],
)
def test_a_fault_of_any_request_is_mended(server: FaultServer, tmp_path: Path, path: str, fault: Fault) -> None:
    for place, content in PATHS.items():
        server.put(place, content, faults=[fault, fault] if place == path else [])
    one = job(server, tmp_path)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is None, outcome.failure
    assert (tmp_path / "disk.img").read_bytes() == DISK
    assert sum(request.path == path for request in server.requests) >= 3


def test_a_fault_of_the_token_service_is_mended(server: FaultServer, tmp_path: Path) -> None:
    challenge = Fault(status=401, headers=(("WWW-Authenticate", f'Bearer realm="{server.origin}/token"'),))
    for place, content in PATHS.items():
        server.put(place, content)
    server.put("/v2/", b"{}", always=challenge)
    server.put("/token", b'{"token":"t"}', faults=[Fault(status=502), Fault(status=504)])
    one = job(server, tmp_path)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is None, outcome.failure
    manifest = next(request for request in server.requests if request.path == "/v2/a/b/manifests/t")
    assert manifest.header("Authorization") == "Bearer t"


def test_the_budget_is_the_policys(server: FaultServer, tmp_path: Path) -> None:
    for place, content in PATHS.items():
        server.put(place, content)
    server.put("/v2/a/b/manifests/t", MANIFEST, always=Fault(status=503))
    one = job(server, tmp_path, retries=1)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "SourceUnavailable"
    assert sum(request.path == "/v2/a/b/manifests/t" for request in server.requests) == 2


def test_a_missing_image_is_not_asked_for_twice(server: FaultServer, tmp_path: Path) -> None:
    server.put("/v2/", b"{}")
    server.put("/v2/a/b/manifests/t", b"", always=Fault(status=404))
    one = job(server, tmp_path)
    outcome = transfer(one, TransferControl(one))
    assert outcome.failure is not None
    assert outcome.failure.code == "SourceNotFound"
    assert sum(request.path == "/v2/a/b/manifests/t" for request in server.requests) == 1
