"""The copies that this node holds: deltas taken from their owners, whole contents fetched and given, all of it readable back.

Invariants: a delta is taken only from the node that owns the volume now, in its epoch, and only where this node is among
those that are to hold a copy; it is acknowledged when it is durable here, and published after that, out of the sender's way;
nothing of a volume is stored here before its object waits for this node at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager

import msgspec

from primordia.domain import ranges as spans
from primordia.domain.rate import TokenBucket
from primordia.domain.snapshots import Delta, Manifest, check_epoch
from primordia.kit import heap
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import ConflictError, InvalidError, NotFoundError, PermanentError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.node.volumes.copies.auditor import Auditor
from primordia.node.volumes.copies.currency import Currency
from primordia.node.volumes.copies.directory import Directory
from primordia.node.volumes.copies.incoming import Incoming
from primordia.node.volumes.copies.outgoing import Outgoing
from primordia.node.volumes.copies.pace import bandwidth_of
from primordia.node.volumes.copies.tidying import droppable_here
from primordia.ports.copies import CopyPeer
from primordia.ports.volumes import Volumes
from primordia.wire.copies import Current, HeldSnapshot, Holding, Notes, Seed, Taken, Unfinished
from primordia.wire.data import ScrubbedCopy
from primordia.wire.resources import Volume

log = logging.getLogger(__name__)

Hold = Callable[[Volume], Awaitable[None]]
"""Has a volume's object wait for this node at its end."""
Reach = Callable[[str], CopyPeer]
"""Another node by name. Raises TemporaryError while nobody knows where it is."""

_SETTLE_WAIT_S = 10.0
_SETTLE_AFTER_S = 0.02
"""What was acknowledged is published by two commits of the pool: not in the moment in which the engine, perhaps on the same
disk, records the sync that waited for it."""
_SEEDS_AT_ONCE = 2
"""A node that many copies were moved to takes them in turns, so that the deltas of the others find its disk free."""


class Receiver:
    """One node's body of the copies port (`CopyHolder`)."""

    def __init__(
        self,
        pool: Volumes,
        directory: Directory,
        outgoing: Outgoing,
        auditor: Auditor,
        *,
        hold: Hold,
        reach: Reach,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._outgoing = outgoing
        self._auditor = auditor
        self._hold = hold
        self._reach = reach
        self._clock = clock
        self.currency = Currency(clock)
        self._tasks = TaskSet("copies")
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._hurry: dict[str, asyncio.Event] = {}
        self._giving_up: Counter[str] = Counter()
        self._given_up: Counter[str] = Counter()
        """How often that was begun."""
        self._accepted: dict[str, Manifest] = {}
        self._tidying: set[str] = set()
        self._seeding: dict[str, asyncio.Task[None]] = {}
        self._fetched: dict[str, int] = {}
        self._messages: dict[str, str] = {}
        self._noted: dict[str, bytes] = {}
        self._limits: dict[str, TokenBucket] = {}
        self._seed_turns = asyncio.Semaphore(_SEEDS_AT_ONCE)

    async def close(self) -> None:
        """End what is under way; what had come is kept."""
        await self._tasks.close()

    @contextlib.contextmanager
    def giving_up(self, uid: str) -> Iterator[None]:
        """For the block nothing of the volume is acknowledged here: whoever asks, and whose delta has just come, is refused."""
        self._given_up[uid] += 1
        self._giving_up[uid] += 1
        try:
            yield
        finally:
            self._giving_up[uid] -= 1
            self._accepted.pop(uid, None)  # it may be gone: from here on the pool is asked

    async def recover(self) -> None:
        """Publish what an earlier daemon acknowledged and did not come to build. Needs nobody: its owner may be gone."""
        for info in await self._pool.list():
            if not info.pending or info.name in self._accepted:
                continue
            try:
                await self._pool.settle(info.name)
            except PrimordiaError as error:
                self._messages[info.name] = str(error)
                log.warning("a delta of volume %s is not published: %s", info.name, error)

    # ------------------------------------------------------------ what the others ask

    async def holding(self, asker: str, uid: str, *, wait_s: float = 0.0) -> Holding:
        """See the port."""
        begun = self._given_up[uid]
        seeding = self._seeding.get(uid)
        if seeding is not None and wait_s > 0:
            await asyncio.wait({seeding}, timeout=wait_s)
        holding = await self._holding(asker, uid)
        self._check_kept(uid, begun)
        return holding

    async def _holding(self, asker: str, uid: str) -> Holding:
        seeding, message = uid in self._seeding, self._messages.get(uid, "")
        partial = await self._pool.partial(uid)
        unfinished = None
        if partial is not None:
            said = partial.delta.manifest
            all_bytes = spans.total(partial.delta.ranges)
            unfinished = Unfinished(
                number=said.number,
                root=said.root,
                base=partial.delta.base,
                bytes_done=partial.bytes_done,
                bytes_all=all_bytes,
            )
        waiting = self._accepted.get(uid)
        if waiting is not None:  # durable: nobody waits until it is published too, which takes as long again
            epoch = waiting.epoch
        else:
            info = await self._pool.find(uid)
            if info is None:
                return Holding(unfinished=unfinished, seeding=seeding, message=message)  # no stamp: there is no copy
            if info.pending and uid not in self._accepted:  # from before this process
                await self._pool.settle(uid)
            epoch = info.epoch
        snapshots = await self._held(uid, waiting)
        held = tuple(HeldSnapshot(number=each.number, epoch=each.epoch, root=each.root) for each in snapshots)
        stamp = self.currency.stamp(uid, asker)
        return Holding(epoch=epoch, snapshots=held, unfinished=unfinished, seeding=seeding, message=message, stamp=stamp)

    async def _held(self, uid: str, waiting: Manifest | None) -> list[Manifest]:
        """All that is durable here, with what waits to be published."""
        snapshots = [*await self._pool.snapshots(uid)]
        return [*snapshots, waiting] if waiting is not None and waiting not in snapshots else snapshots

    async def current(self, asker: str, uid: str, current: Current) -> None:
        """See the port."""
        self._check_owner(self._wanted_here(uid), asker)
        held = await self._held(uid, self._accepted.get(uid))
        if not held or (held[-1].number, held[-1].root) != (current.number, current.root):
            raise ConflictError(f"Snapshot {current.number} is not the newest of volume {uid} here.", reason="NotNewest")
        self.currency.confirm(uid, asker, current.number, current.stamp)

    async def deliver(self, asker: str, uid: str, chunks: AsyncIterator[bytes], *, aside: bool) -> Taken:
        """See the port."""
        begun = self._given_up[uid]
        volume = self._wanted_here(uid)
        self._check_owner(volume, asker)
        await self._settled(uid)
        incoming = Incoming(chunks)
        header = await incoming.header()
        said = header.delta.manifest
        self._check_said(volume, said)
        await self._hold(volume)
        if not said.parent or not header.delta.base:
            self._noted.pop(uid, None)  # nothing of it may be here, not even the words
        if aside:
            await self._put_aside(uid, header.delta)
        self._wanted_here(uid)  # still: what has been deleted here meanwhile must not come back
        await self._pool.accept(header.delta, incoming.pieces(), begin=header.begin)
        self._take(volume, said)
        self._check_kept(uid, begun)
        return Taken(number=said.number, root=said.root)

    async def fetch(self, asker: str, uid: str, root: str, begin: int) -> AsyncIterator[bytes]:
        """See the port."""
        volume = self._directory.volume(uid)
        if asker != volume.status.node and asker not in volume.status.replicas:
            raise ConflictError(f"Node {asker} is to hold no copy of volume {uid}.", reason="NotAReplica")
        found = [each for each in await self._pool.snapshots(uid) if each.root == root]
        if not found:
            raise NotFoundError(f"Node {self._directory.node} has no snapshot {root[:12]} of volume {uid}.")
        number = found[-1].number
        delta = await self._pool.changes(uid, number)
        if not 0 <= begin <= spans.total(delta.ranges):
            raise InvalidError("from", f"{begin} is not within the {spans.total(delta.ranges)} bytes there are")
        self._fetched[uid] = number
        limit = self._limits.setdefault(uid, TokenBucket(0))
        limit = self._limits[uid] = limit if limit.rate == (rate := bandwidth_of(volume)) else TokenBucket(rate)
        try:
            async for chunk in self._outgoing.whole(delta, begin, limit):
                yield chunk
        finally:
            self._fetched.pop(uid, None)

    async def seed(self, asker: str, uid: str, seed: Seed) -> None:
        """See the port."""
        volume = self._wanted_here(uid)
        self._check_owner(volume, asker)
        if uid in self._seeding:
            return
        await self._hold(volume)
        self._messages.pop(uid, None)
        task = self._tasks.start(self._fetch_from_first(volume, seed), name=f"seed-{uid}")
        self._seeding[uid] = task
        task.add_done_callback(lambda _: self._seeding.pop(uid, None))

    async def scrub(self, asker: str, uid: str) -> ScrubbedCopy:
        """See the port."""
        volume = self._directory.volume(uid)
        self._check_owner(volume, asker)
        await self._settled(uid)
        return await self._auditor.scrub(uid)

    # ------------------------------------------------------------ who may

    def _check_kept(self, uid: str, begun: int) -> None:
        """Whether what was looked up or stored may be promised: it was not given up since `begun`, and is not being."""
        if self._giving_up[uid] or self._given_up[uid] != begun:
            raise ConflictError(f"Node {self._directory.node} is giving its copy of volume {uid} up.", reason="GivenUp")

    def _wanted_here(self, uid: str) -> Volume:
        volume = self._directory.volume(uid)
        if volume.metadata.deletion_timestamp is not None:
            raise ConflictError(f"Volume {uid} is being destroyed.", reason="VolumeDestroyed")
        if self._directory.node not in volume.status.replicas:
            raise ConflictError(f"Node {self._directory.node} is to hold no copy of volume {uid}.", reason="NotAReplica")
        return volume

    def _check_owner(self, volume: Volume, asker: str) -> None:
        if asker != volume.status.node:
            raise ConflictError(
                f"Node {asker} does not own volume {volume.metadata.uid}: {volume.status.node or 'nobody'} does.",
                reason="NotOwner",
            )

    def _check_said(self, volume: Volume, said: Manifest) -> None:
        """The delta's own words against the object's."""
        uid, epoch = volume.metadata.uid, volume.status.epoch
        if said.volume != uid:
            raise InvalidError("delta", f"it is of volume {said.volume[:80]}, and was sent to {uid}")
        check_epoch(uid, said.epoch, 0)
        if said.epoch > epoch:
            raise ConflictError(f"Epoch {said.epoch} of volume {uid} is not known here yet.", reason="UnknownEpoch")

    # ------------------------------------------------------------ taking

    def _take(self, volume: Volume, said: Manifest) -> None:
        """It is durable: publish it behind the answer's back."""
        uid = volume.metadata.uid
        self._accepted[uid] = said
        self._messages.pop(uid, None)
        hurry = self._hurry[uid] = asyncio.Event()
        task = self._tasks.start(self._settle(volume, said, hurry), name=f"settle-{uid}")
        self._settling[uid] = task

        def done(_: object) -> None:
            if self._settling.get(uid) is task:
                del self._settling[uid], self._hurry[uid]

        task.add_done_callback(done)

    async def _settle(self, volume: Volume, said: Manifest, hurry: asyncio.Event) -> None:
        uid, published = volume.metadata.uid, None
        await wait_event(self._clock, hurry, _SETTLE_AFTER_S)
        try:
            published = await self._pool.settle(uid)
        except PrimordiaError as error:
            self._messages[uid] = str(error)
            log.warning("a delta of volume %s is not published: %s", uid, error)
        if self._accepted.get(uid) in (said, published):
            self._accepted.pop(uid, None)
        if uid not in self._tidying:  # beside what comes next, which may be what a sync waits for
            self._tidying.add(uid)
            self._tasks.start(self._tidy(volume), name=f"tidy-{uid}").add_done_callback(lambda _: self._tidying.discard(uid))

    async def _tidy(self, volume: Volume) -> None:
        """Keep the words beside the data true, and remove what the policy no longer keeps. What fails here fails nothing."""
        uid = volume.metadata.uid
        try:
            words = _notes(self._directory.find(uid) or volume)
            if self._noted.get(uid) != words:
                await self._pool.note(uid, words)
                self._noted[uid] = words
            snapshots = await self._pool.snapshots(uid)
            for number in droppable_here(volume, snapshots, self._fetched.get(uid, 0)):
                await self._pool.remove(uid, number)
        except PrimordiaError as error:
            log.warning("the copy of volume %s is not tidied: %s", uid, error)

    async def _settled(self, uid: str) -> None:
        """Wait for the delta before this one. TemporaryError (Settling) when that takes long."""
        task = self._settling.get(uid)
        if task is None:
            return
        self._hurry[uid].set()
        await asyncio.wait({task}, timeout=_SETTLE_WAIT_S)
        if not task.done():
            raise TemporaryError(f"The delta before of volume {uid} is still being published.", reason="Settling")

    async def _put_aside(self, uid: str, delta: Delta) -> None:
        """Put aside what is newer than the base, which the owner of this epoch does not have."""
        if await self._pool.find(uid) is None:
            return
        await self._pool.settle(uid)
        snapshots = await self._pool.snapshots(uid)
        if delta.manifest in snapshots[-1:]:
            return  # a repeated delta: what it was to replace is gone
        older = [each.number for each in snapshots if each.root == delta.base and each.number < delta.manifest.number]
        if delta.base and not older:
            return  # `accept` says what is wrong with that
        base = max(older, default=0)
        for each in reversed(snapshots):
            if each.number > base:
                log.warning("snapshot %d of volume %s is put aside: its owner does not have it", each.number, uid)
                await self._pool.quarantine(uid, each.number, tail=True)

    # ------------------------------------------------------------ seeding

    async def _fetch_from_first(self, volume: Volume, seed: Seed) -> None:
        uid = volume.metadata.uid
        for source in seed.sources:
            try:
                async with self._seed_turn(volume):
                    await self._fetch_from(volume, seed, source)
                log.info("volume %s: seeded with snapshot %d from node %s", uid, seed.number, source)
                return
            except PrimordiaError as error:
                if error.reason == "Busy":
                    continue  # its owner tells us again
                self._messages[uid] = f"Fetching it from node {source} failed: {error}"
                log.warning("volume %s: %s", uid, self._messages[uid])

    def _seed_turn(self, volume: Volume) -> AbstractAsyncContextManager[object]:
        """One that has a limit of its own takes long and little: it does not wait, and nobody waits for it."""
        return contextlib.nullcontext() if bandwidth_of(volume) else self._seed_turns

    async def _fetch_from(self, volume: Volume, seed: Seed, source: str) -> None:
        uid = volume.metadata.uid
        partial = await self._pool.partial(uid)
        begin = 0
        if partial is not None and partial.delta.manifest.root == seed.root and not partial.delta.base:
            begin = partial.bytes_done
        try:
            await self._fetch_at(volume, seed, source, begin)
        except PermanentError:
            if not begin:
                raise
            await self._fetch_at(volume, seed, source, 0)  # the source lays the same content out otherwise

    async def _fetch_at(self, volume: Volume, seed: Seed, source: str, begin: int) -> None:
        chunks = self._reach(source).fetch(volume.metadata.uid, seed.root, begin)
        try:
            await self._take_seed(volume, seed, source, begin, Incoming(chunks))
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    async def _take_seed(self, volume: Volume, seed: Seed, source: str, begin: int, incoming: Incoming) -> None:
        header = await incoming.header()
        said = header.delta.manifest
        if (said.volume, said.root, header.begin) != (volume.metadata.uid, seed.root, begin):
            raise InvalidError("delta", f"node {source} sent something else than snapshot {seed.number}")
        if said.number > seed.number or header.delta.base:
            raise InvalidError("delta", f"node {source} sent snapshot {said.number} and not {seed.number}")
        self._check_said(volume, said)
        self._wanted_here(said.volume)  # still, as above
        with heap.kept():
            await self._pool.accept(header.delta, incoming.pieces(), begin=begin)
        self._take(volume, said)


def _notes(volume: Volume) -> bytes:
    meta, status = volume.metadata, volume.status
    synced = status.last_sync
    return msgspec.json.encode(
        Notes(
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            owner=status.node,
            epoch=status.epoch,
            spec=msgspec.to_builtins(volume.spec),
            synced_epoch=synced.epoch if synced is not None else 0,
            synced_number=synced.number if synced is not None else 0,
        )
    )
