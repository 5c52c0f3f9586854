"""Secret path prefix of the webhooks, known only to API servers.

Requests to a webhook do not prove that an API server sent them: it presents a client certificate only if that was
configured on the machines it runs on. It does use the path in its webhook configurations, which only administrators
can read. Paths therefore begin with a random prefix that all replicas read from one Secret, and that is rotated.

If a webhook does not respond, the API server shows its whole URL to the user who sent the request. No permission may
therefore depend on this prefix alone (`cdi.server.clone_authorization`, THREAT_MODEL.md).
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
from cdi.api.kinds import SECRETS
from cdi.kube import shared_objects
from cdi.kube.client import Client
from cdi.kube.pki import Lifetime

KEY: Final = "paths.json"
"""The key in the Secret."""
SETTLED: Final = dt.timedelta(minutes=2)
"""Delay before a new prefix is sent to API servers; every replica has read it by then."""
OVERLAP: Final = dt.timedelta(minutes=10)
"""Time for which the previous prefix stays valid after a rotation; API servers get the new one after `SETTLED`."""
_BYTES: Final = 32
_WORD: Final = re.compile(r"[0-9a-f]{64}")
"""The form of a valid prefix: each part of a webhook's path has to be a DNS name, and none may be shortened by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSecret:
    """A path prefix."""

    word: str
    made: float
    """Seconds since the epoch."""

    @classmethod
    def new(cls, now: dt.datetime) -> PathSecret:
        return cls(word=secrets.token_hex(_BYTES), made=now.timestamp())


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSecrets:
    """The valid prefixes, newest first; which of them to use follows from the time alone, so that replicas agree."""

    words: tuple[PathSecret, ...] = ()

    def current(self, now: dt.datetime) -> tuple[PathSecret, ...]:
        """Return the prefix that API servers have to use, as a tuple that is empty if there is none."""
        settled = [one for one in self.words if one.made + SETTLED.total_seconds() <= now.timestamp()]
        return tuple((settled or self.words[-1:])[:1])

    def admits(self, word: str, now: dt.datetime) -> bool:
        """Return whether a request with this prefix may be served; take the same time for any wrong one."""
        overlap = bool(self.words) and now.timestamp() < self.words[0].made + OVERLAP.total_seconds()
        good = self.words if overlap else self.words[:1]
        shown = word.encode("utf-8", "replace")
        return any([hmac.compare_digest(one.word.encode(), shown) for one in good])  # noqa: C419  constant time

    def renewed(self, lifetime: Lifetime, now: dt.datetime) -> PathSecrets:
        """Return the prefixes, with a new one if it is due or if there is none."""
        age = now.timestamp() - self.words[0].made if self.words else None
        term = (lifetime.duration - lifetime.renew_before).total_seconds()
        # A prefix with a time in the future would never expire.
        if age is not None and -OVERLAP.total_seconds() < age < term:
            return self
        return PathSecrets(words=(PathSecret.new(now), *self.current(now)))

    @classmethod
    def read(cls, text: bytes) -> PathSecrets:
        """Parse the value in the Secret; return no prefixes if it is malformed, since it may have been edited."""
        try:
            found = decode(cls, text)
        except DecodeError:
            return cls()
        return cls(words=tuple(one for one in found.words if _WORD.fullmatch(one.word))[:2])

    def write(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


async def ensure_words(
    client: Client, namespace: str, secret: str, lifetime: Lifetime, now: dt.datetime, known: PathSecrets
) -> PathSecrets:
    """Return the prefixes that all replicas share, rotated if that is due.

    Args:
        client: The API server; its errors are raised.
        namespace: The namespace of the Secret.
        secret: The name of the Secret.
        lifetime: The rotation period.
        now: The time.
        known: The prefixes that this replica knew. If the Secret was deleted they stay valid for as long as after a
            rotation, so that no request is rejected.

    Raises:
        Conflict: Other replicas kept writing at the same time.
    """

    async def step() -> PathSecrets:
        stored = await shared_objects.get_or_none(client, SECRETS, namespace, secret)
        before = PathSecrets.read(shared_objects.field(stored, KEY))
        # An administrator deletes the Secret to force a new prefix.
        words = (
            before.renewed(lifetime, now)
            if before.words
            else PathSecrets(words=(PathSecret.new(now), *known.current(now)))
        )
        if words != before:
            body = shared_objects.manifest("Secret", namespace, secret)
            await shared_objects.create_or_update(
                client, SECRETS, stored, body | {"type": "Opaque", "data": shared_objects.encoded({KEY: words.write()})}
            )
        return words

    return await shared_objects.retry_on_conflict(step)
