"""Tests of the page's requests, over real connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket

import pytest

from cdi.api.errors import AlreadyExists, ClusterForbidden, ClusterUnauthorized, ClusterUnreachable, Conflict, NotFound
from cdi.api.names import ANN_IMMEDIATE_BINDING
from cdi.http.server.listener import HttpListener
from cdi.http.server.plaintext import PlaintextContext
from cdi.server.page.backend import Session
from cdi.server.page.service import Page

NAMESPACED = "/page/api/volumes/team"


class Desk:
    def __init__(self):
        self.asked = []
        self.failure = None

    def _note(self, *what):
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure

    def authenticate(self):
        if self.failure is not None:
            raise self.failure

    def session(self, namespace):
        self._note("session", namespace)
        return Session(namespace=namespace or "default", namespaces=(), may={"list": True}, storage_classes=("fast",))

    def volumes(self, namespace):
        self._note("volumes", namespace)
        return [{"name": "<b>"}]

    def create(self, body):
        self._note("create", body)

    def delete(self, namespace, name, uid):
        self._note("delete", namespace, name, uid)

    def upload_token(self, namespace, name):
        self._note("token", namespace, name)
        return "secret"


class Desks:
    hint = "a hint"

    def __init__(self):
        self.backend = Desk()

    def recognises(self, token):
        return False

    def of(self, token):
        if token != "good":
            raise ClusterUnauthorized("the token is not good")
        return self.backend


@pytest.fixture
def desks():
    return Desks()


@pytest.fixture
def ask(desks):
    page = Page(desks)
    reception = HttpListener(
        socket.create_server(("127.0.0.1", 0)),
        PlaintextContext,
        lambda server_request: page.begin(server_request) or False,
        most=8,
    )

    def call(method, path, body=None, token="good", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", reception.port, timeout=60)
        fields = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            fields["Content-Type"] = "application/json"
        connection.request(method, path, body, {**fields, **{name.replace("_", "-"): v for name, v in headers.items()}})
        with connection.getresponse() as answer:
            data = answer.read()
        connection.close()
        kind = answer.getheader("Content-Type", "")
        return answer, json.loads(data) if kind == "application/json" else data

    yield call
    reception.close()


class TestFiles:
    def test_the_page_with_its_rules(self, ask):
        answer, data = ask("GET", "/", token=None)
        assert answer.status == 200
        assert data.startswith(b"<!doctype html>")
        assert "default-src 'none'" in answer.getheader("Content-Security-Policy")
        assert answer.getheader("X-Content-Type-Options") == "nosniff"

    def test_what_has_not_changed_is_not_sent_again(self, ask):
        tag = ask("GET", "/page/app.css", token=None)[0].getheader("ETag")
        answer, data = ask("GET", "/page/app.css", token=None, If_None_Match=tag)
        assert (answer.status, data) == (304, b"")


class TestQuestions:
    def test_the_first_needs_no_token(self, ask):
        assert ask("GET", "/page/api/about", token=None)[1] == {"hint": "a hint"}

    @pytest.mark.parametrize("token", [None, "bad", "x" * 12000])
    def test_all_others_do(self, ask, desks, token):
        answer, said = ask("GET", NAMESPACED, token=token)
        assert answer.status == 401
        assert set(said) == {"code", "message"}
        assert desks.backend.asked == []

    def test_who_is_there(self, ask):
        assert ask("GET", "/page/api/session?namespace=team")[1] == {
            "namespace": "team", "namespaces": [], "may": {"list": True}, "storageClasses": ["fast"],
        }  # fmt: skip

    def test_volumes(self, ask):
        answer, said = ask("GET", NAMESPACED)
        assert said == {"volumes": [{"name": "<b>"}]}
        assert answer.getheader("Content-Type") == "application/json"
        assert answer.getheader("Access-Control-Allow-Origin") is None
        assert answer.getheader("Cache-Control") == "no-store"

    def test_a_volume_is_made(self, ask, desks):
        wish = {"name": "a", "size": "10Gi", "storageClass": "fast", "namespace": "ignored"}
        assert ask("POST", NAMESPACED, json.dumps(wish))[0].status == 201
        ((_, body),) = desks.backend.asked
        assert body["metadata"] == {"namespace": "team", "name": "a", "annotations": {ANN_IMMEDIATE_BINDING: ""}}
        storage = {"resources": {"requests": {"storage": "10Gi"}}, "storageClassName": "fast"}
        assert body["spec"] == {"source": {"upload": {}}, "storage": storage}

    def test_a_clone_is_made(self, ask, desks):
        assert ask("POST", f"{NAMESPACED}/a/clone", json.dumps({"name": "b"}))[0].status == 201
        ((_, body),) = desks.backend.asked
        assert (body["metadata"]["name"], body["spec"]["source"]) == ("b", {"pvc": {"namespace": "team", "name": "a"}})

    def test_one_is_deleted_and_a_token_given(self, ask, desks):
        ask("DELETE", f"{NAMESPACED}/a?uid=u-1")
        assert ask("POST", f"{NAMESPACED}/a/token", "{}")[1] == {"token": "secret"}
        assert desks.backend.asked == [("delete", "team", "a", "u-1"), ("token", "team", "a")]


class TestRefusals:
    @pytest.mark.parametrize(
        ("failure", "status"),
        [
            (ClusterUnauthorized("x"), 401),
            (ClusterForbidden("x"), 403),
            (NotFound("x"), 404),
            (AlreadyExists("x"), 409),
            (Conflict("x"), 409),
            (ClusterUnreachable("x"), 502),
            (ZeroDivisionError("x"), 500),
        ],
    )
    def test_each_has_its_status(self, ask, desks, failure, status):
        desks.backend.failure = failure
        assert ask("GET", NAMESPACED)[0].status == status

    def test_a_defect_says_nothing_of_itself(self, ask, desks):
        desks.backend.failure = ValueError("/etc/secret")
        assert "secret" not in ask("GET", NAMESPACED)[1]["message"]

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/page/api/"),
            ("PUT", NAMESPACED),
            ("GET", f"{NAMESPACED}/a"),
            ("POST", f"{NAMESPACED}/a/b/c"),
            ("POST", f"{NAMESPACED}/a/secrets"),
        ],
    )
    def test_nothing_else_is_there(self, ask, desks, method, path):
        assert ask(method, path)[0].status == 404
        assert desks.backend.asked == []

    @pytest.mark.parametrize("name", ["..", "%2e%2e", "a%2Fb", "A", "a%00", "x" * 300])
    def test_names_that_are_none(self, ask, desks, name):
        assert ask("DELETE", f"{NAMESPACED}/{name}?uid=u")[0].status == 422
        assert ask("GET", f"/page/api/volumes/{name}")[0].status == 422
        assert desks.backend.asked == []

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ("", 400), ("[]", 400), ("{", 400), ("[" * 60000, 400),
            ('{"name": "a", "size": "1Gi", "x": ' + "[" * 500 + "]" * 500 + "}", 400), ('"' + "x" * 70000 + '"', 413),
            ("{}", 422), ('{"name": "a"}', 422), ('{"name": "a", "size": "much"}', 422), ('{"name": 5, "size": "1Gi"}', 422),
            ('{"name": "a", "size": "-1Gi"}', 422),
        ],
    )  # fmt: skip
    def test_bodies_that_are_none(self, ask, desks, body, status):
        assert ask("POST", NAMESPACED, body)[0].status == status
        assert desks.backend.asked == []

    def test_no_body_is_parsed_of_who_has_no_good_token(self, ask, desks):
        for failure, status in ((ClusterUnauthorized("x"), 401), (ClusterUnreachable("x"), 502)):
            desks.backend.failure = failure
            for path in (NAMESPACED, f"{NAMESPACED}/a/clone"):
                assert ask("POST", path, "[" * 60000)[0].status == status
        assert desks.backend.asked == []

    def test_a_body_comes_within_one_stall_time_out(self, desks):
        """An occasional byte must not hold a worker thread."""
        page = Page(desks)
        listener = socket.create_server(("127.0.0.1", 0))
        reception = HttpListener(
            listener,
            PlaintextContext,
            lambda server_request: page.begin(server_request) or False,
            most=1,
            stall_timeout=2.0,
        )
        try:
            with socket.create_connection(("127.0.0.1", reception.port), 60) as sock:
                fields = "Host: h\r\nAuthorization: Bearer good\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n"
                sock.sendall(f"POST {NAMESPACED} HTTP/1.1\r\n{fields}\r\n".encode())
                sock.settimeout(0.1)
                for _ in range(600):
                    sock.sendall(b" ")
                    with contextlib.suppress(TimeoutError):
                        assert sock.recv(100).startswith(b"HTTP/1.1 408 ")
                        break
                else:
                    raise AssertionError("it has its turn still")
        finally:
            reception.close()

    def test_a_form_of_another_site(self, ask, desks):
        """Requests that browsers send cross-origin without a preflight are rejected, with or without a token."""
        assert ask("POST", NAMESPACED, '{"name": "a", "size": "1Gi"}', Content_Type="text/plain")[0].status == 415
        assert desks.backend.asked == []
