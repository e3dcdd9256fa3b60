# SPDX-License-Identifier: MIT
"""How fast a mounted machine answers, beside the real sysfs and the least that C can do.

All of one table is measured in one run, in turns, so that the ratios mean something on a machine
that does other things as well. Nothing is asserted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tsmfs import fs
from tsmfs.description import generate, to_toml
from tsmfs.instance import mounted

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("cfuse.c")

LINK = "bus/pci/devices/10000:01:00.0"
ATTRIBUTE = "tsm/connect"
ROUNDS = 40
CALLS = 100
WARM_UP = 500

POLICY = "entry_timeout=1000000,attr_timeout=0,negative_timeout=0,direct_io,use_ino,big_writes"

FUNCTIONS = 4096
HANG_MS = 2000
THREADS = 16


@dataclass
class Subject:
    """One filesystem, with a file to read."""

    name: str
    path: Path
    beside: str | None = None
    """The subject to compare with."""
    times: list[float] = field(default_factory=list)
    """Microseconds for an open, a read and a close."""

    @property
    def best(self) -> float:
        return min(self.times)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def open_read_close(path: Path, calls: int) -> float:
    """Microseconds that one open, read of a page and close takes."""
    name = os.fspath(path)
    os_open, os_read, os_close = os.open, os.read, os.close
    start = time.perf_counter()
    for _ in range(calls):
        descriptor = os_open(name, os.O_RDONLY)
        os_read(descriptor, 4096)
        os_close(descriptor)
    return (time.perf_counter() - start) / calls * 1e6


def measure(subjects: list[Subject]) -> None:
    """Fill in the times of all *subjects*, in turns."""
    for subject in subjects:
        open_read_close(subject.path, WARM_UP)
    for _ in range(ROUNDS):
        for subject in subjects:
            subject.times.append(open_read_close(subject.path, CALLS))


def print_table(title: str, subjects: list[Subject]) -> None:
    """Print the times of *subjects* as a Markdown table, with ratios to their neighbours."""
    print(f"\n{title}\n")
    print("| | best | median | beside | ratio of best | ratio of median |")
    print("| --- | ---: | ---: | --- | ---: | ---: |")
    by_name = {subject.name: subject for subject in subjects}
    for subject in subjects:
        row = f"| {subject.name} | {subject.best:.1f} | {subject.median:.1f} |"
        if (other := by_name.get(subject.beside or "")) is not None:
            best, median = subject.best / other.best, subject.median / other.median
            row += f" {other.name} | {best:.2f} | {median:.2f} |"
        else:
            row += " | | |"
        print(row)


def tsmfs(*arguments: str | Path, binding: str = "fusepy") -> None:
    """Run the command line of the checkout."""
    subprocess.run(
        [sys.executable, "-m", "tsmfs", *arguments],
        cwd=ROOT,
        env={**os.environ, fs.BINDING_VARIABLE: binding},
        stdout=subprocess.DEVNULL,
        check=True,
    )


@contextlib.contextmanager
def machine(directory: Path, *options: str | Path, binding: str = "fusepy") -> Iterator[Path]:
    """A machine mounted on *directory*, which is made."""
    directory.mkdir()
    tsmfs("mount", *options, directory, binding=binding)
    try:
        yield directory
    finally:
        tsmfs("umount", directory)


def build_cfuse(scratch: Path, package: str, version: int) -> Path | None:
    """The C program for the libfuse of that pkg-config name; None without compiler or headers."""
    compiler = shutil.which("cc")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", package], capture_output=True, text=True, check=False
    )
    if compiler is None or flags.returncode:
        return None
    program = scratch / f"cfuse-{package}"
    define = f"-DFUSE_USE_VERSION={version}"
    files = [os.fspath(SOURCE), "-o", os.fspath(program)]
    subprocess.run([compiler, "-O2", define, *files, *flags.stdout.split()], check=True)
    return program


@contextlib.contextmanager
def cfuse(program: Path, directory: Path, path: str, *options: str) -> Iterator[Path]:
    """The C program, showing one file at *path* below *directory*, which is made."""
    directory.mkdir()
    process = subprocess.Popen([program, f"/{path}", directory, "-f", *options])
    try:
        while not (directory / path).exists():
            if process.poll() is not None:
                raise RuntimeError(f"{program} ended")
            time.sleep(0.01)
        yield directory / path
    finally:
        process.terminate()
        process.wait(timeout=10)


def real_attribute() -> Path:
    """A plain attribute of a PCI function of this machine, or of any device."""
    for pattern in ("bus/pci/devices/*/vendor", "bus/*/devices/*/uevent"):
        for path in sorted(Path("/sys").glob(pattern)):
            return path.resolve()
    raise RuntimeError("no device here")


def bench_open_read_close(scratch: Path) -> None:
    """The cost of a read on the real sysfs, on C and on tsmfs."""
    with contextlib.ExitStack() as stack:
        mounts = {
            binding: stack.enter_context(machine(scratch / binding, binding=binding))
            for binding in fs.BINDINGS
        }
        place = (mounts["fusepy"] / LINK / ATTRIBUTE).resolve()
        path = os.fspath(place.relative_to(mounts["fusepy"]))
        subjects = [Subject("sysfs", real_attribute())]
        for name, package, version, options in (
            ("C, libfuse 2", "fuse", 26, ("-o", POLICY)),
            ("C, libfuse 3", "fuse3", 31, ("-o", "max_idle_threads=16")),
        ):
            program = build_cfuse(scratch, package, version)
            if program is not None:
                target = stack.enter_context(cfuse(program, scratch / package, path, *options))
                subjects.append(Subject(name, target))
        subjects.append(Subject("tsmfs, fusepy", mounts["fusepy"] / path, "C, libfuse 2"))
        subjects.append(Subject("tsmfs, mfusepy", mounts["mfusepy"] / path, "C, libfuse 3"))
        measure(subjects)
    print_table(f"open + read + close of {path}, microseconds", subjects)


def timed(action: Callable[[], object]) -> float:
    """Seconds that *action* takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident_mib(directory: Path) -> float:
    """Resident memory of the daemon of a machine, MiB."""
    pid = int((directory / "kernel/tsmfs/pid").read_text())
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def bench_mount(scratch: Path) -> None:
    """Mount to first read and memory of a small and of a large machine, and a read in each."""
    large = scratch / "large.toml"
    large.write_text(to_toml(generate(FUNCTIONS)))
    rows = []
    subjects = []
    with contextlib.ExitStack() as stack:
        for name, options in (
            ("devsec", ()),
            (f"{FUNCTIONS} functions", ("--machine", large)),
        ):
            directory = scratch / name.replace(" ", "-")
            directory.mkdir()
            first = [timed(partial(first_read, directory, options))]
            for _ in range(2):
                tsmfs("umount", directory)
                first.append(timed(partial(first_read, directory, options)))
            stack.callback(tsmfs, "umount", directory)
            devices = sorted((directory / "bus/pci/devices").iterdir())
            rows.append((name, len(devices), min(first), resident_mib(directory)))
            subjects.append(
                Subject(name, devices[-1].resolve() / "vendor", "devsec" if rows[1:] else None)
            )
        measure(subjects)
        walk = timed(lambda: subprocess.run(["find", directory, "-ls"], stdout=subprocess.DEVNULL))
        after = resident_mib(directory)
    print("\nmount to first read\n")
    print("| | functions | seconds | MiB resident |")
    print("| --- | ---: | ---: | ---: |")
    for name, functions, seconds, mib in rows:
        print(f"| {name} | {functions} | {seconds:.2f} | {mib:.0f} |")
    print(f"\nafter `find -ls` over the large one, {walk:.1f} s: {after:.0f} MiB")
    print_table("open + read + close of a plain attribute, microseconds", subjects)


def first_read(directory: Path, options: tuple[str | Path, ...]) -> None:
    """Mount a machine and read one file."""
    tsmfs("mount", *options, directory)
    (directory / "kernel/tsmfs/name").read_text()


def bench_hang(scratch: Path) -> None:
    """The longest read of a plain attribute by many threads while a connect hangs."""
    with machine(scratch / "hang") as directory:
        fault = directory / "kernel/tsmfs/fault/tsm_connect"
        for name, value in (
            ("errno", 0),
            ("delay_ms", HANG_MS),
            ("times", 1),
            ("probability", 100),
        ):
            (fault / name).write_text(f"{value}\n")
        device = directory / LINK
        plain = (device / "vendor").resolve()
        connect = threading.Thread(target=(device / ATTRIBUTE).write_text, args=("tsm0\n",))
        slowest = [0.0] * THREADS
        reads = [0] * THREADS

        def read(index: int) -> None:
            while connect.is_alive():
                slowest[index] = max(slowest[index], open_read_close(plain, 1))
                reads[index] += 1

        start = time.perf_counter()
        connect.start()
        threads = [threading.Thread(target=read, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hung = time.perf_counter() - start
    print(
        f"\na connect hung for {hung:.1f} s; meanwhile {THREADS} threads read a plain attribute "
        f"of the same device {sum(reads)} times, the slowest took {max(slowest) / 1000:.1f} ms"
    )


def main() -> None:
    """Run all, on an otherwise unused directory."""
    scratch = Path(tempfile.mkdtemp(prefix="tsmfs-bench-"))
    try:
        bench_open_read_close(scratch)
        bench_mount(scratch)
        bench_hang(scratch)
    finally:
        if not any(scratch in place.parents for place in mounted()):
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
