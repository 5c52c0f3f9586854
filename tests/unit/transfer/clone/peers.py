"""Both ends of a clone in memory, over a socket pair without TLS."""

import socket
import ssl
import threading
from contextlib import suppress

from cdi.api.errors import CdiError, SourceChanged
from cdi.api.job import Limits
from cdi.transfer.clone import frames
from cdi.transfer.clone.clone_source import DiskSource
from cdi.transfer.clone.fanout_scheduler import FanoutScheduler
from cdi.transfer.clone.frames import Done, Fail, Hello, Kind, Welcome
from cdi.transfer.clone.peer_connection import PeerConnection
from cdi.transfer.clone.receiver import DiskReceiver, FrameReader
from cdi.transfer.clone.sender import SenderProtocol, SendSession
from cdi.transfer.progress import ProgressMeter
from cdi.transfer.rate_limit import RateLimiter


class Socket:
    """Subset of a TLS socket that `PeerConnection` needs; it breaks after `cut` bytes in both directions together."""

    def __init__(self, plain, cut=None, most=None):
        self.plain = plain
        self.left = cut
        self.most = most

    def send(self, view):
        return self.spend(lambda most: self.plain.send(view[:most]), len(view), ssl.SSLWantWriteError)

    def recv_into(self, view):
        return self.spend(lambda most: self.plain.recv_into(view[:most]), len(view), ssl.SSLWantReadError)

    def spend(self, act, wanted, later):
        if self.left == 0:
            with suppress(OSError):
                self.plain.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError(104, "cut")
        most = min(n for n in (wanted, self.left, self.most) if n is not None)
        try:
            done = act(most)
        except BlockingIOError:
            raise later from None
        if self.left is not None:
            self.left -= done
        return done

    def fileno(self):
        return self.plain.fileno()

    def setblocking(self, flag):
        self.plain.setblocking(flag)

    def setsockopt(self, *_):
        pass

    def getsockopt(self, *_):
        raise OSError(95, "not TCP")

    def close(self):
        self.plain.close()


def lines(cut=None, stall=20.0):
    """Return two ends of a connection; it breaks after the first has sent or received `cut` bytes."""
    one, other = socket.socketpair()
    return tuple(
        PeerConnection(tls, "peer", stall=stall, check=lambda: None) for tls in (Socket(one, cut), Socket(other))
    )


class MemoryOrigin:
    """Fake `cdi.transfer.clone.disk_reader.DiskReader` over bytes; it reports `holes` as holes."""

    path = "/source"

    def __init__(self, data, extents=None):
        self.data = data
        self.size = len(data)
        self.parts = [(0, len(data))] if extents is None else extents
        self.changed = False

    def extents(self, start):
        for begin, end in self.parts:
            if end > start:
                yield max(begin, start), end

    def read(self, view, offset):
        assert len(view) > 0
        view[:] = self.data[offset : offset + len(view)]

    def check(self):
        if self.changed:
            raise SourceChanged("changed")


def said(origin, **fields):
    usual = {"job": "x", "content": "kubevirt", "size": origin.size, "data": origin.size, "validator": "v"}
    return Hello(**(usual | fields))


class MemorySupply(DiskSource):
    """Source over a `MemoryOrigin`."""

    def __init__(self, origin, has_strong_validator=True):
        self.origin, self.size, self.data, self.has_strong_validator, self.validator = (
            origin,
            origin.size,
            origin.size,
            has_strong_validator,
            "v",
        )


def conversation(line, bandwidth=0):
    return SenderProtocol(line, (RateLimiter(Limits(bandwidth=bandwidth), threading.Event()),))


def deliver(origin, line, *, has_strong_validator=True, fetched=lambda size: None):
    """Run the source over one connection and return the digest."""
    scheduler, source = FanoutScheduler(1, fetched), MemorySupply(origin, has_strong_validator)

    def seat(cursor, alone):
        scheduler.announce(line)
        return scheduler.subscribe(line, source, cursor, delivery.pause, alone=alone)

    delivery = SendSession(source, conversation(line), seat)
    return delivery.run(said(origin))


def converse(
    origin, target, position, *, cut=None, zeros=None, has_strong_validator=True, checkpoint=None, narrow=False
):
    """Run one connection and return the result of each end, source first: a digest or the error."""
    source_line, target_line = lines(cut)
    source_line.narrow = lambda: narrow
    ends = []

    def send():
        try:
            ends.append(deliver(origin, source_line, has_strong_validator=has_strong_validator))
        except CdiError as error:
            ends.append(error)
        finally:
            source_line.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        listener = FrameReader(target_line)
        try:
            hello = listener.hello()
            state = position.state.hex() if position.watermark else ""
            listener.send(frames.encode_message(Welcome(watermark=position.watermark, state=state)))
            zeros = not target.reads_zero if zeros is None else zeros
            receiver = DiskReceiver(listener, hello, target, position, ProgressMeter(), checkpoint, zeros=zeros)
            received = receiver.run()
            listener.send(frames.encode_message(Done(digest=received.hex())))
            with suppress(CdiError):
                assert target_line.header().kind is Kind.BYE
        except CdiError as error:
            received = error
            with suppress(CdiError):
                listener.send(frames.encode_message(Fail.of(error)))
    finally:
        target_line.close()
        thread.join()
    return ends[0], received
