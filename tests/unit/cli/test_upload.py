"""Tests of the errors of ``cdi upload`` and ``cdi serve`` before anything is written or sent."""

from __future__ import annotations

import pytest


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a", "--dv", "b"], "two volume names are given"),
        ([], "no volume name is given"),
        (["a", "--insecure"], "only to a cluster"),
        (["a", "--force-bind"], "only to a cluster"),
        (["a", "--uploadproxy-url", "https://x"], "only to a cluster"),
        (["pvc/a"], "is not a DataVolume"),
    ],
)
def test_wrong_options(cdi, image, arguments, why):
    done = cdi("upload", image, *arguments)
    assert (done.status, why in done.err) == (2, True), done.err
    assert cdi("get", "dv").out == ""


def test_a_volume_that_is_there_keeps_its_size(cdi, image, tmp_path):
    manifest = tmp_path / "dv.yaml"
    manifest.write_text(
        "{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataVolume, metadata: {name: a},"
        " spec: {source: {upload: {}}, storage: {resources: {requests: {storage: 1Gi}}}}}"
    )
    assert cdi("apply", "-f", manifest).status == 0
    for option in (["--size", "2Gi"], ["--storage-class", "x"], ["--access-mode", "x"], ["--volume-mode", "Block"]):
        assert "its size and storage cannot be changed" in cdi("upload", image, "--dv", "a", *option).err


def test_a_cluster_takes_no_pipe(cdi, monkeypatch):
    monkeypatch.delenv("CDI_HOME")
    done = cdi("--kubeconfig", "/nowhere", "upload", "-", "a", "--size", "1Gi")
    assert "could not be resumed" in done.err


class TestServe:
    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["--bind", "0.0.0.0"], "unencrypted"),
            (["--bind", "::"], "unencrypted"),
            (["--bind", "nonsense"], "is not an IP address"),
            (["--tls-cert", "x"], "must be given together"),
            (["--tls-cert", "/nowhere", "--tls-key", "/nowhere", "--port", "0"], "cannot load the certificate"),
        ],
    )
    def test_wrong_options(self, cdi, arguments, why):
        done = cdi("serve", *arguments)
        assert (done.status, why in done.err) == (2, True), done.err

    @pytest.mark.parametrize("token", ["short", "has a blank in it, so no", "has~another~mark~in~it"])
    def test_tokens_that_are_none(self, cdi, tmp_path, token):
        (tmp_path / "token").write_text(token)
        assert "the token must have" in cdi("serve", "--port", "0", "--token-file", tmp_path / "token").err

    def test_a_cluster_has_its_own(self, cdi, monkeypatch):
        monkeypatch.delenv("CDI_HOME")
        assert "the upload proxy of the cluster" in cdi("--kubeconfig", "/nowhere", "serve").err
