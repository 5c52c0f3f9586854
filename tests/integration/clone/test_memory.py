"""Memory use of both ends is independent of the size of the disk."""

import contextlib
import os
import time

from cdi.api.job import Policy
from tests.integration.clone.peers import Clone

MIB = 1 << 20


def test_both_ends_keep_to_their_part(tmp_path, certificates):
    with open(tmp_path / "source.img", "wb") as file:
        for _ in range(150):
            file.write(os.urandom(MIB // 2))
            file.write(b"a line of text\n" * (MIB // 30))
    # An ineffective limit, so that everything is compressed.
    policy = Policy(bandwidth=10_000 * MIB)
    clone = Clone(tmp_path / "pods", certificates, tmp_path / "source.img", tmp_path / "disk.img", policy=policy)
    most = {}
    try:
        clone.start("target").start("source")
        while clone.running("target"):
            for end, process in clone.processes.items():
                with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as status:
                    for line in status:
                        if line.startswith("VmHWM"):
                            most[end] = max(most.get(end, 0), int(line.split()[1]) << 10)
            time.sleep(0.02)
        target, source = clone.wait("target"), clone.wait("source")
        assert target.failure is None
        assert source.written < 100 * MIB
    finally:
        clone.close()
    print({end: f"{size / MIB:.0f} MiB" for end, size in most.items()})
    assert len(most) == 2
    assert all(0 < size < 192 * MIB for size in most.values())
