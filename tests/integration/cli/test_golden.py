"""Tests of golden images on one machine: real sources, workers, polls and a real supervisor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import time

import pytest
import yaml

from cdi.api.annotations import NEXT_POLL
from cdi.local.home import Home
from cdi.local.processes import with_arguments
from cdi.store.base import Key
from cdi.store.file_store import LocalStore
from tests.integration.test_boot import HALT, boot_sector

MIB = 1 << 20
WAIT = 90.0
"""Seconds after which a test fails; nothing is expected to take that long."""
PROOF_WAIT = 400.0
"""The same for boot proofs; nested KVM may be tried without effect before the processor is emulated."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return three qcow2 images and their disks."""
    directory = tmp_path_factory.mktemp("images")
    found = []
    for number in range(3):
        disk = random.Random(number).randbytes(MIB) + bytes(3 * MIB)
        (directory / "disk.raw").write_bytes(disk)
        convert = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "disk.raw", f"{number}.qcow2"]
        subprocess.run(convert, cwd=directory, check=True)
        found.append(((directory / f"{number}.qcow2").read_bytes(), disk))
    return found


class Source:
    """An image behind nginx with its checksum file."""

    def __init__(self, nginx, name):
        self._nginx, self._name = nginx, name
        self.url = nginx.url(f"{name}/os.qcow2")

    def publish(self, content):
        """Replace the image, and return the version's name."""
        digest = hashlib.sha256(content).hexdigest()
        self._nginx.put(f"{self._name}/os.qcow2", content)
        self._nginx.put(f"{self._name}/SHA256SUMS", f"{digest}  os.qcow2\n".encode())
        return f"os-{digest[:12]}"

    def corrupt(self, content):
        """Replace the image but not its checksum."""
        self._nginx.put(f"{self._name}/os.qcow2", content)

    def remove(self):
        (self._nginx.root / self._name / "os.qcow2").unlink()
        (self._nginx.root / self._name / "SHA256SUMS").unlink()


@pytest.fixture
def source(nginx, request):
    return Source(nginx, f"golden/{request.node.name}")


def shown(cdi, name="os"):
    return json.loads(cdi("golden", "describe", name, "-o", "json").stdout)


def make_due(cdi):
    """Request a poll without starting the supervisor, which would make it before anything else is run."""
    until(lambda: not _supervisors(cdi))
    store = LocalStore(Home.find(cdi.home).objects)
    body = store.get(Key("dataimportcrons", "default", "os"))
    body["metadata"]["annotations"][NEXT_POLL.key] = "2026-01-01T00:00:00Z"
    store.update(body)


def clone(cdi, name):
    """Create a machine's volume from the DataSource, and return its content."""
    spec = {"sourceRef": {"kind": "DataSource", "name": "os"}, "storage": {}}
    manifest = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": name}, "spec": spec}
    (cdi.cwd / f"{name}.yaml").write_text(yaml.safe_dump(manifest))
    cdi("apply", "-f", f"{name}.yaml", "--wait")
    return cdi.disk(name).read_bytes()


def until(condition, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def add(cdi, source, *options):
    cdi("golden", "add", source.url, "--schedule", "@yearly", *options, "--wait")


def update(cdi, source, content):
    """Publish an image, import it by a poll, and return the version's name."""
    name = source.publish(content)
    assert f"os: new version {name}" in cdi("golden", "poll", "os").stdout
    cdi("golden", "wait", "os")
    return name


def test_machines_are_cloned_from_the_newest_version(cdi, source, images):
    (first, first_disk), (second, second_disk), _ = images
    source.publish(first)
    add(cdi, source)
    assert clone(cdi, "machine-1") == first_disk
    assert "unchanged" in cdi("golden", "poll", "os").stdout
    update(cdi, source, second)
    assert clone(cdi, "machine-2") == second_disk


def test_a_rollback_needs_no_download_and_polls_keep_it(cdi, source, images):
    old = source.publish(images[0][0])
    add(cdi, source)
    new = update(cdi, source, images[1][0])
    source.remove()
    assert f"rolled back to {old}; withheld: {new}" in cdi("golden", "rollback", "os").stdout
    assert "error[SourceNotFound]" in cdi("golden", "poll", "os", status=3).stderr
    assert any("the last poll failed" in text for text in shown(cdi)["obstacles"])
    source.publish(images[1][0])
    assert "unchanged" in cdi("golden", "poll", "os").stdout
    found = shown(cdi)
    assert (found["current"], found["state"]) == (old, "RolledBack")
    assert clone(cdi, "machine") == images[0][1]
    assert f"offers {new}" in cdi("golden", "release", "os").stdout


def test_a_pin_is_kept_until_it_is_removed(cdi, source, images):
    old = source.publish(images[0][0])
    add(cdi, source)
    cdi("golden", "pin", "os", old)
    new = update(cdi, source, images[1][0])
    assert shown(cdi)["current"] == old
    cdi("golden", "unpin", "os")
    assert shown(cdi)["current"] == new


def test_a_revoked_version_is_offered_by_nothing_and_its_descendants_are_named(cdi, source, images):
    old = source.publish(images[0][0])
    add(cdi, source)
    clone(cdi, "machine-1")
    new = update(cdi, source, images[1][0])
    clone(cdi, "machine-2")
    revoked = cdi("golden", "revoke", "os", new, "--reason", "bad kernel").stdout
    assert f"os: revoked {new}, offers {old}" in revoked
    assert "volume default/machine-2 descends from it" in revoked
    assert "machine-1" not in revoked
    versions = {one["name"]: one for one in shown(cdi)["versions"]}
    assert versions[new]["state"] == "Revoked"
    assert versions[old]["volumes"] == ["default/machine-1"]
    assert "is revoked" in cdi("golden", "wait", "os", status=5).stderr


def test_a_command_that_is_refused_is_withdrawn(cdi, source, images):
    source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--wait")
    done = cdi("golden", "rollback", "os", status=2)
    assert "error[GoldenCommandRefused]" in done.stderr
    assert "no previous version" in done.stderr
    annotations = json.loads(cdi("get", "dic", "os", "-o", "json").stdout)["metadata"]["annotations"]
    assert "cdi.kubevirt.io/golden.rollback" not in annotations


def test_a_channel_is_promoted_by_hand(cdi, source, images):
    old = source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--channel", "os-stable=manual", "--wait")
    cdi("golden", "promote", "os", "os-stable", old)
    new = source.publish(images[1][0])
    cdi("golden", "poll", "os")
    cdi("golden", "wait", "os")
    found = shown(cdi)
    assert found["current"] == new
    assert [(one["name"], one["version"]) for one in found["channels"]] == [("os-stable", old)]
    stable = json.loads(cdi("get", "datasource", "os-stable", "-o", "json").stdout)
    assert stable["spec"]["source"]["pvc"]["name"] == old


def test_a_version_whose_checksum_is_wrong_is_never_offered(cdi, source, images):
    old = source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--wait")
    bad = source.publish(images[1][0])
    source.corrupt(images[2][0])
    cdi("golden", "poll", "os")
    assert "error[ChecksumMismatch]" in cdi("golden", "wait", "os", status=5).stderr
    found = shown(cdi)
    assert (found["current"], found["wanted"], found["state"]) == (old, bad, "Failed")
    # It is not tried again by a poll, but on request.
    source.publish(images[1][0])
    cdi("golden", "poll", "os")
    assert shown(cdi)["state"] == "Failed"
    cdi("golden", "retry", "os")
    cdi("golden", "wait", "os")
    assert shown(cdi)["current"] == bad


def guest(text):
    """Return a disk that prints a text when it boots."""
    return boot_sector(text, HALT).ljust(MIB, b"\0")


@pytest.mark.timeout(900)
def test_only_a_version_that_boots_is_offered(cdi, source):
    def version(name):
        return next((one for one in shown(cdi)["versions"] if one["name"] == name), {})

    good_disk = guest(b"golden login: ")
    good = source.publish(good_disk)
    cdi("golden", "add", source.url, "--schedule", "@every 2s", "--proof", "boot", "--size", "1Mi")
    with _process(cdi, "golden", "run"):
        until(lambda: shown(cdi)["current"] == good, PROOF_WAIT)
        found = version(good)
        assert (found["state"], found["proof"]["booted"]) == ("Available", True)
        assert "golden login:" in found["proof"]["message"]
        bad = source.publish(guest(b"[ 1.0] Kernel panic - not syncing: VFS: no root\r\n"))
        until(lambda: version(bad).get("state") == "Unproven", PROOF_WAIT)
    found = version(bad)
    assert (found["reason"], found["proof"]["booted"]) == ("BootFailed", False)
    assert "VFS: no root" in found["message"]
    assert shown(cdi)["current"] == good
    assert clone(cdi, "machine") == good_disk


def test_an_image_of_a_registry(cdi, registries, oci_layout, images):
    def push(content):
        return registries.push(oci_layout, _tagged(oci_layout, content), "public/golden:latest")

    first = push(images[0][0])
    url = registries.open.url("public/golden:latest")
    cdi("golden", "add", url, "--name", "os", "--insecure", "--schedule", "@yearly", "--wait")
    assert shown(cdi)["wantedDigest"] == first
    second = push(images[1][0])
    assert "new version" in cdi("golden", "poll", "os").stdout
    cdi("golden", "wait", "os")
    assert shown(cdi)["wantedDigest"] == second
    assert clone(cdi, "machine") == images[1][1]


def _tagged(layout, content):
    tag = hashlib.sha256(content).hexdigest()[:8]
    layout.image([layout.layer({"disk/disk.img": content})], tag=tag)
    return tag


def test_run_once_does_what_is_due_and_nothing_else(cdi, source, images):
    old = source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--wait")
    new = source.publish(images[1][0])
    assert cdi("golden", "run", "--once").stdout == ""
    assert shown(cdi)["current"] == old
    make_due(cdi)
    assert f"default/os: offers {new}" in cdi("golden", "run", "--once").stdout


def test_run_once_ends_with_the_failure_of_a_poll(cdi, source, images):
    source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--wait")
    source.remove()
    make_due(cdi)
    done = cdi("golden", "run", "--once", status=3)
    assert "error[SourceNotFound]" in done.stderr


@pytest.mark.parametrize("command", [("golden", "run"), ("serve", "--port", "0")])
def test_schedules_are_kept_while_a_keeper_runs(cdi, source, images, command):
    old = source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@every 2s", "--wait")
    assert shown(cdi)["current"] == old
    with _process(cdi, *command):
        new = source.publish(images[1][0])
        until(lambda: shown(cdi)["current"] == new)


def test_the_supervisor_exits_although_a_poll_is_scheduled(cdi, source, images):
    source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--wait")
    until(lambda: not _supervisors(cdi))


def test_a_supervisor_that_is_killed_midway_is_continued(cdi, source, images):
    old = source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--wait")
    new = source.publish(images[1][0])
    waiting = cdi.start("golden", "poll", "os")
    # At every moment of the poll and the import: the next supervisor finds the same processes and objects.
    for _ in range(6):
        # A command that waits starts the next supervisor; this one is done once the poll is.
        until(lambda: _supervisors(cdi) or waiting.poll() is not None)
        for process in _supervisors(cdi):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        cdi("golden", "list")
    out, err = waiting.communicate(timeout=WAIT)
    assert waiting.returncode == 0, err
    assert new in out
    cdi("golden", "wait", "os")
    found = shown(cdi)
    assert [one["name"] for one in found["versions"]] == [new, old]
    assert found["current"] == new


def test_versions_are_deleted_with_the_image_if_it_says_so(cdi, source, images):
    name = source.publish(images[0][0])
    cdi("golden", "add", source.url, "--schedule", "@yearly", "--retention", "None", "--wait")
    assert cdi.disk(name).exists()
    cdi("delete", "dic/os")
    until(lambda: not cdi.disk(name).exists())
    assert cdi("get", "datasource", "-o", "name").stdout == ""


def test_a_poll_with_credentials_from_a_secret(cdi, nginx, images, tmp_path):
    digest = hashlib.sha256(images[0][0]).hexdigest()
    nginx.put("secret/os.qcow2", images[0][0])
    (tmp_path / "password").write_text(nginx.password)
    access = ("--username", nginx.user, "--password-file", "password")
    cdi("golden", "add", nginx.url("secret/os.qcow2", "private"), "--schedule", "@yearly", *access, "--wait")
    found = shown(cdi)
    assert found["current"] == found["wanted"]
    assert digest not in found["wantedDigest"]  # there is no checksum file: the ETag identifies it
    assert not list(cdi.home.glob("tasks/*/inputs"))


@contextlib.contextmanager
def _process(cdi, *command):
    process = cdi.start(*command)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT)


def _supervisors(cdi):
    return with_arguments("cdi.local.supervisor", "--home", str(cdi.home))
