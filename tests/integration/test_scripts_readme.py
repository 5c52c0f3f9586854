"""Tests that run the README's examples in order, in one shell.

``scripts/…`` are stages of their own in scripts/test, so here they only have to exist; test_scripts.py compares the
quickstart's output with the README's. Instead of the guest image that
one of them builds there is a small image that boots, and the port is a free one.
"""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doc_blocks import README, blocks_of, shell, steps
from tests.integration.local_backend import end_embedded

ROOT = Path(__file__).parents[2]
PORT = "8089"

# Writes a login prompt to the first serial port and halts, which is all that the boot check needs.
BOOT_SECTOR = bytes.fromhex("31c08ed8fcbaf803be267cac84c0741288c383c205ec83ea05a82074f588d8eeebe9f4ebfd")


def commands():
    return [
        step.command for block in blocks_of(README["console"]) if block.language == "console" for step in steps(block)
    ]


def guest():
    head = BOOT_SECTOR.ljust(0x26, b"\x90") + b"\r\nguest login: \0"
    return head.ljust(510, b"\0") + b"\x55\xaa" + os.urandom(1 << 20)


def test_there_are_examples():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("scripts/")])
def test_a_script_exists(command):
    assert os.access(ROOT / shlex.split(command, comments=True)[0], os.X_OK)


def test_the_stages_of_all_tests_exist():
    shown = [step for block in blocks_of(README["console"]) if block.file is None for step in steps(block)]
    (step,) = (step for step in shown if step.command.startswith("scripts/test all"))
    stages = (ROOT / "scripts" / "test").read_text()
    for line in step.output:
        if line != "…":
            assert f'stage "{line.removeprefix("== ").partition(":")[0]}"' in stages


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.timeout(600)
def test_the_examples_work(tmp_path, port, request):
    # The shell's home is empty, so its default cache would not have this environment.
    cache = {"CDI_CACHE": str(Path(sys.prefix).parent), "CDI_PYTHON": sys._base_executable}
    readme = shell(request.node.nodeid, tmp_path, CDI_HOME=str(tmp_path / "home"), **cache)
    work = readme.directory
    (work / "guest.raw").write_bytes(guest())
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "guest.raw", "guest.qcow2"], cwd=work, check=True
    )
    readme.replacements = {PORT: str(port), "$(scripts/run": f"$({shlex.quote(str(ROOT))}/scripts/run"}
    readme.skipped = ("scripts/",)
    try:
        readme.run(timeout=500)
        # The README says where the volume of its manifest is.
        golden = tmp_path / "home" / "volumes" / "default" / "golden" / "disk.img"
        with golden.open("rb") as file:
            assert file.read(1 << 20) == (work / "guest.raw").read_bytes()[: 1 << 20]
    finally:
        end_embedded(tmp_path / "home")
