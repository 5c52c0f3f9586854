"""Import failures in the form that KubeVirt's importer reports: its reason and message first, then our own message.

Other programs compare the reason of the Running condition and search its message. For example, virt-controller shows a
virtual machine as DataVolumeError if Running is False with the reason ``Error`` or ``ImagePullFailed``.
"""

from __future__ import annotations

from cdi.api.errors import ChecksumMismatch, by_code
from cdi.api.importer_messages import condition_text, is_image_pull
from cdi.api.job import Failure
from cdi.api.phases import Reason
from cdi.reconcile.datavolume.status import ConditionValue, false
from cdi.reconcile.types import Import, ResolvedSource


def not_running(source: ResolvedSource, failure: Failure) -> ConditionValue:
    """Return the Running condition of a DataVolume whose last attempt failed."""
    kind = source.kind.value if isinstance(source, Import) else ""
    return false(_reason(failure, kind), condition_text(failure, kind))


def _reason(failure: Failure, kind: str) -> Reason:
    error = by_code(failure.code)
    if issubclass(error, ChecksumMismatch):
        return Reason.CHECKSUM_ERROR
    return Reason.IMAGE_PULL_FAILED if is_image_pull(error, kind) else Reason.ERROR
