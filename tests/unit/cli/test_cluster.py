"""Tests of the choice between machine and cluster, and of the errors when a cluster cannot be used."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import yaml

from cdi.cli.main import run
from cdi.cli.session import Session
from tests.unit.cli.conftest import Done

CLUSTER = (("--context", "there"), ("--kubeconfig", "file"), ("--cluster",))
UNUSED = {"kubernetes", "aiohttp", "cdi.kube.client", "cdi.remote.backend"}


@pytest.fixture
def cluster_cdi(tmp_path, monkeypatch, capsys):
    """Run ``cdi`` against a cluster, without CDI_HOME and with the given kubeconfig."""
    monkeypatch.delenv("CDI_HOME", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))

    def call(*arguments, session=None):
        status = run(arguments, session)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture
def kubeconfig(tmp_path):
    """Yield a kubeconfig for a server that does not exist."""
    # The port stays taken, or a server of another test could get it meanwhile; it refuses connections all the same.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        path = tmp_path / "config"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
                    "current-context": "there",
                }
            )
        )
        yield path


@pytest.mark.parametrize("options", CLUSTER)
def test_a_home_and_a_cluster_exclude_each_other(cdi, tmp_path, options):
    done = cdi("get", "dv", *options)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error[UsageError]: CDI_HOME selects this machine")
    assert "Try: unset CDI_HOME" in done.err
    done = cdi("get", "dv", "--home", str(tmp_path), *options)
    assert done.err.startswith("error[UsageError]: --home selects this machine")
    assert "Try: omit --home" in done.err


def test_options_stand_before_or_after_the_command(cluster_cdi, tmp_path):
    for arguments in (("--kubeconfig", "/nowhere", "get", "dv"), ("get", "dv", "--kubeconfig", "/nowhere")):
        done = cluster_cdi(*arguments)
        assert done.status == 10
        assert done.err.startswith("error[ClusterConfigInvalid]: kubeconfig not found (/nowhere)")


def test_no_cluster_is_known(cluster_cdi):
    done = cluster_cdi("get", "dv", "--cluster")
    assert done.status == 10
    assert done.err.startswith(
        "error[ClusterConfigInvalid]: no kubeconfig found, and this process does not run in a pod"
    )


def test_a_context_that_the_file_does_not_have(cluster_cdi, kubeconfig):
    done = cluster_cdi("get", "dv", "--kubeconfig", str(kubeconfig), "--context", "elsewhere")
    assert done.status == 10
    assert done.err.startswith("error[ClusterConfigInvalid]: ")
    assert "elsewhere" in done.err


@pytest.mark.parametrize("arguments", [("get", "dv"), ("wait", "dv/x"), ("describe", "dv/x"), ("version",)])
def test_a_server_that_is_not_there(cluster_cdi, kubeconfig, monkeypatch, arguments):
    monkeypatch.setattr("cdi.remote.backend.START_TIMEOUT", 0.0)
    done = cluster_cdi(*arguments, "--kubeconfig", str(kubeconfig))
    assert (done.status, done.out) == (10, "")
    assert done.err.startswith("error[ClusterUnreachable]: cannot connect to the API server: 127.0.0.1:")
    assert len(done.err.splitlines()) == 1


def test_the_namespace_is_the_contexts_unless_it_is_given(kubeconfig):
    session = Session()
    session.kubeconfig = kubeconfig
    assert session.namespace == "team"
    session.close()
    named = Session()
    named.kubeconfig, named.namespace = kubeconfig, "mine"
    assert named.namespace == "mine"
    assert Session().namespace == "default"


def test_whoever_interrupts_is_told_how_to_come_back(kubeconfig):
    session = Session("kubectl cdi")
    session.kubeconfig = kubeconfig
    session.resume_hint("golden")
    assert f"kubectl cdi wait dv/golden --kubeconfig {kubeconfig} -n team waits for it" in session.after_interrupt
    assert "in the cluster" in session.after_interrupt
    session.close()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("clone", "a", "b"), "cdi clone"),
        (("boot-check", "x"), "cdi boot-check"),
        (("import", "http://h/x.qcow2", "--to", "disk.img"), "--to"),
        (("inspect", "pvc/x"), "cdi inspect of a volume"),
    ],
)
def test_what_only_this_machine_can_do_says_so(cluster_cdi, kubeconfig, arguments, what):
    done = cluster_cdi(*arguments, "--kubeconfig", str(kubeconfig))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error[UsageError]: {what} is not supported in a cluster, only on this machine. Try: ")


def test_as_a_plugin_of_kubectl(cluster_cdi, tmp_path):
    done = cluster_cdi("get", "--help", session=Session("kubectl cdi", cluster=True))
    assert "Usage: kubectl cdi get" in done.out
    done = cluster_cdi("get", "dv", session=Session("kubectl cdi", cluster=True))
    assert done.err.startswith("error[ClusterConfigInvalid]")
    done = cluster_cdi("get", "dv", "--home", str(tmp_path), session=Session("kubectl cdi", cluster=True))
    assert done.status == 0


@pytest.mark.parametrize("command", [["get", "dv"], ["describe", "dv"], ["logs", "x"], ["version"]])
def test_on_this_machine_nothing_of_a_cluster_is_imported(tmp_path, command):
    code = f"""
import sys
from cdi.cli.main import run
run(["--home", {str(tmp_path)!r}, *{command!r}])
print(sorted({UNUSED!r} & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
