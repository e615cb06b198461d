"""What every body of the network port promises. A body's test file gives the `network`, and ways to take and try a port."""

from __future__ import annotations

import os

import pytest

from primordia.domain.addresses import mac_of
from primordia.kit.errors import NotFoundError, TemporaryError
from primordia.ports.network import Endpoint, Flow, Network, NetworkState, Publication, Tap

ADDRESS = "10.128.0.1"
STATE = NetworkState(
    endpoints=(Endpoint("uid-1", ADDRESS, "a"), Endpoint("uid-2", "10.128.0.2", "b", egress=True)),
    flows=(Flow(ADDRESS, ("10.128.0.2", "10.128.32.7")), Flow("10.128.32.7", (ADDRESS,))),
    publications=(Publication(6379, ADDRESS, 80, "uid-1"), Publication(6380, "10.128.0.2", 80, "uid-2")),
)


async def open_tap(network: Network, uid: str = "uid-1") -> Tap:
    return await network.open_tap(uid, ADDRESS, mac_of(ADDRESS))


class NetworkContract:
    """Subclassed for each body, which gives the fixture `network` (not started) and the methods below."""

    def take_port(self, port: int) -> object:
        """Let somebody else listen on the port."""
        raise NotImplementedError

    def free_port(self, taken: object) -> None:
        """Undo `take_port`."""
        raise NotImplementedError

    async def until_free(self, network: Network, uid: str) -> Tap:
        """A TAP for the uid, as soon as its last holder's end has been noticed."""
        return await open_tap(network, uid)

    async def test_starting_twice_is_harmless(self, network: Network) -> None:
        await network.start()
        await network.apply(STATE)
        await network.start()
        assert await network.apply(STATE) == ()

    async def test_before_start_and_after_close_nothing_is_done(self, network: Network) -> None:
        with pytest.raises(TemporaryError):
            await network.apply(STATE)
        with pytest.raises(TemporaryError):
            await open_tap(network)
        await network.start()
        await network.close()
        with pytest.raises(TemporaryError):
            await network.apply(STATE)
        await network.start()
        assert await network.apply(STATE) == ()

    async def test_a_tap_has_the_same_name_each_time_and_a_descriptor(self, network: Network) -> None:
        await network.start()
        tap, other = await open_tap(network), await open_tap(network, "uid-2")
        try:
            assert tap.name != other.name
            assert len(tap.name) == 11
            os.fstat(tap.fd)
        finally:
            os.close(tap.fd)
            os.close(other.fd)
        again = await self.until_free(network, "uid-1")
        os.close(again.fd)
        assert again.name == tap.name

    async def test_a_tap_that_is_held_is_not_given_twice(self, network: Network) -> None:
        await network.start()
        tap = await open_tap(network)
        holder = os.dup(tap.fd)
        os.close(tap.fd)
        try:
            with pytest.raises(TemporaryError, match=tap.name):
                await open_tap(network)
        finally:
            os.close(holder)
        os.close((await self.until_free(network, "uid-1")).fd)

    async def test_applying_again_and_less_and_nothing_is_fine(self, network: Network) -> None:
        await network.start()
        for state in (STATE, STATE, NetworkState(STATE.endpoints[:1]), NetworkState(), STATE):
            assert await network.apply(state) == ()

    async def test_a_taken_port_is_the_only_fault_and_is_tried_again(self, network: Network) -> None:
        await network.start()
        taken = self.take_port(6379)
        (fault,) = await network.apply(STATE)
        assert fault.publication == STATE.publications[0]
        assert "6379" in fault.message
        self.free_port(taken)
        assert await network.apply(STATE) == ()

    async def test_the_gateway_is_what_the_guests_are_told(self, network: Network) -> None:
        assert (network.GATEWAY, network.GATEWAY_MAC) == ("169.254.1.1", "02:00:00:00:00:01")

    async def test_a_waiting_tap_is_attached_once_its_address_is_known(self, network: Network) -> None:
        await network.start()
        tap = await network.open_tap("machine-1")
        try:
            await network.attach_tap("machine-1", ADDRESS, mac_of(ADDRESS))
            await network.attach_tap("machine-1", "10.128.0.9", mac_of("10.128.0.9"))
            endpoint = Endpoint("uid-9", "10.128.0.9", "c", link="machine-1")
            assert await network.apply(NetworkState((endpoint,))) == ()
        finally:
            os.close(tap.fd)

    async def test_a_tap_that_is_not_there_cannot_be_attached(self, network: Network) -> None:
        await network.start()
        with pytest.raises(NotFoundError, match="no TAP"):
            await network.attach_tap("machine-2", ADDRESS, mac_of(ADDRESS))
