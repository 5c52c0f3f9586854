"""Import failures in the form that KubeVirt's importer reports: its reason and message first, then our own message.

Other programs compare the reason of the Running condition and search its message. For example, virt-controller shows a
virtual machine as DataVolumeError if Running is False with the reason ``Error`` or ``ImagePullFailed``.
"""

from __future__ import annotations

from typing import Final

from cdi.api.errors import (
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
from cdi.api.phases import PULL_FAILED, Reason
from cdi.api.sources import SourceKind
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.source import Import, resolve_source
from cdi.reconcile.status import ConditionValue, false

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


def not_running(context: ReconcileContext, failure: Failure) -> ConditionValue:
    """Return the Running condition of a DataVolume whose last attempt failed."""
    origin = resolve_source(context)
    kind = origin.kind if isinstance(origin, Import) else None
    words = _words(failure, kind)
    return false(_reason(failure, kind), f"{words}: {failure.message}" if words else failure.message)


def _reason(failure: Failure, kind: SourceKind | None) -> Reason:
    error = by_code(failure.code)
    if issubclass(error, ChecksumMismatch):
        return Reason.CHECKSUM_ERROR
    return Reason.IMAGE_PULL_FAILED if _is_pull(error, kind) else Reason.ERROR


def _words(failure: Failure, kind: SourceKind | None) -> str:
    """Return the message of KubeVirt's importer for such a failure; empty if it has no equivalent."""
    error = by_code(failure.code)
    if kind is None:
        return ""
    if issubclass(error, TargetTooSmall | TargetFull):
        return "DataVolume too small to contain image"
    if issubclass(error, ChecksumMismatch):
        return "Unable to process data: checksum validation failed"
    if _is_pull(error, kind):
        return f"Unable to process data: {PULL_FAILED}"
    if issubclass(error, _NO_CONNECTION) and kind is not SourceKind.REGISTRY:
        return f"Unable to connect to {kind} data source"
    return "Unable to process data" if issubclass(error, SourceError | ImageError | VerifyError) else ""


def _is_pull(error: type[Exception], kind: SourceKind | None) -> bool:
    if kind is not SourceKind.REGISTRY or not issubclass(error, SourceError):
        return False
    return not issubclass(error, _NOT_OF_THE_REGISTRY)
