"""TAPs: a context's link to its node, made as a descriptor and gone with its last holder.

A TAP is never persistent: the kernel removes it when the VMM ends, however it ends, so none can be left behind. Its name
comes from the context's uid, so that a later daemon finds the TAPs of microVMs that it did not start. Every TAP is in one
interface group, by which the filter knows what comes from a guest.

Format: linux/if_tun.h, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from primordia.kit.errors import PermanentError, TemporaryError
from primordia.kit.ids import short_hash

GROUP = 0x5052
"""The kernel's interface group of every TAP."""

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_INTERFACE_REQUEST = struct.Struct("=16sH22x")

_SYSCTLS = {
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/accept_redirects": "0",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_source_route": "0",
    "ipv4/conf/{}/proxy_arp": "0",
    "ipv4/conf/{}/route_localnet": "0",
    "ipv6/conf/{}/disable_ipv6": "1",
}


def tap_name(uid: str) -> str:
    """The TAP of a context: `t` and ten hex digits of its uid's SHA-256; an interface name has 15 bytes at most."""
    return "t" + short_hash(uid, 10)


def create(name: str) -> int:
    """Make a TAP in this process's network namespace and return its descriptor; the link is still down.

    Raises TemporaryError naming the holder when there is such a TAP already, PermanentError when there can be none.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PermanentError(
            f"/dev/net/tun cannot be opened ({error.strerror}).", remedy="Load the tun module: modprobe tun.", reason="NoTun"
        ) from error
    try:
        request = _INTERFACE_REQUEST.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        # One that somebody made persistent was waiting here without a holder: it is ours now, and ends with us.
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            raise TemporaryError(
                f"TAP {name} is in use{_by_whom(holders(name))}.",
                remedy="It goes when that process ends.",
                reason="TapInUse",
            ) from error
        raise PermanentError(f"TAP {name} cannot be made ({error.strerror}).", reason="TapFailed") from error
    return descriptor


def harden(name: str) -> None:
    """Close what the kernel would otherwise do on a new link: redirects, source routing, IPv6 of its own."""
    for template, value in _SYSCTLS.items():
        path = Path("/proc/sys/net") / template.format(name)
        try:
            path.write_text(value)
        except FileNotFoundError:
            if not template.startswith("ipv6"):
                raise


def holders(name: str) -> list[int]:
    """The processes that hold the TAP open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(_is_tap(entry, name) for entry in folder.iterdir()):
                found.append(int(folder.parent.name))
        except OSError:
            continue
    return sorted(found)


def _is_tap(descriptor: Path, name: str) -> bool:
    try:
        if str(descriptor.readlink()) != "/dev/net/tun":
            return False
        text = (descriptor.parents[1] / "fdinfo" / descriptor.name).read_text()
    except OSError:
        return False
    return f"iff:\t{name}\n" in text


def _by_whom(pids: list[int]) -> str:
    names = []
    for pid in pids:
        try:
            names.append(f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})")
        except OSError:
            continue
    return f" by {', '.join(names)}" if names else ""
