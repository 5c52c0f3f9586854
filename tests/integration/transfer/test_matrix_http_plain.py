"""Tests of every format and compression from a web server without byte ranges onto every kind of volume."""

import pytest

from cdi.api.job import HttpSourceSpec
from tests.integration.transfer.paths import CELLS, path_of


@pytest.mark.parametrize(("name", "wrapper", "volume"), CELLS)
def test_without_ranges(name, wrapper, volume, images, volumes, importing, nginx):
    image = images.get(name, wrapper)
    url = nginx.url(image.serve(nginx.root), "plain")
    outcome = importing(HttpSourceSpec(url=url), volumes(volume), image)
    assert outcome.path == path_of(image, ranges=False)
    assert outcome.wrappers == image.wrappers
    assert "length" in outcome.verified_by
    assert outcome.fetched == image.path.stat().st_size
