"""Two days of certificate rotation during uploads: none is interrupted, and expired certificates are rejected."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cdi.api.annotations import MANAGED_CERTIFICATE
from cdi.api.upload_protocol import CLIENT_NAME
from cdi.controller.certificates import CLIENT_SIGNER, SERVER_SIGNER
from cdi.controller.upload_certificates import CLIENT_CERTIFICATE, PROXY_CERTIFICATE, PROXY_SIGNER
from cdi.kube import pki
from cdi.kube.pki import CERTIFICATE_LIFETIME
from cdi.kube.shared_objects import encoded
from tests.cluster import upload_api
from tests.cluster.test_apiserver import until
from tests.cluster.test_cluster import service_outside
from tests.cluster.test_upload_api import claim
from tests.cluster.upload_api import TIMEOUT
from tests.cluster.upload_clock import AUTHORITIES, Clock, bundle, secret, servers
from tests.cluster.upload_release import Resumable, installed, refused, server_pod
from tests.cluster.volumes import MIB, SLOW, disk

pytestmark = pytest.mark.timeout(TIMEOUT)
SIGNED_BY = {CLIENT_CERTIFICATE: CLIENT_SIGNER, PROXY_CERTIFICATE: PROXY_SIGNER}
"""Signer of each of the installation's certificates; upload servers have theirs from `SERVERS`."""
DRIP = 8 << 10


@pytest.fixture(scope="module")
def uploads(cluster, tmp_path_factory):
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    with installed(cluster, tmp_path_factory.mktemp("uploads")) as made:
        yield made


class Dripping:
    """A client whose single request lasts as long as the test wants."""

    def __init__(self, resumable, length):
        self._resumable, self._length = resumable, length
        self._enough = threading.Event()
        self._trouble = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            self._resumable.begin(0)
            while not self._enough.wait(1) and self._resumable.sent + DRIP < self._length:
                self._resumable.send(DRIP)
            self._resumable.send(self._length - self._resumable.sent)
        except OSError as error:
            self._trouble = error

    def finish(self):
        """Send the rest, and return status and body of the response."""
        self.stop()
        assert self._trouble is None, self._trouble
        return self._resumable.end()

    def stop(self):
        self._enough.set()
        self._thread.join()

    def close(self):
        """Close the connection of a test that failed; an open one would fail whichever test runs next."""
        self.stop()
        self._resumable.close()


class Impostor:
    """A false upload server in an unmanaged namespace, which serves a given certificate and accepts every upload."""

    def __init__(self, uploads, kubectl, directory):
        self._uploads, self._directory = uploads, directory
        self.host = f"cdi-upload-there.{kubectl.namespace}.svc"
        listener = socket.create_server((uploads.cluster.host_address, 0))
        listener.settimeout(1)
        port = listener.getsockname()[1]
        self._listener = listener
        kubectl.create(
            claim(
                "there", **{"storage.upload.target": "", "storage.pod.ready": "true", "storage.pod.phase": "Running"}
            ),
            *service_outside("cdi-upload-there", uploads.cluster.host_address, 8443, port),
        )
        self._kubectl = kubectl

    def shown(self, pair):
        """Return curl's result of an upload through the proxy to this server with the certificate."""
        path = self._directory / "impostor.pem"
        path.write_bytes(pair.certificate + pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        ended = threading.Event()
        serving = threading.Thread(target=self._serve, args=(context, ended))
        serving.start()
        try:
            # A new token, because steps take minutes and tokens expire.
            token = upload_api.token(self._kubectl, "there")
            return self._uploads.curl("/v1beta1/upload", "--data-binary", "image", token=token)
        finally:
            ended.set()
            serving.join()

    def _serve(self, context, ended):
        # The proxy connects again after each failed handshake, until its patience ends.
        while not ended.is_set():
            # The peer may close the connection before the handshake.
            with contextlib.suppress(OSError):
                plain, _ = self._listener.accept()
                plain.settimeout(SLOW)
                with context.wrap_socket(plain, server_side=True) as sock:
                    sock.recv(1 << 16)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self):
        self._listener.close()


def certificate(text):
    return x509.load_pem_x509_certificate(text)


def leaves(uploads):
    """Return every leaf certificate and its authority's name, by Secret."""
    found = {name: (certificate(secret(uploads.system, name)["tls.crt"]), SIGNED_BY[name]) for name in SIGNED_BY}
    for name in servers(uploads.work):
        found[name] = certificate(secret(uploads.work, name)["tls.crt"]), SERVER_SIGNER
    return found


def seen(uploads, volumes):
    """Return whether every pod has its current Secrets and ConfigMaps.

    The check annotates an outdated pod, which makes the kubelet refresh its volumes at once.
    """
    proxy = uploads.proxy_pod()["metadata"]["name"]
    wanted = {
        "/etc/cdi/server-ca/ca-bundle.crt": b"".join(
            one.public_bytes(serialization.Encoding.PEM) for one in bundle(uploads.system, SERVER_SIGNER)
        ),
        "/etc/cdi/client/tls.crt": secret(uploads.system, CLIENT_CERTIFICATE)["tls.crt"],
        "/etc/cdi/tls/tls.crt": secret(uploads.system, PROXY_CERTIFICATE)["tls.crt"],
    }
    pods = [(uploads.system, proxy, wanted)]
    for name in volumes:
        pod = server_pod(uploads.work, name)["metadata"]["name"]
        own = secret(uploads.work, pod)
        pods.append((uploads.work, pod, {f"/var/run/cdi/tls/{one}": own[one] for one in ("tls.crt", "ca.crt")}))
    return all([_has(*each) for each in pods])


def _has(kubectl, pod, wanted):
    script = "import sys; print('\\0'.join(open(name).read() for name in sys.argv[1:]), end='')"
    text = kubectl.run("exec", pod, "--", "python3", "-c", script, *wanted)
    if [one.encode() for one in text.split("\0")] == list(wanted.values()):
        return True
    kubectl.run("annotate", "pod", pod, f"cdi.test/look={dt.datetime.now(dt.UTC).timestamp()}", "--overwrite")
    return False


def passed(uploads, clock, hours, *, authorities, signer, renewed, volumes):
    """Let `hours` pass, and wait until the controller and the kubelet have renewed and distributed what is due.

    Args:
        uploads: The installation.
        clock: Its clock.
        hours: The time to pass.
        authorities: Expected number of trusted certificate authorities of each kind.
        signer: Expected authority of the served certificates; the oldest of all has number 0.
        renewed: Whether the certificates are expected to be new.
        volumes: Volumes whose upload pods must have the new files.
    """
    uploads.system.run("scale", "deployment/cdi-deployment", "--replicas=0")
    until("it is away", lambda: not uploads.system.get_all("pods", "cdi.kubevirt.io=cdi-deployment"))
    clock.pass_by(hours)
    before = leaves(uploads)
    uploads.system.run("scale", "deployment/cdi-deployment", "--replicas=1")
    until(
        "authorities are as they are to be",
        lambda: all(len({one.subject for one in bundle(uploads.system, name)}) == authorities for name in AUTHORITIES),
    )
    clock.look()

    def as_wanted():
        return all(
            now.issuer == ours(clock, place)[signer].certificate.subject
            and (now.serial_number != before[name][0].serial_number) == renewed
            for name, (now, place) in leaves(uploads).items()
        )

    until("certificates are as they are to be", as_wanted)
    until("every pod has seen them", lambda: seen(uploads, volumes))
    uploads.believe()


def ours(clock, place):
    """Return all authorities of one kind that have ever existed, oldest first."""
    return sorted((one for one in clock.signers if one.place == place), key=lambda one: pki.issued_at(one.certificate))


def made_by(signer, name, usage, hosts=()):
    """Return a new certificate of the authority."""
    return pki.new_certificate(
        signer.pair(), name, hosts=hosts, usage=usage, lifetime=CERTIFICATE_LIFETIME, now=dt.datetime.now(dt.UTC)
    )


def let_in(uploads, name, pair, path):
    """Return whether the upload server of a volume accepts this client certificate."""
    path.write_bytes(pair.certificate + pair.key)
    pod = server_pod(uploads.work, name)
    host = f"{pod['metadata']['name']}.{uploads.work.namespace}.svc"
    pem = [one.public_bytes(serialization.Encoding.PEM).decode() for one in bundle(uploads.system, SERVER_SIGNER)]
    context = ssl.create_default_context(cadata="".join(pem))
    context.load_cert_chain(path)
    connection = http.client.HTTPSConnection(host, 8443, timeout=60)
    try:
        plain = socket.create_connection((pod["status"]["podIP"], 8443), 60)
        connection.sock = context.wrap_socket(plain, server_hostname=host)
        connection.request("HEAD", "/v1beta1/upload-async")
        return connection.getresponse().status == 200
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        connection.close()


def test_certificates_come_and_go_under_uploads(uploads, tmp_path):
    content = disk(8 * MIB)
    (tmp_path / "disk.raw").write_bytes(content)
    with contextlib.ExitStack() as stack:
        elsewhere = stack.enter_context(uploads.cluster.namespace("uploads-elsewhere"))
        impostor = Impostor(uploads, elsewhere, tmp_path)
        stack.callback(impostor.close)
        running = uploads.of_each_way("running")
        dripping = [Dripping(Resumable(uploads, name, content), len(content)) for name in running]
        for each in dripping:
            stack.callback(each.close)
        uploads.volume("pieces", "local", "Block")
        uploads.ready("pieces")
        pieces = Resumable(uploads, "pieces", content)
        clock = Clock(uploads.system, uploads.work)
        volumes = {**running, "pieces": "Block"}
        filled = dict(volumes)
        first_ca = uploads.authority.read_bytes()

        def step(number, hours, **wanted):
            """Let time pass, and assert that waiting, running and new uploads all work."""
            uploads.volume(f"before-{number}", "csi")
            uploads.ready(f"before-{number}")
            passed(uploads, clock, hours, volumes=[*volumes, f"before-{number}"], **wanted)
            uploads.volume(f"after-{number}", "local")
            uploads.ready(f"after-{number}")
            assert pieces.piece((number - 1) * MIB, number * MIB) == 204
            for name in (f"before-{number}", f"after-{number}"):
                said = uploads.curl(
                    "/v1beta1/upload", "-X", "POST", "-T", str(tmp_path / "disk.raw"), token=uploads.token(name)
                )
                assert (said.exit, said.status) == (0, 200), said
                filled[name] = "Filesystem"

        # Half of a certificate's lifetime: the same authority issues a new one.
        step(1, 12.5, authorities=1, signer=0, renewed=True)
        # Half of an authority's lifetime: its successor is published, but signs nothing until everyone trusts it.
        step(2, 12.5, authorities=2, signer=0, renewed=True)
        # Once it is distributed it signs; its predecessor is still trusted.
        step(3, 12.5, authorities=2, signer=1, renewed=True)
        old, new = ours(clock, CLIENT_SIGNER)
        for signer in (old, new):
            assert let_in(uploads, "pieces", made_by(signer, CLIENT_NAME, "client"), tmp_path / "client.pem")
        for signer in ours(clock, SERVER_SIGNER):
            said = impostor.shown(made_by(signer, impostor.host, "server", (impostor.host,)))
            assert (said.exit, said.status) == (0, 200), said
        # The predecessor expires.
        step(4, 11, authorities=1, signer=1, renewed=False)
        assert not let_in(uploads, "pieces", made_by(old, CLIENT_NAME, "client"), tmp_path / "client.pem")
        assert let_in(uploads, "pieces", made_by(new, CLIENT_NAME, "client"), tmp_path / "client.pem")
        old, new = ours(clock, SERVER_SIGNER)
        assert impostor.shown(made_by(old, impostor.host, "server", (impostor.host,))).status == 503
        assert impostor.shown(made_by(new, impostor.host, "server", (impostor.host,))).status == 200
        uploads.authority.write_bytes(first_ca)
        with pytest.raises(ssl.SSLCertVerificationError):
            uploads.connect()
        uploads.believe()
        # Requests that lasted through all steps were not interrupted.
        assert [each.finish() for each in dripping] == [(204, "")] * len(dripping)
        assert pieces.piece(4 * MIB, len(content)) == 204
        uploads.hold(filled, content)
    assert refused(uploads.release) == []


def test_an_administrator_s_certificate_is_shown_for_as_long_as_it_is_good(uploads, tmp_path):
    """This test must be last, because the proxy keeps the administrator's certificate."""
    content = disk(2 * MIB)
    (tmp_path / "disk.raw").write_bytes(content)
    authority = pki.new_authority("administrators", pki.AUTHORITY_LIFETIME, dt.datetime.now(dt.UTC))
    own = pki.new_certificate(
        authority, uploads.host, hosts=(uploads.host,), lifetime=CERTIFICATE_LIFETIME, now=dt.datetime.now(dt.UTC)
    )
    fields = {"tls.crt": own.certificate, "tls.key": own.key, "ca.crt": authority.certificate}
    uploads.system.run("annotate", "secret", PROXY_CERTIFICATE, f"{MANAGED_CERTIFICATE.key}-")
    uploads.system.merge("secret", PROXY_CERTIFICATE, {"data": encoded(fields)})
    uploads.system.run("rollout", "restart", "deployment/cdi-deployment")
    uploads.system.run("rollout", "status", "deployment/cdi-deployment", f"--timeout={SLOW:.0f}s", patience=SLOW)
    proxy = uploads.proxy_pod()["metadata"]["name"]
    until("the proxy has seen it", lambda: _has(uploads.system, proxy, {"/etc/cdi/tls/tls.crt": own.certificate}))
    uploads.authority.write_bytes(authority.certificate)
    uploads.volume("own", "local")
    uploads.ready("own")
    said = uploads.curl("/v1beta1/upload", "-X", "POST", "-T", str(tmp_path / "disk.raw"), token=uploads.token("own"))
    assert (said.exit, said.status) == (0, 200), said
    uploads.hold({"own": "Filesystem"}, content)
    assert secret(uploads.system, PROXY_CERTIFICATE) == fields
