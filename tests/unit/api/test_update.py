import pytest

from cdi.api.validation import parse, validate_update
from tests.unit.api.manifests import SOURCES, STORAGE, dv, sound, spoilt

WARM = {"vddk": SOURCES["vddk"]}
FIRST = [{"previous": "", "current": "a"}]
SECOND = [*FIRST, {"previous": "a", "current": "b"}]


def update(old, new):
    return [str(problem) for problem in validate_update(parse(old), parse(new))]


def size(text):
    return dv(storage={"resources": {"requests": {"storage": text}}})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dv(), dv({"http": {"url": "http://host/other"}})),
        (size("1Gi"), size("2Gi")),
        (dv({"blank": {}}), dv({"upload": {}})),
        (dv(), dv(preallocation=False)),
        (dv(checkpoints=[]), dv(checkpoints=FIRST)),
        (dv(WARM, checkpoints=FIRST), dv(WARM, checkpoints=SECOND, priorityClassName="x")),
        (dv(WARM, checkpoints=FIRST), dv(WARM)),
    ],
)
def test_the_spec_of_a_datavolume_is_fixed(old, new):
    assert update(old, new) == ["spec: Cannot update DataVolume Spec"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dv(), dv()),
        (size("1Gi"), size("1024Mi")),
        (dv(), dv(checkpoints=[], finalCheckpoint=False, contentType="", priorityClassName="")),
        (dv(), dv({"http": {"url": "http://host/disk.qcow2", "secretRef": "", "extraHeaders": []}})),
        (dv(None, sourceRef={"kind": "DataSource", "name": "x"}, storage={}),
         dv(None, sourceRef={"kind": "DataSource", "name": "x"}, storage={"resources": {}})),
        (dv(), dv() | {"status": {"phase": "Succeeded"}}),
        (dv(), dv() | {"metadata": {"name": "thing", "namespace": "default", "finalizers": ["x"]}}),
        (dv(WARM, checkpoints=FIRST), dv(WARM, checkpoints=SECOND, finalCheckpoint=True)),
    ],
)  # fmt: skip
def test_what_means_the_same_and_further_stages_are_accepted(old, new):
    assert update(old, new) == []


def test_a_wrong_stage_is_refused():
    (problem,) = update(dv(WARM, checkpoints=FIRST), dv(WARM, checkpoints=FIRST * 2))
    assert "Duplicate value" in problem


def test_an_object_older_than_a_rule_can_still_lose_its_finalizer():
    old = dv({"http": {"url": "ftp://host"}})
    assert update(old, old | {"metadata": {"name": "thing", "namespace": "default"}}) == []


def test_name_and_namespace_are_fixed():
    new = dv() | {"metadata": {"name": "other", "namespace": "elsewhere"}}
    assert update(dv(), new) == ["metadata.name: field is immutable", "metadata.namespace: field is immutable"]


def test_a_kind_is_fixed():
    assert update(dv(), sound("DataSource")) == ["kind: a DataVolume cannot become a DataSource"]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("DataImportCron", {"schedule": "@daily"}, "Cannot update DataImportCron Spec"),
        ("VolumeImportSource", {"preallocation": True}, "Cannot update VolumeImportSource Spec"),
        ("VolumeUploadSource", {"preallocation": True}, "Cannot update VolumeUploadSource Spec"),
        ("ObjectTransfer", {"target__name": "x"}, "ObjectTransfer spec is immutable"),
    ],
)
def test_other_specs_that_are_fixed(kind, change, words):
    assert update(sound(kind), spoilt(kind, **change)) == [f"spec: {words}"]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("DataSource", {"source": {"pvc": {"namespace": "golden", "name": "newer"}}}),
        ("StorageProfile", {"cloneStrategy": "copy"}),
        ("CDIConfig", {"preallocation": True}),
    ],
)
def test_specs_that_may_change(kind, change):
    assert update(sound(kind), spoilt(kind, **change)) == []


def test_a_change_that_is_allowed_is_checked():
    assert "Unsupported value" in update(sound("StorageProfile"), spoilt("StorageProfile", cloneStrategy="x"))[0]


def test_the_form_of_the_claim_is_part_of_the_spec():
    assert update(dv(), dv(storage=None, pvc={"accessModes": ["ReadWriteOnce"], **STORAGE}))


def test_the_content_of_a_secret_may_change_but_is_checked():
    secret = sound("Secret")
    assert update(secret, secret | {"data": {"k": "YQ=="}}) == []
    assert update(secret, secret | {"data": {"k": "?"}}) != []


def annotated(text, name="connections", **metadata):
    body = dv()
    body["metadata"] |= {"annotations": {f"cdi.kubevirt.io/policy.{name}": text}, **metadata}
    return body


def test_annotations_that_say_how_to_import_are_checked_where_they_change():
    (problem,) = update(annotated("8"), annotated("65"))
    assert problem.startswith("metadata.annotations[cdi.kubevirt.io/policy.connections]: Invalid value: 65")
    (problem,) = update(dv(), annotated("true", "requireCheksum"))
    assert 'Unsupported value: "requireCheksum"' in problem
    assert update(annotated("65"), annotated("8")) == []
    assert update(annotated("65"), annotated("65", finalizers=["x"])) == []


def test_annotations_of_other_kinds_are_not_about_imports():
    old = sound("CDIConfig")
    new = old | {"metadata": old["metadata"] | {"annotations": {"cdi.kubevirt.io/policy.maxWorkers": "2"}}}
    assert update(old, new) == []
