"""Changes of a DataImportCron of one architecture, which the one of several architectures shows."""

from __future__ import annotations

from cdi.api.kinds import DATA_IMPORT_CRONS
from cdi.controller.reconcilers.registry import requests_for
from cdi.controller.request import Request
from cdi.kube.reflector import WatchEvent


class Watches:
    """Caches without any object."""

    def values(self, _resource):
        return []


def test_the_parent_is_reconciled_when_the_status_of_a_child_changes():
    owner = {"kind": "DataImportCron", "name": "fedora-cron", "uid": "u", "controller": True}
    stranger = {"kind": "DataSource", "name": "fedora", "uid": "d"}
    body = {"metadata": {"namespace": "n", "name": "fedora-cron-arm64", "ownerReferences": [stranger, owner]}}
    change = WatchEvent(type="MODIFIED", old=body, new=body)
    assert list(requests_for(DATA_IMPORT_CRONS, change, Watches())) == [
        Request(kind="cron", namespace="n", name="fedora-cron-arm64"),
        Request(kind="cron", namespace="n", name="fedora-cron"),
    ]
