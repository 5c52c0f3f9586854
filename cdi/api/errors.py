"""Every failure that this project reports, as one tree.

A `CdiError` carries what a person and a program need: a stable code, whether trying again can help, one sentence
on what is wrong, where, and what to do about it.  Foreign exceptions are mapped onto this tree where they enter
(a source, a codec, a target); nothing further in decides by searching the text of a message.

    CdiError
    ├── UsageError      exit 2   the command or manifest is wrong
    ├── SourceError     exit 3   the image cannot be fetched
    ├── ImageError      exit 4   the image was fetched and is refused
    ├── VerifyError     exit 5   the image is not what was promised
    ├── TargetError     exit 6   the volume cannot take it
    ├── EngineError     exit 7   the importer itself failed
    ├── ClusterError    exit 10  the Kubernetes API server cannot be used
    ├── UploadError     exit 11  an upload was refused before its content was looked at
    ├── OutputFailed    exit 12  standard output cannot be written
    └── Interrupted     exit 130 somebody asked it to stop; it can go on later

`docs/reference/errors.md` is generated from this module.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Retry(enum.StrEnum):
    """Whether the same work may succeed if it is tried again."""

    NEVER = "never"
    """The same input gives the same failure: the DataVolume ends as Failed."""
    BACKOFF = "backoff"
    """A passing fault: try again, with growing pauses and within a budget."""
    ON_CHANGE = "on-change"
    """It succeeds only after something else changes (a secret, a quota, what a server holds): try again then, and with
    growing pauses without end.  Whoever waits for it is told at once."""


class CdiError(Exception):
    """A failure with a code, a cause and a remedy.

    `what` is one sentence without a full stop; `where` names the thing that it happened to (a URL without its
    credentials, a path, a field); `remedy` overrides the class's own.  The class docstring is the text of
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

    @property
    def code(self) -> str:
        """The stable name, also the reason of a condition (CamelCase)."""
        return type(self).__name__

    @property
    def message(self) -> str:
        """Cause, place and remedy, without the code."""
        return render(self.what, self.where, self.remedy)

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}"


def render(what: str, where: str | None, remedy: str) -> str:
    """The one place that puts a message together: ``what (where). Try: remedy``."""
    text = f"{what} ({where})." if where else f"{what}."
    return f"{text} Try: {remedy}" if remedy else text


# --- usage ------------------------------------------------------------------------------------------------------


class UsageError(CdiError):
    """The command line or a file given to it is wrong."""

    exit_status = 2
    default_remedy = "cdi --help"


class InvalidManifest(UsageError):
    """A manifest does not say what its kind needs, or says it twice."""

    default_remedy = "correct the named fields and apply again"


class AdmissionDenied(InvalidManifest):
    """A webhook or an admission policy of the cluster does not let the object in."""

    retry = Retry.ON_CHANGE
    default_remedy = "satisfy the policy that is named, or have it make an exception for this object"


class NotFound(UsageError):
    """The named object does not exist."""

    default_remedy = "cdi get lists what there is"


class AlreadyExists(UsageError):
    """An object or volume of that name already exists and is not to be replaced."""

    default_remedy = "delete it first, or choose another name"


class Conflict(UsageError):
    """Somebody else changed the object meanwhile."""

    retry = Retry.BACKOFF
    default_remedy = "read it again and repeat the change"


class LockMismatch(UsageError):
    """The lock file pins another image than the source now offers."""

    exit_status = 5
    default_remedy = "run cdi batch without --locked to accept the new image, or restore the old one"


class WaitTimeout(UsageError):
    """The time given to `wait` ran out before the condition came true."""

    exit_status = 8
    default_remedy = "cdi describe shows what it waits for; wait longer with --timeout"


# --- source -----------------------------------------------------------------------------------------------------


class SourceError(CdiError):
    """The image cannot be fetched."""

    exit_status = 3


class SourceNotSupported(SourceError):
    """The API knows this kind of source; this build cannot read from it."""

    default_remedy = "download the image with the vendor's own tool and upload it"


class SourceUrlInvalid(SourceError):
    """The URL cannot be used: its scheme, host or form is wrong."""

    default_remedy = "correct the source's url"


class SourceNotFound(SourceError):
    """The server says that there is nothing at this place (404, 410, NoSuchKey, MANIFEST_UNKNOWN)."""

    retry = Retry.ON_CHANGE
    default_remedy = "check the URL, the object's key or the tag"


class SourceUnauthorized(SourceError):
    """The server or a proxy wants credentials, or other ones (401, 407)."""

    retry = Retry.ON_CHANGE
    default_remedy = "check the secret named by secretRef"


class SourceForbidden(SourceError):
    """The credentials are known and not allowed to read this (403)."""

    retry = Retry.ON_CHANGE
    default_remedy = "grant read permission, or renew a presigned URL that has expired"


class SourceCredentialsInvalid(SourceError):
    """A secret lacks the keys that the source needs, or they cannot be parsed."""

    retry = Retry.ON_CHANGE
    default_remedy = "correct the secret named by secretRef"


class SourceRefused(SourceError):
    """The server does not accept the request (other 4xx)."""

    retry = Retry.ON_CHANGE
    default_remedy = "read the server's answer; the request itself is not accepted"


class SourceUnreachable(SourceError):
    """No connection: refused, reset, timed out, or the name servers do not answer."""

    retry = Retry.BACKOFF
    default_remedy = "check the host name, the network and the proxy settings"


class SourceHostUnknown(SourceUnreachable):
    """The name servers know no host of this name."""

    retry = Retry.ON_CHANGE
    default_remedy = "correct the host's name in the URL, or have it made known to the name servers"


class SourceUnavailable(SourceError):
    """The server is there and cannot serve now (429, 5xx)."""

    retry = Retry.BACKOFF
    default_remedy = "the import goes on by itself; if it does not end, look at the server"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after = retry_after
        """Seconds that the server asked to wait, where it did."""


class SourceStalled(SourceError):
    """The connection stands and no byte came for the length of the stall time-out."""

    retry = Retry.BACKOFF
    default_remedy = "the import goes on over a new connection; if it does not end, look at the server"


class SourceTruncated(SourceError):
    """The content ended before its announced length."""

    retry = Retry.BACKOFF
    default_remedy = "the import goes on from where it ended; if it does not end, the file on the server is short"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, unclean_eof: bool = False
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.unclean_eof = unclean_eof
        """TLS ended without its closing alert where only that ends the content, which may be whole nevertheless."""


class SourceLengthUnknown(SourceError):
    """The server announces no length, and nothing else would show that the content was cut off."""

    retry = Retry.ON_CHANGE
    default_remedy = "give a checksum, or use a server that sends Content-Length"


class SourceTooLong(SourceError):
    """More bytes came than were announced."""

    default_remedy = "the server's Content-Length is wrong, or the file is still being written"


class SourceProtocolError(SourceError):
    """The server's answer contradicts the protocol (another range than asked for, unreadable headers)."""

    default_remedy = "a proxy or server on the way alters answers; fetch past it"


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
    """The server sends from place to place."""

    retry = Retry.ON_CHANGE
    default_remedy = "use the final URL"


class PlatformNotFound(SourceError):
    """The image index has no entry for the wanted architecture."""

    default_remedy = "set platform.architecture to one that the index has"


class DiskNotInImage(SourceError):
    """The container image has no disk in /disk, or more than one."""

    default_remedy = "build a containerDisk: exactly one file below /disk"


# --- image ------------------------------------------------------------------------------------------------------


class ImageError(CdiError):
    """The image was fetched and is refused."""

    exit_status = 4
    checks: tuple[object, ...] = ()
    # What was looked at, passed and failed (`cdi.image.checks.Check`), where that is how it was refused.


class FormatUnrecognised(ImageError):
    """No known format, or more than one at the same time."""

    default_remedy = "convert the image to qcow2 with qemu-img convert"


class FormatUnsupported(ImageError):
    """The format is known and this variant of it is not accepted."""

    default_remedy = "convert the image to qcow2 with qemu-img convert"


class ImageCorrupt(ImageError):
    """A structure of the image points outside of it or contradicts another."""

    default_remedy = "check the original with qemu-img check and export it again"


class ImageUnsafe(ImageError):
    """The image refers to something outside of itself, or is built to exhaust its reader."""

    default_remedy = "flatten the image with qemu-img convert and use only images that you trust"


class BackingFileRefused(ImageUnsafe):
    """The image is an overlay over another file."""

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
    """A compressed stream wants more memory or gives more output than is allowed."""

    default_remedy = "compress the image with usual settings"


class ArchiveUnsafe(ImageUnsafe):
    """An archive has a member that would leave the volume, or is of a refused kind."""

    default_remedy = "build the archive from relative paths of files, directories and inner links only"


class NestedTooDeep(ImageUnsafe):
    """Wrapper within wrapper within wrapper."""

    default_remedy = "unpack the image once before publishing it"


# --- verification -----------------------------------------------------------------------------------------------


class VerifyError(CdiError):
    """The image is not what was promised."""

    exit_status = 5


class ChecksumMismatch(VerifyError):
    """The content's digest is not the expected one; the volume was wiped."""

    default_remedy = "the image was replaced or damaged; correct the checksum only if you know why it differs"


class ChecksumInvalid(VerifyError):
    """The checksum itself is malformed or of an unknown algorithm."""

    default_remedy = "write it as sha256:<64 hex digits> (or md5, sha1, sha512)"


class ChecksumMissing(VerifyError):
    """Policy wants a checksum and none was found."""

    default_remedy = "set source.http.checksum, or publish SHA256SUMS beside the image"


class SignatureInvalid(VerifyError):
    """A signature is bad, or made by a key that is not trusted."""

    default_remedy = "check the key ring given in the policy and where the image comes from"


class SignatureMissing(VerifyError):
    """Policy wants a signature and none was found."""

    default_remedy = "publish SHA256SUMS.gpg or SHA256SUMS.asc beside the image, or relax the policy"


# --- target -----------------------------------------------------------------------------------------------------


class TargetError(CdiError):
    """The volume cannot take the image."""

    exit_status = 6


class TargetTooSmall(TargetError):
    """The image's virtual size is larger than the volume."""

    default_remedy = "request at least the image's virtual size"


class TargetFull(TargetError):
    """The file system has no space left."""

    retry = Retry.ON_CHANGE
    default_remedy = "free space or choose another volume; the import goes on from where it stopped"


class QuotaExceeded(TargetError):
    """A quota leaves no room for the volume."""

    retry = Retry.ON_CHANGE
    default_remedy = "raise the quota or delete volumes"


class TargetBusy(TargetError):
    """Another worker or machine uses the volume."""

    retry = Retry.BACKOFF
    default_remedy = "wait until it ends, or stop it"


class TargetIo(TargetError):
    """Reading from or writing to the volume failed."""

    retry = Retry.BACKOFF
    default_remedy = "look at the storage: kernel log, file system, device"


class TargetPermission(TargetError):
    """The volume may not be written by this user."""

    retry = Retry.ON_CHANGE
    default_remedy = "give the worker's user (107) the right to write"


class ClaimLost(TargetError):
    """The volume is gone, although the DataVolume had it."""

    default_remedy = "delete the DataVolume and apply it again"


class ClaimMisbound(TargetError):
    """The claim was bound to another volume than the one that was filled for it."""

    default_remedy = "the filled volume is untouched; delete the DataVolume and apply it again without volumeName"


class TargetUnsuitable(TargetError):
    """The target is not of the kind that the content needs (an archive wants a directory)."""

    default_remedy = "use volumeMode Filesystem for archives"


class StorageClassMissing(TargetError):
    """The volume names no StorageClass and there is no default one, or the one that it names does not exist."""

    retry = Retry.ON_CHANGE
    default_remedy = (
        "name an existing StorageClass, or make one the default: kubectl annotate storageclass NAME "
        "storageclass.kubevirt.io/is-default-virt-class=true"
    )


class StorageProfileIncomplete(TargetError):
    """Access modes or volume mode were left to the StorageProfile, and it does not know them."""

    retry = Retry.ON_CHANGE
    default_remedy = "name accessModes and volumeMode in the manifest, or in the StorageProfile's spec"


class ScratchNeeded(TargetError):
    """This image cannot be decoded as a stream and no scratch space is given."""

    retry = Retry.ON_CHANGE
    default_remedy = "serve the image with byte ranges, or allow scratch space"


# --- engine -----------------------------------------------------------------------------------------------------


class EngineError(CdiError):
    """The importer itself failed."""

    exit_status = 7


class CloneUnauthorised(SourceError):
    """Nobody who may has allowed a volume of another namespace to be cloned."""

    default_remedy = (
        "apply the DataVolume as a user who may create datavolumes/source in the source's namespace, while the "
        "admission webhooks are there to say so"
    )


class InternalError(EngineError):
    """A defect of this program."""

    retry = Retry.BACKOFF
    default_remedy = "report it with the log; trying again may help"


class QemuFailed(EngineError):
    """A QEMU program ended with an error."""

    default_remedy = "read QEMU's own message; the image may be damaged"


class QemuMissing(EngineError):
    """A QEMU program that this format needs is not installed."""

    retry = Retry.ON_CHANGE
    default_remedy = "install qemu-utils and qemu-system-common"


class ResourceLimit(EngineError):
    """A limit on memory or processor time stopped a decoder."""

    default_remedy = "the image is unusual or hostile; convert it yourself first"


class WorkerLost(EngineError):
    """The worker ended without an outcome (killed, out of memory, machine restarted)."""

    retry = Retry.BACKOFF
    default_remedy = "the import goes on from its journal by itself"


class WorkerEvicted(WorkerLost):
    """The worker's pod was evicted from its node, which needed the room."""

    default_remedy = "the import goes on by itself; if it happens again, look at the node's memory and disk"


class PeerUnreachable(EngineError):
    """The other end of a clone is not there, fell silent, or hung up."""

    retry = Retry.BACKOFF
    default_remedy = "the clone goes on by itself; if it does not end, look at the other pod and the network policies"


class PeerUntrusted(EngineError):
    """The other end of a clone shows a certificate that is not trusted, or the own one cannot be used."""

    retry = Retry.ON_CHANGE
    default_remedy = "look at the secrets with the certificates of uploads and clones; they are renewed if deleted"


class PeerProtocolError(EngineError):
    """The other end of a clone says what the protocol does not allow."""

    default_remedy = "run both ends from the same image; if they are, report it with both logs"


class ToolMissing(EngineError):
    """A program that this command needs is not installed."""

    default_remedy = "scripts/setup installs everything"


class BootFailed(EngineError):
    """The guest did not come up."""

    exit_status = 9
    default_remedy = "read the serial console that is shown; does the image hold a boot loader and support virtio?"


class RetryBudgetSpent(EngineError):
    """A passing fault came again and again until the budget of tries was spent."""

    default_remedy = "remove the cause, then delete and apply the DataVolume again"


# --- cluster ----------------------------------------------------------------------------------------------------


class ClusterError(CdiError):
    """The Kubernetes API server cannot be used."""

    exit_status = 10


class ClusterConfigInvalid(ClusterError):
    """No kubeconfig and no service account tells where the cluster is, or what does cannot be used."""

    default_remedy = "name a file with --kubeconfig or KUBECONFIG, and one of its contexts with --context"


class ClusterUnreachable(ClusterError):
    """No connection to the API server, or no answer in time."""

    retry = Retry.BACKOFF
    default_remedy = "check the server's address in the kubeconfig, the network, and whether the API server runs"


class ClusterTlsUntrusted(ClusterError):
    """The API server's certificate is not trusted, or names another host."""

    default_remedy = "correct certificate-authority or tls-server-name in the kubeconfig"


class ClusterUnauthorized(ClusterError):
    """The API server does not know who asks (401)."""

    retry = Retry.ON_CHANGE
    default_remedy = "log in again; the credentials of the kubeconfig or service account have expired or are wrong"


class ClusterForbidden(ClusterError):
    """A rule of the cluster forbids it (403)."""

    retry = Retry.ON_CHANGE
    default_remedy = "grant the named right with a Role or ClusterRole, or satisfy the policy that is named"


class ClusterUnavailable(ClusterError):
    """The API server is there and cannot serve now (429, 5xx)."""

    retry = Retry.BACKOFF
    default_remedy = "try again later; if it does not end, look at the API server and at the webhooks it asks"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after = retry_after
        """Seconds that the server asked to wait, where it did."""


class ClusterRefused(ClusterError):
    """The API server does not take this request (other 4xx)."""

    default_remedy = "the API server may be too old or too new for this program"


class WorkerPodInvalid(ClusterError):
    """The API server finds the worker's pod invalid as it would be made."""

    retry = Retry.ON_CHANGE
    default_remedy = (
        "correct what the named fields come from: CDI and CDIConfig (resources, placement, pull secrets), the "
        "DataVolume (service account, priority class), or a webhook that alters pods"
    )


class ClusterProtocolError(ClusterError):
    """What came is no answer of an API server, or is larger than any can be."""

    retry = Retry.BACKOFF
    default_remedy = "a proxy on the way may alter answers; check the server's address in the kubeconfig"


class KindNotServed(NotFound):
    """The API server does not know this kind of object: its CustomResourceDefinition is not installed."""

    exit_status = 10
    retry = Retry.ON_CHANGE
    default_remedy = "install cdi in the cluster, at least its definitions: kubectl apply --server-side -f crds/"


class HistoryExpired(ClusterError):
    """The API server has forgotten the changes since the version asked for (410)."""

    retry = Retry.BACKOFF
    default_remedy = "list again and watch from there"


# --- upload -----------------------------------------------------------------------------------------------------


class UploadError(CdiError):
    """An upload was refused before its content was looked at."""

    exit_status = 11


class UploadMalformed(UploadError):
    """The request is not one that the upload protocol knows (400 and other 4xx)."""

    default_remedy = "docs/how-to/upload.md shows the requests; cdi upload makes them"

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None, status: int = 400) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.status = status
        """Of the HTTP answer."""


class TokenInvalid(UploadError):
    """The token is not signed by this installation, has expired, or is for another volume (401)."""

    default_remedy = "ask for a new token with an UploadTokenRequest; it is good for five minutes"


class TokenMisused(TokenInvalid):
    """The token is good, but for something else (400)."""


class UploadNotReady(UploadError):
    """The volume cannot take an upload, or not yet (503)."""

    retry = Retry.BACKOFF
    default_remedy = "wait until the DataVolume's phase is UploadReady, then send again"


class UploadUnderWay(UploadError):
    """Somebody else is uploading into the volume (503)."""

    retry = Retry.BACKOFF
    default_remedy = "wait until it ends"


class AlreadyUploaded(UploadError):
    """The volume has been filled (409)."""

    default_remedy = "make another DataVolume for another image"


class UploadUnknown(UploadError):
    """There is no such resumable upload: it was never begun, was removed, expired or failed (404)."""

    default_remedy = "begin a new one"


class UploadOffsetConflict(UploadError):
    """The bytes do not continue those that came before (409)."""

    retry = Retry.BACKOFF
    default_remedy = "ask with HEAD for the offset and go on there"


# --- output -----------------------------------------------------------------------------------------------------


class OutputFailed(CdiError):
    """Standard output cannot be written: the file system that it goes to is full, or its device failed."""

    exit_status = 12
    default_remedy = "free space where standard output goes, or redirect it; work that was begun goes on"


class OutputClosed(OutputFailed):
    """The reader of standard output is gone (a broken pipe); nothing is printed about it."""

    exit_status = 141
    default_remedy = ""


class Interrupted(CdiError):
    """The work was asked to stop; a later run goes on from the journal."""

    exit_status = 130
    retry = Retry.BACKOFF
    default_remedy = "run it again; it goes on from where it was"


def all_errors() -> list[type[CdiError]]:
    """Every class of the tree, parents before children, in the order of definition."""
    found: list[type[CdiError]] = []

    def walk(cls: type[CdiError]) -> None:
        for child in cls.__subclasses__():
            found.append(child)
            walk(child)

    walk(CdiError)
    return found


def by_code(code: str) -> type[CdiError]:
    """The class of a code, `InternalError` where a newer worker sent one that is not known here."""
    return {cls.__name__: cls for cls in all_errors()}.get(code, InternalError)
