"""The supervisor of a real machine's node as a systemd unit: it comes back after a reboot, and whatever ends it.

`KillMode=process` is what keeps promises here: stopping or restarting the unit ends the supervisor, which ends its children
in order and leaves the microVMs to the next one. The supervisor moves itself into the node's own cgroup, beside those of
the microVMs, so that systemd's accounting never takes them for its own. `packaging/primordia-node@.service` is this unit as
`make install` needs it; the instance is the soup's name.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from primordia.kit.command import run
from primordia.kit.files import write_atomic
from primordia.kit.paths import SoupPaths

INSTALLED_PYTHON = "/opt/primordia/venv/bin/python"
DEFAULT_STATE = Path("/var/lib/primordia")
UNITS = Path("/etc/systemd/system")
UNIT = "primordia-node@.service"
LINK = "node.json"


def unit(python: str, source: str = "") -> str:
    """The unit's text, for that interpreter; `source` is the folder of the package where it is not installed. Pure."""
    environment = f"Environment=PYTHONPATH={source}\n" if source else ""
    return f"""\
[Unit]
Description=Primordia node of soup %i
Wants=network-online.target
After=network-online.target time-sync.target
ConditionPathExists={DEFAULT_STATE}/%i/{LINK}
StartLimitIntervalSec=0

[Service]
Type=exec
{environment}ExecStart={python} -m primordia.supervisor {DEFAULT_STATE}/%i/{LINK}
# The supervisor alone is ended: it ends its children in order and leaves the microVMs to the next one.
KillMode=process
TimeoutStopSec=60
# It is always started again, but for the end that `primordia down` asked it for.
Restart=always
RestartPreventExitStatus=0
RestartSec=1
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
"""


def usable(paths: SoupPaths) -> bool:
    """Whether systemd runs this machine, and the soup lies where the unit looks for it."""
    return paths.state.parent == DEFAULT_STATE and Path("/run/systemd/system").is_dir() and bool(shutil.which("systemctl"))


def link(paths: SoupPaths, config: Path) -> None:
    """Let the unit find the node's settings by the soup's name alone."""
    place = paths.state / LINK
    if not place.is_symlink() or place.readlink() != config:
        place.unlink(missing_ok=True)
        place.symlink_to(config)


async def start(soup: str) -> None:
    """Install the unit if it is missing or another one, and enable and start the soup's. Raises CommandError."""
    root = Path(__file__).resolve().parents[2]
    text = unit(sys.executable, "" if "site-packages" in root.parts else str(root)).encode()
    place = UNITS / UNIT
    if not place.exists() or place.read_bytes() != text:
        write_atomic(place, text, mode=0o644)
        await run(["systemctl", "daemon-reload"])
    await run(["systemctl", "enable", "--now", instance(soup)])


async def forget(soup: str) -> None:
    """Do not start it at the next boot; what runs, runs on. Harmless when there is no such unit."""
    if (UNITS / UNIT).exists():
        await run(["systemctl", "disable", instance(soup)], check=False)


def instance(soup: str) -> str:
    """The soup's unit."""
    return UNIT.replace("@", f"@{soup}")
