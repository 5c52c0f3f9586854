"""Tests of content without a length: its end is proven by other means, or the import fails."""

from __future__ import annotations

import gzip
import io
import os
import ssl
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from cdi.api.job import DirectoryTargetSpec, FileTargetSpec, HttpSourceSpec, Job, Outcome, Policy, Tls
from cdi.explain.examine import examine
from cdi.explain.findings import Ask, Findings
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault, FaultServer

MIB = 1 << 20
QUICK = Policy(discover_checksum=False, retries=2, stall_timeout=10)
CLOSE = Fault(framing="close")
MARKED = ["raw/gz", "raw/xz", "raw/zst", "raw/tar.gz", "qcow2-zlib/plain", "vmdk-sparse/plain"]
OTHER_MARKED = ["vdi/plain", "vhdx/plain", "vhd-dynamic/plain", "vmdk-stream/plain", "qcow2-zlib/gz"]


def cut(size: int, times: int = 1000):
    """Return a fault that closes the connection after `size` bytes without an error, in the first `times` responses."""
    return lambda request: Fault(framing="close", drop_after=size) if request.number < times else CLOSE


def image_of(images, name: str):
    return images.get(*name.split("/"))


# --- over a plain connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("volume", ["file", "block512"])
@pytest.mark.parametrize("size", [1000, 5 * MIB, None])
def test_a_raw_image_that_only_a_close_ends_is_refused_before_a_byte_is_written(make_case, volume, size):
    case = make_case("raw-stream", volume)
    case.serve(CLOSE if size is None else cut(size))
    outcome = case.run(QUICK)
    case.failed(outcome, "SourceLengthUnknown", "on-change", touched=False)
    assert outcome.written == 0
    assert outcome.failure.exit_status == 3
    assert "lost connection" in outcome.failure.message
    assert "checksum" in outcome.failure.message and "Content-Length" in outcome.failure.message
    assert len(case.server.asked("/disk")) == 1


@pytest.mark.parametrize("times", [1, 1000])
def test_content_of_no_byte_may_be_a_connection_that_was_cut_off(make_case, times):
    case = make_case("qcow2-stream", "file")
    case.serve(cut(0, times=times))
    outcome = case.run(QUICK)
    if times == 1:
        case.succeeded(outcome)
    else:
        case.failed(outcome, "ContentTruncated", "never", touched=False)
        assert "empty" in outcome.failure.message
        assert len(case.server.asked("/disk")) == QUICK.retries + 1


def test_the_engine_that_policy_chooses_changes_nothing_about_that(make_case):
    case = make_case("raw-stream", "file")
    case.serve(CLOSE)
    case.failed(case.run(Policy(discover_checksum=False, engine="qemu")), "SourceLengthUnknown", "on-change")


def test_a_checksum_proves_the_end(make_case):
    case = make_case("raw-stream", "file")
    case.serve(CLOSE)
    outcome = case.run(QUICK, checksum=f"sha256:{case.image.sha256}")
    case.succeeded(outcome)
    assert outcome.verified_by == ("checksum",)


def test_a_published_checksum_proves_the_end(make_case):
    case = make_case("raw-stream", "file")
    case.serve(CLOSE)
    case.server.put("/SHA256SUMS", f"{case.image.sha256}  disk\n".encode())
    outcome = case.run(Policy(retries=2))
    case.succeeded(outcome)
    assert outcome.verified_by == ("SHA256SUMS",)


def test_content_that_was_cut_off_is_fetched_again_where_a_checksum_shows_it(make_case):
    case = make_case("raw-stream", "file")
    case.serve(cut(3 * MIB, times=1))
    case.succeeded(case.run(QUICK, checksum=f"sha256:{case.image.sha256}"))
    assert len(case.server.asked("/disk")) == 2


def test_a_wrong_checksum_is_believed_when_the_same_content_came_twice(make_case):
    case = make_case("raw-stream", "file")
    case.serve(CLOSE)
    outcome = case.run(QUICK, checksum=f"sha256:{'0' * 64}")
    case.failed(outcome, "ChecksumMismatch", "never")
    assert len(case.server.asked("/disk")) == 2


@pytest.mark.parametrize("name", [*MARKED, *OTHER_MARKED])
def test_a_content_that_marks_its_own_end_is_imported(images, volumes, importing, fault_server, name):
    image, volume = image_of(images, name), volumes("file")
    url = fault_server.put("/disk", image.content, ranges=False, always=CLOSE)
    job = importing.job(HttpSourceSpec(url=url), volume, policy=QUICK)
    outcome = importing.run(job)
    assert outcome.failure is None, outcome.failure
    importing.check(outcome, job, volume, image)
    assert outcome.verified_by == ("content structure",)


@pytest.mark.parametrize("name", MARKED)
def test_a_content_that_marks_its_own_end_is_begun_again_when_it_was_cut_off(
    images, volumes, importing, fault_server, name
):
    image, volume = image_of(images, name), volumes("file")
    url = fault_server.put("/disk", image.content, ranges=False, always=cut(len(image.content) * 2 // 3, times=1))
    job = importing.job(HttpSourceSpec(url=url), volume, policy=QUICK)
    outcome = importing.run(job)
    assert outcome.failure is None, outcome.failure
    importing.check(outcome, job, volume, image)
    assert any("starting over" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("name", MARKED)
def test_a_content_that_is_always_cut_off_is_incomplete(images, volumes, importing, fault_server, name):
    image, volume = image_of(images, name), volumes("file")
    url = fault_server.put("/disk", image.content, ranges=False, always=cut(len(image.content) * 2 // 3))
    outcome = importing.run(importing.job(HttpSourceSpec(url=url), volume, policy=QUICK))
    assert outcome.failure is not None
    assert (outcome.failure.code, str(outcome.failure.retry)) == ("ContentTruncated", "never")
    assert "no length" in outcome.failure.message and "Content-Length" in outcome.failure.message
    assert len(fault_server.asked("/disk")) == QUICK.retries + 1
    assert os.listdir(volume.directory) == []


def test_chunks_prove_the_end(make_case):
    case = make_case("raw-stream", "file")
    case.serve(Fault(framing="chunked", chunk=70_000))
    outcome = case.run(QUICK)
    case.succeeded(outcome)
    assert outcome.verified_by == ("transfer framing",)


def test_an_answer_that_loses_its_framing_is_looked_at_anew(make_case):
    """The first response is chunked and breaks, the second ends with the connection."""
    case = make_case("raw-stream", "file")
    chunked = Fault(framing="chunked", chunk=70_000, drop_after=100_000)
    case.serve(lambda request: chunked if request.number == 0 else CLOSE)
    case.failed(case.run(QUICK), "SourceLengthUnknown", "on-change")


# --- archives ---------------------------------------------------------------------------------------------------------


def archive_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 512
            archive.addfile(member, io.BytesIO(name[:1].encode() * 512))
    return buffer.getvalue()


def unpack(url: str, directory: Path, **policy: object) -> Outcome:
    one = Job(
        id="x",
        source=HttpSourceSpec(url=url),
        target=DirectoryTargetSpec(path=str(directory)),
        content_type="archive",
        policy=Policy(discover_checksum=False, retries=2, **policy),
    )
    return transfer(one, TransferControl(one))


@pytest.mark.parametrize("packed", [True, False])
def test_an_archive_ends_with_its_mark(fault_server: FaultServer, tmp_path: Path, packed: bool) -> None:
    data = archive_of("a", "b")
    url = fault_server.put("/a.tar", gzip.compress(data) if packed else data, ranges=False, always=CLOSE)
    outcome = unpack(url, tmp_path)
    assert outcome.failure is None, outcome.failure
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert outcome.verified_by == ("content structure",)


def test_an_archive_that_was_cut_between_two_members_is_not_whole(fault_server: FaultServer, tmp_path: Path) -> None:
    """An archive without an end mark is accepted if a length or chunks show its end: some writers omit the mark."""
    data = archive_of("a", "b")
    fault_server.put("/a.tar", data, ranges=False, always=cut(1024))
    outcome = unpack(fault_server.url("/a.tar"), tmp_path)
    assert outcome.failure is not None
    assert outcome.failure.code == "ContentTruncated"
    assert os.listdir(tmp_path) == []
    fault_server.put("/b.tar", data[:1024], ranges=False, always=Fault(framing="chunked"))
    outcome = unpack(fault_server.url("/b.tar"), tmp_path)
    assert outcome.failure is None, outcome.failure
    assert os.listdir(tmp_path) == ["a"]


# --- over TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[FaultServer, Tls]]:
    authority = trustme.CA()
    directory = tmp_path / "ca"
    directory.mkdir()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultServer(tls=context) as server:
        yield server, Tls(ca_dir=str(directory))


def fetch(secure: tuple[FaultServer, Tls], image, volume, importing, behaviour, **more: object) -> Outcome:
    server, tls = secure
    url = server.put("/disk", image.content, ranges=False, always=behaviour)
    job = importing.job(HttpSourceSpec(url=url, tls=tls), volume, policy=QUICK, **more)
    outcome = importing.run(job)
    if outcome.failure is None:
        importing.check(outcome, job, volume, image)
    return outcome


CLEAN = Fault(framing="close", close_notify=True)


def test_the_closing_alert_of_tls_proves_the_end(secure, images, volumes, importing):
    outcome = fetch(secure, images.get("raw"), volumes("file"), importing, CLEAN)
    assert outcome.failure is None, outcome.failure
    assert outcome.verified_by == ("transfer framing",)


@pytest.mark.parametrize("size", [5 * MIB, None])
def test_tls_that_ends_without_its_alert_proves_nothing(secure, images, volumes, importing, size):
    volume = volumes("file")
    outcome = fetch(secure, images.get("raw"), volume, importing, CLOSE if size is None else cut(size))
    assert outcome.failure is not None
    assert (outcome.failure.code, str(outcome.failure.retry)) == ("SourceTruncated", "backoff")
    assert "close_notify" in outcome.failure.message and "checksum" in outcome.failure.message
    assert len(secure[0].asked("/disk")) == QUICK.retries + 1
    assert "disk.img" not in os.listdir(volume.directory)


def test_tls_that_was_cut_off_once_is_begun_again(secure, images, volumes, importing):
    behaviour = lambda request: Fault(framing="close", drop_after=MIB) if request.number < 1 else CLEAN  # noqa: E731
    outcome = fetch(secure, images.get("raw"), volumes("file"), importing, behaviour)
    assert outcome.failure is None, outcome.failure
    assert any("starting over" in warning for warning in outcome.warnings)


def test_a_checksum_proves_the_end_of_tls_without_its_alert(secure, images, volumes, importing):
    image = images.get("raw")
    outcome = fetch(secure, image, volumes("file"), importing, CLOSE, checksum=f"sha256:{image.sha256}")
    assert outcome.failure is None, outcome.failure
    assert outcome.verified_by == ("checksum",)
    assert len(secure[0].asked("/disk")) == 1


@pytest.mark.parametrize("name", ["raw/gz", "qcow2-zlib/plain", "vmdk-sparse/plain"])
def test_a_marked_end_proves_that_of_tls_without_its_alert(secure, images, volumes, importing, name):
    image, volume = image_of(images, name), volumes("file")
    outcome = fetch(secure, image, volume, importing, CLOSE)
    assert outcome.failure is None, outcome.failure
    assert outcome.verified_by == ("content structure",)
    outcome = fetch(secure, image, volume, importing, cut(len(image.content) // 2, times=1))
    assert outcome.failure is None, outcome.failure
    assert any("starting over" in warning for warning in outcome.warnings)


def test_nginx_ends_tls_with_the_alert_and_a_plain_connection_without_a_sign(nginx, images, volumes, importing):
    image, volume = images.get("raw"), volumes("file")
    nginx.put("endings.raw", image.content)
    plain = importing.job(HttpSourceSpec(url=nginx.url("endings.raw", "closed")), volume, policy=QUICK)
    outcome = importing.run(plain)
    assert outcome.failure is not None
    assert outcome.failure.code == "SourceLengthUnknown"
    source = HttpSourceSpec(url=nginx.url("endings.raw", "closed", tls=True), tls=Tls(ca_dir=str(nginx.ca_dir)))
    secure = importing.job(source, volume, policy=QUICK)
    outcome = importing.run(secure)
    assert outcome.failure is None, outcome.failure
    importing.check(outcome, secure, volume, image)
    assert outcome.verified_by == ("transfer framing",)


# --- inspection before the import -------------------------------------------------------------------------------------


def looked_at(url: str, tmp_path: Path, ask: Ask, **more: object) -> Findings:
    one = Job(
        id="x",
        source=HttpSourceSpec(url=url),
        target=FileTargetSpec(path=str(tmp_path / "disk.img")),
        policy=Policy(retries=0),
        **more,  # type: ignore[arg-type]
    )
    return examine(one, TransferControl(one), ask)


@pytest.mark.parametrize("ask", [Ask(), Ask(expected=True), Ask(whole=True), Ask(digest=True)])
def test_a_look_says_what_the_import_would(fault_server: FaultServer, tmp_path: Path, ask: Ask) -> None:
    url = fault_server.put("/disk.raw", b"x" * MIB, ranges=False, always=CLOSE)
    found = looked_at(url, tmp_path, ask)
    assert found.refusal is not None
    assert found.refusal.code == "SourceLengthUnknown"
    assert [check.name for check in found.checks if not check.passed] == ["transfer"]
    found = looked_at(url, tmp_path, ask, checksum=f"sha256:{'0' * 64}")
    assert found.refusal is None
    fault_server.put("/SHA256SUMS", f"{'0' * 64}  disk.raw\n".encode())
    assert looked_at(url, tmp_path, ask).refusal is None
    url = fault_server.put("/disk.raw.gz", gzip.compress(b"x" * MIB), ranges=False, always=CLOSE)
    assert looked_at(url, tmp_path, ask).refusal is None
