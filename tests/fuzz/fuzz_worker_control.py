"""Fuzz target: documents between controller, workers and their files are parsed whole or rejected by field.

python tests/fuzz/fuzz_worker_control.py -max_total_time=60
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.api.decode", "cdi.api.json_document", "cdi.transfer.clone.tickets"]):
    from cdi.api.copy import CopySourceJob, Ticket
    from cdi.api.decode import DecodeError, decode
    from cdi.api.errors import InvalidManifest
    from cdi.api.job import (
        BlankSourceSpec,
        DirectoryTargetSpec,
        Failure,
        FileTargetSpec,
        HttpSourceSpec,
        Job,
        Limits,
        Outcome,
        Progress,
        StreamSourceSpec,
    )
    from cdi.api.peer import PeerSourceSpec
    from cdi.server.webhook_path import PathSecrets
    from cdi.transfer.clone.tickets import TicketFile, line_of
    from cdi.transfer.journal import Journal

from tests.fuzz.documents import spoilt
from tests.fuzz.seeds import run

DISK = FileTargetSpec(path="/data/disk.img")
TICKET = Ticket(id="u-1", address="10.0.0.1:8443", server_name="a.b.svc", attempt="1", claim="ns/a")
SOUND = (
    Job(id="u-1", source=HttpSourceSpec(url="https://h/x"), target=DISK, checksum="sha256:" + "0" * 64),
    Job(id="u-1", source=StreamSourceSpec(), target=DirectoryTargetSpec(path="/data"), content_type="archive"),
    Job(id="u-1", source=BlankSourceSpec(), target=DISK, size=1 << 30),
    Job(id="u-1", source=PeerSourceSpec(), target=DISK, size=1 << 30),
    Outcome(id="u-1", failure=Failure(code="TargetFull", message="full", retry="never", exit_status=6)),
    Progress(phase="transferring", done=1, total=2),
    Limits(),
    TICKET,
    Journal(
        job="u-1", path="raw-ranged", validator=None, length=5, watermark=0, disk_size=5, algorithm=None, digest_state=None
    ),
    PathSecrets(),
)  # fmt: skip
CLASSES = tuple(dict.fromkeys((*map(type, SOUND), CopySourceJob)))


def target(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        one = SOUND[provider.ConsumeIntInRange(0, len(SOUND) - 1)]
        cls, text = type(one), json.dumps(spoilt(asdict(one), provider)).encode()
    else:
        cls = CLASSES[provider.ConsumeIntInRange(0, len(CLASSES) - 1)]
        text = provider.ConsumeBytes(4096)
    try:
        found = decode(cls, text)
    except DecodeError as error:
        assert error.problems
    else:
        # What was read says the same when it is written and read again.
        assert decode(cls, json.dumps(asdict(found))) == found
    if hasattr(cls, "from_json"):
        try:
            cls.from_json(text)
        except (InvalidManifest, ValueError):
            pass
    warned: list[str] = []
    ticket_file = TicketFile("/none", warned.append)
    for lines in (text, line_of(TICKET).encode() + b"\n" + text):
        found_tickets = ticket_file._parsed(lines)  # noqa: SLF001  its file is its only other way in
        assert all(ticket.address and "/" not in ticket.id for ticket in found_tickets.values())
    assert "u-1" in found_tickets


def seeds() -> list[bytes]:
    # The provider takes numbers from the end.
    raw = [json.dumps(asdict(one)).encode() + bytes((number, 0)) for number, one in enumerate(SOUND)]
    edited = [bytes(40) + bytes((number, 1)) for number in range(len(SOUND))]
    return [*raw, *edited, line_of(TICKET).encode() + b"\6\0", b"[" * 4000 + b"\0\0"]


if __name__ == "__main__":
    run(target, seeds(), 4096, fixed=25_000)
