"""Request handler of an upload server: uploads from the proxy with its certificate, and the progress for any client."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    ChecksumMismatch,
    SourceTruncated,
    TargetTooSmall,
    TokenInvalid,
    UploadMalformed,
    UploadNotReady,
    UploadOffsetConflict,
    UploadUnknown,
)
from cdi.api.job import Failure
from cdi.api.upload_protocol import (
    CLIENT_NAME,
    TUS_CONTENT,
    TUS_MISMATCH,
    TUS_VERSION,
    PlainUpload,
    TusUpload,
    UploadId,
    content_digests,
    declared_digest,
    number,
    piece_checksum,
    route,
    status_of,
    status_of_code,
    tus_path,
)
from cdi.codec.multipart import FormFile, boundary_of, parameters
from cdi.source.connection import ConnectionLost
from cdi.source.fed import Brought
from cdi.source.inbound.visit import Visit
from cdi.worker.serve import Answer
from cdi.worker.upload_bodies import MOST_HELD, FormBody, HashedBody, HeldBody, WholeBody, hold
from cdi.worker.upload_session import EXPIRES, Attempt, Session, told

_OPENING = 30.0
"""Seconds until the offset of a transfer must be known."""
_TAKING_OVER = 10.0
_TUS: Mapping[str, str] = {"Tus-Resumable": TUS_VERSION, "Cache-Control": "no-store"}


class UploadServer:
    """Request handler; each request has a thread of its own."""

    def __init__(self, session: Session, answers: Mapping[str, Callable[[], Answer]]) -> None:
        self._session = session
        self._answers = answers

    def serve(self, visit: Visit) -> bool:
        """Respond to a request and return whether its connection can be used for another one."""
        head = visit.head
        make = self._answers.get(head.path)
        if make is not None and head.method == "GET":
            answer = make()
            return visit.answer(200, answer.body, content_type=answer.content_type)
        found = route(head.path)
        extra = _TUS if isinstance(found, TusUpload) else None
        try:
            if visit.peer_name != CLIENT_NAME:
                raise TokenInvalid(
                    "only the upload proxy may connect, with its client certificate", remedy="send it to the proxy"
                )
            match found:
                case PlainUpload():
                    return self._plain(visit, found)
                case TusUpload():
                    return self._tus(visit, found)
                case None:
                    raise UploadMalformed("no such path", status=404)
        except ConnectionLost:
            return False
        except _Refusal as refusal:
            return visit.refuse(refusal.failure, refusal.status, headers={**(extra or {}), **refusal.headers})
        except CdiError as error:
            return not visit.answered and visit.refuse(error, status_of(error), headers=extra)

    # --- an upload in one request -------------------------------------------------------------------------------

    def _plain(self, visit: Visit, plain: PlainUpload) -> bool:
        if visit.head.method == "HEAD" and plain.asynchronous:
            return visit.answer(200)
        if visit.head.method not in {"POST", "PUT"}:
            raise UploadMalformed("use POST to upload an image", status=405)
        if plain.archive and self._session.job.content_type != "archive":
            raise UploadMalformed("the volume is for a disk, not for an archive", remedy="send it to /v1beta1/upload")
        if visit.head.length is not None:
            self._session.check_room(visit.head.length)
        self._session.check_free()
        digests = content_digests(visit.head.headers)
        form: FormBody | None = None
        body: Brought
        kind = parameters(visit.head.headers.get("content-type", ""))[0]
        if plain.form or (plain.archive and kind == "multipart/form-data"):
            if digests:
                raise UploadMalformed(
                    "a digest of the multipart form does not apply to the file in it",
                    remedy="send it as a header of the file's part",
                )
            parsed = FormFile(boundary_of(visit.head.headers.get("content-type", "")))
            body = form = FormBody(visit, parsed)
            form.begin()
            attempt = self._session.begin(length=None, announced=None, digests=content_digests(parsed.headers))
        else:
            length = visit.head.length
            if length == 0:
                raise UploadMalformed("the request has no body", remedy="curl -T IMAGE or --data-binary @IMAGE")
            exact = length if digests else None
            attempt = self._session.begin(length=exact, announced=None if digests else length, digests=digests)
            body = WholeBody(visit)
        return self._finish_plain(visit, plain, attempt, body, form)

    def _finish_plain(
        self, visit: Visit, plain: PlainUpload, attempt: Attempt, body: Brought, form: FormBody | None
    ) -> bool:
        broken: CdiError | None = None
        try:
            attempt.source.bring(body, last=True)
            if form is not None and attempt.source.complete:
                form.drain()
        except CdiError as error:
            broken = error
        failure = attempt.wait_validated() if plain.asynchronous else attempt.wait()
        if failure is not None:
            raise _Refusal(failure)
        if broken is not None and not attempt.source.complete:
            raise broken
        return visit.answer(200)

    # --- tus ----------------------------------------------------------------------------------------------------

    def _tus(self, visit: Visit, where: TusUpload) -> bool:
        head = visit.head
        method = head.headers.get("x-http-method-override", head.method)
        if head.headers.get("tus-resumable") != TUS_VERSION:
            raise _Refusal(UploadMalformed("Tus-Resumable must be 1.0.0"), 412, {"Tus-Version": TUS_VERSION})
        if where.id is None:
            if method != "POST":
                raise UploadMalformed("use POST to start an upload", status=405)
            return self._create(visit, where)
        upload = UploadId.parse(where.id)
        match method:
            case "HEAD":
                return self._tell(visit, upload)
            case "PATCH":
                return self._go_on(visit, upload, 204, {})
            case "DELETE":
                self._session.drop(upload)
                return visit.answer(204, headers=_TUS)
            case _:
                raise UploadMalformed("use PATCH to continue an upload", status=405)

    def _create(self, visit: Visit, where: TusUpload) -> bool:
        headers = visit.head.headers
        length = number(headers, "Upload-Length")
        if length is None or "upload-defer-length" in headers:
            raise UploadMalformed("Upload-Length is required to start an upload")
        try:
            self._session.check_room(length)
        except TargetTooSmall as error:
            raise _Refusal(error, 413) from error
        upload = self._session.begin_resumable(length, declared_digest(headers))
        location = {"Location": tus_path(where.namespace, where.claim, str(upload))}
        if visit.head.length == 0 or headers.get("content-type") != TUS_CONTENT:
            return visit.answer(201, headers={**_TUS, **location, **_expiry()})
        return self._go_on(visit, upload, 201, location, begins=True)

    def _tell(self, visit: Visit, upload: UploadId) -> bool:
        attempt = self._session.find(upload)
        offset = upload.length if attempt is None else self._offset(attempt)
        return visit.answer(
            200,
            headers={**_TUS, "Upload-Offset": str(offset), "Upload-Length": str(upload.length), **_expiry()},
        )

    def _offset(self, attempt: Attempt) -> int:
        """Return the offset at which an upload continues, after stopping any other request that still sends data to it.

        Raises:
            UploadNotReady: The transfer has not started in time.
            _Refusal: The transfer has failed.

        """
        if not attempt.source.wait_open(_OPENING):
            if attempt.done.wait(_TAKING_OVER) and attempt.failure is not None:
                raise _Refusal(attempt.failure)
            raise UploadNotReady("the volume is not ready yet", remedy="try again")
        attempt.source.take_over(_TAKING_OVER)
        return attempt.source.offset

    def _go_on(
        self, visit: Visit, upload: UploadId, status: int, headers: Mapping[str, str], *, begins: bool = False
    ) -> bool:
        given = visit.head.headers
        if given.get("content-type") != TUS_CONTENT:
            raise UploadMalformed(f"Content-Type must be {TUS_CONTENT}", status=415)
        stated = 0 if begins else number(given, "Upload-Offset")
        checksum = piece_checksum(given.get("upload-checksum"))
        if stated is None:
            raise UploadMalformed("Upload-Offset is missing")
        attempt = self._session.find(upload)
        if attempt is None:
            raise UploadUnknown("the upload is complete")
        offset = self._offset(attempt)
        if stated != offset:
            conflict = UploadOffsetConflict(f"the upload continues at offset {offset}, not {stated}")
            raise _Refusal(conflict, 409, {"Upload-Offset": str(offset)})
        left, length = upload.length - offset, visit.head.length
        if length is not None and length > left:
            raise UploadMalformed(f"body of {length} bytes exceeds the {left} bytes remaining", status=413)
        if checksum is None:
            self._bring(attempt, WholeBody(visit))
        else:
            self._bring_checked(visit, attempt, checksum, left if length is None else length)
        if attempt.source.complete:
            failure = attempt.wait_validated()
            if failure is not None:
                raise _Refusal(failure)
        return visit.answer(
            status, headers={**_TUS, **headers, "Upload-Offset": str(attempt.source.offset), **_expiry()}
        )

    def _bring(self, attempt: Attempt, body: Brought) -> None:
        if not attempt.source.bring(body, last=False):
            failure = attempt.wait()
            if failure is not None:
                raise _Refusal(failure)
            raise SourceTruncated("the upload ended", remedy="send it again")

    def _bring_checked(self, visit: Visit, attempt: Attempt, checksum: Digest, length: int) -> None:
        """Write a piece if its checksum matches.

        Otherwise a small piece is discarded before it is written; after a large one the upload starts again at byte 0.

        Raises:
            _Refusal: The checksum does not match, or the transfer has failed.

        """
        body = HashedBody(visit, checksum.algorithm)
        if length <= MOST_HELD:
            data = hold(body, length)
            if body.digest == checksum:
                self._bring(attempt, HeldBody(data))
        else:
            self._bring(attempt, body)
            if body.digest != checksum:
                self._session.begin_again(attempt)
        if body.digest != checksum:
            raise _Refusal(
                ChecksumMismatch("the chunk does not match its checksum", remedy="send it again"), TUS_MISMATCH
            )


class _Refusal(Exception):
    """A failure with its response status and headers."""

    def __init__(
        self, failure: CdiError | Failure, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(failure.message)
        self.failure = told(failure) if isinstance(failure, Failure) else failure
        self.status = status_of_code(failure.code) if status is None else status
        self.headers = headers or {}


def _expiry() -> Mapping[str, str]:
    return {"Upload-Expires": email.utils.formatdate(time.time() + EXPIRES, usegmt=True)}
