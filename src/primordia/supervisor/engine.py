"""How an engine server (etcd) is started: its arguments, built purely.

The supervisor imports the standard library and nothing else, so this module does too. Start it with an environment of
nothing but PATH: etcd reads settings from ETCD_* variables as well.

Why these settings:
- `--pre-vote` keeps a server that was away from deposing a healthy leader (off by default in 3.4).
- heartbeat 100 ms and election 1000 ms are etcd's own; shorter ones cost false elections on busy machines.
- history is kept ten minutes, so that a watch survives any restart and the database does not grow with time.
- a snapshot each 10,000 entries keeps the memory of a small cluster small (3.4 and 3.5 keep 100,000).
- a progress notification each three seconds lets an idle watch tell a quiet store from a dead server.
- every certificate of the authority is let in. `--client-cert-allowed-hostname` cannot narrow that: etcd's gateway dials its
  own server with the same check and without verified chains, and so locks itself out (seen with 3.4.23 and 3.5.16). An
  authority of the engine's own can.
- transactions may hold as many operations as the store port allows, with a guard for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CLIENT_PORT = 2379
PEER_PORT = 2380
PROGRESS_INTERVAL_S = 3


@dataclass(frozen=True)
class EngineTls:
    """PEM files. The certificate must be good for servers and clients: etcd's gateway and peers are clients with it."""

    ca: str
    certificate: str
    key: str


def client_url(address: str, port: int = CLIENT_PORT) -> str:
    """Where an engine server listens for clients."""
    return f"https://{address}:{port}"


def peer_url(address: str, port: int = PEER_PORT) -> str:
    """Where an engine server listens for the other servers."""
    return f"https://{address}:{port}"


def initial_cluster(members: Mapping[str, str]) -> str:
    """etcd's list of the first members, from names to peer URLs."""
    return ",".join(f"{name}={url}" for name, url in sorted(members.items()))


@dataclass(frozen=True)
class EngineServer:
    """One engine server.

    `cluster` is from `initial_cluster`, `token` tells clusters apart (the soup's name), `state` is `new` or `existing`:
    etcd reads all three only while `data_dir` is empty.
    """

    name: str
    data_dir: str
    address: str
    tls: EngineTls
    cluster: str
    token: str
    state: str = "new"
    client_port: int = CLIENT_PORT
    peer_port: int = PEER_PORT


def etcd_argv(program: str, server: EngineServer) -> list[str]:
    """The command of one engine server, for etcd 3.4 and newer."""
    tls = server.tls
    clients = client_url(server.address, server.client_port)
    peers = peer_url(server.address, server.peer_port)
    return [
        program,
        f"--name={server.name}",
        f"--data-dir={server.data_dir}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster={server.cluster}",
        f"--initial-cluster-token={server.token}",
        f"--initial-cluster-state={server.state}",
        "--client-cert-auth",
        f"--trusted-ca-file={tls.ca}",
        f"--cert-file={tls.certificate}",
        f"--key-file={tls.key}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={tls.ca}",
        f"--peer-cert-file={tls.certificate}",
        f"--peer-key-file={tls.key}",
        "--pre-vote=true",
        "--heartbeat-interval=100",
        "--election-timeout=1000",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
        "--quota-backend-bytes=2147483648",
        "--snapshot-count=10000",
        "--max-txn-ops=1024",
        f"--experimental-watch-progress-notify-interval={PROGRESS_INTERVAL_S}s",
        "--logger=zap",
        "--log-outputs=stderr",
        "--log-level=warn",
    ]
