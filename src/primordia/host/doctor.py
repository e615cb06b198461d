"""The whole examination: the machine, what was unpacked for it, and what dead soups left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from primordia.host import certificates, checks, fences, leftovers, toolchain
from primordia.host.checks import Check
from primordia.host.leaks import Leak
from primordia.kit.errors import PrimordiaError
from primordia.kit.paths import SoupPaths, cache_dir
from primordia.wire.nodeconfig import Tools


@dataclass(frozen=True)
class Report:
    """`healthy` when nothing failed and nothing leaked; warnings do not count."""

    checks: tuple[Check, ...]
    leaks: tuple[Leak, ...]

    @property
    def healthy(self) -> bool:
        """Whether all is well enough."""
        return not self.leaks and all(check.level != "fail" for check in self.checks)


async def examine(*, machine: bool = True) -> Report:
    """Look at everything; without `machine` only for leftovers. Changes nothing but what the accelerator's probe caches."""
    if not machine:
        return Report((), await leftovers.look())
    found = list(await checks.machine(cache_dir(), SoupPaths.of().state.parent))
    if any(check.reason in ("MacOS", "NotLinux", "Architecture") for check in found):
        return Report(tuple(found), ())
    found += await _toolchain(cache_dir())
    found += [
        Check("fence", "warn", f"Soup {word.soup}: {word.sentence()}", "Frozen", "Look for what keeps it from the engine.")
        for word in await asyncio.to_thread(fences.all_frozen)
    ]
    found += await asyncio.to_thread(certificates.look)
    leaks: tuple[Leak, ...] = ()
    with contextlib.suppress(PrimordiaError):  # the checks have said which program is missing
        leaks = await leftovers.look()
    return Report(tuple(found), leaks)


async def _toolchain(cache: Path) -> tuple[Check, ...]:
    """QEMU, kernel and engine in the cache, and how microVMs are accelerated."""
    from primordia.host import accelerator

    missing = await toolchain.plan(cache)
    if missing:
        names = ", ".join(item.name for item in missing)
        return (
            Check("toolchain", "ok", f"to be downloaded by the first `primordia up`: {names}"),
            _kvm_device(),
        )
    if os.geteuid() != 0:
        return (Check("toolchain", "ok", "unpacked"), _kvm_device())
    tools = await toolchain.ensure(cache, lambda step: None)
    verdict, why = await accelerator.decide(cache, tools)
    return (
        Check("toolchain", "ok", "unpacked"),
        accelerated(verdict, why),
        await qemu(tools),
    )


def _kvm_device() -> Check:
    if Path("/dev/kvm").exists():
        return Check("accelerator", "ok", "/dev/kvm is there; whether it boots a guest is tried by the first `primordia up`")
    return Check(
        "accelerator", "warn", "no /dev/kvm: guests are emulated (TCG), which is slower", "NoKvm", "Use a machine with KVM."
    )


def accelerated(verdict: str, why: str) -> Check:
    """The verdict of the boot probe."""
    if verdict == "kvm":
        return Check("accelerator", "ok", f"kvm: {why}")
    return Check(
        "accelerator", "warn", f"{verdict}: {why}", "NoKvm", "Everything works, only slower; use a machine with KVM for speed."
    )


async def qemu(tools: Tools) -> Check:
    """The QEMU that is used, and whether forks can map a template's memory read-only (8.2 and newer)."""
    said = await toolchain.qemu_version(tools)
    if not said:
        return Check(
            "qemu", "fail", f"{tools.qemu} does not run.", "QemuBroken", f"Delete {cache_dir()} and run `primordia up`."
        )
    found = [int(part) for part in re.findall(r"\d+", said)[:2]]
    if found >= [8, 2]:
        return Check("qemu", "ok", f"QEMU {said}; forks can map a template's memory read-only")
    return Check(
        "qemu",
        "warn",
        f"QEMU {said} cannot map a template's memory without write permission on it: there are no forks",
        "QemuOld",
        "Install QEMU 8.2 or newer.",
    )
