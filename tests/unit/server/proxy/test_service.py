import http.client
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cdi.api.errors import AlreadyUploaded, TokenInvalid
from cdi.server.proxy.metrics import Metrics
from cdi.server.proxy.service import ALWAYS, MOST_OF_A_VOLUME, Proxy
from cdi.source.inbound.plain import PlainContext
from cdi.source.inbound.reception import Reception


@dataclass
class Right:
    namespace: str
    name: str


def verify(text):
    namespace, _, name = text.partition("~")
    if not name:
        raise TokenInvalid("no")
    return Right(namespace, name)


class Volumes:
    """Where ``slow`` is not known before it is told; all others are filled."""

    def __init__(self):
        self.release = threading.Event()
        self.waiting = threading.Semaphore(0)

    def look(self, namespace, name):
        if name == "slow":
            self.waiting.release()
            assert self.release.wait(60)
        raise AlreadyUploaded("the volume has been filled")


@pytest.fixture
def volumes():
    return Volumes()


@pytest.fixture
def metrics():
    return Metrics()


@contextmanager
def served(volumes, metrics, most):
    proxy = Proxy(volumes, verify, lambda: None, metrics=metrics)
    reception = Reception(
        socket.create_server(("127.0.0.1", 0)), PlainContext, proxy.serve, most=most, always=ALWAYS, ended=metrics.ended
    )

    def ask(token=None, path="/v1beta1/upload", method="POST"):
        connection = http.client.HTTPConnection("127.0.0.1", reception.port, timeout=60)
        fields = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {})}
        connection.request(method, path, b"x" if method == "POST" else None, fields)
        with connection.getresponse() as answer:
            body = answer.read().decode()
        connection.close()
        return answer.status, body.partition("[")[2].partition("]")[0]

    try:
        yield ask
    finally:
        volumes.release.set()
        reception.close(60.0)


def counted(metrics, path, code):
    return metrics.registry.get_sample_value("cdi_uploadproxy_requests_total", {"path": path, "code": code})


def test_one_volume_does_not_take_all_the_turns(volumes, metrics):
    with served(volumes, metrics, most=100) as ask, ThreadPoolExecutor(MOST_OF_A_VOLUME) as pool:
        held = [pool.submit(ask, "ns~slow") for _ in range(MOST_OF_A_VOLUME)]
        for _ in held:
            assert volumes.waiting.acquire(timeout=60)
        assert ask("ns~slow") == (503, "UploadUnderWay")
        assert ask("ns~other") == (409, "AlreadyUploaded")
        assert ask("other~slower") == (409, "AlreadyUploaded")
        volumes.release.set()
        assert {one.result() for one in held} == {(409, "AlreadyUploaded")}
        # And it has them again.
        assert ask("ns~slow") == (409, "AlreadyUploaded")


def test_its_health_is_told_where_there_is_no_turn(volumes, metrics):
    with served(volumes, metrics, most=2) as ask, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, "ns~slow") for _ in range(2)]
        for _ in held:
            assert volumes.waiting.acquire(timeout=60)
        assert ask("ns~other") == (503, "UploadMalformed")
        assert ask(path="/healthz", method="GET")[0] == 200
        volumes.release.set()
        assert {one.result()[0] for one in held} == {409}


def test_requests_are_counted_by_path_and_code(volumes, metrics):
    with served(volumes, metrics, most=10) as ask:
        ask("ns~vm")
        ask("bad", path="/v1beta1/tus/ns/vm")
        ask(path="/healthz", method="GET")
        for number in range(5):
            ask(path=f"/v1beta1/upload/{number}")
        ask(path="/page/x")
        ask(path="/" + "x" * 20_000)
    assert counted(metrics, "/v1beta1/upload", "409") == 1
    assert counted(metrics, "/v1beta1/tus", "401") == 1
    assert counted(metrics, "/healthz", "200") == 1
    assert counted(metrics, "page", "404") == 1
    assert counted(metrics, "other", "404") == 5
    assert counted(metrics, "other", "431") == 1


def test_one_that_was_lost_is_counted_too(volumes, metrics):
    lost = threading.Event()

    def serve(visit):
        assert lost.wait(60)
        visit.body.readinto(memoryview(bytearray(1)))
        return False

    def ended(visit):
        metrics.ended(visit)
        done.set()

    done = threading.Event()
    reception = Reception(socket.create_server(("127.0.0.1", 0)), PlainContext, serve, most=1, ended=ended)
    with socket.create_connection(("127.0.0.1", reception.port)) as client:
        client.sendall(b"POST /v1beta1/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
    lost.set()
    assert done.wait(60)
    reception.close()
    assert counted(metrics, "/v1beta1/upload", "lost") == 1
