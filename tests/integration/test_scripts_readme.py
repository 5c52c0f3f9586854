"""The README's examples run, in their order, in one shell's worth of state.

A ```yaml block that begins with ``# NAME.yaml`` is written to that file.  In a ```console block every line that begins
with ``$ `` is a command; it has to succeed.  ``scripts/…`` are stages of their own in scripts/test, so here they only have
to exist.  The images named in the README are small ones that boot, served where the README says.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = "http://127.0.0.1:8089/"

# Says a login prompt on the first serial port and halts: as much of a guest as the boot check wants to see.
BOOT_SECTOR = bytes.fromhex("31c08ed8fcbaf803be267cac84c0741288c383c205ec83ea05a82074f588d8eeebe9f4ebfd")


def blocks():
    return re.findall(r"^```(yaml|console)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def commands():
    return [
        line.removeprefix("$ ")
        for kind, text in blocks()
        if kind == "console"
        for line in text.splitlines()
        if line.startswith("$ ")
    ]


def guest():
    head = BOOT_SECTOR.ljust(0x26, b"\x90") + b"\r\nguest login: \0"
    return head.ljust(510, b"\0") + b"\x55\xaa" + os.urandom(1 << 20)


def test_there_are_examples():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("scripts/")])
def test_a_script_exists(command):
    assert os.access(ROOT / shlex.split(command, comments=True)[0], os.X_OK)


@pytest.mark.timeout(600)
def test_the_examples_work(tmp_path, nginx):
    work = tmp_path / "work"
    work.mkdir()
    (work / "guest.raw").write_bytes(guest())
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "guest.raw", "guest.qcow2"], cwd=work, check=True
    )
    nginx.put("guest.qcow2", (work / "guest.qcow2").read_bytes())
    url = nginx.url("guest.qcow2")
    (work / "images.yaml").write_text(
        f"images:\n  - {{name: first, url: {url}, size: 16Mi}}\n  - {{name: second, url: {url}, size: 16Mi}}\n"
    )
    shutil.copytree(ROOT / "examples", work / "examples")
    environment = {
        "CDI_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
    }
    for kind, text in blocks():
        if kind == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", text)
            if name:
                (work / name[1]).write_text(text.replace(f"{SERVER}guest.qcow2", url))
            continue
        for line in text.splitlines():
            if not line.startswith("$ ") or line.startswith("$ scripts/"):
                continue
            command = line.removeprefix("$ ").replace(f"{SERVER}guest.qcow2", url)
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
    # The volume the README's manifest makes stands where the README says.
    golden = tmp_path / "home" / "volumes" / "default" / "golden" / "disk.img"
    with golden.open("rb") as file:
        assert file.read(1 << 20) == (work / "guest.raw").read_bytes()[: 1 << 20]
