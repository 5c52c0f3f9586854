"""Interface of reconcilers: what they watch, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from cdi.api.errors import InvalidManifest
from cdi.api.kinds import Object, Resource
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.dependencies import Dependencies
from cdi.controller.request import Request
from cdi.controller.result import Result
from cdi.kube.reflector import WatchEvent

Handler = Callable[[WatchEvent, InformerSet], Iterable[Request]]
"""Function from a change to the requests of one reconciler that depend on it."""
Predicate = Callable[[WatchEvent], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Changes of one resource that lead to requests of a reconciler."""

    resource: Resource
    handler: Handler
    predicate: Predicate | None = None
    """Returns whether a change is relevant; None if every change is."""

    def requests(self, change: WatchEvent, caches: InformerSet) -> Iterable[Request]:
        """Return the requests that depend on a change."""
        return () if self.predicate is not None and not self.predicate(change) else self.handler(change, caches)


def changed(facts: Callable[[Object | None], object]) -> Predicate:
    """Return a predicate that holds if these facts of the object have changed; they are None if there is no object."""

    def predicate(change: WatchEvent) -> bool:
        return facts(change.old) != facts(change.new)

    return predicate


class Reconciler(Protocol):
    """Reconciler of one kind of request."""

    name: ClassVar[str]
    """Kind of its requests, which logs and metrics show."""
    resource: ClassVar[Resource]
    """Resource of the objects that it reconciles, in whose status and Events errors are reported."""

    def __init__(self, dependencies: Dependencies) -> None: ...

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        """Return the changes that lead to requests of this kind."""
        ...

    @staticmethod
    def initial(caches: InformerSet) -> Iterable[Request]:
        """Return the requests to reconcile once at startup, when the caches are in sync."""
        ...

    async def reconcile(self, request: Request) -> Result:
        """Reconcile a request once.

        Raises:
            Conflict: The plan was based on an outdated state.
            InvalidManifest: The object, or one that it depends on, is invalid.
            CdiError: Any other error of the client.

        """
        ...

    async def report_invalid(self, request: Request, error: InvalidManifest) -> None:
        """Report that an object, or one that it depends on, is invalid, if this installation handles it.

        Raises:
            CdiError: Any error of the API server when the status is written.

        """
        ...


class KindReconciler:
    """Base of reconcilers that report errors in the object that a request names."""

    resource: ClassVar[Resource]

    def __init__(self, dependencies: Dependencies) -> None:
        self._d = dependencies

    def get_object(self, request: Request) -> Object | None:
        """Return the object in which errors are reported; None if it does not exist."""
        return self._d.caches.get(self.resource, request.namespace, request.name)

    def handles(self, request: Request, body: Object) -> bool:
        """Return whether this installation handles an object."""
        return self._d.ownership.handles(request.namespace, body)

    async def report_invalid(self, request: Request, error: InvalidManifest) -> None:
        """Implement `Reconciler.report_invalid`."""
        body = self.get_object(request)
        if body is not None and self.handles(request, body):
            await self._d.report_invalid(body, error)
