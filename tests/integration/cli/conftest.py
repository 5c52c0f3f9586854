"""``cdi`` as a process of its own, with a CDI_HOME of its own and real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.local_backend import end_embedded

TIMEOUT = 110


@dataclass
class Cdi:
    """A function that runs commands; `home` is CDI_HOME, `cwd` the working directory."""

    home: Path
    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments) -> list[str]:
        return [sys.executable, "-m", "cdi.cli.main", *map(str, arguments)]

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
        return {**kept, "CDI_HOME": str(self.home), "COLUMNS": "200", **self.environment}

    def start(self, *arguments, **options) -> subprocess.Popen:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        # A shell's background process ignores Ctrl-C, and its children inherit that.
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        return subprocess.Popen(self.command(*arguments), cwd=self.cwd, env=self.variables, text=True, **options)

    def __call__(self, *arguments, status=0, **options) -> subprocess.CompletedProcess:
        """Run a command that exits with `status`, and never with a traceback."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.cwd,
            env=self.variables,
            capture_output=True,
            text=options.pop("text", True),
            timeout=TIMEOUT,
            check=False,
            **options,
        )
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == status, said
        assert "Traceback" not in said
        return done

    def disk(self, name: str, namespace: str = "default") -> Path:
        return self.home / "volumes" / namespace / name / "disk.img"


@pytest.fixture
def cdi(tmp_path):
    made = Cdi(tmp_path / "home", tmp_path)
    yield made
    end_embedded(made.home)
