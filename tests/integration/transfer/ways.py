"""The pipelines that faults are tested on: an image, the way it is served, and its target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cdi.api.job import HttpSourceSpec, Job, Outcome, Policy
from tests.faults.server import Fault, FaultServer, Request
from tests.integration.fixtures_images import Image, Importing, Volume

WAYS = {
    "raw": ("raw", True, "raw-ranged"),
    "qcow2": ("qcow2-zlib", True, "qcow2-ranged"),
    "qcow2-stream": ("qcow2-zlib", False, "qcow2-stream"),
    "qemu": ("vmdk-2M", True, "qemu-spool"),
    "raw-stream": ("raw", False, "raw-stream"),
    "qemu-spool": ("vmdk-2M", False, "qemu-spool"),
}
PAIRS = [
    *((way, volume) for way in ("raw", "qcow2", "qcow2-stream", "qemu") for volume in ("file", "block512")),
    ("raw-stream", "file"),
    ("qemu-spool", "block512"),
]
OLD = b"the disk of an earlier import"

Behaviour = Callable[[Request], Fault | None]


@dataclass
class Case:
    """One import from a server that misbehaves on demand, onto a volume with an older disk."""

    way: str
    image: Image
    volume: Volume
    server: FaultServer
    importing: Importing

    @property
    def ranges(self) -> bool:
        return WAYS[self.way][1]

    @property
    def path(self) -> str:
        return WAYS[self.way][2]

    def serve(self, behaviour: Behaviour | Fault | None = None, **attributes: Any) -> None:
        data = attributes.pop("data", self.image.content)
        self.server.put("/disk", data, always=behaviour, ranges=self.ranges, **attributes)

    def job(self, policy: Policy | None = None, **more: Any) -> Job:
        source = HttpSourceSpec(url=self.server.url("/disk"))
        policy = policy or Policy(discover_checksum=False, retries=4, stall_timeout=10)
        return self.importing.job(source, self.volume, policy=policy, **more)

    def run(self, policy: Policy | None = None, **more: Any) -> Outcome:
        if self.volume.device is None:
            self.volume.disk.write_bytes(OLD)
        self.ran = self.job(policy, **more)
        return self.importing.run(self.ran)

    def succeeded(self, outcome: Outcome, image: Image | None = None) -> None:
        assert outcome.failure is None, outcome.failure
        assert outcome.path == self.path
        self.importing.check(outcome, self.ran, self.volume, image or self.image)

    def failed(self, outcome: Outcome, code: str, retry: str, *, touched: bool = True) -> None:
        """Check for a failure with `code`, and the volume's state after it.

        See `docs/explanation/resume-and-verification.md` for the permitted states.
        """
        import os

        assert outcome.failure is not None
        assert (outcome.failure.code, str(outcome.failure.retry)) == (code, retry), outcome.failure
        volume = self.volume
        if volume.device is None:
            assert volume.disk.read_bytes() == OLD, "the older disk is left alone"
            left = set(os.listdir(volume.directory)) - {"disk.img"}
            assert left <= ({".disk.img.partial"} if retry != "never" else set())
        elif not touched:
            assert volume.is_as_it_was()
        elif retry == "never":
            assert volume.is_wiped()
        if retry == "never":
            assert not os.path.exists(self.ran.journal or "")
            assert not os.path.exists(f"{self.ran.journal}.begun")
        assert os.listdir(self.ran.scratch or "") == []

    def fetched_before(self, limit: int) -> bool:
        """Return whether only the file's beginning was requested, and the footer that a fixed VHD has at its end."""
        asked = [request.range for request in self.server.asked("/disk")]
        footer = len(self.image.content) - 512
        return bool(asked) and all(
            part and part[1] is not None and (part[1] < limit or part[0] >= footer) for part in asked
        )


@pytest.fixture
def make_case(images, volumes, importing, fault_server):
    def make(way: str, volume: str) -> Case:
        return Case(way, images.get(WAYS[way][0]), volumes(volume), fault_server, importing)

    return make


@pytest.fixture(params=PAIRS, ids="-".join)
def case(request, make_case):
    return make_case(*request.param)
