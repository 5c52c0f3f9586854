"""Tests that claims with the label applyStorageProfile are completed, and all others are unchanged."""

from fractions import Fraction

import pytest

from cdi.api.errors import ClusterUnavailable
from cdi.api.validation import parse
from cdi.reconcile.storage.capabilities import PropertySet
from cdi.reconcile.types import StorageDefaults
from cdi.server.mutation import mutate_claim
from cdi.server.review import Allowed, Refused, read
from tests.unit.api.manifests import obj
from tests.unit.server.reviews import BY_NAME, body

LABEL = {"cdi.kubevirt.io/applyStorageProfile": "true"}
HOOK = BY_NAME["pvc-mutate"]
BLOCK = PropertySet(access_modes=("ReadWriteMany",), volume_mode="Block")
FILES = PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Filesystem")


class Storage:
    def __init__(self, *sets, renders=True, name="fast", populator=None, claim=None, snapshot=None):
        self._objects = {"populator": populator, "claim": claim, "snapshot": snapshot}
        self._offer = StorageDefaults(storage_class=name, sets=sets, overhead=Fraction(6, 100))
        self._renders = renders
        self.asked = []

    def renders_claims(self):
        return self._renders

    async def storage_defaults(self, storage_class, *, archive):
        self.asked.append((storage_class, archive))
        return self._offer

    def _read(self, kind, namespace, name):
        found = self._objects[kind]
        return found if found is not None and (namespace, name) == ("default", "golden") else None

    async def clone_source(self, namespace, name):
        return self._read("populator", namespace, name)

    async def claim(self, namespace, name):
        return self._read("claim", namespace, name)

    async def snapshot(self, namespace, name):
        return self._read("snapshot", namespace, name)


async def ask(storage, *, labels=LABEL, annotations=None, **spec):
    metadata = {"name": "data", "namespace": "default", "labels": labels, "annotations": annotations or {}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    return await mutate_claim(read(body(claim), HOOK), storage)


def sized(text):
    return {"requests": {"storage": text}}


def patched(verdict):
    assert isinstance(verdict, Allowed)
    assert {each["op"] for each in verdict.patch} <= {"add"}
    return {each["path"]: each["value"] for each in verdict.patch}


async def test_everything_that_is_left_open_is_filled_in():
    assert patched(await ask(Storage(BLOCK, FILES), resources=sized("1Gi"))) == {
        "/spec/accessModes": ["ReadWriteMany"],
        "/spec/volumeMode": "Block",
        "/spec/storageClassName": "fast",
    }


async def test_a_file_system_takes_its_share_of_the_size():
    assert patched(await ask(Storage(FILES), resources=sized("100Mi"))) == {
        "/spec/accessModes": ["ReadWriteOnce"],
        "/spec/volumeMode": "Filesystem",
        "/spec/storageClassName": "fast",
        "/spec/resources": {"requests": {"storage": "106Mi"}},
    }


async def test_the_mode_of_the_profile_can_be_asked_for_by_name():
    made = patched(await ask(Storage(BLOCK), volumeMode="FromStorageProfile", resources=sized("1Gi")))
    assert made["/spec/volumeMode"] == "Block"


async def test_what_the_claim_says_itself_stays():
    storage = Storage(BLOCK, FILES)
    made = patched(
        await ask(
            storage, accessModes=["ReadWriteOnce"], storageClassName="fast", resources=sized("1Gi"), volumeMode="Block"
        )
    )
    assert made == {}
    assert storage.asked == [("fast", False)]


REFERENCE = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": "golden"}


def clone_of(kind="PersistentVolumeClaim", name="golden"):
    group = {"apiGroup": "snapshot.storage.k8s.io"} if kind == "VolumeSnapshot" else {}
    return parse(obj("VolumeCloneSource", {"source": {**group, "kind": kind, "name": name}}, name="golden"))


def source_claim(mode="Filesystem", requested="1Gi", capacity=None):
    return {
        "metadata": {"namespace": "default", "name": "golden"},
        "spec": {"volumeMode": mode, "resources": sized(requested)},
        "status": {"capacity": {"storage": capacity}} if capacity else {},
    }


def source_snapshot(size, **annotations):
    return {"metadata": {"namespace": "default", "name": "golden", "annotations": annotations}, "status": size}


MODE = {"cdi.kubevirt.io/storage.import.sourceVolumeMode": "Block"}


@pytest.mark.parametrize("given", [{}, {"resources": {}}, {"resources": sized("0")}], ids=["none", "empty", "zero"])
@pytest.mark.parametrize(
    ("offer", "objects", "size"),
    [
        (FILES, {"claim": source_claim()}, "1Gi"),
        (FILES, {"claim": source_claim(capacity="2Gi")}, "1Gi"),
        (FILES, {"claim": source_claim("Block", "100Mi")}, "106Mi"),
        (BLOCK, {"claim": source_claim("Filesystem", "1Gi", "2Gi")}, "2Gi"),
        (FILES, {"snapshot": source_snapshot({"restoreSize": "3Gi"})}, "3Gi"),
        (FILES, {"snapshot": source_snapshot({"restoreSize": "100Mi"}, **MODE)}, "106Mi"),
    ],
    ids=["same mode", "larger than requested", "from a device", "onto a device", "snapshot", "snapshot of a device"],
)
async def test_a_clone_without_a_size_gets_that_of_its_source(offer, objects, size, given):
    populator = clone_of("VolumeSnapshot" if "snapshot" in objects else "PersistentVolumeClaim")
    storage = Storage(offer, populator=populator, **objects)
    made = patched(await ask(storage, dataSourceRef=REFERENCE, **given))
    assert made["/spec/resources"]["requests"]["storage"] == size
    assert made["/spec/accessModes"] == list(offer.access_modes)


async def test_a_clone_keeps_a_size_that_is_set():
    storage = Storage(FILES, populator=clone_of(), claim=source_claim())
    assert "/spec/resources" not in patched(await ask(storage, dataSourceRef=REFERENCE, resources=sized("100Mi")))


@pytest.mark.parametrize(
    ("objects", "annotations"),
    [
        ({}, {}),
        ({"populator": clone_of()}, {}),
        ({"populator": clone_of(name="another"), "claim": source_claim()}, {}),
        ({"populator": clone_of("VolumeSnapshot"), "snapshot": source_snapshot({})}, {}),
        ({"populator": clone_of(), "claim": source_claim(requested="big")}, {}),
        (
            {"populator": clone_of(), "claim": source_claim()},
            {"cdi.kubevirt.io/dataSourceNamespace": "elsewhere"},
        ),
    ],
    ids=["no populator", "no source", "another source", "no size yet", "no quantity", "another namespace"],
)
async def test_a_clone_whose_source_is_not_known_gets_no_size(objects, annotations):
    made = patched(await ask(Storage(FILES, **objects), dataSourceRef=REFERENCE, annotations=annotations))
    assert "/spec/resources" not in made


async def test_an_archive_goes_into_a_file_system():
    storage = Storage(BLOCK, FILES)
    made = patched(
        await ask(storage, annotations={"cdi.kubevirt.io/storage.contentType": "archive"}, resources=sized("1Gi"))
    )
    assert made["/spec/volumeMode"] == "Filesystem"
    assert storage.asked == [(None, True)]


@pytest.mark.parametrize(
    ("labels", "annotations", "renders"),
    [
        ({}, {}, True),
        ({"cdi.kubevirt.io/applyStorageProfile": "false"}, {}, True),
        (LABEL, {"cdi.kubevirt.io/storage.createdByController": "yes"}, True),
        (LABEL, {}, False),
    ],
)
async def test_claims_that_do_not_ask_for_it_are_left_alone(labels, annotations, renders):
    storage = Storage(BLOCK, renders=renders)
    assert await ask(storage, labels=labels, annotations=annotations, resources=sized("1Gi")) == Allowed()
    assert storage.asked == []


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({}, "spec.resources.requests.storage", "missing storage size"),
        ({"resources": sized("1Ki")}, "spec.resources.requests.storage", "at least 1MiB"),
        ({"resources": sized("big")}, "spec.resources.requests.storage", "not a quantity"),
        ({"resources": "1Gi"}, "spec.resources", "Invalid value"),
        ({"accessModes": {"a": 1}, "resources": sized("1Gi")}, "spec.accessModes", "must be of type array, not object"),
    ],
)
async def test_what_cannot_be_completed_is_refused_with_the_field(spec, field, words):
    verdict = await ask(Storage(FILES), **spec)
    assert isinstance(verdict, Refused)
    (problem,) = verdict.problems
    assert words in problem.message
    assert field in str(problem)


async def test_a_profile_that_knows_nothing_names_the_patch_to_apply():
    verdict = await ask(Storage(), resources=sized("1Gi"))
    assert isinstance(verdict, Refused)
    assert "kubectl patch storageprofile fast" in verdict.problems[0].message


async def test_what_is_not_known_yet_is_no_verdict():
    class Late(Storage):
        async def storage_defaults(self, storage_class, *, archive):
            raise ClusterUnavailable("not yet")

    with pytest.raises(ClusterUnavailable):
        await ask(Late(), resources=sized("1Gi"))
