"""User interfaces for uploads into a cluster: ``cdi upload``, and the web page with its user's token."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading

import pytest

from cdi.controller.upload_certificates import CLIENT_CERTIFICATE, PROXY_CERTIFICATE
from cdi.kube.client import Client
from cdi.kube.credentials import find
from cdi.kube.jwt import PUBLIC, SIGNING_KEY
from cdi.kube.sync import SyncClient
from cdi.server.page.cluster import ClusterBackendProvider
from cdi.server.page.service import Page
from cdi.server.proxy.run import Options, serve
from cdi.server.proxy.volumes import ClusterVolumes, Destination
from tests.cluster.cdi import controller
from tests.cluster.test_apiserver import Server, free_port, until
from tests.cluster.test_upload_control import secret
from tests.cluster.upload_api import TIMEOUT, available, discovered, led_here
from tests.cluster.volumes import MIB, SLOW, data_volume, digest, disk, sha256, wait_phase
from tests.integration.bundle.conftest import offer
from tests.integration.cli.conftest import Cdi as Machine
from tests.integration.local_backend import end_embedded

pytestmark = pytest.mark.timeout(TIMEOUT)
CHROMIUM = "/usr/bin/chromium"
ROOMY = "512Mi"
"""Size with room for a file system's metadata under any configuration."""


class Reached:
    """Volumes reached by the addresses of their pods, because names of Services resolve only in the cluster."""

    def __init__(self, client, kubectl):
        self._volumes, self._kubectl = ClusterVolumes(client), kubectl

    def look(self, namespace, name):
        found = self._volumes.look(namespace, name)
        if not isinstance(found, Destination):
            return found
        pod = self._kubectl.within(namespace).get("pod", found.host.partition(".")[0])
        return dataclasses.replace(found, host=pod["status"]["podIP"], name=found.host)


class Place:
    def __init__(self, cluster, kubectl, directory):
        self.cluster, self.kubectl, self.directory = cluster, kubectl, directory
        self.port = 0

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def cdi(self, *arguments, status=0):
        environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
        environment.pop("CDI_HOME", None)
        done = subprocess.run(
            [
                sys.executable, "-m", "cdi.cli.main", "--kubeconfig", self.cluster.kubectl.kubeconfig,
                "-n", self.kubectl.namespace, *map(str, arguments),
            ],
            capture_output=True, text=True, timeout=2 * SLOW, env=environment,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def token(self, name, *roles):
        """Create a ServiceAccount with these Roles in the namespace and return a token for it."""
        self.kubectl.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
        subject = f"--serviceaccount={self.kubectl.namespace}:{name}"
        for role in roles:
            self.kubectl.run("create", "rolebinding", f"{name}-{role}", f"--role={role}", subject)
        return self.kubectl.run("create", "token", name).strip()


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    directory = tmp_path_factory.mktemp("proxy")
    with contextlib.ExitStack() as stack:
        kubectl = stack.enter_context(cluster.namespace("u-clients"))
        port = free_port()
        stack.enter_context(led_here(kubectl, cluster.host_address, port))
        stack.enter_context(controller(cluster, kubectl))
        running = Server(cluster, kubectl, port, directory / "apiserver.log")
        stack.callback(running.process.wait)
        stack.callback(running.process.kill)
        until("it is available", lambda: available(kubectl))
        until("it is discovered", lambda: discovered(kubectl))
        made = Place(cluster, kubectl, directory)
        _serve(made, stack)
        yield made


def _serve(place, stack):
    kubectl, directory = place.kubectl, place.directory
    names = {CLIENT_CERTIFICATE: "client", PROXY_CERTIFICATE: "tls"}

    def there():
        return {one["metadata"]["name"] for one in kubectl.get_all("secrets")} >= {*names, SIGNING_KEY}

    until("the proxy's Secrets are there", there)
    for name, folder in names.items():
        (directory / folder).mkdir()
        for file, content in secret(kubectl, name).items():
            (directory / folder / file).write_bytes(content)
    (directory / "key.pub").write_bytes(secret(kubectl, SIGNING_KEY)[PUBLIC])
    bundle = kubectl.get("configmap", "cdi-uploadserver-signer-bundle")["data"]["ca-bundle.crt"]
    (directory / "servers.crt").write_text(bundle)
    signer = kubectl.get("configmap", "cdi-uploadproxy-signer-bundle")["data"]["ca-bundle.crt"]
    (directory / "ca.crt").write_text(signer)
    credentials = find(str(place.cluster.kubectl.kubeconfig), None)
    client = stack.enter_context(SyncClient(Client(credentials)))
    desks = stack.enter_context(contextlib.closing(ClusterBackendProvider(client, credentials)))
    stop, listening = threading.Event(), threading.Event()

    def heard(port):
        place.port = port
        listening.set()

    options = Options(
        tls=str(directory / "tls"),
        client=str(directory / "client"),
        authorities=str(directory / "servers.crt"),
        token_key=str(directory / "key.pub"),
        port=0,
        bind="127.0.0.1",
        drain=1.0,
    )
    thread = threading.Thread(
        target=serve,
        args=(options, Reached(client, kubectl)),
        kwargs={"pages": Page(desks).begin, "stop": stop, "listening": heard},
    )
    thread.start()
    stack.callback(thread.join)
    stack.callback(stop.set)
    assert listening.wait(SLOW)


@pytest.mark.parametrize("storage_class", ["csi-wait", "local"])
def test_cdi_upload_makes_the_volume_and_fills_it(cluster, place, tmp_path, storage_class):
    content = disk()
    (tmp_path / "image.raw").write_bytes(content)
    name = f"cli-{storage_class}"
    place.cdi(
        "upload", tmp_path / "image.raw", "--dv", name, "--size", ROOMY, "--storage-class", storage_class,
        "--access-mode", "ReadWriteOnce", "--volume-mode", "Filesystem", "--uploadproxy-url", place.url, "--insecure", "--timeout", "280s",
    )  # fmt: skip
    wait_phase(place.kubectl, name, "Succeeded")
    assert digest(cluster, place.kubectl, name, "Filesystem", len(content)) == sha256(content)


def test_it_waits_for_nobody_s_first_consumer(place, tmp_path):
    (tmp_path / "image.raw").write_bytes(disk(MIB))
    place.kubectl.create(data_volume("nobody", {"upload": {}}, "local-wait", size=ROOMY))
    wait_phase(place.kubectl, "nobody", "WaitForFirstConsumer")
    arguments = ("upload", tmp_path / "image.raw", "nobody", "--uploadproxy-url", place.url, "--insecure")
    refused = place.cdi(*arguments, status=2)
    assert "--force-bind" in refused.stderr
    place.cdi(*arguments, "--force-bind", "--timeout", "280s")


def test_an_untrusted_proxy_gets_nothing(place, tmp_path):
    (tmp_path / "image.raw").write_bytes(disk(MIB))
    place.kubectl.create(data_volume("careful", {"upload": {}}, "local"))
    (tmp_path / "other.crt").write_bytes((place.directory / "servers.crt").read_bytes())
    refused = place.cdi(
        "upload", tmp_path / "image.raw", "careful", "--uploadproxy-url", place.url, "--ca", tmp_path / "other.crt",
        status=3,
    )  # fmt: skip
    assert "SourceTlsUntrusted" in refused.stderr


@pytest.fixture
def block_class(place):
    """Return the name of a storage class whose profile says which volumes it has."""
    kubectl = place.kubectl
    name = f"{kubectl.namespace}-block"
    sets = [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"}]
    kubectl.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": kubectl.get("storageclass", "csi")["provisioner"],
            "volumeBindingMode": "Immediate",
        },
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "StorageProfile",
            "metadata": {"name": name},
            "spec": {"claimPropertySets": sets},
        },
    )
    try:
        # As a controller of cluster-scoped objects does, which may also run for another test.
        status = json.dumps({"status": {"claimPropertySets": sets}})
        kubectl.run("patch", "storageprofile", name, "--subresource=status", "--type=merge", f"--patch={status}")
        yield name
    finally:
        kubectl.run("delete", "storageprofile,storageclass", name, "--ignore-not-found")


def test_a_golden_image_of_one_machine_is_offered_from_a_bundle(cluster, place, block_class, tmp_path):
    content = disk()
    machine, bundle = Machine(tmp_path / "home", tmp_path), tmp_path / "golden.tar"
    (tmp_path / "image.raw").write_bytes(content)
    try:
        machine("import", tmp_path / "image.raw", "--name", "fedora-1")
        offer(machine, "fedora", "fedora-1", {"instancetype.kubevirt.io/default-preference": "fedora"})
        machine("bundle", "create", "-o", bundle, "fedora")
    finally:
        end_embedded(machine.home)
    arguments = (
        "bundle",
        "import",
        bundle,
        "--storage-class",
        block_class,
        "--uploadproxy-url",
        place.url,
        "--insecure",
    )
    assert "datasource/fedora created" in place.cdi(*arguments, "--timeout", "280s").stdout
    source = place.kubectl.get("datasource", "fedora")
    assert source["metadata"]["labels"] == {"instancetype.kubevirt.io/default-preference": "fedora"}
    volume = source["spec"]["source"]["pvc"]["name"]
    assert digest(cluster, place.kubectl, volume, "Block", len(content)) == sha256(content)


@pytest.fixture(scope="module")
def browser():
    if not os.path.exists(CHROMIUM):
        pytest.skip("there is no Chromium: scripts/setup test installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--headless"])
        yield made
        made.close()


def _signed_in(browser, place, token):
    page = browser.new_context(ignore_https_errors=True).new_page()
    page.set_default_timeout(240_000)
    page.goto(place.url)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    return page


def _role(kubectl, name, *rules):
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": verbs} for group, resource, verbs in rules]
    kubectl.create(
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules}
    )


def test_the_page_makes_a_volume_with_its_user_s_token(cluster, place, browser, tmp_path, request):
    from playwright.sync_api import expect

    content = disk()
    (tmp_path / "image.raw").write_bytes(content)
    _role(
        place.kubectl,
        "painter",
        ("cdi.kubevirt.io", "datavolumes", ["get", "list", "create", "delete"]),
        ("upload.cdi.kubevirt.io", "uploadtokenrequests", ["create"]),
    )
    classes = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"{place.kubectl.namespace}-classes"},
        "rules": [{"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["list"]}],
    }
    place.kubectl.create(classes)
    request.addfinalizer(lambda: place.kubectl.delete("clusterrole", classes["metadata"]["name"]))
    token = place.token("painter", "painter")
    place.kubectl.run(
        "create", "clusterrolebinding", classes["metadata"]["name"], f"--clusterrole={classes['metadata']['name']}",
        f"--serviceaccount={place.kubectl.namespace}:painter",
    )  # fmt: skip
    request.addfinalizer(lambda: place.kubectl.delete("clusterrolebinding", classes["metadata"]["name"]))
    page = _signed_in(browser, place, token)
    page.get_by_role("textbox", name="Namespace").fill(place.kubectl.namespace)
    page.get_by_role("button", name="Show").click()
    page.get_by_text("Golden images").wait_for()
    page.get_by_role("button", name="Choose a file").wait_for()
    expect(page.get_by_role("button", name="Choose a file")).to_be_enabled(timeout=240_000)
    page.set_input_files("#file", str(tmp_path / "image.raw"))
    page.get_by_label("Name of the volume").fill("painted")
    page.get_by_label("Size").fill(ROOMY)
    page.get_by_label("Storage class").select_option("csi-wait")
    page.get_by_label("Access mode").select_option("ReadWriteOnce")
    page.get_by_role("button", name="Create and upload").click()
    row = page.locator("#volumes > li").filter(has=page.get_by_role("heading", name="painted", exact=True))
    row.get_by_text("Succeeded").wait_for()
    page.screenshot(path=tmp_path / "cluster.png", full_page=True)
    # The storage profile chooses the volume mode.
    mode = place.kubectl.get("persistentvolumeclaim", "painted")["spec"]["volumeMode"]
    assert digest(cluster, place.kubectl, "painted", mode, len(content)) == sha256(content)
    page.get_by_role("button", name="Delete painted").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    row.wait_for(state="detached")
    place.kubectl.wait_gone("datavolume", "painted", SLOW)


def test_the_page_can_do_no_more_than_its_token(place, browser):
    """The proxy's own client certificate must not widen what the page may do."""
    place.kubectl.create(data_volume("looked-at", {"upload": {}}, "local"))
    _role(place.kubectl, "looker", ("cdi.kubevirt.io", "datavolumes", ["get", "list"]))
    page = _signed_in(browser, place, place.token("looker", "looker"))
    page.get_by_role("textbox", name="Namespace").fill(place.kubectl.namespace)
    page.get_by_role("button", name="Show").click()
    row = page.locator("#volumes > li").filter(has=page.get_by_role("heading", name="looked-at", exact=True))
    row.wait_for()
    page.get_by_text("may not create DataVolumes or create upload tokens").wait_for()
    assert page.get_by_role("button", name="Choose a file").is_disabled()
    assert not page.get_by_role("button", name="Delete looked-at").is_visible()
    statuses = page.evaluate(
        """async ([namespace]) => {
          const token = sessionStorage.getItem('cdi-token');
          const ask = (method, path, body) => fetch(`/page/api/volumes/${namespace}${path}`, {method, body,
            headers: {Authorization: `Bearer ${token}`, 'Content-Type': 'application/json'}}).then((a) => a.status);
          return [await ask('POST', '', '{"name": "x", "size": "1Gi"}'), await ask('DELETE', '/looked-at?uid=x'),
            await ask('POST', '/looked-at/token', '{}')];
        }""",
        [place.kubectl.namespace],
    )
    assert statuses == [403, 403, 403]


def test_nobody_s_token_lets_nobody_in(place, browser):
    page = _signed_in(browser, place, "eyJhbGciOiJub25lIn0.e30.")
    page.locator("#login-error").wait_for()
    assert page.locator("#desk").is_hidden()
