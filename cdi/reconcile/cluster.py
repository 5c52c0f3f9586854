"""The world of one volume of a cluster, put together from what was observed."""

from __future__ import annotations

from cdi.reconcile.world import Config, Objects, Platform, Refusal, Retries, World


def observe(
    objects: Objects,
    namespace: str,
    name: str,
    *,
    now: float,
    config: Config,
    retries: Retries,
    platform: Platform,
    admitted: bool = True,
    turn: str = "",
    refusal: Refusal | None = None,
) -> World | None:
    """Of the DataVolume and the claim of this name; None where neither wants anything of us.

    A claim of any name that is being deleted is one of these as well, so that no worker holds it back: the prime and
    scratch claims are keys of their own then.
    """
    raise NotImplementedError((objects, namespace, name, now, config, retries, platform, admitted, turn, refusal))
