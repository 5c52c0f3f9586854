"""Tests of the environment variables that a worker inherits."""

from __future__ import annotations

import stat

import pytest

from cdi.client.apply import apply
from cdi.local.environment import Environments, of_process, of_user
from cdi.store.base import Key
from cdi.store.file_store import LocalStore
from tests.unit.client.test_apply import data_volume

A, B = (Key("datavolumes", "default", name) for name in "ab")


def test_only_what_an_import_has_use_for_is_taken():
    given = {
        "PATH": "/bin",
        "HOME": "/home/u",
        "AWS_PROFILE": "p",
        "AWS_SECRET_ACCESS_KEY": "s",
        "https_proxy": "http://p:1",
        "NO_PROXY": "x",
        "LC_ALL": "C.UTF-8",
        "GITHUB_TOKEN": "no",
        "GOOGLE_API_KEY": "no",
        "LD_PRELOAD": "no",
        "PYTHONPATH": "no",
        "SSH_AUTH_SOCK": "no",
    }
    assert of_user(given, "/here") == {name: text for name, text in given.items() if text != "no"}


def test_paths_mean_the_directory_of_whoever_set_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    given = {
        "AWS_CONFIG_FILE": "c",
        "SSL_CERT_FILE": "/abs",
        "AWS_CA_BUNDLE": "~/ca",
        "GOOGLE_APPLICATION_CREDENTIALS": "",
    }
    assert of_user(given, "/here") == {
        "AWS_CONFIG_FILE": "/here/c",
        "SSL_CERT_FILE": "/abs",
        "AWS_CA_BUNDLE": "/home/u/ca",
        "GOOGLE_APPLICATION_CREDENTIALS": "",
    }


def test_a_process_gets_what_it_is_given_and_what_python_needs():
    own = {
        "PATH": "/own",
        "AWS_PROFILE": "starter",
        "LD_LIBRARY_PATH": "/lib",
        "LC_ALL": "C",
        "http_proxy": "x",
        "Z": "z",
    }
    assert of_process(own, {"PATH": "/theirs", "AWS_PROFILE": "theirs"}) == {
        "PATH": "/theirs",
        "AWS_PROFILE": "theirs",
        "LD_LIBRARY_PATH": "/lib",
    }
    assert of_process(own, {}) == {"LD_LIBRARY_PATH": "/lib"}
    assert of_process(own, None) == {"PATH": "/own", "LD_LIBRARY_PATH": "/lib", "LC_ALL": "C"}


@pytest.fixture
def environments(home):
    return Environments(home)


def test_it_is_written_before_the_object_and_for_this_user_alone(home, environments, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "first")
    store, seen = LocalStore(home.objects), []
    with environments.kept() as keep:

        def before(key):
            keep(key)
            seen.append((key, store.list("datavolumes", None)))

        apply(store, [data_volume()], before_write=before)
    assert seen == [(A, [])]
    assert environments.of(A)["AWS_PROFILE"] == "first"
    assert environments.of(B) is None
    path = home.environments / "default" / "a.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.environments.stat().st_mode) == 0o700


def test_the_latest_counts(environments, monkeypatch):
    for name in ("first", "second"):
        monkeypatch.setenv("AWS_PROFILE", name)
        with environments.kept() as keep:
            keep(A)
    assert environments.of(A)["AWS_PROFILE"] == "second"
    monkeypatch.delenv("AWS_PROFILE")
    with environments.kept() as keep:
        keep(A)
    assert "AWS_PROFILE" not in environments.of(A)


def test_only_datavolumes_have_workers(environments):
    with environments.kept() as keep:
        keep(Key("secrets", "default", "a"))
    assert environments.of(A) is None


def test_what_is_not_wanted_goes_but_not_while_something_is_applied(environments):
    assert not environments.collect(lambda _: False)
    with environments.kept() as keep:
        keep(A)
        keep(B)
        assert environments.collect(lambda _: False)
        assert environments.of(A) is not None
    assert not environments.collect(lambda key: key == B)
    assert environments.of(A) is None
    assert environments.of(B) is not None


def test_bytes_that_are_no_text_survive(environments, monkeypatch):
    monkeypatch.setenv("HOME", b"/home/\xff".decode("utf-8", "surrogateescape"))
    with environments.kept() as keep:
        keep(A)
    assert environments.of(A)["HOME"].encode("utf-8", "surrogateescape") == b"/home/\xff"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_file_is_none(home, environments, content):
    with environments.kept() as keep:
        keep(A)
    (home.environments / "default" / "a.json").write_bytes(content)
    assert environments.of(A) is None
