"""Lookup of a DataVolume's PVC, its prime PVC and its worker pod."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cdi.api import names
from cdi.api.annotation_types import annotations_of
from cdi.api.image_facts import ImageFacts
from cdi.api.job import Outcome
from cdi.api.kinds import CLAIMS, PODS, Object, Resource

Find = Callable[[Resource, str, str], Object | None]
"""Callable that returns an object by resource, namespace and name, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """The objects that populate a volume, as far as they exist."""

    claim: Object | None = None
    prime: Object | None = None
    """The prime PVC that is populated instead of `claim`."""
    pod: Object | None = None
    pod_name: str | None = None
    """The name of the current or former pod; None without a PVC."""


def find_filling(find: Find, namespace: str, name: str) -> Filling:
    """Return the objects that populate the PVC `name`; its annotations name the prime PVC and the pod."""
    claim = find(CLAIMS, namespace, name)
    if claim is None:
        return Filling()
    notes = annotations_of(claim)
    prime_name = notes.get(names.ANN_PVC_PRIME)
    prime = find(CLAIMS, namespace, prime_name) if prime_name else None
    recorded = (annotations_of(prime).get(names.ANN_IMPORT_POD) if prime else None) or notes.get(names.ANN_IMPORT_POD)
    pod_name = recorded or names.importer_pod(prime_name or name)
    return Filling(claim=claim, prime=prime, pod=find(PODS, namespace, pod_name), pod_name=pod_name)


# The reconcilers import the API models, which most lookups do not need: they are imported late.


def running(pod: Object) -> bool:
    from cdi.reconcile.pods.status import container_status

    return "running" in (container_status(pod).get("state") or {})


def outcome_of(filling: Filling) -> Outcome | None:
    """Return the worker's outcome: from its pod as long as that exists, afterwards as recorded on the PVC.

    Returns None if it has not ended, or left nothing readable.
    """
    from cdi.reconcile.pods.status import container_status, last_termination, outcome_in

    if filling.pod is not None:
        outcome = outcome_in(last_termination(container_status(filling.pod)) or {})
        if outcome is not None:
            return outcome
    return _recorded(filling)


def _recorded(filling: Filling) -> Outcome | None:
    notes = annotations_of(filling.claim)
    image = ImageFacts.read(notes)
    if filling.claim is None or image.format is None:
        return None
    return Outcome(
        id=filling.claim["metadata"]["uid"],
        format=image.format,
        wrappers=image.wrappers,
        path=image.path,
        virtual_size=image.virtual_size,
        digest=image.digest,
        verified_by=image.verified_by,
        validator=image.validator,
        preallocated=notes.get(names.ANN_PREALLOCATION_APPLIED) == "true",
    )


def claim_facts(filling: Filling) -> Iterator[tuple[str, str]]:
    """Yield labels and values that describe a PVC and what it waits for."""
    claim = filling.claim
    if claim is None:
        yield "", "not created yet"
        return
    yield from _claim(claim)
    prime = filling.prime
    if prime is not None:
        yield "Populated in", f"{prime['metadata']['name']} ({_phase(prime)})"


def _claim(claim: Object) -> Iterator[tuple[str, str]]:
    spec, status = claim.get("spec") or {}, claim.get("status") or {}
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "")
    has = (status.get("capacity") or {}).get("storage", "")
    yield "Name", claim["metadata"]["name"]
    yield "Phase", _phase(claim)
    yield "Size", f"{has or asked}{f' ({asked} requested)' if has and has != asked else ''}"
    yield "Class", str(spec.get("storageClassName") or "")
    yield "Mode", ", ".join([*(spec.get("accessModes") or []), str(spec.get("volumeMode") or "Filesystem")])
    yield "Volume", str(spec.get("volumeName") or "")


def _phase(body: Object) -> str:
    if "deletionTimestamp" in body["metadata"]:
        return "Terminating"
    return str((body.get("status") or {}).get("phase") or "Pending")
