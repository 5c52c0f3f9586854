"""Tests of admission verdicts: those of the offline checks, and those that depend on other objects."""

import pytest

from cdi.api.errors import ClusterUnavailable, InvalidManifest
from cdi.server.admission import may_exist, validate
from cdi.server.review import Allowed, Refused, read
from tests.unit.api import test_validation_datavolume as datavolumes
from tests.unit.api import test_validation_kinds as others
from tests.unit.api.consumers import CONSUMERS
from tests.unit.api.manifests import SOUND, SOURCES, dv, sound, spoilt
from tests.unit.server.reviews import BY_NAME, body, hook_of

ADOPT = "cdi.kubevirt.io/allowClaimAdoption"
SERVED = {plural for hook in BY_NAME.values() for plural in hook.plurals if hook.kind == "validating"}


def plural(document):
    return document["kind"].lower() + "s"


class Cluster:
    def __init__(self, *, claim=None, data_volume=None, data_volumes=False, adopts=False, failure=None):
        self._data_volume = data_volume
        self._claim, self._data_volumes, self._adopts, self._failure = claim, data_volumes, adopts, failure
        self.asked = []

    async def claim(self, namespace, name):
        self.asked.append((namespace, name))
        if self._failure is not None:
            raise self._failure
        return self._claim

    async def data_volume(self, namespace, name):
        self.asked.append((namespace, name))
        return self._data_volume

    async def has_data_volumes(self):
        return self._data_volumes

    def adopts_claims(self):
        return self._adopts


def claim(name="thing", *, annotations=None, owner=None, **metadata):
    meta = {"name": name, "namespace": "default", "annotations": annotations or {}} | metadata
    if owner:
        meta["ownerReferences"] = [owner | {"controller": True}]
    return {"metadata": meta}


async def ask(document, *, cluster=None, **request):
    operation = request.get("operation", "CREATE")
    hook = hook_of(document or request["old"], operation)
    return await validate(read(body(document, **request), hook), cluster or Cluster())


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [each[1:] for each in datavolumes.REFUSED],
    ids=[each[0] for each in datavolumes.REFUSED],
)
async def test_a_wrong_datavolume_is_refused_as_offline(document, field, words):
    verdict = await ask(document)
    assert isinstance(verdict, Refused)
    assert any(words in problem.message and field in (None, problem.field) for problem in verdict.problems)


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [case for case in others.REFUSED if plural(case[0]) in SERVED],
    ids=range(sum(plural(case[0]) in SERVED for case in others.REFUSED)),
)
async def test_wrong_objects_of_other_kinds_are_refused_as_offline(document, field, words):
    verdict = await ask(document)
    assert isinstance(verdict, Refused)
    assert any(words in problem.message and problem.field == field for problem in verdict.problems)


@pytest.mark.parametrize("which", [which for which in SOUND if plural(SOUND[which]) in SERVED])
async def test_what_is_sound_is_allowed(which):
    assert await ask(sound(which)) == Allowed()


@pytest.mark.parametrize("who", CONSUMERS)
async def test_what_other_programs_write_is_allowed(who):
    assert await ask(CONSUMERS[who]) == Allowed()


async def test_all_problems_are_found_at_once():
    verdict = await ask(
        dv({"http": {"url": "ftp://h", "checksum": "x"}}, contentType="z"), cluster=Cluster(claim=claim())
    )
    assert isinstance(verdict, Refused)
    assert [problem.field for problem in verdict.problems] == [
        "spec.source.http.url", "spec.source.http.checksum", "spec.contentType", "metadata.name",
    ]  # fmt: skip


async def test_an_object_of_another_kind_than_was_asked_about_is_refused():
    with pytest.raises(InvalidManifest, match="DataSource"):
        await validate(read(body(dv(), object=sound("DataSource")), BY_NAME["datavolume-validate"]), Cluster())


async def test_a_field_that_is_not_followed_is_told_of():
    verdict = await ask(dv({"http": {"url": "http://h/x", "checkum": "sha256:0"}}))
    assert verdict == Allowed(warnings=('unknown field "spec.source.http.checkum"',))


# --- the destination


async def test_a_claim_of_the_same_name_is_in_the_way():
    cluster = Cluster(claim=claim())
    verdict = await ask(dv(), cluster=cluster)
    assert isinstance(verdict, Refused)
    (problem,) = verdict.problems
    # virt-controller searches for this text.
    assert problem.message.startswith("Destination PVC default/thing already exists")
    assert problem.cause == "FieldValueDuplicate"
    assert cluster.asked == [("default", "thing")]


async def test_nobody_looks_for_a_claim_when_a_datavolume_is_changed():
    cluster = Cluster(claim=claim())
    assert await ask(dv(), operation="UPDATE", old=dv(), cluster=cluster) == Allowed()
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("there", "annotations", "adopts", "expected"),
    [
        (claim(), {}, False, False),
        (claim(), {}, True, True),
        (claim(), {ADOPT: "true"}, False, True),
        (claim(), {ADOPT: "false"}, True, False),
        (claim(), {ADOPT: "perhaps"}, True, False),
        (claim(annotations={"cdi.kubevirt.io/storage.populatedFor": "thing"}), {}, False, True),
        (claim(annotations={"cdi.kubevirt.io/storage.populatedFor": "other"}), {}, False, False),
        (claim(), {"cdi.kubevirt.io/storage.prePopulated": "thing"}, False, True),
        (claim(), {"cdi.kubevirt.io/storage.prePopulated": "other"}, False, False),
        (claim(deletionTimestamp="2026-01-01T00:00:00Z"), {}, False, True),
        (claim(owner={"kind": "DataVolume", "name": "thing"}), {}, False, True),
        (claim(owner={"kind": "DataVolume", "name": "other"}), {ADOPT: "true"}, False, False),
        (claim(owner={"kind": "StatefulSet", "name": "thing"}), {ADOPT: "true"}, False, False),
        # A claim restored from a backup has no owner.
        (claim(annotations={"cdi.kubevirt.io/createdForDataVolume": "u"}), {ADOPT: "True"}, False, True),
    ],
    ids=range(14),
)
def test_which_claims_are_no_obstacle(there, annotations, adopts, expected):
    assert may_exist(there, "thing", annotations, adopts=adopts) is expected


@pytest.mark.parametrize(
    ("kind", "there", "refused"),
    [
        ("DataVolume", {"data_volume": dv()}, True),
        ("DataVolume", {"claim": claim()}, False),
        ("DataVolume", {}, False),
        ("PersistentVolumeClaim", {"claim": claim()}, True),
        ("PersistentVolumeClaim", {"data_volume": dv()}, False),
        ("PersistentVolumeClaim", {}, False),
    ],
)
async def test_a_transfer_onto_an_existing_object_of_its_kind_is_refused(kind, there, refused):
    cluster = Cluster(**there)
    document = spoilt("ObjectTransfer", source__kind=kind, target={"namespace": "there"})
    verdict = await ask(document, cluster=cluster)
    name = document["spec"]["source"]["name"]
    assert cluster.asked == [("there", name)]
    assert isinstance(verdict, Refused) is refused
    if isinstance(verdict, Refused):
        assert [problem.field for problem in verdict.problems] == ["spec.target"]
        assert verdict.problems[0].message.startswith(f'ObjectTransfer target "there/{name}" already exists')


async def test_a_transfer_that_exists_may_go_on_whatever_its_target():
    old = sound("ObjectTransfer")
    new = old | {"metadata": old["metadata"] | {"annotations": {"a": "b"}}}
    cluster = Cluster(data_volume=dv(), claim=claim())
    assert isinstance(await ask(new, operation="UPDATE", old=old, cluster=cluster), Allowed)
    assert not cluster.asked


async def test_a_look_that_fails_is_nobodys_permission():
    with pytest.raises(ClusterUnavailable):
        await ask(dv(), cluster=Cluster(failure=ClusterUnavailable("busy")))


# --- changes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (dv(), dv({"blank": {}}), "Cannot update DataVolume Spec"),
        (sound("DataImportCron"), spoilt("DataImportCron", schedule="@daily"), "Cannot update DataImportCron Spec"),
        (
            sound("VolumeCloneSource"),
            spoilt("VolumeCloneSource", source__name="y"),
            "Cannot update VolumeCloneSource Spec",
        ),
        (sound("ObjectTransfer"), spoilt("ObjectTransfer", target__name="x"), "ObjectTransfer spec is immutable"),
    ],
)
async def test_what_cannot_change(old, new, message):
    verdict = await ask(new, operation="UPDATE", old=old)
    assert isinstance(verdict, Refused)
    assert [(problem.field, problem.message, problem.cause) for problem in verdict.problems] == [
        ("spec", message, "FieldValueDuplicate")
    ]


async def test_a_warm_import_goes_on():
    first, second = (
        [{"previous": "", "current": "a"}],
        [{"previous": "", "current": "a"}, {"previous": "a", "current": "b"}],
    )
    old, new = (
        dv({"vddk": SOURCES["vddk"]}, checkpoints=first),
        dv({"vddk": SOURCES["vddk"]}, checkpoints=second, finalCheckpoint=True),
    )
    assert await ask(new, operation="UPDATE", old=old) == Allowed()


async def test_an_old_object_that_cannot_be_read_is_no_hindrance():
    assert await ask(dv(), operation="UPDATE", old=dv() | {"spec": {"source": 5}}) == Allowed()


# --- uninstallation


@pytest.mark.parametrize(
    ("strategy", "phase", "data_volumes", "allowed"),
    [
        ("BlockUninstallIfWorkloadsExist", "Deployed", True, False),
        ("BlockUninstallIfWorkloadsExist", "Deployed", False, True),
        ("BlockUninstallIfWorkloadsExist", "Error", True, True),
        ("BlockUninstallIfWorkloadsExist", None, True, True),
        ("RemoveWorkloads", "Deployed", True, True),
        (None, "Deployed", True, True),
    ],
)
async def test_an_installation_that_protects_datavolumes_stays(strategy, phase, data_volumes, allowed):
    cdi = spoilt("CDI", uninstallStrategy=strategy) | ({"status": {"phase": phase}} if phase else {})
    verdict = await ask(None, operation="DELETE", old=cdi, cluster=Cluster(data_volumes=data_volumes))
    assert isinstance(verdict, Allowed) is allowed
    if isinstance(verdict, Refused):
        assert (
            "since there are still DataVolumes present. Either delete all DataVolumes or change the uninstall strategy"
            in verdict.problems[0].message
        )
