"""Whom a joining machine trusts, and where it says it is: pure."""

from __future__ import annotations

import base64
import datetime
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from primordia.host.join import check_authority
from primordia.host.machine import parse_site
from primordia.kit import pki
from primordia.kit.errors import InvalidError, PermanentError
from primordia.registry.rules import timestamp
from primordia.wire.joining import Authority, JoinToken

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
CA = pki.make_ca("test")
TOKEN = JoinToken("0" * 8, "1" * 40, pki.fingerprint(CA.certificate).removeprefix("sha256:"))


def authority(**changes: str) -> Authority:
    fields = {"soup": "default", "node": "n1", "ca": CA.certificate.decode(), "time": timestamp(NOW), "signer": "https://n1"}
    return Authority(**{**fields, **changes})


def test_the_tokens_soup_is_trusted_with_clocks_an_hour_apart() -> None:
    check_authority(authority(), TOKEN, NOW + datetime.timedelta(hours=1), "n1:7443")
    check_authority(authority(), TOKEN, NOW - datetime.timedelta(hours=1), "n1:7443")


@pytest.mark.parametrize(("hours", "words"), [(30, "30 hours ahead of"), (-30, "30 hours behind")])
def test_clocks_too_far_apart_are_said(hours: int, words: str) -> None:
    with pytest.raises(PermanentError, match=words):
        check_authority(authority(), TOKEN, NOW + datetime.timedelta(hours=hours), "n1:7443")


def test_a_foreign_authority_is_refused_before_anything_else_is_believed() -> None:
    foreign = authority(ca=pki.make_ca("test").certificate.decode(), time=timestamp(NOW.replace(year=2000)))
    with pytest.raises(PermanentError, match="Nothing was sent"):
        check_authority(foreign, TOKEN, NOW, "n1:7443")


def test_a_soup_of_one_machine_takes_nobody_in() -> None:
    with pytest.raises(PermanentError, match="takes no machines in"):
        check_authority(authority(signer=""), TOKEN, NOW, "n1:7443")


def test_a_token_is_read_whole_or_not_at_all_and_never_shown() -> None:
    assert JoinToken.parse(f" {TOKEN}\n") == TOKEN
    assert TOKEN.secret not in repr(TOKEN)
    for bad in ("", "a.b.c", str(TOKEN)[:-1], f"{TOKEN}.x", TOKEN.secret):
        with pytest.raises(InvalidError) as error:
            JoinToken.parse(bad)
        assert not bad or bad not in str(error.value)


def test_a_certificate_says_what_the_authority_decides_and_not_what_the_request_does() -> None:
    asked = pki.request_certificate("admin")
    leaf = pki.Leaf("n2", "primordia:nodes", san_dns=("n2",), san_ip=("10.9.0.2",), server=True)
    made = x509.load_pem_x509_certificate(pki.sign_request(CA, asked.certificate, leaf))
    assert made.subject.rfc4514_string() == "O=primordia:nodes,CN=n2"
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.9.0.2")]
    assert made.public_key() == x509.load_pem_x509_csr(asked.certificate).public_key()
    assert pki.key_fingerprint(asked.certificate) != pki.key_fingerprint(pki.request_certificate("admin").certificate)


def test_a_request_that_was_tampered_with_is_refused() -> None:
    whole = x509.load_pem_x509_csr(pki.request_certificate("n2").certificate).public_bytes(Encoding.DER)
    place = whole.index(b"n2")  # another name under the same signature
    forged = base64.encodebytes(whole[:place] + b"n1" + whole[place + 2 :])
    head, tail = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"
    for bad in (b"", head + b"AAAA\n" + tail, head + forged + tail, CA.certificate):
        with pytest.raises(pki.PkiError):
            pki.sign_request(CA, bad, pki.Leaf("n2"))


LINKS = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {"ifname": "eth0", "addr_info": [{"local": "192.0.2.11", "prefixlen": 24}, {"local": "10.200.0.1", "prefixlen": 16}]},
]


def test_a_machines_place_is_its_address_its_network_and_its_uplink() -> None:
    site = parse_site("192.0.2.11", "10.128.0.0/9", LINKS, [{"dst": "default", "dev": "eth0"}])
    assert (site.network, site.uplink) == ("192.0.2.0/24", "eth0")
    assert parse_site("192.0.2.11", "10.128.0.0/9", LINKS, []).uplink == ""


@pytest.mark.parametrize(
    ("address", "words"),
    [("192.0.2.12", "it has 192.0.2.11, 10.200.0.1"), ("127.0.0.1", "cannot be reached"), ("10.200.0.1", "lies within")],
)
def test_an_address_that_will_not_do_is_refused(address: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        parse_site(address, "10.128.0.0/9", LINKS, [])
