"""The memory body keeps the network contract."""

from __future__ import annotations

import pytest
from network_contract import STATE, NetworkContract

from primordia.drivers.net_memory import MemoryNetwork


class TestMemoryNetwork(NetworkContract):
    @pytest.fixture
    def network(self) -> MemoryNetwork:
        self.body = MemoryNetwork()
        return self.body

    def take_port(self, port: int) -> object:
        self.body.taken_ports.add(port)
        return port

    def free_port(self, taken: object) -> None:
        self.body.taken_ports.clear()

    async def test_it_knows_who_may_connect(self, network: MemoryNetwork) -> None:
        await network.start()
        await network.apply(STATE)
        assert network.allows("10.128.0.2", "10.128.0.1")
        assert not network.allows("10.128.0.1", "10.128.0.2")
        assert network.allows("10.128.0.1", "10.128.32.7")
