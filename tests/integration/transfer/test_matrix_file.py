"""Every format in every wrapper from a file onto every kind of volume, compared with what qemu-img makes of it."""

import pytest

from cdi.api.job import FileSourceSpec
from tests.integration.fixtures_images import KINDS, VOLUMES, WRAPPERS
from tests.integration.transfer.paths import path_of


@pytest.mark.parametrize("volume_kind", VOLUMES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", KINDS)
def test_from_a_file(name, wrapper, volume_kind, images, volumes, importing):
    image = images.get(name, wrapper)
    outcome = importing(FileSourceSpec(path=str(image.path)), volumes(volume_kind), image)
    assert outcome.path == path_of(image, ranges=True)
