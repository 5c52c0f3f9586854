"""Tests of the project's scripts: their errors when called wrongly, and the packages that setup asks for."""

import importlib.machinery
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cdi.api.model import unknown_fields
from cdi.api.validation import parse_manifest
from tests.doc_blocks import blocks, steps, unmatched

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SHELL = ["setup", "env.sh", "progress.sh", "as-root", "run", "test", "quickstart", "bench", "cluster"]


def call(*command, **environment):
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | environment, timeout=500
    )


@pytest.mark.parametrize(
    "path", [*(SCRIPTS / name for name in SHELL), ROOT / ".ci" / "run"], ids=lambda path: path.name
)
def test_shell_scripts_parse(path):
    done = call("bash", "-n", path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["setup", "test", "quickstart", "bench", "guest-image", "image", "cluster"])
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


def tool(directory, name, text):
    path = directory / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bare_machine(tmp_path):
    """Return the environment of a user other than root, with the shell's own tools and no QEMU on the PATH."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "sed", "cat", "cut", "sort", "sha256sum", "dirname", "uname", "mkdir", "apt-get"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    tool(tools, "python3", f'exec {os.path.realpath("/proc/self/exe")} "$@"')
    tool(tools, "id", "echo 1000")
    return {"PATH": str(tools), "CDI_CACHE": str(tmp_path / "cache"), "CDI_PYTHON": ""}


@pytest.mark.parametrize(
    ("sudo", "case"),
    [
        (None, "there is no sudo here; as root, run: "),
        ("exit 1", "sudo wants a password, which needs a terminal; run: sudo "),
    ],
    ids=["without sudo", "with a password"],
)
def test_where_root_cannot_be_had_one_line_has_the_command_to_run(bare_machine, tmp_path, sudo, case):
    if sudo is not None:
        tool(tmp_path / "bin", "sudo", sudo)
    # setsid takes away the controlling terminal.
    done = call("/usr/bin/setsid", "--wait", "/bin/bash", SCRIPTS / "setup", "runtime", **bare_machine)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"{case}{SCRIPTS}/setup --packages runtime")
    # seabios's file may be installed without QEMU.
    packages = line[line.index("(") + 1 : line.index(")")].split()
    assert {"qemu-utils", "qemu-system-x86", "mmdebstrap"} <= set(packages)
    assert "skopeo" not in packages  # a package for the tests only
    assert not (tmp_path / "cache").exists()


def test_sudo_is_given_the_settings_and_the_command(bare_machine, tmp_path):
    tool(tmp_path / "bin", "sudo", f'[ "$1" != -n ] || exit 0; printf "%s\\n" "$@" >{tmp_path}/called')
    done = call(
        "/bin/bash", SCRIPTS / "as-root", "try", "a command", "an argument", **bare_machine, https_proxy="http://x"
    )
    assert done.returncode == 0
    assert done.stderr == r"needs root to try; running through sudo: a\ command an\ argument" + "\n"
    kept, *command = (tmp_path / "called").read_text().splitlines()
    assert command == ["--", "a command", "an argument"]
    assert {"CDI_CACHE", "https_proxy"} <= set(kept.removeprefix("--preserve-env=").split(","))
    assert "HOME" not in kept.split(",")


def test_the_cluster_stage_runs_through_sudo_with_the_same_cache_and_python(tmp_path):
    (tmp_path / "bin").mkdir()
    tool(tmp_path / "bin", "id", "echo 1000")
    tool(
        tmp_path / "bin",
        "sudo",
        f'[ "$1" != -n ] || exit 0; printenv CDI_PYTHON; printf "%s\\n" "$@" >{tmp_path}/called',
    )
    environment = {"CDI_PYTHON": sys._base_executable, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = call(SCRIPTS / "test", "cluster", "-k", "nothing", **environment, CDI_TEST_KUBECONFIG="")
    assert done.returncode == 0, done.stderr
    assert sys._base_executable in done.stdout.splitlines()
    kept, *command = (tmp_path / "called").read_text().splitlines()
    assert command == ["--", str(SCRIPTS / "test"), "cluster", "-k", "nothing"]
    assert {"CDI_CACHE", "CDI_PYTHON", "CDI_TEST_TALLY"} <= set(kept.removeprefix("--preserve-env=").split(","))


def sourced(name, commands, *options, **environment):
    """Return the output of bash commands after sourcing one of the scripts' files."""
    text = f"set -euo pipefail; . {SCRIPTS}/{name}; {commands}"
    done = call("/usr/bin/env", *options, "bash", "-c", text, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_home_the_cache_is_in_the_home_of_the_user_database():
    home = pwd.getpwuid(os.getuid()).pw_dir
    unset = ["--unset=HOME", "--unset=CDI_CACHE", "--unset=XDG_CACHE_HOME"]
    assert sourced("env.sh", 'echo "$CDI_CACHE"', *unset) == [f"{home}/.cache/cdi"]
    assert sourced("env.sh", "printenv HOME", *unset) == [home]


def test_a_python_whose_path_has_a_space_is_found(tmp_path):
    directory = tmp_path / "a place"
    directory.mkdir()
    tool(directory, "python", f'exec {sys._base_executable} "$@"')
    assert sourced("env.sh", 'echo "$CDI_PYTHON"', CDI_PYTHON=str(directory / "python")) == [sys._base_executable]
    assert sourced("env.sh", 'echo "$CDI_CACHE"', CDI_CACHE="a cache") == [f"{os.getcwd()}/a cache"]


def test_pythons_are_offered_oldest_first_once_a_version(tmp_path):
    for minor in (9, 12, 13, 11, 13):
        directory = tmp_path / f"versions/3.{minor}.{len(list(tmp_path.glob('versions/*')))}/bin"
        directory.mkdir(parents=True)
        version = f'import sys; sys.version_info = type("V", (tuple,), {{"minor": {minor}}})((3, {minor})); '
        tool(directory, "python3", f"exec {sys._base_executable} -c '{version}'\"$2\"")
    found = sourced("env.sh", "offered_pythons", PYENV_ROOT=str(tmp_path), HOME=str(tmp_path))
    minors = [int(line.split()[0]) for line in found]
    assert minors == sorted(set(minors))
    assert {11, 12, 13} <= set(minors)
    assert 9 not in minors


def test_what_takes_long_says_for_how_long(tmp_path):
    # The command ends when it sees the line.
    waiting = f'until grep -q "== building: 1 s" {tmp_path}/output; do sleep 0.1; done'
    lines = f"progress_interval=1; with_progress building bash -c '{waiting}' >{tmp_path}/output"
    sourced("progress.sh", lines)
    assert (tmp_path / "output").read_text().splitlines()[0] == "== building: 1 s"


def test_the_status_is_that_of_the_command():
    assert sourced("progress.sh", "with_progress x bash -c 'exit 3' || echo $?") == ["3"]
    assert sourced("progress.sh", "with_progress x true; jobs") == []


@pytest.mark.timeout(600)
def test_a_check_that_passes_prints_nothing():
    talkative = "talkative() { seq 150; return $1; }; unless_it_fails talkative"
    assert sourced("progress.sh", f"{talkative} 0") == []
    assert sourced("progress.sh", f"{talkative} 1 || echo failed")[-2:] == ["150", "failed"]


def test_continuous_integration_runs_the_readmes_command_and_nothing_before_it(tmp_path):
    for name in (".ci", "scripts"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    calls = tmp_path / "calls"
    for script in SHELL:
        tool(tmp_path / "scripts", script, f'echo {script} "$@" >>{calls}')
    assert call(tmp_path / ".ci/run").returncode == 0
    assert calls.read_text() == "test all\n"


def test_a_test_that_fails_once_is_run_again_and_named_in_the_last_line(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # paths in the output are relative to it
    (tmp_path / "test_flaky.py").write_text(
        "from pathlib import Path\n"
        "RAN = Path(__file__).with_name('ran')\n"
        "def test_flaky():\n"
        "    ran, _ = RAN.exists(), RAN.touch()\n"
        "    assert ran\n"
        "def test_steady(): pass\n"
    )
    arguments = ["unit", "-p", "tests.tally", str(tmp_path / "test_flaky.py")]
    environment = {"PYTHONPATH": str(ROOT), "CDI_TEST_TALLY": "", "CDI_PYTHON": sys._base_executable}
    done = call(SCRIPTS / "test", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("passed only when run again: test_flaky.py::test_flaky")


# --- guest image ----------------------------------------------------------------------------------------------------


@pytest.fixture
def guest_image(tmp_path, monkeypatch):
    """Return scripts/guest-image as a module, run by a user other than root, with a PATH for fake programs."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("guest_image", str(SCRIPTS / "guest-image"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("guest_image", loader))
    loader.exec_module(module)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return module


def test_a_user_builds_the_guest_in_a_namespace(guest_image, tmp_path):
    tool(tmp_path / "bin", "unshare", "exit 0")
    prefix, how = guest_image.root_command()
    assert prefix[0] == "unshare" and "--map-auto" in prefix
    assert how == "built in a user namespace, without root"


def test_where_there_are_no_namespaces_the_guest_is_built_through_sudo(guest_image, tmp_path):
    tool(tmp_path / "bin", "unshare", "exit 1")
    tool(tmp_path / "bin", "sudo", "exit 0")
    assert guest_image.root_command() == (
        [str(SCRIPTS / "as-root"), "build the guest's files"],
        "built by root, through sudo",
    )


def test_without_namespaces_and_sudo_it_is_said_what_an_administrator_can_do(guest_image, tmp_path):
    tool(tmp_path / "bin", "unshare", "echo 'unshare: failed: Operation not permitted' >&2; exit 1")
    with pytest.raises(SystemExit) as ended:
        guest_image.root_command()
    (line,) = str(ended.value).splitlines()
    assert "(unshare: failed: Operation not permitted)" in line
    assert "apt-get install uidmap" in line and "usermod --add-subuids" in line


# Writes a login prompt to the first serial port and halts, which is all that the boot check needs.
BOOT_SECTOR = bytes.fromhex("31c08ed8fcbaf803be267cac84c0741288c383c205ec83ea05a82074f588d8eeebe9f4ebfd")


@pytest.fixture
def spaced_cache(tmp_path):
    """Return a cache whose path has a space, with this environment and a small image that boots quickly."""
    cache = tmp_path / "a cache"
    (cache / "guest").mkdir(parents=True)
    environment = Path(sys.prefix)
    (cache / environment.name).symlink_to(environment)
    head = BOOT_SECTOR.ljust(0x26, b"\x90") + b"\r\nguest login: \0"
    (tmp_path / "guest.raw").write_bytes(head.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    command = [sys.executable, "-B", "-c", "import runpy; print(runpy.run_path('guest-image')['cache_key']())"]
    key = subprocess.check_output(
        command, cwd=SCRIPTS, env=os.environ | {"PYTHONPATH": str(SCRIPTS)}, text=True
    ).strip()
    guest = cache / "guest" / f"guest-{key}.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", tmp_path / "guest.raw", guest], check=True)
    return {"CDI_CACHE": str(cache), "CDI_PYTHON": sys._base_executable, "CDI_HOME": str(tmp_path / "a home")}


@pytest.mark.timeout(600)
def test_the_quickstart_works_where_paths_have_spaces(spaced_cache):
    done = call("bash", "-c", '"$0" 2>&1', SCRIPTS / "quickstart", **spaced_cache)
    assert done.returncode == 0, done.stdout
    assert "golden: booted" in done.stdout
    # The image that is imported here is smaller.
    printed = tuple(re.sub(r"\d+ MiB fetched", "… fetched", line) for line in readme_output("scripts/quickstart"))
    assert unmatched(printed, done.stdout) is None, done.stdout
    assert list(Path(spaced_cache["CDI_CACHE"]).glob("quickstart-*")) == []


def readme_output(command):
    """Return the output that the README shows below a command."""
    (found,) = (
        step.output
        for block in blocks(ROOT / "README.md")
        if block.language == "console"
        for step in steps(block)
        if step.command.split()[:1] == [command]
    )
    return found


def test_the_quickstart_ends_when_nginx_does(spaced_cache, tmp_path):
    (tmp_path / "bin").mkdir()
    tool(tmp_path / "bin", "nginx", "echo 'nginx: no luck' >&2; exit 1")
    done = call(SCRIPTS / "quickstart", **spaced_cache, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "quickstart: nginx does not serve" in done.stderr.splitlines()[-1]
    assert "nginx: no luck" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def documents():
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        if path.name not in ("images.yaml", "batch-job.yaml"):  # these are not Kubernetes objects
            for number, document in enumerate(yaml.safe_load_all(path.read_text())):
                yield pytest.param(document, id=f"{path.name}-{number}")


@pytest.mark.parametrize("document", list(documents()))
def test_an_example_is_a_valid_manifest(document):
    obj = parse_manifest(document)
    assert not list(unknown_fields(obj))
