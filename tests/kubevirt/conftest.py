"""Fixtures of the tests with KubeVirt: the test cluster with KubeVirt and this project's chart, installed for all namespaces.

The cluster is brought up before the first test and left up; `scripts/test kubevirt` removes it. The tests are collected
only on request: `pytest tests/kubevirt`, not `pytest`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cluster import cluster as clusters
from tests.cluster import on_request, upload_api
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import Layout
from tests.kubevirt import install
from tests.kubevirt.guest import golden, guest  # noqa: F401  fixtures

_HERE = Path(__file__).parent
_ROOT = Path(__file__).parents[2]
_TIMEOUT = 1200  # seconds for one test: a guest needs minutes to boot without hardware acceleration
_NAMESPACE_TIMEOUT = 300.0  # seconds until the pods of the machines of a test are deleted


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: part of scripts/test all; these take five minutes together at most")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:  # noqa: ARG001
    return None if on_request.is_requested(config, _HERE) else True


def pytest_sessionstart(session: pytest.Session) -> None:
    on_request.bring_up(session, _HERE, "kubevirt", install.up)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT))


@pytest.fixture(scope="session")
def kubevirt() -> Iterator[Cluster]:
    """Yield the cluster with KubeVirt and this project's chart; tests of tests/cluster that upload wait meanwhile."""
    named = os.environ.get("CDI_TEST_KUBECONFIG")
    if named:
        cluster = clusters.named(Path(named))
        if not install.is_installed(cluster.kubectl):
            pytest.skip("the cluster that CDI_TEST_KUBECONFIG names has no deployed KubeVirt")
        yield cluster
        return
    with upload_api.turn():
        yield clusters.own(Layout.default())


@pytest.fixture()
def namespace(kubevirt: Cluster) -> Iterator[Kubectl]:
    """Yield kubectl in a namespace of the test's own, and wait until its machines are deleted: two cores serve them all."""
    with kubevirt.namespace("machines") as kubectl:
        yield kubectl
    kubectl.wait_gone("namespace", kubectl.namespace, _NAMESPACE_TIMEOUT)


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the Debian guest that scripts/guest-image builds: 2 GiB, a login on the serial console."""
    image = tmp_path_factory.mktemp("guest") / "guest.qcow2"
    subprocess.run([sys.executable, _ROOT / "scripts/guest-image", image], check=True)
    return image
