"""The SQLite workload: a program that writes numbered records with the epoch that it was started in, has each synced, and says
so to whoever follows it.

A commit alone is not durable there: that is left to the syncs. What it says is `w` for a record that is written and `a` for
one whose sync returned. `dump` is everything that its database has.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

PORT = 7777
PROGRAM = r"""
import http.client, itertools, json, os, select, socket, socketserver, sqlite3, threading, time

class Api(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(40)
        self.sock.connect("/run/primordia.sock")

def ask(method, path):
    api = Api("primordia")
    try:
        api.request(method, path)
        answer = api.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        api.close()

def me():
    while True:
        try:
            status, said = ask("GET", "/v1/self")
            if status == 200:
                return said
        except (OSError, ValueError, http.client.HTTPException):
            pass
        time.sleep(0.1)

def opened():
    database = sqlite3.connect("/data/records.db", isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    return database

said = me()
epoch = said["epoch"]
own = opened()
own.execute("CREATE TABLE IF NOT EXISTS records (number INTEGER, epoch INTEGER, text TEXT, PRIMARY KEY (number, epoch))")
followers, lock = [], threading.Lock()

def tell(kind, number):
    line = (json.dumps([kind, epoch, number]) + "\n").encode()
    with lock:
        for each in list(followers):
            try:
                each.sendall(line)
            except OSError:
                followers.remove(each)

class Served(socketserver.StreamRequestHandler):
    def handle(self):
        if self.rfile.readline() == b"follow\n":
            self.request.settimeout(0.2)
            with lock:
                self.request.sendall((json.dumps(["hello", epoch, 0]) + "\n").encode())
                followers.append(self.request)
            self.request.setblocking(True)
            self.rfile.readline()
            return
        database = opened()
        whole = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = {}
        for number, of in database.execute("SELECT number, epoch FROM records ORDER BY epoch, number"):
            ranges = found.setdefault(of, [])
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        database.close()
        self.wfile.write(json.dumps({"whole": whole, "self": me(), "found": found}).encode())

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

threading.Thread(target=Server(("", 7777), Served).serve_forever, daemon=True).start()
number = own.execute("SELECT COALESCE(MAX(number), 0) FROM records").fetchone()[0]
while True:
    number += 1
    own.execute("INSERT INTO records VALUES (?, ?, ?)", (number, epoch, "record " * 20))
    tell("w", number)
    try:
        status, answer = ask("POST", "/v1/sync")
        if status == 200 and answer["epoch"] == epoch:
            tell("a", number)
    except (OSError, ValueError, http.client.HTTPException):
        time.sleep(0.2)
    time.sleep(0.1)
"""


@dataclass(frozen=True)
class Dump:
    """All that the database has, as (epoch, number), whether it is whole, and what /v1/self said."""

    records: frozenset[tuple[int, int]]
    whole: bool
    self: dict[str, object]


def parse(content: bytes) -> Dump:
    """What the program said. Raises ValueError."""
    said = json.loads(content)
    records = {
        (int(epoch), number)
        for epoch, ranges in said["found"].items()
        for first, last in ranges
        for number in range(first, last + 1)
    }
    return Dump(frozenset(records), said["whole"], said["self"])


async def dump(host: str, port: int, *, within_s: float = 20.0) -> Dump:
    """Ask at a published port. Raises OSError, ValueError."""
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"dump\n")
            return parse(await reader.read())
        finally:
            writer.close()
