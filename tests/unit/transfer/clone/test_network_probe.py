"""Detection of a network bottleneck."""

import struct

import pytest

from cdi.transfer.clone.network_probe import NetworkBoundProbe


class Kernel:
    """Counters of a connection, in seconds."""

    def __init__(self):
        self.now = self.busy = self.no_room = 0.0
        self.known = True

    def clock(self):
        return self.now

    def getsockopt(self, level, option, size):
        if not self.known:
            raise OSError(92, "not known")
        info = bytes(168) + struct.pack("=QQ", int(self.busy * 1e6), int(self.no_room * 1e6))
        return info[:size]

    def passes(self, seconds, busy, no_room):
        self.now += seconds
        self.busy += busy
        self.no_room += no_room


@pytest.mark.parametrize(
    ("busy", "no_room", "narrow"),
    [
        (1.0, 0.0, True),
        (0.6, 0.0, True),
        (0.4, 0.0, False),  # the sender is slower
        (1.0, 0.9, False),  # the receiver is
        (0.0, 0.0, False),
    ],
)
def test_only_the_network_itself_is_narrow(busy, no_room, narrow):
    kernel = Kernel()
    asked = NetworkBoundProbe(kernel, kernel.clock)
    for _ in range(3):
        kernel.passes(1.0, busy, no_room)
        assert asked() is narrow


def test_it_changes_with_the_network():
    kernel = Kernel()
    asked = NetworkBoundProbe(kernel, kernel.clock)
    kernel.passes(1.0, 1.0, 0.0)
    assert asked()
    kernel.passes(0.01, 0.0, 0.0)
    assert asked()
    kernel.passes(1.0, 0.1, 0.0)
    assert not asked()


def test_a_kernel_that_does_not_tell_is_taken_for_a_fast_one():
    kernel = Kernel()
    asked = NetworkBoundProbe(kernel, kernel.clock)
    kernel.passes(1.0, 1.0, 0.0)
    kernel.known = False
    assert not asked()
