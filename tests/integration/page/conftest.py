"""``cdi serve`` with a CDI_HOME of its own and real workers, and a real Chromium for its page."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdi import atomic_file
from cdi.local.backend import LocalBackend
from cdi.local.launcher import Launcher
from cdi.server.local_server import Options, Server, served

CHROMIUM = "/usr/bin/chromium"
TOKEN = "a-token-of-the-tests-0123"
MIB = 1 << 20


@dataclass
class Machine:
    """One machine's volumes, and a server for them."""

    embedded: LocalBackend
    base: Path
    server: Server | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    @contextlib.contextmanager
    def serving(self, port: int = 0) -> Iterator[Server]:
        with served(self.embedded, Options(token=TOKEN, port=port)) as self.server:
            yield self.server

    def make(self, name: str, size: str = "16Mi", namespace: str = "default", **spec) -> None:
        spec = {"source": {"upload": {}}, "storage": {"resources": {"requests": {"storage": size}}}, **spec}
        metadata = {"name": name, "namespace": namespace}
        body = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": metadata, "spec": spec}
        self.embedded.apply([body])

    def await_phase(self, name: str, phase: str, namespace: str = "default") -> None:
        self.embedded.wait("dv", namespace, name, phase, timeout=60)

    def disk(self, name: str, namespace: str = "default") -> Path:
        return self.embedded.home.disk(namespace, name)

    def worker(self, name: str) -> str:
        return self.embedded.get("pvc", "default", name)["metadata"]["uid"]

    def kill_worker(self, name: str) -> None:
        Launcher(self.embedded.home).stop(self.worker(name), grace=0)

    def token(self, name: str, namespace: str = "default") -> str:
        return f"{TOKEN}~{namespace}~{name}"


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Yield a machine whose server is not started."""
    monkeypatch.delenv("CDI_HOME", raising=False)
    made = Machine(LocalBackend(tmp_path / "home"), tmp_path)
    yield made
    embedded = made.embedded
    for body in embedded.list("dv"):
        embedded.delete("dv", body["metadata"]["namespace"], body["metadata"]["name"])
    launcher = Launcher(embedded.home)
    deadline = time.monotonic() + 60
    # Processes that a test left running would write into its directory while that is being removed.
    while time.monotonic() < deadline:
        for uid in launcher.known():
            with contextlib.suppress(Exception):
                launcher.stop(uid, grace=0)
        if not atomic_file.is_locked(embedded.home.supervisor_lock) and not any(map(launcher.alive, launcher.known())):
            break
        time.sleep(0.1)


@pytest.fixture
def machine(stopped):
    with stopped.serving():
        yield stopped


# The scope is the module: as long as Playwright is open, its event loop counts as running in this process, and no other
# test could run one.
@pytest.fixture(scope="module")
def chromium():
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium: scripts/setup test installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--headless"])
        yield browser
        browser.close()


class Troubles(list):
    """Errors that a browser logged about the page, including violations of its policy."""


@pytest.fixture
def context(chromium, request):
    made = chromium.new_context(viewport={"width": 1100, "height": 900}, **getattr(request, "param", {}))
    # No test is about how fast the page is; a busy machine must not fail one.
    made.set_default_timeout(120_000)
    yield made
    made.close()


@pytest.fixture
def page(context):
    """Yield a tab, and check at its end that no error was logged."""
    troubles = Troubles()
    tab = context.new_page()
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda said: troubles.append(said.text) if said.type in {"error", "warning"} else None)
    tab.troubles = troubles
    yield tab
    # Error responses that the test caused are logged by the browser as well.
    assert not [text for text in troubles if "Failed to load resource" not in text]


@pytest.fixture
def backend(page, machine):
    """Return the page, signed in."""
    page.goto(f"{machine.url}#token={TOKEN}")
    page.wait_for_selector("#desk:visible")
    return page


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Return one disk of 16 MiB in every format that QEMU writes, plain and compressed."""
    base = tmp_path_factory.mktemp("images")
    raw = base / "disk.raw"
    content = bytearray(16 * MIB)
    content[510:512] = b"\x55\xaa"
    content[MIB : 3 * MIB] = random.Random(8).randbytes(2 * MIB)
    raw.write_bytes(content)
    for form, options in {
        "qcow2": [],
        "vmdk": ["-o", "subformat=streamOptimized"],
        "vdi": [],
        "vpc": ["-o", "subformat=dynamic,force_size=on"],
        "vhdx": [],
    }.items():
        subprocess.run(["qemu-img", "convert", "-q", "-O", form, *options, raw, base / f"disk.{form}"], check=True)
    subprocess.run(
        ["qemu-img", "convert", "-q", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, base / "fixed.vpc"],
        check=True,
    )
    for name in ("disk.raw", "disk.qcow2"):
        for program, suffix in (("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")):
            with open(base / f"{name}.{suffix}", "wb") as out:
                level = ["-1", "-T1"] if program != "gzip" else ["-1"]
                subprocess.run([program, *level, "-c", base / name], stdout=out, check=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, base / "overlay.qcow2"], check=True
    )
    (base / "page.html").write_text("<!DOCTYPE html><title>Sign in</title>" + " " * 600)
    (base / "empty.raw").touch()
    shutil.copy(raw, base / "<img src=x onerror=alert(1)>.raw")
    return base
