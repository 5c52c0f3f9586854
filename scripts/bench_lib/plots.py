"""The benchmarks' plots, as SVG out of numbers; no drawing library is needed for bars.

The pages' numbers are kept beside the pages as JSON, so that the plots can be made again without measuring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bench_lib.results import CaseResult

NOTE = "<!-- Made by scripts/bench from {source}; do not edit. -->"
STYLE = """\
  svg { --paper: #ffffff; --ink: #1f2933; --quiet: #52606d; --grid: #d9dee4; --ours: #2f6fb3; --other: #b8c1cb; }
  svg { --missed: #c4622d; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #1b1f24; --ink: #e4e7eb; --quiet: #9aa5b1; --grid: #39414a; --ours: #6aa9e9; --other: #5d6873; }
    svg { --missed: #e58f5f; }
  }
  .paper { fill: var(--paper); }
  .ours { fill: var(--ours); }
  .other { fill: var(--other); }
  .missed { fill: var(--missed); }
  .grid { stroke: var(--grid); stroke-width: 1; }
  .goal { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
  .range { stroke: var(--ink); stroke-width: 1.2; }
  text { font-family: system-ui, sans-serif; font-size: 12px; fill: var(--ink); }
  .title { font-size: 16px; font-weight: 600; }
  .group { font-weight: 600; }
  .quiet { fill: var(--quiet); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
  .end { text-anchor: end; }
  .middle { text-anchor: middle; }"""
WIDTH, LEFT, RIGHT, TOP, ROW, GAP = 860, 170, 90, 64, 20, 26
IMPORTS = ("qcow2c", "qcow2", "raw", "raw-gz", "raw-zst", "raw-xz", "vmdk", "vmdk-stream", "vdi", "vhd", "vhdx")
"""The cases that import one image over a line that does not limit them."""
MAX_SHARE = 3.0
"""Shares of a goal beyond this are drawn as long as this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    label: str
    value: float
    kind: str
    """A class of the style: ours, other or missed."""
    shown: str
    """The value as text."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    title: str
    bars: tuple[Bar, ...]


def numbers(measured: Sequence[CaseResult]) -> dict[str, Any]:
    """Return what the plots need: medians by case and contender, in seconds and bytes."""
    return {
        result.name: {
            "title": result.case.title,
            "contenders": {
                label: {
                    "wall": result.median(label, "wall"),
                    "wall_low": min(run.wall for run in runs),
                    "wall_high": max(run.wall for run in runs),
                    "cpu": result.median(label, "cpu"),
                    "memory": result.median(label, "memory"),
                    "written": result.median(label, "written"),
                }
                for label, runs in result.runs.items()
                if runs
            },
        }
        for result in measured
    }


def plots(cases: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots of `numbers` by file name; empty where no import was measured."""
    known = [cases[name] for name in IMPORTS if name in cases]
    if not known:
        return {}
    source = "benchmarks.json"
    return {
        "benchmarks-wall.svg": _chart(
            "Time of an import over HTTP, seconds (least to most)", _groups(known, "wall", 1.0, "s"), source
        ),
        "benchmarks-cpu.svg": _chart("Processor time of an import, seconds", _groups(known, "cpu", 1.0, "s"), source),
        "benchmarks-written.svg": _chart(
            "Bytes written by an import, GB (scratch files included)", _groups(known, "written", 1e9, "GB"), source
        ),
    }


def goals_plot(rows: Sequence[Mapping[str, Any]], source: str) -> str:
    """Return a plot of how much of each goal's limit was used: up to 1 it is reached.

    Args:
        rows: of each goal its `case`, `goal`, `ours` (text) and `share` of the limit.
        source: the file that the rows are from.
    """
    groups: dict[str, list[Bar]] = {}
    for row in rows:
        share = float(row["share"])
        groups.setdefault(row["case"], []).append(
            Bar(
                label=row["goal"],
                value=min(share, MAX_SHARE),
                kind="ours" if share <= 1 else "missed",
                shown=f"{share:.2f}  ({row['ours']})",
            )
        )
    drawn = [Group(title=title, bars=tuple(bars)) for title, bars in groups.items()]
    return _chart("Share of each goal's limit that was used (1 or less: reached)", drawn, source, goal=1.0, left=330)


def _groups(cases: Sequence[Mapping[str, Any]], metric: str, unit: float, name: str) -> list[Group]:
    found = []
    for case in cases:
        bars = []
        for label, values in case["contenders"].items():
            value = values[metric] / unit
            low, high = (values["wall_low"], values["wall_high"]) if metric == "wall" else (None, None)
            kind = "ours" if label in {"ours", "ours, streamed"} else "other"
            bars.append(Bar(label=label, value=value, kind=kind, shown=f"{value:.2f} {name}", low=low, high=high))
        found.append(Group(title=case["title"], bars=tuple(bars)))
    return found


def _chart(title: str, groups: Sequence[Group], source: str, *, goal: float | None = None, left: int = LEFT) -> str:
    """Draw horizontal bars in groups; a line across all of them at `goal`."""
    most = max(bar.high or bar.value for group in groups for bar in group.bars)
    step = _step(most)
    ends = math.ceil(most / step) * step or step
    scale = (WIDTH - left - RIGHT - 60) / ends
    height = TOP + sum(GAP + ROW * len(group.bars) for group in groups) + 34
    parts = [
        NOTE.format(source=source),
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="10"/>',
        _text(20, 30, title, "title"),
    ]
    for mark in range(round(ends / step) + 1):
        x = left + mark * step * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{height - 28}"/>')
        parts.append(_text(x, height - 12, f"{mark * step:g}", "quiet middle"))
    if goal is not None:
        x = left + goal * scale
        parts.append(f'<line class="goal" x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{height - 28}"/>')
    y = TOP
    for group in groups:
        parts.append(_text(20, y + 8, group.title, "group"))
        y += GAP - 8
        for bar in group.bars:
            middle = y + ROW / 2
            parts.append(_text(left - 8, middle + 4, bar.label, "end"))
            parts.append(
                f'<rect class="{bar.kind}" x="{left}" y="{y + 3}" width="{bar.value * scale:.1f}" height="{ROW - 6}"/>'
            )
            if bar.low is not None and bar.high is not None:
                x1, x2 = left + bar.low * scale, left + bar.high * scale
                parts.append(f'<line class="range" x1="{x1:.1f}" y1="{middle}" x2="{x2:.1f}" y2="{middle}"/>')
            parts.append(_text(left + (bar.high or bar.value) * scale + 6, middle + 4, bar.shown, "quiet"))
            y += ROW
        y += 8
    return "\n".join([*parts, "</svg>\n"])


def _step(most: float) -> float:
    """Return a round distance of the grid's lines: four to ten of them."""
    rough = most / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _text(x: float, y: float, content: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>'
