"""Tests that the URLs and CA bundles are written to our webhook configurations, and to no others."""

import base64

from cdi.server.ca_injection import publish
from cdi.server.hooks import HOOKS, Installation
from cdi.server.informers import _clients

INSTALLATION = Installation(namespace="cdi")
BUNDLE = base64.b64encode(b"PEM").decode()


class Api:
    def __init__(self):
        self.patches = []

    async def patch(self, resource, namespace, name, patch, *, kind):
        self.patches.append((name, patch))


class Seen:
    def __init__(self, **clients):
        self.clients = clients

    def webhooks(self, kind, name):
        client = self.clients.get(name.removeprefix("cdi-api-").replace("-", "_"))
        if client is None:
            return None
        return _clients(
            {
                "metadata": {"name": name, "resourceVersion": "7", "labels": {"large": "one"}},
                "webhooks": [{"name": "w", "clientConfig": client, "rules": []}],
            }
        )


def service(**more):
    return {"service": {"namespace": "cdi", "name": "cdi-api", "port": 443} | more}


async def published(**clients):
    api = Api()
    await publish(api, INSTALLATION, Seen(**clients), "PEM", "word")
    return api.patches


async def test_what_is_new_is_told_both_at_once():
    ((name, patch),) = await published(datavolume_mutate=service())
    assert name == "cdi-api-datavolume-mutate"
    assert patch == [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": BUNDLE},
        {"op": "add", "path": "/webhooks/0/clientConfig/service/path", "value": "/word/datavolume-mutate"},
    ]


async def test_what_knows_both_is_left_alone():
    known = service(path="/word/datavolume-mutate") | {"caBundle": BUNDLE}
    assert await published(datavolume_mutate=known) == []
    at_url = {"url": "https://host:8443/word/datavolume-mutate", "caBundle": BUNDLE}
    assert await published(datavolume_mutate=at_url) == []


async def test_a_server_outside_of_the_cluster_is_led_to_as_well():
    ((_, patch),) = await published(datavolume_mutate={"url": "https://[::1]:8443/old/x", "caBundle": BUNDLE})
    assert patch[1:] == [
        {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": "https://[::1]:8443/word/datavolume-mutate"}
    ]


async def test_another_service_is_told_nothing():
    assert await published(datavolume_mutate=service(namespace="other")) == []
    assert await published(datavolume_mutate=service(name="other")) == []


async def test_each_webhook_has_a_path_of_its_own():
    patches = await published(
        **{hook.name.replace("-", "_"): service() for hook in HOOKS if hook.name != "cdi-validate"}
    )
    paths = {patch[2]["value"] for _, patch in patches}
    assert paths == {f"/word/{hook.name}" for hook in HOOKS if hook.name != "cdi-validate"}
