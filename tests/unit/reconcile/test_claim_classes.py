"""Tests of the effect of the configuration and of static volumes on a DataVolume's claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdi.api.errors import StorageClassMissing
from cdi.reconcile.capabilities import PropertySet
from cdi.reconcile.claim import build_claim
from cdi.reconcile.origin import find_origin
from cdi.reconcile.sizing import Offer
from cdi.reconcile.world import Config, Platform, World
from tests.unit.reconcile.simulation import HTTP, Objects, Simulation, data_volume

ADOPTION = "cdi.kubevirt.io/allowClaimAdoption"


def test_where_the_gate_says_so_every_datavolume_adopts_its_claim():
    sim = Simulation(config=Config(adopts=True))
    sim.add_claim("a")
    assert sim.run().status["phase"] == "Succeeded"
    assert not sim.starts


def test_a_datavolume_may_say_otherwise():
    sim = Simulation(data_volume(HTTP, annotations={ADOPTION: "false"}), config=Config(adopts=True))
    sim.add_claim("a")
    assert sim.run().status["phase"] == "Failed"


class NameOnly(Objects):
    """Objects without a StorageClass; static volumes have the class name ``manual``."""

    def storage_class(self, name):
        return None

    def csi_driver(self, provisioner):
        return False

    def offer(self, storage_class, *, virtualization):
        sets = (PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Block"),) if storage_class == "manual" else ()
        return Offer(storage_class=storage_class, exists=False, sets=sets)


def claim_of(form: str, name: str) -> dict:
    body = data_volume(HTTP)
    size = {"resources": {"requests": {"storage": "1Gi"}}, "storageClassName": name}
    spec = {**size, "accessModes": ["ReadWriteOnce"]} if form == "pvc" else size
    body["spec"] = {"source": body["spec"]["source"], form: spec}
    world = replace(Simulation(body).world(), objects=NameOnly(), platform=Platform(cluster=True))
    assert isinstance(world, World)
    origin = find_origin(world)
    return build_claim(world, origin, None)["spec"]


@pytest.mark.parametrize("form", ["pvc", "storage"])
def test_volumes_made_by_hand_need_no_class(form):
    assert claim_of(form, "manual")["storageClassName"] == "manual"


@pytest.mark.parametrize("form", ["pvc", "storage"])
def test_a_class_that_is_neither_an_object_nor_a_name_of_volumes_is_missing(form):
    with pytest.raises(StorageClassMissing, match="gone does not exist"):
        claim_of(form, "gone")
