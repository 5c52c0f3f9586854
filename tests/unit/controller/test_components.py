"""Tests of the detection of missing components."""

from __future__ import annotations

import pytest

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.controller.components import CHECK_INTERVAL, Component, ComponentHealth

SERVER = Component(kind="deployment", name="cdi-apiserver")
HOOK = Component(kind="validatingwebhookconfiguration", name="cdi-api-dv")


class Client:
    def __init__(self, **found) -> None:
        self.found = found

    async def get(self, resource, namespace, name):
        assert namespace == ("cdi" if resource.namespaced else None)
        answer = self.found.get(resource.plural)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            raise NotFound(name)
        return answer


def hooks(*bundles: str):
    return {"webhooks": [{"clientConfig": {"caBundle": bundle} if bundle else {}} for bundle in bundles]}


@pytest.mark.parametrize(
    ("deployments", "webhooks", "missing"),
    [
        ({"status": {"availableReplicas": 1}}, hooks("a", "b"), ()),
        ({"status": {"availableReplicas": 0}}, hooks("a"), ("Deployment cdi-apiserver has no pod that is ready",)),
        ({}, hooks("a"), ("Deployment cdi-apiserver has no pod that is ready",)),
        (None, hooks("a"), ("Deployment cdi-apiserver does not exist",)),
        (
            {"status": {"availableReplicas": 1}},
            hooks("a", ""),
            ("ValidatingWebhookConfiguration cdi-api-dv has no CA bundle yet",),
        ),
        (
            {"status": {"availableReplicas": 1}},
            None,
            ("ValidatingWebhookConfiguration cdi-api-dv does not exist",),
        ),
        (ClusterForbidden("no"), ClusterForbidden("no"), ()),
    ],
)
async def test_what_is_away_is_named(deployments, webhooks, missing) -> None:
    client = Client(deployments=deployments, validatingwebhookconfigurations=webhooks)
    components = ComponentHealth(client, "cdi", "1", (SERVER, HOOK))  # type: ignore[arg-type]
    installed = await components.check()
    assert (installed.version, installed.missing) == ("1", missing)
    assert components.pause == CHECK_INTERVAL


async def test_an_installation_of_the_controller_alone_lacks_nothing() -> None:
    components = ComponentHealth(None, "cdi", "1", ())  # type: ignore[arg-type]
    assert (await components.check()).missing == ()
    assert components.pause is None
