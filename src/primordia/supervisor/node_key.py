"""What a node asks the engine of itself: its lease key, its life, its death, and who the others are."""

from __future__ import annotations

import datetime
import json
import logging

from primordia.domain.lease import (
    LIVES,
    Action,
    Claim,
    Failed,
    Free,
    Gone,
    Grant,
    Granted,
    Look,
    Mine,
    Outcome,
    Renew,
    Renewed,
    Taken,
    death_key,
    lease_key,
    life_key,
)
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.supervisor.engine_client import EngineClient, StoredKey
from primordia.supervisor.lease_file import Holder, address_in, describe, life_in

log = logging.getLogger("lease")


class NodeKey:
    """The keys of one node. Methods that say so raise EngineAwayError; for one thread."""

    def __init__(self, holder: Holder, client: EngineClient) -> None:
        self.name = lease_key(holder.node)
        self.client = client
        self.previous: int | None = None
        """The life that the soup knew when the last claim was made: 0 none; None where the answer was not heard."""
        self._holder = holder
        self._value = holder.encode()

    def perform(self, action: Action) -> Outcome:
        """Carry a lease's action out; whatever goes wrong is an outcome."""
        try:
            return self._ask(action)
        except NotFoundError:
            return Gone()
        except PrimordiaError as error:
            return Failed(str(error))
        except Exception as error:
            log.exception("asking the engine failed")
            return Failed(f"It is a bug: {error!r}.")

    def death(self) -> int:
        """The life that the node's last death names, 0 for none. Raises EngineAwayError."""
        found = self.client.get(death_key(self._holder.node))
        return 0 if found is None else life_in(found.value)

    def others(self) -> dict[str, str]:
        """The addresses of the soup's other nodes, by name. Raises EngineAwayError."""
        found = self.client.list(LIVES)
        return {name: address_in(each.value) for name, each in sorted(found.items()) if name != self._holder.node}

    def bury(self, life: int, why: str) -> bool:
        """Declare a life over, by the node's own word, if it still stands; whether it did. Raises EngineAwayError."""
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        death = {"life": life, "by": "node", "reason": why, "bootId": self._holder.boot_id, "at": at}
        return self.client.bury(self.name, life, death_key(self._holder.node), json.dumps(death).encode())

    def _ask(self, action: Action) -> Outcome:
        if isinstance(action, Renew):
            return Renewed() if self.client.keep_alive(action.lease) else Gone()
        if isinstance(action, Grant):
            return Granted(self.client.grant(action.ttl_s))
        if isinstance(action, Claim):
            self.previous = None
            answer = self.client.claim(self.name, life_key(self._holder.node), self._value, action.lease)
            if isinstance(answer, StoredKey):
                return self._judge(answer)
            self.previous = answer.previous
            return Mine(action.lease, answer.create_revision)
        assert isinstance(action, Look)
        found = self.client.get(self.name)
        return Free() if found is None else self._judge(found)

    def _judge(self, found: StoredKey) -> Outcome:
        if found.value == self._value:
            return Mine(found.lease, found.create_revision)
        return Taken(describe(found.value))
