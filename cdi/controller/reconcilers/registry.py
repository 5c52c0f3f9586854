"""Table of all reconcilers, which dispatches changes and requests.

A further kind is one more module with a class that implements `base.Reconciler`, and one more line in `RECONCILERS`.
"""

from __future__ import annotations

from collections.abc import KeysView, Mapping
from typing import Final

from cdi.api.errors import AdmissionDenied, InvalidManifest
from cdi.api.kinds import Resource
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import Reconciler, Watch
from cdi.controller.reconcilers.cdi import CDIReconciler
from cdi.controller.reconcilers.cdiconfig import CDIConfigReconciler
from cdi.controller.reconcilers.clone_gc import SnapshotReconciler, SourcePodReconciler
from cdi.controller.reconcilers.dataimportcron import DataImportCronReconciler
from cdi.controller.reconcilers.datasource import DataSourceReconciler
from cdi.controller.reconcilers.datavolume import DataVolumeReconciler
from cdi.controller.reconcilers.dependencies import Dependencies
from cdi.controller.reconcilers.objecttransfer import ObjectTransferReconciler
from cdi.controller.reconcilers.storageprofile import StorageProfileReconciler
from cdi.controller.request import Request
from cdi.controller.result import Result, TerminalError
from cdi.kube.reflector import WatchEvent

RECONCILERS: Final[tuple[type[Reconciler], ...]] = (
    DataVolumeReconciler,
    SnapshotReconciler,
    SourcePodReconciler,
    DataSourceReconciler,
    DataImportCronReconciler,
    ObjectTransferReconciler,
    StorageProfileReconciler,
    CDIConfigReconciler,
    CDIReconciler,
)


def _watches_by_resource() -> Mapping[Resource, tuple[Watch, ...]]:
    found: dict[Resource, tuple[Watch, ...]] = {}
    for reconciler in RECONCILERS:
        for watch in reconciler.watches():
            found[watch.resource] = (*found.get(watch.resource, ()), watch)
    return found


WATCHES: Final = _watches_by_resource()
"""Watches of all reconcilers."""


def requests_for(resource: Resource, change: WatchEvent, caches: InformerSet) -> KeysView[Request]:
    """Return the requests that depend on a changed object, each once, in an order that does not vary."""
    found: dict[Request, None] = {}
    for watch in WATCHES.get(resource, ()):
        found.update(dict.fromkeys(watch.requests(change, caches)))
    return found.keys()


def initial_requests(caches: InformerSet) -> KeysView[Request]:
    """Return the requests to reconcile once at startup, in an order that does not vary."""
    return dict.fromkeys(request for reconciler in RECONCILERS for request in reconciler.initial(caches)).keys()


class Reconcilers:
    """One instance of each reconciler, for one term of leadership."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._by_kind = {reconciler.name: reconciler(dependencies) for reconciler in RECONCILERS}

    async def reconcile(self, request: Request) -> Result:
        """Reconcile a request once, with the reconciler of its kind.

        Raises:
            TerminalError: The object, or one that it depends on, is invalid; only a change of it helps.
            Conflict: The plan was based on an outdated state.
            CdiError: Any other error of the client.

        """
        try:
            return await self._by_kind[request.kind].reconcile(request)
        except AdmissionDenied:
            raise  # an admission policy that denies a status or an annotation now may be changed later
        except InvalidManifest as error:
            raise TerminalError(error) from error

    async def report_invalid(self, request: Request, error: InvalidManifest) -> None:
        """Report an object that is invalid, or that depends on an invalid one, in its status and Events.

        Raises:
            CdiError: Any error of the API server when the status is written.

        """
        await self._by_kind[request.kind].report_invalid(request, error)
