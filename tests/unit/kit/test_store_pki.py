"""Certificates: what they say, who accepts them, and what is refused. Handshakes run in memory, without sockets."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from primordia.kit import pki
from primordia.kit.pki import Identity, KeyPair, PkiError

CA = pki.make_ca("soup default")


def place(folder: Path, ca: KeyPair, pair: KeyPair) -> tuple[Path, Path, Path]:
    folder.mkdir()
    (folder / "ca.crt").write_bytes(ca.certificate)
    pair.write(folder / "c.crt", folder / "c.key")
    return folder / "ca.crt", folder / "c.crt", folder / "c.key"


def server_pair(ca: KeyPair = CA) -> KeyPair:
    return pki.issue(ca, "n1", "primordia:nodes", san_dns=["n1.local"], san_ip=["10.77.0.1"], server=True)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[str | None, dict[str, object]]:
    """Both ends in memory; returns the version and the client's certificate as the server sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1].version(), dict(ends[1].getpeercert() or {})


def test_both_ends_prove_who_they_are(tmp_path: Path) -> None:
    server = pki.server_context(*place(tmp_path / "s", CA, server_pair()))
    client = pki.client_context(*place(tmp_path / "c", CA, pki.issue(CA, "ann", "primordia:admins")))
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("n1.local", "10.77.0.1"):
        version, peer = handshake(server, client, name)
        assert version == "TLSv1.3"
        assert pki.identity(peer) == Identity("ann", ("primordia:admins",))


@pytest.mark.parametrize("name", ["n2.local", "10.77.0.2"])
def test_a_server_under_another_name_is_not_believed(tmp_path: Path, name: str) -> None:
    server = pki.server_context(*place(tmp_path / "s", CA, server_pair()))
    client = pki.client_context(*place(tmp_path / "c", CA, pki.issue(CA, "ann")))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, name)


def test_another_authoritys_client_is_refused(tmp_path: Path) -> None:
    other = pki.make_ca("soup default")
    server = pki.server_context(*place(tmp_path / "s", CA, server_pair()))
    client = pki.client_context(*place(tmp_path / "c", CA, pki.issue(other, "ann")))
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "n1.local")


def test_a_certificate_is_good_for_its_uses_only(tmp_path: Path) -> None:
    client_only = pki.issue(CA, "ann", san_dns=["n1.local"], client=True)
    server = pki.server_context(*place(tmp_path / "s", CA, client_only))
    client = pki.client_context(*place(tmp_path / "c", CA, pki.issue(CA, "bob")))
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, client, "n1.local")


def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    server = pki.server_context(*place(tmp_path / "s", CA, server_pair()))
    client = ssl.create_default_context(cafile=str(tmp_path / "s" / "ca.crt"))
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "n1.local")


def test_what_a_certificate_says() -> None:
    certificate = x509.load_pem_x509_certificate(server_pair().certificate)
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now - datetime.timedelta(hours=23)
    assert pki.expires(server_pair().certificate) > now + datetime.timedelta(days=800)
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.serial_number != x509.load_pem_x509_certificate(server_pair().certificate).serial_number
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    _, certificate, key = place(tmp_path / "c", CA, pki.issue(CA, "ann"))
    assert key.stat().st_mode & 0o777 == 0o600
    assert KeyPair.read(certificate, key).certificate == certificate.read_bytes()


def test_a_fingerprint_names_one_certificate() -> None:
    assert pki.fingerprint(CA.certificate) == pki.fingerprint(CA.certificate)
    assert pki.fingerprint(CA.certificate) != pki.fingerprint(pki.make_ca("soup default").certificate)
    assert len(pki.fingerprint(CA.certificate)) == len("sha256:") + 64


def test_broken_files_are_named(tmp_path: Path) -> None:
    ca, certificate, key = place(tmp_path / "c", CA, pki.issue(CA, "ann"))
    with pytest.raises(PkiError, match="nowhere"):
        pki.client_context(tmp_path / "nowhere", certificate, key)
    with pytest.raises(PkiError, match="nowhere"):
        KeyPair.read(tmp_path / "nowhere", key)
    key.write_bytes(b"broken")
    with pytest.raises(PkiError, match=r"c\.key"):
        pki.client_context(ca, certificate, key)
    with pytest.raises(PkiError, match="key is broken"):
        pki.issue(KeyPair(CA.certificate, b"broken"), "ann")
    with pytest.raises(PkiError, match="does not belong"):
        pki.issue(KeyPair(CA.certificate, pki.make_ca("x").key), "ann")
    with pytest.raises(PkiError, match="not an IP address"):
        pki.issue(CA, "ann", san_ip=["n1"])


@pytest.mark.parametrize("peer", [{}, {"subject": ()}, {"subject": ((("commonName", "a"),), (("commonName", "b"),))}])
def test_a_certificate_without_one_name_is_nobody(peer: dict[str, object]) -> None:
    with pytest.raises(PkiError):
        pki.identity(peer)
