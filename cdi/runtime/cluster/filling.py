"""The claim of a DataVolume, the claim that is filled in its place, and the pod that fills it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api import names
from cdi.api.document import parse_json
from cdi.api.job import Outcome
from cdi.kube.resources import CLAIMS, PODS, Object, Resource

CONTAINER = "importer"
Find = Callable[[Resource, str, str], Object | None]
"""An object by resource, namespace and name; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """How a volume is filled, as far as there is anything of it."""

    claim: Object | None = None
    prime: Object | None = None
    """The claim that is filled in place of `claim`."""
    pod: Object | None = None
    pod_name: str | None = None
    """What the pod is, or was, called; None while there is no claim."""


def find_filling(find: Find, namespace: str, name: str) -> Filling:
    """Of the claim `name`: its annotations say which prime claim and which pod are its own."""
    claim = find(CLAIMS, namespace, name)
    if claim is None:
        return Filling()
    notes = notes_of(claim)
    prime_name = notes.get(names.ANN_PVC_PRIME)
    prime = find(CLAIMS, namespace, prime_name) if prime_name else None
    told = (notes_of(prime).get(names.ANN_IMPORT_POD) if prime else None) or notes.get(names.ANN_IMPORT_POD)
    pod_name = told or names.importer_pod(prime_name or name)
    return Filling(claim=claim, prime=prime, pod=find(PODS, namespace, pod_name), pod_name=pod_name)


def notes_of(body: Mapping[str, Any] | None) -> dict[str, str]:
    return ((body or {}).get("metadata") or {}).get("annotations") or {}


def container_status(pod: Object) -> dict[str, Any]:
    """Of the worker's container; empty where the kubelet has not told of it."""
    found = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in found if each.get("name") == CONTAINER), {})


def running(pod: Object) -> bool:
    return "running" in (container_status(pod).get("state") or {})


def outcome_of(filling: Filling) -> Outcome | None:
    """What the worker said at its end, as long as its pod is there; afterwards what is recorded of it on the claim.

    None where it did not end, or left nothing that can be read.
    """
    if filling.pod is not None:
        ended = (container_status(filling.pod).get("state") or {}).get("terminated") or {}
        with contextlib.suppress(ValueError, TypeError, KeyError):
            message = parse_json(ended.get("message") or "")
            return Outcome.from_json(json.dumps(message["outcome"]))
    return _recorded(filling)


def _recorded(filling: Filling) -> Outcome | None:
    from cdi.reconcile.decision import IMAGE  # with models, which looking at objects does not need

    notes = notes_of(filling.claim)
    if filling.claim is None or f"{IMAGE}format" not in notes:
        return None

    def listed(name: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in notes.get(f"{IMAGE}{name}", "").split(",") if word.strip())

    size = notes.get(f"{IMAGE}virtualSize", "")
    return Outcome(
        id=filling.claim["metadata"]["uid"],
        format=notes[f"{IMAGE}format"],
        wrappers=listed("wrappers"),
        path=notes.get(f"{IMAGE}path"),
        virtual_size=int(size) if size.isascii() and size.isdigit() else None,
        digest=notes.get(f"{IMAGE}digest"),
        verified_by=listed("verifiedBy"),
        validator=notes.get(f"{IMAGE}validator"),
        preallocated=notes.get(names.ANN_PREALLOCATION_APPLIED) == "true",
    )


def claim_facts(filling: Filling) -> Iterator[tuple[str, str]]:
    """For people: what a claim is, and what it waits with."""
    claim = filling.claim
    if claim is None:
        yield "", "not there yet"
        return
    yield from _claim(claim)
    prime = filling.prime
    if prime is not None:
        yield "Filled in", f"{prime['metadata']['name']} ({_phase(prime)})"


def _claim(claim: Object) -> Iterator[tuple[str, str]]:
    spec, status = claim.get("spec") or {}, claim.get("status") or {}
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "")
    has = (status.get("capacity") or {}).get("storage", "")
    yield "Name", claim["metadata"]["name"]
    yield "Phase", _phase(claim)
    yield "Size", f"{has or asked}{f' ({asked} asked for)' if has and has != asked else ''}"
    yield "Class", str(spec.get("storageClassName") or "")
    yield "Mode", ", ".join([*(spec.get("accessModes") or []), str(spec.get("volumeMode") or "Filesystem")])
    yield "Volume", str(spec.get("volumeName") or "")


def _phase(body: Object) -> str:
    if "deletionTimestamp" in body["metadata"]:
        return "Terminating"
    return str((body.get("status") or {}).get("phase") or "Pending")
