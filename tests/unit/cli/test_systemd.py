"""Tests that systemd accepts the example units, and that they run a command that exists."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from cdi.cli.golden_poll import run

UNITS = sorted((Path(__file__).parents[3] / "examples" / "systemd").glob("cdi-golden.*"))


def test_systemd_accepts_the_units():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    done = subprocess.run(["systemd-analyze", "verify", *UNITS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_runs_what_is_due_once():
    service = configparser.ConfigParser(strict=False, interpolation=None)
    service.optionxform = str
    service.read(next(path for path in UNITS if path.suffix == ".service"))
    assert service["Service"]["ExecStart"] == "/usr/bin/env cdi golden run --once"
    assert any("--once" in option.opts for option in run.params)
