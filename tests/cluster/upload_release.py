"""The chart's upload proxy for one namespace, and its clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdi.api.upload_protocol import TUS_CONTENT
from cdi.controller.upload_certificates import PROXY, PROXY_SIGNER
from cdi.kube.certificates import BUNDLE_KEY
from tests.cluster import cdi_image, upload_api
from tests.cluster import helm as helms
from tests.cluster.build import keep_go_program
from tests.cluster.cdi import definitions
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import SOURCES, Layout
from tests.cluster.reader import digests, pod_of_many
from tests.cluster.test_apiserver import until
from tests.cluster.test_chart import Release
from tests.cluster.volumes import SLOW, data_volume, look, sha256, wait_phase
from tests.cluster.worker_pods import JOURNALS, RESTRICTED

Document = dict[str, Any]
PREFIX = "cdi.kubevirt.io/"
UPLOAD: Document = {"upload": {}}
WAYS = (("csi", "Filesystem"), ("csi", "Block"), ("local", "Filesystem"), ("local", "Block"))
"""Storage classes and volume modes: by a populator, and directly into the claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The result of curl."""

    exit: int
    status: int
    body: str


class Uploads:
    """An installed chart and its clients."""

    def __init__(self, cluster: Cluster, release: Release, directory: Path) -> None:
        self.cluster, self.release, self.directory = cluster, release, directory
        self.system: Kubectl = release.system
        self.work: Kubectl = release.work
        self.host = f"{PROXY}.{self.system.namespace}.svc"
        self.url = f"https://{self.host}"
        self.address = str(self.system.get("service", PROXY)["spec"]["clusterIP"])
        self.authority = directory / "proxy-ca.crt"
        self.believe()

    def believe(self) -> None:
        """Trust the CA bundle that is currently published for the proxy's clients."""
        bundle = self.system.get("configmap", f"{PROXY_SIGNER}-bundle")["data"][BUNDLE_KEY]
        self.authority.write_text(bundle)

    def token(self, claim: str) -> str:
        return upload_api.token(self.work, claim)

    def proxy_pod(self) -> Document:
        """Return the proxy's pod that is not terminating."""
        pods = self.system.get_all("pods", "cdi.kubevirt.io=cdi-uploadproxy")
        (found,) = [each for each in pods if "deletionTimestamp" not in each["metadata"]]
        return found

    # --- Volumes ------------------------------------------------------------------------------------------------

    def volume(self, name: str, storage_class: str, mode: str = "Filesystem", size: str = "24Mi", **more: Any) -> str:
        """Create a DataVolume that waits for an upload."""
        body = data_volume(name, UPLOAD, storage_class, mode=mode, size=size)
        body["spec"].update(more)
        self.work.create(body)
        return name

    def ready(self, *names: str) -> None:
        """Wait until the volumes accept uploads."""
        for name in names:
            wait_phase(self.work, name, "UploadReady")
            self.work.wait(
                "persistentvolumeclaim", name, "ready for an upload",
                lambda body: (body["metadata"].get("annotations") or {}).get(f"{PREFIX}storage.pod.ready") == "true",
                SLOW,
            )  # fmt: skip

    def of_each_way(self, prefix: str, size: str = "24Mi") -> dict[str, str]:
        """Create a DataVolume for each of `WAYS`, wait until they accept uploads, and return their modes by name."""
        made = {f"{prefix}-{kind}-{mode.lower()}": (kind, mode) for kind, mode in WAYS}
        for name, (kind, mode) in made.items():
            self.volume(name, kind, mode, size)
        self.ready(*made)
        return {name: mode for name, (_, mode) in made.items()}

    def hold(self, volumes: dict[str, str], content: bytes) -> None:
        """Assert that all volumes become Succeeded and hold this content followed by zeros."""
        for name in volumes:
            wait_phase(self.work, name, "Succeeded")
        self.hold_claims(volumes, content)

    def hold_claims(self, volumes: dict[str, str], content: bytes) -> None:
        """Assert the same for claims, which need not have a DataVolume."""
        name = f"read-{next(iter(volumes))}"
        self.work.create(pod_of_many(name, self.cluster.image, digests(volumes, len(content)), volumes))
        ended = self.work.wait(
            "pod", name, "at its end", lambda pod: pod["status"].get("phase") in {"Succeeded", "Failed"}, SLOW
        )
        text = self.work.logs(name)
        assert ended["status"]["phase"] == "Succeeded", text
        self.work.delete("pod", name)
        found = {words[0]: tuple(words[1:]) for line in text.splitlines() if (words := line.split())}
        assert found == dict.fromkeys(volumes, (sha256(content), "0"))

    def holds_file(self, name: str, path: str, content: str) -> None:
        """Assert that an archive's volume becomes Succeeded and has this file."""
        wait_phase(self.work, name, "Succeeded")
        assert look(self.cluster, self.work, name, "Filesystem", f"cat /data/{path}") == content

    def noted(self, name: str, mode: str) -> int:
        """Return the number of bytes in the journal, from which another server would resume."""
        pod = server_pod(self.work, name)["metadata"]["name"]
        script = "import os, sys; name = sys.argv[1]; print(open(name).read() if os.path.exists(name) else '')"
        if mode == "Block":  # a block volume has no room for the journal, so the controller stores it
            claim = annotations(self.work, name).get("storage.populator.pvcPrime", name)
            text = annotations(self.work, claim).get("storage.journal", "")
        else:
            text = self.work.run("exec", pod, "--", "python3", "-c", script, JOURNALS[mode])
        return int(json.loads(text)["watermark"]) if text.strip() else 0

    def progress(self, name: str) -> Document:
        """Return `progress` and `journal` as the upload server reports them to the controller."""
        address = server_pod(self.work, name)["status"]["podIP"]
        connection = http.client.HTTPSConnection(address, 8443, timeout=SLOW, context=ssl._create_unverified_context())
        with contextlib.closing(connection):
            connection.request("GET", "/progress")
            told: Document = json.loads(connection.getresponse().read())
            return told

    def received(self, name: str) -> int:
        """Return the number of bytes that the volume's upload server has received since its pod started."""
        return int(self.progress(name)["progress"]["fetched"])

    # --- Clients ------------------------------------------------------------------------------------------------

    def curl(self, path: str, *arguments: str, token: str | None, seconds: float = 2 * SLOW) -> Said:
        """Run curl as a user whose proxy name is resolved without DNS."""
        with self.curling(path, *arguments, token=token) as process:
            out, errors = process.communicate(timeout=seconds)
        body, _, status = out.rpartition("\n")
        return Said(exit=process.returncode, status=int(status), body=body + errors)

    def curling(self, path: str, *arguments: str, token: str | None) -> subprocess.Popen[str]:
        """Start curl with the same options and return the process."""
        command = [
            "curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", str(self.authority),
            "--resolve", f"{self.host}:443:{self.address}", "--write-out", "\n%{http_code}",
        ]  # fmt: skip
        if token is not None:
            command += ["--header", f"Authorization: Bearer {token}"]
        return subprocess.Popen(
            [*command, *arguments, self.url + path],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def connect(self, timeout: float = SLOW) -> ssl.SSLSocket:
        """Connect to the proxy and verify its certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        plain = socket.create_connection((self.address, 443), timeout)
        return context.wrap_socket(plain, server_hostname=self.host)


@contextlib.contextmanager
def installed(cluster: Cluster, directory: Path) -> Iterator[Uploads]:
    """Install the chart for a namespace of its own, while no other test uses uploads."""
    if cluster.layout is None:
        pytest.skip("only our own cluster's Services are reached from here")
    definitions(cluster)
    repository, _, tag = cdi_image.provide(cluster).rpartition(":")
    helm = helms.Helm(program=helms.build(Layout.default()), home=directory / "helm", namespace="system")
    with upload_api.turn(), cluster.namespace("uploads") as system, cluster.namespace("uploads-work") as work:
        for each in (system, work):
            each.merge("namespace", each.namespace, {"metadata": {"labels": RESTRICTED}})
        release = Release(cluster, helm, "uploads", system, work)
        values = {
            "image": {"repository": repository, "tag": tag},
            "crds": {"install": False},
            "cdi": {"create": False},
            "webhooks": {"create": False},
            # It must not reconcile the objects of other tests.
            "controller": {"extraArgs": [f"--watch-namespaces={work.namespace}"]},
            "uploadProxy": {"drainSeconds": 5},
        }
        try:
            release.install(values)
            until("its API is available", lambda: upload_api.available(cluster.kubectl))
            until("its API is known", lambda: upload_api.discovered(work))
            yield Uploads(cluster, release, directory)
        finally:
            if release.installed():
                release.uninstall()


def refused(release: Release) -> list[str]:
    """Return log lines about requests that the release's own permissions did not allow."""
    return [
        line
        for deployment in ("cdi-deployment", "cdi-apiserver", "cdi-uploadproxy")
        for line in release.log(deployment).splitlines()
        if "orbidden" in line
    ]


def annotations(kubectl: Kubectl, claim: str) -> dict[str, str]:
    """Return our annotations of the claim without their common prefix."""
    found = kubectl.get("persistentvolumeclaim", claim)["metadata"].get("annotations") or {}
    return {name.removeprefix(PREFIX): text for name, text in found.items() if name.startswith(PREFIX)}


def server_pod(kubectl: Kubectl, claim: str) -> Document:
    """Return the pod of a claim's upload server."""
    return kubectl.get("pod", annotations(kubectl, claim)["storage.uploadPodName"])


class Resumable:
    """A tus upload controlled by the test, over persistent connections."""

    def __init__(self, uploads: Uploads, name: str, content: bytes) -> None:
        self._uploads, self.name, self._content = uploads, name, content
        made = self._ask("POST", f"/v1beta1/tus/{uploads.work.namespace}/{name}", {"Upload-Length": str(len(content))})
        assert made.status == 201, made.text
        self.path = made.headers["Location"]
        self._sock: ssl.SSLSocket | None = None
        self.sent = 0
        """Offset in bytes after the last byte sent, including earlier requests."""

    @property
    def url(self) -> str:
        return self._uploads.url + self.path

    def offset(self) -> int:
        """Return the number of bytes that have arrived, -1 while the server is unavailable."""
        try:
            told = self._ask("HEAD", self.path, {})
        except OSError:
            return -1
        assert told.status in {200, 503}, (told.status, told.text)
        return int(told.headers["Upload-Offset"]) if told.status == 200 else -1

    def begin(self, offset: int) -> None:
        """Send the header of a request for all bytes from `offset` on."""
        self._sock = self._uploads.connect()
        length = len(self._content) - offset
        fields = {**self._fields(), "Upload-Offset": str(offset), "Content-Type": TUS_CONTENT, "Content-Length": length}
        lines = [f"PATCH {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._sock.sendall("\r\n".join((*lines, "", "")).encode())
        self.sent = offset

    def send(self, count: int) -> None:
        """Send the next `count` bytes of the current request."""
        assert self._sock is not None
        self._sock.sendall(self._content[self.sent : self.sent + count])
        self.sent += count

    def piece(self, begin: int, end: int) -> int:
        """Send bytes in a request of their own and return its status."""
        fields = {"Upload-Offset": str(begin), "Content-Type": TUS_CONTENT}
        return self._ask("PATCH", self.path, fields, self._content[begin:end]).status

    def close(self) -> None:
        """Close the connection as a client that disappears."""
        if self._sock is not None:
            self._sock.close()

    def end(self) -> tuple[int, str]:
        """Return status and body of the response to the current request; 0 if the connection broke."""
        assert self._sock is not None
        self._sock.settimeout(SLOW)
        with self._sock as sock:
            try:
                answer = http.client.HTTPResponse(sock)
                answer.begin()
                return answer.status, answer.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    def _fields(self) -> dict[str, Any]:
        # Each request has a new token, because tokens expire after five minutes.
        token = self._uploads.token(self.name)
        return {"Host": self._uploads.host, "Authorization": f"Bearer {token}", "Tus-Resumable": "1.0.0"}

    def _ask(self, method: str, path: str, fields: dict[str, str], body: bytes = b"") -> Answer:
        connection = http.client.HTTPSConnection(self._uploads.host, timeout=SLOW)
        connection.sock = self._uploads.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body, {**self._fields(), **fields})
            answer = connection.getresponse()
            return Answer(status=answer.status, headers=answer.headers, text=answer.read().decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response of the proxy."""

    status: int
    headers: Mapping[str, str]
    text: str


class Virtctl:
    """``virtctl``, built from KubeVirt's Go module, with an installed chart to upload into."""

    def __init__(self, uploads: Uploads) -> None:
        self._program = keep_go_program(Layout.default(), SOURCES / "virtctl")
        self._uploads = uploads

    def upload(
        self, name: str, image: Path, *more: str, noun: str = "dv", option: str = "--image-path"
    ) -> subprocess.Popen[str]:
        command = [
            self._program, "image-upload", noun, name, f"{option}={image}", "--insecure",
            f"--uploadproxy-url=https://{self._uploads.address}", f"--namespace={self._uploads.work.namespace}", *more,
        ]  # fmt: skip
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._uploads.directory),
            "KUBECONFIG": str(self._uploads.work.kubeconfig),
        }
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip


def succeeded(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate(timeout=2 * SLOW)
    assert process.returncode == 0, out
    assert "503" not in out, out
    assert "unexpected return value" not in out, out
