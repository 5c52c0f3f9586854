"""Either end is killed repeatedly at any time, and the disk is correct in the end."""

import os
import random
import subprocess
import time

import pytest

from cdi.api.job import BlockTargetSpec, Policy
from cdi.transfer.journal import Journal
from tests.clone_digest import digest_of_file as digest
from tests.integration.clone.peers import Clone
from tests.integration.target.test_devices import loop

MIB = 1 << 20
SIZE = 256 * MIB


def write_disk(path, seed):
    """Write 72 MiB of various data to a disk of 256 MiB."""
    made = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for at in range(0, 240, 20):
            file.seek(at * MIB + made.randrange(0, 10 * MIB) // 4096 * 4096)
            file.write(made.randbytes(5 * MIB))
            file.write(b"a line of text that packs well\n" * 30_000)
    return path


def has_checkpoint(clone):
    journal = Journal.load(clone.target.journal)
    return journal is not None and journal.watermark > 0


def kill_and_restart(clone, *, kills, rng, longest=1.2):
    """Kill ends until the target finishes; return its outcome and how often each was killed."""
    done = {"target": 0, "source": 0}
    clone.start("target").start("source")
    while sum(done.values()) < kills and clone.running("target"):
        time.sleep(rng.uniform(0.05, longest))
        # A busy machine may take longer than that to start the ends, and all kills would precede the first checkpoint.
        while not sum(done.values()) and clone.running("target") and not has_checkpoint(clone):
            time.sleep(0.01)
        killed = [end for end in rng.choice([["target"], ["source"], ["target", "source"]]) if clone.kill(end)]
        for end in killed:
            done[end] += 1
            clone.start(end)
    # A source that was killed at its very end has no outcome; the target's is decisive.
    return clone.wait("target"), done


def test_a_disk_file(tmp_path, certificates):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    source = write_disk(tmp_path / "source.img", seed)
    before = digest(source)
    total, resumed = 0, []
    for number in range(6):
        if total >= 12 and any(resumed):
            break
        place = tmp_path / f"{number}"
        place.mkdir()
        clone = Clone(place / "pods", certificates, source, place / "disk.img", policy=Policy(bandwidth=30 * MIB))
        try:
            target, done = kill_and_restart(clone, kills=6, rng=rng)
            assert target.failure is None, clone.log("target")
            total += sum(done.values())
            resumed.append(target.resumed_at)
            assert digest(place / "disk.img") == before == target.digest
            assert sorted(os.listdir(place)) == ["disk.img", "pods"]
            assert not os.path.exists(clone.target.journal)
            subprocess.run(
                ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", source, place / "disk.img"], check=True
            )
        finally:
            clone.close()
    print(f"{total} kills, resumed at {resumed}")
    assert digest(source) == before
    # Without resuming, no attempt could have finished between two kills.
    assert any(resumed)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_from_device_to_device(tmp_path, certificates):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with loop(tmp_path / "one", SIZE, 512) as one, loop(tmp_path / "other", SIZE + 8 * MIB, 4096) as other:
        source = write_disk(tmp_path / "source.img", seed)
        subprocess.run(["dd", f"if={source}", f"of={one}", "bs=4M", "oflag=direct", "status=none"], check=True)
        subprocess.run(f"yes garbage | dd of={other} bs=1M iflag=fullblock status=none", shell=True)
        before = digest(one)
        clone = Clone(
            tmp_path / "pods", certificates, one, BlockTargetSpec(path=other), policy=Policy(bandwidth=30 * MIB)
        )
        try:
            target, done = kill_and_restart(clone, kills=8, rng=rng)
            assert target.failure is None, clone.log("target")
            print(f"{done} kills, resumed at {target.resumed_at}")
            assert target.digest == before == digest(one)
            assert target.disk_size == SIZE + 8 * MIB
            with open(one, "rb") as a, open(other, "rb") as b:
                for _ in range(SIZE // MIB):
                    assert a.read(MIB) == b.read(MIB)
                assert b.read() == bytes(8 * MIB)
        finally:
            clone.close()


def test_a_journal_is_true_of_the_volume_at_every_kill(tmp_path, certificates):
    source = write_disk(tmp_path / "source.img", 1)
    clone = Clone(tmp_path / "pods", certificates, source, tmp_path / "disk.img", policy=Policy(bandwidth=30 * MIB))
    try:
        clone.start("target").start("source")
        seen, until = 0, time.monotonic() + 90
        while time.monotonic() < until:
            time.sleep(0.25)
            journal = Journal.load(clone.target.journal)
            if journal is None or not journal.watermark:
                continue
            clone.kill("target")
            journal = Journal.load(clone.target.journal)
            with open(source, "rb") as a, open(tmp_path / ".disk.img.partial", "rb") as b:
                assert a.read(journal.watermark) == b.read(journal.watermark)
            seen += 1
            clone.start("target")
            if seen == 3:
                break
        assert seen == 3
        assert clone.wait("target").failure is None
    finally:
        clone.close()
