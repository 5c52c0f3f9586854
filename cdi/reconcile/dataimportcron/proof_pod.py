"""Manifest of the pod that boots a virtual machine from a version of a golden image.

Like worker pods it complies with the restricted Pod Security Standard, has no API credentials, and is owned by the PVC.
The PVC is mounted read-only: the virtual machine writes to an overlay in an emptyDir.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cdi.api.annotations import ATTEMPT, FINGERPRINT, JOB, OWNER_UID, SPEC_DIGEST
from cdi.api.golden import GoldenSettings
from cdi.api.names import (
    ANN_CREATED_BY_CONTROLLER,
    ANN_POD_RETAIN,
    LABEL_DATA_IMPORT_CRON,
    POD_ANNOTATION_DEFAULTS,
    proof_pod,
)
from cdi.api.proof import ProofJob
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.pods.builder import (
    claim_owner,
    spec_digest,
)
from cdi.reconcile.pods.roles import (
    DEVICE,
    DISK,
    PROOF,
    DataMount,
    any_node,
    build_pod,
    pod_spec,
)
from cdi.reconcile.types import PVC

KVM: Final = "devices.kubevirt.io/kvm"
"""Extended resource of KubeVirt's device plugin, which gives a pod access to /dev/kvm."""
OVERLAY: Final = 4 << 30
"""Bytes that a virtual machine may write; more fails inside it before the kubelet evicts the pod."""
MEMORY_OVERHEAD: Final = 512 << 20
"""Bytes that QEMU and the worker need besides the memory of the virtual machine: translated code, above all."""
EPHEMERAL_OVERHEAD: Final = 256 << 20
"""Bytes of ephemeral storage besides the overlay's content: its metadata, firmware variables, the log."""
CPU_REQUEST: Final = "250m"
CPU_LIMIT: Final = "2"
"""The virtual machine has two processors."""
MAX_DEFAULT_TIMEOUT: Final = 1200
"""Seconds of the longest default timeout, that of emulation (`cdi.boot.check.DEFAULT_TIMEOUTS`)."""
STARTUP_TIME: Final = 900
"""Seconds that image pull, mounting and cleanup may take before the pod counts as hanging."""


def proof_job(settings: GoldenSettings, claim: PVC, *, disk: str, architecture: str | None = None) -> ProofJob:
    """Return the worker's job.

    Args:
        settings: The settings in force.
        claim: The version's PVC.
        disk: Path of the disk where the worker runs.
        architecture: OCI architecture of the virtual machine; None for that of the machine that runs the proof.

    """
    return ProofJob(
        id=claim.uid,
        disk=disk,
        memory=settings.proof_memory,
        timeout=settings.proof_timeout,
        firmware=settings.proof_firmware,
        expect=settings.proof_expect,
        architecture=architecture,
        overlay=OVERLAY,
    )


def job_fingerprint(job: ProofJob) -> str:
    """Return a digest by which a pod's job is compared with the wanted one."""
    return hashlib.sha256(job.to_json().encode()).hexdigest()[:32]


def pod_job(context: CronContext, claim: PVC) -> ProofJob:
    """Return the job of a pod; its architecture is that of its node, which the pod's node selector chooses."""
    return proof_job(context.settings, claim, disk=DEVICE if claim.volume_mode == "Block" else DISK)


def build_proof_pod(
    context: CronContext, claim: PVC, *, version: str, architecture: str | None, attempt: int, kvm: bool
) -> dict[str, Any]:
    """Build the pod's manifest.

    Args:
        context: The DataImportCron.
        claim: The version's PVC.
        version: Name of the version.
        architecture: Its OCI architecture, if known.
        attempt: Number of the attempt, from 1.
        kvm: Whether to request KVM; without it, the processor is emulated.

    """
    config, job = context.config, pod_job(context, claim)
    template = context.cron.spec.template.spec
    device = {KVM: "1"} if kvm else {}
    memory, overlay = str(job.memory + MEMORY_OVERHEAD), OVERLAY + EPHEMERAL_OVERHEAD
    spec = pod_spec(
        PROOF,
        config.pods,
        owner=claim.uid,
        data=DataMount(claim=claim.name, block=claim.volume_mode == "Block"),
        tmp_limit=overlay,
        resources={
            "limits": {"cpu": CPU_LIMIT, "memory": memory, "ephemeral-storage": str(overlay), **device},
            "requests": {
                "cpu": CPU_REQUEST,
                "memory": memory,
                "ephemeral-storage": str(EPHEMERAL_OVERHEAD),
                **device,
            },
        },
        priority=template.priority_class_name,
        # Topology needs nothing here: the volume is bound, and the scheduler knows which nodes can mount it.
        placement=any_node(config.pods, architecture=architecture),
    )
    spec["activeDeadlineSeconds"] = int(job.timeout or MAX_DEFAULT_TIMEOUT) + STARTUP_TIME
    annotations = {
        **POD_ANNOTATION_DEFAULTS,
        ANN_CREATED_BY_CONTROLLER: "yes",
        **OWNER_UID.write(claim.uid),
        **JOB.write(job.to_json()),
        **ATTEMPT.write(attempt),
        **FINGERPRINT.write(job_fingerprint(job)),
        **SPEC_DIGEST.write(spec_digest(spec)),
    }
    if retains_pods(context):
        annotations[ANN_POD_RETAIN] = "true"
    return build_pod(
        PROOF,
        config,
        spec,
        namespace=claim.namespace,
        name=proof_pod(claim.uid, version),
        annotations=annotations,
        labels={LABEL_DATA_IMPORT_CRON: context.name},
        owner=claim_owner(claim),
    )


def retains_pods(context: CronContext) -> bool:
    """Return whether pods of finished proofs are kept, for debugging."""
    return context.annotations.get(ANN_POD_RETAIN) == "true"
