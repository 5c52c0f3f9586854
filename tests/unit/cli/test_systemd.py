"""Tests that systemd accepts the example units, and that they run a command that exists."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from cdi.cli.golden_poll import run

UNITS = sorted((Path(__file__).parents[3] / "examples" / "systemd").glob("cdi-golden.*"))


def _verify(*units: Path) -> tuple[int, str]:
    # A minimal machine has no manual pages to look the units' documentation up in.
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_systemd_accepts_the_units(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    # Without /run/systemd and a control group of its own, it rejects every unit of an ordinary user.
    valid = tmp_path / "valid.service"
    valid.write_text("[Service]\nType=oneshot\nExecStart=/usr/bin/env true\n")
    if _verify(valid) != (0, ""):
        pytest.skip("needs systemd-analyze")
    assert _verify(*UNITS) == (0, "")


def test_the_service_runs_what_is_due_once():
    service = configparser.ConfigParser(strict=False, interpolation=None)
    service.optionxform = str
    service.read(next(path for path in UNITS if path.suffix == ".service"))
    assert service["Service"]["ExecStart"] == "/usr/bin/env cdi golden run --once"
    assert any("--once" in option.opts for option in run.params)
