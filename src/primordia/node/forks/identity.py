"""Who a fork becomes, and whether it has said so: pure, but for the entropy.

A fork is never a twin: what the guest is told here it sets, reads back and confirms, item by item, before any user code of
it runs. What it does not confirm it is not, and then it is nothing: its maker destroys it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from primordia.domain.addresses import mac_of
from primordia.kit.errors import TemporaryError
from primordia.node.services import Services
from primordia.ports.guest import GuestIdentity, GuestNetwork, Mount, Program, SecretFile

_ALWAYS = ("clock", "entropy", "hostname", "machine-id", "boot-id", "network", "names", "secrets", "thawed")
_LONGEST_HOSTNAME = 63


class UnconfirmedError(TemporaryError):
    """A fork that did not confirm its identity; it is destroyed."""

    reason = "IdentityNotConfirmed"


@dataclass(frozen=True)
class Person:
    """Whom to become. `hosts` maps names to addresses, `search` are the domains that names are looked up in."""

    uid: str
    hostname: str
    address: str
    hosts: Mapping[str, str] = field(default_factory=dict)
    search: tuple[str, ...] = ()
    secrets: tuple[SecretFile, ...] = ()
    inherit_secrets: bool = False
    hooks: tuple[Program, ...] = ()
    mounts: tuple[Mount, ...] = ()


def identity_of(services: Services, person: Person) -> GuestIdentity:
    """What the guest is told, with fresh entropy and the time of now."""
    network = GuestNetwork(
        address=person.address,
        mac=mac_of(person.address),
        gateway=services.network.GATEWAY,
        gateway_mac=services.network.GATEWAY_MAC,
    )
    return GuestIdentity(
        hostname=hostname_of(person.hostname),
        machine_id=person.uid.replace("-", ""),
        wall_ns=int(services.clock.wall().timestamp() * 1e9),
        entropy=secrets.token_bytes(64),
        network=network,
        hosts=dict(person.hosts),
        search=person.search,
        secrets=person.secrets,
        inherit_secrets=person.inherit_secrets,
        hooks=person.hooks,
        mounts=person.mounts,
    )


def check_confirmed(person: Person, said: Collection[str]) -> None:
    """Raise UnconfirmedError naming what is missing of what was asked for."""
    wanted = (*_ALWAYS, *(("mounts",) if person.mounts else ()), *(("hooks",) if person.hooks else ()))
    missing = [item for item in wanted if item not in said]
    if missing:
        raise UnconfirmedError(f"The guest did not confirm its {', '.join(missing)}.")


def hostname_of(name: str) -> str:
    """A name as a hostname: no dots, at most 63 characters."""
    return name.replace(".", "-")[:_LONGEST_HOSTNAME].rstrip("-")
