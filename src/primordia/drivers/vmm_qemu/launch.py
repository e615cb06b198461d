"""The few steps between fork and QEMU: enter the cgroups, close what is not meant for it, then become the program.

    python -I -S launch.py OOM_SCORE_ADJ DESCRIPTOR,... CGROUP_PROCS_FILE... -- PROGRAM ARGUMENT...

The process enters its cgroups itself, so that there is no instant at which QEMU runs outside them, not even when the
daemon dies in between. (Python's own hook between fork and exec is not safe in a program with threads.) Run by file, with
as little imported as can be: its start is part of every microVM's.
"""

import os
import resource
import sys


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor above standard error that is not in `kept`, whoever left it open."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (pathlib would double this start's time)
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue


def main(arguments: list[str]) -> None:
    """Never returns: becomes the program, or says why not and exits with 97."""
    split = arguments.index("--")
    oom_score_adj, descriptors, *groups = arguments[:split]
    program = arguments[split + 1 :]
    try:
        for file in groups:
            with open(file, "w") as target:  # noqa: PTH123
                target.write(str(os.getpid()))
        with open("/proc/self/oom_score_adj", "w") as target:  # noqa: PTH123
            target.write(oom_score_adj)
        close_all_but({int(number) for number in descriptors.split(",")})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{error.filename or program[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(97)


if __name__ == "__main__":
    main(sys.argv[1:])
