"""Tests of the upload token API over real TLS: authentication, authorization and responses."""

import asyncio
import datetime as dt
import json
import ssl

import pytest
from aiohttp import ClientConnectionError, ClientSession, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy

from cdi.api.errors import ClusterForbidden, ClusterUnavailable, NotFound
from cdi.kube import pki
from cdi.kube.jwt import SigningKey
from cdi.server import tokens
from cdi.server.tls import ServingTls
from cdi.server.uploadtoken_api import discovery as documents
from cdi.server.uploadtoken_api import routes
from cdi.server.uploadtoken_api.authentication import FrontProxy, User, front_proxy
from cdi.server.uploadtoken_api.routes import Aggregated

NOW = 1_767_225_600.0
CREATED = "2026-01-01T00:00:00Z"
KEY = SigningKey.generate()
PATH = "/apis/upload.cdi.kubevirt.io/v1beta1/namespaces/ns/uploadtokenrequests"
MOMENT = dt.datetime.now(dt.UTC)
FRONT = pki.new_authority("front", pki.AUTHORITY_LIFETIME, MOMENT)
OTHER = pki.new_authority("other", pki.AUTHORITY_LIFETIME, MOMENT)
HEADERS = {"X-Remote-User": "jane", "X-Remote-Group": "editors"}


def client_certificate(authority, name="front-proxy-client"):
    return pki.new_certificate(authority, name, usage="client", lifetime=pki.CERTIFICATE_LIFETIME, now=MOMENT)


def requestheader(*names, authority=FRONT):
    return {
        "requestheader-client-ca-file": authority.certificate.decode(),
        "requestheader-allowed-names": json.dumps(names or ["front-proxy-client"]),
        "requestheader-username-headers": '["X-Remote-User"]',
        "requestheader-group-headers": '["X-Remote-Group"]',
        "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    }


def claim(**metadata):
    return {"metadata": {"name": "disk", **metadata}, "spec": {}}


TARGET = claim(annotations={"cdi.kubevirt.io/storage.upload.target": ""})
POPULATED = {
    "metadata": {"name": "disk"},
    "spec": {"dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeUploadSource", "name": "s"}},
}


class Kubernetes:
    """A fake API server with users and permissions that records reviews."""

    def __init__(self):
        self.tokens = {"good": {"username": "system:serviceaccount:ns:ci", "uid": "7", "groups": ["system:masters"]}}
        self.allowed = {"jane", "system:serviceaccount:ns:ci"}
        self.reviews = []
        self.failure = None
        self.claims = {("ns", "disk"): TARGET}

    async def request(self, method, path, *, body, idempotent):
        if self.failure is not None:
            raise self.failure
        self.reviews.append(body)
        if body["kind"] == "TokenReview":
            user = self.tokens.get(body["spec"]["token"])
            return {"status": {"authenticated": user is not None, "user": user or {}}}
        return {"status": {"allowed": body["spec"]["user"] in self.allowed, "reason": "RBAC"}}

    async def claim(self, namespace, name):
        return self.claims.get((namespace, name))


@pytest.fixture
async def served(tmp_path):
    """Yield `ask(method, path, body, headers, pair)`, which returns status, headers and document over TLS."""
    kubernetes = Kubernetes()
    made = Aggregated(kubernetes, kubernetes, namespace="cdi", signing_key="key", now=lambda: NOW)
    made._key, made.front_proxy = KEY, FrontProxy.read(requestheader())
    signer = pki.new_authority("signer", pki.AUTHORITY_LIFETIME, MOMENT)
    shown = pki.new_certificate(
        signer, "localhost", hosts=("localhost",), lifetime=pki.CERTIFICATE_LIFETIME, now=MOMENT
    )
    tls = ServingTls()
    tls.set_certificate(shown.certificate, shown.key)
    tls.request_client_certificates(made.front_proxy.authorities)
    # The handshake trusts it, like an authority that was valid when the process started.
    tls.context.load_verify_locations(cadata=OTHER.certificate.decode())
    app = web.Application()
    app.add_routes(made.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0, ssl_context=tls.context).start()
    port = runner.addresses[0][1]

    async def ask(body=None, *, method="POST", path=PATH, headers=HEADERS, pair=None, accept=None):
        context = ssl.create_default_context(cadata=signer.certificate.decode())
        if pair is not None:
            (tmp_path / "client.pem").write_bytes(pair.certificate + pair.key)
            context.load_cert_chain(tmp_path / "client.pem")
        sent = json.dumps(request() if body is None else body) if not isinstance(body, bytes) else body
        wanted = {"Content-Type": "application/json", **headers, **({"Accept": accept} if accept else {})}
        async with ClientSession(connector=TCPConnector(ssl=context)) as session:
            url = f"https://localhost:{port}{path}"
            async with session.request(method, url, data=sent if method == "POST" else None, headers=wanted) as answer:
                return answer.status, answer.headers, json.loads(await answer.read() or b"null")

    ask.kubernetes, ask.made = kubernetes, made
    yield ask
    await runner.cleanup()


def request(name="disk", **changes):
    return {
        "apiVersion": "upload.cdi.kubevirt.io/v1beta1", "kind": "UploadTokenRequest",
        "metadata": {"name": "token-for-virtctl"}, "spec": {"pvcName": name}, **changes,
    }  # fmt: skip


PROXY = client_certificate(FRONT)
BEARER = {"Authorization": "Bearer good"}


# --- tokens -------------------------------------------------------------------------------------------------------


async def test_whom_the_api_server_names_gets_a_token(served):
    status, _, document = await served(pair=PROXY)
    assert status == 201
    claims = tokens.verify(document["status"]["token"], KEY, now=lambda: NOW)
    assert (claims.namespace, claims.name) == ("ns", "disk")
    assert document == {
        "apiVersion": "upload.cdi.kubevirt.io/v1beta1", "kind": "UploadTokenRequest",
        "metadata": {"name": "token-for-virtctl", "namespace": "ns", "creationTimestamp": CREATED},
        "spec": {"pvcName": "disk"}, "status": document["status"],
    }  # fmt: skip


async def test_it_is_asked_whether_they_may(served):
    extra = {"X-Remote-Extra-Scopes%2fX": "a", "X-Remote-Group": "editors"}
    await served(pair=PROXY, headers={**HEADERS, **extra})
    (review,) = served.kubernetes.reviews
    assert review["spec"] == {
        "user": "jane", "uid": "", "groups": ["editors"], "extra": {"scopes/x": ["a"]},
        "resourceAttributes": {
            "verb": "create", "group": "upload.cdi.kubevirt.io", "version": "v1beta1",
            "resource": "uploadtokenrequests", "namespace": "ns",
        },
    }  # fmt: skip


async def test_who_may_not_is_told_so(served):
    status, _, document = await served(pair=PROXY, headers={"X-Remote-User": "joe"})
    assert (status, document["reason"], document["kind"]) == (403, "Forbidden", "Status")
    assert 'User "joe" cannot create resource "uploadtokenrequests"' in document["message"]
    assert "token" not in json.dumps(document.get("status", ""))


async def test_a_bearer_token_that_somebody_brings_is_looked_up(served):
    status, _, document = await served(headers=BEARER)
    assert status == 201
    assert document["status"]["token"]
    assert [review["kind"] for review in served.kubernetes.reviews] == ["TokenReview", "SubjectAccessReview"]
    assert served.kubernetes.reviews[1]["spec"]["user"] == "system:serviceaccount:ns:ci"


@pytest.mark.parametrize(
    ("headers", "pair"),
    [
        ({}, None),
        (HEADERS, None),
        ({}, PROXY),
        (HEADERS, client_certificate(FRONT, "somebody-else")),
        (HEADERS, client_certificate(OTHER)),
        ({**HEADERS, "X-Remote-User": ""}, PROXY),
        ({"Authorization": "Bearer forged"}, None),
        ({"Authorization": "Bearer "}, None),
        ({"Authorization": "Basic good"}, None),
        ({**HEADERS, "Authorization": "Bearer forged"}, None),
    ],
)
async def test_nobody_else_is_believed(served, headers, pair):
    status, _, document = await served(headers=headers, pair=pair)
    assert (status, document["reason"]) == (401, "Unauthorized")


async def test_a_header_beside_a_bearer_token_changes_nobody_s_name(served):
    await served(headers={**HEADERS, **BEARER})
    assert served.kubernetes.reviews[-1]["spec"]["user"] == "system:serviceaccount:ns:ci"


async def test_a_certificate_that_nobody_signed_does_not_get_through(served):
    stranger = client_certificate(pki.new_authority("stranger", pki.AUTHORITY_LIFETIME, MOMENT))
    # The client sees a TLS error or a closed connection, depending on timing.
    with pytest.raises((OSError, ClientConnectionError)):
        await served(pair=stranger)


async def test_it_is_refused_while_it_cannot_be_asked(served):
    served.kubernetes.failure = ClusterUnavailable("the API server is busy")
    status, _, document = await served(pair=PROXY)
    assert (status, document["reason"]) == (503, "ServiceUnavailable")
    assert "the API server is busy" in document["message"]


async def test_it_is_refused_before_there_is_a_key(served):
    served.made._key = None
    assert (await served(pair=PROXY))[0] == 503


# --- requests -----------------------------------------------------------------------------------------------------


async def test_a_claim_that_names_an_upload_source_is_a_target(served):
    served.kubernetes.claims["ns", "disk"] = POPULATED
    assert (await served(pair=PROXY))[0] == 201


async def test_a_claim_that_is_missing_is_named(served):
    status, _, document = await served(request("missing"), pair=PROXY)
    assert (status, document["reason"], document["details"]["name"]) == (404, "NotFound", "missing")
    assert document["message"] == 'persistentvolumeclaims "missing" not found'


async def test_a_claim_that_is_no_target_is_refused(served):
    served.kubernetes.claims["ns", "disk"] = claim()
    status, _, document = await served(pair=PROXY)
    assert (status, document["reason"]) == (422, "Invalid")
    assert "PVC ns/disk is not an upload target" in document["message"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "not JSON"),
        (b"[" * 5000, 400, "nested more than"),
        (request(x=json.loads("[" * 500 + "]" * 500)), 400, "nested more than"),
        ([], 400, "is not a UploadTokenRequest"),
        ({}, 400, "is not a UploadTokenRequest"),
        (request(kind="Pod"), 400, "is not a UploadTokenRequest"),
        (request(apiVersion="upload.cdi.kubevirt.io/v2"), 400, "is not a UploadTokenRequest"),
        (request(metadata=[1]), 400, "is not a UploadTokenRequest"),
        (request(metadata={"name": "x", "namespace": "other"}), 400, "differs from that of the request"),
        (request(metadata={"name": 7}), 422, "metadata.name"),
        (request(spec={}), 422, "spec.pvcName"),
        (request(spec=None), 422, "spec"),
        (request(""), 422, "spec.pvcName"),
        (request("../../secrets/x"), 422, "spec.pvcName"),
        (request("x" * 300), 422, "spec.pvcName"),
        (b" " * (routes.MAX_REQUEST + 1), 413, "limited"),
    ],
)
async def test_whatever_else_comes_is_refused(served, body, status, word):
    got, _, document = await served(body, pair=PROXY)
    assert (got, document["code"]) == (status, status)
    assert word in document["message"]


async def test_another_content_type_is_refused(served):
    status, _, _ = await served(pair=PROXY, headers={**HEADERS, "Content-Type": "application/yaml"})
    assert status == 415


@pytest.mark.parametrize(
    ("query", "status", "warning"),
    [
        ("", 201, '299 - "unknown field "spec.pvc""'),
        ("?fieldValidation=Warn", 201, '299 - "unknown field "spec.pvc""'),
        ("?fieldValidation=Ignore", 201, None),
        ("?fieldValidation=Strict", 400, None),
    ],
)
async def test_fields_that_are_not_known_are_told_of(served, query, status, warning):
    got, headers, document = await served(request(spec={"pvcName": "disk", "pvc": "x"}), path=PATH + query, pair=PROXY)
    assert (got, headers.get("Warning")) == (status, warning)
    assert "pvc" not in document.get("spec", {})


async def test_what_the_client_says_of_the_answer_does_not_count(served):
    _, _, document = await served(request(status={"token": "mine"}), pair=PROXY)
    assert document["status"]["token"] != "mine"


async def test_trying_gives_no_token(served):
    status, _, document = await served(path=f"{PATH}?dryRun=All", pair=PROXY)
    assert (status, "status" in document) == (201, False)


async def test_a_request_without_a_name_gets_one(served):
    _, _, document = await served(request(metadata={"generateName": "mine-"}), pair=PROXY)
    assert document["metadata"]["name"].startswith("mine-")


async def test_a_table_is_given_where_one_is_wanted(served):
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    _, _, document = await served(pair=PROXY, accept=accept)
    assert [column["name"] for column in document["columnDefinitions"]] == ["Name", "PVC", "Created At"]
    assert document["rows"][0]["cells"] == ["token-for-virtctl", "disk", CREATED]
    assert document["rows"][0]["object"]["metadata"]["name"] == "token-for-virtctl"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PATH, 405), ("DELETE", PATH, 405), ("GET", f"{PATH}/x/status", 405),
        ("GET", "/apis/upload.cdi.kubevirt.io/v1beta1/uploadtokenrequests", 405),
        ("GET", "/apis/upload.cdi.kubevirt.io/v1alpha1", 404),
        ("GET", "/apis/upload.cdi.kubevirt.io/v1beta1/namespaces/ns/secrets", 404),
    ],
)  # fmt: skip
async def test_nothing_else_can_be_done(served, method, path, status):
    got, _, document = await served(method=method, path=path, pair=PROXY)
    assert (got, document["kind"], document["code"]) == (status, "Status", status)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
async def test_no_named_request_is_ever_found(served, method):
    status, headers, document = await served(method=method, path=f"{PATH}/token-for-virtctl", pair=PROXY)
    assert status == 404
    if method == "HEAD":
        return
    assert headers["Content-Type"] == "application/json"
    assert (document["kind"], document["status"], document["reason"]) == ("Status", "Failure", "NotFound")
    assert document["message"] == 'uploadtokenrequests.upload.cdi.kubevirt.io "token-for-virtctl" not found'
    assert document["details"] == {
        "name": "token-for-virtctl", "group": "upload.cdi.kubevirt.io", "kind": "uploadtokenrequests"
    }  # fmt: skip


async def test_a_name_that_is_asked_for_is_repeated_in_bounds(served):
    _, _, document = await served(method="GET", path=f"{PATH}/{'x' * 4000}%1B[31m", pair=PROXY)
    assert document["reason"] == "NotFound"
    assert len(document["message"]) < 500 and "\x1b" not in document["message"]


# --- documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/apis", "APIGroupList"),
        ("/apis/upload.cdi.kubevirt.io", "APIGroup"),
        ("/apis/upload.cdi.kubevirt.io/v1beta1", "APIResourceList"),
    ],
)
async def test_everybody_may_read_what_there_is(served, path, kind):
    status, headers, document = await served(method="GET", path=path, headers={})
    assert (status, document["kind"], headers["Content-Type"]) == (200, kind, "application/json")


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
async def test_discovery_is_given_in_the_form_that_the_api_server_asks_for_first(served, version):
    accept = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
    _, headers, document = await served(method="GET", path="/apis", headers={}, accept=f"{accept},application/json")
    assert headers["Content-Type"] == accept
    assert (document["kind"], document["apiVersion"]) == ("APIGroupDiscoveryList", f"apidiscovery.k8s.io/{version}")
    (resource,) = document["items"][0]["versions"][0]["resources"]
    assert (resource["resource"], resource["verbs"]) == ("uploadtokenrequests", ["create"])


def test_every_reference_in_the_openapi_documents_leads_somewhere():
    for document in (documents.openapi_v2(), documents.openapi_v3()):
        for reference in references(document):
            found = document
            for part in reference.removeprefix("#/").split("/"):
                found = found[part]


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


# --- front proxy authentication -----------------------------------------------------------------------------------


class Map:
    def __init__(self, found):
        self._found = found

    async def get(self, resource, namespace, name):
        assert (resource.plural, namespace, name) == ("configmaps", "kube-system", "extension-apiserver-authentication")
        if isinstance(self._found, Exception):
            raise self._found
        return {"data": self._found}


def of(proxy, pair=PROXY, **headers):
    certificate = pair.parsed().public_bytes(pki.serialization.Encoding.DER)
    return proxy.user_of(certificate, CIMultiDictProxy(CIMultiDict(headers)))


async def test_it_is_known_by_what_the_cluster_says():
    proxy = await front_proxy(Map(requestheader()))
    assert of(proxy, **{"x-remote-user": "jane"}) == User(name="jane")


async def test_any_name_will_do_where_none_is_said():
    proxy = FrontProxy.read({**requestheader(), "requestheader-allowed-names": "[]"})
    assert of(proxy, client_certificate(FRONT, "x"), **{"X-Remote-User": "jane"}) == User(name="jane")


@pytest.mark.parametrize(
    "found",
    [
        NotFound("x"), ClusterForbidden("x"), {}, {**requestheader(), "requestheader-allowed-names": "x"},
        {**requestheader(), "requestheader-allowed-names": '{"a": 1}'},
        {**requestheader(), "requestheader-client-ca-file": "x"}, requestheader(authority=OTHER),
    ],
)  # fmt: skip
async def test_nobody_is_believed_where_that_is_not_known(found):
    assert of(await front_proxy(Map(found)), **{"X-Remote-User": "jane"}) is None


async def test_an_api_server_that_is_away_does_not_change_whom_to_believe():
    with pytest.raises(ClusterUnavailable):
        await front_proxy(Map(ClusterUnavailable("x")))


def test_many_names_in_a_header_are_bounded():
    headers = CIMultiDict([("X-Remote-User", "jane"), *[("X-Remote-Group", str(one)) for one in range(5000)]])
    certificate = PROXY.parsed().public_bytes(pki.serialization.Encoding.DER)
    user = FrontProxy.read(requestheader()).user_of(certificate, CIMultiDictProxy(headers))
    assert len(user.groups) == 1000


async def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(routes, "RESPONSE_TIMEOUT", 0.05)

    class Slow:
        content_type = "application/json"

        class content:
            @staticmethod
            async def iter_any():
                await asyncio.Event().wait()
                yield b""

    with pytest.raises(routes._Refusal, match="timed out waiting"):
        await routes._body(Slow())
