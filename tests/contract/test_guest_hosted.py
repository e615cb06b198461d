"""The real agent, under the sanitizers, keeps the contract inside namespaces of this host."""

from __future__ import annotations

import pytest
from guest_contract import GuestContract, OpenGuest

from primordia.testing.guest import HostedGuests, deadline, guests, sanitized_agent

__all__ = ["deadline", "guests", "sanitized_agent"]

pytestmark = pytest.mark.usefixtures("deadline")


class TestHostedGuest(GuestContract):
    @pytest.fixture
    def open_guest(self, guests: HostedGuests) -> OpenGuest:
        return guests.connect
