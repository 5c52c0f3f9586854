"""Request handler of an upload server: uploads from the proxy with its certificate, and the progress for any client."""

from __future__ import annotations

import email.utils
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

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
from cdi.api.importer_messages import is_too_large, upload_log_text, upload_response_text
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
from cdi.codec.multipart import MultipartFileParser, boundary_of, parameters
from cdi.http.connection import RemoteDisconnected
from cdi.http.server.request import ServerRequest
from cdi.source.upload import BodyReader
from cdi.worker.status_server import Response
from cdi.worker.upload_bodies import MAX_BUFFERED, BufferedBody, CheckedBody, FormBody, WholeBody, buffer_body
from cdi.worker.upload_session import EXPIRES, Session, UploadTransfer, client_failure

LOG = logging.getLogger(__name__)

_OPENING = 30.0
"""Seconds until the offset of a transfer must be known."""
_TAKING_OVER = 10.0
_TUS: Mapping[str, str] = {"Tus-Resumable": TUS_VERSION, "Cache-Control": "no-store"}


class UploadServer:
    """Request handler; each request has a thread of its own."""

    def __init__(self, session: Session, answers: Mapping[str, Callable[[], Response]]) -> None:
        self._session = session
        self._answers = answers

    def serve(self, request: ServerRequest) -> bool:
        """Respond to a request and return whether its connection can be used for another one."""
        head = request.head
        make = self._answers.get(head.path)
        if make is not None and head.method == "GET":
            answer = make()
            return request.respond(200, answer.body, content_type=answer.content_type)
        found = route(head.path)
        extra = _TUS if isinstance(found, TusUpload) else None
        try:
            if request.client_common_name != CLIENT_NAME:
                raise TokenInvalid(
                    "only the upload proxy may connect, with its client certificate", remedy="send it to the proxy"
                )
            match found:
                case PlainUpload():
                    return self._plain(request, found)
                case TusUpload():
                    return self._tus(request, found)
                case None:
                    raise UploadMalformed("no such path", status=404)
        except RemoteDisconnected:
            return False
        except _HttpError as refusal:
            if refusal.unlogged is not None:
                _log_refusal(refusal.unlogged)
            return request.respond_error(refusal.failure, refusal.status, headers={**(extra or {}), **refusal.headers})
        except CdiError as error:
            if not isinstance(error, TokenInvalid):
                _log_refusal(error)
            failure = Failure.from_error(error)
            told = replace(failure, message=upload_response_text(failure))
            return not request.responded and request.respond_error(told, status_of(error), headers=extra)

    # --- an upload in one request -------------------------------------------------------------------------------

    def _plain(self, request: ServerRequest, plain: PlainUpload) -> bool:
        if request.head.method == "HEAD" and plain.asynchronous:
            return request.respond(200)
        if request.head.method not in {"POST", "PUT"}:
            raise UploadMalformed("use POST to upload an image", status=405)
        if plain.archive and self._session.job.content_type != "archive":
            raise UploadMalformed("the volume is for a disk, not for an archive", remedy="send it to /v1beta1/upload")
        if request.head.length is not None:
            self._session.check_room(request.head.length)
        self._session.require_idle()
        digests = content_digests(request.head.headers)
        form: FormBody | None = None
        body: BodyReader
        kind = parameters(request.head.headers.get("content-type", ""))[0]
        if plain.form or (plain.archive and kind == "multipart/form-data"):
            if digests:
                raise UploadMalformed(
                    "a digest of the multipart form does not apply to the file in it",
                    remedy="send it as a header of the file's part",
                )
            parsed = MultipartFileParser(boundary_of(request.head.headers.get("content-type", "")))
            body = form = FormBody(request, parsed)
            form.begin()
            attempt = self._session.begin(digests=content_digests(parsed.headers))
        else:
            length = request.head.length
            if length == 0:
                raise UploadMalformed("the request has no body", remedy="curl -T IMAGE or --data-binary @IMAGE")
            if digests:
                attempt = self._session.begin(length=length, digests=digests)
            else:
                attempt = self._session.begin(body_length=length)
            body = WholeBody(request)
        return self._finish_plain(request, plain, attempt, body, form)

    def _finish_plain(
        self,
        request: ServerRequest,
        plain: PlainUpload,
        attempt: UploadTransfer,
        body: BodyReader,
        form: FormBody | None,
    ) -> bool:
        broken: CdiError | None = None
        try:
            attempt.source.feed(body, last=True)
            if form is not None and attempt.source.complete:
                form.drain()
        except CdiError as error:
            broken = error
        failure = attempt.wait_validated() if plain.asynchronous else attempt.wait()
        if failure is not None:
            # KubeVirt's upload server answers 400 whenever the volume has no room.
            raise _HttpError(failure, 400 if is_too_large(failure) else None)
        if broken is not None and not attempt.source.complete:
            raise broken
        return request.respond(200)

    # --- tus ----------------------------------------------------------------------------------------------------

    def _tus(self, request: ServerRequest, where: TusUpload) -> bool:
        head = request.head
        method = head.headers.get("x-http-method-override", head.method)
        if head.headers.get("tus-resumable") != TUS_VERSION:
            raise _HttpError(UploadMalformed("Tus-Resumable must be 1.0.0"), 412, {"Tus-Version": TUS_VERSION})
        if where.id is None:
            if method != "POST":
                raise UploadMalformed("use POST to start an upload", status=405)
            return self._create(request, where)
        upload = UploadId.parse(where.id)
        match method:
            case "HEAD":
                return self._head(request, upload)
            case "PATCH":
                return self._patch(request, upload, 204, {})
            case "DELETE":
                self._session.terminate(upload)
                return request.respond(204, headers=_TUS)
            case _:
                raise UploadMalformed("use PATCH to continue an upload", status=405)

    def _create(self, request: ServerRequest, where: TusUpload) -> bool:
        headers = request.head.headers
        length = number(headers, "Upload-Length")
        if length is None or "upload-defer-length" in headers:
            raise UploadMalformed("Upload-Length is required to start an upload")
        try:
            self._session.check_room(length)
        except TargetTooSmall as error:
            raise _HttpError(error, 413) from error
        upload = self._session.begin_resumable(length, declared_digest(headers))
        location = {"Location": tus_path(where.namespace, where.claim, str(upload))}
        if request.head.length == 0 or headers.get("content-type") != TUS_CONTENT:
            return request.respond(201, headers={**_TUS, **location, **_expiry()})
        return self._patch(request, upload, 201, location, begins=True)

    def _head(self, request: ServerRequest, upload: UploadId) -> bool:
        attempt = self._session.find(upload)
        offset = upload.length if attempt is None else self._offset(attempt)
        return request.respond(
            200,
            headers={**_TUS, "Upload-Offset": str(offset), "Upload-Length": str(upload.length), **_expiry()},
        )

    def _offset(self, attempt: UploadTransfer) -> int:
        """Return the offset at which an upload continues, after stopping any other request that still sends data to it.

        Raises:
            UploadNotReady: The transfer has not started in time.
            _HttpError: The transfer has failed.

        """
        if not attempt.source.wait_open(_OPENING):
            failure = attempt.wait(_TAKING_OVER)
            if failure is not None:
                raise _HttpError(failure)
            raise UploadNotReady("the volume is not ready yet", remedy="try again")
        attempt.source.preempt(_TAKING_OVER)
        return attempt.source.offset

    def _patch(
        self, request: ServerRequest, upload: UploadId, status: int, headers: Mapping[str, str], *, begins: bool = False
    ) -> bool:
        given = request.head.headers
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
            raise _HttpError(conflict, 409, {"Upload-Offset": str(offset)})
        left, length = upload.length - offset, request.head.length
        if length is not None and length > left:
            raise UploadMalformed(f"body of {length} bytes exceeds the {left} bytes remaining", status=413)
        if checksum is None:
            self._feed(attempt, WholeBody(request))
        else:
            self._bring_checked(request, attempt, checksum, left if length is None else length)
        if attempt.source.complete:
            failure = attempt.wait_validated()
            if failure is not None:
                raise _HttpError(failure)
        return request.respond(
            status, headers={**_TUS, **headers, "Upload-Offset": str(attempt.source.offset), **_expiry()}
        )

    def _feed(self, attempt: UploadTransfer, body: BodyReader) -> None:
        if not attempt.source.feed(body, last=False):
            failure = attempt.wait()
            if failure is not None:
                raise _HttpError(failure)
            raise SourceTruncated("the upload ended", remedy="send it again")

    def _bring_checked(self, request: ServerRequest, attempt: UploadTransfer, checksum: Digest, length: int) -> None:
        """Write a piece if its checksum matches.

        Otherwise a small piece is discarded before it is written; after a large one the upload starts again at byte 0.

        Raises:
            _HttpError: The checksum does not match, or the transfer has failed.

        """
        body = CheckedBody(request, checksum, length)
        buffered = length <= MAX_BUFFERED
        try:
            if buffered:
                data = buffer_body(body, length)
                body.verify()
                self._feed(attempt, BufferedBody(data))
            else:
                self._feed(attempt, body)
        except ChecksumMismatch as error:
            if not buffered:
                self._session.restart(attempt)
            raise _HttpError(error, TUS_MISMATCH) from error


class _HttpError(Exception):
    """A failure with its response status and headers."""

    def __init__(
        self, failure: CdiError | Failure, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(failure.message)
        self.failure = client_failure(failure if isinstance(failure, Failure) else Failure.from_error(failure))
        self.unlogged = failure if isinstance(failure, CdiError) else None
        """The error, unless it is that of a transfer, which the session has logged."""
        self.status = status_of_code(failure.code) if status is None else status
        self.headers = headers or {}


def _log_refusal(error: CdiError) -> None:
    LOG.info(upload_log_text(Failure.from_error(error)))


def _expiry() -> Mapping[str, str]:
    return {"Upload-Expires": email.utils.formatdate(time.time() + EXPIRES, usegmt=True)}
