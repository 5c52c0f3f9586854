from __future__ import annotations

import errno
import os

import pytest

from cdi import atomic_file
from cdi.api.errors import TargetFull
from cdi.store.ballast import CHUNK_SIZE, SIZE, Ballast
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

CONFIG_MAP = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"n": "0"}}
KEY = Key("configmaps", "default", "c")


@pytest.fixture
def full(monkeypatch):
    """Make the next writes fail with ENOSPC, as often as `full` says."""

    class Full:
        times = 0

    written = atomic_file.write

    def write(*arguments, **options):
        if Full.times:
            Full.times -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(*arguments, **options)

    monkeypatch.setattr(atomic_file, "write", write)
    return Full


def test_it_takes_space_and_gives_it_back_piece_by_piece(tmp_path):
    ballast = Ballast(tmp_path / "ballast")
    assert not ballast.release()
    ballast.restore()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= SIZE
    for left in range(SIZE - CHUNK_SIZE, -1, -CHUNK_SIZE):
        assert ballast.release()
        assert (tmp_path / "ballast").stat().st_size == left
    assert not ballast.release()
    ballast.restore()
    assert (tmp_path / "ballast").stat().st_size == SIZE


def test_a_place_where_nothing_can_be_written_is_no_failure(tmp_path):
    Ballast(tmp_path / "none" / "ballast").restore()


def test_an_update_takes_what_is_held_back_and_a_new_object_does_not(tmp_path, full):
    store = LocalStore(tmp_path)
    store.create(dict(CONFIG_MAP))
    assert (tmp_path / ".ballast").stat().st_size == SIZE
    full.times = 3
    store.update({**CONFIG_MAP, "data": {"n": "1"}})
    assert store.get(KEY)["data"] == {"n": "1"}
    assert (tmp_path / ".ballast").stat().st_size == SIZE - 3 * CHUNK_SIZE
    full.times = 1
    with pytest.raises(TargetFull):
        store.create({**CONFIG_MAP, "metadata": {"name": "other"}})
    assert not (tmp_path / "configmaps/default/other.json").exists()
    assert (tmp_path / ".ballast").stat().st_size == SIZE  # the disk is not really full
    full.times = SIZE // CHUNK_SIZE + 1
    with pytest.raises(TargetFull):
        store.update({**CONFIG_MAP, "data": {"n": "2"}})
    assert store.get(KEY)["data"] == {"n": "1"}
