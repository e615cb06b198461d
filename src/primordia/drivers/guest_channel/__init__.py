"""The guest port over framed streams on the machine's byte channel: the host's half of guest/PROTOCOL.md."""

from primordia.drivers.guest_channel.guest import ChannelGuest, connect

__all__ = ["ChannelGuest", "connect"]
