"""The certificates of a local soup and the config of its client, made once and kept.

There are two authorities, whose keys lie in the soup's state folder, 0600, and on no node. The soup's own signs whoever may
speak to the API: administrators and nodes. The engine's signs nodes alone, so that nobody else, an administrator included,
reaches the engine past the API (etcd's own filter by name, --client-cert-allowed-hostname, shuts out its own gateway too).
"""

from __future__ import annotations

import datetime
import functools
import os
import pwd
from collections.abc import Callable
from pathlib import Path

from primordia.client.config import ClientConfig, load, save
from primordia.host.soup import SoupFile, SoupNode, own_address, reach
from primordia.kit import pki
from primordia.kit.errors import PrimordiaError
from primordia.kit.paths import SoupPaths

ADMINS = "primordia:admins"
NODES = "primordia:nodes"


def ensure(soup: SoupFile, paths: SoupPaths) -> None:
    """Make what is missing or ends within months: the administrator's certificate, each node's two; and missing authorities.

    A machine that joined got its node's when it did, and never sees the authorities' keys. What runs goes on with what it has
    read: the engine reads a certificate anew for each connection, a daemon when it is started.
    """
    if soup.joined:
        return
    home = paths.state / "pki"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    title = f"primordia {soup.name} {soup.uid[:8]}"
    ca = _authority(home, "ca", title)
    engine_ca = _authority(home, "engine-ca", f"{title} engine")
    _issue(home, "admin", lambda: pki.issue(ca, "admin", ADMINS), renew=True)
    for node in soup.nodes:
        here = paths.node(node.name).pki
        here.mkdir(parents=True, exist_ok=True, mode=0o700)
        (here / "ca.crt").write_bytes(ca.certificate)
        (here / "engine-ca.crt").write_bytes(engine_ca.certificate)
        for name, authority in (("node", ca), ("engine", engine_ca)):
            _issue(here, name, functools.partial(_node_certificate, soup, node, authority), renew=True)


def _authority(home: Path, name: str, title: str) -> pki.KeyPair:
    _issue(home, name, lambda: pki.make_ca(title))
    return pki.KeyPair.read(home / f"{name}.crt", home / f"{name}.key")


def _issue(folder: Path, name: str, make: Callable[[], pki.KeyPair], *, renew: bool = False) -> None:
    """Keep the pair of that name, or make it; with `renew` also where not a third of its life is left."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if certificate.exists() and key.exists():
        left = pki.expires(certificate.read_bytes()) - datetime.datetime.now(datetime.UTC)
        if not renew or left > datetime.timedelta(days=pki.LEAF_DAYS / 3):
            return
    make().write(certificate, key)


def _node_certificate(soup: SoupFile, node: SoupNode, authority: pki.KeyPair) -> pki.KeyPair:
    """A node's: for serving and for asking, for etcd's servers and gateway are clients of each other."""
    return pki.issue(
        authority,
        node.name,
        NODES,
        san_dns=(node.name, "localhost"),
        san_ip=tuple(dict.fromkeys((own_address(node), reach(soup, node), "127.0.0.1"))),
        server=True,
    )


def default_client_config(owner: tuple[int, int]) -> Path:
    """Where the client of that user looks: PRIMORDIA_CONFIG, our own XDG_CONFIG_HOME, else below the user's home."""
    if chosen := os.environ.get("PRIMORDIA_CONFIG"):
        return Path(chosen)
    if (base := os.environ.get("XDG_CONFIG_HOME")) and owner[0] == os.geteuid():
        return Path(base) / "primordia" / "config"
    try:
        home = Path(pwd.getpwuid(owner[0]).pw_dir)
    except KeyError:
        home = Path.home()
    return home / ".config" / "primordia" / "config"


def write_client_config(soup: SoupFile, paths: SoupPaths, servers: tuple[str, ...], path: Path, owner: tuple[int, int]) -> None:
    """The administrator's config, 0600, belonging to the person who will use it."""
    home = paths.state / "pki"
    pair = pki.KeyPair.read(home / "admin.crt", home / "admin.key")
    config = ClientConfig.of_pem(
        servers, ca=(home / "ca.crt").read_bytes(), cert=pair.certificate, key=pair.key, soup=soup.name
    )
    save(path, config, owner=owner)


def forget_client_config(soup: SoupFile, path: Path | None, owner: tuple[int, int]) -> None:
    """Remove the config if it is this soup's; another soup's, or an unreadable one, stays."""
    place = path or default_client_config(owner)
    try:
        if load(place).soup == soup.name:
            place.unlink(missing_ok=True)
    except PrimordiaError:
        return
