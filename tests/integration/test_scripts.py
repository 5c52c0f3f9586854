"""The project's scripts: what they say when called wrongly, and what setup asks for."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from cdi.api.model import unknown_fields
from cdi.api.validation import parse_manifest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SHELL = ["setup", "env.sh", "run", "test", "quickstart", "bench"]


def call(*command, **environment):
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | environment, timeout=100
    )


@pytest.mark.parametrize(
    "path", [*(SCRIPTS / name for name in SHELL), ROOT / ".ci" / "run"], ids=lambda path: path.name
)
def test_shell_scripts_parse(path):
    done = call("bash", "-n", path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["setup", "test", "quickstart", "bench", "guest-image", "image"])
def test_help_is_printed_without_doing_anything(name, tmp_path):
    done = call(SCRIPTS / name, "--help", CDI_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert f"scripts/{name}" in done.stdout or "guest-image" in done.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("command", [["setup", "everything"], ["test", "nothing"], ["quickstart", "now"], ["run"]])
def test_a_wrong_call_is_refused_with_one_line(command, tmp_path):
    done = call(SCRIPTS / command[0], *command[1:], CDI_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def bare_machine(tmp_path):
    """A PATH with the shell's own tools and no QEMU, as somebody who is not root."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "sed", "cat", "cut", "sort", "sha256sum", "dirname", "uname", "mkdir", "apt-get"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    python = tools / "python3"
    python.write_text(f'#!/bin/bash\nexec {os.path.realpath("/proc/self/exe")} "$@"\n')
    python.chmod(0o755)
    who = tools / "id"
    who.write_text("#!/bin/bash\necho 1000\n")
    who.chmod(0o755)
    return {"PATH": str(tools), "CDI_CACHE": str(tmp_path / "cache"), "CDI_PYTHON": ""}


def test_what_is_missing_is_said_in_one_line_where_it_cannot_be_installed(bare_machine, tmp_path):
    done = call("/bin/bash", SCRIPTS / "setup", "runtime", **bare_machine)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "neither root nor sudo" in line
    # The file that belongs to seabios may be there even so.
    assert {"qemu-utils", "qemu-system-x86", "mmdebstrap"} <= set(line.split())
    assert "skopeo" not in line  # that is for the tests
    assert not (tmp_path / "cache").exists()


def documents():
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        if path.name not in ("images.yaml", "batch-job.yaml"):  # not of our kinds
            for number, document in enumerate(yaml.safe_load_all(path.read_text())):
                yield pytest.param(document, id=f"{path.name}-{number}")


@pytest.mark.parametrize("document", list(documents()))
def test_an_example_is_a_valid_manifest(document):
    obj = parse_manifest(document)
    assert not list(unknown_fields(obj))
