"""Tests of whether quotas leave room for the objects of an import."""

from __future__ import annotations

import pytest

from cdi.explain.quota import required_resources, shortages


def claim(size, storage_class="csi"):
    return {"spec": {"storageClassName": storage_class, "resources": {"requests": {"storage": size}}}}


POD = {
    "spec": {
        "containers": [
            {"resources": {"requests": {"cpu": "100m", "memory": "60M"}, "limits": {"cpu": "750m", "memory": "600M"}}}
        ]
    }
}


def quota(hard, used=None, **spec):
    return {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}


def short(hard, used=None, *, claims=(claim("1Gi"), claim("1Gi")), pod=POD, **spec):
    return [one.resource for one in shortages([quota(hard, used, **spec)], required_resources(claims, pod))]


@pytest.mark.parametrize(
    ("hard", "used", "found"),
    [
        ({"requests.storage": "2Gi"}, {}, []),
        ({"requests.storage": "2Gi"}, {"requests.storage": "1"}, ["requests.storage"]),
        ({"persistentvolumeclaims": "1"}, {}, ["persistentvolumeclaims"]),
        (
            {"count/persistentvolumeclaims": "2"},
            {"count/persistentvolumeclaims": "1"},
            ["count/persistentvolumeclaims"],
        ),
        (
            {"csi.storageclass.storage.k8s.io/requests.storage": "1Gi"},
            {},
            ["csi.storageclass.storage.k8s.io/requests.storage"],
        ),
        ({"local.storageclass.storage.k8s.io/requests.storage": "0"}, {}, []),
        ({"pods": "5"}, {"pods": "5"}, ["pods"]),
        ({"limits.memory": "600M"}, {}, []),
        ({"limits.memory": "599M"}, {}, ["limits.memory"]),
        ({"cpu": "99m"}, {}, ["cpu"]),
        ({"services": "0"}, {}, []),
        ({"requests.storage": "nonsense"}, {}, ["requests.storage"]),
    ],
)
def test_used_and_needed_are_added(hard, used, found):
    assert short(hard, used) == found


def test_without_a_pod_only_claims_count():
    assert short({"pods": "0"}, pod=None) == []


def test_quotas_of_some_pods_only_are_passed_over():
    assert short({"pods": "0"}, scopes=["BestEffort"]) == []


def test_a_shortage_has_all_amounts():
    (found,) = shortages(
        [quota({"requests.storage": "1Gi"}, {"requests.storage": "512Mi"})], required_resources([claim("1Gi")], None)
    )
    assert str(found) == "quota q limits requests.storage to 1Gi: 512Mi used, 1Gi needed"
