"""Answers of the API server that golden images depend on and that no watch delivers.

A plan that needs an answer is discarded, the API server is asked, and the plan is made again: the reconciler itself
does no I/O. Answers are kept for one reconcile only, so that a right that was withdrawn is not used any more.
"""

from __future__ import annotations

from typing import Final

from cdi.api.errors import ClusterForbidden, KindNotServed, NotFound
from cdi.api.kinds import IMAGE_STREAMS, SUBJECT_ACCESS_REVIEWS, Object
from cdi.kube.client import Client
from cdi.reconcile.clone.authorization import has_permission
from cdi.reconcile.dataimportcron.context import CloneRight, ImageStream

_GROUPS: Final = ("system:serviceaccounts", "system:authenticated")


class CronReads:
    """Questions of one reconcile of a DataImportCron, and their answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rights: dict[CloneRight, bool | None] = {}
        self._streams: dict[tuple[str, str], ImageStream | None] = {}

    def may_clone(self, right: CloneRight) -> bool | None:
        """Return the answer; None if the API server has not been asked yet."""
        return self._rights.setdefault(right, None)

    def image_stream(self, namespace: str, name: str) -> ImageStream | None:
        """Return the ImageStream, or why there is none; None if it has not been read yet."""
        return self._streams.setdefault((namespace, name), None)

    async def answer(self) -> bool:
        """Ask the open questions; return whether there was any."""
        rights = [right for right, answer in self._rights.items() if answer is None]
        streams = [place for place, answer in self._streams.items() if answer is None]
        for right in rights:
            self._rights[right] = await self._review(right)
        for namespace, name in streams:
            self._streams[namespace, name] = await self._read(namespace, name)
        return bool(rights or streams)

    async def _review(self, right: CloneRight) -> bool:
        """Return whether the service account may clone, as an admission review of it would be decided."""
        for way in has_permission("PersistentVolumeClaim", right.source_namespace, right.source_name):
            for attributes in way:
                if not await self._may(right, attributes):
                    break
            else:
                return True
        return False

    async def _may(self, right: CloneRight, attributes: dict[str, str]) -> bool:
        body: Object = {
            "apiVersion": SUBJECT_ACCESS_REVIEWS.api_version,
            "kind": SUBJECT_ACCESS_REVIEWS.kind,
            "spec": {
                "user": f"system:serviceaccount:{right.namespace}:{right.service_account}",
                "groups": [_GROUPS[0], f"{_GROUPS[0]}:{right.namespace}", _GROUPS[1]],
                "resourceAttributes": attributes,
            },
        }
        answer = await self._client.create(SUBJECT_ACCESS_REVIEWS, body)
        return (answer.get("status") or {}).get("allowed") is True

    async def _read(self, namespace: str, name: str) -> ImageStream:
        try:
            return ImageStream(body=await self._client.get(IMAGE_STREAMS, namespace, name))
        except KindNotServed:
            return ImageStream(failure="this cluster has no API image.openshift.io/v1. Try: set the image's url")
        except NotFound:
            what = f"ImageStream {namespace}/{name} does not exist"
            return ImageStream(failure=f"{what}. Try: create it, or correct the name")
        except ClusterForbidden as error:
            return ImageStream(failure=error.message)
