"""Where the servers are and who the client is: `~/.config/primordia/config`.

One small YAML (or JSON) file, mode 0600, because it holds a private key; `up` writes it for the user who called it.
Flags win over the environment (`PRIMORDIA_CONFIG`, `PRIMORDIA_SERVER`, `PRIMORDIA_NAMESPACE`), the environment over the
file.
"""

from __future__ import annotations

import base64
import binascii
import os
import pwd
from pathlib import Path

import msgspec

from primordia.kit.errors import PermanentError
from primordia.kit.files import write_atomic
from primordia.wire import documents

_LARGEST_BYTES = 1024 * 1024


class ConfigError(PermanentError):
    """The client's config is missing, unreadable or wrong."""

    reason = "BadConfig"


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`servers` are URLs, tried in turn. `ca`, `cert` and `key` are PEM in base64, as kubectl's config has them."""

    servers: tuple[str, ...]
    ca: str = ""
    cert: str = ""
    key: str = ""
    namespace: str = "default"
    soup: str = "default"

    @classmethod
    def of_pem(cls, servers: tuple[str, ...], *, ca: bytes, cert: bytes, key: bytes, soup: str = "default") -> ClientConfig:
        """A config from PEM as `kit/pki.py` makes it."""
        encoded = [base64.b64encode(pem).decode() for pem in (ca, cert, key)]
        return cls(servers=servers, ca=encoded[0], cert=encoded[1], key=encoded[2], soup=soup)


def default_path() -> Path:
    """PRIMORDIA_CONFIG, else the user's own file; under sudo without one, that of the user who called sudo."""
    if chosen := os.environ.get("PRIMORDIA_CONFIG"):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    own = Path(base) / "primordia" / "config"
    if os.geteuid() == 0 and not own.exists() and (caller := os.environ.get("SUDO_USER")):
        try:
            return Path(pwd.getpwnam(caller).pw_dir) / ".config" / "primordia" / "config"
        except KeyError:
            return own
    return own


def load(path: Path | None = None, *, server: str = "", namespace: str = "") -> ClientConfig:
    """The config in force: `server` and `namespace` are flags, and win. Raises ConfigError in one clear sentence."""
    path = path or default_path()
    config = _parse(_read(path), path)
    server = server or os.environ.get("PRIMORDIA_SERVER", "")
    namespace = namespace or os.environ.get("PRIMORDIA_NAMESPACE", "")
    return msgspec.structs.replace(
        config,
        servers=tuple(server.split(",")) if server else config.servers,
        namespace=namespace or config.namespace,
    )


def save(path: Path, config: ClientConfig, *, owner: tuple[int, int] | None = None) -> None:
    """Write the config, 0600, and the folders above it; `owner` (uid, gid) gets what is made here."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, msgspec.json.format(msgspec.json.encode(config)) + b"\n", mode=0o600)
    if owner is not None:
        for place in (*made, path):
            os.chown(place, *owner)


def decode_pem(config: ClientConfig, field: str) -> bytes:
    """The PEM text of `ca`, `cert` or `key`."""
    text: str = getattr(config, field)
    try:
        pem = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"The config's {field!r} is not base64.", remedy="Run `primordia up` to write it anew.") from error
    if b"-----BEGIN " not in pem:
        raise ConfigError(f"The config's {field!r} holds no PEM.", remedy="Run `primordia up` to write it anew.")
    return pem


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no client config at {path}.",
            remedy="Start a soup with `primordia up`, or name a config with PRIMORDIA_CONFIG.",
            reason="NoConfig",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"The client config {path} cannot be read ({error.strerror}).", remedy="Give it to its user, with mode 0600."
        ) from error
    if len(content) > _LARGEST_BYTES:
        raise ConfigError(f"The client config {path} is too large to be one.", remedy="Run `primordia up` to write it anew.")
    return content


def _parse(content: bytes, path: Path) -> ClientConfig:
    try:
        plain = documents.parse_json(content) if content.lstrip()[:1] == b"{" else documents.parse_yaml(content)[0]
        config = msgspec.convert(plain, ClientConfig)
    except (documents.DocumentError, msgspec.ValidationError, IndexError) as error:
        words = str(error).rstrip(".")
        raise ConfigError(
            f"The client config {path} is not a config: {words}.", remedy="Correct it, or run `primordia up` to write it anew."
        ) from error
    if not config.servers or not all(server.startswith(("https://", "http://")) for server in config.servers):
        raise ConfigError(
            f"The client config {path}: `servers` must list at least one https:// address.",
            remedy="Correct it, or run `primordia up` to write it anew.",
        )
    return config
