"""Annotations of certificate Secrets that tools read and edit: the validity of the certificate.

The names are those of OpenShift's certificate rotation, which KubeVirt's CDI uses as well. A client requests a rotation
by an earlier ``not-after``, or by removing the annotation; the certificate itself stays what is served until then.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from cryptography import x509

from cdi.api.annotation_types import annotations_of
from cdi.api.kinds import Object
from cdi.api.timestamps import timestamp
from cdi.kube import pki
from cdi.kube.pki import Lifetime

ANN_NOT_BEFORE: Final = "auth.openshift.io/certificate-not-before"
ANN_NOT_AFTER: Final = "auth.openshift.io/certificate-not-after"


def validity_annotations(certificate: x509.Certificate) -> dict[str, str]:
    """Return the annotations of the Secret that holds this certificate."""
    return {
        ANN_NOT_BEFORE: timestamp(certificate.not_valid_before_utc),
        ANN_NOT_AFTER: timestamp(certificate.not_valid_after_utc),
    }


def is_rotation_requested(
    secret: Object | None, certificate: x509.Certificate, lifetime: Lifetime, now: dt.datetime
) -> bool:
    """Return whether the Secret's annotations require a new certificate although this one is not due yet.

    Missing and unreadable annotations require one. Dates other than the certificate's own replace those of the
    certificate; a later date does not keep a certificate longer than its own.
    """
    annotations = annotations_of(secret)
    start, end = _time(annotations.get(ANN_NOT_BEFORE)), _time(annotations.get(ANN_NOT_AFTER))
    if start is None or end is None:
        return True
    if (start, end) == (certificate.not_valid_before_utc, certificate.not_valid_after_utc):
        return False
    return pki.is_renewal_due(start, end, lifetime, now)


def _time(text: object) -> dt.datetime | None:
    """Return an RFC 3339 time; None if it is missing or malformed."""
    try:
        time = dt.datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None
