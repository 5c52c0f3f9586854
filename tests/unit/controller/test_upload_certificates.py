"""Tests of the upload certificates: issued in time, an administrator's own is kept, running servers are renewed."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509

from cdi.api.kinds import CLAIMS, SECRETS, SERVICES
from cdi.controller import upload_certificates
from cdi.controller.certificates import CLIENT_SIGNER, SERVER_SIGNER, CertificateManager
from cdi.controller.upload_certificates import (
    CLIENT_CERTIFICATE,
    PROXY_CERTIFICATE,
    PROXY_SIGNER,
    RETRY_INTERVAL,
    SYNC_INTERVAL,
    UploadCertificateRotator,
)
from cdi.kube import pki
from cdi.kube.certificate_annotations import ANN_NOT_AFTER, ANN_NOT_BEFORE
from cdi.kube.certificates import Lifetimes
from tests.unit.controller.objects import body
from tests.unit.kube.test_certificates import Api

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@dataclass
class Scene:
    api: Api = field(default_factory=Api)
    services: list[Any] = field(default_factory=list)
    override: str = ""
    exposed: str | None = ""
    changes: int = 0
    now: dt.datetime = NOW
    prefix: str = "cdi"

    def __post_init__(self) -> None:
        certifier = CertificateManager(self.api, "cdi", Lifetimes, prefix=self.prefix, now=lambda: self.now)  # type: ignore[arg-type]
        self.made = UploadCertificateRotator(
            self.api,  # type: ignore[arg-type]
            certifier,
            "cdi",
            lifetimes=Lifetimes,
            services=lambda: self.services,
            override=lambda: self.override,
            exposed=lambda: self.exposed,
            changed=self._changed,
            now=lambda: self.now,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def put(self, name: str, fields: dict[str, bytes]) -> None:
        """Create a Secret as an administrator would."""
        data = {key: base64.b64encode(content).decode() for key, content in fields.items()}
        await self.api.create(SECRETS, {"metadata": {"name": name, "namespace": "cdi"}, "data": data})

    def secret(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(text) for key, text in self.api.objects["secrets", name]["data"].items()}

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.secret(name)["tls.crt"])[0]

    def bundle(self, name: str) -> str:
        found: str = self.api.objects["configmaps", f"{name}-bundle"]["data"]["ca-bundle.crt"]
        return found


def hosts(certificate: x509.Certificate) -> list[str]:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    )


async def test_everything_is_there_after_one_look() -> None:
    scene = Scene()
    assert not scene.made.known
    await scene.made.sync()
    await scene.made.look_at_client()
    assert scene.made.known
    client = scene.certificate(CLIENT_CERTIFICATE)
    assert client.subject.rfc4514_string() == "CN=client.upload-server.cdi.kubevirt.io"
    assert pki.issued_by(client, pki.read_bundle(scene.bundle(CLIENT_SIGNER)))
    assert scene.secret(CLIENT_CERTIFICATE)["ca.crt"].decode() == scene.bundle(SERVER_SIGNER)
    own = scene.certificate(PROXY_CERTIFICATE)
    assert "cdi-uploadproxy.cdi.svc" in hosts(own)
    assert pki.issued_by(own, pki.read_bundle(scene.bundle(PROXY_SIGNER)))
    assert scene.made.authorities == scene.bundle(PROXY_SIGNER)
    assert scene.changes == 1


@pytest.mark.parametrize(
    "name", [SERVER_SIGNER, CLIENT_SIGNER, PROXY_SIGNER, PROXY_CERTIFICATE, CLIENT_CERTIFICATE], ids=str
)
async def test_a_rotation_that_is_requested_is_done_at_the_next_sync(name: str) -> None:
    """Edit the annotation as rotation tools do, right after the controller has read the Secret."""
    scene = Scene()
    scene.now += HOUR
    await scene.made.sync()
    await scene.made.look_at_client()
    before = scene.certificate(name)
    annotations = scene.api.objects["secrets", name]["metadata"]["annotations"]
    start = dt.datetime.fromisoformat(annotations[ANN_NOT_BEFORE])
    annotations[ANN_NOT_AFTER] = (start + dt.timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    scene.now += dt.timedelta(seconds=SYNC_INTERVAL)
    await scene.made.sync()
    await scene.made.look_at_client()
    after = scene.certificate(name)
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc > before.not_valid_after_utc
    annotations = scene.api.objects["secrets", name]["metadata"]["annotations"]
    assert dt.datetime.fromisoformat(annotations[ANN_NOT_AFTER]) == after.not_valid_after_utc
    if name.endswith("signer"):
        trusted = pki.read_bundle(scene.bundle(name))
        assert before in trusted
        assert after in trusted


async def test_beside_another_cdi_in_its_namespace_it_leaves_that_one_s_alone() -> None:
    first, second = Scene(), Scene(prefix="second")
    second.api = first.api
    second.__post_init__()
    await first.made.sync()
    await first.made.look_at_client()
    before = dict(first.api.objects)
    await second.made.sync()
    await second.made.look_at_client()
    assert {key: body for key, body in first.api.objects.items() if key in before} == before
    made = {name for _, name in first.api.objects.keys() - before.keys()}
    assert made and all(name.startswith("second-upload") for name in made)
    assert hosts(second.certificate("second-uploadproxy-server-cert"))[0] == "second-uploadproxy.cdi.svc"
    assert second.made.authorities != first.made.authorities


async def test_a_second_look_writes_nothing_and_tells_nobody() -> None:
    scene = Scene()
    await scene.made.sync()
    await scene.made.look_at_client()
    before = len(scene.api.writes)
    await scene.made.sync()
    await scene.made.look_at_client()
    assert (len(scene.api.writes), scene.changes) == (before, 1)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("uploads.example.com", "uploads.example.com"),
        ("https://uploads.example.com", "uploads.example.com"),
        ("uploads.example.com:8443", "uploads.example.com"),
        ("https://[::1", None),
        ("not a host", None),
    ],
)
async def test_the_proxy_s_certificate_is_for_where_it_is_reached(override: str, name: str | None) -> None:
    scene = Scene(override=override)
    await scene.made.sync()
    named = [host for host in hosts(scene.certificate(PROXY_CERTIFICATE)) if "uploadproxy" not in host]
    assert named == ([name] if name else [])


async def test_that_nothing_is_known_is_told_too() -> None:
    """Waiters must continue: an administrator's certificate need not come with its authorities."""
    scene = Scene()
    theirs = pki.new_authority("theirs", pki.AUTHORITY_LIFETIME, NOW)
    await scene.put(PROXY_CERTIFICATE, {"tls.crt": theirs.certificate, "tls.key": theirs.key})
    await scene.made.sync()
    assert (scene.made.known, scene.made.authorities, scene.changes) == (True, "", 1)


async def test_the_certificate_is_for_the_host_under_which_the_proxy_is_exposed() -> None:
    scene = Scene(exposed="uploads.example.com")
    await scene.made.sync()
    assert scene.made.host == "uploads.example.com"
    assert "uploads.example.com" in hosts(scene.certificate(PROXY_CERTIFICATE))
    scene.exposed = ""
    await scene.made.sync()
    assert (scene.made.host, scene.changes) == ("", 2)


async def test_no_certificate_is_issued_before_the_host_is_known() -> None:
    scene = Scene(exposed=None)
    await scene.made.sync()
    assert (scene.made.known, scene.changes) == (False, 0)
    assert ("secrets", PROXY_CERTIFICATE) not in scene.api.objects


async def test_a_change_of_the_host_starts_the_next_round_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_certificates, "RETRY_INTERVAL", 3600.0)
    scene, rounds = Scene(exposed=None), asyncio.Queue[None]()

    def exposed() -> str | None:
        rounds.put_nowait(None)
        return scene.exposed

    monkeypatch.setattr(scene.made, "_exposed", exposed)
    running = asyncio.ensure_future(scene.made.run())
    async with asyncio.timeout(60):
        await rounds.get()
        scene.exposed = "uploads.example.com"
        scene.made.wake()
        await rounds.get()
    running.cancel()


async def test_an_administrator_s_own_certificate_is_kept() -> None:
    scene = Scene()
    signer = pki.new_authority("theirs", pki.AUTHORITY_LIFETIME, NOW)
    theirs = pki.new_certificate(signer, "x", hosts=("x",), lifetime=pki.CERTIFICATE_LIFETIME, now=NOW)
    fields = {"tls.crt": theirs.certificate, "tls.key": theirs.key, "ca.crt": signer.certificate}
    await scene.put(PROXY_CERTIFICATE, fields)
    await scene.made.sync()
    assert scene.secret(PROXY_CERTIFICATE)["tls.crt"] == theirs.certificate
    assert scene.made.authorities == signer.certificate.decode()


async def test_what_fails_of_one_certificate_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed renewal is retried soon."""
    scene, pauses = Scene(services=[SERVICE]), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise asyncio.CancelledError
        scene.now += dt.timedelta(minutes=2)

    monkeypatch.setattr(scene.made, "_rest", sleep)
    await scene.made.sync()
    await scene.made.look_at_client()
    for gone in (CLIENT_SIGNER, CLIENT_CERTIFICATE):
        del scene.api.objects["secrets", gone]
    scene.now += 2 * HOUR
    with pytest.raises(asyncio.CancelledError):
        await scene.made.run()
    assert pauses == [RETRY_INTERVAL, SYNC_INTERVAL]
    assert pki.issued_by(scene.certificate(CLIENT_CERTIFICATE), pki.read_bundle(scene.bundle(CLIENT_SIGNER)))
    assert scene.secret("cdi-upload-a")["ca.crt"].decode() == scene.bundle(CLIENT_SIGNER)


CLAIM = body(CLAIMS, "a")
SERVICE = body(SERVICES, "cdi-upload-a", owner=CLAIM)


async def test_a_running_server_s_certificate_is_renewed_in_time() -> None:
    scene = Scene()
    await scene.made.renew(SERVICE)
    first = scene.secret("cdi-upload-a")
    scene.now = NOW + 11 * HOUR
    await scene.made.renew(SERVICE)
    assert scene.secret("cdi-upload-a") == first
    scene.now = NOW + 13 * HOUR
    await scene.made.renew(SERVICE)
    assert scene.secret("cdi-upload-a")["tls.crt"] != first["tls.crt"]
    assert hosts(scene.certificate("cdi-upload-a")) == ["cdi-upload-a.ns.svc", "cdi-upload-a.ns.svc.cluster.local"]


async def test_a_server_trusts_new_clients_before_the_proxy_is_one() -> None:
    """The servers have trusted the proxy's certificate for a while, at every moment of two days."""
    scene = Scene()
    seen: list[tuple[dt.datetime, str]] = []
    for minute in range(0, 48 * 60, 5):
        scene.now = NOW + dt.timedelta(minutes=minute)
        await scene.made.look_at_client()
        await scene.made.renew(SERVICE)
        seen.append((scene.now, scene.secret("cdi-upload-a")["ca.crt"].decode()))
        client = scene.certificate(CLIENT_CERTIFICATE)
        settled = [text for moment, text in seen if moment <= scene.now - dt.timedelta(minutes=5)] or [seen[0][1]]
        assert pki.is_valid(client, scene.now)
        assert pki.issued_by(client, pki.read_bundle(settled[-1]))
    assert len({text for _, text in seen}) > 1


@pytest.mark.parametrize(
    "service",
    [body(SERVICES, "mine"), body(SERVICES, "going", owner=CLAIM, deletionTimestamp="2026-01-01T00:00:00Z")],
)
async def test_other_services_get_no_certificate(service: Any) -> None:
    scene = Scene()
    await scene.made.renew(service)
    assert not scene.api.objects
