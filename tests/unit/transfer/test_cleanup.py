"""Tests of the target after a failed transfer: a block device that an earlier attempt may have written to."""

from __future__ import annotations

import contextlib

import pytest

from cdi.api.errors import SourceNotAnImage, SourceUnauthorized, SourceUnreachable
from cdi.api.job import BlockTargetSpec, HttpSourceSpec, Job, Policy
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.memory import MemorySource, MemoryTarget

ENCRYPTED_QCOW2 = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(24) + (1).to_bytes(4, "big") + bytes(1000)


class Device(MemoryTarget):
    def __init__(self) -> None:
        super().__init__(1 << 20, reads_zero=False, capacity=1 << 20)
        self.wipes = 0

    def wipe(self) -> None:
        self.wipes += 1


@pytest.fixture
def device(monkeypatch):
    made = Device()
    for module in ("disk", "cleanup"):
        monkeypatch.setattr(f"cdi.transfer.{module}.open_target", lambda _: made)
    return made


def attempt(monkeypatch, tmp_path, source, *, continued):
    """Run one attempt without a journal; `continued` says that an attempt elsewhere may have written to the device."""

    @contextlib.contextmanager
    def opened(*_):
        if isinstance(source, Exception):
            raise source
        yield source

    monkeypatch.setattr("cdi.source.open.open_source", opened)
    job = Job(
        id="a",
        source=HttpSourceSpec(url="http://example.invalid/x"),
        target=BlockTargetSpec(path="/dev/x"),
        journal=str(tmp_path / "journal"),
        policy=Policy(discover_checksum=False, retries=0),
        continued=continued,
    )
    return transfer(job, TransferControl(job))


@pytest.mark.parametrize("source", [SourceNotAnImage("a page"), MemorySource(ENCRYPTED_QCOW2)], ids=["source", "image"])
@pytest.mark.parametrize("continued", [False, True])
def test_what_an_earlier_attempt_wrote_is_wiped_once_nothing_comes_after(
    device, monkeypatch, tmp_path, source, continued
) -> None:
    outcome = attempt(monkeypatch, tmp_path, source, continued=continued)
    assert outcome.failure is not None
    assert outcome.failure.retry == "never"
    assert device.wipes == int(continued)
    assert device.written == 0


@pytest.mark.parametrize("error", [SourceUnreachable("away"), SourceUnauthorized("other credentials")])
def test_it_is_left_for_the_next_attempt(device, monkeypatch, tmp_path, error) -> None:
    outcome = attempt(monkeypatch, tmp_path, error, continued=True)
    assert outcome.failure is not None
    assert outcome.failure.code == error.code
    assert device.wipes == 0
