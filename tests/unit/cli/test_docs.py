"""Tests that docs/reference/cli.md names exactly the commands, exit statuses and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

from cdi.api import policy
from cdi.api.errors import all_errors
from cdi.cli.main import SECTIONS

TEXT = (Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text()


def rows(heading):
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")]


def test_every_command():
    head = TEXT.split("\n## ")[0]
    named = set(re.findall(r"`cdi ([a-z-]+)", "\n".join(line for line in head.splitlines() if line.startswith("| "))))
    assert named == {name for section in SECTIONS.values() for name in section}


def test_every_exit_status():
    told = {int(row.split("|")[1]) for row in rows("Exit status") if row.split("|")[1].strip().isdigit()}
    # 0 is success, and 1 is a batch with failed images.
    assert told == {error.exit_status for error in all_errors()} | {0, 1}


def test_every_knob():
    told = {name for row in rows("Policy annotations") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == set(policy._PARSERS)
