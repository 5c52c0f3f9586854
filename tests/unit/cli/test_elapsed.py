"""Tests of the line with the elapsed time, on a terminal and elsewhere."""

import io
import re
import threading

import pytest

from cdi.cli.elapsed import Elapsed


class Stream(io.StringIO):
    """Standard error, as a terminal or not, that signals each write."""

    def __init__(self, *, terminal):
        super().__init__()
        self.terminal = terminal
        self.written = threading.Semaphore(0)

    def isatty(self):
        return self.terminal

    def flush(self):
        self.written.release()

    def wait(self):
        assert self.written.acquire(timeout=60)


@pytest.fixture
def stream(monkeypatch):
    def make(*, terminal):
        made = Stream(terminal=terminal)
        monkeypatch.setattr("sys.stderr", made)
        return made

    return make


def test_lines_are_written_one_below_the_other_where_there_is_no_terminal(stream):
    shown = stream(terminal=False)
    with Elapsed("building", interval=0.01) as elapsed:
        shown.wait()
        elapsed.note("module x")
        while not shown.getvalue().endswith(": module x\n"):
            shown.wait()
    first, *_, last = shown.getvalue().splitlines()
    assert re.fullmatch(r"building: \d+ s", first)
    assert re.fullmatch(r"building: \d+ s: module x", last)


def test_a_terminals_line_is_rewritten_and_taken_away(stream, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    shown = stream(terminal=True)
    with Elapsed("building", interval=0.01) as elapsed:
        elapsed.note("x" * 100)
        shown.wait()
    versions = shown.getvalue().split("\r")[1:]
    assert "\n" not in shown.getvalue()
    assert versions[-1] == "\x1b[K"
    assert max(len(version.removesuffix("\x1b[K")) for version in versions) < 20


def test_what_ends_soon_prints_nothing(stream):
    shown = stream(terminal=False)
    with Elapsed("quick"):
        pass
    assert shown.getvalue() == ""


def test_an_inner_one_is_shown_by_the_outer_one(stream):
    shown = stream(terminal=False)
    with Elapsed("outer", interval=0.01), Elapsed("inner", interval=0.01):
        for _ in range(3):
            shown.wait()
    lines = shown.getvalue().splitlines()
    assert all(line.startswith("outer: ") for line in lines)
    assert lines[-1].endswith(": inner")


def test_the_work_goes_on_when_nobody_reads(stream):
    shown = stream(terminal=False)
    with Elapsed("building", interval=0.01):
        shown.wait()
        shown.close()
