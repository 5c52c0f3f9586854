"""Registration of the plugins that tests of several packages share, and settings for all tests."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

# The duration of an example depends on the machine's load.
settings.register_profile("cdi", deadline=None)
settings.load_profile("cdi")

pytest_plugins = [
    "tests.tally",
    "tests.integration.fixtures_http",
    "tests.faults.plugin",
    "tests.integration.fixtures_registry",
    "tests.integration.fixtures_cosign",
    "tests.integration.fixtures_s3",
    "tests.integration.fixtures_gcs",
    "tests.integration.fixtures_images",
    "tests.integration.transfer.ways",
]


def pytest_make_parametrize_id(val, argname):
    """Name bytes parameters by their argument: their content may differ between the processes that share the tests."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Start the files that take minutes first, so that the whole run ends sooner."""
    items.sort(key=lambda item: not item.path.name.startswith("test_kill"))
