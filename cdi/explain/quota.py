"""Check whether the quotas of a namespace allow the objects of an import."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cdi.api.errors import InvalidManifest
from cdi.api.quantity import Quantity

_POD = ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaShortage:
    """A limit that would be exceeded, with amounts in the quota's notation."""

    quota: str
    resource: str
    hard: str
    used: str
    needed: str

    def __str__(self) -> str:
        return f"quota {self.quota} limits {self.resource} to {self.hard}: {self.used} used, {self.needed} needed"


def required_resources(claims: Iterable[Mapping[str, Any]], pod: Mapping[str, Any] | None) -> dict[str, Fraction]:
    """Return what PVCs and a pod count for, by resource names of ResourceQuota."""
    total: defaultdict[str, Fraction] = defaultdict(Fraction)
    for claim in claims:
        spec = claim.get("spec") or {}
        size = _amount(((spec.get("resources") or {}).get("requests") or {}).get("storage"))
        own = spec.get("storageClassName")
        for name in ("", f"{own}.storageclass.storage.k8s.io/") if own else ("",):
            total[f"{name}persistentvolumeclaims"] += 1
            total[f"{name}requests.storage"] += size
        total["count/persistentvolumeclaims"] += 1
    if pod is not None:
        total["pods"] += 1
        total["count/pods"] += 1
        for container in (pod.get("spec") or {}).get("containers") or ():
            resources = container.get("resources") or {}
            for name in _POD:
                kind, _, what = name.partition(".")
                total[name] += _amount((resources.get(kind) or {}).get(what))
        total["cpu"], total["memory"] = total["requests.cpu"], total["requests.memory"]
    return dict(total)


def shortages(quotas: Iterable[Mapping[str, Any]], needed: Mapping[str, Fraction]) -> Iterator[QuotaShortage]:
    """Yield the resources whose hard limit is below the sum of used and needed amounts.

    The pod limits of quotas with scopes are ignored: which pods they cover is only known when those are created.
    """
    for quota in quotas:
        spec, status = quota.get("spec") or {}, quota.get("status") or {}
        scoped = bool(spec.get("scopes") or spec.get("scopeSelector"))
        for resource, hard in (status.get("hard") or spec.get("hard") or {}).items():
            wanted = needed.get(resource)
            if not wanted or (scoped and "storage" not in resource and "persistentvolumeclaims" not in resource):
                continue
            used = (status.get("used") or {}).get(resource, "0")
            if _amount(used) + wanted > _amount(hard):
                yield QuotaShortage(
                    quota=quota["metadata"]["name"], resource=resource, hard=hard, used=used, needed=_text(wanted)
                )


def _amount(text: object) -> Fraction:
    """Parse a quantity (CPUs, bytes or a count); 0 if it is missing or invalid."""
    try:
        return Fraction(0) if text is None else Quantity.parse(str(text)).value
    except InvalidManifest:
        return Fraction(0)


def _text(amount: Fraction) -> str:
    whole = int(amount)
    if amount != whole:
        return f"{int(amount * 1000)}m"
    return Quantity.of_bytes(whole).text if whole >= 1 << 10 else str(whole)
