"""Tests of the cluster's TLS policy at the proxy's own port."""

import logging
import socket
import ssl
import threading
from contextlib import closing, contextmanager

import pytest
import trustme

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.kinds import CDI_CONFIGS, CDIS
from cdi.kube.client import Listing
from cdi.kube.sync import SyncClient
from cdi.server.proxy.policy import ClusterPolicy
from cdi.server.proxy.run import ServingContext
from cdi.server.tls import TlsPolicy

MODERN = {"type": "Modern", "modern": {}}
OLD = {"type": "Old", "old": {}}


class Api:
    """A client whose API server is two attributes."""

    def __init__(self):
        self.cdis, self.config, self.failure = [], None, None
        self.looked = threading.Semaphore(0)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc): ...

    async def list(self, resource):
        assert resource is CDIS
        if self.failure is not None:
            self.looked.release()
            raise self.failure
        return Listing(items=self.cdis, version="1")

    async def get(self, resource, namespace, name):
        assert (resource, namespace, name) == (CDI_CONFIGS, None, "config")
        self.looked.release()
        if self.config is None:
            raise NotFound("no")
        return self.config


def config(profile=None):
    spec = {} if profile is None else {"tlsSecurityProfile": profile}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDIConfig", "metadata": {"name": "config"}, "spec": spec,
    }  # fmt: skip


def installation(profile=None, *, authority=True):
    spec = {} if profile is None else {"config": {"tlsSecurityProfile": profile}}
    annotations = {"cdi.kubevirt.io/configAuthority": ""} if authority else {}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "metadata": {"name": "cdi", "annotations": annotations},
        "spec": spec,
    }  # fmt: skip


@pytest.fixture
def api():
    return Api()


@contextmanager
def followed(api):
    with SyncClient(api) as client, closing(ClusterPolicy(client, 0.01)) as policy:
        yield policy


def looked_again(api):
    """Wait until the current state has been read and applied.

    Several reads are awaited: one that was under way may have seen the earlier state, and the next begins after its
    result is applied.
    """
    while api.looked.acquire(blocking=False):
        pass
    for _ in range(3):
        assert api.looked.acquire(timeout=30)


@pytest.mark.parametrize(
    ("cdis", "found", "minimum"),
    [
        ([], None, "TLSv1_2"),
        ([], config(), "TLSv1_2"),
        ([], config(MODERN), "TLSv1_3"),
        ([installation(authority=False)], config(MODERN), "TLSv1_3"),
        ([installation(OLD, authority=False)], config(MODERN), "TLSv1_2"),
        ([installation(MODERN)], config(), "TLSv1_3"),
        ([installation()], config(MODERN), "TLSv1_2"),
        ([{**installation(MODERN), "spec": 5}], config(), "TLSv1_2"),
    ],
)
def test_what_was_asked_for_counts_from_the_first_connection_on(api, cdis, found, minimum):
    api.cdis, api.config = cdis, found
    with followed(api) as policy:
        assert policy().minimum is ssl.TLSVersion[minimum]


def test_a_change_is_followed_and_a_failure_changes_nothing(api, caplog):
    caplog.set_level(logging.WARNING)
    with followed(api) as policy:
        assert policy() == TlsPolicy()
        api.config = config(MODERN)
        looked_again(api)
        assert policy().minimum is ssl.TLSVersion.TLSv1_3
        api.failure = ClusterForbidden("no")
        looked_again(api)
        assert policy().minimum is ssl.TLSVersion.TLSv1_3
        assert len(caplog.records) == 1
        api.config, api.failure = None, None
        looked_again(api)
        assert policy() == TlsPolicy()


def test_who_may_not_look_serves_as_usual(api):
    api.failure = ClusterForbidden("no")
    with followed(api) as policy:
        assert policy() == TlsPolicy()


# --- connections --------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    made = trustme.CA()
    renew(made, tmp_path)
    return made


def renew(authority, directory):
    leaf = authority.issue_cert("localhost")
    for name, blob in (("tls.crt", leaf.cert_chain_pems[0]), ("tls.key", leaf.private_key_pem)):
        blob.write_to_path(directory / "new")
        (directory / "new").rename(directory / name)


def offered(front, authority, version):
    """Return the TLS version and certificate serial number that a client of `version` gets, None if it is rejected."""
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    context.maximum_version = version
    ours, theirs = socket.socketpair()

    def serve():
        try:
            with front().wrap_socket(ours, server_side=True) as sock:
                sock.recv(1)
        except OSError:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with context.wrap_socket(theirs, server_hostname="localhost") as sock:
            return sock.version(), sock.getpeercert()["serialNumber"]
    except ssl.SSLError:
        return None
    finally:
        theirs.close()
        thread.join()


def test_the_next_connection_gets_what_is_asked_for_now(authority, tmp_path):
    policy = TlsPolicy()
    front = ServingContext(str(tmp_path), lambda: policy)
    two, three = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    first = offered(front, authority, two)
    assert first[0] == "TLSv1.2"
    policy = TlsPolicy(minimum=three)
    assert offered(front, authority, two) is None
    assert offered(front, authority, three) == ("TLSv1.3", first[1])
    # A renewed certificate is offered under the same policy, and relaxing the policy works.
    renew(authority, tmp_path)
    assert offered(front, authority, two) is None
    second = offered(front, authority, three)
    assert second[1] != first[1]
    policy = TlsPolicy()
    assert offered(front, authority, two) == ("TLSv1.2", second[1])
