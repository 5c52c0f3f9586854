"""Tests of DataImportCrons as HCO, SSP and the OpenShift console write them: they are admitted and stored unchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cdi.api.kinds import KINDS
from cdi.api.schema import Schema, definition, object_schema
from cdi.api.validation import examine, parse_manifest

DIGEST = "sha256:" + "0123456789ab" * 5 + "0123"
KIND = next(kind for kind in KINDS if kind.kind == "DataImportCron")
SCHEMA = object_schema(KIND)


def cron(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"namespace": "kubevirt-os-images", **metadata},
        "spec": spec,
    }


def template(registry: dict[str, Any], **storage: Any) -> dict[str, Any]:
    """Return a template as Go writes it, with empty metadata and status."""
    spec = {
        "source": {"registry": registry},
        "storage": {"resources": {"requests": {"storage": "30Gi"}}, **storage},
    }
    return {"metadata": {"creationTimestamp": None}, "spec": spec, "status": {}}


def of_ssp(name: str, data_source: str, registry: dict[str, Any], **labels: str) -> dict[str, Any]:
    """Return what SSP creates from a template of HCO."""
    return cron(
        {
            "garbageCollect": "Outdated",
            "importsToKeep": 1,
            "managedDataSource": data_source,
            "retentionPolicy": "None",
            "schedule": "52 3/12 * * *",
            "template": template(registry),
        },
        name=name,
        annotations={
            "cdi.kubevirt.io/storage.bind.immediate.requested": "true",
            "operator-sdk/primary-resource": "kubevirt-hyperconverged/ssp-kubevirt-hyperconverged",
            "operator-sdk/primary-resource-type": "SSP.ssp.kubevirt.io",
        },
        labels={
            "app.kubernetes.io/component": "templating",
            "app.kubernetes.io/managed-by": "ssp-operator",
            "instancetype.kubevirt.io/default-instancetype": "u1.medium",
            "instancetype.kubevirt.io/default-preference": data_source,
            **labels,
        },
    )


DISK = "docker://registry.example.org/containerdisks/fedora:latest"
CONSOLE = cron(
    {
        "garbageCollect": "Outdated",
        "importsToKeep": 3,
        "managedDataSource": "my-volume",
        "schedule": "0 0 * * 0",
        "template": {
            "metadata": {"annotations": {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}},
            "spec": {
                "source": {"registry": {"url": DISK, "secretRef": "my-volume-secret"}},
                "storage": {"resources": {"requests": {"storage": "30Gi"}}, "storageClassName": "fast"},
            },
        },
    },
    name="my-volume-import-cron-x7f2ab",
    annotations={"cdi.kubevirt.io/storage.bind.immediate.requested": "true"},
    labels={"instancetype.kubevirt.io/default-preference": "fedora"},
    ownerReferences=[
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "blockOwnerDeletion": False,
            "kind": "DataSource",
            "name": "my-volume",
            "uid": "d4b1b0f3-5b6e-4d52-8f5e-000000000000",
        }
    ],
)
CRONS = {
    "SSP": of_ssp("fedora-image-cron", "fedora", {"url": DISK}),
    "SSP, by the node's runtime": of_ssp("fedora-image-cron", "fedora", {"url": DISK, "pullMethod": "node"}),
    "SSP, from an image stream": of_ssp(
        "rhel9-image-cron", "rhel9", {"imageStream": "rhel9-guest", "pullMethod": "node"}
    ),
    "SSP, for one architecture": of_ssp(
        "fedora-image-cron-arm64",
        "fedora-arm64",
        {"url": DISK, "platform": {"architecture": "arm64"}},
        **{
            "template.kubevirt.io/architecture": "arm64",
            "cdi.kubevirt.io/storage.import.datasource-name": "fedora",
        },
    ),
    "console": CONSOLE,
    "console, from a PVC": cron(
        {
            "managedDataSource": "copy",
            "schedule": "@daily",
            "serviceAccountName": "cloner",
            "template": {"spec": {"source": {"pvc": {"namespace": "golden", "name": "fedora"}}, "storage": {}}},
        },
        name="copy",
    ),
}


@pytest.fixture(params=CRONS)
def written(request: pytest.FixtureRequest) -> dict[str, Any]:
    return copy.deepcopy(CRONS[request.param])


def created_again(old: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what the console creates when a user edits a DataImportCron: the same object, with its status."""
    document = copy.deepcopy(old)
    document["metadata"]["name"] = name
    document["metadata"]["annotations"] |= {
        "cdi.kubevirt.io/storage.import.sourceDesiredDigest": DIGEST,
        "cdi.kubevirt.io/storage.import.lastCronTime": "2026-11-30T00:00:05Z",
        "cdi.kubevirt.io/storage.import.storageClass": "fast",
    }
    document["spec"]["importsToKeep"] = 5
    document["status"] = {
        "conditions": [
            {
                "lastHeartbeatTime": "2026-11-30T00:01:00Z",
                "lastTransitionTime": "2026-11-30T00:01:00Z",
                "message": "Latest import is up to date",
                "reason": "UpToDate",
                "status": "True",
                "type": "UpToDate",
            }
        ],
        "currentImports": [{"DataVolumeName": "my-volume-0123456789ab", "Digest": DIGEST}],
        "lastExecutionTimestamp": "2026-11-30T00:00:05Z",
        "lastImportTimestamp": "2026-11-30T00:01:00Z",
        "lastImportedPVC": {"name": "my-volume-0123456789ab", "namespace": "kubevirt-os-images"},
        "sourceFormat": "snapshot",
    }
    return document


def pruned(value: Any, schema: Schema) -> Any:
    """Return what the API server stores: without fields that the schema does not name, and with its defaults."""
    assert "default" not in schema
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        named = schema.get("properties", {})
        extra = schema.get("additionalProperties")
        parts = {name: named.get(name, extra) for name in value}
        return {name: pruned(value[name], part) for name, part in parts.items() if part is not None}
    if isinstance(value, list):
        return [pruned(item, schema["items"]) for item in value]
    return value


def test_what_clients_write_is_admitted(written: dict[str, Any]) -> None:
    assert examine(written)[1] == ()


def test_the_stored_spec_equals_the_one_that_was_written(written: dict[str, Any]) -> None:
    """SSP deletes a DataImportCron whose stored spec differs from the one that it wants."""
    stored = pruned(written["spec"], SCHEMA["properties"]["spec"])
    wanted = copy.deepcopy(written["spec"])
    # Both are read into the same type, in which metadata without content equals none.
    for spec in (stored, wanted):
        spec["template"].pop("metadata", None)
    assert stored == wanted


def test_an_edit_in_the_console_creates_the_object_with_its_status() -> None:
    for name in ("my-volume-import-cron-x7f2ab-dry-run", "my-volume-import-cron-x7f2ab"):
        document = created_again(CONSOLE, name)
        assert examine(document)[1] == ()
        assert pruned(document["status"], SCHEMA["properties"]["status"]) == document["status"]
    # With a status subresource, the API server would drop the status of a new object.
    assert "subresources" not in definition(KIND)["spec"]["versions"][0]


def test_a_change_of_metadata_is_admitted(written: dict[str, Any]) -> None:
    changed = copy.deepcopy(written)
    changed["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.import.nextCronTime": "2026-11-30T00:00:00Z"}
    changed["metadata"].pop("ownerReferences", None)
    assert examine(changed, written)[1] == ()


def test_a_changed_spec_is_refused(written: dict[str, Any]) -> None:
    changed = copy.deepcopy(written)
    changed["spec"]["importsToKeep"] = 7
    (problem,) = examine(changed, written)[1]
    assert problem.message == "Cannot update DataImportCron Spec"


def test_a_spec_that_go_wrote_equals_the_same_without_empty_fields(written: dict[str, Any]) -> None:
    changed = copy.deepcopy(written)
    changed["spec"]["template"].pop("status", None)
    changed["spec"]["template"].pop("metadata", None)
    stored = copy.deepcopy(written)
    stored["spec"]["template"]["metadata"] = {}
    assert examine(changed, stored)[1] == ()


def test_what_was_parsed_is_written_unchanged(written: dict[str, Any]) -> None:
    model = parse_manifest(written)
    assert examine(model.to_dict(), written)[1] == ()
