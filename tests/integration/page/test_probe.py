"""Tests that the page's check of an image before the upload agrees with the server's own inspectors."""

from __future__ import annotations

import pytest

from cdi.client.locate import locate
from cdi.client.request import Request
from cdi.explain.inspect import inspect

NAMES = {"vpc": "vhd"}


@pytest.fixture(scope="module")
def tab(chromium, tmp_path_factory):
    """Return a tab with the page's modules, without signing in."""
    from cdi.local.backend import LocalBackend
    from cdi.server.local_server import Options, served

    embedded = LocalBackend(tmp_path_factory.mktemp("home"))
    with served(embedded, Options(token="x" * 20, port=0)) as server:
        context = chromium.new_context(bypass_csp=True)
        opened = context.new_page()
        opened.goto(server.url)
        opened.evaluate("import('/page/js/probe.js').then((module) => { window.probe = module.probe; })")
        opened.evaluate(
            "document.body.append(Object.assign(document.createElement('input'), {type: 'file', id: 'given'}))"
        )
        yield opened
        context.close()


@pytest.fixture
def probe(tab):
    def look(path) -> dict:
        tab.set_input_files("#given", str(path))
        return tab.evaluate(
            """() => probe(document.getElementById('given').files[0])
            .then((found) => ({...found, size: found.size === null ? null : Number(found.size)}))"""
        )

    return look


@pytest.mark.parametrize(
    "name",
    ["disk.raw", "disk.qcow2", "disk.vmdk", "disk.vdi", "disk.vpc", "fixed.vpc", "disk.vhdx", "disk.qcow2.gz"],
)
def test_it_agrees_with_the_inspectors(probe, images, name):
    found, known = probe(images / name), inspect(Request(place=locate(str(images / name))), whole=True)
    assert known.image is not None
    assert found["refusal"] == ""
    assert found["format"] == NAMES.get(known.image.format, known.image.format)
    assert found["size"] == known.virtual_size
    assert found["wrapper"] == ("gzip" if name.endswith(".gz") else "")


@pytest.mark.parametrize("name", ["disk.raw.xz", "disk.raw.zst"])
def test_a_wrapper_tells_how_long_its_content_is(probe, images, name):
    found = probe(images / name)
    assert (found["wrapper"], found["size"]) == ({"xz": "xz", "zst": "zstd"}[name.rpartition(".")[2]], 16 << 20)
    assert found["warning"]


def test_a_raw_image_in_gzip_has_no_size_yet(probe, images):
    found = probe(images / "disk.raw.gz")
    assert (found["format"], found["wrapper"], found["size"]) == ("raw", "gzip", None)
    assert "Enter a size" in found["warning"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("overlay.qcow2", "overlay"), ("page.html", "web page"), ("empty.raw", "empty")],
)
def test_what_will_be_refused_is_told_before(probe, images, name, why):
    assert why in probe(images / name)["refusal"]


def test_an_iso_and_a_cut_header(probe, tmp_path):
    iso = bytearray(1 << 20)
    iso[0x8001:0x8006] = b"CD001"
    (tmp_path / "a.iso").write_bytes(iso)
    assert probe(tmp_path / "a.iso")["format"] == "iso"
    (tmp_path / "cut.qcow2").write_bytes(b"QFI\xfb\0\0\0\x03")
    assert "truncated" in probe(tmp_path / "cut.qcow2")["refusal"]


def test_no_bytes_break_it(probe, images, tmp_path):
    """Every header with each of its parts overwritten gives a result, never an exception."""
    for name in ("disk.qcow2", "disk.vhdx", "disk.vdi", "disk.vpc", "disk.vmdk", "disk.raw.xz", "disk.raw.zst"):
        content = bytearray((images / name).read_bytes()[: 1 << 20])
        for at in range(4, 68, 4):
            hurt = bytearray(content)
            hurt[at : at + 4] = b"\xff" * 4
            (tmp_path / "hurt").write_bytes(hurt)
            assert set(probe(tmp_path / "hurt")) >= {"format", "size", "refusal"}
