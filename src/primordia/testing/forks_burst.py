"""Who a fork is, asked from inside its warmed interpreter; and what must differ between any two."""

from __future__ import annotations

import ast
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from primordia.client.boxes import Box
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Resources, Template, TemplateSpec, WarmRange, WarmUp

# All random state is in use before the freeze: who does not seed it anew goes on with its parent's. The number of a connection
# to itself is the first that TCP sent: TCP_REPAIR (19) shows it, of the queue (20) of what is sent (2), as TCP_QUEUE_SEQ (21).
WARM_UP = r"""
import hashlib, os, random, socket, ssl, time, uuid
random.random(), ssl.RAND_bytes(16), uuid.uuid4()

def file(path):
    with open(path) as opened:
        return opened.read().strip()

def first_sequence_number():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.setsockopt(socket.IPPROTO_TCP, 19, 1)
        client.setsockopt(socket.IPPROTO_TCP, 20, 2)
        number = client.getsockopt(socket.IPPROTO_TCP, 21)
        client.setsockopt(socket.IPPROTO_TCP, 19, -1)
        return number - 1

def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]

def who():
    card = next(name for name in os.listdir("/sys/class/net") if name != "lo")
    with open("/dev/urandom", "rb") as urandom:
        drawn = urandom.read(16).hex()
    return {
        "hostname": socket.gethostname(),
        "machine-id": file("/etc/machine-id"),
        "boot-id": file("/proc/sys/kernel/random/boot_id"),
        "address": own_address(),
        "mac": file(f"/sys/class/net/{card}/address"),
        "urandom": drawn,
        "random": random.random(),
        "openssl": ssl.RAND_bytes(16).hex(),
        "uuid": uuid.uuid4().hex,
        "first sequence number": first_sequence_number(),
    }

def checksum():
    return hashlib.sha256(memory).hexdigest()
"""
_REUSED = ("address", "mac")
"""What a later fork may have again once an earlier one is gone."""
_CLOCK_LOOKS = 3


@dataclass(frozen=True)
class Clock:
    """How far a guest's clock is from the host's: surely so far (`least_s`), and not further than `most_s`."""

    least_s: float
    most_s: float


def warm_python(name: str, waiting: int) -> Template:
    """A template whose interpreter can say who it is."""
    spec = TemplateSpec(
        image="python",
        warm_up=WarmUp(python=WARM_UP),
        resources=Resources(cpu="1", memory="128Mi"),
        warm=WarmRange(min=waiting, max=waiting),
    )
    return Template(metadata=ObjectMeta(name=name), spec=spec)


async def told(box: Box, code: str) -> object:
    """The value of an expression in the box's interpreter."""
    answer = await box.run_code(code, timeout=60)
    assert answer.error is None, answer.error
    assert answer.text is not None, code
    value: object = ast.literal_eval(answer.text)
    return value


async def who(box: Box) -> dict[str, object]:
    """All that makes it somebody, by name."""
    said = await told(box, "who()")
    assert isinstance(said, dict)
    return {"uid": box.uid, **said}


async def clock_of(box: Box) -> Clock:
    """The clock of its guest, as precisely as the quickest of a few round trips tells."""
    looks = []
    for _ in range(_CLOCK_LOOKS):
        before = time.time()
        inside = await told(box, "time.time()")
        after = time.time()
        assert isinstance(inside, float)
        looks.append((after - before, Clock(max(0.0, before - inside, inside - after), max(after - inside, inside - before))))
    return min(looks, key=lambda look: look[0])[1]


def duplicates(everybody: Iterable[dict[str, object]], *, alive: bool) -> list[str]:
    """What two of them share. Addresses may be given again: they are compared only among those `alive` together."""
    seen = list(everybody)
    found = []
    for name in seen[0]:
        if alive or name not in _REUSED:
            twice = [value for value, count in Counter(each[name] for each in seen).items() if count > 1]
            found += [f"{name} {value}" for value in twice]
    return found
