"""Tests against the real server."""

from __future__ import annotations

import gzip
import random
import threading
from pathlib import Path

import pytest

from cdi.api.errors import SourceNotAnImage, SourceNotFound, SourceTlsUntrusted, SourceUnauthorized
from cdi.api.job import Credentials, HttpSourceSpec, Tls
from cdi.source.http import HttpSource, open_http
from tests.integration.fixtures_http import Nginx

DATA = random.Random(1).randbytes(3_000_001)


@pytest.fixture(scope="module", autouse=True)
def content(nginx: Nginx) -> None:
    nginx.put("disk.raw", DATA)
    nginx.put("sub/disk one.raw", DATA[:1000])
    nginx.put("SHA256SUMS", b"abc  disk.raw\n")
    nginx.put("empty", b"")
    nginx.put("one", b"x")
    nginx.put("page.html", b"\n<!DOCTYPE html><html>log in</html>")
    nginx.put("image.html", DATA[:5000])
    nginx.put("zeros", bytes(1 << 20))


def read(source: HttpSource, offset: int = 0, length: int | None = None, size: int = 1 << 20) -> bytes:
    reader = source.open(offset, length)
    try:
        data = bytearray()
        view = memoryview(bytearray(size))
        while count := reader.readinto(view):
            data += view[:count]
        return bytes(data)
    finally:
        reader.close()


def source_of(url: str, **settings: object) -> HttpSource:
    return open_http(HttpSourceSpec(url=url, **settings), 10.0)


@pytest.mark.parametrize(
    ("way", "ranges", "length"),
    [
        ("", True, len(DATA)),
        ("plain", False, len(DATA)),
        ("moved", True, len(DATA)),
        ("chunked", False, None),
    ],
)
def test_facts_and_content_are_right_whatever_the_server_offers(
    nginx: Nginx, way: str, ranges: bool, length: int | None
) -> None:
    with source_of(nginx.url("disk.raw", way)) as source:
        facts = source.probe()
        assert (facts.ranges, facts.length, facts.name) == (ranges, length, "disk.raw")
        assert facts.content_type == "application/octet-stream"
        assert read(source) == DATA
        assert read(source, size=7777) == DATA


def test_a_slow_line_gives_what_came_so_far(nginx: Nginx) -> None:
    with source_of(nginx.url("disk.raw", "slow")) as source:
        reader = source.open()
        view = memoryview(bytearray(len(DATA)))
        count = reader.readinto(view)
        assert 0 < count < len(DATA)
        assert view[:count] == DATA[:count]
        reader.close()


def test_any_part_can_be_read_from_any_thread(nginx: Nginx) -> None:
    step = 100_000
    found: dict[int, bytes] = {}
    with source_of(nginx.url("disk.raw")) as source:

        def work(first: int) -> None:
            for start in range(first * step, len(DATA), 4 * step):
                found[start] = read(source, start, min(step, len(DATA) - start))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert b"".join(found[start] for start in sorted(found)) == DATA


def test_tls_is_trusted_through_a_directory_of_any_names(nginx: Nginx, tmp_path: Path) -> None:
    url = nginx.url("disk.raw", tls=True)
    with source_of(url, tls=Tls(ca_dir=str(nginx.ca_dir))) as source:
        assert read(source) == DATA
    with source_of(url, tls=Tls(insecure=True)) as source:
        assert read(source, 5, 10) == DATA[5:15]
    with source_of(url) as source, pytest.raises(SourceTlsUntrusted) as caught:
        source.probe()
    assert "issuer" in str(caught.value)
    assert "localhost" in str(caught.value)
    # The layout of a ConfigMap that the kubelet has mounted.
    data = tmp_path / "..2024_01_01"
    data.mkdir()
    (data / "ca.pem").write_bytes((nginx.ca_dir / "any-name-at-all").read_bytes())
    (tmp_path / "..data").symlink_to(data.name)
    (tmp_path / "ca.pem").symlink_to("..data/ca.pem")
    (tmp_path / "README").write_text("trust this")
    with source_of(url, tls=Tls(ca_dir=str(tmp_path))) as source:
        assert source.probe().length == len(DATA)


def test_basic_auth_comes_from_files_or_from_the_url(nginx: Nginx, tmp_path: Path) -> None:
    user, password = tmp_path / "accessKeyId", tmp_path / "secretKey"
    user.write_text(nginx.user)
    password.write_text(nginx.password + "\n")
    url = nginx.url("disk.raw", "private")
    with source_of(url, credentials=Credentials(access_key_file=str(user), secret_key_file=str(password))) as source:
        assert read(source) == DATA
    with source_of(url.replace("//", f"//{nginx.user}:p%C3%A4ssword@")) as source:
        assert read(source, 0, 5) == DATA[:5]
        assert nginx.user not in source.probe().location
    with source_of(url) as source, pytest.raises(SourceUnauthorized):
        source.probe()


def test_a_renewed_secret_is_used_for_the_next_request(nginx: Nginx, tmp_path: Path) -> None:
    user, password = tmp_path / "accessKeyId", tmp_path / "secretKey"
    user.write_text(nginx.user)
    password.write_text("old")
    credentials = Credentials(access_key_file=str(user), secret_key_file=str(password))
    with source_of(nginx.url("disk.raw", "private"), credentials=credentials) as source:
        password.write_text(nginx.password)
        assert source.probe().length == len(DATA)


def test_odd_files(nginx: Nginx) -> None:
    with source_of(nginx.url("empty")) as source:
        assert source.probe().length == 0
        assert read(source) == b""
    with source_of(nginx.url("one")) as source:
        assert read(source) == b"x"
    with source_of(nginx.url("sub/disk one.raw")) as source:
        assert read(source) == DATA[:1000]
        assert source.probe().name == "disk one.raw"
    with source_of(nginx.url("image.html")) as source:
        assert read(source) == DATA[:5000]
    with source_of(nginx.url("nothing")) as source, pytest.raises(SourceNotFound):
        source.probe()


@pytest.mark.parametrize("way", ["", "plain", "chunked"])
def test_a_web_page_is_refused(nginx: Nginx, way: str) -> None:
    with source_of(nginx.url("page.html", way)) as source, pytest.raises(SourceNotAnImage):
        source.probe()


def test_compression_on_the_fly_never_gives_other_bytes_than_announced(nginx: Nginx) -> None:
    # nginx honours our Accept-Encoding: identity, so these are the file's own bytes.
    with source_of(nginx.url("zeros", "gzipped")) as source:
        data = read(source)
    assert data == bytes(1 << 20) or gzip.decompress(data) == bytes(1 << 20)


def test_a_sibling_is_the_file_beside_it(nginx: Nginx) -> None:
    with source_of(nginx.url("disk.raw") + "?download=1") as source:
        sibling = source.sibling("SHA256SUMS")
        assert sibling is not None
    with sibling:
        assert read(sibling) == b"abc  disk.raw\n"


def test_a_replaced_file_is_noticed(nginx: Nginx) -> None:
    from cdi.api.errors import SourceChanged

    nginx.put("changing", DATA[:10_000])
    with source_of(nginx.url("changing")) as source:
        assert read(source, 0, 100) == DATA[:100]
        nginx.put("changing", DATA[10_000:30_000])
        with pytest.raises(SourceChanged):
            read(source, 100, 100)
