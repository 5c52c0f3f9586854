"""Tests of every format and compression from a web server with byte ranges onto every kind of volume."""

import pytest

from cdi.api.job import HttpSourceSpec
from tests.integration.transfer.paths import CELLS, path_of


@pytest.mark.parametrize(("name", "wrapper", "volume"), CELLS)
def test_with_ranges(name, wrapper, volume, images, volumes, importing, nginx):
    image = images.get(name, wrapper)
    url = nginx.url(image.serve(nginx.root))
    outcome = importing(HttpSourceSpec(url=url), volumes(volume), image)
    assert outcome.path == path_of(image, ranges=True)
    assert outcome.wrappers == image.wrappers
    assert "length" in outcome.verified_by
    size = image.path.stat().st_size
    # The beginning is read twice. Files with tiny clusters are read completely: their tables are too close to one
    # another to be read alone.
    assert outcome.fetched <= (2 * size if "512" in name else size * 5 // 4) + (1 << 20)
