"""Lifetimes of certificates from the CDI object, where its values are usable."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Self

from cdi.api.installation import CDI, CertConfig
from cdi.api.rules.durations import parse_duration
from cdi.kube.pki import AUTHORITY_LIFETIME, CERTIFICATE_LIFETIME, Lifetime

_SHORTEST = dt.timedelta(minutes=10)
"""Minimum lifetime of a certificate: below it, clock skew and caches matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Lifetime of each kind of certificate."""

    authority: Lifetime = AUTHORITY_LIFETIME
    server: Lifetime = CERTIFICATE_LIFETIME
    client: Lifetime = CERTIFICATE_LIFETIME

    @classmethod
    def of(cls, cdi: CDI | None) -> Self:
        """Return the lifetimes that ``spec.certConfig`` requests."""
        wanted = cdi.spec.cert_config if cdi is not None else None
        if wanted is None:
            return cls()
        return cls(
            authority=_lifetime(wanted.ca, AUTHORITY_LIFETIME),
            server=_lifetime(wanted.server, CERTIFICATE_LIFETIME),
            client=_lifetime(wanted.client, CERTIFICATE_LIFETIME),
        )


def _lifetime(wanted: CertConfig | None, usual: Lifetime) -> Lifetime:
    """Return the requested lifetime if it is usable, else `usual`; a missing renewal time is half the duration."""
    duration = parse_duration(wanted.duration) if wanted is not None and wanted.duration else None
    before = parse_duration(wanted.renew_before) if wanted is not None and wanted.renew_before else None
    length = dt.timedelta(seconds=float(duration)) if duration else usual.duration
    early = dt.timedelta(seconds=float(before)) if before is not None else length / 2
    if length < _SHORTEST or early >= length:
        return usual
    return Lifetime(duration=length, renew_before=early)
