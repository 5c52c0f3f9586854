"""Fixtures of the cluster tests: the cluster is started before the first test and removed after the last.

With CDI_TEST_KUBECONFIG the tests run on the cluster that it names. A cluster that was already running is kept, and so
is one that these tests started with --keep. The tests are collected only on request: `pytest tests/cluster`, not
`pytest`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it has no py.typed

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cluster import cluster as clusters
from tests.cluster import lifecycle, on_request
from tests.cluster.cdi import definitions
from tests.cluster.cdi_image import provide
from tests.cluster.client_environment import Clients, build
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import ClusterError, Layout

if TYPE_CHECKING:
    from tests.cluster.upload_release import Uploads, Virtctl

_HERE = Path(__file__).parent
_OURS = pytest.StashKey[bool]()
_TIMEOUT = 900  # seconds for one test, including its fixtures
_LONG = (
    "test_upload",
    "test_guest",
    "test_clone_kills",
    "test_apiserver",
    "test_controller_process",
    "test_worker_pod",
)
"""Files that take minutes, or whose tests wait for each other; they start first because they end last."""


_TURNS = (
    "test_upload_api",
    "test_upload_clients",
    "test_upload_forms",
    "test_upload_kills",
    "test_upload_programs",
    "test_upload_replaced",
    "test_upload_rotation",
    "test_upload_virtctl",
)
"""Files whose tests take turns at the API of upload tokens; on several workers they would only wait for each other.

One worker has them all. It starts with them, because no other sequence of tests is as long.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep", action="store_true", help="leave the test cluster up")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: changes what every test of the cluster sees; nothing else may run beside it"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if on_request.is_requested(config, _HERE) else True


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]  # its base is untyped
    """Distribution by file, with the files of `_TURNS` as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "uploads" if Path(file).stem in _TURNS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling | None:
    return _Scheduling(config, log) if on_request.is_requested(config, _HERE) else None


def pytest_sessionstart(session: pytest.Session) -> None:
    def up(layout: Layout, say: lifecycle.Say) -> bool:
        up_before = lifecycle.running(layout)
        if up_before and layout.kubevirt.exists():
            raise ClusterError(
                "the cluster that is up serves KubeVirt, and this project's chart all namespaces; scripts/cluster down"
            )
        started = lifecycle.up(layout, say)
        session.config.stash[_OURS] = not up_before
        return started

    on_request.bring_up(session, _HERE, "cluster", up)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash.get(_OURS, False) and not session.config.getoption("--keep"):
        lifecycle.down(Layout.default())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if _HERE in item.path.parents]
    # Pods take seconds to start, and more on a busy machine.
    for item in ours:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT))
    if len(ours) == len(items):
        items.sort(key=lambda item: (item.path.stem not in _TURNS, not item.path.stem.startswith(_LONG)))


@pytest.fixture(scope="session")
def cluster() -> clusters.Cluster:
    """Return the cluster to test on, with our definitions installed."""
    named = os.environ.get("CDI_TEST_KUBECONFIG")
    cluster = clusters.named(Path(named)) if named else clusters.own(Layout.default())
    definitions(cluster)
    return cluster


@pytest.fixture(scope="session")
def cdi_image(cluster: clusters.Cluster) -> str:
    """Return the name of the project's own image, available to the cluster."""
    return provide(cluster)


@pytest.fixture(scope="module")
def clients(cluster: clusters.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Clients:
    """Return the environment with the clients, which is installed at the first use, with a home directory of its own."""
    return Clients(python=build(Layout.default()), kubectl=cluster.kubectl, home=tmp_path_factory.mktemp("clients"))


@pytest.fixture()
def namespace(cluster: clusters.Cluster) -> Iterator[Kubectl]:
    """Yield kubectl in a namespace of the test's own."""
    with cluster.namespace() as kubectl:
        yield kubectl


@pytest.fixture(scope="module")
def uploads(cluster: clusters.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    """Yield the chart, installed for a namespace of its own, with clients that upload."""
    from tests.cluster.upload_release import installed

    with installed(cluster, tmp_path_factory.mktemp("uploads")) as made:
        yield made


@pytest.fixture(scope="module")
def virtctl(uploads: Uploads) -> Virtctl:
    """Return the program ``virtctl``, which uploads into that namespace."""
    from tests.cluster.upload_release import Virtctl

    return Virtctl(uploads)
