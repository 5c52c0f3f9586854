"""Tests of progress requests to running workers, over real connections; their answers affect progress alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable

import pytest
import trustme
from aiohttp import web

from cdi.api.job import Progress
from cdi.controller.progress import FetchProgress, ProgressPoller, Target, parse_report, progress_client


def answer(**changes: object) -> bytes:
    progress = {"phase": "transferring", "done": 10, "total": 100} | changes
    return json.dumps({"progress": progress, "journal": None}).encode()


def target(uid: str = "u1", address: str = "host:8443", keeps_journal: bool = False) -> Target:
    return Target(uid=uid, namespace="ns", name=f"importer-{uid}", address=address, keeps_journal=keeps_journal)


# --- valid and invalid answers ----------------------------------------------------------------------------------


def test_a_report_is_read() -> None:
    report = parse_report(b'{"progress":{"phase":"flushing","done":5,"total":null},"journal":"{}"}')
    assert report.progress == Progress(phase="flushing", done=5, total=None)
    assert report.journal == "{}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 90_000,
        b"null",
        b"[]",
        b'{"progress":null,"journal":null}',
        answer(phase="mining"),
        answer(done=-1),
        answer(done=10**30),
        answer(total=-5),
        answer(rate=-1.0),
        answer().replace(b"100", b"Infinity"),
        answer().replace(b"100", b"9" * 5000),
        answer(extra=1),
    ],
)
def test_what_no_worker_says_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_report(body)


def test_a_note_is_cut_and_cannot_steer_a_terminal() -> None:
    note = parse_report(answer(note="\x1b[31m" + "x" * 5000)).progress.note
    assert len(note) == 256
    assert note.startswith("?[31m")


def test_the_failure_of_a_try_is_one_word_and_one_line() -> None:
    failure = {"code": "Source\nUnreachable" + "x" * 100, "message": "a\nb\x1b[31m" + "x" * 5000, "retry": "backoff"}
    failure_of_report = parse_report(answer(failure=failure)).progress.failure
    assert failure_of_report is not None
    assert failure_of_report.code.startswith("SourceUnreachable") and len(failure_of_report.code) <= 64
    assert failure_of_report.message.startswith("a?b?[31m") and len(failure_of_report.message) == 1024


@pytest.mark.parametrize("failure", [{}, "x", {"code": "X", "message": "x", "retry": "perhaps"}])
def test_a_failure_that_is_none_is_refused(failure: object) -> None:
    with pytest.raises(ValueError):
        parse_report(answer(failure=failure))


def test_a_journal_that_no_annotation_holds_is_not_taken() -> None:
    body = json.dumps({"progress": {"phase": "done", "done": 1, "total": 1}, "journal": "x" * 70_000}).encode()
    assert parse_report(body).journal is None


# --- requests ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def pod(handle: Callable[[web.Request], object]) -> AsyncIterator[str]:
    """Run a worker's HTTPS server and yield its address."""
    app = web.Application()
    app.router.add_get("/progress", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("somebody.else").configure_cert(context)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def followed(
    ask: FetchProgress, **options: object
) -> AsyncIterator[tuple[ProgressPoller, asyncio.Queue[Target], list[str]]]:
    on_progress: asyncio.Queue[Target] = asyncio.Queue()
    journals: list[str] = []

    async def keep(_: Target, journal: str) -> None:
        journals.append(journal)

    progresses = ProgressPoller(
        on_progress=on_progress.put_nowait, save_journal=keep, every=0.001, rate=10_000, **options
    )
    task = asyncio.create_task(progresses.run(ask))
    try:
        yield progresses, on_progress, journals
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_pod_is_asked_over_https_and_its_changes_are_told() -> None:
    done = 0

    async def handle(_: web.Request) -> web.Response:
        nonlocal done
        done += 1
        return web.Response(body=answer(done=done // 3))

    async with pod(handle) as address, progress_client() as ask, followed(ask) as (progresses, on_progress, _):
        progresses.track(target(address=address))
        seen = []
        for _ in range(3):
            assert (await on_progress.get()).uid == "u1"
            newest = progresses.of("u1")
            assert newest is not None
            seen.append(newest.done)
        assert seen == [0, 1, 2]


@pytest.mark.parametrize("kind", ["status", "redirect", "endless", "bomb", "garbage"])
async def test_a_hostile_pod_is_asked_less_and_stops_nobody(kind: str) -> None:
    asked = asyncio.Event()

    async def hostile(request: web.Request) -> web.StreamResponse:
        asked.set()
        match kind:
            case "status":
                return web.Response(status=500, body=answer())
            case "redirect":
                return web.Response(status=302, headers={"Location": f"https://{address}/progress"})
            case "bomb":
                return web.Response(body=b"\x1f\x8b" + b"\0" * 100, headers={"Content-Encoding": "gzip"})
            case "garbage":
                return web.Response(body=b"\xff\xfe" * 1000)
            case _:
                response = web.StreamResponse()
                await response.prepare(request)
                with contextlib.suppress(ConnectionError):
                    while True:
                        await response.write(b"x" * 65_536)
                return response

    async def good(_: web.Request) -> web.Response:
        return web.Response(body=answer())

    async with (
        pod(good) as address,
        pod(hostile) as bad,
        progress_client() as ask,
        followed(ask) as (progresses, on_progress, _),
    ):
        progresses.track(target("bad", bad))
        await asked.wait()
        progresses.track(target("good", address))
        assert (await on_progress.get()).uid == "good"
        assert progresses.of("bad") is None


async def test_a_journal_is_kept_when_it_is_new_and_not_too_often() -> None:
    now = 0.0
    number = 0
    kept: list[str] = []
    enough = asyncio.Event()

    async def ask(_: str) -> bytes:
        nonlocal number
        number += 1
        await asyncio.sleep(0)
        return json.dumps({"progress": {"phase": "done", "done": number, "total": 9}, "journal": f"j{number}"}).encode()

    async def keep(_: Target, journal: str) -> None:
        kept.append(journal)
        raise OSError("the API server is away")

    def on_progress(_: Target) -> None:
        nonlocal now
        now += 4
        if number >= 7:
            enough.set()

    progresses = ProgressPoller(on_progress=on_progress, save_journal=keep, clock=lambda: now, every=0, rate=10_000)
    task = asyncio.create_task(progresses.run(ask))
    progresses.track(target(keeps_journal=True))
    await enough.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert kept[:2] == ["j1", "j4"]


async def test_a_pod_that_ended_keeps_its_last_word_until_it_is_gone() -> None:
    async def ask(_: str) -> bytes:
        return answer()

    async with followed(ask) as (progresses, on_progress, _):
        progresses.track(target())
        await on_progress.get()
        progresses.untrack("u1")
        assert progresses.of("u1") is not None
        progresses.forget("u1")
        assert progresses.of("u1") is None


# --- pods waiting for an upload -------------------------------------------------------------------------------------


def waiting(state: str = "waiting", **failure: object) -> bytes:
    said = {"code": "TargetTooSmall", "message": "it has 2 GiB", "retry": "never", "exit_status": 6} | failure
    upload = {"state": state, "failure": said if failure or state == "waiting" else None}
    return json.dumps({**json.loads(answer()), "upload": upload}).encode()


def test_why_an_upload_was_not_taken_is_read() -> None:
    report = parse_report(waiting())
    assert report.upload is not None and report.upload.failure is not None
    assert (report.upload.state, report.upload.failure.code) == ("waiting", "TargetTooSmall")


def test_what_an_image_had_a_hand_in_is_a_word_and_a_sentence() -> None:
    report = parse_report(waiting(code="Evil Code\n", message="a\x1b[31mb" + "x" * 5000))
    assert report.upload is not None and report.upload.failure is not None
    assert report.upload.failure.code == "EvilCode"
    assert report.upload.failure.message.startswith("a?[31mb")
    assert len(report.upload.failure.message) == 1024
