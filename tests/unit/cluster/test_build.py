"""Tests of the build cache: a build is reused exactly as long as none of its inputs has changed."""

import shutil

import pytest

from tests.cluster import build
from tests.cluster.layout import SOURCES, Layout


@pytest.fixture
def sources(tmp_path, monkeypatch):
    for name in ("programs", "csi"):
        shutil.copytree(SOURCES / name, tmp_path / "sources" / name)
    shutil.copy(SOURCES / "images.py", tmp_path / "sources" / "images.py")
    packages = {tmp_path / "sources" / path.name: what for path, what in build._PACKAGES.items()}
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(build, "_PROGRAMS", tmp_path / "sources" / "programs")
    monkeypatch.setattr(build, "_CSI", tmp_path / "sources" / "csi")
    monkeypatch.setattr(build, "_PACKAGES", packages)
    return tmp_path / "sources"


@pytest.fixture
def layout(tmp_path):
    return Layout(base=tmp_path / "cache")


def test_the_same_sources_elsewhere_are_the_same_build(sources, layout, monkeypatch):
    here = build.find(layout)
    monkeypatch.undo()
    assert build.find(layout) == here


@pytest.mark.parametrize(
    ("changed", "other"),
    [("programs/go.sum", {"programs"}), ("csi/driver/node.go", {"csi", "images"}), ("images.py", {"images"})],
)
def test_a_change_makes_another_build_of_what_it_goes_into(sources, layout, changed, other):
    before = build.find(layout)
    with open(sources / changed, "a") as file:
        file.write("\n")
    after = build.find(layout)
    assert {name for name in ("programs", "csi", "images") if getattr(before, name) != getattr(after, name)} == other


def test_a_changed_go_test_needs_no_new_build(sources, layout):
    before = build.find(layout)
    (sources / "csi" / "driver" / "more_test.go").write_text("package driver\n")
    assert build.find(layout) == before


def test_an_unfinished_build_is_never_taken_for_one(layout):
    layout.built.mkdir(parents=True)
    final = layout.built / "csi-key"
    with pytest.raises(RuntimeError), build._place(final) as directory:
        (directory / "half").touch()
        raise RuntimeError
    assert not final.exists()
    with build._place(final) as directory:
        assert not list(directory.iterdir())
        (directory / "whole").touch()
    assert [path.name for path in final.iterdir()] == ["whole"]


def test_old_builds_are_removed(sources, layout):
    built = build.find(layout)
    for number in range(5):
        (layout.built / f"csi-{number}").mkdir(parents=True)
    built.csi.mkdir()
    build._prune(layout, built)
    assert built.csi.exists()
    assert len(list(layout.built.glob("csi-*"))) == 3
