"""A fixture that runs the command line in this process and captures output, errors and exit status."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cdi.cli.main import run


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def cdi(tmp_path, monkeypatch, capsys):
    """Run ``cdi`` with its own empty CDI_HOME and no supervisor in the background."""
    monkeypatch.setenv("CDI_HOME", str(tmp_path / "home"))
    for module in ("cdi.local.backend", "cdi.local.uploads"):
        monkeypatch.setattr(f"{module}.ensure_supervisor", lambda home: None)

    def call(*arguments):
        capsys.readouterr()
        status = run(arguments)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call
