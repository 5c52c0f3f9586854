import os

import pytest

from cdi.api.job import BlankSourceSpec, FileTargetSpec, Job, Limits
from cdi.worker.limits import LimitsFile


class Control:
    def __init__(self):
        self.taken = []

    def limit(self, limits):
        self.taken.append(limits)


@pytest.fixture
def control():
    return Control()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "limits"


@pytest.fixture
def file(path):
    return LimitsFile(str(path), Limits(bandwidth=7))


def replace(path, content):
    new = path.with_name("new")
    new.write_text(content)
    os.replace(new, path)


def test_what_the_file_says_is_told_once(file, path, control):
    file.reload(control)
    path.write_text(Limits(bandwidth=5).to_json())
    file.reload(control)
    file.reload(control)
    assert control.taken == [Limits(bandwidth=5)]
    replace(path, Limits(bandwidth=6).to_json())
    file.reload(control)
    assert control.taken[1:] == [Limits(bandwidth=6)]


def test_a_file_that_says_what_counts_already_changes_nothing(file, path, control):
    path.write_text(Limits(bandwidth=7).to_json())
    file.reload(control)
    assert control.taken == []


def test_an_empty_file_means_what_the_job_began_with(file, path, control):
    path.write_text("")
    file.reload(control)
    assert control.taken == []
    replace(path, Limits(bandwidth=5).to_json())
    file.reload(control)
    replace(path, "\n")
    file.reload(control)
    assert control.taken == [Limits(bandwidth=5), Limits(bandwidth=7)]


@pytest.mark.parametrize("content", ["{", '{"bandwidth": -1}', '{"bandwidth": "x"}', "\xff"])
def test_nonsense_is_told_once_and_changes_nothing(file, path, control, content, capsys):
    path.write_bytes(content.encode("latin-1"))
    file.reload(control)
    file.reload(control)
    assert control.taken == []
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_links_are_followed_as_a_kubelet_swaps_them(tmp_path, control):
    def publish(version, content):
        (tmp_path / version).mkdir()
        (tmp_path / version / "limits").write_text(content)
        (tmp_path / "..new").symlink_to(version)
        os.replace(tmp_path / "..new", tmp_path / "..data")

    publish("..1", "")
    (tmp_path / "limits").symlink_to("..data/limits")
    file = LimitsFile(str(tmp_path / "limits"), Limits())
    file.reload(control)
    publish("..2", Limits(connections=3).to_json())
    file.reload(control)
    assert control.taken == [Limits(connections=3)]


def test_a_real_transfer_takes_them(file, path):
    from cdi.transfer.control import TransferControl as RealControl

    job = Job(id="x", source=BlankSourceSpec(), target=FileTargetSpec(path="/nowhere/disk.img"))
    path.write_text(Limits(bandwidth=5).to_json())
    control = RealControl(job)
    file.reload(control)
    assert control.throttle.bandwidth == 5
