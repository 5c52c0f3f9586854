"""Manifests of polls: the CronJob that shows their pods, its Jobs, and the pod by which a node pulls an image.

The Jobs are created by this controller, not by kube-controller-manager, so that many polls that are due at once are
spread. The CronJob is suspended: it is the template of the Jobs, and is kept like that of KubeVirt's CDI. A poll pod
holds no API credentials; its result is its termination message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from cdi.api.annotations import JOB, NEXT_POLL, SPEC_DIGEST
from cdi.api.names import (
    COMMON_LABELS,
    LABEL_DATA_IMPORT_CRON,
    LABEL_DATA_IMPORT_CRON_NAMESPACE,
    LABEL_DATA_IMPORT_CRON_POLLER,
    MAX_NAME,
    initial_poll_job,
    joined,
    poll_cron_job,
    poll_pod,
)
from cdi.reconcile.actions import MirrorObject, ObjectRef
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.labels import MANAGED_LABELS
from cdi.reconcile.dataimportcron.poll_observed import IMAGE_CONTAINER
from cdi.reconcile.pods.builder import (
    input_mounts,
    input_volumes,
)
from cdi.reconcile.pods.job import PollSpec
from cdi.reconcile.pods.roles import (
    NODE_POLL,
    POLL,
    TMP_MOUNT,
    any_node,
    build_pod,
    pod_spec,
)

ANN_REQUIRED_SCC: Final = "openshift.io/required-scc"
_SHARED: Final = "/shared"
_PROGRAM: Final = f"{_SHARED}/server"
_ZONES: Final = ("CRON_TZ=", "TZ=")


def object_labels(context: CronContext) -> dict[str, str]:
    """Return the labels of the CronJob and the Jobs, by which they are found and deleted with the DataImportCron."""
    return {
        **context.config.labels,
        **MANAGED_LABELS,
        LABEL_DATA_IMPORT_CRON_NAMESPACE: context.namespace,
        LABEL_DATA_IMPORT_CRON: context.name,
    }


def build_cron_job(context: CronContext, poll: PollSpec, digest: str) -> dict[str, Any]:
    """Build the CronJob; `digest` is that of `cron_job_spec`."""
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {
            **_metadata(context, poll_cron_job(context.name, context.uid)),
            "annotations": SPEC_DIGEST.write(digest),
        },
        "spec": cron_job_spec(context, poll),
    }


def cron_job_spec(context: CronContext, poll: PollSpec) -> dict[str, Any]:
    """Return the spec of the CronJob.

    Kubernetes rejects a time zone in the schedule itself.
    """
    schedule, zone = context.cron.spec.schedule, ""
    prefix = next((one for one in _ZONES if schedule.startswith(one)), "")
    if prefix:
        zone, *rest = schedule.removeprefix(prefix).split(maxsplit=1)
        schedule = "".join(rest)
    return {
        "schedule": schedule.strip(),
        **({"timeZone": zone} if zone else {}),
        "concurrencyPolicy": "Forbid",
        "suspend": True,
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 1,
        "jobTemplate": {"metadata": {"labels": object_labels(context)}, "spec": _job_spec(context, poll)},
    }


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return the digest by which a change of the CronJob's spec is noticed, despite the API server's defaults."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def build_job(context: CronContext, poll: PollSpec, *, first: bool) -> dict[str, Any]:
    """Build the Job of one poll."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**_metadata(context, job_name(context, first=first)), "annotations": _due(context)},
        "spec": _job_spec(context, poll),
    }


def job_name(context: CronContext, *, first: bool) -> str:
    """Return the name of a Job that is created now: at most one a minute, so that none is created twice."""
    cron_job = poll_cron_job(context.name, context.uid)
    return initial_poll_job(cron_job) if first else f"{cron_job}-{int(context.now // 60)}"


def mirror_actions(context: CronContext, poll: PollSpec, owner: Mapping[str, Any]) -> tuple[MirrorObject, ...]:
    """Return the actions that copy Secrets and ConfigMaps beside the DataImportCron to its poll pods."""
    refs = dict.fromkeys(ref for mount in poll.mounts for ref in mount.inputs)
    foreign = (ref for ref in refs if ref.namespace != context.install_namespace)
    return tuple(MirrorObject(source=ref, copy=_mirrored(context, ref), owner=owner) for ref in foreign)


def cron_job_owner(cron_job: Mapping[str, Any]) -> dict[str, Any]:
    """Return an owner reference to the CronJob, with which the copies of Secrets are garbage-collected."""
    metadata = cron_job["metadata"]
    return {"apiVersion": "batch/v1", "kind": "CronJob", "name": metadata["name"], "uid": metadata["uid"]}


def build_node_pod(context: CronContext, image: str, architecture: str | None) -> dict[str, Any]:
    """Build the pod by which a node pulls `image`.

    The image need not contain a shell: its container runs a program that another container has written.
    """
    spec = pod_spec(
        NODE_POLL,
        context.config.pods,
        owner=context.uid,
        args=(_PROGRAM,),
        mounts=[{"name": "shared-volume", "mountPath": _SHARED}, TMP_MOUNT],
        volumes=[{"name": "shared-volume", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
        placement=any_node(context.config.pods, architecture=architecture),
    )
    (init,) = spec["containers"]
    container = {
        "name": IMAGE_CONTAINER,
        "image": image,
        "imagePullPolicy": "Always",
        "command": [_PROGRAM, "-h"],
        "resources": init["resources"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "shared-volume", "mountPath": _SHARED}],
        "securityContext": init["securityContext"],
    }
    spec |= {"initContainers": [init], "containers": [container]}
    return build_pod(
        NODE_POLL,
        context.config,
        spec,
        namespace=context.namespace,
        name=poll_pod(context.name, context.uid),
        annotations=_due(context),
        labels={LABEL_DATA_IMPORT_CRON_POLLER: "", LABEL_DATA_IMPORT_CRON: context.name},
        owner=context.cron_reference,
    )


# --- parts --------------------------------------------------------------------------------------------------------


def _metadata(context: CronContext, name: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": context.install_namespace,
        "labels": object_labels(context),
    }
    if context.owner is not None:
        # OpenShift rejects a blocking reference from a client without the right to update cdis/finalizers, which a
        # controller that shares the cluster with another one does not have.
        metadata["ownerReferences"] = [{**context.owner, "blockOwnerDeletion": False}]
    return metadata


def _due(context: CronContext) -> dict[str, str]:
    """Return the annotation of a poll that tells the request that it serves from a later one."""
    return {NEXT_POLL.key: context.annotations.get(NEXT_POLL.key, "")}


def _job_spec(context: CronContext, poll: PollSpec) -> dict[str, Any]:
    return {
        "backoffLimit": 2,
        "ttlSecondsAfterFinished": 10,
        "template": {
            "metadata": {
                "labels": {
                    **COMMON_LABELS,
                    LABEL_DATA_IMPORT_CRON_POLLER: "",
                    LABEL_DATA_IMPORT_CRON_NAMESPACE: context.namespace,
                    LABEL_DATA_IMPORT_CRON: context.name,
                },
                "annotations": {ANN_REQUIRED_SCC: "restricted-v2", **JOB.write(poll.work.to_json())},
            },
            "spec": _pod_spec(context, poll),
        },
    }


def _pod_spec(context: CronContext, poll: PollSpec) -> dict[str, Any]:
    return pod_spec(
        POLL,
        context.config.pods,
        owner=context.uid,
        mounts=input_mounts(poll.mounts),
        # The pod has no group of its own, so its user may read the files only if everybody may.
        volumes=input_volumes(poll.mounts, context.objects, partial(_mirrored, context), mode=0o444),
        account=context.poll_account,
    )


def _mirrored(context: CronContext, ref: ObjectRef) -> ObjectRef:
    """Return the reference to use in the installation's namespace: `ref` itself, or its copy there."""
    if ref.namespace == context.install_namespace:
        return ref
    name = joined(f"{ref.name}-for", poll_cron_job(context.name, context.uid), MAX_NAME)
    return ObjectRef(kind=ref.kind, namespace=context.install_namespace, name=name)
