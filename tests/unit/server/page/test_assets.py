"""Tests that the page's files obey the page's own Content-Security-Policy."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

from cdi.server.page.assets import POLICY, assets

TEXTS = {path: asset.content.decode() for path, asset in assets().items()}
VENDOR = resources.files("cdi.server.page") / "static/js/vendor"


def test_all_that_the_page_asks_for_is_there():
    wanted = set(re.findall(r'(?:href|src)="([^"#]+)"', TEXTS["/"]))
    modules = {
        path: re.findall(r'^(?:import|.* from) "\./([^"]+)"', text, re.MULTILINE)
        for path, text in TEXTS.items()
        if path.endswith(".js")
    }
    wanted |= {f"/page/js/{name}" for names in modules.values() for name in names}
    assert wanted <= set(TEXTS)
    assert {path for path in TEXTS if path != "/"} == wanted


def test_nothing_is_inline_and_nothing_from_elsewhere():
    page = TEXTS["/"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for path, text in TEXTS.items():
        # Namespaces and specifications are identifiers; nothing is fetched from there.
        places = set(re.findall(r"https?://[^\s\"')>]+", text))
        assert places <= {"http://www.w3.org/2000/svg", "https://tus.io/protocols/resumable-upload"}, path


def test_libraries_of_others_are_unchanged_and_have_their_licence():
    table = re.findall(
        r"^\| `([\w.]+)` \|.*\(`([\w.-]+)`\) \| `(\w{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
    )
    assert {f"/page/js/vendor/{name}" for name, _, _ in table} == {path for path in TEXTS if "/vendor/" in path}
    for name, licence, digest in table:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
        assert "Permission is hereby granted" in (VENDOR / licence).read_text()


def test_packages_inside_a_library_have_their_licence():
    # Each module of a bundle lists what it requires: its own files by path, other packages by name.
    required = re.findall(r'\},\{((?:"?[\w./-]+"?:\d+,?)+)\}\]', TEXTS["/page/js/vendor/tus.min.js"])
    names = {name for modules in required for name in re.findall(r'([\w./-]+)"?:', modules)}
    packages = {name for name in names if not name.startswith(".")}
    texts = (VENDOR / "tus-dependencies.LICENSE").read_text()
    assert {"ieee754", "url-parse"} <= packages
    assert packages == set(re.findall(r"^=== (\S+) ===$", texts, re.MULTILINE))
    assert texts.count("Copyright") >= len(packages)


def test_text_never_becomes_markup():
    for path, text in TEXTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )


def test_the_policy():
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_every_label_has_its_field():
    page = TEXTS["/"]
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', page)) - {
        "login-hint login-error"
    } <= set(ids)
