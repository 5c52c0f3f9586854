"""Tests of finding what a node left behind, without touching what belongs to others."""

import os
import subprocess

import pytest

from tests.cluster import leftovers
from tests.cluster.layout import Layout
from tests.cluster.node import started_at


@pytest.fixture
def layout(tmp_path):
    layout = Layout(base=tmp_path)
    layout.node.mkdir()
    return layout


def test_the_node_is_known_by_its_number_and_its_beginning(layout):
    (layout.node / "pid").write_text(f"{os.getpid()} {started_at(os.getpid())}\n")
    assert leftovers.process(layout) == os.getpid()


@pytest.mark.parametrize(
    "content", ["", "x y", "1", "0 0", f"{os.getpid()} 1"], ids=["nothing", "words", "one", "zeros", "of another time"]
)
def test_another_process_of_that_number_is_not_the_node(layout, content):
    (layout.node / "pid").write_text(content)
    assert leftovers.process(layout) is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_loop_devices_of_others_are_not_touched(layout, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True)
    device = made.stdout.strip()
    try:
        found = leftovers._loop(device)
        assert (found.number, found.tag) == (os.stat(device).st_rdev, str(disk)[:63])
        assert device not in {loop.device for loop in leftovers._loops(layout)}
        leftovers._detach_loops(layout)
        assert leftovers._loop(device) is not None
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_two_clusters_at_the_same_path_of_two_roots_have_different_marks(tmp_path):
    here, there = Layout(base=tmp_path), Layout(base=tmp_path)
    here.make_identity()
    first = here.loop_tag
    here.make_identity()
    assert here.loop_tag == first
    # Another root user has another directory under the same path.
    (tmp_path / "identity").unlink()
    there.make_identity()
    assert there.loop_tag != first
    assert first.rpartition("-")[0] == "cdi-cluster"


def test_nothing_to_remove_is_no_error(layout):
    leftovers.remove(layout)
    assert not layout.node.exists()
    leftovers.remove(layout)
