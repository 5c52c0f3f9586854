"""Tests of when a version's record of origin is written and signed."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cdi.api.annotations import GOLDEN_RECORD, GOLDEN_STATEMENT
from cdi.api.dataimportcron import DataImportCron, GoldenVersion
from cdi.api.golden import GoldenSettings
from cdi.api.origin import SignResult, parse_record, parse_statement
from cdi.reconcile.actions import CreateObject, DeleteObject, PatchObject, SignRecord
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.origin import (
    MAX_SIGNING,
    RETRY_DELAY,
    SIGNING_TIMEOUT,
    plan_record,
    plan_records,
    signing_pod,
)
from cdi.reconcile.dataimportcron.versions import History
from cdi.reconcile.settings import Platform
from cdi.reconcile.types import PVC, Input

NOW = 1_800_000_000.0
VERSION = GoldenVersion(name="fedora-a1a1a1a1a1a1", digest=f"sha256:{'a1' * 32}", state="Available")
CRON = DataImportCron.model_validate(
    {
        "metadata": {"name": "fedora", "namespace": "images", "uid": "cron-uid"},
        "spec": {
            "template": {"spec": {"source": {"registry": {"url": "docker://host/fedora"}}}},
            "schedule": "",
            "managedDataSource": "fedora",
        },
    }
)


def pvc(**annotations):
    return PVC(namespace="images", name=VERSION.name, uid="pvc-uid", phase="Bound", annotations=annotations)


class Objects(SimpleNamespace):
    """The part of a lister that records need: one Secret and one pod."""

    def input(self, ref):
        assert (ref.kind, ref.namespace, ref.name) == ("Secret", "images", "signer")
        return self.secret

    def pod(self, namespace, name):
        assert (namespace, name) == ("images", signing_pod(VERSION.name))
        return self.running


def context(*, key=None, secret=Input(version="1", keys=frozenset({"key.pem"})), pod=None, cluster=True, now=NOW):
    return CronContext(
        now=now,
        cron=CRON,
        objects=Objects(secret=secret, running=pod),
        settings=GoldenSettings(record_key=key),
        platform=Platform(cluster=cluster),
        versions={"cdi": "1.0"},
    )


def created_pod(at=NOW):
    (action,) = plan_record(context(key="signer"), VERSION, pvc()).actions
    assert isinstance(action, CreateObject)
    body = json.loads(json.dumps(action.body))
    created = "2027-01-15T08:00:00Z"
    assert at == NOW
    body["metadata"] |= {"uid": "pod-uid", "creationTimestamp": created}
    return body


def ended(body, result):
    body["status"] = {
        "phase": "Succeeded",
        "containerStatuses": [{"name": "importer", "state": {"terminated": {"message": result}}}],
    }
    return body


def good(body):
    statement = body["metadata"]["annotations"][GOLDEN_STATEMENT.key]
    return SignResult(
        id="pvc-uid",
        statement=hashlib.sha256(statement.encode()).hexdigest(),
        keyid="k",
        signature=base64.b64encode(b"sig").decode(),
    ).to_json()


def test_without_a_key_the_statement_is_written_at_once_and_only_once():
    step = plan_record(context(), VERSION, pvc())
    (action,) = step.actions
    assert isinstance(action, PatchObject)
    assert (action.plural, action.namespace, action.name, action.uid) == (
        "persistentvolumeclaims",
        "images",
        VERSION.name,
        "pvc-uid",
    )
    text = action.annotations[GOLDEN_RECORD.key]
    assert parse_statement(text.encode())["subject"][0]["name"] == VERSION.name
    assert (step.trouble, step.waiting) == (None, False)
    again = plan_record(context(), VERSION, pvc(**{GOLDEN_RECORD.key: text}))
    assert again.actions == ()


def test_a_version_without_a_pinned_reference_has_the_url_of_the_template():
    (action,) = plan_record(context(), VERSION, pvc()).actions
    build = json.loads(action.annotations[GOLDEN_RECORD.key])["predicate"]["buildDefinition"]
    assert build["externalParameters"]["source"] == "docker://host/fedora"
    pinned = VERSION.model_copy(update={"source": "docker://host/fedora@sha256:0"})
    (action,) = plan_record(context(), pinned, pvc()).actions
    assert "docker://host/fedora@sha256:0" in action.annotations[GOLDEN_RECORD.key]


def test_a_snapshot_can_hold_the_record():
    holder = Snapshot(namespace="images", name=VERSION.name, uid="snapshot-uid")
    (action,) = plan_record(context(), VERSION, holder).actions
    assert (action.plural, action.uid) == ("volumesnapshots", "snapshot-uid")


def test_in_a_cluster_a_pod_without_credentials_signs_and_the_offer_waits():
    step = plan_record(context(key="signer"), VERSION, pvc())
    (action,) = step.actions
    assert step.waiting
    assert step.trouble is None
    spec = action.body["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert {"name": "keys", "secret": {"secretName": "signer", "defaultMode": 0o440}} in spec["volumes"]
    assert spec["containers"][0]["args"][0] == "sign-record"
    assert action.body["metadata"]["ownerReferences"][0]["uid"] == "pvc-uid"


def test_the_signature_of_the_pod_becomes_the_envelope_and_the_pod_is_deleted():
    body = created_pod()
    step = plan_record(context(key="signer", pod=ended(body, good(body))), VERSION, pvc())
    write, delete = step.actions
    envelope = parse_record(write.annotations[GOLDEN_RECORD.key])
    assert envelope.signatures[0].value == b"sig"
    assert envelope.payload.decode() == body["metadata"]["annotations"][GOLDEN_STATEMENT.key]
    assert isinstance(delete, DeleteObject)
    assert not step.waiting
    again = plan_record(context(key="signer"), VERSION, pvc(**{GOLDEN_RECORD.key: write.annotations[GOLDEN_RECORD.key]}))
    assert again.actions == ()


def test_a_running_pod_is_waited_for_only_so_long():
    body = created_pod()
    assert plan_record(context(key="signer", pod=body), VERSION, pvc()).waiting
    late = plan_record(context(key="signer", pod=body, now=NOW + SIGNING_TIMEOUT), VERSION, pvc())
    assert not late.waiting
    assert late.trouble is not None
    assert [type(action) for action in late.actions] == [PatchObject]
    stuck = plan_record(context(key="signer", pod=body, now=NOW + RETRY_DELAY), VERSION, pvc())
    assert [type(action) for action in stuck.actions] == [PatchObject, DeleteObject]


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        SignResult(id="other").to_json(),
        SignResult(id="pvc-uid", statement="0" * 64, signature="eA==").to_json(),
    ],
)
def test_a_pod_without_a_valid_result_is_reported_and_does_not_stop_the_offer(message):
    step = plan_record(context(key="signer", pod=ended(created_pod(), message)), VERSION, pvc())
    assert not step.waiting
    assert step.trouble.reason == "RecordNotSigned"
    (write,) = step.actions
    assert parse_record(write.annotations[GOLDEN_RECORD.key]).signatures == ()


def test_a_statement_that_somebody_changed_is_not_accepted():
    body = created_pod()
    body["metadata"]["annotations"][GOLDEN_STATEMENT.key] = '{"_type":"other"}'
    (action,) = plan_record(context(key="signer", pod=ended(body, good(body))), VERSION, pvc()).actions
    assert isinstance(action, DeleteObject)
    assert action.uid == "pod-uid"


def test_a_missing_secret_is_reported_and_the_unsigned_record_is_written():
    step = plan_record(context(key="signer", secret=None), VERSION, pvc())
    assert "Secret images/signer is not found" in step.trouble.message
    assert not step.waiting
    (write,) = step.actions
    assert parse_record(write.annotations[GOLDEN_RECORD.key]).signatures == ()
    held = pvc(**{GOLDEN_RECORD.key: write.annotations[GOLDEN_RECORD.key]})
    assert plan_record(context(key="signer", secret=None), VERSION, held).actions == ()


def test_an_unsigned_record_is_signed_once_there_is_a_key():
    (write,) = plan_record(context(), VERSION, pvc()).actions
    held = pvc(**{GOLDEN_RECORD.key: write.annotations[GOLDEN_RECORD.key]})
    assert isinstance(plan_record(context(key="signer"), VERSION, held).actions[0], CreateObject)


def test_a_damaged_record_is_written_again():
    assert plan_record(context(), VERSION, pvc(**{GOLDEN_RECORD.key: "{"})).actions


class Fleet(SimpleNamespace):
    """Objects of several versions: claims and snapshots by name, and no pods yet."""

    def input(self, ref):
        return Input(version="1", keys=frozenset({"key.pem"}))

    def pod(self, namespace, name):
        return None

    def claim(self, namespace, name):
        return self.claims.get(name)

    def snapshot(self, namespace, name):
        return self.snapshots.get(name)


def versions(count, state="Available"):
    return History(
        data_source="fedora",
        versions=tuple(
            GoldenVersion(name=f"fedora-{number}", digest=f"sha256:{number:064x}", state=state)
            for number in range(count)
        ),
    )


def fleet(count=0, *, key=None, **objects):
    claims = {
        f"fedora-{number}": PVC(namespace="images", name=f"fedora-{number}", uid=f"u{number}", phase="Bound")
        for number in range(count)
    }
    lister = Fleet(**{"claims": claims, "snapshots": {}} | objects)
    return replace(context(key=key), objects=lister)


def test_every_available_version_gets_its_record_once_the_status_has_it():
    before, after = versions(0), versions(2)
    assert plan_records(fleet(2), before, after).actions == ()
    step = plan_records(fleet(2), after, after)
    assert [action.name for action in step.actions] == ["fedora-0", "fedora-1"]
    assert step.waiting == frozenset()
    assert plan_records(fleet(2), versions(2, "Failed"), versions(2, "Failed")).actions == ()
    assert plan_records(fleet(2), after, versions(2, "Revoked")).actions == ()


def test_with_a_key_a_new_version_waits_for_its_signature_from_the_start():
    assert plan_records(fleet(1, key="signer"), versions(0), versions(1)).waiting == {"fedora-0"}
    step = plan_records(fleet(1, key="signer"), versions(1), versions(1))
    assert step.waiting == {"fedora-0"}
    assert isinstance(step.actions[0], CreateObject)


def test_a_new_key_signs_few_records_at_a_time_the_newest_first():
    step = plan_records(fleet(20, key="signer"), versions(20), versions(20))
    assert [action.body["metadata"]["name"] for action in step.actions] == [
        signing_pod(f"fedora-{number}") for number in range(MAX_SIGNING)
    ]
    assert len(step.waiting) == MAX_SIGNING


def test_the_record_is_carried_to_the_snapshot_that_replaces_the_volume():
    record = plan_record(context(), VERSION, pvc()).actions[0].annotations[GOLDEN_RECORD.key]
    snapshot = Snapshot(namespace="images", name="fedora-0", uid="snapshot-uid")
    claim = PVC(namespace="images", name="fedora-0", uid="u", phase="Bound", annotations={GOLDEN_RECORD.key: record})
    both = fleet(claims={"fedora-0": claim}, snapshots={"fedora-0": snapshot})
    (copy,) = plan_records(both, versions(1), versions(1)).actions
    assert (copy.plural, copy.uid, copy.annotations) == ("volumesnapshots", "snapshot-uid", {GOLDEN_RECORD.key: record})
    alone = fleet(snapshots={"fedora-0": snapshot})
    (made,) = plan_records(alone, versions(1), versions(1)).actions
    assert made.plural == "volumesnapshots"
    complete = fleet(snapshots={"fedora-0": replace(snapshot, annotations={GOLDEN_RECORD.key: record})})
    assert plan_records(complete, versions(1), versions(1)).actions == ()


def test_on_one_machine_the_process_signs():
    (action,) = plan_record(context(key="signer", cluster=False), VERSION, pvc()).actions
    assert isinstance(action, SignRecord)
    assert (action.annotation, action.uid, action.key.name) == (GOLDEN_RECORD.key, "pvc-uid", "signer")
