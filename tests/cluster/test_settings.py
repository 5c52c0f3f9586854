"""Tests that change the cluster-wide configuration restore it afterwards."""

from __future__ import annotations

import secrets

import pytest

from tests.cluster.settings import kept_config

BEFORE = {"filesystemOverhead": {"global": "0.1"}, "logVerbosity": 2}


@pytest.fixture
def name(cluster):
    chosen = f"not-the-config-{secrets.token_hex(4)}"
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", "--filename=crds/")
    cluster.kubectl.run("wait", "--for=condition=Established", "crd/cdiconfigs.cdi.kubevirt.io")
    yield chosen
    cluster.kubectl.delete("cdiconfig", chosen)


def config(name, spec):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "CDIConfig",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_settings_that_were_there_are_there_again(cluster, name, how):
    kubectl = cluster.kubectl
    kubectl.create(config(name, BEFORE))
    with kept_config(kubectl, name):
        if how == "deleted":
            kubectl.delete("cdiconfig", name)
        else:
            kubectl.merge("cdiconfig", name, {"spec": {"preallocation": True, "logVerbosity": None}})
    assert kubectl.get("cdiconfig", name)["spec"] == BEFORE


def test_settings_that_were_not_there_are_gone(cluster, name):
    kubectl = cluster.kubectl
    with pytest.raises(ZeroDivisionError), kept_config(kubectl, name):
        kubectl.create(config(name, {"preallocation": True}))
        raise ZeroDivisionError
    assert name not in {each["metadata"]["name"] for each in kubectl.get_all("cdiconfigs")}
