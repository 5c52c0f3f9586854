"""Tests of the served certificate and TLS policy, and of replacing them while connections are open."""

import asyncio
import contextlib
import datetime as dt
import ssl

import pytest

from cdi.api.configuration import TlsSecurityProfile
from cdi.kube import pki
from cdi.server.tls import ServingTls, TlsPolicy

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def authority():
    return pki.new_authority("signer", pki.AUTHORITY_LIFETIME, NOW)


def pair(authority):
    return pki.new_certificate(authority, "localhost", hosts=("localhost",), lifetime=pki.CERTIFICATE_LIFETIME, now=NOW)


def profile(**fields):
    return TlsSecurityProfile.model_validate(fields)


@pytest.mark.parametrize(
    ("wanted", "minimum", "has", "has_not"),
    [
        (None, "TLSv1_2", "ECDHE-ECDSA-AES128-GCM-SHA256", "AES128-SHA"),
        (profile(type="Intermediate", intermediate={}), "TLSv1_2", "DHE-RSA-AES128-GCM-SHA256", "AES128-SHA"),
        (profile(type="Old", old={}), "TLSv1_2", "AES128-SHA", "DES-CBC3-SHA"),
        (profile(type="Modern", modern={}), "TLSv1_3", None, "AES128-SHA"),
        (profile(type="Custom", custom={"ciphers": ["AES128-SHA", "TLS_AES_128_GCM_SHA256"], "minTLSVersion": "VersionTLS11"}),
         "TLSv1_2", "AES128-SHA", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (profile(type="Custom", custom={"minTLSVersion": "VersionTLS13"}), "TLSv1_3", None, "AES128-SHA"),
        (profile(type="Custom"), "TLSv1_2", "ECDHE-ECDSA-AES128-GCM-SHA256", "AES128-SHA"),
        (profile(type="Best"), "TLSv1_2", "ECDHE-ECDSA-AES128-GCM-SHA256", "AES128-SHA"),
    ],
)  # fmt: skip
def test_profiles_are_followed(wanted, minimum, has, has_not):
    tls = ServingTls()
    tls.apply_policy(TlsPolicy.of(wanted))
    offered = {each["name"] for each in tls.context.get_ciphers()}
    assert tls.context.minimum_version is ssl.TLSVersion[minimum]
    assert has is None or has in offered
    assert has_not not in offered


def test_ciphers_that_nobody_knows_leave_what_is_usual():
    tls = ServingTls()
    tls.apply_policy(TlsPolicy(ciphers=("NO-SUCH-CIPHER",)))
    assert "ECDHE-ECDSA-AES128-GCM-SHA256" in {each["name"] for each in tls.context.get_ciphers()}


def test_a_key_that_does_not_belong_to_it_is_refused_and_the_old_one_stays(authority):
    tls = ServingTls()
    good, other = pair(authority), pair(authority)
    assert tls.set_certificate(good.certificate, good.key)
    assert not tls.set_certificate(good.certificate, good.key)
    with pytest.raises(ssl.SSLError):
        tls.set_certificate(good.certificate, other.key)
    assert not tls.set_certificate(good.certificate, good.key)


@contextlib.asynccontextmanager
async def echoing(tls):
    async def echo(reader, writer):
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def dial(port, authority, **limits):
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    for name, value in limits.items():
        setattr(context, name, value)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


async def hung_up(writer):
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def test_a_new_certificate_is_shown_to_the_next_and_the_connection_before_goes_on(authority):
    tls = ServingTls()
    first, second = pair(authority), pair(authority)
    tls.set_certificate(first.certificate, first.key)
    async with echoing(tls) as port:
        reader, writer = await dial(port, authority)
        tls.set_certificate(second.certificate, second.key)
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        _, later = await dial(port, authority)

        def serial(connection):
            return int(connection.get_extra_info("peercert")["serialNumber"], 16)

        assert serial(writer) == first.parsed().serial_number
        assert serial(later) == second.parsed().serial_number
        for each in (writer, later):
            await hung_up(each)


async def test_a_new_policy_holds_for_the_next_connection(authority):
    tls = ServingTls()
    one = pair(authority)
    tls.set_certificate(one.certificate, one.key)
    async with echoing(tls) as port:
        _, old = await dial(port, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
        await hung_up(old)
        tls.apply_policy(TlsPolicy(minimum=ssl.TLSVersion.TLSv1_3))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await dial(port, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
        _, new = await dial(port, authority)
        assert new.get_extra_info("ssl_object").version() == "TLSv1.3"
        await hung_up(new)


@pytest.mark.parametrize(
    ("policy", "ciphers", "alert"),
    [
        (TlsPolicy(minimum=ssl.TLSVersion.TLSv1_3), "DEFAULT", "PROTOCOL_VERSION"),
        (TlsPolicy(), "AES128-SHA", "HANDSHAKE_FAILURE"),
    ],
    ids=["too old a version", "no common cipher"],
)
async def test_a_client_whose_handshake_fails_gets_an_alert(authority, policy, ciphers, alert):
    tls = ServingTls()
    held = pair(authority)
    tls.set_certificate(held.certificate, held.key)
    tls.apply_policy(policy)
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    async with echoing(tls) as port:
        with pytest.raises(ssl.SSLError, match=alert):
            await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        _, writer = await dial(port, authority)
        await hung_up(writer)
