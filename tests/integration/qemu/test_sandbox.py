"""The sandbox, with programs that try to escape it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cdi.api.errors import Interrupted, QemuFailed, QemuMissing, ResourceLimit
from cdi.transfer.qemu import sandbox

LIMITS = sandbox.Limits(memory=1 << 30, cpu_seconds=20)
ACTIVE = sandbox.probe_protections()

needs_landlock = pytest.mark.skipif("landlock" not in ACTIVE, reason="the kernel has no Landlock")


def run(program, *arguments, tmp_path, read=(), write=(), limits=LIMITS, **more):
    access = sandbox.Access(read=read, write=write)
    return sandbox.run(
        sandbox.Program(name=program, arguments=arguments, limits=limits, access=access, workdir=str(tmp_path)), **more
    )


def raw(path, size=1 << 20):
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


def test_what_stands_here_is_told():
    assert "no new privileges" in ACTIVE
    assert "resource limits" in ACTIVE


def test_a_program_reads_what_it_was_given(tmp_path):
    image = raw(tmp_path / "a.raw")
    status, output = run("qemu-img", "info", "-f", "raw", image, tmp_path=tmp_path, read=(image,))
    assert status == 0
    assert b"1 MiB" in output


@needs_landlock
def test_a_program_cannot_open_another_file(tmp_path):
    given, other = raw(tmp_path / "a.raw"), raw(tmp_path / "b.raw")
    with pytest.raises(QemuFailed, match="Permission denied"):
        run("qemu-img", "info", "-f", "raw", other, tmp_path=tmp_path, read=(given,))


@needs_landlock
def test_a_symbolic_link_is_no_way_out(tmp_path):
    given, secret = tmp_path / "dir", raw(tmp_path / "b.raw")
    given.mkdir()
    (given / "link").symlink_to(secret)
    with pytest.raises(QemuFailed, match="Permission denied"):
        run("qemu-img", "info", "-f", "raw", str(given / "link"), tmp_path=tmp_path, read=(str(given),))


@needs_landlock
def test_what_may_be_read_cannot_be_written(tmp_path):
    image = raw(tmp_path / "a.raw")
    with pytest.raises(QemuFailed):
        run("qemu-img", "resize", "-f", "raw", image, "2M", tmp_path=tmp_path, read=(image,))
    run("qemu-img", "resize", "-f", "raw", image, "2M", tmp_path=tmp_path, write=(image,))
    assert os.path.getsize(image) == 2 << 20


@needs_landlock
def test_no_other_program_can_be_started_from_it(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho reached\n")
    script.chmod(0o755)
    with pytest.raises(QemuFailed):
        run("env", str(script), tmp_path=tmp_path, read=(str(script),))


@pytest.mark.skipif("network namespace" not in ACTIVE, reason="network namespaces are not permitted here")
def test_it_has_no_network(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"nbd://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(QemuFailed, match="unreachable|Permission denied"):
            run("qemu-img", "info", "-f", "raw", url, tmp_path=tmp_path)


@pytest.mark.skipif("capabilities" not in ACTIVE or os.geteuid() != 0, reason="only root has any to lose")
def test_of_roots_capabilities_one_is_left(tmp_path):
    _, output = run("grep", "Cap", "/proc/self/status", tmp_path=tmp_path, read=("/proc",))
    masks = {line.split(":")[0]: int(line.split(":")[1], 16) for line in output.decode().splitlines()}
    assert masks["CapEff"] == masks["CapPrm"] == masks["CapBnd"] == 1 << 1
    assert masks["CapInh"] == masks["CapAmb"] == 0


def test_the_environment_does_not_reach_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    _, output = run("env", tmp_path=tmp_path)
    assert b"hunter2" not in output


def test_memory_is_limited(tmp_path):
    image = raw(tmp_path / "a.raw")
    little = sandbox.Limits(memory=20 << 20, cpu_seconds=20)
    with pytest.raises(ResourceLimit, match="memory"):
        run("qemu-img", "info", "-f", "raw", image, tmp_path=tmp_path, read=(image,), limits=little)


def test_processor_time_is_limited(tmp_path):
    with pytest.raises(ResourceLimit, match="CPU time"):
        run("yes", tmp_path=tmp_path, limits=sandbox.Limits(memory=1 << 30, cpu_seconds=1))


def test_the_size_of_files_is_limited(tmp_path):
    image = raw(tmp_path / "a.raw", 4096)
    limits = sandbox.Limits(memory=1 << 30, cpu_seconds=20, file_size=8192)
    with pytest.raises(QemuFailed, match="too large"):
        run("qemu-img", "resize", "-f", "raw", image, "1M", tmp_path=tmp_path, write=(image,), limits=limits)
    assert os.path.getsize(image) == 4096


def test_a_flood_on_standard_output_is_bounded(tmp_path):
    with pytest.raises(ResourceLimit, match="exceeds 1000 bytes"):
        run("head", "-c", "5000000", "/dev/zero", tmp_path=tmp_path, read=("/dev/zero",), keep=1000)


def test_waiting_ends_with_the_time_or_when_told(tmp_path):
    with pytest.raises(ResourceLimit, match="0.2 seconds"):
        run("sleep", "60", tmp_path=tmp_path, timeout=0.2)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Interrupted):
        run("sleep", "60", tmp_path=tmp_path, cancelled=cancelled)


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(QemuMissing, match="qemu-none"):
        run("qemu-none", tmp_path=tmp_path)


def test_it_dies_with_the_process_that_started_it(tmp_path):
    script = (
        "import sys\n"
        "from cdi.transfer.qemu import sandbox\n"
        "c = sandbox.start(sandbox.Program(name='sleep', arguments=['300'], access=sandbox.Access(), workdir='/',\n"
        "                  limits=sandbox.Limits(memory=1 << 30, cpu_seconds=20)))\n"
        "c.protections()\n"
        "print(c.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(500):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.02)
    pytest.fail("it outlived its parent")
