"""The way to the webhooks: a path that the API servers are told, and nobody else.

What an API server sends to a webhook does not prove who sends it: it shows a certificate only where that was set up
on the machines that it runs on.  It does ask where its webhook configurations say, which administrators may read.  So
their paths begin with a word that nobody guesses, which all replicas have out of one Secret, and which is renewed.

An API server that gets no answer names the whole URL to the user who waits for it.  No right may therefore hang on this
word alone (`cdi.server.cloning`, THREAT_MODEL.md).
"""

from __future__ import annotations

import datetime as dt
import hmac
import json
import re
import secrets
from dataclasses import asdict, dataclass
from typing import Final

from cdi.api.decode import DecodeError, decode
from cdi.kube import kept
from cdi.kube.client import Client
from cdi.kube.pki import Lifetime
from cdi.kube.resources import SECRETS

KEY: Final = "paths.json"
"""In the Secret."""
SETTLED: Final = dt.timedelta(minutes=2)
"""By then every replica has read a new word, and it can be told to the API servers."""
OVERLAP: Final = dt.timedelta(minutes=10)
"""For so long after a new word was made the one before it is good; API servers hear of it seconds after `SETTLED`."""
_BYTES: Final = 32
_WORD: Final = re.compile(r"[0-9a-f]{64}")
"""Each part of a webhook's path has to be a DNS name; and no word that somebody shortened by hand is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One of them."""

    word: str
    made: float
    """Seconds since the epoch."""

    @classmethod
    def new(cls, now: dt.datetime) -> Word:
        return cls(word=secrets.token_hex(_BYTES), made=now.timestamp())


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Those that are good, the newest first.  What is said of them follows from the time, so replicas agree."""

    words: tuple[Word, ...] = ()

    def current(self, now: dt.datetime) -> tuple[Word, ...]:
        """The one that API servers are to use, where there is any."""
        settled = [one for one in self.words if one.made + SETTLED.total_seconds() <= now.timestamp()]
        return tuple((settled or self.words[-1:])[:1])

    def admits(self, word: str, now: dt.datetime) -> bool:
        """Whether a request that shows this may be listened to.  Takes the same time for any wrong one."""
        overlap = bool(self.words) and now.timestamp() < self.words[0].made + OVERLAP.total_seconds()
        good = self.words if overlap else self.words[:1]
        shown = word.encode("utf-8", "replace")
        return any([hmac.compare_digest(one.word.encode(), shown) for one in good])  # noqa: C419  looks at each

    def renewed(self, lifetime: Lifetime, now: dt.datetime) -> Words:
        """With another one where it is time, or where there is none."""
        age = now.timestamp() - self.words[0].made if self.words else None
        term = (lifetime.duration - lifetime.renew_before).total_seconds()
        # One that was made in the future would stay for ever.
        if age is not None and -OVERLAP.total_seconds() < age < term:
            return self
        return Words(words=(Word.new(now), *self.current(now)))

    @classmethod
    def read(cls, text: bytes) -> Words:
        """None where it cannot be read; somebody may have altered it."""
        try:
            found = decode(cls, text)
        except DecodeError:
            return cls()
        return cls(words=tuple(one for one in found.words if _WORD.fullmatch(one.word))[:2])

    def write(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


async def ensure_words(
    client: Client, namespace: str, secret: str, lifetime: Lifetime, now: dt.datetime, known: Words
) -> Words:
    """The words that all replicas have, renewed where it is time.

    `known` are those that this one had: where somebody deleted the Secret, they are good for as long as they would be
    after any renewal, so that nobody who asks is turned away.  Raises `Conflict` where others write all the time, and
    whatever the API server answers.
    """

    async def step() -> Words:
        stored = await kept.look(client, SECRETS, namespace, secret)
        before = Words.read(kept.field(stored, KEY))
        # A Secret that is gone says: make another one.
        words = before.renewed(lifetime, now) if before.words else Words(words=(Word.new(now), *known.current(now)))
        if words != before:
            body = kept.manifest("Secret", namespace, secret)
            await kept.put(
                client, SECRETS, stored, body | {"type": "Opaque", "data": kept.encoded({KEY: words.write()})}
            )
        return words

    return await kept.settled(step)
