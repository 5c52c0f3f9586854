from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from cdi.api.errors import InternalError, SourceNotFound
from cdi.cli import main
from cdi.cli.main import SECTIONS, cli

NAMES = [name for section in SECTIONS.values() for name in section]
DEFERRED = {"aiohttp", "asyncio", "boto3", "botocore", "cryptography", "pydantic", "qemu", "tqdm", "yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_there_under_the_name_that_the_list_gives_it(name):
    command = cli.get_command(None, name)
    assert command is not None
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(cdi, name):
    done = cdi(name, "--help")
    assert done.status == 0
    assert f"Usage: cdi {name}" in done.out
    assert "--debug" in done.out


def test_without_a_command_the_help_is_printed(cdi):
    done = cdi()
    assert (done.status, done.err) == (0, "")
    assert done.out == cdi("--help").out
    assert done.out.startswith("Usage: cdi [OPTIONS] COMMAND")


def test_the_list_of_commands_imports_none():
    code = f"""
import sys
from cdi.cli.main import run
run(["--help"])
print(sorted({DEFERRED!r} & set(sys.modules)), [m for m in sys.modules if m.startswith("cdi.cli.")])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1].startswith("[] ")
    assert "cdi.cli.apply" not in said.splitlines()[-1]


def test_looking_at_objects_needs_no_models(tmp_path):
    code = f"""
import sys
from cdi.cli.main import run
run(["--home", {str(tmp_path)!r}, "get", "dv"])
print(sorted({DEFERRED!r} & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["get", "--nonsense"], ["wait"], ["limit", "x", "--connections", "65"]]
)
def test_a_wrong_command_line_is_one_line_and_exit_2(cdi, arguments):
    done = cdi(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error[UsageError]: ")
    assert "Try: cdi" in done.err


def broken(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            SourceNotFound("nothing is there", where="http://h/x"),
            3,
            "error[SourceNotFound]: nothing is there (http://h/x).",
        ),
        (RuntimeError("a\x1b[31mb"), 7, "error[InternalError]: RuntimeError: a\\x1b[31mb. Try: run the command"),
        (KeyboardInterrupt(), 130, "error[Interrupted]: interrupted."),
    ],
)
def test_every_failure_is_one_line(cdi, monkeypatch, error, status, line):
    monkeypatch.setattr(importlib.import_module("cdi.local.home").Home, "find", broken(error))
    done = cdi("get", "dv")
    assert done.status == status
    assert done.err.strip().splitlines()[-1].startswith(line)
    assert "Traceback" not in done.err
    assert "\x1b" not in done.err


def test_a_traceback_is_shown_on_request(cdi, monkeypatch):
    monkeypatch.setattr(importlib.import_module("cdi.local.home").Home, "find", broken(RuntimeError("oh")))
    done = cdi("--debug", "get", "dv")
    assert "Traceback" in done.err
    assert InternalError.__name__ in done.err.splitlines()[-1]


def test_common_options_stand_before_or_after_the_command(cdi, tmp_path):
    manifest = tmp_path / "c.yaml"
    manifest.write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}")
    apply = ("apply", "-f", str(manifest))
    for arguments in (("--home", str(tmp_path / "a"), *apply), (*apply, "--home", str(tmp_path / "b"))):
        assert cdi(*arguments).status == 0
    assert (tmp_path / "a" / "objects").is_dir()
    assert (tmp_path / "b" / "objects").is_dir()


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m cdi.cli.main --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_the_entry_point_leaves_with_the_status(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cdi", "nonsense"])
    monkeypatch.setattr(main.streams, "prepare", lambda: None)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2
