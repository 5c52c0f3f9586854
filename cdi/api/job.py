"""Contract between control plane and data plane: a worker gets one `Job`, reports progress and ends with one `Outcome`.

A job is complete: a worker needs nothing else, does not use the Kubernetes API, and gives the same result in a pod, in
a subprocess and in a test. Secrets are passed as paths of files that contain them, never by value, so that a job can be
logged. Sizes and offsets are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from cdi.api.decode import JsonJob, JsonRecord, Range, compact_json
from cdi.api.errors import CdiError, Retry, ScratchNeeded
from cdi.api.image_facts import ImageFacts
from cdi.api.peer import PeerSourceSpec

_MAX_UPSTREAM = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Paths of files that each contain one secret value without a trailing newline."""

    access_key_file: str | None = None
    """User name or access key id."""
    secret_key_file: str | None = None
    """Password or secret access key."""
    session_token_file: str | None = None
    """Session token of temporary S3 credentials."""
    service_account_file: str | None = None
    """JSON key of a Google service account."""
    docker_config_file: str | None = None
    """File in the format of ``.dockerconfigjson``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Settings for checking a server's certificate."""

    ca_dir: str | None = None
    """A directory, such as a mounted ConfigMap. Each file in it, with any name, may contain PEM certificates that are
    trusted in addition to the system's."""
    insecure: bool = False
    """Do not check certificates; for a registry, also allow plain HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Proxy settings as in CDIConfig's importProxy; unset values are taken from the environment."""

    http: str | None = None
    https: str | None = None
    no_proxy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSourceSpec:
    """File at an HTTP or HTTPS URL."""

    kind: Literal["http"] = "http"
    url: str
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    headers: tuple[str, ...] = ()
    """Complete ``Header: value`` lines."""
    secret_header_files: tuple[str, ...] = ()
    """Paths of files whose lines are complete ``Header: value`` lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3SourceSpec:
    """Object in a bucket of S3 or a compatible service."""

    kind: Literal["s3"] = "s3"
    url: str
    """``s3://bucket/key``, or a URL on an endpoint, ``https://host/bucket/key``."""
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    region: str | None = None
    endpoint: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    anonymous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsSourceSpec:
    """Object in a bucket of Google Cloud Storage."""

    kind: Literal["gcs"] = "gcs"
    url: str
    """``gs://bucket/object`` or ``https://storage.googleapis.com/bucket/object``."""
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    endpoint: str | None = None
    """Endpoint of another service with the same JSON API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySourceSpec:
    """Container image in a registry or a local archive."""

    kind: Literal["registry"] = "registry"
    url: str
    """``docker://host/repository[:tag|@digest]`` or ``oci-archive:path[:tag]``."""
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    architecture: str | None = None
    """OCI architecture; None is that of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSourceSpec:
    """File or block device of this machine."""

    kind: Literal["file"] = "file"
    path: str
    """A regular file or block device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSourceSpec:
    """Stream that this process inherits, such as a pipe."""

    kind: Literal["stream"] = "stream"
    descriptor: int = 0
    """Open file descriptor that is read once, sequentially."""
    length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankSourceSpec:
    """No content: an empty disk."""

    kind: Literal["blank"] = "blank"


SourceSpec = (
    HttpSourceSpec
    | S3SourceSpec
    | GcsSourceSpec
    | RegistrySourceSpec
    | FileSourceSpec
    | StreamSourceSpec
    | PeerSourceSpec
    | BlankSourceSpec
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTargetSpec:
    """Raw disk image in a directory, written under a temporary name and renamed after verification."""

    kind: Literal["file"] = "file"
    path: str
    """Path of the disk, usually ``…/disk.img``, which is created with mode 0660."""
    volume: int | None = None
    """Size in bytes of a volume that is reserved for this disk, from which the file system's overhead is calculated.
    None if the volume also contains other files."""
    overhead: Annotated[int, Range(at_least=0, at_most=1000)] = 0
    """Expected overhead of the volume's file system, in thousandths of the disk's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTargetSpec:
    """Block device."""

    kind: Literal["block"] = "block"
    path: str
    known_zero: bool = False
    """Whether the device is known to read as zeros, so that zeros need not be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTargetSpec:
    """Directory that an archive is extracted to."""

    kind: Literal["directory"] = "directory"
    path: str


TargetSpec = FileTargetSpec | BlockTargetSpec | DirectoryTargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Settings for how the work is done, all with defaults."""

    engine: Literal["auto", "qemu"] = "auto"
    """``qemu`` converts every image with QEMU, as a workaround for defects of the built-in formats."""
    connections: Annotated[int, Range(at_least=0, at_most=64)] = 0
    """Number of ranges fetched in parallel; 0 chooses automatically."""
    bandwidth: Annotated[int, Range(at_least=0)] = 0
    """Bytes per second from the source; 0 is unlimited."""
    discover_checksum: bool = True
    """Look for checksum files such as SHA256SUMS next to an HTTP image without a given checksum."""
    require_checksum: bool = False
    record_digest: bool = False
    """Compute the SHA-256 digest of the content even if there is no digest to compare it with."""
    signature: Literal["ignore", "if-present", "require"] = "ignore"
    """Whether the detached signature of SHA256SUMS is checked against `keyring`."""
    keyring: str | None = None
    """File with OpenPGP public keys, binary or armored."""
    cosign_keys: tuple[str, ...] = ()
    """PEM files with public keys, or directories of such files; if given, a container image must have a cosign
    signature by one of the keys."""
    preallocation: bool = False
    disk: str | None = None
    """Name of the file in a tar archive or OVA that is the disk; None selects the only one."""
    stall_timeout: Annotated[float, Range(above=0, at_most=86_400)] = 60.0
    """Seconds without data after which a connection is closed."""
    retries: Annotated[int, Range(at_least=0)] = 8
    """Number of consecutive failures without progress after which a transient error ends the job."""
    qemu_memory: Annotated[int, Range(above=0)] = 1 << 30
    """Address space limit of a QEMU program in bytes."""
    qemu_cpu_seconds: Annotated[int, Range(above=0)] = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(JsonJob):
    """Complete description of one transfer."""

    title: ClassVar = "job"

    id: str
    """Identifies the volume across attempts: a journal with another id is not resumed."""
    source: SourceSpec
    target: TargetSpec
    content_type: Literal["kubevirt", "archive"] = "kubevirt"
    size: int | None = None
    """Size of the disk in bytes: a smaller image is grown to it, a larger one is rejected. None is the image's virtual
    size (file target) or the device's size."""
    checksum: str | None = None
    """Digest ``algorithm:hex`` of the bytes that the source serves, before decompression; for a registry image, of its
    manifest."""
    policy: Policy = Policy()
    journal: str | None = None
    """Path of the journal that stores progress for the next attempt."""
    scratch: str | None = None
    """Directory for images that cannot be decoded as a stream; without it they are rejected."""
    continued: bool = False
    """Whether an earlier attempt may have written to the target even if there is no journal, which may be lost with its
    machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Serialized `CdiError`, passed from worker to controller."""

    code: str
    message: str
    """Message with cause, place and remedy."""
    retry: Retry
    exit_status: int = 1
    upstream: str = ""
    """`CdiError.upstream` in ASCII, shortened."""

    @property
    def needs_new_pod(self) -> bool:
        """Return whether a worker that is restarted in the same pod would fail again in the same way."""
        return self.retry is Retry.NEVER or self.code == ScratchNeeded.__name__

    @classmethod
    def from_error(cls, error: CdiError) -> Self:
        """Return the failure for `error`."""
        return cls(
            code=error.code,
            message=error.message,
            retry=error.retry,
            exit_status=error.exit_status,
            # Only ASCII: its escapes in JSON would leave too little of a termination message to our own message.
            upstream="".join(c if " " <= c <= "~" else "?" for c in error.upstream[:_MAX_UPSTREAM]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(JsonRecord):
    """Snapshot of a running transfer.

    Counters only increase, except when the work starts over.
    """

    phase: Literal["preparing", "transferring", "converting", "verifying", "flushing", "done"]
    done: int
    """Bytes of the source that are processed (the watermark), including earlier attempts."""
    total: int | None
    written: int = 0
    """Bytes written to the target in this attempt."""
    fetched: int = 0
    """Bytes received in this attempt."""
    rate: float = 0.0
    """Bytes per second, smoothed."""
    eta: float | None = None
    """Estimated seconds until completion."""
    note: str = ""
    """Unusual circumstances, such as a resumed transfer or a wait for a server."""
    failure: Failure | None = None
    """Error of the last attempt while the worker waits to retry, None while data flows."""

    @property
    def fraction(self) -> float | None:
        """Progress from 0.0 to 1.0, None if the total is unknown."""
        if self.total is None:
            return None
        return 1.0 if self.total == 0 else min(1.0, self.done / self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(ImageFacts, JsonRecord):
    """Result of a job; `failure` is None on success."""

    id: str
    failure: Failure | None = None
    fetched: int = 0
    written: int = 0
    """Bytes written to the target as data or zeros; holes and preallocated blocks are not included."""
    scratch: int = 0
    """Bytes written to scratch space."""
    resumed_at: int = 0
    """Watermark in bytes at which this attempt started."""
    preallocated: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    """Labels from the environment of a containerDisk."""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self, limit: int = 4096) -> str:
        """Return JSON of at most `limit` bytes, dropping the least important fields first.

        The end of a failure's message is dropped last. A `limit` below 1024 is not supported.
        """
        lesser: tuple[dict[str, Any], ...] = (
            {"warnings": [text[:100] for text in self.warnings[:3]]},
            {"labels": {}},
            {"validator": None},
            {"warnings": []},
            {"verified_by": [text[:40] for text in self.verified_by[:4]]},
            {"wrappers": [text[:8] for text in self.wrappers[:8]]},
        )
        return shortened_json(asdict(self), lesser, limit)


def shortened_json(body: dict[str, Any], lesser: Iterable[dict[str, Any]], limit: int) -> str:
    """Return ASCII JSON of at most `limit` bytes.

    Args:
        body: The document. If it has a ``failure``, the end of that message is dropped last.
        lesser: Replacements of fields by less, applied one after the other as long as the text is too long.
        limit: Maximum length; at least 1024.
    """
    for less in lesser:
        if len(compact_json(body)) > limit:
            body |= less
    failure = body["failure"]
    while failure is not None and failure["message"] and (over := len(compact_json(body)) - limit) > 0:
        # A character takes up to 12 bytes.
        failure["message"] = failure["message"][: -max(over // 12, 1)]
    return compact_json(body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(JsonRecord):
    """Settings that may be changed while a worker runs (its control file)."""

    bandwidth: Annotated[int, Range(at_least=0)] = 0
    """Bytes per second; 0 is unlimited."""
    connections: Annotated[int, Range(at_least=0, at_most=64)] = 0
    """Number of ranges fetched in parallel; 0 leaves it to the plan. It is limited by the worker's 192 MiB of memory
    (`cdi.transfer.pipeline.ranged.fit_connections`; docs/how-to/limits.md has the numbers). An image that QEMU reads or
    that is decompressed as a stream never uses more connections than at its start."""
