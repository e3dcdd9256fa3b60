# SPDX-License-Identifier: MIT
"""How long a session takes from its start to the first instruction of COMMAND, and to its end.

The breakdown is that of the same program with a clock at its steps. Nothing is asserted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 15
GOAL = 1.0
"""Seconds to COMMAND's first instruction."""

_COMMAND = ("/bin/sh", "-c", "echo >&{}")

_CLOCKED = """
import os, sys, time
path = sys.argv[1]

def mark(step):
    with open(path, "a") as marks:
        marks.write(f"{time.monotonic()} {step}\\n")

def clocked(module, name, step):
    wrapped = getattr(module, name)
    def call(*arguments):
        result = wrapped(*arguments)
        mark(step)
        return result
    setattr(module, name, call)

from tsmfs.cli import main
import tsmfs.session.front as front
from tsmfs import daemon
from tsmfs.session import attendant, init, root, supervisor
mark("front: interpreter, imports")
clocked(supervisor, "_make_namespaces", "daemon: namespaces")
clocked(daemon, "_build", "daemon: imports, hardware, modules")
clocked(supervisor, "_listen", "daemon: netlink")
clocked(front, "_wait_until_ready", "daemon: mount")
clocked(init, "_enter_namespaces", "init: fork, namespaces")
clocked(root, "arrange", "init: mounts")
clocked(init, "interpose", "init: filter, handed over")
main(["exec", "--", *sys.argv[2:]])
"""


def main() -> None:
    """Print the table."""
    print("\n## Sessions\n\nstart of a session with COMMAND /bin/sh, seconds\n")
    totals = [measure() for _ in range(ROUNDS)]
    print(f"| | best | median | slowest of {ROUNDS} |\n| --- | ---: | ---: | ---: |")
    print(_row("to COMMAND's first instruction", [begun for begun, _ in totals]))
    print(_row("from COMMAND's end to that of tsmfs", [ended for _, ended in totals]))
    print(f"\ngoal for the first: {GOAL}; of that, milliseconds\n")
    runs = [dict(breakdown()) for _ in range(ROUNDS)]
    print("| step | best | median |\n| --- | ---: | ---: |")
    for step in runs[0]:
        taken = [1000 * run[step] for run in runs if step in run]
        print(f"| {step} | {min(taken):.0f} | {statistics.median(taken):.0f} |")


def measure() -> tuple[float, float]:
    """Seconds to COMMAND's first instruction, and from there to the end of tsmfs."""
    reader, writer = os.pipe()
    program = [sys.executable, "-m", "tsmfs", "exec", "--"]
    command = [part.format(writer) for part in _COMMAND]
    start = time.monotonic()
    process = subprocess.Popen([*program, *command], cwd=ROOT, pass_fds=[writer])
    os.read(reader, 1)
    begun = time.monotonic()
    process.wait()
    ended = time.monotonic()
    os.close(reader)
    os.close(writer)
    return begun - start, ended - begun


def breakdown() -> Iterator[tuple[str, float]]:
    """The steps to COMMAND with the seconds that each took."""
    with tempfile.NamedTemporaryFile("r", prefix="tsmfs-bench-") as marks:
        program = [sys.executable, "-c", _CLOCKED, marks.name, "/bin/true"]
        before = time.monotonic()
        subprocess.run(program, cwd=ROOT, check=True)
        for mark in marks:
            moment, _, step = mark.strip().partition(" ")
            yield step, float(moment) - before
            before = float(moment)


def _row(name: str, values: Sequence[float]) -> str:
    numbers = (min(values), statistics.median(values), max(values))
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in numbers)} |"


if __name__ == "__main__":
    main()
