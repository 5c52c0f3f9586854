"""Source and target in memory: the source fails as scripted, and the target records what was done to it."""

import random
import threading

from cdi.api.errors import Interrupted, SourceTruncated
from cdi.api.job import BlankSourceSpec, FileTargetSpec, Job, Limits, Policy
from cdi.source.base import SourceFacts
from cdi.transfer.control import TransferControl
from cdi.transfer.rate_limit import RateLimiter
from cdi.transfer.retry import RetryBudget


def control_of(*, cancelled=None, limits=None, jitter=0.5, **policy):
    """Return the control that the parts of a transfer share, with the test's own event for cancellation."""
    job = Job(id="x", source=BlankSourceSpec(), target=FileTargetSpec(path="x"), policy=Policy(**policy))
    control = TransferControl(job)
    control.cancelled = threading.Event() if cancelled is None else cancelled
    control.throttle = RateLimiter(limits or Limits(), control.cancelled)
    control.retries = RetryBudget(
        job.policy.retries, meter=control.meter, cancelled=control.cancelled, jitter=lambda: jitter
    )
    return control


class MemoryTarget:
    """A `cdi.target.base.Target` over bytes, full of old data unless it reads as zero."""

    def __init__(self, size=0, *, reads_zero=True, capacity=None):
        self.capacity = capacity
        self.reads_zero = reads_zero
        self.size = 0
        self.disk = bytearray()
        self.written = 0
        self.flushed = 0
        self.state = "open"
        self.lock = threading.Lock()
        self.resize(size)

    def resize(self, size):
        with self.lock:
            del self.disk[size:]
            self.disk += (b"\0" if self.reads_zero else b"\xa5") * (size - len(self.disk))
            self.size = size

    def write(self, view, offset):
        assert 0 <= offset and offset + len(view) <= self.size, "outside of the disk"
        with self.lock:
            self.disk[offset : offset + len(view)] = view
            self.written += len(view)

    def zero(self, offset, length):
        assert 0 <= offset and offset + length <= self.size, "outside of the disk"
        with self.lock:
            self.disk[offset : offset + length] = bytes(length)

    def preallocate(self):
        pass

    def flush(self):
        self.flushed += 1

    def reset(self):
        with self.lock:
            self.disk[:] = (b"\0" if self.reads_zero else b"\xa5") * self.size

    def commit(self):
        self.state = "committed"

    def wipe(self):
        self.state = "wiped"

    def close(self):
        pass


class MemorySource:
    """A `cdi.source.base.Source` over bytes.

    Attributes:
        faults: callables, one for each `open` in turn (None: no fault); each is called with the number of bytes that
            this reader has returned and may raise.
    """

    def __init__(self, data, *, ranges=True, length=True, faults=(), most=None, validator="v1", name=None, seed=0):
        self.data = data
        self.facts = SourceFacts(
            location="memory:", length=len(data) if length else None, ranges=ranges, validator=validator, name=name
        )
        self.faults = list(faults)
        self.most = most
        self.opened = []
        self.random = random.Random(seed)
        self.lock = threading.Lock()

    def probe(self):
        return self.facts

    def open(self, offset=0, length=None):
        with self.lock:
            self.opened.append((offset, length))
            fault = self.faults.pop(0) if self.faults else None
        stop = len(self.data) if length is None else offset + length
        return MemoryReader(self, offset, stop, fault)

    def sibling(self, name):
        return None

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class MemoryReader:
    def __init__(self, source, offset, stop, fault):
        self.source, self.offset, self.stop, self.fault = source, offset, stop, fault
        self.given = 0
        self.aborted = False

    def readinto(self, view):
        if self.aborted:
            raise Interrupted("aborted")
        if self.fault is not None:
            self.fault(self.given)
        count = min(len(view), self.stop - self.offset)
        if self.source.most is not None:
            count = min(count, self.source.random.randint(1, self.source.most))
        if self.offset + count > len(self.source.data):
            raise SourceTruncated("the content ended", where="memory:")
        view[:count] = self.source.data[self.offset : self.offset + count]
        self.offset += count
        self.given += count
        return count

    def abort(self):
        self.aborted = True

    def close(self):
        pass
