"""Upload tokens through the real API server: discovery, kubectl, users and their permissions."""

import contextlib
import json
import time

import pytest

from cdi.kube.jwt import VerifyingKey
from cdi.server import tokens
from cdi.server.uploadtoken_api.discovery import API_SERVICE
from tests.cluster.kubectl import KubectlError
from tests.cluster.test_apiserver import Server, free_port, until
from tests.cluster.upload_api import TIMEOUT, available, discovered, led_here

pytestmark = pytest.mark.timeout(TIMEOUT)


@pytest.fixture(scope="module")
def api(cluster, tmp_path_factory):
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    with cluster.namespace("u-api") as kubectl:
        port = free_port()
        with led_here(kubectl, cluster.host_address, port):
            running = Server(cluster, kubectl, port, tmp_path_factory.mktemp("apiserver") / "log")
            try:
                until("it is ready", running.ready)
                until("it is available", lambda: available(kubectl))
                until("it is discovered", lambda: discovered(kubectl))
                yield running
            finally:
                # Remove the APIService first, because one without a server blocks the deletion of namespaces.
                kubectl.run("delete", "apiservice", API_SERVICE, "--ignore-not-found", "--wait=false")
                running.process.kill()
                running.process.wait()


def claim(name, **annotations):
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "annotations": {f"cdi.kubevirt.io/{key}": text for key, text in annotations.items()},
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "nobody-makes-it",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def request(claim, name="token-for-virtctl", **spec):
    return {
        "apiVersion": "upload.cdi.kubevirt.io/v1beta1",
        "kind": "UploadTokenRequest",
        "metadata": {"name": name},
        "spec": {"pvcName": claim, **spec},
    }


@pytest.fixture(scope="module")
def target(api):
    api.kubectl.create(
        {
            **claim("disk"),
            "metadata": {"name": "disk", "annotations": {"cdi.kubevirt.io/storage.upload.target": ""}},
        }
    )
    return "disk"


def test_kubectl_create_answers_a_token(api, target):
    (made,) = api.kubectl.create(request(target))
    key = VerifyingKey.read(public_key(api))
    claims = tokens.verify(made["status"]["token"], key)
    assert (claims.namespace, claims.name) == (api.kubectl.namespace, "disk")
    with pytest.raises(Exception, match="expired"):
        tokens.verify(made["status"]["token"], key, now=lambda: time.time() + 301)


def public_key(api):
    import base64

    return base64.b64decode(api.kubectl.get("secret", "cdi-api-signing-key")["data"]["id_rsa.pub"])


def test_kubectl_says_what_it_made(api, target):
    said = api.kubectl.run("create", "--filename=-", given=json.dumps(request(target)))
    assert said == "uploadtokenrequest.upload.cdi.kubevirt.io/token-for-virtctl created\n"


def test_a_named_request_is_not_found_whoever_looks_before_it_creates_one(api, target):
    with pytest.raises(
        KubectlError, match=r'NotFound.*uploadtokenrequests.upload.cdi.kubevirt.io "looked-for" not found'
    ):
        api.kubectl.run("get", "uploadtokenrequest", "looked-for")
    with pytest.raises(KubectlError, match="NotFound"):
        api.kubectl.run("delete", "uploadtokenrequest", "looked-for")
    said = api.kubectl.run("apply", "--filename=-", given=json.dumps(request(target, "looked-for")))
    assert said == "uploadtokenrequest.upload.cdi.kubevirt.io/looked-for created\n"


def test_kubectl_knows_short_names_and_fields(api):
    listed = api.kubectl.run("api-resources", "--api-group=upload.cdi.kubevirt.io", "--verbs=create")
    assert "utr,utrs" in listed
    until("its fields are known", lambda: explained(api.kubectl))


def explained(kubectl):
    with contextlib.suppress(KubectlError):
        return "pvcName" in kubectl.run("explain", "uploadtokenrequests.spec")
    return False


def test_a_field_that_is_not_known_is_refused_before_a_token_is_made(api, target):
    with pytest.raises(KubectlError, match="pvc"):
        api.kubectl.create(request(target, pvc="x"))


@pytest.mark.parametrize(
    ("name", "word"), [("missing", 'persistentvolumeclaims "missing" not found'), ("plain", "is not an upload target")]
)
def test_what_is_no_target_gets_no_token(api, name, word):
    with contextlib.suppress(KubectlError):
        api.kubectl.create(claim("plain"))
    with pytest.raises(KubectlError, match=word):
        api.kubectl.create(request(name))


def rights(name, user, **rule):
    return (
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": [rule],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [user],
        },
    )


def test_users_get_what_their_roles_say(api, target):
    rule = {"apiGroups": ["upload.cdi.kubevirt.io"], "resources": ["uploadtokenrequests"], "verbs": ["create"]}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u-uploader"}
    api.kubectl.create(*rights("uploader", user, **rule))
    given = json.dumps(request(target))

    def ask(user):
        return api.kubectl.run("create", f"--as={user}", "--filename=-", "--output=json", given=given)

    assert json.loads(ask("u-uploader"))["status"]["token"]
    with pytest.raises(KubectlError, match="forbidden"):
        ask("u-nobody")


def test_who_goes_past_the_api_server_needs_a_token_of_their_own(api, target):
    path = f"/apis/upload.cdi.kubevirt.io/v1beta1/namespaces/{api.kubectl.namespace}/uploadtokenrequests"
    status, text = api.fetch(path, json.dumps(request(target)).encode())
    assert (status, json.loads(text)["reason"]) == (401, "Unauthorized")


def test_discovery_of_everything_else_is_as_it_was(api):
    groups = json.loads(api.kubectl.run("get", "--raw", "/apis"))["groups"]
    assert "upload.cdi.kubevirt.io" in [group["name"] for group in groups]
    found = json.loads(api.kubectl.run("get", "--raw", "/openapi/v3"))["paths"]
    assert "apis/upload.cdi.kubevirt.io/v1beta1" in found
