"""Fixtures that tests of several packages share live in modules of their own; this registers them."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

# How long an example takes says how busy the machine is.
settings.register_profile("cdi", deadline=None)
settings.load_profile("cdi")

pytest_plugins = [
    "tests.tally",
    "tests.integration.fixtures_http",
    "tests.faults.plugin",
    "tests.integration.fixtures_registry",
    "tests.integration.fixtures_s3",
    "tests.integration.fixtures_gcs",
    "tests.integration.fixtures_images",
    "tests.integration.transfer.ways",
]


def pytest_make_parametrize_id(val, argname):
    """Bytes have no place in a test's name: some hold the time, and processes that share the tests must agree on them."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Files that take minutes begin first: what begins last ends last."""
    items.sort(key=lambda item: not item.path.name.startswith("test_kill"))
