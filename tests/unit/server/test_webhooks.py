"""Tests of the HTTP side of the webhooks: every request gets a response, and none blocks another."""

import asyncio
import io
import json

import pytest
from aiohttp import ClientSession, web

from cdi.api.errors import ClusterUnavailable
from cdi.reconcile.types import StorageDefaults
from cdi.server import webhooks
from cdi.server.hooks import HOOKS
from cdi.server.review import MAX_BODY
from cdi.server.webhooks import Metrics, Webhooks
from tests.unit.api.manifests import dv, sound
from tests.unit.server.reviews import body, review

JSON = {"Content-Type": "application/json"}
WORD = "w" * 64
DV = f"/{WORD}/datavolume-validate"


class World:
    """Other objects; `gate` blocks lookups of claims, `failure` makes them fail."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.looking = asyncio.Event()
        self.failure = None

    async def claim(self, namespace, name):
        self.looking.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def has_data_volumes(self):
        return False

    def adopts_claims(self):
        return False

    def renders_claims(self):
        return True

    async def storage_defaults(self, storage_class, *, archive):
        return StorageDefaults(storage_class=None)


class Serving:
    def __init__(self, session, url, context, metrics):
        self.session, self.url, self.context, self.metrics = session, url, context, metrics
        self.trouble = ""

    async def post(self, data, path=DV, headers=JSON):
        sent = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.session.post(self.url + path, data=sent, headers=headers) as answer:
            return answer.status, await answer.text()

    async def ask(self, data, path=DV):
        status, text = await self.post(data, path)
        assert status == 200
        return json.loads(text)["response"]

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
async def server():
    context, metrics = World(), Metrics()
    made = Webhooks(context, context, context, metrics, WORD.__eq__)
    async with ClientSession() as session:
        serving = Serving(session, "", context, metrics)
        runner = web.AppRunner(made.application(ready=lambda: serving.trouble), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        serving.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield serving
        finally:
            context.gate.set()
            await runner.cleanup()


async def test_a_sound_object_is_allowed(server):
    response = await server.ask(body(dv()))
    assert response == {"uid": "u-1", "allowed": True}
    labels = {"webhook": "datavolume-validate", "operation": "CREATE", "verdict": "allowed"}
    assert server.count("kubevirt_cdi_admission_requests_total", **labels) == 1


async def test_a_wrong_object_is_refused_with_all_its_problems(server):
    response = await server.ask(body(dv({"http": {"url": "ftp://h"}}, storage={})))
    assert response["status"]["code"] == 422
    assert [each["field"] for each in response["status"]["details"]["causes"]] == [
        "spec.storage.resources.requests.storage", "spec.source.http.url",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (body(dv()), {"Content-Type": "text/plain"}, 415),
        (body(dv()), {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"", JSON, 400),
        (b"{" * 1_000_000, JSON, 400),
        (b'{"a":' * 300_000, JSON, 400),
        (b"x" * (MAX_BODY + 1), JSON, 413),
        (b'{"apiVersion": "admission.k8s.io/v1"}', JSON, 400),
        (body(sound("CDI")), JSON, 400),
    ],
    ids=["no JSON", "a form", "empty", "braces", "deep", "oversized", "no review", "of another webhook"],
)
async def test_what_is_no_question_is_refused_before_it_is_looked_at(server, data, headers, status):
    got, text = await server.post(data, headers=headers)
    assert got == status
    assert "Traceback" not in text
    assert len(text) < 500
    assert (
        server.count("kubevirt_cdi_admission_malformed_total", webhook="datavolume-validate", status=str(status)) == 1
    )


async def test_a_stream_that_does_not_end_is_refused_where_it_is_too_much(server):
    async def endless():
        for _ in range(MAX_BODY // (1 << 16) + 2):
            yield b" " * (1 << 16)

    status, _ = await server.post(endless())
    assert status == 413


def much(**metadata):
    return dv() | {"metadata": {"name": "thing", "namespace": "default"} | metadata}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (much(annotations={"a": "x" * (1 << 20)}), "annotations are"),
        (much(name="a" * 254), "Name cannot be longer than 253 characters"),
        (much(name="\x00\n"), "not a DNS subdomain"),
        (much(labels={f"k{index}": "!" for index in range(5000)}), "not a valid label value"),
        (dv() | {"spec": {"source": {"http": {"url": "http://h/x", "extraHeaders": ["x"] * 50_000}}}}, "header line"),
        (dv() | {"spec": [[[[]]]]}, "Invalid value"),
        (dv() | {"spec": {str(index): {} for index in range(60_000)} | {"storage": {}}}, "size is missing"),
        (dv() | {"metadata": []}, "Invalid value"),
        (dv() | {"kind": "Pod"}, "not known"),
        (dv() | {"apiVersion": 7}, "apiVersion"),
        ({key: value for key, value in dv().items() if key != "kind"}, "kind"),
    ],
    ids=range(11),
)  # fmt: skip
async def test_a_hostile_object_is_refused_like_any_other(server, document, words):
    response = await server.ask(body(dv(), object=document, name="thing"))
    assert response["allowed"] is False
    assert 400 <= response["status"]["code"] < 500
    assert words in response["status"]["message"]
    assert len(json.dumps(response)) < 64_000


async def test_a_deep_object_is_refused_like_any_other(server):
    deep = {}
    for _ in range(100):
        deep = {"a": deep}
    response = await server.ask(body(dv(), object=dv() | {"spec": deep}))
    assert "nested" in response["status"]["message"]


async def test_what_is_nested_too_deep_for_the_parser_is_no_question(server):
    deep = json.loads("[" * 500 + "]" * 500)
    status, text = await server.post(json.dumps(review(dv()) | {"x": deep}).encode())
    assert status == 400
    assert "nested more than" in text


async def test_nobody_waits_for_another(server):
    server.context.gate.clear()
    slow = asyncio.create_task(server.ask(body(dv())))
    await server.context.looking.wait()
    assert (await server.ask(body(dv({"blank": {}}), operation="UPDATE", old=dv({"blank": {}}))))["allowed"]
    assert not slow.done()
    server.context.gate.set()
    assert (await slow)["allowed"]


async def test_who_sends_nothing_holds_nobody_and_is_sent_away(server, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.05)
    sent = asyncio.Event()

    async def stalling():
        yield b'{"'
        sent.set()
        await asyncio.Event().wait()

    idle = asyncio.create_task(server.post(stalling()))
    await sent.wait()
    assert (await server.ask(body(dv())))["allowed"]
    assert (await idle)[0] == 408


async def test_too_much_at_once_is_sent_away(server, monkeypatch):
    monkeypatch.setattr(webhooks, "MAX_PENDING", 4 << 10)
    status, text = await server.post(body(much(annotations={"a": "x" * 8192})))
    assert (status, text) == (503, "too many requests; try again\n")
    assert (await server.ask(body(dv())))["allowed"]


async def test_a_cluster_that_does_not_answer_is_no_permission(server):
    server.context.failure = ClusterUnavailable("the API server is busy")
    response = await server.ask(body(dv()))
    assert (response["allowed"], response["status"]["code"]) == (False, 503)
    assert "the API server is busy" in response["status"]["message"]


async def test_a_defect_is_no_permission_and_tells_nothing_of_itself(server, caplog):
    server.context.failure = RuntimeError("secret thing")
    response = await server.ask(body(dv()))
    assert (response["allowed"], response["status"]["code"]) == (False, 500)
    assert "secret thing" not in json.dumps(response)
    assert "secret thing" in caplog.text


async def test_health_and_metrics(server):
    async def get(path):
        async with server.session.get(server.url + path) as answer:
            return answer.status, await answer.text()

    assert await get("/healthz") == (200, "OK")
    assert await get("/readyz") == (200, "OK")
    server.trouble = "it is ending"
    assert await get("/readyz") == (503, "it is ending\n")
    assert (await get("/healthz"))[0] == 200
    await server.ask(body(dv()))
    status, text = await get("/metrics")
    assert status == 200
    assert (
        'kubevirt_cdi_admission_requests_total{operation="CREATE",verdict="allowed",webhook="datavolume-validate"} 1.0'
        in text
    )
    assert (await get(DV))[0] == 405
    assert (await get("/elsewhere"))[0] == 404


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
async def test_who_was_not_told_the_path_finds_nothing(server, hook):
    """This holds for every request, before a byte of its body is read."""
    for path in (
        hook.path,
        f"/{hook.path}",
        f"/{'v' * 64}{hook.path}",
        f"/{WORD}x{hook.path}",
        f"/{WORD}/x{hook.path}",
    ):
        assert (await server.post(body(dv()), path))[0] == 404
        assert (await server.post(b"no review", path, {}))[0] == 404
    # Only the third and fourth path lead to a webhook at all.
    assert server.count("kubevirt_cdi_admission_malformed_total", webhook=hook.name, status="404") == 4


async def test_the_path_is_not_told_to_logs_and_metrics(server, caplog):
    caplog.set_level("DEBUG")
    await server.ask(body(dv()))
    await server.post(b"no review")
    async with server.session.get(f"{server.url}/metrics") as answer:
        assert WORD not in await answer.text()
    assert caplog.records
    assert not any(WORD in str(vars(record)) for record in caplog.records)
