"""Uploads with curl, tuspy, tus-js-client and a browser through the chart's proxy into volumes of every kind."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cluster.test_upload_clients import CHROMIUM
from tests.cluster.upload_api import TIMEOUT
from tests.cluster.upload_release import annotations, refused
from tests.cluster.volumes import MIB, SLOW, disk, qcow2
from tests.integration.page.test_cross_origin import PACKAGES

pytestmark = pytest.mark.timeout(TIMEOUT)
TUS_CLIENT = Path(__file__).parents[1] / "integration/page/tus_client.mjs"


@pytest.fixture(scope="module")
def uploads(uploads):
    yield uploads
    assert refused(uploads.release) == []


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def images(content, tmp_path_factory):
    """Write the same disk as raw, compressed and qcow2 files."""
    directory = tmp_path_factory.mktemp("images")
    (directory / "disk.raw").write_bytes(content)
    (directory / "disk.raw.gz").write_bytes(gzip.compress(content, 1))
    (directory / "disk.qcow2").write_bytes(qcow2(content, directory))
    return directory


VERSIONS = ("/v1beta1", "/v1alpha1", "/v1alpha1", "/v1beta1")
"""API versions of the paths, so that both occur with and without populators and with both volume modes."""


@pytest.mark.parametrize(("path", "image"), [("/upload", "disk.qcow2"), ("/upload-async", "disk.raw")])
def test_curl_posts_it(uploads, images, content, path, image):
    volumes = uploads.of_each_way(f"post{path.replace('/', '-')}")
    for name, version in zip(volumes, VERSIONS, strict=True):
        token = uploads.token(name)
        if path == "/upload-async":
            assert uploads.curl(version + path, "--head", token=token).status == 200
        said = uploads.curl(version + path, "-X", "POST", "-T", str(images / image), token=token)
        assert (said.exit, said.status, said.body) == (0, 200, ""), said
    uploads.hold(volumes, content)
    for name in volumes:
        shown = annotations(uploads.work, name)
        assert (shown["storage.pod.phase"], shown["storage.usePopulator"]) == ("Succeeded", str("csi" in name).lower())
        said = uploads.curl("/v1beta1/upload", "-X", "POST", "-T", str(images / image), token=uploads.token(name))
        assert said.status == 503, said


@pytest.mark.parametrize(("path", "image"), [("/upload-form", "disk.raw.gz"), ("/upload-form-async", "disk.qcow2")])
def test_curl_sends_a_form(uploads, images, content, path, image):
    volumes = uploads.of_each_way(f"post{path.replace('/', '-')}")
    for name, version in zip(volumes, VERSIONS, strict=True):
        form = ("-F", "note=before", "-F", f"file=@{images / image}")
        said = uploads.curl(version + path, *form, token=uploads.token(name))
        assert (said.exit, said.status, said.body) == (0, 200, ""), said
    uploads.hold(volumes, content)


def test_curl_sends_an_archive(uploads, tmp_path):
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_text("hello")
    subprocess.run(["tar", "-C", tmp_path / "tree", "-cf", tmp_path / "archive.tar", "."], check=True)
    names = [uploads.volume(f"archive-{kind}", kind, contentType="archive") for kind in ("csi", "local")]
    uploads.ready(*names)
    for name, how in zip(names, (("-X", "POST", "-T"), ("-F",)), strict=True):
        file = f"{'file=@' if how == ('-F',) else ''}{tmp_path / 'archive.tar'}"
        said = uploads.curl("/v1beta1/upload-archive", *how, file, token=uploads.token(name))
        assert (said.exit, said.status, said.body) == (0, 200, ""), said
    for name in names:
        uploads.holds_file(name, "below/file", "hello")


def test_bytes_after_the_image_are_tolerated(uploads, images, content, tmp_path):
    """Harvester sends the end of the multipart form after the file; the device is as large as the image."""
    sent = tmp_path / "sent"
    sent.write_bytes((images / "disk.raw").read_bytes() + b"\r\n--------------------------d74496d66958873e--\r\n")
    name = uploads.volume("trailer", "local", "Block", size=str(len(content)))
    uploads.ready(name)
    said = uploads.curl("/v1alpha1/upload", "-X", "POST", "-T", str(sent), token=uploads.token(name))
    assert (said.exit, said.status) == (0, 200), said
    uploads.hold({name: "Block"}, content)


def test_tuspy(uploads, images, content, monkeypatch):
    from tusclient.client import TusClient

    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **how: known(uploads.address if host == uploads.host else host, *more, **how)
    )  # fmt: skip
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(uploads.authority))
    monkeypatch.setenv("NO_PROXY", uploads.host)
    volumes = uploads.of_each_way("tuspy")
    for name in volumes:
        client = TusClient(
            f"{uploads.url}/v1beta1/tus/{uploads.work.namespace}/{name}",
            headers={"Authorization": f"Bearer {uploads.token(name)}"},
        )
        with open(images / "disk.raw", "rb") as file:
            client.uploader(file_stream=file, chunk_size=3 * MIB, upload_checksum=True).upload()
    uploads.hold(volumes, content)


def test_tus_js_client(uploads, images, content, tmp_path):
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules/tus-js-client").is_dir():
        pytest.skip("there is no node with tus-js-client: scripts/setup test installs them")
    names = tmp_path / "names.cjs"
    names.write_text(
        "const dns = require('node:dns'), known = dns.lookup;\n"
        f"dns.lookup = (host, ...more) => known(host === '{uploads.host}' ? '{uploads.address}' : host, ...more);\n"
    )
    environment = {"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": str(uploads.authority)}
    volumes = uploads.of_each_way("tus-js")
    for name, chunk in zip(volumes, ([], [str(3 * MIB)], [], [str(3 * MIB)]), strict=True):
        endpoint = f"{uploads.url}/v1beta1/tus/{uploads.work.namespace}/{name}"
        done = subprocess.run(
            [node, "--require", names, TUS_CLIENT, PACKAGES, endpoint, uploads.token(name), images / "disk.raw", *chunk],
            capture_output=True, text=True, timeout=SLOW, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    uploads.hold(volumes, content)


def test_the_page_in_chromium(uploads, images, content, tmp_path):
    if not os.path.exists(CHROMIUM):
        pytest.skip("there is no Chromium: scripts/setup test installs it")
    from playwright.sync_api import sync_playwright

    kubectl = uploads.work
    kubectl.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "painter"}})
    account = f"--serviceaccount={kubectl.namespace}:painter"
    kubectl.run("create", "rolebinding", "painter", "--clusterrole=cdi.kubevirt.io:edit", account)
    volumes = uploads.of_each_way("page")
    rules = f"--host-resolver-rules=MAP {uploads.host} {uploads.address}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--headless", "--no-proxy-server", rules]
        )
        try:
            page = browser.new_context(ignore_https_errors=True).new_page()
            page.set_default_timeout(SLOW * 1000)
            page.goto(f"{uploads.url}/")
            page.get_by_label("Token").fill(kubectl.run("create", "token", "painter").strip())
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("textbox", name="Namespace").fill(kubectl.namespace)
            page.get_by_role("button", name="Show").click()
            for name in volumes:
                with page.expect_file_chooser() as chosen:
                    page.get_by_role("button", name=f"Upload into {name}", exact=True).click()
                chosen.value.set_files(str(images / "disk.qcow2"))
                page.get_by_role("button", name="Upload", exact=True).click()
                row = page.locator("#volumes > li").filter(has=page.get_by_role("heading", name=name, exact=True))
                row.get_by_text("Succeeded").wait_for()
            page.screenshot(path=tmp_path / "page.png", full_page=True)
        finally:
            browser.close()
    uploads.hold(volumes, content)
