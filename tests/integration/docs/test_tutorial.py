"""Tests of the tutorial on one machine, followed from an empty home directory."""

from __future__ import annotations

import os
import socket

import pytest

from tests.doc_blocks import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_lesson_on_one_machine(tmp_path, page):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    # The guest image is built from packages once, as for scripts/quickstart, and kept in the cache.
    cache = os.environ.get("CDI_CACHE") or os.path.expanduser("~/.cache/cdi")
    here = {"8089": str(free_port()), "scripts/": f"{ROOT}/scripts/"}
    lesson = page(replacements=here, CDI_CACHE=cache)
    lesson.run(timeout=2300)
    assert list(lesson.directory.iterdir()) == []
    assert not (tmp_path / "user/cdi-tutorial").exists()
    assert not (tmp_path / "user/.local").exists()


@pytest.mark.timeout(600)
def test_the_lesson_on_golden_images(tmp_path, page):
    lesson = page(replacements={"8089": str(free_port())})
    lesson.run(timeout=550)
    assert list(lesson.directory.iterdir()) == []
    assert not (tmp_path / "user/cdi-golden-tutorial").exists()
