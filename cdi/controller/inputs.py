"""Secrets and ConfigMaps in use: which keys they have, and their version.  Their values are never kept.

Nobody follows them: a right to watch Secrets is a right to read all of them.  One that a DataVolume names is got by its
name, and looked at again as long as somebody waits for it or for a change of it: soon at first, then rarely.  One that
is missing is mostly about to be made, and looked at first after a second.  So nobody waits for longer than half as long
again as they did until it came, or a minute.  One look serves all who wait for the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.controller.keys import Key
from cdi.kube.client import Client
from cdi.kube.resources import CONFIG_MAPS, SECRETS
from cdi.reconcile.actions import InputRef
from cdi.reconcile.world import Input

MISSING, SOON = 1.0, 5.0
"""Seconds between the first two looks, at one that is missing and one that is there; each further pause is half as long
again."""
LONGEST = 60.0
"""The longest pause between two looks, seconds."""


@dataclass(slots=True)
class _Look:
    found: Input | None
    when: float
    pause: float

    @property
    def due(self) -> float:
        return self.when + self.pause


def _first(found: Input | None) -> float:
    return MISSING if found is None else SOON


def _nobody(_: Key) -> None:
    pass


class Inputs:
    """What is known of them."""

    def __init__(
        self, client: Client, *, news: Callable[[Key], None] = _nobody, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`news` is told whose input another one found changed."""
        self._client = client
        self._news = news
        self._clock = clock
        self._looks: dict[InputRef, _Look] = {}
        self._users: dict[InputRef, set[Key]] = {}
        self._uses: dict[Key, set[InputRef]] = {}
        self._asked: set[InputRef] | None = None

    @contextlib.contextmanager
    def asking(self, key: Key) -> Iterator[None]:
        """What is asked for within is in use by `key`, and nothing else any more.  Nothing may be awaited within."""
        self._asked = set()
        try:
            yield
        finally:
            asked, self._asked = self._asked, None
            self._use(key, asked)

    def forget(self, key: Key) -> None:
        """It uses nothing any more."""
        self._use(key, set())

    def get(self, ref: InputRef) -> Input | None:
        """None where there is none, or where it has to be read first (`read`)."""
        if self._asked is not None:
            self._asked.add(ref)
        look = self._looks.get(ref)
        return look.found if look is not None else None

    async def read(self, key: Key) -> bool:
        """Look at what `key` asked for, as far as that is due; True where something is known now that was not."""
        news = False
        for ref in tuple(self._uses.get(key, ())):
            before = self._looks.get(ref)
            if before is not None and self._clock() < before.due:
                continue
            found = await self._read(ref)
            now = self._clock()
            if before is None or before.found != found:
                self._looks[ref] = _Look(found=found, when=now, pause=_first(found))
                news = True
                for other in self._users.get(ref, set()) - {key}:
                    self._news(other)
            else:
                self._looks[ref] = _Look(found=found, when=now, pause=min(before.pause * 1.5, LONGEST))
        return news

    def pause(self, key: Key) -> float | None:
        """Seconds until something that `key` uses is to be looked at again; None where it uses nothing."""
        now = self._clock()
        dues = [look.due if (look := self._looks.get(ref)) is not None else now for ref in self._uses.get(key, ())]
        return max(0.0, min(dues) - now) if dues else None

    def _use(self, key: Key, refs: set[InputRef]) -> None:
        before = self._uses.pop(key, set())
        for ref in before - refs:
            self._users[ref].discard(key)
            if not self._users[ref]:
                del self._users[ref]
                self._looks.pop(ref, None)
        for ref in refs - before:
            self._users.setdefault(ref, set()).add(key)
            if (look := self._looks.get(ref)) is not None:
                # Others may have waited for it so long that it is hardly looked at any more.
                look.pause = _first(look.found)
        if refs:
            self._uses[key] = refs

    async def _read(self, ref: InputRef) -> Input | None:
        resource = SECRETS if ref.kind == "Secret" else CONFIG_MAPS
        try:
            body = await self._client.get(resource, ref.namespace, ref.name)
        except NotFound:
            return None
        except ClusterForbidden as error:
            return Input(version="", keys=frozenset(), refused=error.message)
        metadata = body["metadata"]
        return Input(
            version=f"{metadata['uid']}/{metadata['resourceVersion']}",
            keys=frozenset({*(body.get("data") or {}), *(body.get("binaryData") or {})}),
        )
