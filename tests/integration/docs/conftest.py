"""A shell for a test's blocks that leaves no process behind, and the images that the guides name."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doc_blocks import DocShell, shell
from tests.integration.local_backend import end_embedded

MIB = 1 << 20
DISK = random.Random(11).randbytes(2 * MIB) + bytes(6 * MIB)


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a compressed qcow2 image of `DISK`."""
    directory = tmp_path_factory.mktemp("guest")
    (directory / "guest.raw").write_bytes(DISK)
    convert = ["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "guest.raw", "guest.qcow2"]
    subprocess.run(convert, cwd=directory, check=True)
    return (directory / "guest.qcow2").read_bytes()


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., DocShell]]:
    """Return a function that makes the shell for the blocks of the requesting test."""
    made = []

    def make(**more: object) -> DocShell:
        made.append(shell(request.node.nodeid, tmp_path, **more))
        return made[-1]

    yield make
    for one in made:
        end_embedded(Path(one.environment.get("CDI_HOME", tmp_path / "user/.local/share/cdi")))

