"""`make install` and `make uninstall`: a wheel in an environment of its own, two links, and shell completion.

What people made with it (soups, images, client configurations) is theirs: uninstall says where it lies and leaves it.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from environment import SetupError, lock, make_venv, pip

PREFIX = Path("/opt/primordia")
LINKS = {Path("/usr/local/bin") / name: PREFIX / "venv/bin" / name for name in ("primordia", "kbl")}
# bash and fish look for a file with the name of the command that is typed.
COMPLETIONS = (
    ("bash", Path("/usr/local/share/bash-completion/completions/primordia")),
    ("bash", Path("/usr/local/share/bash-completion/completions/kbl")),
    ("zsh", Path("/usr/local/share/zsh/site-functions/_primordia")),
    ("fish", Path("/usr/local/share/fish/vendor_completions.d/primordia.fish")),
    ("fish", Path("/usr/local/share/fish/vendor_completions.d/kbl.fish")),
)
STAYS = (
    (Path("/var/lib/primordia"), "soups: state, certificates, contexts' records"),
    (Path("/var/cache/primordia"), "downloads and images; made again when needed"),
    (Path("/run/primordia"), "running soups: sockets and pid files"),
)


def install(root: Path, place: Path, arguments: list[str]) -> int:
    """Put primordia and kbl into the PATH. `place` is the clone's environment, which builds the wheel."""
    del arguments
    venv = PREFIX / "venv"
    with tempfile.TemporaryDirectory(prefix="primordia-wheel-") as folder:
        print("Building the wheel", flush=True)
        pip(place, ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, str(root)])
        (wheel,) = Path(folder).glob("*.whl")
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(lock(root)) + "\n")
        if not (venv / "bin/python").exists():
            print(f"Making {venv}", flush=True)
            venv.parent.mkdir(parents=True, exist_ok=True)
            make_venv(venv)
        print("Installing", flush=True)
        pip(venv, ["install", "--force-reinstall", "--no-deps", str(wheel)])
        pip(venv, ["install", "--constraint", str(constraints), f"primordia[demo] @ {wheel.as_uri()}"])
    for link, target in LINKS.items():
        _link(link, target)
    for shell, path in COMPLETIONS:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_completion(venv, shell))
    print(f"Installed. Try: primordia doctor. Links: {', '.join(str(link) for link in LINKS)}.")
    return 0


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    if link.exists() or link.is_symlink():
        raise SetupError(f"{link} exists and is not ours. Move it away, then run make install again.")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def _completion(venv: Path, shell: str) -> str:
    done = subprocess.run([str(venv / "bin/primordia"), "completion", shell], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"The {shell} completion could not be written: {done.stderr.strip()}")
    return done.stdout


def uninstall(root: Path, place: Path, arguments: list[str]) -> int:
    """Take away what install put there, and list what stays."""
    del root, place, arguments
    for link, target in LINKS.items():
        if link.is_symlink() and link.readlink() == target:
            link.unlink()
            print(f"removed {link}")
    for _, path in COMPLETIONS:
        if path.exists():
            path.unlink()
            print(f"removed {path}")
    if PREFIX.exists():
        # The programs of the running soups come from here; they go on with what they have loaded.
        subprocess.run(["rm", "-rf", "--one-file-system", str(PREFIX)], check=True)
        print(f"removed {PREFIX}")
    for path, what in STAYS:
        if path.exists():
            print(f"stays   {path} ({what})")
    print("stays   ~/.config/primordia of each user, and distribution packages that were installed")
    return 0
