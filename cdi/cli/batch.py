"""The ``cdi batch`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from cdi.api.errors import Interrupted, WaitTimeout
from cdi.cli import bars
from cdi.cli.options import duration
from cdi.cli.session import Session, subcommand
from cdi.cli.show import document, echo_lines, paint, printable, rate, table
from cdi.cli.show import duration as words_of
from cdi.image.sizes import format_size

if TYPE_CHECKING:
    from cdi.api.job import Failure
    from cdi.batch.report import Report, Result
    from cdi.client.backend import Advance
    from cdi.explain.item import Item
    from cdi.explain.prober import ReferenceReader

HEADERS = ("NAME", "RESULT", "SIZE", "FORMAT", "TIME", "RATE", "DIGEST")
_COLOURS = {"imported": "green", "failed": "red", "refused": "red", "outdated": "yellow", "running": "yellow"}
_SHORT = 12
_SHUTDOWN_TIMEOUT = 60.0
"""Seconds to keep trying an unreachable API server: a batch may run unattended."""


@subcommand("batch")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 1000),
    help="Run at most this many imports concurrently; default: 2 to 4, by the number of processors.",
)
@click.option(
    "--keep-going/--fail-fast",
    "-k",
    default=False,
    help="Continue after a failure, or start no image after the first one (the default).",
)
@click.option(
    "--locked", is_flag=True, help="Import exactly what the lock file pins; reject sources that have changed."
)
@click.option("--update", is_flag=True, help="Replace volumes whose image or batch entry has changed.")
@click.option(
    "--lockfile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Use this lock file; default: cdi.lock beside the batch.",
)
@click.option(
    "--timeout", type=duration, help="Stop after this time, e.g. 2h; running imports continue in the background."
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(
    session: Session,
    *,
    files: tuple[str, ...],
    jobs: int | None,
    keep_going: bool,
    locked: bool,
    update: bool,
    lockfile: Path | None,
    timeout: float | None,
    output: str,
) -> int:
    """Import many images, from lists (images.yaml), DataVolume manifests, directories or globs.

    A lock file pins what was imported; --locked makes a later run import exactly that.  Existing volumes are not
    changed.  Run the same command again to continue a batch that was stopped.

    \b
    Exits  0  every volume exists
           1  images failed; each failure is explained
           2  the batch is invalid; nothing was started
           5  an image differs from what the lock file pins
           8  the timeout expired
         130  interrupted; running imports continue in the background
    """  # noqa: D301  click wants the character itself
    from cdi.batch.load import load_batch
    from cdi.batch.run import Options, default_jobs, run_batch

    session.patience = _SHUTDOWN_TIMEOUT
    batch = load_batch(files, namespace=session.namespace, immediate=session.in_cluster)
    options = Options(
        jobs=jobs or default_jobs(),
        keep_going=keep_going,
        locked=locked,
        update=update,
        lockfile=lockfile,
        timeout=timeout,
    )
    with Display(len(batch.items), min(options.jobs, len(batch.items))) as display:
        report = run_batch(session.backend, batch, options, display, _reference_reader(session))
    if output == "json":
        click.echo(document(report.to_dict(), "json"))
    else:
        echo_lines(table(HEADERS, [_row(result) for result in report.results]))
    for line in _explained(report):
        click.echo(line, err=True)
    return report.exit_status


def _reference_reader(session: Session) -> Callable[[], ReferenceReader] | None:
    if not session.in_cluster:
        return None
    from cdi.explain.live_reader import LiveReader

    return partial(LiveReader, session.remote.calls)


class Display:
    """A bar for each running import and one for the batch; lines where standard error is no terminal."""

    def __init__(self, images: int, rows: int) -> None:
        self._images = images
        self._ended = 0
        self._bars: dict[str, bars.Bar] = {}
        self._rows: dict[str, int] = {}
        self._free = list(range(rows, 0, -1))
        self._total: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._total = tqdm(
                total=images, desc="batch", unit="image", position=0, leave=False, dynamic_ncols=True, file=sys.stderr
            )

    def began(self, item: Item) -> None:
        row = self._free.pop()
        self._rows[item.label] = row
        self._bars[item.label] = bars.bar(item.label, position=row)

    def update(self, item: Item, phase: str, progress: Advance | None, note: str) -> None:
        self._bars[item.label].update(phase, progress, note)

    def ended(self, item: Item, result: Result) -> None:
        if item.label in self._bars:
            self._bars.pop(item.label).close()
            self._free.append(self._rows.pop(item.label))
        self._ended += 1
        line = f"{paint(printable(item.label), _COLOURS.get(result.verdict, 'dim'), err=True)}: {_words(result)}"
        if self._total is None:
            click.echo(f"[{self._ended}/{self._images}] {line}", err=True)
        else:
            self._total.write(line, file=sys.stderr)
            self._total.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for bar in self._bars.values():
            bar.close()
        if self._total is not None:
            self._total.close()


def _words(result: Result) -> str:
    failure = result.failure
    reason = f"error[{failure.code}]" if failure is not None else result.note
    return printable(f"{result.verdict} ({reason})" if reason else result.verdict)


def _row(result: Result) -> tuple[str, ...]:
    algorithm, _, value = (result.digest or "").partition(":")
    return (
        result.label,
        result.verdict,
        "" if result.size is None else format_size(result.size),
        result.format or "",
        "" if result.seconds is None else words_of(result.seconds),
        "" if result.rate is None else rate(result.rate),
        f"{algorithm}:{value[:_SHORT]}" if value else "",
    )


def _explained(report: Report) -> list[str]:
    """Return one line for each failure, and lines about the batch as a whole."""
    lines = [_error(failure, result.label) for result in report.results if (failure := result.failure) is not None]
    lines += [
        f"{paint(printable(result.label), 'yellow', err=True)}: {printable(result.note)}"
        for result in report.results
        if result.note and result.verdict == "outdated"
    ]
    if report.lock_failure is not None:
        lines.append(_error(report.lock_failure))
    elif report.lock_changed:
        lines.append(f"pinned in {report.lockfile}")
    running = [result.label for result in report.results if result.verdict == "running"]
    rest = f"{_names(running)} in the background" if running else "no import is running"
    begun = f"; {report.count('skipped')} not started" if report.count("skipped") else ""
    again = "run the same command again to continue"
    if report.interrupted:
        lines.append(str(Interrupted("interrupted", where=f"{rest}{begun}", remedy=again)))
    elif report.timed_out:
        lines.append(str(WaitTimeout("the batch timed out", where=f"{rest}{begun}", remedy=again)))
    elif begun and not report.count("refused"):
        lines.append(f"{report.count('skipped')} not started; --keep-going starts every image")
    return lines


def _error(failure: Failure, label: str | None = None) -> str:
    head = paint(f"error[{failure.code}]", "red", err=True)
    return (
        f"{printable(label)}: {head}: {printable(failure.message)}"
        if label
        else f"{head}: {printable(failure.message)}"
    )


def _names(labels: list[str]) -> str:
    shown = ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
    return f"{shown} {'continues' if len(labels) == 1 else 'continue'}"
