"""Diagrams of the documentation as SVG, written by scripts/generate.

Colours follow the reader's colour scheme, and each diagram has a background of its own, so that it is readable on any
page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

NOTE = "<!-- Made by scripts/generate (scripts/diagrams.py); do not edit. -->"
STYLE = """\
  svg { --paper: #ffffff; --ink: #1f2933; --quiet: #52606d; --line: #7b8794; }
  svg { --control: #e6f0fb; --data: #e9f6ec; --box: #ffffff; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #1b1f24; --ink: #e4e7eb; --quiet: #9aa5b1; --line: #7b8794; }
    svg { --control: #1f2e40; --data: #1f3527; --box: #272d34; }
  }
  .paper { fill: var(--paper); }
  .control { fill: var(--control); }
  .data { fill: var(--data); }
  .box { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
  .arrow { stroke: var(--line); stroke-width: 1.6; fill: none; marker-end: url(#head); }
  .head { fill: var(--line); }
  text { font-family: system-ui, sans-serif; font-size: 14px; fill: var(--ink); text-anchor: middle; }
  .title { font-size: 16px; font-weight: 600; text-anchor: start; }
  .name { font-weight: 600; }
  .small { font-size: 12px; fill: var(--quiet); }
  .start { text-anchor: start; }
  .end { text-anchor: end; }"""

ARROW_HEAD = (
    '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path class="head" d="M0 0 L10 5 L0 10 z"/></marker></defs>'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Rectangle with a name and lines of explanation below it."""

    x: int
    y: int
    width: int
    height: int
    name: str
    lines: tuple[str, ...] = ()

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    def svg(self) -> str:
        first = self.y + self.height // 2 + 5 - 9 * len(self.lines)
        parts = [
            f'<rect class="box" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6"/>',
            text(self.middle, first, self.name, "name"),
        ]
        parts += [text(self.middle, first + 18 * (n + 1), line, "small") for n, line in enumerate(self.lines)]
        return "\n".join(parts)


def text(x: int, y: int, content: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{named}>{escape(content)}</text>'


def arrow(*points: tuple[int, int]) -> str:
    return f'<path class="arrow" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>'


def band(x: int, y: int, width: int, height: int, kind: str, title: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>\n' + text(
        x + 16, y + 28, title, "title"
    )


def drawing(width: int, height: int, title: str, description: str, parts: Iterable[str]) -> str:
    """Return a complete SVG document; title and description are for readers who cannot see it."""
    return "\n".join(
        [
            NOTE,
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t d">',
            f'<title id="t">{escape(title)}</title>',
            f'<desc id="d">{escape(description)}</desc>',
            f"<style>\n{STYLE}\n</style>",
            ARROW_HEAD,
            f'<rect class="paper" width="{width}" height="{height}" rx="12"/>',
            *parts,
            "</svg>\n",
        ]
    )


def architecture() -> str:
    """Draw control plane and data plane, and the Job and Outcome between them."""
    user = Box(x=40, y=80, width=150, height=92, name="Manifests", lines=("kubectl, cdi,", "web page, virtctl"))
    store = Box(x=250, y=80, width=180, height=92, name="Objects", lines=("API server, or", "a directory"))
    pure = Box(x=490, y=80, width=190, height=92, name="Reconcilers", lines=("pure: observed", "facts → plan"))
    applier = Box(x=740, y=80, width=180, height=92, name="Plan applier", lines=("applies the plan,", "starts workers"))
    source = Box(x=40, y=350, width=170, height=92, name="Source", lines=("HTTP, S3, GCS, registry,", "file, upload"))
    codec = Box(x=270, y=350, width=150, height=92, name="Codec", lines=("gz, xz, zst, tar", "bounded output"))
    image = Box(x=480, y=350, width=190, height=92, name="Image", lines=("a map for each format;", "the rest by QEMU"))
    target = Box(x=730, y=350, width=190, height=92, name="Target", lines=("disk file, block device,", "directory"))
    verify = Box(x=40, y=466, width=630, height=44, name="Verify: length, digest, signature of every byte")
    journal = Box(x=730, y=466, width=190, height=44, name="Journal: watermark")
    boxes = (user, store, pure, applier, source, codec, image, target, verify, journal)
    y, below = 126, 396
    parts = [
        band(20, 20, 920, 190, "control", "Control plane: decides, never touches image bytes"),
        band(20, 300, 920, 230, "data", "Data plane: moves bytes, never talks to Kubernetes"),
        *(box.svg() for box in boxes),
        *(
            arrow((left.x + left.width, level), (right.x, level))
            for level, pairs in (
                (y, ((user, store), (store, pure), (pure, applier))),
                (below, ((source, codec), (codec, image), (image, target))),
            )
            for left, right in pairs
        ),
        # The plan applier writes the outcome back.
        arrow((applier.middle, 172), (applier.middle, 194), (store.middle, 194), (store.middle, 173)),
        arrow((860, 172), (860, 299)),
        text(850, 250, "one Job (JSON) per attempt", "end"),
        arrow((340, 300), (340, 211)),
        text(352, 250, "progress, then one Outcome", "start"),
        text(585, 190, "objects and status", "small"),
    ]
    return drawing(
        960, 550, "Control plane and data plane of cdi",
        "Manifests become objects; pure reconcilers turn observed facts into a plan; the plan applier carries it out "
        "and starts workers with a Job. In a worker, bytes go from source through codec and image to the target and "
        "are verified. Progress and one Outcome go back.",
        parts,
    )  # fmt: skip


def drawings(root: Path) -> dict[Path, str]:
    """Return every diagram by its path."""
    return {root / "docs" / "explanation" / "architecture.svg": architecture()}
