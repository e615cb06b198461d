"""The engine's command: complete, safe settings, and no import beyond the standard library."""

from __future__ import annotations

import subprocess
import sys

from primordia.supervisor.engine import EngineServer, EngineTls, client_url, etcd_argv, initial_cluster, peer_url

SERVER = EngineServer(
    name="n1",
    data_dir="/s/engine",
    address="10.77.0.1",
    tls=EngineTls("/p/ca.crt", "/p/node.crt", "/p/node.key"),
    cluster=initial_cluster({"n2": peer_url("10.77.0.2"), "n1": peer_url("10.77.0.1")}),
    token="default",
)


def test_the_command_names_place_and_peers() -> None:
    argv = etcd_argv("/c/etcd", SERVER)
    assert argv[0] == "/c/etcd"
    assert "--initial-cluster=n1=https://10.77.0.1:2380,n2=https://10.77.0.2:2380" in argv
    assert f"--listen-client-urls={client_url('10.77.0.1')}" in argv
    assert "--data-dir=/s/engine" in argv
    assert "--initial-cluster-state=new" in argv
    assert all("=" in each or each in {"--client-cert-auth", "--peer-client-cert-auth"} for each in argv[1:])


def test_nobody_is_let_in_without_a_certificate() -> None:
    argv = etcd_argv("etcd", SERVER)
    for flag in ("--client-cert-auth", "--peer-client-cert-auth", "--trusted-ca-file=/p/ca.crt"):
        assert flag in argv
    assert not any("http://" in each for each in argv)
    assert not any("allowed-hostname" in each for each in argv)  # the gateway would lock itself out


def test_pre_vote_and_bounded_history() -> None:
    argv = etcd_argv("etcd", SERVER)
    for flag in ("--pre-vote=true", "--auto-compaction-mode=periodic", "--auto-compaction-retention=10m"):
        assert flag in argv


def test_the_module_needs_the_standard_library_only() -> None:
    code = (
        "import sys; import primordia.supervisor.engine;"
        "print([m for m in sys.modules if m.startswith('primordia.') and 'supervisor' not in m or m in ('msgspec','aiohttp')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
