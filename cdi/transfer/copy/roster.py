"""Whom a reader serves: the file in which its pod shows the annotations that name targets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from cdi.api.copy import TARGETS_MOST, TICKET_PREFIX, Ticket
from cdi.api.errors import InvalidManifest

_LARGEST = 2 << 20
"""Bytes: a pod's annotations have 256 KiB, and a few more when they are quoted."""


class Roster:
    """What the file says, looked at whenever it is another."""

    def __init__(self, path: str, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._seen: tuple[int, int] | None = None
        self._tickets: dict[str, Ticket] = {}

    def look(self) -> dict[str, Ticket]:
        """Tickets of those who are to be called, by the ids of their targets; none where there is no file.

        There are `TARGETS_MOST` at most.

        It may be written in place or replaced, also by way of links, as a kubelet does it.  A line that makes no sense
        is told as a warning.
        """
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._seen:
                with open(self._path, "rb") as file:
                    self._tickets = self._parsed(file.read(_LARGEST))
                self._seen = stamp
        except FileNotFoundError:
            self._seen, self._tickets = None, {}
        except OSError as error:
            self._warn(f"{self._path} cannot be read: {error.strerror}")
        return self._tickets

    def _parsed(self, content: bytes) -> dict[str, Ticket]:
        tickets: dict[str, Ticket] = {}
        for line in content.decode("utf-8", "replace").splitlines():
            name, equals, quoted = line.partition("=")
            if not equals or not name.startswith(TICKET_PREFIX):
                continue
            try:
                # A kubelet quotes as Go does, which of printable ASCII is as JSON does.
                ticket = Ticket.from_json(str(json.loads(quoted)))
            except (ValueError, InvalidManifest):
                self._warn(f"{name} is no ticket")
                continue
            if not ticket.id or "/" in ticket.id or "\0" in ticket.id:
                self._warn(f"{name} is for a target without a proper id")
                continue
            if not ticket.address:
                continue
            if len(tickets) == TARGETS_MOST:
                self._warn(f"more than {TARGETS_MOST} targets are named")
                break
            tickets[ticket.id] = ticket
        return tickets


def line_of(ticket: Ticket) -> str:
    """As a kubelet writes it."""
    return f"{TICKET_PREFIX}{ticket.id}={json.dumps(ticket.to_json())}\n"
