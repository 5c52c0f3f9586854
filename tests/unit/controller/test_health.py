"""Tests of probes and scrapes."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from cdi.api.errors import UsageError
from cdi.controller.health import serve_health


async def test_probes_say_what_is_the_matter_and_metrics_are_scraped() -> None:
    trouble = {"ready": "pods are not listed yet", "alive": ""}
    registry = CollectorRegistry()
    Gauge("cdi_test", "A test.", registry=registry).set(3)
    async with (
        serve_health(0, ready=lambda: trouble["ready"], alive=lambda: trouble["alive"], registry=registry) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):

        async def asked(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        assert await asked("/healthz") == (200, "ok\n")
        assert await asked("/readyz") == (503, "pods are not listed yet\n")
        trouble["ready"] = ""
        assert await asked("/readyz") == (200, "ok\n")
        status, text = await asked("/metrics")
        assert status == 200
        assert "cdi_test 3.0" in text
        assert (await asked("/else"))[0] == 404


async def test_a_port_that_is_taken_is_a_usage_error() -> None:
    registry = CollectorRegistry()
    nothing = dict(ready=lambda: "", alive=lambda: "", registry=registry)
    async with serve_health(0, **nothing) as port:
        with pytest.raises(UsageError, match=str(port)):
            async with serve_health(port, **nothing):
                pass


async def test_metrics_that_need_a_token_are_not_served_beside_the_probes() -> None:
    async with (
        serve_health(0, ready=lambda: "", alive=lambda: "", registry=None) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 404)):
            async with session.get(path) as answer:
                assert answer.status == status
