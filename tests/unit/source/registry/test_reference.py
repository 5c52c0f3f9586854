"""Tests of image references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import CdiError, SourceUrlInvalid
from cdi.source.registry.reference import Reference

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "host", "path", "selector"),
    [
        ("docker://quay.io/containerdisks/fedora:40", "quay.io", "containerdisks/fedora", "40"),
        ("quay.io/containerdisks/fedora", "quay.io", "containerdisks/fedora", "latest"),
        ("docker:quay.io/a/b", "quay.io", "a/b", "latest"),
        ("docker://fedora", "docker.io", "library/fedora", "latest"),
        ("docker://kubevirt/fedora:1", "docker.io", "kubevirt/fedora", "1"),
        ("docker://docker.io/fedora", "docker.io", "library/fedora", "latest"),
        ("docker://index.docker.io/kubevirt/fedora", "docker.io", "kubevirt/fedora", "latest"),
        ("docker://localhost/a", "localhost", "a", "latest"),
        ("docker://localhost:5000/a:b", "localhost:5000", "a", "b"),
        ("docker://10.0.0.1:5000/a/b/c:v1.2", "10.0.0.1:5000", "a/b/c", "v1.2"),
        ("docker://[::1]:5000/a:b", "[::1]:5000", "a", "b"),
        ("docker://[2001:db8::1]/a", "[2001:db8::1]", "a", "latest"),
        ("docker://Registry.Example/a", "registry.example", "a", "latest"),
        (f"docker://q.io/a/b@sha256:{HEX}", "q.io", "a/b", f"sha256:{HEX}"),
        (f"docker://q.io/a/b:tag@sha256:{HEX.upper()}", "q.io", "a/b", f"sha256:{HEX}"),
        ("docker://image-registry.openshift-image-registry.svc:5000/ns/a__b-c.d", "image-registry.openshift-image-registry.svc:5000", "ns/a__b-c.d", "latest"),
    ],
)  # fmt: skip
def test_names_are_understood(text, host, path, selector):
    found = Reference.parse(text)
    assert (found.host, found.path, found.selector) == (host, path, selector)


@pytest.mark.parametrize(
    "text",
    [
        "", "docker://", "docker://q.io/", "docker://q.io/A", "docker://q.io/a:", "docker://q.io/a:b:c", "docker://q.io/a b",
        "docker://q.io/a@sha256:abc", "docker://q.io/a@md5:" + "a" * 32, "docker://user:secret@q.io/a", "docker://q.io:0/a",
        "docker://q.io:99999/a", "docker://q.io/../a", "docker://q.io//a", "docker://[::g]/a", "https://q.io/a",
        "docker://q.io/a\r\nHost: x", "docker://q.io/" + "a" * 300, "docker://-q.io/a", "docker://q.io/a?x=y",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(SourceUrlInvalid) as raised:
        Reference.parse(text)
    assert "user:secret" not in raised.value.message


def test_docker_hub_is_served_elsewhere():
    assert Reference.parse("docker://fedora").server == "registry-1.docker.io"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_loopback_is_known(host, loopback):
    assert Reference.parse(f"docker://{host}/a").loopback is loopback


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused(text):
    try:
        found = Reference.parse(text)
    except CdiError:
        return
    assert Reference.parse(str(found)) == Reference.parse(str(Reference.parse(str(found))))
    assert not set(f"{found.server}{found.path}{found.selector}") & set(" \r\n?#%")
