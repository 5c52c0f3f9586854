"""Reports: the lines of a run, the table of goals, the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench_lib.cases import Case, Goal, Metric
from bench_lib.measure import Measurement
from bench_lib.results import CaseResult, Verdict, judge

_NAMES: dict[Metric, str] = {
    "wall": "wall",
    "cpu": "CPU",
    "memory": "peak memory",
    "written": "bytes written",
    "fetched": "bytes fetched",
    "scratch": "scratch",
}


def quantity(metric: Metric, value: float | None) -> str:
    if value is None:
        return "n/a"
    if metric in {"wall", "cpu"}:
        return f"{value:.2f} s"
    if metric == "memory":
        return f"{value / (1 << 20):.0f} MiB"
    return f"{value / 1e6:.1f} MB" if value < 10e6 else f"{value / 1e6:.0f} MB"


def one_run(run: Measurement) -> str:
    return (
        f"wall {run.wall:7.2f} s  CPU {run.cpu:6.2f} s  memory {run.memory / (1 << 20):5.0f} MiB  "
        f"written {run.written / 1e6:7.1f} MB  fetched {run.fetched / 1e6:7.1f} MB"
    )


def goal_text(goal: Goal) -> str:
    whose = "" if goal.label == "ours" else f"{goal.label.removeprefix('ours, ')}: "
    name = _NAMES[goal.metric]
    if not goal.against:
        return whose + (f"no {name}" if goal.limit == 0 else f"{name} ≤ {quantity(goal.metric, goal.limit)}")
    others = goal.against[0] if len(goal.against) == 1 else f"the best of {', '.join(goal.against)}"
    extra = f" + {quantity(goal.metric, goal.extra)}" if goal.extra else ""
    return f"{whose}{name} ≤ {goal.limit:g} x {others}{extra}"


def listing(cases: Iterable[Case]) -> str:
    lines = []
    for case in cases:
        lines.append(f"{case.name:18} {case.title}")
        lines.extend(f"{'':18}   {goal_text(goal)}" for goal in case.goals)
    return "\n".join(lines) + "\n"


def _rows(measured: Sequence[CaseResult]) -> list[tuple[str, str, str, str, str, str]]:
    rows = []
    for result in measured:
        for position, goal in enumerate(result.case.goals):
            verdict = judge(result, goal)
            rows.append(
                (
                    result.case.title if position == 0 else "",
                    goal_text(goal),
                    quantity(goal.metric, verdict.ours),
                    quantity(goal.metric, verdict.other) if goal.against else "",
                    _ratio(verdict),
                    {True: "yes", False: "**no**", None: "not measured"}[verdict.reached],
                )
            )
    return rows


def _ratio(verdict: Verdict) -> str:
    return "" if verdict.ratio is None else f"{verdict.ratio:.2f}"


_HEAD = ("case", "goal", "ours", "other", "ratio", "reached")


def goals_table(measured: Sequence[CaseResult]) -> str:
    """Return the table of goals for a terminal; it is valid Markdown."""
    rows = [_HEAD, *_rows(measured)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def page(measured: Sequence[CaseResult]) -> str:
    """Return the text of docs/reference/benchmarks.md."""
    if not measured:
        return "# Benchmarks\n\nNothing was measured yet: `scripts/bench`.\n"
    latest = max(measured, key=lambda result: result.when)
    verdicts = [judge(result, goal) for result in measured for goal in result.case.goals]
    reached = sum(verdict.reached is True for verdict in verdicts)
    runs = min(len(result.runs["ours"]) for result in measured)
    methods = sorted({run.memory_how for result in measured for run in result.runs["ours"] if run.memory_how})
    dates = sorted({result.when for result in measured})
    measured_on = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    medians = f"medians of {runs} or more runs, the contenders taking turns."
    parts = [
        "# Benchmarks",
        _INTRODUCTION,
        f"**{reached} of {len(verdicts)} goals reached.** Measured {measured_on}, {medians}",
        "\n".join(f"- {name}: {value}" for name, value in latest.machine.items()),
        "## Plots",
        _PLOTS,
        "## Goals",
        goals_table(measured),
        "## How it is measured",
        _METHOD.format(memory="; ".join(methods) or "not measured"),
        "## Every case",
        *(_details(result) for result in measured),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_INTRODUCTION = """\
Written by `scripts/bench`. The ratios matter, not the seconds: the contenders of a case took turns on one machine, and
cases may be from different days.
[Performance](../explanation/performance.md) explains the goals that are missed."""

_PLOTS = """\
![Time of an import](benchmarks-wall.svg)

![Processor time of an import](benchmarks-cpu.svg)

![Bytes written by an import](benchmarks-written.svg)"""

_METHOD = """\
- The images contain this machine's own files below /usr in an ext4 file system: real data with real compressibility.
- nginx serves them with byte ranges, and to *ours, streamed* without (`max_ranges 0`). The slow line and the one with
  latency are described at their cases.
- Every contender ends with the disk on stable storage (`fsync`), as ours does, and the result of each was compared once
  with the disk that the image was made from.
- *old path* is what the existing importer does, as commands: `curl` to a scratch file, `qemu-img convert -t writeback
  -O raw`, `qemu-img resize`.
- *nbdkit* is `nbdkit curl URL --run 'qemu-img convert -W -m 16 …'`; *local convert* is `qemu-img convert -W -m 16
  -t none` of the file on local disk, no download.
- The sha256 check is off unless a case says otherwise, because no other contender computes one.
- Wall: from fork to exit. CPU: of the whole process tree (control group, or the wait status), without the servers.
- An upload is sent with `curl` to an upload server that was started before; CPU is that of `curl` and the relay.
  *aiohttp* is a relay of 40 lines (`scripts/bench_lib/relay.py`), *no relay* sends to the upload server itself.
- Peak memory of the whole process tree: {memory}.
- Bytes written: `write_bytes` of the process tree (pages made dirty and direct writes), deleted scratch files included.
  Bytes fetched: nginx's log."""


def _details(result: CaseResult) -> str:
    lines = [f"### {result.case.title}", ""]
    sizes = ", ".join(f"{name}: {size / 1e6:.0f} MB as served" for name, size in result.sizes.items())
    lines.append(f"{sizes}; measured {result.when}")
    lines += [
        "",
        "| | runs | wall (least … most) | CPU | peak memory | written | fetched |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, runs in result.runs.items():
        if not runs:
            continue
        walls = [run.wall for run in runs]
        cells = [quantity(metric, result.median(label, metric)) for metric in ("cpu", "memory", "written", "fetched")]
        wall = f"{quantity('wall', result.median(label, 'wall'))} ({min(walls):.2f} … {max(walls):.2f})"
        lines.append(f"| {label} | {len(runs)} | {wall} | {' | '.join(cells)} |")
    if result.notes:
        lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines)
