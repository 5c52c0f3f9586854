"""Records of origin: the annotation on a version's PVC and VolumeSnapshot, and the pod that signs it.

    no key                      the statement is written at once
    key, in a cluster           statement → signing pod → envelope
    key, on one machine         `SignRecord`

The caller may offer the version unless `RecordStep.waiting` is set, which lasts at most `SIGNING_TIMEOUT`. A version is
offered even if its record cannot be signed: a record documents an import that was verified and proven without it, and a
lost key must not stop security updates. The trouble is reported, the unsigned statement is written, and signing is
retried.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any, Final

from cdi.api.annotations import GOLDEN_RECORD, GOLDEN_STATEMENT, OWNER_UID
from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.decode import DecodeError, decode_parsed
from cdi.api.errors import CdiError
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    POD_ANNOTATION_DEFAULTS,
    joined,
)
from cdi.api.origin import (
    PAYLOAD_TYPE,
    Envelope,
    ImportFacts,
    Signature,
    SignResult,
    build_statement,
    parse_record,
)
from cdi.api.timestamps import epoch_seconds
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Event, ObjectRef, SignRecord
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.context import Body, CronContext
from cdi.reconcile.dataimportcron.objects import patch_volume, plural_of
from cdi.reconcile.dataimportcron.versions import History
from cdi.reconcile.pods.roles import RECORD_SIGNING, build_pod, pod_spec
from cdi.reconcile.pods.status import termination
from cdi.reconcile.types import PVC

"""Pod annotation with the statement to be signed."""
SIGNING_TIMEOUT: Final = 60
"""Seconds for which the offer of a version waits for the signature of its record."""
RETRY_DELAY: Final = 300.0
"""Seconds after which a failed signing pod is replaced."""
MAX_SIGNING: Final = 3
"""Maximum number of signing pods of one DataImportCron at a time: a new key signs the records of all versions."""
_REQUEUE = 2.0
RECORD_FAILED: Final = "RecordNotSigned"
_STATEMENT, _KEYS = "/var/run/cdi/record", "/var/run/cdi/keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStep:
    """Result of `plan_record`."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    trouble: Event | None = None
    """Why the record is not signed, or cannot be made: reason and message."""
    waiting: bool = False
    """Whether the version should not be offered yet, because its record is about to be signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsStep:
    """Result of `plan_records`."""

    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    waiting: frozenset[str] = frozenset()
    """Names of the versions that should not be offered yet."""


def plan_records(context: CronContext, recorded: History, history: History) -> RecordsStep:
    """Plan the records of all available versions, and copy each to the version's VolumeSnapshot.

    Args:
        context: The context.
        recorded: The history as it is in the status: a record is built of times that do not change any more.
        history: The history that is about to be written.

    """
    known = {version.name for version in recorded.versions if version.state == VersionState.AVAILABLE}
    waiting = set()
    if context.settings.record_key is not None:
        waiting = {one.name for one in history.versions if one.state == VersionState.AVAILABLE} - known
    actions: list[Action] = []
    events: list[Event] = []
    delays: list[float] = []
    signing = 0
    for version in history.versions:
        if version.name not in known or version.state != VersionState.AVAILABLE:
            continue
        claim = context.objects.claim(context.namespace, version.name)
        claim = None if claim is not None and claim.deleting else claim
        snapshot = context.objects.snapshot(context.namespace, version.name) if context.platform.cluster else None
        snapshot = None if snapshot is not None and snapshot.deleting else snapshot
        holder = claim or snapshot
        if holder is None:
            continue
        step = plan_record(context, recorded.get(version.name) or version, holder)
        if step.waiting:
            signing += 1
            if signing > MAX_SIGNING:
                # The first version is the newest: what is wanted most is signed first.
                delays.append(_REQUEUE)
                continue
            waiting.add(version.name)
        actions += step.actions
        delays += [] if step.requeue_after is None else [step.requeue_after]
        events += [] if step.trouble is None else [step.trouble]
        record = GOLDEN_RECORD.read(holder.annotations)
        if record and snapshot is not None and record != GOLDEN_RECORD.read(snapshot.annotations):
            actions += patch_volume(snapshot, annotations=GOLDEN_RECORD.write(record))
    return RecordsStep(
        actions=tuple(actions),
        events=tuple(events),
        requeue_after=min(delays, default=None),
        waiting=frozenset(waiting),
    )


def plan_record(context: CronContext, version: GoldenVersion, holder: PVC | Snapshot) -> RecordStep:
    """Plan the record of an available version, which `holder` (its PVC or VolumeSnapshot) gets as an annotation.

    An existing record is kept, except that an unsigned one is signed once there is a key.
    """
    signed = _is_signed(GOLDEN_RECORD.read(holder.annotations))
    if signed or (signed is False and context.settings.record_key is None):
        return RecordStep()
    facts = ImportFacts.of_annotations(
        context.namespace, context.name, holder.uid, holder.annotations, builder=context.versions
    )
    try:
        statement = build_statement(_with_source(context, version), facts).decode("ascii")
    except CdiError as error:
        return RecordStep(trouble=_trouble(version, error.message))
    plain = () if signed is False else patch_volume(holder, annotations=GOLDEN_RECORD.write(statement))
    if context.settings.record_key is None:
        return RecordStep(actions=plain)
    key = ObjectRef(kind="Secret", namespace=context.namespace, name=context.settings.record_key)
    known = context.objects.input(key)
    if known is None or known.refused:
        reason = f"{key} is not found. Try: create it with a private key" if known is None else known.refused
        return RecordStep(actions=plain, requeue_after=RETRY_DELAY, trouble=_trouble(version, reason))
    if not context.platform.cluster:
        plural = plural_of(holder)
        sign = SignRecord(
            key=key,
            statement=statement,
            plural=plural,
            namespace=holder.namespace,
            name=holder.name,
            uid=holder.uid,
            annotation=GOLDEN_RECORD.key,
        )
        return RecordStep(actions=(sign,))
    return _plan_pod(context, version, holder, statement, key, plain)


def _plan_pod(
    context: CronContext,
    version: GoldenVersion,
    holder: PVC | Snapshot,
    statement: str,
    key: ObjectRef,
    plain: tuple[Action, ...],
) -> RecordStep:
    name = signing_pod(version.name)
    pod = context.objects.pod(holder.namespace, name)
    if pod is None:
        body = build_signing_pod(context, holder, name, statement, key)
        return RecordStep(actions=(CreateObject(body=body),), requeue_after=_REQUEUE, waiting=True)
    metadata = pod.get("metadata") or {}
    age = max(0.0, context.now - (epoch_seconds(metadata.get("creationTimestamp")) or context.now))
    young = age < SIGNING_TIMEOUT
    if metadata.get("deletionTimestamp") is not None:
        return RecordStep(requeue_after=_REQUEUE, waiting=young)
    gone = DeleteObject(plural="pods", namespace=holder.namespace, name=name, uid=str(metadata.get("uid") or ""))
    notes = metadata.get("annotations") or {}
    if GOLDEN_STATEMENT.read(notes) != statement or OWNER_UID.read(notes) != holder.uid:
        # It was made for an earlier volume of this name, or another client changed what it signs.
        return RecordStep(actions=(gone,), requeue_after=_REQUEUE, waiting=young)
    result = _result(pod, holder.uid)
    if result is None:
        if young:
            return RecordStep(requeue_after=_REQUEUE, waiting=True)
        message = f"Pod {name} has not signed the record for {age:.0f} s. Try: kubectl describe pod {name}"
        actions = (*plain, gone) if age >= RETRY_DELAY else plain
        return RecordStep(actions=actions, requeue_after=RETRY_DELAY, trouble=_trouble(version, message))
    envelope = None if result.failure is not None else _envelope(result, statement)
    if envelope is not None:
        return RecordStep(actions=(*patch_volume(holder, annotations=GOLDEN_RECORD.write(envelope)), gone))
    message = "the signature does not belong to the record" if result.failure is None else result.failure.message
    actions = (*plain, gone) if age >= RETRY_DELAY else plain
    return RecordStep(actions=actions, requeue_after=max(1.0, RETRY_DELAY - age), trouble=_trouble(version, message))


def signing_pod(version: str) -> str:
    """Return the name of the pod that signs the record of a version."""
    return joined("sign-record", version)


def build_signing_pod(
    context: CronContext, holder: PVC | Snapshot, name: str, statement: str, key: ObjectRef
) -> dict[str, Any]:
    """Build the signing pod: it mounts the Secret, opens no volume, and has no API credentials."""
    field_ref = {"fieldPath": GOLDEN_STATEMENT.field_path}
    spec = pod_spec(
        RECORD_SIGNING,
        context.config.pods,
        owner=holder.uid,
        args=(f"{_STATEMENT}/statement", _KEYS, holder.uid),
        mounts=[
            {"name": "record", "mountPath": _STATEMENT, "readOnly": True},
            {"name": "keys", "mountPath": _KEYS, "readOnly": True},
        ],
        volumes=[
            {"name": "record", "downwardAPI": {"items": [{"path": "statement", "fieldRef": field_ref}]}},
            {"name": "keys", "secret": {"secretName": key.name, "defaultMode": 0o440}},
        ],
    )
    annotations = {
        **POD_ANNOTATION_DEFAULTS,
        ANN_CREATED_BY_CONTROLLER: "yes",
        **OWNER_UID.write(holder.uid),
        **GOLDEN_STATEMENT.write(statement),
    }
    return build_pod(
        RECORD_SIGNING,
        context.config,
        spec,
        namespace=holder.namespace,
        name=name,
        annotations=annotations,
        owner=_owner(holder),
    )


def _with_source(context: CronContext, version: GoldenVersion) -> GoldenVersion:
    """Return the version with the template's URL if the poll found no reference that pins the content."""
    source = context.cron.spec.template.spec.source
    if version.source or source is None:
        return version
    urls = [getattr(member, "url", None) for _, member in source.given()]
    return version.model_copy(update={"source": next((url for url in urls if url), None)})


def _is_signed(record: str | None) -> bool | None:
    """Return whether a record has a signature; None if there is no record, or an unreadable one."""
    if record is None:
        return None
    try:
        return bool(parse_record(record).signatures)
    except CdiError:
        return None


def _result(pod: Body, uid: str) -> SignResult | None:
    """Return the result of a signing pod that has ended; None while it runs."""
    end = termination(pod)
    if end is None:
        return None
    try:
        result = decode_parsed(SignResult, end.document)
    except DecodeError:
        return SignResult(id=uid)
    return result if result.id == uid else SignResult(id=uid)


def _envelope(result: SignResult, statement: str) -> str | None:
    if result.statement != hashlib.sha256(statement.encode("ascii")).hexdigest():
        return None
    try:
        value = base64.b64decode(result.signature, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not value:
        return None
    signature = Signature(keyid=result.keyid, value=value)
    envelope = Envelope(payload=statement.encode("ascii"), payload_type=PAYLOAD_TYPE, signatures=(signature,))
    return envelope.to_json().decode("ascii")


def _owner(holder: PVC | Snapshot) -> dict[str, Any]:
    kind = ("v1", "PersistentVolumeClaim")
    if isinstance(holder, Snapshot):
        kind = ("snapshot.storage.k8s.io/v1", "VolumeSnapshot")
    return {"apiVersion": kind[0], "kind": kind[1], "name": holder.name, "uid": holder.uid}


def _trouble(version: GoldenVersion, message: str) -> Event:
    return Event(type="Warning", reason=RECORD_FAILED, message=f"The record of {version.name} is not signed: {message}")
