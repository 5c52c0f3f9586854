"""The contract between the planes: one `Job` goes into a worker; progress, then exactly one `Outcome` come out.

A job is complete: a worker needs nothing else, talks to no Kubernetes, and gives the same result in a pod, in a
subprocess and in a test.  Secrets are named by the path of a file that holds them, never by value, so a job can be
logged.  Sizes and offsets are bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from cdi.api.decode import DecodeError, Range, decode
from cdi.api.errors import CdiError, InvalidManifest, Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Paths of files, each holding one secret value without a trailing newline."""

    access_key_file: str | None = None
    """User name, or access key id."""
    secret_key_file: str | None = None
    """Password, or secret access key."""
    session_token_file: str | None = None
    """A temporary S3 credential's session token."""
    service_account_file: str | None = None
    """A Google service account's JSON key."""
    docker_config_file: str | None = None
    """A ``.dockerconfigjson``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a server's certificate is checked."""

    ca_dir: str | None = None
    """A directory (a mounted ConfigMap): every file in it, whatever its name, may hold PEM certificates that are
    trusted beside the system's."""
    insecure: bool = False
    """Do not check certificates at all; for a registry also: plain HTTP is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """As in CDIConfig's importProxy.  Empty means: what the environment says."""

    http: str | None = None
    https: str | None = None
    no_proxy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSourceSpec:
    kind: Literal["http"] = "http"
    url: str
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    headers: tuple[str, ...] = ()
    """Whole ``Header: value`` lines."""
    secret_header_files: tuple[str, ...] = ()
    """Paths; every line of each is a whole ``Header: value`` line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3SourceSpec:
    kind: Literal["s3"] = "s3"
    url: str
    """``s3://bucket/key`` or an endpoint's URL, ``https://host/bucket/key``."""
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    region: str | None = None
    endpoint: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    anonymous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsSourceSpec:
    kind: Literal["gcs"] = "gcs"
    url: str
    """``gs://bucket/object`` or ``https://storage.googleapis.com/bucket/object``."""
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    endpoint: str | None = None
    """Another service that speaks the JSON API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySourceSpec:
    kind: Literal["registry"] = "registry"
    url: str
    """``docker://host/repository[:tag|@digest]`` or ``oci-archive:path[:tag]``."""
    credentials: Credentials = Credentials()
    tls: Tls = Tls()
    proxy: Proxy = Proxy()
    architecture: str | None = None
    """An OCI architecture; that of this machine where none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSourceSpec:
    kind: Literal["file"] = "file"
    path: str
    """A regular file or a block device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSourceSpec:
    kind: Literal["stream"] = "stream"
    descriptor: int = 0
    """An open file descriptor that is read once, from front to back."""
    length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankSourceSpec:
    kind: Literal["blank"] = "blank"


SourceSpec = (
    HttpSourceSpec
    | S3SourceSpec
    | GcsSourceSpec
    | RegistrySourceSpec
    | FileSourceSpec
    | StreamSourceSpec
    | BlankSourceSpec
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTargetSpec:
    """A raw disk image in a directory: written beside its name and moved there when it is verified."""

    kind: Literal["file"] = "file"
    path: str
    """The disk, usually ``…/disk.img``; made with mode 0660."""
    volume: int | None = None
    """Bytes of the volume that this disk is to have for itself; what its file system keeps is reckoned from them.  None
    where others have room in it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTargetSpec:
    kind: Literal["block"] = "block"
    path: str
    known_zero: bool = False
    """The device is known to read as zeros, so zeros need not be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTargetSpec:
    """Where an archive is unpacked."""

    kind: Literal["directory"] = "directory"
    path: str


TargetSpec = FileTargetSpec | BlockTargetSpec | DirectoryTargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the work is done; everything has a sound default."""

    engine: Literal["auto", "qemu"] = "auto"
    """``qemu`` gives every image to QEMU: the escape hatch."""
    connections: Annotated[int, Range(at_least=0, at_most=64)] = 0
    """How many ranges are fetched at a time; 0 chooses."""
    bandwidth: Annotated[int, Range(at_least=0)] = 0
    """Bytes per second from the source; 0 is unlimited."""
    discover_checksum: bool = True
    """Look for SHA256SUMS and the like beside an HTTP image where no checksum is given."""
    require_checksum: bool = False
    record_digest: bool = False
    """Compute the content's sha256 even where there is nothing to compare it with."""
    signature: Literal["ignore", "if-present", "require"] = "ignore"
    """Whether SHA256SUMS's detached signature is checked against `keyring`."""
    keyring: str | None = None
    """A file of OpenPGP public keys, binary or armoured."""
    preallocation: bool = False
    stall_timeout: Annotated[float, Range(above=0, at_most=86_400)] = 60.0
    """Seconds without a byte until a connection is given up."""
    retries: Annotated[int, Range(at_least=0)] = 8
    """Failures in a row, without a byte of progress, until a passing fault is handed to the controller."""
    qemu_memory: Annotated[int, Range(above=0)] = 1 << 30
    """Address space for a QEMU program, bytes."""
    qemu_cpu_seconds: Annotated[int, Range(above=0)] = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that one transfer needs."""

    id: str
    """Names the volume's life, not the attempt's: a journal of another id is not continued."""
    source: SourceSpec
    target: TargetSpec
    content_type: Literal["kubevirt", "archive"] = "kubevirt"
    size: int | None = None
    """The disk's size in bytes: an image that is smaller is grown to it, a larger one refused.  None: the image's
    own virtual size (a file target), or the device's."""
    checksum: str | None = None
    """``algorithm:hex`` of the bytes that the source serves, before any unpacking; of a registry's image, its
    manifest's digest."""
    policy: Policy = Policy()
    journal: str | None = None
    """Where progress is kept for the next attempt."""
    scratch: str | None = None
    """A directory for what cannot be decoded as a stream; without it such images are refused."""
    continued: bool = False
    """An earlier attempt may have written to the target, also where no journal says so: its machine may have gone with
    it."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `InvalidManifest` naming every field that is wrong."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a job: {error}") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A `CdiError`, as it crosses from worker to controller."""

    code: str
    message: str
    """What, where and remedy, rendered."""
    retry: Retry
    exit_status: int = 1

    @classmethod
    def of(cls, error: CdiError) -> Self:
        """Return the failure that `error` is."""
        return cls(code=error.code, message=error.message, retry=error.retry, exit_status=error.exit_status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a transfer.  Counters only grow, except when the work starts over."""

    phase: Literal["preparing", "transferring", "converting", "verifying", "flushing", "done"]
    done: int
    """Bytes of the source that are dealt with (the watermark), those of earlier attempts included."""
    total: int | None
    written: int = 0
    """Bytes written to the target in this attempt."""
    fetched: int = 0
    """Bytes received in this attempt."""
    rate: float = 0.0
    """Bytes per second, smoothed."""
    eta: float | None = None
    """Seconds to go."""
    note: str = ""
    """What is out of the ordinary, e.g. that it resumed or waits for a server."""
    failure: Failure | None = None
    """Why the last try failed, while the worker waits before the next one; None while bytes flow."""

    @property
    def fraction(self) -> float | None:
        """0.0 to 1.0, None where the total is not known."""
        if self.total is None:
            return None
        return 1.0 if self.total == 0 else min(1.0, self.done / self.total)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `ValueError`."""
        return decode(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended.  `failure` is None on success."""

    id: str
    failure: Failure | None = None
    format: str | None = None
    """Of the innermost image: raw, qcow2, vmdk, vdi, vpc, vhdx, archive, blank."""
    wrappers: tuple[str, ...] = ()
    """Outermost first: gz, xz, zst, tar."""
    path: str | None = None
    """Which pipeline did it (`cdi.image.plan`)."""
    virtual_size: int | None = None
    disk_size: int | None = None
    """The size of the disk as it stands on the volume."""
    digest: str | None = None
    """Of the source's bytes as far as one was computed, ``algorithm:hex``."""
    verified_by: tuple[str, ...] = ()
    """What was checked: length, checksum, SHA256SUMS, registry digest, signature …"""
    fetched: int = 0
    written: int = 0
    """Bytes that the target was given: data and written-out zeros, neither holes nor what was only reserved."""
    scratch: int = 0
    """Bytes that went through scratch space."""
    resumed_at: int = 0
    """The watermark that this attempt began from."""
    preallocated: bool = False
    validator: str | None = None
    """The source's ETag or similar."""
    labels: dict[str, str] = field(default_factory=dict)
    """From a containerDisk's environment."""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `ValueError`."""
        return decode(cls, text)

    def to_json(self, limit: int = 4096) -> str:
        """At most `limit` bytes, and not below 1024: what is least missed gives way first, at last the tail of a
        failure's message.
        """
        body = asdict(self)

        def dump() -> str:
            return json.dumps(body, separators=(",", ":"))

        lesser: tuple[dict[str, Any], ...] = (
            {"warnings": [text[:100] for text in self.warnings[:3]]},
            {"labels": {}},
            {"validator": None},
            {"warnings": []},
            {"verified_by": [text[:40] for text in self.verified_by[:4]]},
            {"wrappers": [text[:8] for text in self.wrappers[:8]]},
        )
        for less in lesser:
            if len(dump()) > limit:
                body |= less
        while self.failure is not None and len(dump()) > limit and body["failure"]["message"]:
            over = len(dump()) - limit
            body["failure"]["message"] = body["failure"]["message"][: -max(over, 8)]
        return dump()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be changed while a worker runs (its control file)."""

    bandwidth: Annotated[int, Range(at_least=0)] = 0
    """Bytes per second, 0 unlimited."""
    connections: Annotated[int, Range(at_least=0, at_most=64)] = 0
    """Ranges at a time, more or fewer than planned; 0 leaves it to the plan.  What is asked for is given as far as it
    fits the 192 MiB of a worker (`cdi.transfer.ranged.share`): 64 for raw images, 44 for qcow2, 21 where its clusters
    are compressed, fewer with clusters of a MiB and more.  An image that QEMU reads, or that is unwrapped as it comes,
    is never fetched over more than it began with."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `ValueError`."""
        return decode(cls, text)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))
