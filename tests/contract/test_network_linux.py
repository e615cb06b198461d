"""The Linux body keeps the network contract, in namespaces of the test's own."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator

import pytest
from network_contract import ADDRESS, NetworkContract

from primordia.domain.addresses import mac_of
from primordia.drivers.net_linux.driver import LinuxNetwork
from primordia.kit.errors import TemporaryError
from primordia.ports.network import Network, Tap
from primordia.testing.network import World, eventually, world


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces and TAPs, which needs root")
class TestLinuxNetwork(NetworkContract):
    @pytest.fixture
    async def here(self) -> AsyncIterator[World]:
        async with world() as built:
            self.world = built
            yield built

    @pytest.fixture
    async def network(self, here: World) -> AsyncIterator[LinuxNetwork]:
        network = here.another_network()
        yield network
        await network.close()

    def take_port(self, port: int) -> object:
        return self.world.host.listener(port)

    def free_port(self, taken: object) -> None:
        assert isinstance(taken, socket.socket)
        taken.close()

    async def until_free(self, network: Network, uid: str) -> Tap:
        made: list[Tap] = []

        async def is_free() -> bool:
            try:
                made.append(await network.open_tap(uid, ADDRESS, mac_of(ADDRESS)))
            except TemporaryError:
                return False
            return True

        await eventually(is_free)
        return made[0]
