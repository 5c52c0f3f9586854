"""Tests that a compressed cluster is read as QEMU reads it: as much of a deflate stream as fills the cluster."""

from __future__ import annotations

import random
import zlib

import pytest

from cdi.transfer.pipeline import cluster_writer
from cdi.transfer.pipeline.cluster_writer import inflate_deflate as inflate

SIZE = 65536


def compressed(content, level=6, flush=zlib.Z_FINISH):
    stream = zlib.compressobj(level, zlib.DEFLATED, -12)
    return stream.compress(content) + stream.flush(flush)


def mixed(size=SIZE, seed=1):
    chance = random.Random(seed)
    return b"".join(chance.choice((chance.randbytes(100), bytes(200), b"abc" * 50)) for _ in range(size // 90))[:size]


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize(
    "content", [bytes(SIZE), mixed(), random.Random(2).randbytes(SIZE)], ids=["zeros", "mixed", "noise"]
)
@pytest.mark.parametrize("behind", [b"", bytes(511), b"\xff" * 511], ids=["nothing", "zeros", "another cluster"])
def test_a_cluster(level, content, behind):
    assert inflate(memoryview(compressed(content, level) + behind), SIZE) == content


@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_PARTIAL_FLUSH])
def test_a_stream_that_does_not_end(flush):
    assert inflate(memoryview(compressed(mixed(), flush=flush)), SIZE) == mixed()


def test_a_stream_that_holds_more_than_a_cluster_fills_it_and_no_more():
    assert inflate(memoryview(compressed(mixed(2 * SIZE))), SIZE) == mixed(2 * SIZE)[:SIZE]


def test_a_bomb_gives_one_cluster():
    assert inflate(memoryview(compressed(bytes(64 << 20), 9)), SIZE) == bytes(SIZE)


def test_a_short_one_is_given_as_it_is():
    assert inflate(memoryview(compressed(b"abc")), SIZE) == b"abc"


@pytest.mark.parametrize("damaged", [b"\xff" * 100, compressed(mixed())[:-2000], b""], ids=["noise", "cut", "empty"])
def test_damage_is_not_a_whole_cluster(damaged):
    try:
        given = inflate(memoryview(damaged), SIZE)
    except Exception:
        return
    assert len(given) < SIZE


def test_the_fast_way_is_the_one_that_is_used(monkeypatch):
    monkeypatch.setattr(cluster_writer, "isal_zlib", None)
    assert inflate(memoryview(compressed(mixed())), SIZE) == mixed()
