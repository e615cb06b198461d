"""The real kubectl against the API, as a person would use it: the machine's own, or the distribution's, unpacked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from primordia.kit.command import CommandError, run
from primordia.testing.api import TestApi, running_api
from primordia.testing.images import packaged_program

DEADLINE_S = 60
OLDEST_MINOR = 27
MANIFEST = """
apiVersion: primordia.dev/v1alpha1
kind: Lifeform
metadata: {name: shop, labels: {app: shop}}
spec:
  contexts:
  - name: redis
    image: redis
    args: [--appendonly, "yes"]
    ports: [{name: redis, containerPort: 6379, publish: 16379}]
"""


@dataclass
class Kubectl:
    """Runs kubectl with a config of its own."""

    program: str
    config: Path

    async def __call__(self, *args: str, stdin: str = "", fails: bool = False) -> str:
        env = {"KUBECONFIG": str(self.config), "HOME": str(self.config.parent), "PATH": os.environ["PATH"]}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            self.program, *args, env=env, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                output, _ = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert (process.returncode != 0) is fails, output.decode()
        return output.decode()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    async with running_api(tmp_path) as running:
        yield running


async def _packaged() -> Path:
    """Debian 13 has it in a package of its own."""
    try:
        return await packaged_program("kubectl", "usr/bin/kubectl")
    except CommandError:
        return await packaged_program("kubernetes-client", "usr/bin/kubectl")


@pytest.fixture
async def kubectl(api: TestApi, tmp_path: Path) -> Kubectl:
    program = os.environ.get("PRIMORDIA_TEST_KUBECTL") or shutil.which("kubectl")
    program = program or str(await _packaged())
    version = json.loads((await run([program, "version", "--client", "-o", "json"])).text())
    if (minor := int(version["clientVersion"]["minor"].rstrip("+"))) < OLDEST_MINOR:
        pytest.skip(f"kubectl 1.{minor} reads OpenAPI as protobuf only; 1.{OLDEST_MINOR} is the oldest that reads ours")
    admin = api.admin
    config = tmp_path / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "soup",
        "clusters": [{"name": "soup", "cluster": {"server": api.url, "certificate-authority-data": admin.ca}}],
        "users": [{"name": "admin", "user": {"client-certificate-data": admin.cert, "client-key-data": admin.key}}],
        "contexts": [{"name": "soup", "context": {"cluster": "soup", "user": "admin"}}],
    }
    config.write_text(json.dumps(content))
    return Kubectl(program, config)


async def test_discovery_and_explain(kubectl: Kubectl) -> None:
    resources = await kubectl("api-resources")
    for line in ("lifeforms    lf,kbl", "contexts     ctx", "events       ev", "soups"):
        assert line in resources
    explained = await kubectl("explain", "lifeform.spec.contexts.ports")
    assert "publish\t<integer>" in explained
    assert "containerPort\t<integer> -required-" in explained
    assert "every node's address" in explained


async def test_apply_get_change_and_delete(kubectl: Kubectl) -> None:
    assert "shop created" in await kubectl("apply", "-f", "-", stdin=MANIFEST)
    assert "shop unchanged" in await kubectl("apply", "-f", "-", stdin=MANIFEST)
    rows = (await kubectl("get", "lf")).splitlines()
    assert rows[0].split() == ["NAME", "PHASE", "READY", "NODE", "EPOCH", "RESTARTS", "AGE"]
    assert rows[1].split()[:3] == ["shop", "Pending", "0/1"]
    assert "16379->6379" in await kubectl("get", "lf", "-o", "wide", "-A")
    assert "shop" in await kubectl("get", "all")
    assert json.loads(await kubectl("get", "lf", "shop", "-o", "json"))["spec"]["contexts"][0]["image"] == "redis"
    assert "lifeform.primordia.dev/shop" in await kubectl("get", "kbl", "-l", "app=shop", "-o", "name")
    assert "configured" in await kubectl("apply", "-f", "-", stdin=MANIFEST.replace("image: redis", "image: other"))
    assert "labeled" in await kubectl("label", "lf", "shop", "tier=db")
    suspend = '{"spec":{"operatingMode":"Suspended"}}'
    assert "patched" in await kubectl("patch", "lf", "shop", "--type=merge", "-p", suspend)
    resume = '[{"op":"replace","path":"/spec/operatingMode","value":"Running"}]'
    assert "patched" in await kubectl("patch", "lf", "shop", "--type=json", "-p", resume)
    assert "Operating Mode:" in await kubectl("describe", "lf", "shop")
    assert "server dry run" in await kubectl("apply", "--dry-run=server", "-f", "-", stdin=MANIFEST)
    assert 'lifeform.primordia.dev "shop" deleted' in await kubectl("delete", "lf", "shop")
    assert "NotFound" in await kubectl("get", "lf", "shop", fails=True)


async def test_refusals_read_well(kubectl: Kubectl) -> None:
    wrong = MANIFEST.replace("image: redis", "imgae: redis")
    answer = await kubectl("apply", "-f", "-", stdin=wrong, fails=True)
    assert 'The Lifeform "shop" is invalid' in answer
    assert 'spec.contexts[0].imgae: is not a field of ContextTemplate; did you mean "image"?' in answer
    assert "merge-patch+json" in await kubectl("apply", "--server-side", "-f", "-", stdin=MANIFEST, fails=True)
    warned = await kubectl("create", "--validate=warn", "-f", "-", stdin=MANIFEST.replace("spec:", "spec:\n  replcas: 3"))
    assert "Warning: spec.replcas" in warned
    assert "created" in warned


async def test_watch_and_wait(api: TestApi, kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=MANIFEST)
    watching = asyncio.create_task(kubectl("get", "lf", "-w", "--request-timeout=6s"))
    waiting = asyncio.create_task(kubectl("wait", "lf/shop", "--for=jsonpath={.status.phase}=Running", "--timeout=50s"))
    async with asyncio.timeout(DEADLINE_S):
        while "primordia_api_streams_open 2\n" not in api.server.metrics.render():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    status = '{"status":{"phase":"Running","node":"n1"}}'
    assert "patched" in await kubectl("patch", "lf", "shop", "--subresource=status", "--type=merge", "-p", status)
    assert "condition met" in await waiting
    phases = [line.split()[1] for line in (await watching).splitlines()[1:]]
    assert phases == ["Pending", "Running"]
