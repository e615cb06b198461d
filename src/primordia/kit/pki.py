"""Certificates: one authority for each soup, one certificate for each node and person, and the TLS settings made of them.

Names carry identity as in Kubernetes: the common name is who, the organization is the role. Validity begins a day early,
because clocks differ. Both ends of every connection prove who they are; nothing here can be used to skip that.
Extensions follow RFC 5280, so that strict verifiers (Python 3.13, Go) accept them.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from primordia.kit.errors import PermanentError
from primordia.kit.files import write_atomic

CA_DAYS = 3650
LEAF_DAYS = 825
_BACKDATED = datetime.timedelta(days=1)


class PkiError(PermanentError):
    """A key or certificate is missing, broken, or does not fit."""

    reason = "InvalidCertificate"


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Store both, the key for its owner only. Raises OSError."""
        write_atomic(key, self.key, mode=0o600)
        write_atomic(certificate, self.certificate, mode=0o644)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> KeyPair:
        """Load both. Raises PkiError when one is missing or unreadable."""
        try:
            return cls(certificate.read_bytes(), key.read_bytes())
        except OSError as error:
            raise PkiError(f"{error.filename} cannot be read ({error.strerror}).") from error


@dataclass(frozen=True)
class Identity:
    """Whom a verified certificate names, and its roles."""

    name: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaf:
    """What a certificate of an authority's says: who, in which role, serving which names, for which uses and how long."""

    cn: str
    org: str = ""
    san_dns: tuple[str, ...] = ()
    san_ip: tuple[str, ...] = ()
    days: int = LEAF_DAYS
    server: bool = False
    client: bool = True


def make_ca(name: str, *, days: int = CA_DAYS) -> KeyPair:
    """A new authority that signs its own certificate and those of leaves, not of further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return KeyPair(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), _key_pem(key))


def issue(
    ca: KeyPair,
    cn: str,
    org: str = "",
    *,
    san_dns: Sequence[str] = (),
    san_ip: Sequence[str] = (),
    days: int = LEAF_DAYS,
    server: bool = False,
    client: bool = True,
) -> KeyPair:
    """A certificate for `cn` in the role `org`, signed by `ca`, for the named uses and the names and addresses it serves.

    A server's certificate that etcd uses must allow `client` too: its gateway is a client of itself. Raises PkiError
    when the authority's files are broken or an address is none.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = Leaf(cn, org, tuple(san_dns), tuple(san_ip), days, server, client)
    return KeyPair(_certify(ca, key.public_key(), leaf), _key_pem(key))


def request_certificate(cn: str) -> KeyPair:
    """A new key, and the request (PKCS #10) for a certificate of it: what asks an authority without showing it the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return KeyPair(request.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def sign_request(ca: KeyPair, request: bytes, leaf: Leaf) -> bytes:
    """The certificate for the key of a request. Only the key is taken from it: names and uses are `leaf`'s.

    Raises PkiError when the request is broken, or its sender does not hold the key.
    """
    return _certify(ca, _requested_key(request), leaf)


def key_fingerprint(request: bytes) -> str:
    """The hex SHA-256 of the key that a request is for. Raises PkiError."""
    encoded = _requested_key(request).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PkiError("The certificate request is broken.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PkiError("The certificate request's key is not one of the curve P-256.")
    if not parsed.is_signature_valid:
        raise PkiError("The certificate request is not signed by its own key.")
    return key


def _certify(ca: KeyPair, key: ec.EllipticCurvePublicKey, leaf: Leaf) -> bytes:
    authority, authority_key = _load(ca)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, leaf.cn)]
    if leaf.org:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, leaf.org))
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] * leaf.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * leaf.client
    issuer_key_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(x509.Name(attributes), authority.subject, key, leaf.days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id), critical=False)
    )
    names = [x509.DNSName(name) for name in leaf.san_dns], [x509.IPAddress(_address(each)) for each in leaf.san_ip]
    if any(names):
        builder = builder.add_extension(x509.SubjectAlternativeName([*names[0], *names[1]]), critical=False)
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: bytes) -> str:
    """`sha256:` and the hex digest of a PEM certificate, for people to compare and join tokens to pin."""
    return f"sha256:{_certificate(certificate).fingerprint(hashes.SHA256()).hex()}"


def expires(certificate: bytes) -> datetime.datetime:
    """When a PEM certificate ends, in UTC."""
    return _certificate(certificate).not_valid_after_utc


def identity(peer: Mapping[str, Any]) -> Identity:
    """Whom a connection's other end has proven to be, from `ssl.SSLSocket.getpeercert()`. Raises PkiError if nobody."""
    fields = [(key, value) for part in peer.get("subject", ()) for key, value in part]
    names = [value for key, value in fields if key == "commonName"]
    if len(names) != 1:
        raise PkiError("The client's certificate has no common name.")
    return Identity(names[0], tuple(value for key, value in fields if key == "organizationName"))


def server_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 for a server of ours that demands its clients' certificates. Raises PkiError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _fill(context, ca, certificate, key)
    return context


def client_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS for a client that shows its certificate and checks the server's, name included. Raises PkiError.

    TLS 1.3 wherever the server has it; 1.2 is allowed for engines that were built without.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _fill(context, ca, certificate, key)
    return context


def _fill(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    for path in (ca, certificate, key):
        if not path.is_file():
            raise PkiError(f"{path} does not exist.", remedy="Bring the soup up again: it issues what is missing.")
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise PkiError(f"{certificate} and {key} cannot be used ({error}).") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _load(ca: KeyPair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        key = serialization.load_pem_private_key(ca.key, None)
    except (ValueError, TypeError) as error:
        raise PkiError("The authority's key is broken.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError("The authority's key is not an elliptic curve's.")
    certificate = _certificate(ca.certificate)
    if certificate.public_key() != key.public_key():
        raise PkiError("The authority's key does not belong to its certificate.")
    return certificate, key


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise PkiError("A certificate is broken.") from error


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise PkiError(f"{text!r} is not an IP address.") from error
