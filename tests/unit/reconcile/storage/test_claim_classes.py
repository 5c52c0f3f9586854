"""Tests of the effect of the configuration and of static volumes on a DataVolume's claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdi.api.errors import StorageClassMissing
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.claim_builder import build_claim
from cdi.reconcile.settings import Platform, ResolvedConfig
from cdi.reconcile.source import resolve_source
from cdi.reconcile.storage.capabilities import PropertySet
from cdi.reconcile.types import StorageDefaults
from tests.unit.reconcile.simulation import HTTP, Objects, Simulation, data_volume

ADOPTION = "cdi.kubevirt.io/allowClaimAdoption"


def test_where_the_gate_says_so_every_datavolume_adopts_its_claim():
    sim = Simulation(config=ResolvedConfig(adopts=True))
    sim.add_claim("a")
    assert sim.run().status["phase"] == "Succeeded"
    assert not sim.starts


def test_a_datavolume_may_say_otherwise():
    sim = Simulation(data_volume(HTTP, annotations={ADOPTION: "false"}), config=ResolvedConfig(adopts=True))
    sim.add_claim("a")
    assert sim.run().status["phase"] == "Failed"


class NameOnly(Objects):
    """Objects without a StorageClass; static volumes have the class name ``manual``."""

    def storage_class(self, name):
        return None

    def csi_driver(self, provisioner):
        return False

    def storage_defaults(self, storage_class, *, virtualization):
        sets = (PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Block"),) if storage_class == "manual" else ()
        return StorageDefaults(storage_class=storage_class, exists=False, sets=sets)


def claim_of(form: str, name: str) -> dict:
    body = data_volume(HTTP)
    size = {"resources": {"requests": {"storage": "1Gi"}}, "storageClassName": name}
    spec = {**size, "accessModes": ["ReadWriteOnce"]} if form == "pvc" else size
    body["spec"] = {"source": body["spec"]["source"], form: spec}
    context = replace(Simulation(body).context(), objects=NameOnly(), platform=Platform(cluster=True))
    assert isinstance(context, ReconcileContext)
    origin = resolve_source(context)
    return build_claim(context, origin, None)["spec"]


@pytest.mark.parametrize("form", ["pvc", "storage"])
def test_volumes_made_by_hand_need_no_class(form):
    assert claim_of(form, "manual")["storageClassName"] == "manual"


@pytest.mark.parametrize("form", ["pvc", "storage"])
def test_a_class_that_is_neither_an_object_nor_a_name_of_volumes_is_missing(form):
    with pytest.raises(StorageClassMissing, match="gone does not exist"):
        claim_of(form, "gone")
