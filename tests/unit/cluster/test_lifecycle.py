"""Tests of the preconditions of a cluster: a missing tool is reported in one line, before anything starts."""

import os
import shutil

import pytest

from tests.cluster import components, lifecycle
from tests.cluster.layout import ClusterError, Layout


def refused(call, *arguments):
    with pytest.raises(ClusterError) as error:
        call(*arguments)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs Linux and root" in refused(lifecycle.check_requirements)


def test_missing_programs_are_named_by_their_packages(monkeypatch):
    real = shutil.which
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: None if program in {"runc", "ctr"} else real(program))
    line = refused(lifecycle.check_requirements)
    assert "runc" in line and "containerd" in line and "scripts/setup cluster" in line


def test_missing_cni_plugins_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(components, "CNI_DIRECTORIES", (tmp_path,))
    assert "containernetworking-plugins" in refused(components.cni_directory)


def test_no_cluster_is_no_place_to_run_something(tmp_path):
    assert "no test cluster is up" in refused(lifecycle.inside, Layout(base=tmp_path), "true")


def test_waiting_ends_and_tells_what_the_matter_was():
    def never():
        raise OSError("connection refused")

    assert "the thing did not come up within 0 s: connection refused" in refused(
        lifecycle.wait, "the thing", never, 0.0
    )
