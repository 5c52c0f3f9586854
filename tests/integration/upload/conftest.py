import pytest

from tests.integration.upload.installation import Authorities, Stand


@pytest.fixture(scope="session")
def authorities(tmp_path_factory):
    return Authorities(tmp_path_factory.mktemp("authorities"))


@pytest.fixture(scope="session")
def _shared(authorities, tmp_path_factory):
    home = tmp_path_factory.mktemp("proxy")
    made = Stand(authorities, home, home)
    try:
        made.start_proxy()
        yield made
    finally:
        made.stop_proxy()


@pytest.fixture
def installation(_shared, tmp_path):
    """Provide a running proxy, and no upload server yet."""
    _shared.base = tmp_path
    yield _shared
    _shared.stop_servers()


@pytest.fixture
def lone(authorities, tmp_path):
    """Provide a running proxy of the test's own, which may be stopped."""
    made = Stand(authorities, tmp_path, tmp_path)
    try:
        made.start_proxy()
        yield made
    finally:
        made.stop_servers()
        made.stop_proxy()
