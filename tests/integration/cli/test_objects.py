"""Tests of the commands on objects, from a manifest to a volume and its deletion."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from dataclasses import dataclass

import pytest

from tests.faults.server import Fault

MIB = 1 << 20
DV = """
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {{name: {name}{more}}}
spec:
  source: {{http: {{url: "{url}"{source}}}}}
  storage: {{resources: {{requests: {{storage: 8Mi}}}}}}
"""


def qcow2(tmp_path, size=4 * MIB, seed=1):
    raw = tmp_path / "guest.raw"
    raw.write_bytes(random.Random(seed).randbytes(size // 2) + bytes(size // 2))
    image = tmp_path / "guest.qcow2"
    subprocess.run(["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    return raw.read_bytes(), image.read_bytes()


@pytest.fixture
def manifest(tmp_path):
    def write(url, name="golden", source="", more=""):
        path = tmp_path / f"{name}.yaml"
        path.write_text(DV.format(name=name, url=url, source=source, more=more))
        return path

    return write


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldImage:
    """An image whose server sends only its beginning until `resume` is set."""

    url: str
    content: bytes
    resume: threading.Event


@pytest.fixture
def held_image(fault_server, tmp_path):
    content, image = qcow2(tmp_path)
    resume = threading.Event()
    url = fault_server.put("/cli.qcow2", image, always=Fault(stall_after=64 << 10, resume=resume))
    return HeldImage(url=url, content=content, resume=resume)


def test_apply_and_wait_make_a_volume(cdi, nginx, manifest, tmp_path):
    content, image = qcow2(tmp_path)
    nginx.put("cli.qcow2", image)
    path = manifest(nginx.url("cli.qcow2"), source=f", checksum: 'sha256:{hashlib.sha256(image).hexdigest()}'")
    assert cdi("apply", "-f", path).stdout == "datavolume/golden created\n"
    waited = cdi("wait", "dv/golden", "--timeout", "90s")
    assert "golden: Succeeded (qcow2, 8 MiB" in waited.stderr
    assert "verified by length, checksum" in waited.stderr
    assert cdi.disk("golden").read_bytes()[: len(content)] == content
    row = cdi("get", "dv", "-o", "wide").stdout.splitlines()[1].split()
    assert row[:4] == ["golden", "Succeeded", "100.0%", "0"]
    told = cdi("describe", "dv/golden").stdout
    assert f"Digest:       sha256:{hashlib.sha256(image).hexdigest()}" in told
    assert f"Volume:       {cdi.disk('golden')}" in told
    assert "ImportSucceeded" in told
    assert cdi("get", "pvc", "-o", "name").stdout == "persistentvolumeclaim/golden\n"
    assert cdi("delete", "-f", path).stdout == "datavolume/golden deleted\n"
    assert not cdi.disk("golden").exists()
    assert "no datavolumes" in cdi("get", "all").stderr


def test_a_failure_is_the_error_and_its_exit_status(cdi, nginx, manifest, tmp_path):
    _, image = qcow2(tmp_path)
    nginx.put("cli.qcow2", image)
    path = manifest(nginx.url("cli.qcow2"), source=f", checksum: 'sha256:{'0' * 64}'")
    done = cdi("apply", "-f", path, "--wait", status=5)
    assert done.stderr.strip().splitlines()[-1].startswith("error[ChecksumMismatch]: ")
    assert not cdi.disk("golden").exists()
    assert "ChecksumMismatch" in cdi("describe", "dv/golden").stdout
    assert cdi("wait", "dv/golden", status=5).stderr.strip().splitlines()[-1].startswith("error[ChecksumMismatch]: ")


def test_waiting_does_not_go_on_for_what_only_a_person_can_end(cdi, nginx, manifest, tmp_path):
    nginx.put("cli.qcow2", b"x")
    path = manifest(nginx.url("cli.qcow2", "private"))
    cdi("apply", "-f", path)
    assert "error[SourceUnauthorized]" in cdi("wait", "dv/golden", status=3).stderr
    assert "error[WaitTimeout]" in cdi("wait", "dv/golden", "--patient", "--timeout", "3s", status=8).stderr


def test_killing_the_front_command_loses_nothing(cdi, held_image, manifest):
    front = cdi.start("apply", "-f", manifest(held_image.url), "--wait", start_new_session=True)
    while "ImportInProgress" not in front.stderr.readline():
        assert front.poll() is None
    os.killpg(front.pid, signal.SIGKILL)
    front.wait()
    front.stderr.close()
    front.stdout.close()
    held_image.resume.set()
    cdi("wait", "dv/golden", "--timeout", "90s")
    assert cdi.disk("golden").read_bytes()[: len(held_image.content)] == held_image.content
    assert cdi("get", "dv", "golden", "--no-headers").stdout.split()[3] == "0"


def test_ctrl_c_ends_the_waiting_and_not_the_work(cdi, held_image, manifest):
    cdi("apply", "-f", manifest(held_image.url))
    front = cdi.start("wait", "dv/golden")
    while "ImportInProgress" not in front.stderr.readline():
        assert front.poll() is None
    front.send_signal(signal.SIGINT)
    _, err = front.communicate(timeout=60)
    assert front.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last.startswith("error[Interrupted]: interrupted.")
    assert "continues in the background; cdi wait dv/golden waits for it" in last
    held_image.resume.set()
    cdi("wait", "golden", "--timeout", "90s")


def test_a_limit_holds_at_once_and_the_log_tells(cdi, nginx, manifest, tmp_path):
    _, image = qcow2(tmp_path)
    nginx.put("cli.qcow2", image)
    cdi(
        "apply",
        "-f",
        manifest(nginx.url("cli.qcow2"), more=", annotations: {cdi.kubevirt.io/policy.bandwidth: '1000'}"),
    )
    with pytest.raises(AssertionError, match="WaitTimeout"):
        cdi("wait", "dv/golden", "--timeout", "4s")
    assert cdi("limit", "dv/golden", "--bandwidth", "0").stdout == "datavolume/golden limited\n"
    cdi("wait", "dv/golden", "--timeout", "60s")
    assert cdi("logs", "dv/golden").stdout.strip()


def test_a_verbose_log_has_every_connection_and_request(cdi, nginx, manifest, tmp_path):
    _, image = qcow2(tmp_path)
    nginx.put("cli.qcow2", image)
    config = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDIConfig", "metadata": {"name": "config"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "spec": {"logVerbosity": 3}}))
    cdi("apply", "-f", str(tmp_path / "config.json"))
    cdi("apply", "-f", manifest(nginx.url("cli.qcow2")), "--wait")
    plain, verbose = (cdi("logs", "dv/golden", *more).stdout.splitlines() for more in ((), ("-v",)))
    assert any("debug: connected to " in line for line in verbose)
    assert any("debug: GET " in line for line in verbose)
    assert [line for line in verbose if " debug: " not in line] == plain


def test_a_watch_shows_what_changes(cdi, nginx, manifest, tmp_path):
    _, image = qcow2(tmp_path)
    nginx.put("cli.qcow2", image)
    cdi("get", "dv")
    watch = cdi.start("get", "dv", "-w")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(watch.stdout))
    reader.start()
    cdi("apply", "-f", manifest(nginx.url("cli.qcow2")), "--wait")
    deadline = time.monotonic() + 60
    while not any("Succeeded" in line for line in lines) and time.monotonic() < deadline:
        time.sleep(0.1)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 130
    reader.join()
    watch.stderr.close()
    watch.stdout.close()
    assert any("Succeeded" in line for line in lines)


def test_a_bar_on_a_terminal(cdi, held_image, manifest):
    cdi("apply", "-f", manifest(held_image.url))
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    front = cdi.start("wait", "dv/golden", stderr=terminal)
    os.close(terminal)
    shown = b""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if select.select([main], [], [], 1)[0]:
            try:
                data = os.read(main, 4096)
            except OSError:
                break
            shown += data
            if b"%|" in shown and b"ImportInProgress" in shown:
                held_image.resume.set()
    os.close(main)
    assert front.wait(30) == 0
    front.stdout.close()
    text = shown.decode()
    assert "golden" in text
    assert "%|" in text
    assert "ImportInProgress" in text
    assert "\x1b[32mgolden\x1b[0m: Succeeded" in text


def test_upload_of_a_file_and_of_a_pipe_then_clones(cdi, tmp_path):
    content, image = qcow2(tmp_path)
    cdi("upload", tmp_path / "guest.qcow2", "filed")
    assert cdi.disk("filed").read_bytes() == content
    done = subprocess.run(
        cdi.command("upload", "-", "piped", "--size", "8Mi"),
        input=image,
        env=cdi.variables,
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert cdi.disk("piped").read_bytes() == content + bytes(8 * MIB - len(content))
    cdi("clone", "filed", "copy")
    assert cdi.disk("copy").read_bytes() == content
    cdi("clone", "filed", "larger", "-n", "other", "--from-namespace", "default", "--size", "6Mi")
    assert cdi.disk("larger", "other").read_bytes() == content + bytes(2 * MIB)
    assert "error[AlreadyExists]" in cdi("upload", tmp_path / "guest.qcow2", "filed", status=2).stderr


def test_an_upload_into_a_datavolume_that_waits_for_it(cdi, tmp_path):
    _, _ = qcow2(tmp_path)
    path = tmp_path / "dv.yaml"
    path.write_text(DV.format(name="up", url="x", source="", more="").replace('{http: {url: "x"}}', "{upload: {}}"))
    cdi("apply", "-f", path)
    assert "UploadReady" in cdi("wait", "up", "--for", "phase=UploadReady", "--timeout", "60s").stderr
    cdi("upload", "guest.qcow2", "up", "--no-create")
    assert (
        "DataVolume default/other does not exist"
        in cdi("upload", "guest.qcow2", "other", "--no-create", status=2).stderr
    )
    assert json.loads(cdi("get", "dv/up", "-o", "json").stdout)["status"]["phase"] == "Succeeded"


def test_wait_for_deletion(cdi, nginx, manifest, tmp_path):
    nginx.put("cli.qcow2", qcow2(tmp_path)[1])
    cdi("apply", "-f", manifest(nginx.url("cli.qcow2")), "--wait")
    front = cdi.start("wait", "dv/golden", "--for", "delete")
    # It prints the line once its watch has begun; a deletion before that could be missed.
    assert front.stderr.readline() == "golden: Terminating\n"
    cdi("delete", "dv", "golden")
    _, err = front.communicate(timeout=60)
    assert front.returncode == 0
    assert "golden: deleted" in err


def test_a_volume_may_be_kept(cdi, nginx, manifest, tmp_path):
    nginx.put("cli.qcow2", qcow2(tmp_path)[1])
    cdi("apply", "-f", manifest(nginx.url("cli.qcow2")), "--wait")
    cdi("delete", "dv", "golden", "--keep-volume")
    assert cdi.disk("golden").exists()
    cdi("delete", "pvc", "golden")
    assert not cdi.disk("golden").exists()
