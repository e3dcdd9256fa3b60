# SPDX-License-Identifier: MIT
"""Machines to test on, a shell on each of them, and the processes that use it."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tsmfs import description
from tsmfs.base.kobject import BinAttribute, Directory, File, Link, Node
from tsmfs.base.uevent import Uevent
from tsmfs.kernel.task import Task, running_as
from tsmfs.machine import Machine
from tsmfs.pci.pci_dev import PciDev

#: Beyond the largest pid_max: its capabilities follow from its user ID alone.
NO_SUCH_PID = 1 << 30

ROOT = Task(uid=0, gid=0, pid=NO_SUCH_PID)
USER = Task(uid=1000, gid=1000, pid=NO_SUCH_PID)

#: Seconds until a thread that should have ended is taken for stuck.
STUCK = 10


@contextlib.contextmanager
def fails(number: int) -> Iterator[None]:
    """The block fails with this errno."""
    with pytest.raises(OSError) as info:  # noqa: PT011 - which one is told below
        yield
    got, wanted = errno.errorcode.get(info.value.errno or 0), errno.errorcode[number]
    assert got == wanted, info.value


def errno_from(call: Callable[[], object]) -> str | None:
    """Name of the errno that *call* fails with, None if it succeeds."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


@dataclass
class Caller:
    """A process in a system call, which a signal can end while it waits."""

    waiting: threading.Event = field(default_factory=threading.Event)
    """It has looked for signals, so it waits for something."""
    killed: threading.Event = field(default_factory=threading.Event)

    def _interrupted(self) -> bool:
        self.waiting.set()
        return self.killed.is_set()

    @property
    def task(self) -> Task:
        return replace(ROOT, interrupted=self._interrupted)

    def kill(self) -> None:
        self.killed.set()


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A pool; the block waits for its threads."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


def errno_of_result(future: Future[Any]) -> int | None:
    """What a call in a thread failed with, None if it succeeded."""
    error = future.exception(STUCK)
    if error is None:
        return None
    assert isinstance(error, OSError), error
    return error.errno


class Shell:
    """A process that reads and writes the files of *machine* by path; links are followed."""

    def __init__(self, machine: Machine, task: Task = ROOT) -> None:
        self.machine = machine
        self.task = task

    def as_task(self, task: Task) -> Shell:
        """The same machine for another process."""
        return Shell(self.machine, task)

    def find(self, path: str, *, follow: bool = True) -> Node | None:
        """The node at *path*; its last component is not followed if *follow* is false."""
        node: Node | None = self.machine.root
        parts = [part for part in path.split("/") if part]
        for at, part in enumerate(parts):
            if not isinstance(node, Directory):
                return None
            node = node.lookup(part)
            if isinstance(node, Link) and (follow or at < len(parts) - 1):
                node = node.target
        return node

    def node(self, path: str) -> Node:
        node = self.find(path)
        assert node is not None, f"no {path}"
        return node

    def file(self, path: str) -> File:
        node = self.node(path)
        assert isinstance(node, File), f"{path} is no file"
        return node

    def exists(self, path: str) -> bool:
        return self.find(path, follow=False) is not None

    def ls(self, path: str) -> set[str]:
        node = self.node(path)
        assert isinstance(node, Directory), f"{path} is no directory"
        names = node.names()
        assert len(names) == len(set(names))
        return set(names)

    def mode(self, path: str) -> int:
        return self.node(path).inode().mode

    def cat(self, path: str) -> str:
        return self.read(path).decode()

    def read(self, path: str, offset: int = 0, count: int = 1 << 20) -> bytes:
        file = self.file(path)
        with running_as(self.task):
            if isinstance(file.attribute, BinAttribute):
                return file.read(offset, count)
            return file.show()

    def echo(self, text: str, path: str) -> None:
        self.write(path, f"{text}\n".encode())

    def write(self, path: str, data: bytes, offset: int = 0) -> int:
        file = self.file(path)
        with running_as(self.task):
            if isinstance(file.attribute, BinAttribute):
                return file.write(offset, data)
            return file.store(data)

    def readlink(self, path: str) -> str:
        node = self.find(path, follow=False)
        assert isinstance(node, Link), f"{path} is no link"
        return node.readlink()

    def realpath(self, path: str) -> str:
        return self.node(path).path()

    def modprobe(self, line: str) -> None:
        self.echo(line, "/kernel/tsmfs/modprobe")

    def rmmod(self, name: str) -> None:
        self.echo(name, "/kernel/tsmfs/rmmod")

    def dmesg(self) -> str:
        return self.machine.log.text()

    def iomem(self) -> str:
        return self.cat("/kernel/tsmfs/iomem")

    def fault(self, point: str, **attributes: object) -> None:
        """Set attributes of a fault point, ``probability`` 100 and ``times`` 1 if not given."""
        for name, value in ({"probability": 100, "times": 1} | attributes).items():
            self.echo(str(value), f"/kernel/tsmfs/fault/{point}/{name}")

    def dev(self, name: str) -> PciDev:
        dev = self.machine.pci.find_device(name)
        assert dev is not None, f"no function {name}"
        return dev

    def devices(self) -> list[str]:
        """Names of the functions in the order of their arrival."""
        return [dev.name for dev in self.machine.pci.devices()]

    def uevents(self) -> list[Uevent]:
        """A list to which every uevent is added from now on."""
        heard: list[Uevent] = []
        self.machine.uevents.listeners.append(heard.append)
        return heard


def pci(name: str) -> str:
    """The path of a PCI function."""
    return f"/bus/pci/devices/{name}"


SAMPLE_TSMS = ("pci_pf_stub", "devsec_link_tsm all_bridges=1", "devsec_tsm")
"""For machines whose devices have no keys, or whose keys do not matter."""


def without_keys(name: str) -> str:
    """The text of a built-in machine whose devices have lost their keys.

    So a stream is secure as soon as it is enabled, and the sample TSMs can connect the devices.
    """

    def plain(function: description.Function) -> description.Function:
        return replace(function, cma=None, children=tuple(map(plain, function.children)))

    machine, _ = description.find(name)
    bridges = tuple(
        replace(bridge, functions=tuple(map(plain, bridge.functions)))
        for bridge in machine.host_bridges
    )
    return description.to_toml(replace(machine, modules=(), host_bridges=bridges))


def boot(machine: str = "devsec", modules: Iterable[str] | None = None) -> Shell:
    """A shell on a new machine: a built-in one, or the one that a text of several lines describes.

    *modules* are loaded instead of those that the machine names.
    """
    if "\n" in machine:
        built = Machine(description.parse(machine, "test.toml"), machine)
    else:
        built = Machine(*description.find(machine))
    built.boot(modules)
    return Shell(built)


def summary(events: Iterable[Uevent]) -> list[str]:
    """``action name`` of each uevent."""
    return [f"{event.action} {event.devpath.rsplit('/', 1)[1]}" for event in events]
