"""Tests that claims with the label applyStorageProfile are completed, and all others are unchanged."""

from fractions import Fraction

import pytest

from cdi.api.errors import ClusterUnavailable
from cdi.reconcile.capabilities import PropertySet
from cdi.reconcile.claim_defaults import StorageDefaults
from cdi.server.mutation import mutate_claim
from cdi.server.review import Allowed, Refused, read
from tests.unit.server.reviews import BY_NAME, body

LABEL = {"cdi.kubevirt.io/applyStorageProfile": "true"}
HOOK = BY_NAME["pvc-mutate"]
BLOCK = PropertySet(access_modes=("ReadWriteMany",), volume_mode="Block")
FILES = PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Filesystem")


class Storage:
    def __init__(self, *sets, renders=True, name="fast"):
        self._offer = StorageDefaults(storage_class=name, sets=sets, overhead=Fraction(6, 100))
        self._renders = renders
        self.asked = []

    def renders_claims(self):
        return self._renders

    async def storage_defaults(self, storage_class, *, archive):
        self.asked.append((storage_class, archive))
        return self._offer


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


async def test_a_clone_takes_the_size_of_its_source():
    reference = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": "golden"}
    made = patched(await ask(Storage(FILES), dataSourceRef=reference))
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
