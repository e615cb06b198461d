"""Who listens on a port: the sentence behind "address already in use".

Read from /proc of the calling thread's network namespace; parsing is pure. Format: proc(5), /proc/net/tcp.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

_LISTEN = "0A"


def describe_bind_failure(address: str, port: int, error: OSError) -> str:
    """A sentence that names the port, and its holder if it can be found."""
    place = f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        who = holder_of(address, port)
        return f"Port {place} is taken{f' by {who}' if who else ''} on the host."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"Port {place} cannot be published: {address} is no address of this machine."
    return f"Port {place} cannot be published: {os.strerror(error.errno or 0)}."


def holder_of(address: str, port: int) -> str:
    """`NAME (pid N)` of the process that listens there in this thread's namespace; empty when it cannot be found."""
    for table in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/thread-self/net/{table}").read_text()
        except OSError:
            continue
        inode = listening_inode(text, address, port)
        if inode:
            return _process_with_socket(inode)
    return ""


def listening_inode(table: str, address: str, port: int) -> int:
    """The inode of the socket that listens on that address, or on all addresses, by the kernel's table; 0 for none."""
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 10 or columns[3] != _LISTEN:
            continue
        place, _, number = columns[1].partition(":")
        if int(number, 16) == port and (set(place) == {"0"} or place[-8:] == _kernel_form(address)):
            return int(columns[9])
    return 0


def _kernel_form(address: str) -> str:
    (number,) = struct.unpack("=I", socket.inet_aton(address))
    return f"{number:08X}"


def _process_with_socket(inode: int) -> str:
    wanted = f"socket:[{inode}]"
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(entry.readlink()) == wanted for entry in folder.iterdir()):
                name = (folder.parent / "comm").read_text().strip()
                return f"{name} (pid {folder.parent.name})"
        except OSError:
            continue
    return ""
