"""Tests of the test cluster's API client: splitting watch streams, names of kinds, and Retry-After."""

import json

import pytest

from tests.cluster.direct import Direct, Kind, RequestError, _discovered, events
from tests.faults.server import Fault

EVENTS = [{"type": "ADDED", "object": {"name": "ü" * count, "more": {"n": count}}} for count in (1, 300, 0)]
TEXT = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in EVENTS).encode()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_every_document_comes_out_once(size):
    assert list(events(TEXT[at : at + size] for at in range(0, len(TEXT), size))) == EVENTS


def test_a_document_is_seen_before_the_next_one_comes():
    def chunks():
        yield json.dumps(EVENTS[0]).encode() + b'\n{"type"'
        raise AssertionError("it was there already")

    assert next(events(chunks())) == EVENTS[0]


def test_a_watch_that_has_nothing_more_to_say_ends():
    over = json.dumps({"type": "ERROR", "object": {"code": 410}}).encode() + b"\n"
    assert list(events([TEXT, over, TEXT])) == EVENTS


def test_a_kind_goes_by_all_its_names():
    listed = {
        "items": [
            {
                "metadata": {"name": "cdi.kubevirt.io"},
                "versions": [
                    {
                        "version": "v1beta1",
                        "resources": [
                            {
                                "resource": "datavolumes", "singularResource": "datavolume", "scope": "Namespaced",
                                "responseKind": {"kind": "DataVolume"}, "shortNames": ["dv", "dvs"],
                            }
                        ],
                    }
                ],
            }
        ]
    }  # fmt: skip
    (found,) = _discovered(listed)
    assert isinstance(found, Kind)
    assert {"dv", "dvs", "datavolume", "datavolumes", "datavolumes.cdi.kubevirt.io"} <= found.names()
    assert found.path("vms", "disk") == "/apis/cdi.kubevirt.io/v1beta1/namespaces/vms/datavolumes/disk"


@pytest.fixture
def api(tmp_path, fault_server):
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": fault_server.url("")}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }  # fmt: skip
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return Direct(path)


def test_a_server_that_says_when_it_is_ready_is_asked_again(api, fault_server):
    fault_server.put("/readyz", b"ok", faults=[Fault(status=status, retry_after="0") for status in (429, 503)])
    assert api.read("/readyz") == "ok"


def test_a_refusal_is_told(api, fault_server):
    fault_server.put("/readyz", b"ok", faults=[Fault(status=429)])
    with pytest.raises(RequestError):
        api.read("/readyz")
    assert len(fault_server.asked("/readyz")) == 1
