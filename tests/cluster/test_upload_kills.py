"""Kills during uploads: resumable clients continue from the last byte, and others get a clear error."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from tusclient.client import TusClient

from tests.cluster.fault_injection import kill_inside, take_away
from tests.cluster.kubectl import KubectlError
from tests.cluster.test_apiserver import until
from tests.cluster.upload_api import TIMEOUT
from tests.cluster.upload_release import Resumable, server_pod
from tests.cluster.volumes import MIB, SLOW, disk

pytestmark = pytest.mark.timeout(TIMEOUT)
HALF = 12 * MIB
PIECE = 4 * MIB
"""Maximum number of bytes in one write, and also in flight."""
ALIVE = 1 << 10


@pytest.fixture(scope="module")
def content():
    """Return a disk whose first half begins and ends with data."""
    return disk(12 * MIB) + disk(12 * MIB, 5)


@pytest.fixture(scope="module")
def image(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "disk.raw"
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def known(uploads, monkeypatch):
    """Let tuspy resolve the proxy's name and trust its certificate."""
    lookup = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **how: lookup(uploads.address if host == uploads.host else host, *more, **how)
    )  # fmt: skip
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(uploads.authority))
    monkeypatch.setenv("NO_PROXY", uploads.host)


@contextlib.contextmanager
def under_way(uploads, content, prefix):
    """Start one upload into each kind of volume and yield when about half has arrived."""
    volumes = uploads.of_each_way(prefix, "64Mi")
    sending = [Resumable(uploads, name, content) for name in volumes]
    with contextlib.ExitStack() as stack:
        for each in sending:
            each.begin(0)
            stack.callback(each.close)
        # Send slowly, because the journal is written periodically.
        for _ in range(HALF // MIB):
            for each in sending:
                each.send(MIB)
            time.sleep(0.1)
        meanwhile(sending, "half is there", lambda: all(uploads.received(each.name) > HALF - PIECE for each in sending))
        yield volumes, sending


def meanwhile(sending, what, ready):
    """Wait for `ready` while each client sends a little, so that the server does not time it out."""

    def look():
        for each in sending:
            each.send(ALIVE)
        return ready()

    until(what, look)


def another(uploads, name, before):
    """Wait until a volume has an upload server other than `before`."""

    def there():
        with contextlib.suppress(KubectlError):
            return server_pod(uploads.work, name)["metadata"]["uid"] != before["metadata"]["uid"]
        return False

    until("there is another", there)


def go_on(uploads, resumable, image):
    """Resume with tuspy and return the offset at which it continued."""
    resumable.close()
    began = time.monotonic()
    while resumable.offset() < 0:
        assert time.monotonic() - began < SLOW
        time.sleep(0.5)
    client = TusClient(uploads.url, headers={"Authorization": f"Bearer {uploads.token(resumable.name)}"})
    with open(image, "rb") as file:
        uploader = client.uploader(file_stream=file, url=resumable.url, chunk_size=64 * MIB)
        found = uploader.offset
        uploader.upload()
    return found


def test_a_killed_proxy_costs_no_byte(uploads, content, image):
    with under_way(uploads, content, "proxy") as (volumes, sending):
        kill_inside(uploads.cluster, uploads.proxy_pod())
        for each in sending:
            assert each.end() == (0, "")
            assert each.sent - PIECE < go_on(uploads, each, image) <= each.sent
    uploads.hold(volumes, content)


def test_a_proxy_pod_that_is_replaced_costs_no_byte(uploads, content, image):
    with under_way(uploads, content, "moved") as (volumes, sending):
        take_away(uploads.system, uploads.proxy_pod()["metadata"]["name"])
        for each in sending:
            assert each.sent - PIECE < go_on(uploads, each, image) <= each.sent
    uploads.hold(volumes, content)


def test_a_killed_upload_server_costs_what_was_not_written(uploads, content, image):
    with under_way(uploads, content, "server") as (volumes, sending):
        meanwhile(
            sending,
            "it is noted how far they came",
            lambda: all(uploads.noted(name, mode) > 0 for name, mode in volumes.items()),
        )
        noted = {name: uploads.noted(name, mode) for name, mode in volumes.items()}
        before = {each.name: server_pod(uploads.work, each.name) for each in sending}
        for pod in before.values():
            kill_inside(uploads.cluster, pod)
        for each in sending:
            status, text = each.end()
            assert status == 503, (status, text)
            assert "the upload server was lost" in text, text
        for each in sending:
            another(uploads, each.name, before[each.name])
            assert noted[each.name] <= go_on(uploads, each, image) <= each.sent
    uploads.hold(volumes, content)


def test_curl_is_told_clearly_that_the_upload_server_was_lost(uploads, content, image):
    volumes = {name: "Filesystem" for name in ("told-csi", "told-local")}
    for name in volumes:
        uploads.volume(name, name.removeprefix("told-"), size="64Mi")
    uploads.ready(*volumes)
    for name in volumes:
        pod = server_pod(uploads.work, name)
        slowly = ("-X", "POST", "-T", str(image), "--limit-rate", "1M")
        with uploads.curling("/v1beta1/upload", *slowly, token=uploads.token(name)) as client:
            until("some of it is there", lambda name=name: uploads.received(name) >= MIB)
            kill_inside(uploads.cluster, pod)
            out, errors = client.communicate(timeout=SLOW)
        assert out.endswith("503"), out + errors
        assert out.startswith("error[UploadNotReady]: "), out
        assert "Try: " in out, out
        another(uploads, name, pod)
    # The suggested remedy works.
    uploads.ready(*volumes)
    for name in volumes:
        said = uploads.curl(
            "/v1beta1/upload", "-X", "POST", "-T", str(image), "--retry", "20", "--retry-delay", "2",
            token=uploads.token(name),
        )  # fmt: skip
        assert said.status == 200, said
    uploads.hold(volumes, content)


def test_after_a_killed_proxy_curl_can_begin_again_at_once(uploads, content, image):
    uploads.volume("cut", "local", size="64Mi")
    uploads.ready("cut")
    slowly = ("-X", "POST", "-T", str(image), "--limit-rate", "1M")
    with uploads.curling("/v1beta1/upload", *slowly, token=uploads.token("cut")) as client:
        until("some of it is there", lambda: uploads.received("cut") >= MIB)
        kill_inside(uploads.cluster, uploads.proxy_pod())
        out, errors = client.communicate(timeout=SLOW)
    assert client.returncode, out
    assert errors.startswith("curl: "), errors
    said = uploads.curl(
        "/v1beta1/upload", "-X", "POST", "-T", str(image),
        "--retry", "30", "--retry-delay", "1", "--retry-all-errors", "--retry-connrefused",
        token=uploads.token("cut"),
    )  # fmt: skip
    assert (said.exit, said.status) == (0, 200), said
    uploads.hold({"cut": "Filesystem"}, content)
