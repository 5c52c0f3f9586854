"""The documentation's pictures of the web page and of ``cdi explain``, made by a real browser.

The tests check that the pictures can be made. With ``CDI_WRITE_SCREENSHOTS=1`` they also write them to docs/images.
"""

from __future__ import annotations

import hashlib
import html
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.local_backend import end_embedded
from tests.integration.page.conftest import MIB, TOKEN
from tests.integration.page.test_page import choose, row

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 150_000
GUEST_MIB = 3 << 10
# Chromium's own defaults would depend on the machine.
SCREEN = {"device_scale_factor": 1.25, "color_scheme": "light", "locale": "en"}
TERMINAL = """<!DOCTYPE html><meta charset="utf-8"><style>
  body { margin: 0; background: #1b1f24; }
  pre { margin: 0; padding: 16px 20px; width: 104ch; white-space: pre-wrap; color: #e4e7eb; background: #1b1f24;
        font: 13px/1.4 "DejaVu Sans Mono", monospace; }
  b { color: #8fd19e; }
</style><pre></pre>"""

pytestmark = pytest.mark.parametrize("context", [SCREEN], indirect=True, ids=[""])


@pytest.fixture
def guest(tmp_path):
    """Return a function that makes a qcow2 image of 3 GiB with some data."""

    def make(name):
        disk = tmp_path / "disk.raw"
        disk.write_bytes(b"\x55" * MIB)
        os.truncate(disk, GUEST_MIB * MIB)
        image = tmp_path / name
        subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", disk, image], check=True)
        return image

    return make


def dimensions(picture):
    """Return the width and height in the header of a PNG."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", picture[16:24])


def keep(name, picture):
    """Check a picture, and write it to the documentation if that is asked for."""
    width, height = dimensions(picture)
    assert 800 < width < 2400 and 400 < height < 2400
    assert len(picture) < MAX_BYTES
    if os.environ.get("CDI_WRITE_SCREENSHOTS"):
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / name).write_bytes(picture)
    committed = (IMAGES / name).read_bytes()
    assert len(committed) < MAX_BYTES
    # The height depends on the fonts.
    assert dimensions(committed)[0] == width, f"docs/images/{name} is outdated; run with CDI_WRITE_SCREENSHOTS=1"


def test_the_web_page(backend, machine, guest):
    backend.set_viewport_size({"width": 1000, "height": 760})
    choose(backend, guest("debian-12.qcow2"))
    backend.get_by_label("Name of the volume").fill("debian-12")
    backend.get_by_role("button", name="Create and upload").click()
    row(backend, "debian-12").get_by_text("Succeeded").wait_for()
    backend.get_by_role("button", name="Another file").or_(
        backend.get_by_role("button", name="Choose a file")
    ).first.click()
    choose(backend, guest("fedora-43.qcow2"))
    backend.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    keep("web-page.png", backend.screenshot(full_page=True, animations="disabled"))


def test_explain(page, nginx, guest, tmp_path):
    image = guest("debian-12.qcow2")
    nginx.put("debian-12.qcow2", image.read_bytes())
    nginx.put("SHA256SUMS", f"{hashlib.sha256(image.read_bytes()).hexdigest()}  debian-12.qcow2\n".encode())
    manifest = (ROOT / "examples" / "golden.yaml").read_text()
    written = "http://127.0.0.1:8089/guest.qcow2"
    assert written in manifest
    (tmp_path / "golden.yaml").write_text(manifest.replace(written, nginx.url("debian-12.qcow2")))
    home = tmp_path / "home"
    command = [sys.executable, "-m", "cdi.cli.main", "explain", "-f", "golden.yaml"]
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"CDI_HOME": str(home)}, capture_output=True, text=True, timeout=100
        )
    finally:
        end_embedded(home)
    assert done.returncode == 0, done.stderr
    # What is of this machine is shown as on the page that has the picture.
    text = done.stdout.replace(nginx.url(""), "http://images.example.org/").replace(str(home), "~/.local/share/cdi")
    assert str(tmp_path) not in text and TOKEN not in text
    page.set_content(TERMINAL)
    page.evaluate(
        "text => document.querySelector('pre').innerHTML = text",
        f"<b>$ cdi explain -f golden.yaml</b>\n{html.escape(text.rstrip())}",
    )
    keep("explain.png", page.locator("pre").screenshot(animations="disabled"))
