"""What the daemon says of itself, and how it asks its supervisor for its own restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from primordia import __version__
from primordia.kit.errors import TemporaryError
from primordia.kit.ids import new_uid
from primordia.node.fleet import Fleet
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.operations import DaemonStatus

_PATIENCE_S = 5.0


class Own:
    """One process."""

    def __init__(self, config: NodeConfig, fleet: Fleet) -> None:
        self._config = config
        self._fleet = fleet
        self._word = new_uid()

    def status(self) -> DaemonStatus:
        """As it is now."""
        waits = self._fleet.unsettled()
        return DaemonStatus(
            node=self._config.name,
            daemon=self._word,
            version=__version__,
            settled=waits == (),
            machines=self._fleet.machines(),
            waits=waits or (),
        )

    async def restart(self) -> None:
        """Have the supervisor end this process and start the next. Raises TemporaryError."""
        place = Path(self._config.run_dir) / SOCKET_FILE
        try:
            reply = await asyncio.to_thread(control.ask, place, "restart-daemon", timeout_s=_PATIENCE_S)
        except (OSError, ValueError) as error:
            raise TemporaryError(
                f"The supervisor of node {self._config.name} does not answer: {error}.", remedy="See supervisor.log there."
            ) from error
        if reply.get("ok") is not True:
            raise TemporaryError(
                f"The supervisor of node {self._config.name} refuses: {reply.get('message', 'without a word')}."
            )
