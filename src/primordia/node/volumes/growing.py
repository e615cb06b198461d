"""What a running guest hears of its disk: that it has grown, and that it may write again.

A disk that has grown: the VMM tells the guest's kernel, and the agent makes the file system larger. A pool that was full: the
VMM has stopped a guest whose write found no room, so that it never sees an error; it makes the same write again, and is stopped
again if there is still none. Each step may be repeated.
"""

from __future__ import annotations

from primordia.kit.errors import TemporaryError
from primordia.node.program import DATA
from primordia.node.volumes.owned import OwnedVolume


async def tell_guest(owned: OwnedVolume, size_bytes: int) -> None:
    """disks.GrowGuest. Raises PrimordiaError."""
    live = owned.live
    if live is None or live.machine is None:
        return
    guest = live.guest
    if guest is None:
        raise TemporaryError(
            f"The guest of {live.title} cannot be told now that its data has grown.", reason="GuestUnreachable"
        )
    await live.machine.resize_drive(DATA, size_bytes)
    await guest.grow_data()


async def write_again(owned: OwnedVolume) -> bool:
    """Whether the guest stood for want of room; it tries again then. Raises PrimordiaError."""
    live = owned.live
    return live is not None and live.machine is not None and await live.machine.write_again()
