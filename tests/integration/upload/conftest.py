import pytest

from tests.integration.upload.stand import Authorities, Stand


@pytest.fixture(scope="session")
def authorities(tmp_path_factory):
    return Authorities(tmp_path_factory.mktemp("authorities"))


@pytest.fixture
def stand(authorities, tmp_path):
    """A proxy that runs, and no server yet."""
    made = Stand(authorities, tmp_path)
    try:
        made.start_proxy()
        yield made
    finally:
        made.close()
