"""The client's side of mutual TLS, from the config's own PEM."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from pathlib import Path

from primordia.client.config import ClientConfig, ConfigError, decode_pem
from primordia.client.errors import TlsError

_REMEDY = "Run `primordia up` to write the config anew."


def context_of(config: ClientConfig) -> ssl.SSLContext:
    """Trust the soup's CA alone, and show our certificate if the config has one. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=decode_pem(config, "ca").decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise ConfigError(f"The config's 'ca' is no certificate ({error.reason}).", remedy=_REMEDY) from error
    if config.cert:
        _load_pair(context, decode_pem(config, "cert"), decode_pem(config, "key"))
    return context


def _load_pair(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """OpenSSL reads keys from files only, so this one lives, 0600, for the length of a call."""
    with tempfile.TemporaryDirectory(prefix="primordia-") as folder:
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_bytes(cert + b"\n" + key)
        try:
            context.load_cert_chain(path, password=lambda: "")
        except ssl.SSLError as error:
            raise ConfigError(
                f"The config's 'cert' and 'key' are no pair ({error.reason or error}).", remedy=_REMEDY
            ) from error


def explain_refusal(config: ClientConfig) -> TlsError | None:
    """Why a server may have closed the connection on this certificate: it has expired, or is of another authority.

    With TLS 1.3 a server refuses after the client's last word, and often just closes: what is wrong has to be seen here.
    """
    from cryptography import x509  # a tenth of a second, paid only where something is wrong already
    from cryptography.exceptions import InvalidSignature

    if not config.cert:
        return None
    try:
        cert = x509.load_pem_x509_certificate(decode_pem(config, "cert"))
        if cert.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
            ended = cert.not_valid_after_utc.strftime("%Y-%m-%d")
            return TlsError(f"This client's certificate has expired ({ended}).", remedy="Run `primordia up` to get a new one.")
        cert.verify_directly_issued_by(x509.load_pem_x509_certificate(decode_pem(config, "ca")))
    except (ValueError, TypeError, InvalidSignature):
        return TlsError(
            "This client's certificate is not of the soup's own authority, so no server accepts it.", remedy=_REMEDY
        )
    return None
