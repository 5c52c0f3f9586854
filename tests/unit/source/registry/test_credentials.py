"""Tests of Docker's config files."""

import base64
import json

import pytest

from cdi.api.errors import SourceCredentialsInvalid
from cdi.source.registry.credentials import RegistryCredentials, identity_from_config
from cdi.source.registry.reference import Reference


def auth(user, password):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def who(auths, name):
    found = identity_from_config(json.dumps({"auths": auths}), Reference.parse(name), where="secret")
    return None if found is None else found.password


@pytest.mark.parametrize(
    ("keys", "name", "chosen"),
    [
        (["quay.io"], "quay.io/a/b", "quay.io"),
        (["https://quay.io"], "quay.io/a/b", "https://quay.io"),
        (["https://quay.io/v2/"], "quay.io/a/b", "https://quay.io/v2/"),
        (["quay.io", "quay.io/a", "quay.io/a/b", "quay.io/a/bc"], "quay.io/a/b", "quay.io/a/b"),
        (["quay.io", "quay.io/a"], "quay.io/ab/c", "quay.io"),
        (["quay.io/x"], "quay.io/a/b", None),
        (["quay.io:5000"], "quay.io/a", None),
        (["localhost:5000"], "localhost:5000/a", "localhost:5000"),
        (["[::1]:5000"], "[::1]:5000/a", "[::1]:5000"),
        (["https://index.docker.io/v1/"], "fedora", "https://index.docker.io/v1/"),
        (["docker.io"], "kubevirt/fedora", "docker.io"),
        (["registry-1.docker.io"], "docker.io/kubevirt/fedora", "registry-1.docker.io"),
        (["docker.io/kubevirt", "docker.io"], "kubevirt/fedora", "docker.io/kubevirt"),
        (["*.example.com"], "a.example.com/x", "*.example.com"),
        (["*.example.com"], "a.b.example.com/x", None),
        (["*.example.com", "a.example.com"], "a.example.com/x", "a.example.com"),
        (["QUAY.io"], "quay.io/a", "QUAY.io"),
        (["evil-quay.io", "quay.io.evil"], "quay.io/a", None),
        ([], "quay.io/a", None),
    ],
)
def test_the_best_entry_is_chosen(keys, name, chosen):
    assert who({key: auth("u", key) for key in keys}, name) == chosen


@pytest.mark.parametrize(
    ("entry", "identity"),
    [
        (auth("u", "p:q"), RegistryCredentials(username="u", password="p:q")),
        (auth("u", "p\0\0"), RegistryCredentials(username="u", password="p")),
        ({"username": "u", "password": "p"}, RegistryCredentials(username="u", password="p")),
        ({**auth("u", "p"), "username": "x", "password": "y"}, RegistryCredentials(username="u", password="p")),
        ({"identitytoken": "t", **auth("u", "")}, RegistryCredentials(identity_token="t")),
        (auth("<token>", "t"), RegistryCredentials(identity_token="t")),
        ({"registrytoken": "t"}, RegistryCredentials(registry_token="t")),
    ],
)
def test_entries_are_understood(entry, identity):
    text = json.dumps({"auths": {"q.io": entry}})
    assert identity_from_config(text, Reference.parse("q.io/a"), where="secret") == identity


def test_the_older_form_has_no_auths_around_it():
    text = json.dumps({"q.io": auth("u", "p")})
    assert identity_from_config(text, Reference.parse("q.io/a"), where="s") == RegistryCredentials(
        username="u", password="p"
    )


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"auths": []}', "[" * 100_000, '{"auths": {"q.io": {}}}', '{"auths": {"q.io": {"auth": "%%%"}}}',
        json.dumps({"auths": {"q.io": {"auth": base64.b64encode(b"no colon").decode()}}}),
        json.dumps({"auths": {"q.io": {"auth": base64.b64encode(b"\xff:\xff").decode()}}}),
        json.dumps({"auths": {"q.io": auth("u", "hidden\r\nX: y")}}),
        json.dumps({"auths": {"q.io": {"registrytoken": "hidden\n"}}}),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_without_its_content(text):
    with pytest.raises(SourceCredentialsInvalid) as raised:
        identity_from_config(text, Reference.parse("q.io/a"), where="secret")
    assert "hidden" not in str(raised.value)


def test_identities_do_not_show():
    assert "hidden" not in repr(RegistryCredentials(username="u", password="hidden", identity_token="hidden"))
