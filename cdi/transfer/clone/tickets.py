"""Targets of a clone source, from the file in which its pod mounts the annotations that list them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from cdi.api.copy import MAX_TARGETS, TICKET_PREFIX, Ticket
from cdi.api.errors import InvalidManifest
from cdi.api.json_document import parse_json

_MAX_SIZE = 2 << 20
"""Maximum size in bytes: a pod's annotations have 256 KiB, and slightly more when quoted."""


class TicketFile:
    """File with tickets, reloaded when it changes."""

    def __init__(self, path: str, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._seen: tuple[int, int] | None = None
        self._tickets: dict[str, Ticket] = {}

    def reload(self) -> dict[str, Ticket]:
        """Return the tickets, at most `MAX_TARGETS`, by the ids of their targets; none if the file does not exist.

        The file may be written in place or replaced, also through symbolic links, as a kubelet does. A malformed line
        causes a warning.
        """
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._seen:
                with open(self._path, "rb") as file:
                    self._tickets = self._parsed(file.read(_MAX_SIZE))
                self._seen = stamp
        except FileNotFoundError:
            self._seen, self._tickets = None, {}
        except OSError as error:
            self._warn(f"cannot read {self._path}: {error.strerror}")
        return self._tickets

    def _parsed(self, content: bytes) -> dict[str, Ticket]:
        tickets: dict[str, Ticket] = {}
        for line in content.decode("utf-8", "replace").splitlines():
            name, equals, quoted = line.partition("=")
            if not equals or not name.startswith(TICKET_PREFIX):
                continue
            try:
                # A kubelet quotes like Go, which for printable ASCII equals JSON.
                ticket = Ticket.from_json(str(parse_json(quoted)))
            except (ValueError, InvalidManifest):
                self._warn(f"{name} is not a valid ticket")
                continue
            if not ticket.id or "/" in ticket.id or "\0" in ticket.id:
                self._warn(f"{name} has an invalid target id")
                continue
            if not ticket.address:
                continue
            if len(tickets) == MAX_TARGETS:
                self._warn(f"more than {MAX_TARGETS} targets are listed")
                break
            tickets[ticket.id] = ticket
        return tickets


def line_of(ticket: Ticket) -> str:
    """Return a ticket's line as a kubelet writes it."""
    return f"{TICKET_PREFIX}{ticket.id}={json.dumps(ticket.to_json())}\n"
