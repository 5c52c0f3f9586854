"""Manifest of a worker pod.

The pod complies with the restricted Pod Security Standard, has no API credentials, and is owned by the PVC that it
fills. The `Job` is passed as an annotation, which a downwardAPI volume shows as a file; Secrets and ConfigMaps are
projected below `INPUTS`, under the names that `cdi.local.launcher.write_mounts` gives them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cdi.api import annotations as state
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.job import Job, Limits, StreamSourceSpec
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_POD_RETAIN,
    ANN_PRIORITY_CLASS,
    ANN_SERVICE_ACCOUNT,
    LABEL_PROMETHEUS,
    MAX_NAME,
    POD_ANNOTATION_DEFAULTS,
    POD_ANNOTATIONS,
    importer_pod,
    joined,
    scratch_claim,
)
from cdi.api.peer import PeerSourceSpec
from cdi.api.quantity import human
from cdi.reconcile.actions import MirrorObject, Mount, ObjectRef, Work
from cdi.reconcile.context import InputLister, Lister
from cdi.reconcile.pods.roles import (
    DEVICE,
    DIRECTORY,
    DISK,
    IMPORTER,
    STATE,
    DataMount,
    build_pod,
    chosen_node,
    pod_spec,
)
from cdi.reconcile.pods.types import VolumeLayout
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.types import PVC

"""Pod annotation with the digest of the pod's template, to detect that the template has changed."""

MAX_JOB = 200 * 1024
"""Maximum size in bytes; all annotations of an object together are limited to 256 KiB."""
_MAX_JOURNAL = 40 * 1024

SCRATCH = "/scratch"
INPUTS = "/var/run/cdi/inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The attempt that a pod is created for."""

    number: int
    """Number of the attempt, from 1."""
    work: Work
    mounts: tuple[Mount, ...]
    fingerprint: str
    limits: Limits
    upload: str = ""


def pod_layout(claim: PVC, *, scratch: bool) -> VolumeLayout:
    """Return the paths used by a worker in a pod."""
    block = claim.volume_mode == "Block"
    return VolumeLayout(
        disk=DEVICE if block else DISK,
        directory=DIRECTORY,
        journal=f"{STATE}/journal" if block else f"{DIRECTORY}/.cdi/journal",
        scratch=SCRATCH if scratch else None,
        inputs=INPUTS,
    )


def build_worker_pod(
    dv: DataVolume,
    target: PVC,
    filled: PVC,
    attempt: Attempt,
    config: ResolvedConfig,
    objects: Lister,
    *,
    scratch: bool,
) -> dict[str, Any]:
    """Build the manifest of the pod that fills a PVC.

    Args:
        dv: The DataVolume.
        target: Its PVC.
        filled: The PVC to write into: the target or its prime PVC.
        attempt: The attempt to run.
        config: The resolved CDIConfig.
        objects: The observed objects.
        scratch: Whether to mount scratch space.

    Raises:
        InvalidManifest: The job is too large for an annotation.

    """
    job = attempt.work.to_json()
    if len(job.encode()) > MAX_JOB:
        raise InvalidManifest(
            f"the import's job document has {human(len(job.encode()))}, more than the {human(MAX_JOB)} that a "
            "worker accepts",
            remedy="shorten the extra headers or the URL",
        )
    # A pod that serves clients is this one with another command and a certificate (`with_certificate`).
    scratch_mount, scratch_volume = _scratch(filled) if scratch else ([], [])
    spec = pod_spec(
        IMPORTER if _restarts(attempt.work) else replace(IMPORTER, restarts=False),
        config.pods,
        owner=target.uid,
        data=DataMount(claim=filled.name, block=filled.volume_mode == "Block"),
        mounts=[*scratch_mount, *input_mounts(attempt.mounts)],
        volumes=[
            *scratch_volume,
            *input_volumes(attempt.mounts, objects, partial(mirrored_ref, filled=filled), mode=0o440),
        ],
        priority=dv.spec.priority_class_name or target.annotations.get(ANN_PRIORITY_CLASS),
        account=dv.spec.service_account_name or target.annotations.get(ANN_SERVICE_ACCOUNT),
        placement=chosen_node(config.pods, filled.selected_node or target.selected_node),
    )
    return build_pod(
        IMPORTER,
        config,
        spec,
        namespace=filled.namespace,
        name=importer_pod(filled.name),
        annotations={**_annotations(dv, target, filled, attempt, job), **state.SPEC_DIGEST.write(spec_digest(spec))},
        labels={LABEL_PROMETHEUS: "true"},
        owner=claim_owner(filled),
    )


def _scratch(filled: PVC) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the mount of scratch space, and its volume."""
    claim = {"claimName": scratch_claim(filled.name)}
    return [{"name": "scratch", "mountPath": SCRATCH}], [{"name": "scratch", "persistentVolumeClaim": claim}]


def _restarts(work: Work) -> bool:
    """Return whether a restart of the container is the next attempt, as with KubeVirt's importer.

    The client of an upload or of a clone would be connected to the container that ended.
    """
    return isinstance(work, Job) and not isinstance(work.source, StreamSourceSpec | PeerSourceSpec)


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return the value of `SPEC_DIGEST` for a pod's spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def claim_owner(claim: PVC) -> dict[str, Any]:
    """Return an owner reference to a PVC, so that the object is garbage-collected with it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "name": claim.name,
        "uid": claim.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def retains_after_completion(dv: DataVolume, target: PVC) -> bool:
    """Return whether worker pods are kept after completion, for debugging."""
    return "true" in (target.annotations.get(ANN_POD_RETAIN), (dv.metadata.annotations or {}).get(ANN_POD_RETAIN))


def mirrored_ref(ref: ObjectRef, filled: PVC) -> ObjectRef:
    """Return the reference to use in a pod of the PVC's namespace: `ref` itself, or its copy in that namespace."""
    if ref.namespace == filled.namespace:
        return ref
    return replace(ref, namespace=filled.namespace, name=joined(f"{ref.name}-for", filled.name, MAX_NAME))


def mirror_actions(mounts: Iterable[Mount], filled: PVC) -> tuple[MirrorObject, ...]:
    """Return the actions that copy inputs from other namespaces before the pod is created."""
    foreign = dict.fromkeys(ref for mount in mounts for ref in mount.inputs if ref.namespace != filled.namespace)
    owner = claim_owner(filled)
    return tuple(MirrorObject(source=ref, copy=mirrored_ref(ref, filled), owner=owner) for ref in foreign)


# --- parts of the manifest ----------------------------------------------------------------------------------------


def _annotations(dv: DataVolume, target: PVC, filled: PVC, attempt: Attempt, job: str) -> dict[str, str]:
    given = {**(dv.metadata.annotations or {}), **target.annotations}
    annotations = dict(POD_ANNOTATION_DEFAULTS)
    annotations |= {name: given[name] for name in POD_ANNOTATIONS if name in given}
    annotations |= {
        ANN_CREATED_BY_CONTROLLER: "yes",
        **state.OWNER_UID.write(target.uid),
        **state.JOB.write(job),
        **state.LIMITS.write(attempt.limits.to_json()),
        **state.ATTEMPT.write(attempt.number),
        **state.FINGERPRINT.write(attempt.fingerprint),
        **state.UPLOAD.write(attempt.upload),
    }
    journal = state.STORED_JOURNAL.read(filled.annotations) or ""
    annotations |= state.JOURNAL.write(journal if len(journal) <= _MAX_JOURNAL else "")
    if retains_after_completion(dv, target):
        annotations[ANN_POD_RETAIN] = "true"
    return annotations


def input_volumes(
    mounts: Iterable[Mount], objects: InputLister, refer: Callable[[ObjectRef], ObjectRef], *, mode: int
) -> Iterable[dict[str, Any]]:
    """Yield a projected volume for each mount, with the names that `input_mounts` gives them.

    Args:
        mounts: What to mount.
        objects: The keys of the Secrets and ConfigMaps.
        refer: Returns the reference to use in the pod's namespace.
        mode: Permissions of the files.

    """
    for number, mount in enumerate(mounts):
        sources = []
        for ref in mount.inputs:
            source: dict[str, Any] = {"name": refer(ref).name}
            if len(mount.inputs) > 1:
                # Prefix the file names, because keys of different objects may be equal.
                found = objects.input(ref)
                keys = sorted(found.keys) if found is not None else []
                source["items"] = [{"key": key, "path": f"{ref.kind.lower()}-{ref.name}-{key}"[-200:]} for key in keys]
            sources.append({"secret" if ref.kind == "Secret" else "configMap": source})
        yield {"name": f"input-{number}", "projected": {"defaultMode": mode, "sources": sources}}


def input_mounts(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Return the container's mounts of `input_volumes`."""
    return [
        {"name": f"input-{number}", "mountPath": mount.directory, "readOnly": True}
        for number, mount in enumerate(mounts)
    ]
