"""Tests of other clients of ``cdi serve``: curl, tuspy, tus-js-client; and of uploads when a process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cdi.api.errors import AlreadyUploaded, TokenInvalid
from cdi.client.upload_client import Proxy, RetryPolicy, UploadClient, Volume
from cdi.local.launcher import Launcher
from cdi.local.upload_sockets import UploadSockets
from tests.integration.page.conftest import MIB, TOKEN

PACKAGES = Path(os.environ.get("CDI_CACHE") or Path.home() / ".cache" / "cdi") / "npm"


def curl(*arguments) -> str:
    done = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tus(machine, name, method, path="", headers=None, data=None):
    url = f"{machine.url.rstrip('/')}{path or f'/v1beta1/tus/default/{name}'}"
    fields = {"Tus-Resumable": "1.0.0", "Authorization": f"Bearer {machine.token(name)}", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=fields, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.headers


def begin(machine, name, length):
    return tus(machine, name, "POST", headers={"Upload-Length": str(length)})["Location"]


def go_on(machine, name, path, offset, data):
    fields = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    return tus(machine, name, "PATCH", path, fields, data)


@pytest.fixture
def volume(machine):
    machine.make("vm")
    machine.await_phase("vm", "UploadReady")
    return "vm"


class TestClients:
    @pytest.mark.parametrize("path", ["/v1beta1/upload", "/v1alpha1/upload-async"])
    def test_curl_posts_it(self, machine, volume, images, path):
        authorization = f"Authorization: Bearer {machine.token(volume)}"
        url = machine.url.rstrip("/") + path
        assert curl("-H", authorization, "--data-binary", f"@{images / 'disk.qcow2'}", url) == "\n200"
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == (images / "disk.raw").read_bytes()
        assert curl("-H", authorization, "--data-binary", "@" + str(images / "disk.qcow2"), url).endswith("503")

    def test_curl_sends_a_form(self, machine, volume, images):
        url = machine.url + "v1beta1/upload-form"
        said = curl(
            "-H", f"Authorization: Bearer {machine.token(volume)}", "-F", f"file=@{images / 'disk.raw.gz'}", url
        )
        assert said == "\n200"
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == (images / "disk.raw").read_bytes()

    def test_tuspy(self, machine, volume, images):
        from tusclient.client import TusClient

        client = TusClient(
            f"{machine.url}v1beta1/tus/default/{volume}", headers={"Authorization": f"Bearer {machine.token(volume)}"}
        )
        with open(images / "disk.raw", "rb") as file:
            client.uploader(file_stream=file, chunk_size=3 * MIB, upload_checksum=True).upload()
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == (images / "disk.raw").read_bytes()

    @pytest.mark.parametrize("chunk", [[], [str(3 * MIB)]], ids=["whole", "pieces"])
    def test_tus_js_client(self, machine, volume, images, chunk):
        node = shutil.which("node")
        if node is None or not (PACKAGES / "node_modules" / "tus-js-client").is_dir():
            pytest.skip("there is no node with tus-js-client: scripts/setup test installs them")
        script = Path(__file__).with_name("tus_client.mjs")
        endpoint = f"{machine.url}v1beta1/tus/default/{volume}"
        done = subprocess.run(
            [node, script, PACKAGES, endpoint, machine.token(volume), images / "disk.raw", *chunk],
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == (images / "disk.raw").read_bytes()

    def test_our_own_sender(self, machine, volume, images):
        told = []

        class Watcher:
            def sent(self, done, total):
                told.append(done)

            def waits(self, why, seconds):
                raise AssertionError(why)

        with open(images / "disk.qcow2", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            UploadClient(
                Proxy(url=machine.url), Volume(namespace="default", name=volume), file, size,
                lambda: machine.token(volume), Watcher(), patience=RetryPolicy(sleep=lambda _: None),
            ).send()  # fmt: skip
        assert told[-1] == size
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == (images / "disk.raw").read_bytes()


class TestWhatIsKilled:
    def test_the_server(self, stopped, images):
        content = (images / "disk.raw").read_bytes()
        with stopped.serving():
            stopped.make("vm")
            stopped.await_phase("vm", "UploadReady")
            path = begin(stopped, "vm", len(content))
            go_on(stopped, "vm", path, 0, content[: 6 * MIB])
        with stopped.serving():
            assert tus(stopped, "vm", "HEAD", path)["Upload-Offset"] == str(6 * MIB)
            go_on(stopped, "vm", path, 6 * MIB, content[6 * MIB :])
            stopped.await_phase("vm", "Succeeded")
        assert stopped.disk("vm").read_bytes() == content

    def test_the_worker(self, machine, volume, images):
        content = (images / "disk.raw").read_bytes()
        path = begin(machine, volume, len(content))
        go_on(machine, volume, path, 0, content[: 12 * MIB])
        machine.kill_worker(volume)
        status = 409
        while status == 409:
            # The worker may end between the two requests, and the next worker resumes at the bytes written: the client
            # asks again.
            offset = int(tus(machine, volume, "HEAD", path)["Upload-Offset"])
            assert 0 < offset <= 12 * MIB
            try:
                go_on(machine, volume, path, offset, content[offset:])
                status = 204
            except urllib.error.HTTPError as refused:
                with refused:
                    status = refused.code
        assert status == 204
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == content


@contextlib.contextmanager
def nobody_writes_down(machine):
    """Suspend the supervisor, so that no volume's status is written."""
    home = str(machine.embedded.home.root).encode()
    found = [
        int(directory.name)
        for directory in Path("/proc").iterdir()
        if directory.name.isdigit() and {b"cdi.local.supervisor", home} <= set(command_line(directory))
    ]
    assert found
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)


def command_line(directory):
    try:
        return (directory / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


class TestCompleted:
    """All of a resumable upload has arrived, and its client queries its state."""

    def told(self, machine, path):
        found = tus(machine, "vm", "HEAD", path)
        return found["Upload-Offset"], found["Upload-Length"]

    def test_it_is_told_so_until_the_volume_is_done_and_after(self, machine, volume, images):
        content = (images / "disk.raw").read_bytes()
        path, done = begin(machine, volume, len(content)), False
        go_on(machine, volume, path, 0, content)
        while True:
            assert self.told(machine, path) == (str(len(content)), str(len(content)))
            if done:
                break
            done = machine.embedded.get("dv", "default", volume)["status"]["phase"] == "Succeeded"

    def test_it_is_told_so_before_anybody_has_written_down_that_the_volume_is_done(self, machine, volume, images):
        content = (images / "disk.raw").read_bytes()
        path = begin(machine, volume, len(content))
        go_on(machine, volume, path, 0, content[:-MIB])
        with nobody_writes_down(machine):
            go_on(machine, volume, path, len(content) - MIB, content[-MIB:])
            launcher, deadline = Launcher(machine.embedded.home), time.monotonic() + 60
            while launcher.alive(machine.worker(volume)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert self.told(machine, path) == (str(len(content)), str(len(content)))
        machine.await_phase(volume, "Succeeded")
        assert machine.disk(volume).read_bytes() == content

    def test_others_are_told_that_the_volume_is_filled(self, machine, volume, images):
        content = (images / "disk.raw").read_bytes()
        path = begin(machine, volume, len(content))
        go_on(machine, volume, path, 0, content)
        machine.await_phase(volume, "Succeeded")
        for method, where in (("HEAD", path.replace("/vm/", "/vm/0")[: len(path)]), ("POST", "")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                tus(machine, volume, method, where, {"Upload-Length": "5"})
            assert refused.value.code in {404, 409}
            refused.value.close()


class TestRefusals:
    @pytest.mark.parametrize(
        ("token", "status"),
        [("wrong~default~vm", 401), (f"{TOKEN}~default~other", 401), (TOKEN, 400), (f"{TOKEN}~../etc~vm", 400)],
    )
    def test_tokens(self, machine, volume, token, status):
        request = urllib.request.Request(
            f"{machine.url}v1beta1/tus/default/vm",
            method="POST",
            headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Authorization": f"Bearer {token}"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == status
        refused.value.close()

    def test_no_image_leaves_room_for_one(self, machine, volume, images):
        authorization = f"Authorization: Bearer {machine.token(volume)}"
        url = machine.url + "v1beta1/upload"
        said = curl("-H", authorization, "--data-binary", "<!DOCTYPE html>" + "x" * 4096, url)
        assert said.endswith("400")
        assert "error[" in said
        assert curl("-H", authorization, "--data-binary", f"@{images / 'disk.qcow2'}", url) == "\n200"
        machine.await_phase(volume, "Succeeded")

    def test_a_volume_that_is_full_takes_no_more(self, machine, volume, images):
        machine.embedded.upload("default", volume, images / "disk.qcow2")
        machine.await_phase(volume, "Succeeded")
        with pytest.raises(AlreadyUploaded):
            UploadSockets(machine.embedded).open("default", volume)

    def test_the_sender_says_what_the_server_said(self, machine, volume, images):
        class Watcher:
            def sent(self, done, total): ...

            def waits(self, why, seconds): ...

        with open(images / "disk.raw", "rb") as file, pytest.raises(TokenInvalid, match="not the token"):
            UploadClient(
                Proxy(url=machine.url), Volume(namespace="default", name=volume), file, 5, lambda: "no~default~vm",
                Watcher(),
            ).send()  # fmt: skip
