import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cdi.api.errors import ClusterForbidden, ClusterUnauthorized, ClusterUnavailable, TokenInvalid, UploadUnderWay
from cdi.http.server.listener import HttpListener
from cdi.http.server.plaintext import PlaintextContext
from cdi.http.server.turn import in_turns
from cdi.server.page.service import Page
from cdi.server.proxy.forward import WaitLimits
from cdi.server.proxy.metrics import Metrics
from cdi.server.proxy.service import MAX_PER_VOLUME, Proxy
from cdi.server.proxy.volumes import Filled, Pending

UPLOAD = f"{'0' * 32}-1000"


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
    """Volumes that are filled, except those in `states`; a lookup of ``slow`` blocks until released."""

    def __init__(self):
        self.release = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.states = {}

    def look(self, namespace, name):
        if name == "slow":
            self.waiting.release()
            assert self.release.wait(60)
        state = self.states.get(name, Filled(upload=UPLOAD))
        if isinstance(state, Exception):
            raise state
        return state


@pytest.fixture
def volumes():
    return Volumes()


@pytest.fixture
def metrics():
    return Metrics()


@contextmanager
def served(volumes, metrics, most, **limits):
    proxy = Proxy(volumes, verify, lambda: None, metrics=metrics, **limits)
    reception = HttpListener(
        socket.create_server(("127.0.0.1", 0)), PlaintextContext, proxy.begin, most=most, ended=metrics.ended
    )

    def ask(token=None, path="/v1beta1/upload", method="POST", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", reception.port, timeout=60)
        fields = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        connection.request(method, path, b"x" if method == "POST" else None, fields)
        with connection.getresponse() as answer:
            body = answer.read().decode()
        connection.close()
        ask.headers, ask.body = answer.headers, body
        return answer.status, body.partition("[")[2].partition("]")[0]

    try:
        yield ask
    finally:
        volumes.release.set()
        reception.close(60.0)


def counted(metrics, path, code):
    return metrics.registry.get_sample_value("cdi_uploadproxy_requests_total", {"path": path, "code": code})


def test_one_volume_does_not_take_all_the_turns(volumes, metrics):
    with served(volumes, metrics, most=100) as ask, ThreadPoolExecutor(MAX_PER_VOLUME) as pool:
        held = [pool.submit(ask, "ns~slow") for _ in range(MAX_PER_VOLUME)]
        for _ in held:
            assert volumes.waiting.acquire(timeout=60)
        assert ask("ns~slow") == (503, "UploadUnderWay")
        assert ask("ns~other") == (503, "AlreadyUploaded")
        assert ask("other~slower") == (503, "AlreadyUploaded")
        volumes.release.set()
        assert {one.result() for one in held} == {(503, "AlreadyUploaded")}
        # The slots are free again.
        assert ask("ns~slow") == (503, "AlreadyUploaded")


def test_its_health_is_told_where_there_is_no_turn(volumes, metrics):
    with served(volumes, metrics, most=2) as ask, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, "ns~slow") for _ in range(2)]
        for _ in held:
            assert volumes.waiting.acquire(timeout=60)
        assert ask("ns~other") == (503, "UploadMalformed")
        assert ask(path="/healthz", method="GET")[0] == 200
        volumes.release.set()
        assert {one.result()[0] for one in held} == {503}


def test_requests_are_counted_by_path_and_code(volumes, metrics):
    with served(volumes, metrics, most=10) as ask:
        ask("ns~vm")
        ask("bad", path="/v1beta1/tus/ns/vm")
        ask(path="/healthz", method="GET")
        for number in range(5):
            ask(path=f"/v1beta1/upload/{number}")
        ask(path="/page/x")
        ask(path="/" + "x" * 20_000)
    assert counted(metrics, "/v1beta1/upload", "503") == 1
    assert counted(metrics, "/v1beta1/tus", "401") == 1
    assert counted(metrics, "/healthz", "200") == 1
    assert counted(metrics, "page", "404") == 1
    assert counted(metrics, "other", "404") == 5
    assert counted(metrics, "other", "431") == 1


def test_one_that_was_lost_is_counted_too(volumes, metrics):
    lost = threading.Event()

    def serve(server_request):
        assert lost.wait(60)
        server_request.body.readinto(memoryview(bytearray(1)))
        return False

    def ended(server_request):
        metrics.ended(server_request)
        done.set()

    done = threading.Event()
    reception = HttpListener(
        socket.create_server(("127.0.0.1", 0)), PlaintextContext, in_turns(serve), most=1, ended=ended
    )
    with socket.create_connection(("127.0.0.1", reception.port)) as client:
        client.sendall(b"POST /v1beta1/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
    lost.set()
    assert done.wait(60)
    reception.close()
    assert counted(metrics, "/v1beta1/upload", "lost") == 1


# --- waiting --------------------------------------------------------------------------------------------------------


def waiting(metrics):
    return metrics.registry.get_sample_value("cdi_uploadproxy_waiting")


def wait_until(what):
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_those_who_wait_leave_turns_to_others(volumes, metrics):
    names = [f"v{number}" for number in range(3)]
    volumes.states = dict.fromkeys(names, Pending())
    with served(volumes, metrics, most=100, max_waiting=2) as ask, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, f"ns~{name}") for name in names[:2]]
        wait_until(lambda: waiting(metrics) == 2)
        assert ask("ns~v2") == (503, "UploadUnderWay")
        assert ask("ns~other") == (503, "AlreadyUploaded")
        volumes.states.clear()
        assert {one.result() for one in held} == {(503, "AlreadyUploaded")}
        assert waiting(metrics) == 0
        volumes.states = {"v2": Pending()}
        held = [pool.submit(ask, "ns~v2")]
        wait_until(lambda: waiting(metrics) == 1)
        volumes.states.clear()
        assert held[0].result() == (503, "AlreadyUploaded")


def test_those_who_wait_for_one_volume_do_not_take_its_neighbours_turns(volumes, metrics):
    volumes.states = {"away": Pending()}
    with served(volumes, metrics, most=100) as ask, ThreadPoolExecutor(MAX_PER_VOLUME) as pool:
        held = [pool.submit(ask, "ns~away") for _ in range(MAX_PER_VOLUME)]
        wait_until(lambda: waiting(metrics) == MAX_PER_VOLUME)
        assert ask("ns~away") == (503, "UploadUnderWay")
        assert ask("ns~other") == (503, "AlreadyUploaded")
        volumes.states.clear()
        assert {one.result() for one in held} == {(503, "AlreadyUploaded")}


@pytest.mark.parametrize("obstacle", [ClusterUnavailable("it starts"), UploadUnderWay("another one"), Pending()])
def test_what_passes_is_waited_for(volumes, metrics, obstacle):
    volumes.states = {"vm": obstacle}
    with served(volumes, metrics, most=10) as ask, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, "ns~vm")
        wait_until(lambda: waiting(metrics) == 1)
        volumes.states.clear()
        assert asked.result() == (503, "AlreadyUploaded")


@pytest.mark.parametrize(
    ("obstacle", "code"),
    [
        (ClusterUnavailable("it starts"), "UploadNotReady"),
        (UploadUnderWay("another one"), "UploadUnderWay"),
        (Pending(why="x"), "UploadNotReady"),
    ],
)
def test_what_does_not_pass_is_told_when_the_time_is_over(volumes, metrics, obstacle, code):
    volumes.states = {"vm": obstacle}
    with served(volumes, metrics, most=10, patience=WaitLimits(replacement=0, contention=0)) as ask:
        assert ask("ns~vm") == (503, code)
        assert ask.headers["Retry-After"]


def test_what_no_waiting_helps_is_told_at_once(volumes, metrics):
    volumes.states = {"vm": ClusterForbidden("no right to get claims")}
    with served(volumes, metrics, most=10) as ask:
        assert ask("ns~vm") == (500, "ClusterForbidden")
    assert waiting(metrics) == 0


def test_the_path_is_known_before_there_is_a_server(volumes, metrics):
    """The client sends the image next, and that request waits for the server."""
    volumes.states = {"vm": Pending(), "busy": UploadUnderWay("another one")}
    with served(volumes, metrics, most=10) as ask:
        for name in volumes.states:
            assert ask(f"ns~{name}", path="/v1beta1/upload-async", method="HEAD")[0] == 200
        assert ask("ns~filled", path="/v1beta1/upload-async", method="HEAD")[0] == 503


def test_an_upload_to_a_complete_volume_is_answered_like_upstream(volumes, metrics):
    with served(volumes, metrics, most=10) as ask:
        assert ask("ns~vm", path="/v1alpha1/upload") == (503, "AlreadyUploaded")
        assert "rejecting Upload Request for PVC vm that already finished uploading: " in ask.body
        # Nothing changes with time, so the client is not told to come back.
        assert ask.headers["Retry-After"] is None


# --- the upload that filled the volume ------------------------------------------------------------------------------

TUS = {"Tus-Resumable": "1.0.0"}


def test_who_filled_the_volume_is_told_that_all_of_it_arrived(volumes, metrics):
    with served(volumes, metrics, most=10) as ask:
        assert ask("ns~vm", path=f"/v1beta1/tus/ns/vm/{UPLOAD}", method="HEAD", headers=TUS)[0] == 200
        told = ask.headers
        assert (told["Upload-Offset"], told["Upload-Length"], told["Tus-Resumable"]) == ("1000", "1000", "1.0.0")
        assert told["Cache-Control"] == "no-store"
        override = {**TUS, "X-HTTP-Method-Override": "HEAD"}
        assert ask("ns~vm", path=f"/v1beta1/tus/ns/vm/{UPLOAD}", headers=override)[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        (f"/v1beta1/tus/ns/vm/{'1' * 32}-1000", "HEAD", TUS),
        (f"/v1beta1/tus/ns/vm/{'0' * 32}-1001", "HEAD", TUS),
        (f"/v1beta1/tus/ns/vm/{UPLOAD}", "DELETE", TUS),
        (f"/v1beta1/tus/ns/vm/{UPLOAD}", "HEAD", {}),
        ("/v1beta1/tus/ns/vm", "POST", TUS),
    ],
)
def test_nobody_else_is(volumes, metrics, path, method, headers):
    with served(volumes, metrics, most=10) as ask:
        assert ask("ns~vm", path=path, method=method, headers=headers)[0] == 409


# --- other origins --------------------------------------------------------------------------------------------------


class Desks:
    """A backend provider that rejects every token."""

    hint = ""

    def recognises(self, token):
        raise ClusterUnauthorized("no")


@pytest.fixture
def fields_of(volumes):
    """Return a function that sends a request and returns the status and the CORS fields of the response."""
    proxy = Proxy(volumes, verify, lambda: None, pages=Page(Desks()).begin)
    reception = HttpListener(socket.create_server(("127.0.0.1", 0)), PlaintextContext, proxy.begin, most=8)

    def ask(method, path, **fields):
        connection = http.client.HTTPConnection("127.0.0.1", reception.port, timeout=60)
        connection.request(method, path, None, {"Origin": "https://other.example", "Connection": "close", **fields})
        with connection.getresponse() as answer:
            answer.read()
        connection.close()
        return answer.status, {name for name, _ in answer.getheaders() if name.lower().startswith("access-control-")}

    yield ask
    reception.close(60.0)


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
ALLOWED = {"Access-Control-Allow-Origin", "Access-Control-Expose-Headers"}


@pytest.mark.parametrize(
    ("path", "status"), [("/v1beta1/upload", 200), ("/v1alpha1/upload-form-async", 200), ("/v1beta1/tus/ns/vm", 204)]
)
def test_pages_of_other_origins_may_upload_with_a_token(fields_of, path, status):
    got, fields = fields_of("OPTIONS", path, **PREFLIGHT)
    assert got == status
    assert fields == {
        *ALLOWED,
        "Access-Control-Allow-Methods",
        "Access-Control-Allow-Headers",
        "Access-Control-Max-Age",
    }
    # The client may also read the errors.
    assert fields_of("POST", path) == (400, ALLOWED)
    assert fields_of("POST", path, Authorization="Bearer none") == (401, ALLOWED)


@pytest.mark.parametrize(
    "path", ["/page/api/volumes/team", "/page/api/session", "/page/api/about", "/", "/page/app.css", "/healthz", "/none", "*", "/v1beta1/upload/"]
)  # fmt: skip
def test_they_are_told_of_nothing_else_that_they_may(fields_of, path):
    status, fields = fields_of("OPTIONS", path, **PREFLIGHT)
    assert (400 <= status < 500, fields) == (True, set())
    if path != "*":
        for method in ("GET", "POST"):
            assert fields_of(method, path, Authorization="Bearer none")[1] == set()
