"""Tree of all errors that this project reports.

A `CdiError` carries a stable code, whether a retry can help, one sentence on what is wrong, where, and a remedy.
Foreign exceptions are mapped to this tree where they enter (a source, a codec, a target); inner code never decides by
searching the text of a message.

    CdiError
    ├── UsageError      exit 2   the command or manifest is wrong
    ├── SourceError     exit 3   the image cannot be fetched
    ├── ImageError      exit 4   the image was fetched and rejected
    ├── VerifyError     exit 5   the image does not match its checksum or signature
    ├── TargetError     exit 6   the volume cannot store the image
    ├── EngineError     exit 7   the importer itself failed
    ├── ClusterError    exit 10  the Kubernetes API server cannot be used
    ├── UploadError     exit 11  an upload was rejected before its content was read
    ├── OutputFailed    exit 12  standard output cannot be written
    └── Interrupted     exit 130 the work was asked to stop and can be resumed

`docs/reference/errors.md` is generated from this module.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Self


class Retry(enum.StrEnum):
    """Condition under which the same work may succeed if it is retried."""

    NEVER = "never"
    """Not retried: the same input gives the same failure, and the DataVolume ends as Failed."""
    BACKOFF = "backoff"
    """Transient: retried with exponential backoff up to a limit."""
    ON_CHANGE = "on-change"
    """Retried when something else changes (a Secret, a quota, the content of a server), and periodically with growing
    intervals without a limit. Users who wait for it are informed at once."""


class CdiError(Exception):
    """Error with a code, a cause and a remedy.

    `what` is one sentence without a full stop; `where` names the affected thing (a URL without its credentials, a path,
    a field); `remedy` overrides the default of the class. The docstring of the class is the text in
    `docs/reference/errors.md`.
    """

    retry: ClassVar[Retry] = Retry.NEVER
    exit_status: ClassVar[int] = 1
    default_remedy: ClassVar[str] = ""

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = self.default_remedy if remedy is None else remedy
        self.upstream = ""
        """What KubeVirt's importer says in this case, if that depends on the case (`cdi.api.importer_messages`)."""

    def with_upstream(self, text: str) -> Self:
        """Set `upstream` and return the error."""
        self.upstream = text
        return self

    @property
    def code(self) -> str:
        """Stable name of the error in CamelCase, also used as the reason of a condition."""
        return type(self).__name__

    @property
    def message(self) -> str:
        """Cause, place and remedy, without the code."""
        return render(self.what, self.where, self.remedy)

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}"


def render(what: str, where: str | None, remedy: str) -> str:
    """Format a message as ``what (where). Try: remedy``; the only place that does so."""
    text = f"{what} ({where})." if where else f"{what}."
    return f"{text} Try: {remedy}" if remedy else text


# --- usage ------------------------------------------------------------------------------------------------------


class UsageError(CdiError):
    """The command line or an input file is invalid."""

    exit_status = 2
    default_remedy = "cdi --help"


class InvalidManifest(UsageError):
    """A manifest lacks what its kind requires, or contains a field twice."""

    default_remedy = "correct the named fields and apply again"


class AdmissionDenied(InvalidManifest):
    """A webhook or an admission policy of the cluster rejected the object."""

    retry = Retry.ON_CHANGE
    default_remedy = "satisfy the policy that is named, or have it make an exception for this object"


class NotFound(UsageError):
    """The named object does not exist."""

    default_remedy = "cdi get lists what there is"


class AlreadyExists(UsageError):
    """An object or volume of that name already exists and may not be replaced."""

    default_remedy = "delete it first, or choose another name"


class Conflict(UsageError):
    """The object was changed concurrently."""

    retry = Retry.BACKOFF
    default_remedy = "read it again and repeat the change"


class GoldenCommandRefused(UsageError):
    """The controller refused a command to a golden image, such as a rollback to a version that is gone."""

    default_remedy = "cdi golden history shows the versions and their states"


class GoldenVersionUnavailable(UsageError):
    """The newest version of a golden image is not offered: it is withheld, revoked, was not proven, or failed."""

    exit_status = 5
    default_remedy = "cdi golden describe shows why; cdi golden retry or cdi golden release changes it"


class LockMismatch(UsageError):
    """The lock file pins another image than the source offers now."""

    exit_status = 5
    default_remedy = "run cdi batch without --locked to accept the new image, or restore the old one"


class WaitTimeout(UsageError):
    """The timeout of `wait` expired before the condition became true."""

    exit_status = 8
    default_remedy = "cdi describe shows what it waits for; wait longer with --timeout"


# --- source -----------------------------------------------------------------------------------------------------


class SourceError(CdiError):
    """The image cannot be fetched."""

    exit_status = 3


class SourceNotSupported(SourceError):
    """The API defines this kind of source, but this build cannot read from it."""

    default_remedy = "download the image with the vendor's own tool and upload it"


class SourceUrlInvalid(SourceError):
    """The URL cannot be used: its scheme, host or syntax is wrong."""

    default_remedy = "correct the source's url"


class SourceNotFound(SourceError):
    """The server reports that the object does not exist (404, 410, NoSuchKey, MANIFEST_UNKNOWN)."""

    retry = Retry.ON_CHANGE
    default_remedy = "check the URL, the object's key or the tag"


class SourceUnauthorized(SourceError):
    """The server or a proxy requires credentials or rejects the given ones (401, 407)."""

    retry = Retry.ON_CHANGE
    default_remedy = "check the secret named by secretRef"


class SourceForbidden(SourceError):
    """The credentials are valid but do not permit reading this object (403)."""

    retry = Retry.ON_CHANGE
    default_remedy = "grant read permission, or renew a presigned URL that has expired"


class SourceCredentialsInvalid(SourceError):
    """A secret lacks the keys that the source needs, or they cannot be parsed."""

    retry = Retry.ON_CHANGE
    default_remedy = "correct the secret named by secretRef"


class SourceRefused(SourceError):
    """The server rejected the request (other 4xx)."""

    retry = Retry.ON_CHANGE
    default_remedy = "read the server's response; the request itself is not accepted"


class SourceUnreachable(SourceError):
    """No connection: refused, reset, timed out, or the name servers do not answer."""

    retry = Retry.BACKOFF
    default_remedy = "check the host name, the network and the proxy settings"


class SourceHostUnknown(SourceUnreachable):
    """The host name does not exist in DNS."""

    retry = Retry.ON_CHANGE
    default_remedy = "correct the host name in the URL, or add it to DNS"


class SourceUnavailable(SourceError):
    """The server is reachable but cannot serve the request now (429, 5xx)."""

    retry = Retry.BACKOFF
    default_remedy = "the import is retried automatically; if it keeps failing, check the server"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after = retry_after
        """Delay in seconds that the server requested, if any."""


class SourceStalled(SourceError):
    """The connection is open but no data arrived within the stall timeout."""

    retry = Retry.BACKOFF
    default_remedy = "the import continues over a new connection; if it keeps failing, check the server"


class SourceTruncated(SourceError):
    """The content ended before its announced length."""

    retry = Retry.BACKOFF
    default_remedy = "the import continues where it ended; if it keeps failing, the file on the server is too short"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, unclean_eof: bool = False
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.unclean_eof = unclean_eof
        """Whether TLS ended without its closing alert where only that ends the content, which may still be complete."""


class SourceVersionUnknown(SourceError):
    """A poll finds nothing that identifies the content: no checksum file, strong ETag, or generation.

    A weak ETag or a modification date may stay the same for another content, and the image is never downloaded only to
    find out.
    """

    retry = Retry.ON_CHANGE
    default_remedy = (
        "publish SHA256SUMS beside the image, or have the server send strong ETags; or set an empty schedule and write "
        "the digest of each new version into the annotation cdi.kubevirt.io/storage.import.sourceDesiredDigest"
    )


class SourceLengthUnknown(SourceError):
    """The server announces no length, and nothing else would reveal truncated content."""

    retry = Retry.ON_CHANGE
    default_remedy = "give a checksum, or use a server that sends Content-Length"


class SourceTooLong(SourceError):
    """The server sent more bytes than announced."""

    default_remedy = "the server's Content-Length is wrong, or the file is still being written"


class SourceProtocolError(SourceError):
    """The server's response violates the protocol (another range than requested, malformed headers)."""

    default_remedy = "a proxy on the way alters responses; bypass it"


class SourceChanged(SourceError):
    """The content was replaced while it was being fetched."""

    retry = Retry.BACKOFF
    default_remedy = "the import starts over with the new content"


class SourceNotAnImage(SourceError):
    """The server answered with a web page or another document instead of an image."""

    default_remedy = "use the direct download link; a log-in or mirror page was served"


class SourceTlsUntrusted(SourceError):
    """The server's certificate is not trusted, expired, or names another host."""

    retry = Retry.ON_CHANGE
    default_remedy = "put the issuing CA into a ConfigMap and name it in certConfigMap"


class SourceTooManyRedirects(SourceError):
    """The server redirects too often."""

    retry = Retry.ON_CHANGE
    default_remedy = "use the final URL"


class VersionGone(SourceError):
    """The source no longer serves the version of a golden image that is asked for."""

    default_remedy = "poll the source again, and use the version that it serves now"


class PlatformNotFound(SourceError):
    """The image index has no entry for the requested architecture."""

    default_remedy = "set platform.architecture to one that the index contains"


class DiskNotInImage(SourceError):
    """The container image has no disk in /disk, or more than one."""

    default_remedy = "build a containerDisk: exactly one file below /disk"


# --- image ------------------------------------------------------------------------------------------------------


class ImageError(CdiError):
    """The image was fetched and rejected."""

    exit_status = 4
    checks: tuple[object, ...] = ()
    # All checks, passed and failed (`cdi.image.checks.Check`), if the image was rejected by checks.


class FormatUnrecognised(ImageError):
    """The content matches no known format, or several at the same time."""

    default_remedy = "convert the image to qcow2 with qemu-img convert"


class FormatUnsupported(ImageError):
    """The format is known, but this variant of it is not accepted."""

    default_remedy = "convert the image to qcow2 with qemu-img convert"


class ImageCorrupt(ImageError):
    """A structure of the image points outside the image or contradicts another one."""

    default_remedy = "check the original with qemu-img check and export it again"


class ImageUnsafe(ImageError):
    """The image refers to something outside itself, or is built to exhaust its reader."""

    default_remedy = "flatten the image with qemu-img convert and use only images that you trust"


class BackingFileRefused(ImageUnsafe):
    """The image is an overlay on another file."""

    default_remedy = "flatten it: qemu-img convert -O qcow2 overlay.qcow2 flat.qcow2"


class ExternalDataRefused(ImageUnsafe):
    """The image keeps its data in other files (qcow2 external data file, vmdk extents)."""

    default_remedy = "flatten it: qemu-img convert -O qcow2"


class EncryptionRefused(ImageError):
    """The image is encrypted."""

    default_remedy = "decrypt it first: qemu-img convert with the key"


class ImageDirty(ImageError):
    """The image was not closed cleanly, or is marked corrupt."""

    default_remedy = "repair it first: qemu-img check -r all"


class ContentTruncated(ImageError):
    """The content ended inside a compressed stream or an image's structure, although the transfer was complete."""

    default_remedy = "the file at the source is itself incomplete; publish it again"


class DecoderFailed(ImageError):
    """A compressed stream cannot be decoded."""

    default_remedy = "the file at the source is damaged; publish it again"


class DecoderLimit(ImageUnsafe):
    """A compressed stream requires more memory or produces more output than is allowed."""

    default_remedy = "compress the image with usual settings"


class ArchiveUnsafe(ImageUnsafe):
    """An archive has a member that would be extracted outside the volume, or of a file type that is not allowed."""

    default_remedy = "build the archive from relative paths of files, directories and inner links only"


class BundleInvalid(ImageError):
    """A bundle of golden images is incomplete or malformed, or an image layout is not a bundle."""

    default_remedy = "write the bundle again with cdi bundle create"


class NestedTooDeep(ImageUnsafe):
    """Too many layers of compression or archives are nested."""

    default_remedy = "unpack the image once before publishing it"


# --- verification -----------------------------------------------------------------------------------------------


class VerifyError(CdiError):
    """The image does not match its checksum or signature."""

    exit_status = 5


class ChecksumMismatch(VerifyError):
    """The content's digest is not the expected one; the volume was wiped."""

    default_remedy = "the image was replaced or damaged; correct the checksum only if you know why it differs"


class ChecksumInvalid(VerifyError):
    """The checksum itself is malformed or of an unknown algorithm."""

    default_remedy = "write it as sha256:<64 hex digits> (or md5, sha1, sha512)"


class ChecksumMissing(VerifyError):
    """The policy requires a checksum and none was found."""

    default_remedy = "set source.http.checksum, or publish SHA256SUMS beside the image"


class SignatureInvalid(VerifyError):
    """A signature is bad, or made by a key that is not trusted."""

    default_remedy = "check the key ring given in the policy and where the image comes from"


class SignatureMissing(VerifyError):
    """The policy requires a signature and none was found."""

    default_remedy = "publish SHA256SUMS.gpg or SHA256SUMS.asc beside the image, or relax the policy"


class SigningKeyInvalid(VerifyError):
    """A key for records of origin cannot be used."""

    retry = Retry.ON_CHANGE
    default_remedy = "give an Ed25519 or ECDSA (P-256, P-384) key in PEM, without a password"


class ImageUnsigned(SignatureMissing):
    """The policy requires a signature of the container image, and its registry has none; it may still be signed."""

    retry = Retry.ON_CHANGE
    default_remedy = "sign it: cosign sign --key KEY HOST/REPOSITORY@DIGEST; the import starts automatically"


class VerificationKeyInvalid(VerifyError):
    """A public key that the policy names cannot be read, or is of an unsupported kind."""

    retry = Retry.ON_CHANGE
    default_remedy = "give PEM files of ECDSA, Ed25519 or RSA public keys, such as cosign.pub"


# --- target -----------------------------------------------------------------------------------------------------


class TargetError(CdiError):
    """The volume cannot store the image."""

    exit_status = 6


class TargetTooSmall(TargetError):
    """The image's virtual size is larger than the volume."""

    default_remedy = "request at least the image's virtual size"


class TargetFull(TargetError):
    """The file system has no space left."""

    retry = Retry.ON_CHANGE
    default_remedy = "free space or choose another volume; the import continues where it stopped"


class QuotaExceeded(TargetError):
    """A quota does not leave enough space for the volume."""

    retry = Retry.ON_CHANGE
    default_remedy = "raise the quota or delete volumes"


class TargetBusy(TargetError):
    """Another worker or machine is using the volume."""

    retry = Retry.BACKOFF
    default_remedy = "wait until it ends, or stop it"


class TargetIo(TargetError):
    """Reading from or writing to the volume failed."""

    retry = Retry.BACKOFF
    default_remedy = "check the storage: kernel log, filesystem, device"


class TargetPermission(TargetError):
    """This user has no permission to write to the volume."""

    retry = Retry.ON_CHANGE
    default_remedy = "give the worker's user (107) the right to write"


class ClaimLost(TargetError):
    """The volume of the DataVolume's claim no longer exists."""

    default_remedy = "delete the claim; another one is created and filled"


class ClaimMisbound(TargetError):
    """The claim was bound to another volume than the one that was filled for it."""

    default_remedy = "the populated volume is unchanged; delete the DataVolume and apply it again without volumeName"


class TargetUnsuitable(TargetError):
    """The target is not of the kind that the content needs (an archive needs a directory)."""

    default_remedy = "use volumeMode Filesystem for archives"


class StorageClassMissing(TargetError):
    """The volume names no StorageClass and there is no default one, or the named one does not exist."""

    retry = Retry.ON_CHANGE
    default_remedy = (
        "name an existing StorageClass, or make one the default: kubectl annotate storageclass NAME "
        "storageclass.kubevirt.io/is-default-virt-class=true"
    )


class StorageProfileIncomplete(TargetError):
    """Access modes or volume mode were left to the StorageProfile, which does not define them."""

    retry = Retry.ON_CHANGE
    default_remedy = "name accessModes and volumeMode in the manifest, or in the StorageProfile's spec"


class ScratchNeeded(TargetError):
    """This image cannot be decoded while it arrives and there is no scratch space."""

    retry = Retry.ON_CHANGE
    default_remedy = "allow scratch space, or convert the image to qcow2 with qemu-img convert"


# --- engine -----------------------------------------------------------------------------------------------------


class EngineError(CdiError):
    """The importer itself failed."""

    exit_status = 7


class CloneUnauthorised(SourceError):
    """No authorized user has permitted cloning this volume from another namespace."""

    default_remedy = (
        "apply the DataVolume as a user who may create datavolumes/source in the source's namespace, while the "
        "admission webhooks are there to say so"
    )


class InternalError(EngineError):
    """A defect of this program."""

    retry = Retry.BACKOFF
    default_remedy = "report it with the log; a retry may help"


class QemuFailed(EngineError):
    """A QEMU program ended with an error."""

    default_remedy = "read QEMU's own message; the image may be damaged"


class QemuMissing(EngineError):
    """A QEMU program that this image needs is not installed."""

    retry = Retry.ON_CHANGE
    default_remedy = "install qemu-utils and qemu-system-common"


class ResourceLimit(EngineError):
    """A decoder exceeded its limit on memory or processor time."""

    default_remedy = "the image is unusual or hostile; convert it yourself first"


class WorkerLost(EngineError):
    """The worker ended without reporting an outcome (killed, out of memory, machine restarted)."""

    retry = Retry.BACKOFF
    default_remedy = "the import continues from its journal automatically"


class WorkerEvicted(WorkerLost):
    """The worker's pod was evicted because its node ran short of resources."""

    default_remedy = "the import is retried automatically; if it happens again, check the node's memory and disk"


class PeerUnreachable(EngineError):
    """The other end of a clone is unreachable, does not respond, or closed the connection."""

    retry = Retry.BACKOFF
    default_remedy = (
        "the clone is retried automatically; if it keeps failing, check the other pod and the network policies"
    )


class PeerUntrusted(EngineError):
    """The certificate of the other end of a clone is not trusted, or the local one cannot be used."""

    retry = Retry.ON_CHANGE
    default_remedy = "check the Secrets with the certificates of uploads and clones; they are recreated if deleted"


class PeerProtocolError(EngineError):
    """The other end of a clone violates the protocol."""

    retry = Retry.BACKOFF
    default_remedy = "run both ends from the same image; if they are, report it with both logs"


class ToolMissing(EngineError):
    """A program that this command needs is not installed."""

    default_remedy = "scripts/setup installs everything"


class BootFailed(EngineError):
    """The virtual machine did not boot."""

    exit_status = 9
    default_remedy = "read the serial console above; check that the image has a boot loader and supports virtio"


class RetryBudgetSpent(EngineError):
    """A transient error recurred until the retry limit was reached."""

    default_remedy = "remove the cause, then delete and apply the DataVolume again"


# --- cluster ----------------------------------------------------------------------------------------------------


class ClusterError(CdiError):
    """The Kubernetes API server cannot be used."""

    exit_status = 10


class ClusterConfigInvalid(ClusterError):
    """No kubeconfig or service account describes the cluster, or it cannot be used."""

    default_remedy = "name a file with --kubeconfig or KUBECONFIG, and one of its contexts with --context"


class ClusterUnreachable(ClusterError):
    """The API server cannot be reached, or does not respond in time."""

    retry = Retry.BACKOFF
    default_remedy = "check the server's address in the kubeconfig, the network, and whether the API server runs"


class ClusterTlsUntrusted(ClusterError):
    """The API server's certificate is not trusted, or names another host."""

    default_remedy = "correct certificate-authority or tls-server-name in the kubeconfig"


class ClusterUnauthorized(ClusterError):
    """The API server rejects the credentials (401)."""

    retry = Retry.ON_CHANGE
    default_remedy = "log in again; the credentials of the kubeconfig or service account have expired or are wrong"


class ClusterForbidden(ClusterError):
    """The API server denies the request (403)."""

    retry = Retry.ON_CHANGE
    default_remedy = "grant the named right with a Role or ClusterRole, or satisfy the policy that is named"


class ClusterUnavailable(ClusterError):
    """The API server is reachable but cannot serve the request now (429, 5xx)."""

    retry = Retry.BACKOFF
    default_remedy = "retry later; if it keeps failing, check the API server and its webhooks"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after = retry_after
        """Delay in seconds that the server requested, if any."""


class ClusterRefused(ClusterError):
    """The API server rejected the request (other 4xx)."""

    default_remedy = "the API server may be too old or too new for this program"


class WorkerPodInvalid(ClusterError):
    """The API server rejects the worker's pod as invalid."""

    retry = Retry.ON_CHANGE
    default_remedy = (
        "correct the sources of the named fields: CDI and CDIConfig (resources, placement, pull secrets), the "
        "DataVolume (service account, priority class), or a webhook that alters pods"
    )


class ClusterProtocolError(ClusterError):
    """The response is not one of an API server, or exceeds the size limit."""

    retry = Retry.BACKOFF
    default_remedy = "a proxy on the way may alter responses; check the server's address in the kubeconfig"


class KindNotServed(NotFound):
    """The API server does not know this kind of object: its CustomResourceDefinition is not installed."""

    exit_status = 10
    retry = Retry.ON_CHANGE
    default_remedy = "install cdi in the cluster, at least its CRDs: kubectl apply --server-side -f crds/"


class HistoryExpired(ClusterError):
    """The API server no longer keeps the changes since the requested version (410)."""

    retry = Retry.BACKOFF
    default_remedy = "list again and watch from there"


# --- upload -----------------------------------------------------------------------------------------------------


class UploadError(CdiError):
    """An upload was rejected before its content was read."""

    exit_status = 11


class UploadMalformed(UploadError):
    """The request does not follow the upload protocol (400 and other 4xx)."""

    default_remedy = "docs/how-to/upload.md describes the requests; cdi upload sends them"

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None, status: int = 400) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.status = status
        """Status of the HTTP response."""


class TokenInvalid(UploadError):
    """The token is not signed by this installation, has expired, or is for another volume (401)."""

    default_remedy = "request a new token with an UploadTokenRequest; it is valid for five minutes"


class TokenMisused(TokenInvalid):
    """The token is valid, but for another purpose (400)."""


class UploadNotReady(UploadError):
    """The volume does not accept an upload, or not yet (503)."""

    retry = Retry.BACKOFF
    default_remedy = "wait until the DataVolume's phase is UploadReady, then send again"


class UploadUnderWay(UploadError):
    """Another upload into the volume is in progress (503)."""

    retry = Retry.BACKOFF
    default_remedy = "wait until it ends"


class AlreadyUploaded(UploadError):
    """The volume has already been filled (503; to a resumable upload 409)."""

    default_remedy = "create another DataVolume for another image"


class UploadUnknown(UploadError):
    """The resumable upload does not exist: it was never created, was removed, has expired or failed (404)."""

    default_remedy = "start a new upload"


class UploadOffsetConflict(UploadError):
    """The offset does not continue the data received so far (409)."""

    retry = Retry.BACKOFF
    default_remedy = "get the offset with HEAD and continue there"


# --- output -----------------------------------------------------------------------------------------------------


class OutputFailed(CdiError):
    """Standard output cannot be written: its file system is full or its device failed."""

    exit_status = 12
    default_remedy = "free space where standard output is written, or redirect it; running work continues"


class OutputClosed(OutputFailed):
    """Standard output is a broken pipe because its reader has exited; no message is printed."""

    exit_status = 141
    default_remedy = ""


class Interrupted(CdiError):
    """The work was asked to stop; a later run resumes from the journal."""

    exit_status = 130
    retry = Retry.BACKOFF
    default_remedy = "run it again; it continues where it stopped"


def all_errors() -> list[type[CdiError]]:
    """Return all error classes, parents before children, in the order of their definition."""
    found: list[type[CdiError]] = []

    def walk(cls: type[CdiError]) -> None:
        for child in cls.__subclasses__():
            found.append(child)
            walk(child)

    walk(CdiError)
    return found


def by_code(code: str) -> type[CdiError]:
    """Return the class of a code; `InternalError` if unknown, such as one from a newer worker."""
    return {cls.__name__: cls for cls in all_errors()}.get(code, InternalError)
