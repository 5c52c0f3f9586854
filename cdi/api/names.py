"""Names of annotations, labels and objects that other programs rely on.

Names that KubeVirt's CDI also uses are identical, so that clients of either work with both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

GROUP = "cdi.kubevirt.io"
VERSION = "v1beta1"
UPLOAD_GROUP = "upload.cdi.kubevirt.io"

MAX_NAME = 253
"""Maximum length of an object's name (a DNS subdomain), in characters."""
MAX_LABEL = 63
"""Maximum length of a label's value or a Service's name (a DNS label), in characters."""

# --- annotations that users set ---------------------------------------------------------------------------------

ANN_IMMEDIATE_BINDING = f"{GROUP}/storage.bind.immediate.requested"
"""Only its presence matters, not its value."""
ANN_USE_POPULATOR = f"{GROUP}/storage.usePopulator"
ANN_POD_RETAIN = f"{GROUP}/storage.pod.retainAfterCompletion"
ANN_ALLOW_CLAIM_ADOPTION = f"{GROUP}/allowClaimAdoption"
ANN_PRE_POPULATED = f"{GROUP}/storage.prePopulated"
ANN_POPULATED_FOR = f"{GROUP}/storage.populatedFor"
ANN_CHECK_STATIC_VOLUME = f"{GROUP}/storage.checkStaticVolume"
ANN_PERSISTENT_VOLUMES = f"{GROUP}/storage.persistentVolumeList"
"""On a claim to be bound to one of these existing, filled PersistentVolumes: a JSON list of names."""
ANN_PERMISSIVE_CLONE = f"{GROUP}/permissiveClone"
ANN_EXTERNAL_POPULATION = f"{GROUP}/externalPopulation"
ANN_UPLOAD_TARGET = f"{GROUP}/storage.upload.target"
ANN_CONTENT_TYPE = f"{GROUP}/storage.contentType"
ANN_PREALLOCATION_REQUESTED = f"{GROUP}/storage.preallocation.requested"
ANN_PRIORITY_CLASS = f"{GROUP}/storage.pod.priorityclassname"
ANN_SERVICE_ACCOUNT = f"{GROUP}/storage.pod.serviceAccountName"
ANN_VDDK_INIT_IMAGE = f"{GROUP}/storage.pod.vddk.initimageurl"
ANN_VDDK_EXTRA_ARGS = f"{GROUP}/storage.pod.vddk.extraargs"
ANN_CLONE_REQUEST = "k8s.io/CloneRequest"

ANN_SOURCE = f"{GROUP}/storage.import.source"
"""One of http, s3, gcs, glance, none, registry, imageio and vddk."""
ANN_ENDPOINT = f"{GROUP}/storage.import.endpoint"
ANN_SECRET = f"{GROUP}/storage.import.secretName"
ANN_CERT_CONFIG_MAP = f"{GROUP}/storage.import.certConfigMap"
ANN_REGISTRY_IMPORT_METHOD = f"{GROUP}/storage.import.registryImportMethod"
ANN_REGISTRY_IMAGE_STREAM = f"{GROUP}/storage.import.registryImageStream"
ANN_REGISTRY_ARCHITECTURE = f"{GROUP}/storage.import.registryImageArchitecture"
ANN_DISK_ID = f"{GROUP}/storage.import.diskId"
ANN_UUID = f"{GROUP}/storage.import.uuid"
ANN_INSECURE_SKIP_VERIFY = f"{GROUP}/storage.import.insecureSkipVerify"
ANN_BACKING_FILE = f"{GROUP}/storage.import.backingFile"
ANN_THUMBPRINT = f"{GROUP}/storage.import.vddk.thumbprint"
ANN_EXTRA_HEADERS = f"{GROUP}/storage.import.extraHeaders"
"""Prefix, followed by ``.0``, ``.1`` and so on."""
ANN_SECRET_EXTRA_HEADERS = f"{GROUP}/storage.import.secretExtraHeaders"
"""Prefix, followed by ``.0``, ``.1`` and so on."""
ANN_CHECKSUM = f"{GROUP}/storage.import.checksum"

ANN_POD_NETWORK = "k8s.v1.cni.cncf.io/networks"
ANN_POD_MULTUS_DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
ANN_POD_ISTIO_INJECTION = "sidecar.istio.io/inject"
ANN_POD_LINKERD_INJECTION = "linkerd.io/inject"
ANN_OVN_OPEN_DEFAULT_PORTS = "k8s.ovn.org/open-default-ports"
"""Pod annotation that opens ports to the default network where the namespace has a primary network of its own."""
POD_ANNOTATION_DEFAULTS = {ANN_POD_ISTIO_INJECTION: "false", ANN_POD_LINKERD_INJECTION: "disabled"}
POD_ANNOTATIONS = (
    ANN_POD_NETWORK,
    ANN_POD_MULTUS_DEFAULT_NETWORK,
    ANN_POD_ISTIO_INJECTION,
    ANN_POD_LINKERD_INJECTION,
)
"""Annotations copied from a DataVolume or claim to its worker pod."""

# --- annotations that are written as status ---------------------------------------------------------------------

ANN_POD_PHASE = f"{GROUP}/storage.pod.phase"
ANN_POD_READY = f"{GROUP}/storage.pod.ready"
ANN_POD_RESTARTS = f"{GROUP}/storage.pod.restarts"
ANN_POD_SCHEDULABLE = f"{GROUP}/storage.pod.schedulable"
ANN_IMPORT_FATAL_ERROR = f"{GROUP}/storage.import.fatalError"
ANN_IMPORT_POD = f"{GROUP}/storage.import.importPodName"
ANN_REQUIRES_SCRATCH = f"{GROUP}/storage.import.requiresScratch"
ANN_REQUIRES_DIRECT_IO = f"{GROUP}/storage.import.requiresDirectIo"
ANN_UPLOAD_POD = f"{GROUP}/storage.uploadPodName"
ANN_IMAGE_VALIDATOR = f"{GROUP}/image.validator"
"""On a volume filled by a resumable upload: the upload's id (`cdi.api.upload_protocol.UploadId`)."""
ANN_SOURCE_CLONE_POD = f"{GROUP}/storage.sourceClonePodName"
ANN_RUNNING_CONDITION = f"{GROUP}/storage.condition.running"
ANN_RUNNING_CONDITION_MESSAGE = f"{GROUP}/storage.condition.running.message"
ANN_RUNNING_CONDITION_REASON = f"{GROUP}/storage.condition.running.reason"
ANN_BOUND_CONDITION = f"{GROUP}/storage.condition.bound"
ANN_BOUND_CONDITION_MESSAGE = f"{GROUP}/storage.condition.bound.message"
ANN_BOUND_CONDITION_REASON = f"{GROUP}/storage.condition.bound.reason"
ANN_SOURCE_RUNNING_CONDITION = f"{GROUP}/storage.condition.source.running"
ANN_SOURCE_RUNNING_CONDITION_MESSAGE = f"{GROUP}/storage.condition.source.running.message"
ANN_SOURCE_RUNNING_CONDITION_REASON = f"{GROUP}/storage.condition.source.running.reason"
ANN_PREVIOUS_CHECKPOINT = f"{GROUP}/storage.checkpoint.previous"
ANN_CURRENT_CHECKPOINT = f"{GROUP}/storage.checkpoint.current"
ANN_FINAL_CHECKPOINT = f"{GROUP}/storage.checkpoint.final"
ANN_CHECKPOINTS_COPIED = f"{GROUP}/storage.checkpoint.copied"
"""Prefix, followed by a dot and the checkpoint's name."""
ANN_CHECKPOINT_POD_ID = f"{GROUP}/storage.checkpoint.pod.id"
ANN_CHECKPOINT_DONE = f"{GROUP}/storage.checkpoint.done"
ANN_POPULATOR_PROGRESS = f"{GROUP}/storage.populator.progress"
ANN_PVC_PRIME = f"{GROUP}/storage.populator.pvcPrime"
ANN_POPULATOR_KIND = f"{GROUP}/storage.populator.kind"
ANN_PREALLOCATION_APPLIED = f"{GROUP}/storage.preallocation"
ANN_CLONE_TOKEN = f"{GROUP}/storage.clone.token"
ANN_EXTENDED_CLONE_TOKEN = f"{GROUP}/storage.extended.clone.token"
ANN_CLONE_TYPE = f"{GROUP}/cloneType"
ANN_CLONE_PHASE = f"{GROUP}/clonePhase"
ANN_CLONE_FALLBACK_REASON = f"{GROUP}/cloneFallbackReason"
ANN_CLONE_ERROR = f"{GROUP}/cloneError"
ANN_CLONE_OF = "k8s.io/CloneOf"
ANN_DATA_SOURCE_NAMESPACE = f"{GROUP}/dataSourceNamespace"
ANN_OWNED_BY_DATA_VOLUME = f"{GROUP}/ownedByDataVolume"
ANN_OWNER_UID = f"{GROUP}/ownerUID"
ANN_CREATED_FOR_DATA_VOLUME = f"{GROUP}/createdForDataVolume"
ANN_CREATED_BY_CONTROLLER = f"{GROUP}/storage.createdByController"
ANN_UPLOAD_CLIENT_NAME = f"{GROUP}/uploadClientName"
ANN_EVENT_SOURCE = f"{GROUP}/events.source"
ANN_EVENT_SOURCE_KIND = f"{GROUP}/events.source.kind"
ANN_DELETE_AFTER_COMPLETION = f"{GROUP}/storage.deleteAfterCompletion"
"""Still set by clients, without effect."""
ANN_GARBAGE_COLLECTED = f"{GROUP}/garbageCollected"
"""Still read by clients."""

# --- annotations on other objects -------------------------------------------------------------------------------

ANN_SNAPSHOT_SOURCE_VOLUME_MODE = f"{GROUP}/storage.import.sourceVolumeMode"
ANN_SNAPSHOT_ADVISED_RESTORE_SIZE = f"{GROUP}/storage.import.advisedRestoreSize"
ANN_TEMPORARY_CONSUMER = "kubevirt.io/ephemeral-provisioning"
"""On a pod of KubeVirt that runs nothing and only makes Kubernetes bind the PVCs of a machine."""
ANN_DEFAULT_VIRT_CLASS = "storageclass.kubevirt.io/is-default-virt-class"
ANN_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
ANN_CLONE_STRATEGY = f"{GROUP}/clone-strategy"
ANN_MINIMUM_PVC_SIZE = f"{GROUP}/minimumSupportedPvcSize"
ANN_CRON_READ_WRITE_ONCE = f"{GROUP}/useReadWriteOnceForDataImportCron"
ANN_CRON_SNAPSHOT_CLASS = f"{GROUP}/snapshotClassForDataImportCron"
ANN_CONFIG_AUTHORITY = f"{GROUP}/configAuthority"
ANN_SELECTED_NODE = "volume.kubernetes.io/selected-node"
ANN_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
ANN_PROVISIONER_BEFORE = "volume.beta.kubernetes.io/storage-provisioner"
"""`ANN_PROVISIONER` for provisioners older than Kubernetes 1.23."""

# --- labels -----------------------------------------------------------------------------------------------------

LABEL_APP = "app"
APP = "containerized-data-importer"
LABEL_COMPONENT = GROUP
COMPONENT_IMPORTER = "importer"
COMPONENT_UPLOAD_SERVER = "cdi-upload-server"
COMPONENT_CLONER = "cdi-clone-source"
COMPONENT_PROOF = "cdi-boot-proof"
"""Component of the pods that boot a virtual machine from a golden image, which is not one of KubeVirt's CDI."""
LABEL_PROMETHEUS = "prometheus.cdi.kubevirt.io"
LABEL_DATA_IMPORT_CRON = f"{GROUP}/dataImportCron"
LABEL_DATA_IMPORT_CRON_NAMESPACE = f"{GROUP}/dataImportCronNs"
LABEL_DATA_IMPORT_CRON_POLLER = f"{GROUP}/dataImportCronPoller"
"""Label of pods that poll the source of a DataImportCron; its value is empty."""
LABEL_DATA_IMPORT_CRON_CLEANUP = f"{GROUP}/dataImportCron.cleanup"
LABEL_APPLY_STORAGE_PROFILE = f"{GROUP}/applyStorageProfile"
LABEL_UPLOAD_TARGET = f"{GROUP}/uploadTarget"
LABEL_ALERT_FILLING_UP = "alerts.k8s.io/KubePersistentVolumeFillingUp"
LABEL_VELERO_EXCLUDE = "velero.io/exclude-from-backup"
LABEL_DEFAULT_INSTANCETYPE = "instancetype.kubevirt.io/default-instancetype"
LABEL_DEFAULT_INSTANCETYPE_KIND = "instancetype.kubevirt.io/default-instancetype-kind"
LABEL_DEFAULT_PREFERENCE = "instancetype.kubevirt.io/default-preference"
LABEL_DEFAULT_PREFERENCE_KIND = "instancetype.kubevirt.io/default-preference-kind"
DEFAULT_INSTANCETYPE_LABELS = (
    LABEL_DEFAULT_INSTANCETYPE,
    LABEL_DEFAULT_INSTANCETYPE_KIND,
    LABEL_DEFAULT_PREFERENCE,
    LABEL_DEFAULT_PREFERENCE_KIND,
)

COMMON_LABELS = {LABEL_APP: APP}
TEMPORARY_CLAIM_LABELS = {LABEL_VELERO_EXCLUDE: "true", LABEL_ALERT_FILLING_UP: "disabled"}
"""Labels of prime and scratch claims, which exclude them from backups and from alerts about full volumes."""


def propagates(label: str) -> bool:
    """Return whether a label is copied from a source to its claim, DataVolume and DataSource, as KubeVirt's are.

    Labels by which a DataImportCron finds and deletes its images are never copied to objects of others.
    """
    if label in (LABEL_DATA_IMPORT_CRON, LABEL_DATA_IMPORT_CRON_CLEANUP):
        return False
    domain, slash, _ = label.partition("/")
    return bool(slash) and (domain == "kubevirt.io" or domain.endswith(".kubevirt.io"))


def labels_for_clone(source: Mapping[str, str], own: Collection[str]) -> dict[str, str]:
    """Return the labels that a clone takes over from its source: the default instance type, unless it has its own."""
    if any(name in own for name in DEFAULT_INSTANCETYPE_LABELS):
        return {}
    return {name: source[name] for name in DEFAULT_INSTANCETYPE_LABELS if name in source}


def means_true(value: str | None) -> bool:
    """Return whether an annotation's value is true for Go's ``strconv.ParseBool``."""
    return value in ("1", "t", "T", "true", "True", "TRUE")


# --- names ------------------------------------------------------------------------------------------------------

INSTALLATION = "cdi"
"""Prefix in the names of an installation's own objects, unless the installation has another one."""


def prefixed_name(name: str, prefix: str = INSTALLATION) -> str:
    """Return the name of an installation's own object; `name` is its name with the default prefix."""
    return prefix + name.removeprefix(INSTALLATION)


def joined(base: str, suffix: str, limit: int = MAX_NAME) -> str:
    """Return ``base-suffix``, shortened with a hash if it exceeds `limit` characters.

    The result equals that of KubeVirt's CDI, which uses OpenShift's namer: the base is truncated first, and the suffix
    is dropped if there is no space for it.
    """
    name = f"{base}-{suffix}"
    if len(name) <= limit:
        return name
    room = limit - 10 - len(suffix)
    if room < 0:
        return f"{_cut(base, limit - 9)}-{_hash(name)}"
    return f"{_cut(base, room)}-{_hash(base)}-{suffix}"


def label_name(name: str) -> str:
    """Return a name as a label's value or a Service's name: without dots, at most 63 characters."""
    flat = name.replace(".", "-")
    return flat if len(flat) <= MAX_LABEL else joined(flat, "cdi", MAX_LABEL)


def importer_pod(claim: str) -> str:
    """Return the name of a claim's importer pod; for a populated claim, pass its prime claim."""
    return joined("importer", claim)


def upload_pod(claim: str) -> str:
    return joined("cdi-upload", claim)


def upload_service(claim: str) -> str:
    """Return the name of the Service for a claim's upload pod."""
    return label_name(upload_pod(claim))


def clone_source_pod(source_uid: str, number: int = 0, *, archive: bool = False) -> str:
    """Return the name of a clone's source pod, with a number for each additional one.

    Args:
        source_uid: The uid of the source claim.
        number: Number of an additional pod; 0 for the first one.
        archive: The pod sends a directory tree instead of a disk.
    """
    parts = [source_uid, *(["archive"] if archive else []), *([str(number)] if number else []), "source-pod"]
    return "-".join(parts)


def proof_pod(uid: str, version: str) -> str:
    """Return the name of the pod that boots a virtual machine from a version of a golden image.

    Args:
        uid: The uid of the version's claim.
        version: The version's name.
    """
    return joined(f"prove-{uid[:8]}", version)


def scratch_claim(claim: str) -> str:
    return joined(claim, "scratch")


def prime_claim(uid: str) -> str:
    """Return the name of the temporary claim that is filled for the claim with this uid."""
    return f"prime-{uid}"


def temporary_claim(uid: str) -> str:
    return f"tmp-pvc-{uid}"


def temporary_snapshot(uid: str) -> str:
    return f"tmp-snapshot-{uid}"


def import_source(uid: str) -> str:
    """Return the name of the VolumeImportSource that belongs to the DataVolume with this uid."""
    return f"volume-import-source-{uid}"


def upload_source(uid: str) -> str:
    return f"volume-upload-source-{uid}"


def clone_source(uid: str) -> str:
    return f"volume-clone-source-{uid}"


_DIGEST_LENGTH = 12
"""Characters of a digest in the name of an import."""
_DIGEST = {"sha256": re.compile(r"[0-9a-f]{12,64}"), "uid": re.compile(r"[0-9a-z][-0-9a-z]{10}[0-9a-z][-0-9a-z]{0,64}")}
"""Digests of a DataImportCron, by their algorithm."""


def digest_problem(digest: str) -> str:
    """Return why a digest cannot name an import; empty if it can.

    Valid are ``sha256:`` with hexadecimal digits and ``uid:`` with the uid of a PVC. The text begins with that of
    KubeVirt's CDI.
    """
    prefix, _, rest = digest.partition(":")
    if prefix not in _DIGEST:
        return f"Digest has no supported prefix: it is {digest[:80]!r}, not sha256:HEX or uid:UID"
    if len(rest) < _DIGEST_LENGTH:
        return f"Digest is too short: {digest[:80]!r} has {len(rest)} of {_DIGEST_LENGTH} characters"
    if not _DIGEST[prefix].fullmatch(rest):
        return f"Digest {digest[:80]!r} is not {prefix}: and lower case hexadecimal digits"
    return ""


def cron_import(managed_data_source: str, digest: str) -> str:
    """Return the name of the DataVolume for one import of a DataImportCron.

    Raises:
        ValueError: `digest_problem` finds one.
    """
    if problem := digest_problem(digest):
        raise ValueError(problem)
    return joined(managed_data_source, digest.partition(":")[2][:_DIGEST_LENGTH])


POLL_ACCOUNT = f"{INSTALLATION}-cronjob"
"""Service account of the pods that poll sources, with the default prefix."""


def poll_cron_job(cron: str, uid: str) -> str:
    """Return the name of the CronJob that shows the poll pods of a DataImportCron.

    It is shortened so that the names of its Jobs are valid too, which are at most 63 characters long.
    """
    return joined(cron, uid[:8], MAX_LABEL - len(initial_poll_job("")))


def initial_poll_job(cron_job: str) -> str:
    """Return the name of the Job of the first poll."""
    return f"initial-job-{cron_job}"


def poll_pod(cron: str, uid: str) -> str:
    """Return the name of the pod by which a node pulls the image of a DataImportCron."""
    return joined(f"poller-{cron}", uid[:8])


def _cut(text: str, length: int) -> str:
    # A DNS label cannot start with the hyphen that follows.
    return text[: max(0, length)].rstrip(".")


def _hash(text: str) -> str:
    """Return the 32-bit FNV-1a hash as eight hex digits."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{value:08x}"


# --- syntax of names --------------------------------------------------------------------------------------------

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")


def is_label(name: str, value: str) -> bool:
    """Return whether Kubernetes accepts this label name and value."""
    domain, slash, rest = name.rpartition("/")
    return (
        (not slash or is_dns_subdomain(domain))
        and _LABEL_NAME.fullmatch(rest) is not None
        and (not value or _LABEL_NAME.fullmatch(value) is not None)
    )


def is_dns_label(text: str) -> bool:
    """Return whether a text is a DNS label (RFC 1123), such as the name of a namespace or Service."""
    return len(text) <= MAX_LABEL and _DNS_LABEL.fullmatch(text) is not None


def is_dns_subdomain(text: str) -> bool:
    """Return whether a text is a DNS subdomain (RFC 1123), such as the names of most objects."""
    return len(text) <= MAX_NAME and _DNS_SUBDOMAIN.fullmatch(text) is not None
