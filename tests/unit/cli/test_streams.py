from __future__ import annotations

import os
import select
import threading

from cdi.cli import streams


def test_a_non_blocking_pipe_that_is_full_is_waited_for(monkeypatch):
    """Another process that shares the terminal or the pipe may have made it non-blocking."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    filled = 0
    while filled == 0 or filled % 65536 == 0:
        try:
            filled += os.write(writing, bytes(65536))
        except BlockingIOError:
            break
    waiting = threading.Event()
    real = select.poll

    def poll():
        waiting.set()
        return real()

    monkeypatch.setattr(select, "poll", poll)
    output = streams._text(streams._Output(writing, "wb"), None)

    def write():
        output.write("all of it")
        output.close()

    writer = threading.Thread(target=write)
    writer.start()
    assert waiting.wait(30)
    os.set_blocking(reading, True)
    with open(reading, "rb") as pipe:
        assert pipe.read() == bytes(filled) + b"all of it"
    writer.join()
