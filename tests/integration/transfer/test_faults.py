"""Tests of a misbehaving server: transient faults are retried and the disk is right; others end with their own error.

After a failure nothing on the volume can be taken for the disk.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import replace

import pytest

from cdi.api.job import HttpSourceSpec, Policy, StreamSourceSpec
from tests.faults.server import Fault
from tests.integration.transfer.ways import OLD

MIB = 1 << 20
QUICK = Policy(discover_checksum=False, retries=1, stall_timeout=60)


def policy_for(name, policy=QUICK):
    """Return the policy for a fault: it waits for a stall, so its timeout is short; a busy machine has pauses as well."""
    return replace(policy, stall_timeout=0.5) if name == "stall" else policy


def first(count, fault):
    """Return a behaviour with the fault in the first `count` requests after the probe of a file with ranges."""
    return lambda request: fault(request) if request.number <= count else None


def from_request(number, fault):
    return lambda request: fault(request) if request.number >= number else None


# --- transient faults -------------------------------------------------------------------------------------------


def drops(request, dice=random.Random(8)):
    return Fault(drop_after=dice.randrange(300_000))


PASSING = {
    "drop at a random byte": first(3, drops),
    "reset": first(2, lambda request: Fault(reset_after=70_001)),
    "500": first(2, lambda request: Fault(status=500)),
    "503 with Retry-After": first(1, lambda request: Fault(status=503, retry_after="1")),
    "429": first(1, lambda request: Fault(status=429, retry_after="0")),
    "stall": first(1, lambda request: Fault(stall_after=50_000)),
    "truncated": first(2, lambda request: Fault(drop_after=1, close=True)),
    "silent close": lambda request: Fault(close_silently=True),
    "slow drip": first(2, lambda request: Fault(drip=(100_000, 0.001))),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_mended(case, name):
    case.serve(PASSING[name])
    policy = Policy(discover_checksum=False, retries=5, stall_timeout=60)
    outcome = case.run(policy_for(name, policy), checksum=f"sha256:{case.image.sha256}")
    case.succeeded(outcome)
    assert "checksum" in outcome.verified_by
    assert len(case.server.asked("/disk")) >= 2 or "slow" in name or "silent" in name


@pytest.mark.parametrize("seed", range(6))
def test_a_connection_that_keeps_breaking_is_mended_as_long_as_it_brings_something(make_case, seed):
    way = ("raw", "qcow2", "qemu")[seed % 3]
    case = make_case(way, "file")
    dice = random.Random(seed)
    case.serve(lambda request: Fault(drop_after=dice.randrange(1, 900_000)) if request.number % 4 else None)
    outcome = case.run(Policy(discover_checksum=False, retries=3), checksum=f"sha256:{case.image.sha256}")
    case.succeeded(outcome)


def test_a_replaced_image_is_begun_again_with_the_new_content(case, images):
    """The ETag changes midway: no part of the first content may be in the disk."""
    new = images.get({"raw": "raw-gpt", "qcow2-zlib": "qcow2-zeros", "vmdk-2M": "vmdk-4M"}[case.image.name])
    changed = threading.Event()

    def behave(request):
        if request.number == 2 and not changed.is_set():
            changed.set()
            file = case.server.file("/disk")
            file.data, file.etag = new.content, '"v2"'
        if request.number < 2 and not case.ranges:
            return Fault(drop_after=2 * MIB)
        return None

    case.serve(behave)
    outcome = case.run()
    assert changed.is_set()
    case.succeeded(outcome, new)
    assert outcome.validator == '"v2"'
    assert any("starting over" in warning for warning in outcome.warnings)


def test_without_an_etag_a_replaced_image_is_told_by_its_digest(case):
    """Only the checksum can detect that two halves are not of one image."""
    data = bytearray(case.image.content)
    data[-MIB:] = bytes(reversed(data[-MIB:]))

    def behave(request):
        if request.number >= 1:
            case.server.file("/disk").data = bytes(data)

    case.serve(behave, etag=None, modified=None)
    outcome = case.run(checksum=f"sha256:{case.image.sha256}")
    if case.ranges:
        assert outcome.failure is not None
        # QEMU may read the damaged part first.
        assert outcome.failure.code in ("ChecksumMismatch", "DecoderFailed", "QemuFailed", "SourceChanged")
        assert case.volume.device is not None or case.volume.disk.read_bytes() == OLD
        assert case.volume.device is None or case.volume.is_wiped() or outcome.failure.code == "SourceChanged"
    else:
        case.succeeded(outcome)


# --- permanent faults -------------------------------------------------------------------------------------------


LASTING = {
    "500": (lambda request: Fault(status=500), "SourceUnavailable", "backoff"),
    "503 with Retry-After": (lambda request: Fault(status=503, retry_after="0"), "SourceUnavailable", "backoff"),
    "stall": (lambda request: Fault(stall_after=0), "SourceStalled", "backoff"),
    "truncated": (lambda request: Fault(drop_after=0), "SourceTruncated", "backoff"),
    "403": (lambda request: Fault(status=403), "SourceForbidden", "on-change"),
    "401": (lambda request: Fault(status=401), "SourceUnauthorized", "on-change"),
    "404": (lambda request: Fault(status=404), "SourceNotFound", "on-change"),
    "418": (lambda request: Fault(status=418), "SourceRefused", "on-change"),
    "another range": (lambda request: Fault(shift=4096), "SourceProtocolError", "never"),
    "a lying Content-Range": (lambda request: Fault(lie=4096), "SourceProtocolError", "never"),
    "another ETag each time": (lambda request: Fault(etag=f'"{request.number}"'), "SourceChanged", "backoff"),
}


@pytest.mark.parametrize("name", LASTING)
@pytest.mark.parametrize("volume", ["file", "block512"])
@pytest.mark.parametrize("way", ["raw", "qcow2", "qemu"])
def test_what_lasts_ends_with_its_error(make_case, way, volume, name):
    """The fault begins with the third request, when something has been written or is about to be."""
    fault, code, retry = LASTING[name]
    case = make_case(way, volume)
    case.serve(from_request(3, fault))
    outcome = case.run(policy_for(name))
    case.failed(outcome, code, retry, touched=way != "qemu")
    # After an error that may pass, the import is resumed and succeeds.
    if retry != "never":
        case.serve()
        case.succeeded(case.importing.run(case.ran))


@pytest.mark.parametrize("name", ["500", "stall", "truncated", "403", "404", "418"])
@pytest.mark.parametrize("volume", ["file", "block512"])
@pytest.mark.parametrize("way", ["qcow2-stream", "raw-stream", "qemu-spool"])
def test_what_lasts_ends_a_stream_with_its_error(make_case, way, volume, name):
    """The first attempt breaks near its end, every other one at its beginning."""
    fault, code, retry = LASTING[name]
    case = make_case(way, volume)
    almost = len(case.image.content) - 4096
    case.serve(lambda request: fault(request) if request.number else Fault(drop_after=almost))
    outcome = case.run(policy_for(name))
    assert outcome.failure is not None
    assert outcome.failure.code == code
    # The stream was good until then, so the data is kept: its rest may still come, whatever the server answers now.
    case.failed(outcome, code, retry, touched=way != "qemu-spool")
    if retry != "never":
        case.serve()
        case.succeeded(case.importing.run(case.ran))


@pytest.mark.parametrize("way", ["qcow2-stream", "raw-stream", "qemu-spool"])
def test_a_stream_that_always_ends_at_the_same_byte_is_truncated(make_case, way):
    case = make_case(way, "file")
    case.serve(Fault(drop_after=3 * MIB))
    case.failed(case.run(QUICK), "SourceTruncated", "backoff")


PAGES = {
    "html": Fault(data=b"<!DOCTYPE html><html>log in</html>" * 3000, headers=(("Content-Type", "text/html"),)),
    "html that calls itself an image": Fault(data=b"\n <html><body>mirrors</body></html>" * 3000),
    "json": Fault(data=b'{"error": "no such file"}' * 300, headers=(("Content-Type", "application/json"),)),
}


@pytest.mark.parametrize("volume", ["file", "block512"])
@pytest.mark.parametrize("way", ["raw", "qcow2", "qemu"])
def test_a_total_that_lies_never_gives_a_disk_of_another_size(make_case, way, volume):
    case = make_case(way, volume)
    case.serve(from_request(3, lambda request: Fault(total=999_999_999)))
    outcome = case.run(QUICK)
    if outcome.failure is None:
        # The tables of this image had been read already, and all received ranges were the requested ones.
        case.succeeded(outcome)
    else:
        assert outcome.failure.code in ("SourceChanged", "SourceProtocolError", "TargetTooSmall")
        case.failed(outcome, outcome.failure.code, str(outcome.failure.retry), touched=way != "qemu")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_instead_of_an_image_touches_nothing(case, page):
    case.serve(PAGES[page])
    case.failed(case.run(), "SourceNotAnImage", "never", touched=False)


@pytest.mark.parametrize("kind", ["text/html", "text/plain; charset=utf-8"])
def test_an_image_that_is_declared_to_be_text_is_imported_with_a_warning(make_case, kind):
    case = make_case("qcow2", "file")
    case.serve(Fault(headers=(("Content-Type", kind),)))
    outcome = case.run()
    case.succeeded(outcome)
    media = kind.partition(";")[0]
    assert f"Unexpected content type '{media}'. Content might not be a KubeVirt image." in outcome.warnings


def test_nothing_at_all_touches_nothing(case):
    case.serve(data=b"")
    case.failed(case.run(), "FormatUnrecognised", "never", touched=False)


@pytest.mark.parametrize("status", [(404, "SourceNotFound", "on-change"), (403, "SourceForbidden", "on-change")])
def test_a_refusal_at_first_touches_nothing(case, status):
    number, code, retry = status
    case.serve(Fault(status=number))
    case.failed(case.run(), code, retry, touched=False)


def test_a_wrong_checksum_wipes(case):
    case.serve()
    outcome = case.run(checksum=f"sha256:{'0' * 64}")
    case.failed(outcome, "ChecksumMismatch", "never")
    assert outcome.failure.exit_status == 5
    assert case.image.sha256 in outcome.failure.message


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha512"])
def test_other_digests_are_checked_as_well(case, algorithm):
    import hashlib

    case.serve()
    right = hashlib.new(algorithm, case.image.content).hexdigest()
    case.succeeded(case.run(checksum=f"{algorithm}:{right}"))
    # The device's old data is now what the import wrote, and the next import must not be misled by it.
    wrong = right.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    case.failed(case.run(checksum=f"{algorithm}:{wrong}"), "ChecksumMismatch", "never")


def test_damage_within_the_image_wipes(case):
    """The length and every header are right; only the digest or the decoder can detect it."""
    data = bytearray(case.image.content)
    for at in range(len(data) // 2, len(data) // 2 + 300_000, 4096):
        data[at : at + 64] = b"\xff" * 64
    case.serve(data=bytes(data))
    outcome = case.run(checksum=f"sha256:{case.image.sha256}")
    assert outcome.failure is not None
    assert outcome.failure.code in ("ChecksumMismatch", "DecoderFailed")
    case.failed(outcome, outcome.failure.code, "never")


@pytest.mark.parametrize("volume", ["file", "block512"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
@pytest.mark.parametrize("name", ["qcow2-zstd", "qcow2-zlib"])
def test_a_cluster_that_cannot_be_inflated_wipes(make_case, images, name, ranges, volume):
    case = make_case("qcow2" if ranges else "qcow2-stream", volume)
    case.image = images.get(name)
    data = bytearray(case.image.content)
    for at in range(len(data) * 3 // 4, len(data) - 512):
        data[at] ^= 0xA5
    case.serve(data=bytes(data))
    case.failed(case.run(), "DecoderFailed", "never")


def test_a_file_that_is_cut_at_the_source_is_told_by_its_tables(case):
    """The transfer is complete, the image is not."""
    case.serve(data=case.image.content[: 3 * MIB])
    outcome = case.run()
    match case.image.kind.format:
        case "raw":
            # A raw disk may have any length.
            assert outcome.failure is None
            assert outcome.virtual_size == 3 * MIB
        case "qcow2":
            assert outcome.failure is not None
            assert outcome.failure.exit_status in (4, 7)
            untouched = case.volume.device is not None and case.volume.is_as_it_was()
            case.failed(outcome, outcome.failure.code, "never", touched=not untouched)
        case _:
            case.failed(outcome, "ContentTruncated", "never", touched=False)
            assert outcome.written == 0


@pytest.mark.parametrize(
    ("announced", "code", "retry"), [(-1000, "SourceTooLong", "never"), (1000, "SourceTruncated", "backoff")]
)
@pytest.mark.parametrize("volume", ["file", "block512"])
@pytest.mark.parametrize("way", ["raw", "qcow2", "qemu"])
def test_a_pipe_that_is_not_as_long_as_announced(make_case, way, volume, announced, code, retry):
    case = make_case(way, volume)
    reading, writing = os.pipe()

    def feed():
        with open(writing, "wb") as pipe:
            try:
                pipe.write(case.image.content)
            except BrokenPipeError:
                return

    thread = threading.Thread(target=feed)
    thread.start()
    if case.volume.device is None:
        case.volume.disk.write_bytes(OLD)
    length = len(case.image.content) + announced
    source = StreamSourceSpec(descriptor=reading, length=length)
    case.ran = case.importing.job(source, case.volume)
    outcome = case.importing.run(case.ran)
    os.close(reading)
    thread.join()
    case.failed(outcome, code, retry, touched=way != "qemu")


# --- the target -------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(case):
    case.serve()
    size = len(case.image.disk) - 512
    outcome = case.run(size=size)
    case.failed(outcome, "TargetTooSmall", "never", touched=False)
    assert f"{size} bytes" in outcome.failure.message
    assert f"{len(case.image.disk)} bytes" in outcome.failure.message
    if case.ranges:
        assert case.fetched_before(MIB)
        assert outcome.written == 0
    else:
        # The one response was abandoned after its beginning.
        assert len(case.server.asked("/disk")) == 1
        assert outcome.fetched < len(case.image.content)


@pytest.mark.parametrize("way", ["raw", "qcow2", "qcow2-stream", "qemu"])
def test_a_device_that_is_too_small_is_told_before_anything_is_fetched(make_case, way, tmp_path):
    from tests.integration.fixtures_images import loop

    case = make_case(way, "block512")
    case.serve()
    with loop(tmp_path / "small", 9 * MIB, 512) as device:
        case.volume.device = device
        with open(device, "r+b", buffering=0) as file:
            file.write(b"dirt" * 1000)
        outcome = case.run()
        assert outcome.failure is not None
        assert outcome.failure.code == "TargetTooSmall"
        assert f"{9 * MIB} bytes" in outcome.failure.message
        assert case.volume.content().startswith(b"dirt" * 1000)
        assert outcome.written == 0
    if case.ranges:
        assert case.fetched_before(MIB)


@pytest.fixture
def small_volume(tmp_path):
    """Mount an ext4 with about 6 MiB of space."""
    from tests.integration.fixtures_images import loop, run

    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "mounted"
    place.mkdir()
    with loop(tmp_path / "fs", 12 * MIB, 512) as device:
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", device)
        run("mount", device, str(place))
        try:
            (place / "lost+found").rmdir()
            filled = os.statvfs(place)
            with open(place / "in the way", "wb") as file:
                file.write(b"x" * (filled.f_bavail * filled.f_frsize - 4 * MIB))
                os.fsync(file.fileno())
            yield place
        finally:
            run("umount", str(place))


@pytest.mark.parametrize("way", ["raw", "qcow2", "qcow2-stream", "qemu", "raw-stream", "qemu-spool"])
def test_a_full_volume_is_told_and_gone_on_with_once_there_is_room(make_case, small_volume, way):
    case = make_case(way, "file")
    case.volume.directory = small_volume
    case.serve()
    outcome = case.run()
    assert outcome.failure is not None
    assert (outcome.failure.code, str(outcome.failure.retry)) == ("TargetFull", "on-change"), outcome.failure
    assert case.volume.disk.read_bytes() == OLD
    if way == "qcow2":
        assert outcome.written == 0, "its data is counted before it is fetched"
    (small_volume / "in the way").unlink()
    outcome = case.importing.run(case.ran)
    case.succeeded(outcome)


@pytest.mark.parametrize("way", ["raw", "qcow2", "qcow2-stream", "qemu"])
def test_a_full_volume_cannot_be_preallocated(make_case, small_volume, way):
    case = make_case(way, "file")
    case.volume.directory = small_volume
    case.serve()
    outcome = case.run(Policy(discover_checksum=False, preallocation=True))
    assert outcome.failure is not None
    assert outcome.failure.code == "TargetFull"
    assert case.volume.disk.read_bytes() == OLD
    # QEMU gets a whole copy before the disk is prepared.
    assert way == "qemu" or len(case.server.asked("/disk")) < 6
    if case.ranges and way != "qemu":
        assert case.fetched_before(MIB)


def test_a_used_device_is_left_alone(make_case):
    import fcntl

    case = make_case("qcow2", "block512")
    case.serve()
    holder = os.open(case.volume.device, os.O_RDWR | os.O_EXCL)
    try:
        case.failed(case.run(), "TargetBusy", "backoff", touched=False)
    finally:
        os.close(holder)
    file = make_case("qcow2", "file")
    with file.volume.partial.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        file.failed(file.run(), "TargetBusy", "backoff")
        assert file.volume.partial.exists()


@pytest.mark.parametrize("way", ["raw", "qcow2", "qcow2-stream", "qemu"])
def test_a_stranger_in_the_disks_place_is_left_alone(make_case, way):
    case = make_case(way, "file")
    case.serve()
    case.volume.disk.mkdir()
    job = case.job()
    outcome = case.importing.run(job)
    assert outcome.failure is not None
    assert outcome.failure.code == "TargetUnsuitable"
    assert case.volume.disk.is_dir()


@pytest.mark.parametrize("way", ["qemu-spool", "qcow2-stream"])
def test_no_scratch_space(make_case, way):
    case = make_case(way, "block512")
    case.serve()
    case.ran = job = case.job(scratch=None)
    outcome = case.importing.run(job)
    if way == "qcow2-stream":
        assert outcome.failure is None
    else:
        assert outcome.failure is not None
        assert (outcome.failure.code, str(outcome.failure.retry)) == ("ScratchNeeded", "on-change")
        assert case.volume.is_as_it_was()


def test_an_url_that_nobody_serves(make_case):
    case = make_case("qcow2", "block512")
    source = HttpSourceSpec(url="http://127.0.0.1:9/disk")
    case.ran = case.importing.job(source, case.volume, policy=QUICK)
    case.failed(case.importing.run(case.ran), "SourceUnreachable", "backoff", touched=False)
