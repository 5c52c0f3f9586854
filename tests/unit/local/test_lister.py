"""Tests of the configuration read from this machine's objects."""

from __future__ import annotations

from fractions import Fraction

from cdi.api.job import Proxy
from cdi.local.home import Home
from cdi.local.lister import Observed
from cdi.reconcile.actions import ObjectRef
from cdi.store.base import Change, Key

GROUP = "cdi.kubevirt.io/v1beta1"


def observed(tmp_path, *bodies) -> Observed:
    subject = Observed(Home(tmp_path))
    plurals = {"CDI": "cdis", "CDIConfig": "cdiconfigs"}
    subject.take(
        Change(type="ADDED", key=Key(plurals[body["kind"]], "", body["metadata"]["name"]), body=body) for body in bodies
    )
    return subject


def body(kind: str, name: str, spec):
    return {
        "apiVersion": GROUP,
        "kind": kind,
        "metadata": {"name": name, "resourceVersion": "1", "uid": name},
        "spec": spec,
    }


def test_the_configuration_of_a_cluster_counts_on_a_machine(tmp_path):
    spec = {
        "importProxy": {"HTTPSProxy": "http://p:1", "trustedCAProxy": "ca"},
        "insecureRegistries": ["Registry.example"],
        "preallocation": True,
        "filesystemOverhead": {"global": "0.2", "storageClass": {"a": "0.3"}},
    }
    for subject in (
        observed(tmp_path, body("CDIConfig", "config", spec)),
        observed(tmp_path, body("CDI", "cdi", {"config": spec})),
    ):
        config = subject.config()
        assert config.proxy == Proxy(https="http://p:1")
        assert config.trusted_ca == ObjectRef(kind="ConfigMap", namespace="cdi", name="ca")
        assert config.insecure_registries == {"registry.example"}
        assert config.preallocation
        # Directories reserve no file system overhead.
        assert (config.overhead, config.overheads) == (Fraction(0), {})


def test_the_cdi_object_goes_before_cdiconfig(tmp_path):
    subject = observed(
        tmp_path,
        body("CDIConfig", "config", {"preallocation": True}),
        body("CDI", "cdi", {"config": {"preallocation": False}}),
    )
    assert not subject.config().preallocation
