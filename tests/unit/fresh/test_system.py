"""Tests that a fresh system gets the settings that this machine's clients use, and nothing else of this machine."""

import subprocess

import pytest

from tests.fresh import system
from tests.fresh.cases import CASES, Case

CASE = Case(name="x", suite="trixie", checkout="/srv/cdi", steps=())


def test_the_environment_is_a_logins_and_says_how_registries_are_reached(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example.org/simple")
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("SSL_CERT_FILE", str(system.BUNDLE))
    monkeypatch.setenv("PIP_FIND_LINKS", "/a/place/of/this/machine")
    monkeypatch.setenv("VIRTUAL_ENV", "/venv")
    made = system.environment(CASE)
    assert made["PIP_INDEX_URL"] == "https://index.example.org/simple"
    assert made["https_proxy"] == "http://proxy.example.org:3128"
    assert made["SSL_CERT_FILE"] == str(system.BUNDLE)
    assert not {"PIP_FIND_LINKS", "VIRTUAL_ENV", "HOME", "CDI_CACHE"} & set(made)
    assert "/usr/sbin" in made["PATH"].split(":")


def test_whatever_is_written_into_the_checkout_is_found(tmp_path):
    place = tmp_path / "srv" / "cdi"
    place.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", place], check=True)
    assert system.untracked(tmp_path, CASE) == []
    (place / ".git" / "info" / "exclude").write_text("__pycache__/\n")
    (place / "__pycache__").mkdir()
    (place / "__pycache__" / "x.pyc").touch()
    (place / "some file").touch()
    assert sorted(system.untracked(tmp_path, CASE)) == ["__pycache__/", "some file"]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_each_release_is_tried_as_root_and_as_a_user(suite):
    full = [case for case in CASES if case.suite == suite and not any(step.refusal for step in case.steps)]
    assert {case.user == "root" for case in full} == {True, False}
    assert all(case.sudo == "freely" for case in full if case.user != "root")


def test_some_paths_have_spaces_and_some_systems_no_home():
    assert any(" " in case.checkout and " " in (case.home or "") for case in CASES)
    assert any(case.cache and " " in case.cache for case in CASES)
    assert any(case.home is None for case in CASES)


def test_what_needs_no_network_later_is_run_again_without_one():
    again = [case for case in CASES if any(step.offline for step in case.steps)]
    assert again
    for case in again:
        commands = [step.command for step in case.steps if not step.offline]
        assert all(step.command in commands for step in case.steps if step.offline)


def test_without_a_network_a_command_has_a_namespace_of_its_own(tmp_path):
    assert "--net" not in system.entering(tmp_path, "root", "/")
    command = system.entering(tmp_path, "root", "/", offline=True)
    assert command.index("unshare") < command.index("--net") < command.index("--offline")
