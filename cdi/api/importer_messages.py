"""Messages of KubeVirt's importer and upload server that other programs compare; the only place with their words.

A failure is reported as ``KUBEVIRT'S WORDS: our message``. What depends on the single case (sizes, an architecture, a
status) is put into ``CdiError.upstream`` where the error is raised, by the functions of this module.
"""

from __future__ import annotations

from typing import Final

from cdi.api.errors import (
    ArchiveUnsafe,
    BackingFileRefused,
    CdiError,
    ChecksumMismatch,
    DiskNotInImage,
    ImageError,
    PlatformNotFound,
    SourceCredentialsInvalid,
    SourceError,
    SourceForbidden,
    SourceNotFound,
    SourceNotSupported,
    SourceRefused,
    SourceTlsUntrusted,
    SourceTooManyRedirects,
    SourceUnauthorized,
    SourceUnavailable,
    SourceUnreachable,
    SourceUrlInvalid,
    TargetFull,
    TargetTooSmall,
    VerifyError,
    by_code,
)
from cdi.api.job import Failure
from cdi.api.phases import PULL_FAILED

TOO_SMALL: Final = "DataVolume too small to contain image"
"""Text of the Running condition instead of the importer's sizes."""
NOT_PROCESSED: Final = "Unable to process data"
SAVING_FAILED: Final = "Saving stream failed"
UPLOAD_TOO_LARGE: Final = "effective image size is larger than the reported available storage"
BOOTC: Final = "bootc image detected"
UNKNOWN_AUTHORITY: Final = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
EXPIRED: Final = "tls: failed to verify certificate: x509: certificate has expired or is not yet valid"
NO_GCS_OBJECT: Final = "storage: object doesn't exist"
_NOT_CONVERTED: Final = "Unable to convert source data to target format"
_NOT_IN_REGISTRY_IMAGE: Final = (
    "Unable to transfer source data to scratch space: Failed to read registry image: "
    "Failed to find VM disk image file in the container image"
)
_NOT_EXTRACTED: Final = (
    "Unable to transfer source data to target directory: unable to untar files from endpoint: exit status 2"
)
_SCRATCH_IMAGE: Final = "/scratch/tmpimage"
"""Path at which KubeVirt's importer inspects images."""
_LARGER_PVC: Final = "A larger PVC is required"
_IMPORT_SOURCES: Final = frozenset({"http", "s3", "gcs", "registry", "imageio", "vddk"})
_NO_CONNECTION: Final = (
    SourceCredentialsInvalid,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceTlsUntrusted,
    SourceTooManyRedirects,
    SourceUnauthorized,
    SourceUnavailable,
    SourceUnreachable,
)
"""Errors that KubeVirt's importer meets while it opens a source."""
_NOT_OF_THE_REGISTRY: Final = (DiskNotInImage, PlatformNotFound, SourceNotSupported, SourceUrlInvalid)
"""Source errors of a container image that are unrelated to the registry."""


# --- words for a single case ----------------------------------------------------------------------------------------


def unexpected_content_type(value: str) -> str:
    """Return the warning about an image that a server declares to be text."""
    return f"Unexpected content type '{value}'. Content might not be a KubeVirt image."


def no_image_for_platform(architecture: str, variant: str, system: str) -> str:
    return f'no image found in image index for architecture "{architecture}", variant "{variant}", OS "{system}"'


def wrong_architecture(found: str, wanted: str) -> str:
    return (
        f'Error validating architecture: manifest image architecture: "{found}" doesn\'t match requested architecture: '
        f'"{wanted}"'
    )


def image_too_large(virtual: int, available: int) -> str:
    return (
        f"{_NOT_CONVERTED}: virtual image size {virtual} is larger than the reported available storage {available}. "
        f"{_LARGER_PVC}"
    )


def invalid_format(name: str) -> str:
    return f"{_NOT_CONVERTED}: Invalid format {name} for image {_SCRATCH_IMAGE}"


def unexpected_status(status: int, phrase: str) -> str:
    """Return the words for a response other than 200 to a request for the whole image."""
    return f"expected status code 200, got {status}. Status: {f'{status} {phrase}'.rstrip()}"


def no_s3_object(bucket: str, key: str, code: str, message: str) -> str:
    return f'could not get s3 object: "{bucket}/{key}": api error {code}: {message}'


# --- words for a failure --------------------------------------------------------------------------------------------


def termination_text(failure: Failure, source: str) -> str:
    """Return the text of a worker's termination message.

    Args:
        failure: The failure.
        source: Kind of the source, as in a DataVolume or a job; empty for a clone.

    """
    return _joined(_words(failure, source), failure)


def condition_text(failure: Failure, source: str) -> str:
    """Return the message of the Running condition; the arguments are those of `termination_text`."""
    return _joined(TOO_SMALL if source and is_too_large(failure) else _words(failure, source), failure)


def upload_log_text(failure: Failure) -> str:
    """Return the line of an upload server's log about an upload that was not written to its volume."""
    return f"{SAVING_FAILED}: {upload_response_text(failure)}"


def upload_response_text(failure: Failure) -> str:
    """Return the text for the client of such an upload."""
    return _joined(UPLOAD_TOO_LARGE if is_too_large(failure) else "", failure)


def is_too_large(failure: Failure) -> bool:
    """Return whether the volume has no room for the image."""
    return issubclass(by_code(failure.code), TargetTooSmall | TargetFull)


def is_image_pull(error: type[CdiError], source: str) -> bool:
    """Return whether KubeVirt's importer reports such an error as a container image that cannot be pulled."""
    if source != "registry" or not issubclass(error, SourceError):
        return False
    return not issubclass(error, _NOT_OF_THE_REGISTRY)


def _joined(words: str, failure: Failure) -> str:
    return f"{words}: {failure.message}" if words else failure.message


def _words(failure: Failure, source: str) -> str:
    """Return the words of KubeVirt's importer; empty if it has no equivalent."""
    error = by_code(failure.code)
    if source in ("stream", "upload"):
        return SAVING_FAILED
    if source not in _IMPORT_SOURCES:
        return ""
    if is_image_pull(error, source):
        detail = failure.upstream if issubclass(error, SourceTlsUntrusted) else ""
        return ": ".join(filter(None, (NOT_PROCESSED, PULL_FAILED, detail)))
    if issubclass(error, _NO_CONNECTION):
        return ": ".join(filter(None, (f"Unable to connect to {source} data source", failure.upstream)))
    if issubclass(error, SourceError | ImageError | VerifyError | TargetTooSmall | TargetFull):
        return ": ".join(filter(None, (NOT_PROCESSED, failure.upstream or _detail(error, source))))
    return ""


def _detail(error: type[CdiError], source: str) -> str:
    """Return what KubeVirt's importer says of every error of this class."""
    if issubclass(error, ChecksumMismatch):
        return "checksum validation failed"
    if issubclass(error, TargetTooSmall):
        return f"{_NOT_CONVERTED}: {_LARGER_PVC}"
    if issubclass(error, TargetFull):
        return f"{_NOT_CONVERTED}: no space left on device"
    if issubclass(error, BackingFileRefused):
        return f"{_NOT_CONVERTED}: Image {_SCRATCH_IMAGE} is invalid because it has invalid backing file"
    if issubclass(error, ArchiveUnsafe):
        return _NOT_EXTRACTED
    if issubclass(error, DiskNotInImage) and source == "registry":
        return _NOT_IN_REGISTRY_IMAGE
    return ""
