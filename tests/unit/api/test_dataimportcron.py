"""Tests of the validation of DataImportCrons; messages are those of KubeVirt's CDI."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cdi.api import golden, policy
from cdi.api.errors import InvalidManifest
from cdi.api.rules.problems import Cause, Problem
from cdi.api.validation import examine, parse_manifest
from tests.unit.api.manifests import SOURCES, dv, sound, spoilt

CRON = "DataImportCron"
HTTP = {"http": {"url": "http://host/x"}}


def cron_of(source: dict[str, Any] | None, **spec: Any) -> dict[str, Any]:
    return dict(spoilt(CRON, template__spec=dv(source, **spec)["spec"]))


def named(name: str) -> dict[str, Any]:
    document = copy.deepcopy(sound(CRON))
    document["metadata"]["name"] = name
    return dict(document)


def annotated(**annotations: str) -> dict[str, Any]:
    document = copy.deepcopy(sound(CRON))
    document["metadata"]["annotations"] = {golden.PREFIX + name: text for name, text in annotations.items()}
    return dict(document)


def problems(document: dict[str, Any], old: dict[str, Any] | None = None) -> tuple[Problem, ...]:
    return examine(document, old)[1]


UNSETTABLE = "Unsettable fields: SourceRef, ContentType, Checkpoints, FinalCheckpoint"


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        (named("a" * 64), "metadata.name", "Name cannot be longer than 63 characters"),
        (cron_of(None), "spec.template.spec.source", "Missing source"),
        (cron_of({"blank": {}}), "spec.template.spec.source", "Missing source"),
        (cron_of({"upload": {}}), "spec.template.spec.source", "Missing source"),
        (cron_of(None, sourceRef={"kind": "DataSource", "name": "x"}), "spec.template.spec.source", "Missing source"),
        (cron_of(HTTP, sourceRef={"kind": "DataSource", "name": "x"}), "spec.template.spec", UNSETTABLE),
        (cron_of(HTTP, contentType="kubevirt"), "spec.template.spec", UNSETTABLE),
        (cron_of(HTTP, contentType="archive"), "spec.template.spec", UNSETTABLE),
        (cron_of(HTTP, checkpoints=[{"previous": "", "current": "a"}]), "spec.template.spec", UNSETTABLE),
        (cron_of(HTTP, finalCheckpoint=True), "spec.template.spec", UNSETTABLE),
        (spoilt(CRON, schedule="61 * * * *"), "spec.schedule", "Illegal cron schedule"),
        (spoilt(CRON, schedule="* * * * 7"), "spec.schedule", "Illegal cron schedule"),
        (spoilt(CRON, importsToKeep=-1), "spec.importsToKeep", "Illegal ImportsToKeep value"),
        (spoilt(CRON, garbageCollect="Old"), "spec.garbageCollect", "Illegal GarbageCollect value"),
        (spoilt(CRON, managedDataSource=""), "spec.managedDataSource", "Illegal ManagedDataSource value"),
        (spoilt(CRON, managedDataSource="a/b"), "spec.managedDataSource", "Illegal ManagedDataSource value"),
        (
            spoilt(CRON, managedDataSource="a" * 64),
            "spec.managedDataSource",
            "Name cannot be longer than 63 characters",
        ),
    ],
)
def test_a_refusal_has_the_message_of_kubevirt(document: dict[str, Any], field: str, message: str) -> None:
    (problem,) = problems(document)
    assert (problem.field, problem.message) == (field, message)


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        (cron_of({"registry": {"url": "http://x"}}), "Template.source.registry.url", "Illegal registry source URL"),
        (cron_of({"http": {"url": "x"}}), "Template.source.http.url", "Template.source Invalid source URL"),
        (cron_of(HTTP, storage={}), "Template.storage.resources.requests.storage", "size is missing"),
        (cron_of(HTTP, storage=None), "Template.storage", "Missing Data volume PVC"),
        (cron_of(HTTP, pvc={}), "Template.storage", "Duplicate storage definition"),
        (cron_of(HTTP | {"pvc": SOURCES["pvc"]}), "Template.source", "Multiple Data volume sources"),
        (cron_of({"pvc": {"namespace": "", "name": "x"}}), "Template.source.pvc", "is not valid"),
        (cron_of({"pvc": {"namespace": "x", "name": ""}}), "Template.source.pvc", "is not valid"),
    ],
)
def test_problems_of_the_template_are_those_of_a_datavolume(document: dict[str, Any], field: str, words: str) -> None:
    (problem,) = problems(document)
    assert problem.field == field
    assert words in problem.message


def test_problems_have_the_order_of_kubevirt() -> None:
    document = spoilt(
        CRON,
        template__spec=dv({"http": {"url": "x"}})["spec"],
        schedule="x",
        importsToKeep=-1,
        garbageCollect="x",
        managedDataSource="",
    )
    document["metadata"]["name"] = "a" * 64
    assert [problem.message.partition(" Invalid")[0] for problem in problems(document)] == [
        "Name cannot be longer than 63 characters",
        "Template.source",
        "Illegal cron schedule",
        "Illegal ImportsToKeep value",
        "Illegal GarbageCollect value",
        "Illegal ManagedDataSource value",
    ]


def test_a_person_reads_the_cause_as_well() -> None:
    with pytest.raises(InvalidManifest, match=r"spec.schedule: Illegal cron schedule: '61 \* \* \* \*': the minute is"):
        parse_manifest(spoilt(CRON, schedule="61 * * * *"))


@pytest.mark.parametrize("source", ["registry", "pvc", "http", "s3", "gcs"])
def test_every_source_that_can_be_polled_is_accepted(source: str) -> None:
    parse_manifest(cron_of({source: SOURCES[source]}))


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": ""},
        {"schedule": "TZ=Europe/Berlin 0 6 * * *"},
        {"retentionPolicy": "Some"},
        {"retentionPolicy": None, "importsToKeep": None, "garbageCollect": None},
        {"garbageCollect": "Never", "importsToKeep": 0},
        {"managedDataSource": "a" * 63},
        {"serviceAccountName": "importer"},
        {"template__spec__storage": {}, "template__spec__source": {"pvc": {"namespace": "a", "name": "b"}}},
        {"template__spec__finalCheckpoint": False, "template__spec__contentType": ""},
    ],
)
def test_what_kubevirt_accepts_is_accepted(changes: dict[str, Any]) -> None:
    parse_manifest(spoilt(CRON, **changes))
    parse_manifest(named("a" * 63))


def test_a_changed_spec_is_refused() -> None:
    (problem,) = problems(spoilt(CRON, schedule="@daily"), sound(CRON))
    assert problem == Problem(field="spec", message="Cannot update DataImportCron Spec", cause=Cause.DUPLICATE)


def test_an_equal_spec_is_accepted_without_further_checks() -> None:
    old = spoilt(CRON, schedule="no longer valid", template__spec__storage__resources__requests__storage="1024Mi")
    new = spoilt(CRON, schedule="no longer valid", template__spec__storage__resources__requests__storage="1Gi")
    new["spec"]["template"]["spec"]["checkpoints"] = []
    new["metadata"]["labels"] = {"a": "b"}
    assert problems(new, old) == ()


@pytest.mark.parametrize("prefix", [policy.PREFIX, golden.PREFIX])
def test_annotations_of_ours_are_checked(prefix: str) -> None:
    document = sound(CRON)
    document["metadata"]["annotations"] = {f"{prefix}nonsense": "x"}
    (problem,) = problems(document)
    assert problem.field == f"metadata.annotations[{prefix}nonsense]"
    (problem,) = problems(document, sound(CRON))
    assert "Unsupported value" in problem.message
    # The object may have been stored under older rules.
    assert problems(document, document) == ()


def test_the_managed_data_source_is_not_a_channel() -> None:
    wrong = annotated(channels='{"fedora": {}}')
    for old in (None, sound(CRON)):
        (problem,) = problems(wrong, old)
        assert "channel 'fedora' is the managed DataSource; choose another name" in problem.message


def test_a_command_can_be_removed_beside_an_invalid_one() -> None:
    assert problems(annotated(retry="?"), annotated(retry="?", rollback="previous")) == ()


def test_settings_in_the_template_are_refused_because_they_would_have_no_effect() -> None:
    document = spoilt(CRON, template__metadata={"annotations": {policy.BANDWIDTH: "1Mi", "example.org/note": "x"}})
    (problem,) = problems(document)
    assert problem.field == f"spec.template.metadata.annotations[{policy.BANDWIDTH}]"
    assert "annotate the DataImportCron itself" in problem.message


def test_cosign_keys_are_accepted_for_container_images_only() -> None:
    keys = {"annotations": {policy.COSIGN_KEYS: "signers"}}
    for source, refused in (("registry", False), ("http", True)):
        old, document = cron_of({source: SOURCES[source]}), cron_of({source: SOURCES[source]})
        document["metadata"] |= keys
        for found in (problems(document), problems(document, old)):
            assert [problem.field for problem in found] == [f"metadata.annotations[{policy.COSIGN_KEYS}]"] * refused
        # The object may have been stored under older rules.
        assert problems(document, document) == ()
