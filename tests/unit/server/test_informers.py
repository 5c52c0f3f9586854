"""Tests of the certificate and TLS settings in CDI and CDIConfig."""

import asyncio
import datetime as dt
import ssl

import pytest

from cdi.api.errors import ClusterUnavailable, NotFound
from cdi.reconcile.storage.capabilities import PropertySet
from cdi.server.informers import Observed
from tests.unit.api.manifests import sound, spoilt

HOUR = dt.timedelta(hours=1)


class Read:
    """A synced cache."""

    def __init__(self, bodies):
        self.synced = asyncio.Event()
        self.synced.set()
        self._bodies = {body["metadata"]["name"]: body for body in bodies}

    def get(self, namespace, name):
        return self._bodies.get(name)

    def values(self):
        return list(self._bodies.values())

    def __iter__(self):
        return iter(self.values())


class Elsewhere:
    """An API server that knows only the objects in `late`."""

    def __init__(self):
        self.late = []

    async def get(self, resource, namespace, name):
        for body in self.late:
            if (body["kind"], body["metadata"]["name"]) == (resource.kind, name):
                return body
        raise NotFound(name)


class Known(Observed):
    """Caches with these objects, which no watch updates."""

    def __init__(self, *bodies):
        super().__init__(Elsewhere(), lambda: None)
        reflectors = {
            "StorageClass": self._classes, "StorageProfile": self._profiles, "CDIConfig": self._configs,
            "CDI": self._installations,
        }  # fmt: skip
        for kind, reflector in reflectors.items():
            reflector.cache = Read([body for body in bodies if body["kind"] == kind])


def cdi(**spec):
    return spoilt("CDI", **spec)


@pytest.mark.parametrize(
    ("wanted", "authority", "certificate"),
    [
        (None, (48, 24), (24, 12)),
        ({"ca": {"duration": "96h0m0s", "renewBefore": "48h0m0s"}}, (96, 48), (24, 12)),
        ({"server": {"duration": "12h"}}, (48, 24), (12, 6)),
        ({"server": {"renewBefore": "2h"}}, (48, 24), (24, 2)),
        ({"server": {"duration": "1h", "renewBefore": "1h"}}, (48, 24), (24, 12)),
        ({"ca": {"duration": "1s"}}, (48, 24), (24, 12)),
        ({"ca": {"duration": "soon"}}, (48, 24), (24, 12)),
    ],
)
def test_lifetimes_are_those_of_the_cdi_object_where_they_make_sense(wanted, authority, certificate):
    observed = Known(*([cdi(certConfig=wanted)] if wanted else []))
    lifetimes = observed.lifetimes
    found = [(one.duration / HOUR, one.renew_before / HOUR) for one in (lifetimes.authority, lifetimes.server)]
    assert found == [authority, certificate]


def test_tls_is_that_of_the_configuration():
    assert Known().policy.minimum is ssl.TLSVersion.TLSv1_2
    config = spoilt("CDIConfig", tlsSecurityProfile={"type": "Modern", "modern": {}})
    assert Known(config).policy.minimum is ssl.TLSVersion.TLSv1_3


def test_a_configuration_that_cannot_be_read_counts_as_none(caplog):
    broken = sound("CDIConfig") | {"spec": {"featureGates": 5}}
    assert Known(broken).policy.minimum is ssl.TLSVersion.TLSv1_2
    assert "cannot decode" in caplog.text


def test_gates_and_rendering_are_followed():
    assert not Known().adopts_claims()
    assert Known(spoilt("CDIConfig", featureGates=["DataVolumeClaimAdoption"])).adopts_claims()
    assert Known().renders_claims()
    assert not Known(spoilt("CDIConfig", webhookPvcRendering="Disabled")).renders_claims()


def storage_class(**more):
    return {"kind": "StorageClass", "metadata": {"name": "odd", "annotations": {}}, "provisioner": "odd.example"} | more


async def test_what_a_class_can_be_is_what_its_profile_has_learned():
    learned = [{"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}]
    profile = {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": {"name": "odd"}, "spec": {},
        "status": {"claimPropertySets": learned},
    }  # fmt: skip
    assert (await Known(storage_class()).storage_defaults("odd", archive=False)).sets == ()
    found = await Known(storage_class(), profile).storage_defaults("odd", archive=False)
    assert found.sets == (PropertySet(access_modes=("ReadWriteMany",), volume_mode="Block"),)
    said = profile | {"spec": {"claimPropertySets": [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}]}}
    found = await Known(storage_class(), said).storage_defaults("odd", archive=False)
    assert found.sets[0] == PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Filesystem")


async def test_nothing_is_offered_before_the_classes_are_known():
    observed = Observed(None, lambda: None)
    assert observed.unsynced
    with pytest.raises(ClusterUnavailable):
        await observed.storage_defaults(None, archive=False)


async def test_a_class_that_was_made_a_moment_ago_is_looked_for():
    observed = Known()
    observed._client.late = [
        storage_class(),
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": {"name": "odd"},
            "spec": {"claimPropertySets": [{"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}]},
        },
    ]  # fmt: skip
    found = await observed.storage_defaults("odd", archive=False)
    assert found.sets == (PropertySet(access_modes=("ReadWriteMany",), volume_mode="Block"),)
