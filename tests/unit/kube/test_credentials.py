from __future__ import annotations

import base64
import json
import os
import stat

import pytest
import trustme
import yaml

from cdi.api.errors import ClusterConfigInvalid, ClusterTlsUntrusted
from cdi.kube import credentials
from cdi.kube.credentials import KubeconfigCredentials, ServiceAccountCredentials, find, proxy_for


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", *os.environ):
        if "proxy" in name.lower() or name.startswith("KUBE"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write(path, user, *, cluster=None, context=None, current="here"):
    context = {"cluster": "c", **({"user": "u"} if user is not None else {}), **(context or {})}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": current,
        "clusters": [{"name": "c", "cluster": cluster or {"server": "http://api.test:8080/"}}],
        "contexts": [
            {"name": "here", "context": context},
            {"name": "there", "context": {**context, "namespace": "far"}},
        ],
        "users": [{"name": "u", "user": user}] if user is not None else [],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def plugin(path, status, code=0):
    answer = json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
    path.write_text(f"#!/bin/sh\necho x >> {path}.calls\ncat <<'E'\n{answer}\nE\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}}


def calls(path) -> int:
    return len((path.parent / f"{path.name}.calls").read_text().split())


async def test_a_token_and_the_namespace_of_the_context(tmp_path):
    found = find(write(tmp_path / "config", {"token": "secret"}), None)
    access = await found.access()
    assert (access.server, access.authorization, access.context) == ("http://api.test:8080", "Bearer secret", None)
    assert found.namespace == "default"
    found = find(str(tmp_path / "config"), "there")
    await found.access()
    assert found.namespace == "far"


async def test_name_and_password(tmp_path):
    access = await find(write(tmp_path / "config", {"username": "u", "password": "p"}), None).access()
    assert access.authorization == "Basic " + encoded(b"u:p")


async def test_a_certificate_of_the_client(tmp_path, authority):
    issued = authority.issue_cert("user.test")
    user = {
        "client-certificate-data": encoded(issued.cert_chain_pems[0].bytes()),
        "client-key-data": encoded(issued.private_key_pem.bytes()),
    }
    cluster = {
        "server": "https://api.test",
        "certificate-authority-data": encoded(authority.cert_pem.bytes()),
        "tls-server-name": "kubernetes",
        "proxy-url": "http://proxy.test:3128",
    }
    access = await find(write(tmp_path / "config", user, cluster=cluster), None).access()
    assert access.context is not None
    assert len(access.context.get_ca_certs()) == 1
    assert (access.server_name, access.proxy, access.authorization) == ("kubernetes", "http://proxy.test:3128", None)


async def test_a_certificate_that_is_none_is_named(tmp_path):
    cluster = {"server": "https://api.test", "certificate-authority-data": encoded(b"nonsense")}
    with pytest.raises(ClusterTlsUntrusted):
        await find(write(tmp_path / "config", {"token": "x"}, cluster=cluster), None).access()


async def test_a_plug_in_s_token_is_kept_until_it_expires_or_is_refused(tmp_path):
    expires = "2026-01-01T01:00:00Z"
    user = plugin(tmp_path / "plugin", {"token": "made", "expirationTimestamp": expires})
    now = 1767225600.0  # 2026-01-01T00:00:00Z
    found = KubeconfigCredentials(write(tmp_path / "config", user), None, now=lambda: now)
    for _ in range(3):
        assert (await found.access()).authorization == "Bearer made"
    assert calls(tmp_path / "plugin") == 1
    now += 10
    assert await found.invalidate()
    await found.access()
    assert calls(tmp_path / "plugin") == 2
    assert not await found.invalidate()  # a server that rejects every token does not start a plug-in per request
    now += 3540
    for _ in range(3):  # nor does a token that always expires soon
        await found.access()
    assert calls(tmp_path / "plugin") == 3


@pytest.mark.parametrize(("status", "code"), [({"token": "x"}, 1), ({}, 0)])
async def test_a_plug_in_that_gives_nothing_is_named(tmp_path, status, code):
    user = plugin(tmp_path / "plugin", status, code)
    with pytest.raises(ClusterConfigInvalid, match="plug-in"):
        await find(write(tmp_path / "config", user), None).access()


async def test_a_context_without_a_user_is_anonymous(tmp_path):
    assert (await find(write(tmp_path / "config", None), None).access()).authorization is None


@pytest.mark.parametrize("text", ["", "[]", "x: [", "apiVersion: v1\nkind: Config\n", "\x00", "current-context: x\ncontexts: 5\n"])  # fmt: skip
async def test_a_file_that_is_no_kubeconfig_is_named(tmp_path, text):
    (tmp_path / "config").write_text(text)
    with pytest.raises(ClusterConfigInvalid) as caught:
        await find(str(tmp_path / "config"), None).access()
    assert caught.value.where == str(tmp_path / "config")


async def test_a_context_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ClusterConfigInvalid, match="nowhere"):
        await find(write(tmp_path / "config", {"token": "x"}), "nowhere").access()


async def test_files_are_looked_for_in_kubectl_s_order(tmp_path, monkeypatch):
    with pytest.raises(ClusterConfigInvalid):
        find(None, None)
    with pytest.raises(ClusterConfigInvalid):
        find(str(tmp_path / "none"), None)
    (tmp_path / "home" / ".kube").mkdir(parents=True)
    write(tmp_path / "home" / ".kube" / "config", {"token": "home"})
    assert (await find(None, None).access()).authorization == "Bearer home"
    named = write(tmp_path / "named", {"token": "named"})
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{named}")
    assert (await find(None, None).access()).authorization == "Bearer named"
    given = write(tmp_path / "given", {"token": "given"})
    assert (await find(given, None).access()).authorization == "Bearer given"


async def test_a_pod_s_token_is_read_again_when_it_was_refused(tmp_path, monkeypatch, authority):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "namespace").write_text("ours")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    found = ServiceAccountCredentials(tmp_path)
    access = await found.access()
    assert (access.server, access.authorization) == ("https://[fd00::1]:443", "Bearer one")
    assert found.namespace == "ours"
    (tmp_path / "token").write_text("two")
    assert await found.invalidate()
    idempotent = await found.access()
    assert idempotent.authorization == "Bearer two"
    assert idempotent.context is access.context  # the same authority: connections are kept
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    await found.invalidate()
    assert (await found.access()).context is not access.context


async def test_a_pod_without_a_token_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", tmp_path)
    assert isinstance(find(None, None), ServiceAccountCredentials)
    with pytest.raises(ClusterConfigInvalid, match="token"):
        await ServiceAccountCredentials(tmp_path).access()


@pytest.mark.parametrize(
    ("server", "no_proxy", "proxied"),
    [
        ("https://api.test", "", True),
        ("https://api.test", "other.test,.test", False),
        ("https://10.1.2.3:6443", "192.168.0.0/16", True),
        ("https://10.1.2.3:6443", "nonsense/x, 10.0.0.0/8", False),
        ("https://[fd00::5]", "fd00::/8", False),
        ("https://127.0.0.1:6443", "", False),
        ("https://localhost:6443", "", False),
        ("http://api.test", "", False),
    ],
)
def test_the_environment_s_proxy(monkeypatch, server, no_proxy, proxied):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(server) == ("http://proxy.test:3128" if proxied else None)


@pytest.mark.parametrize("port", ["99999", "none"])
async def test_a_server_with_an_invalid_port_is_reported_with_its_kubeconfig(tmp_path, monkeypatch, port):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    config = write(tmp_path / "config", {"token": "x"}, cluster={"server": f"https://api.test:{port}"})
    with pytest.raises(ClusterConfigInvalid, match=r"[Pp]ort") as caught:
        await find(config, None).access()
    assert str(tmp_path / "config") in str(caught.value)
