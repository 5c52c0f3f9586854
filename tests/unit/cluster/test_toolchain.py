"""Tests of the choice of Go: the machine's own if it is new enough, else the one that scripts/setup installed."""

import pytest

from tests.cluster import toolchain
from tests.cluster.layout import ClusterError, Layout
from tests.cluster.toolchain import find_go


@pytest.fixture
def layout(tmp_path):
    return Layout(base=tmp_path / "a cache" / "cluster")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that makes a Go of any version, on the PATH or where scripts/setup installs one."""
    monkeypatch.setattr(toolchain, "SYSTEM_GO", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(directory, version):
        directory.mkdir(parents=True, exist_ok=True)
        program = directory / "go"
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
        return str(program)

    make.path = tmp_path / "bin"
    return make


def test_the_machines_own_go_is_preferred(layout, machine):
    own = machine(machine.path, "go1.26.3")
    machine(layout.toolchain / "bin", "go1.27.0")
    assert find_go(layout) == own


@pytest.mark.parametrize("version", ["go1.24.11", "go1.9", "devel", ""])
def test_an_old_go_is_passed_over_for_the_installed_one(layout, machine, version):
    machine(machine.path, version)
    installed = machine(layout.toolchain / "bin", "go1.26.0")
    assert find_go(layout) == installed


def test_without_go_the_remedy_is_named(layout, machine):
    with pytest.raises(ClusterError, match=r"missing: Go 1\.26 or later; scripts/setup cluster installs it"):
        find_go(layout)
    old = machine(machine.path, "go1.24.11")
    with pytest.raises(ClusterError, match=rf"{old} is 1\.24"):
        find_go(layout)


def test_a_go_that_does_not_run_is_no_go(layout, machine):
    program = machine(machine.path, "")
    with open(program, "w") as file:
        file.write("#!/bin/sh\nexit 3\n")
    with pytest.raises(ClusterError, match="is broken"):
        find_go(layout)
