"""Tests of every format and compression from a file onto every kind of volume, compared with qemu-img's output."""

import pytest

from cdi.api.job import FileSourceSpec
from tests.integration.transfer.paths import CELLS, path_of


@pytest.mark.parametrize(("name", "wrapper", "volume"), CELLS)
def test_from_a_file(name, wrapper, volume, images, volumes, importing):
    image = images.get(name, wrapper)
    outcome = importing(FileSourceSpec(path=str(image.path)), volumes(volume), image)
    assert outcome.path == path_of(image, ranges=True, local=True)
    assert outcome.wrappers == image.wrappers
