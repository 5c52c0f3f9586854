from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from cdi.api.errors import SourceTlsUntrusted
from cdi.api.job import Tls
from cdi.http.tls import make_context


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def authorities(directory: Path) -> int:
    return len(make_context(Tls(ca_dir=str(directory))).get_ca_certs()) - len(make_context(Tls()).get_ca_certs())


def test_every_certificate_of_every_file_counts(ca: trustme.CA, tmp_path: Path) -> None:
    other, third = trustme.CA(), trustme.CA()
    (tmp_path / "bundle.whatever").write_bytes(b"# comment\n" + ca.cert_pem.bytes() + b"\n" + other.cert_pem.bytes())
    (tmp_path / "again.pem").write_bytes(ca.cert_pem.bytes())
    (tmp_path / "binary.der").write_bytes(ssl.PEM_cert_to_DER_cert(third.cert_pem.bytes().decode()))
    (tmp_path / "notes").write_text("not a certificate")
    (tmp_path / "directory").mkdir()
    assert authorities(tmp_path) == 3


def test_a_damaged_certificate_is_named(ca: trustme.CA, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(ca.cert_pem.bytes())
    (tmp_path / "bad").write_bytes(ca.cert_pem.bytes()[:300])
    with pytest.raises(SourceTlsUntrusted) as caught:
        make_context(Tls(ca_dir=str(tmp_path)))
    assert caught.value.where == str(tmp_path / "bad")


def test_a_directory_without_any_is_told_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "tls.key").write_text("oops")
    with pytest.raises(SourceTlsUntrusted, match=r"tls\.key"):
        make_context(Tls(ca_dir=str(tmp_path)))
    with pytest.raises(SourceTlsUntrusted, match="cannot read the CA directory"):
        make_context(Tls(ca_dir=str(tmp_path / "nothing")))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SourceTlsUntrusted) as caught:
        make_context(Tls(ca_dir=str(tmp_path)))
    assert caught.value.where == str(tmp_path / "link")


def test_insecure_checks_nothing_and_reads_nothing(tmp_path: Path) -> None:
    context = make_context(Tls(insecure=True, ca_dir=str(tmp_path / "nothing")))
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname
    assert make_context(Tls()).verify_mode == ssl.CERT_REQUIRED
