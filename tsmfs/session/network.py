# SPDX-License-Identifier: MIT
"""The network namespace of a session, into which the host's kernel sends no uevents.

The kernel broadcasts uevents of its own devices in every network namespace that belongs to the
initial user namespace (``uevent_net_init()`` in lib/kobject_uevent.c). One that belongs to another
hears only what is sent in it, and root has the same rights over it.
"""

from __future__ import annotations

import os
from pathlib import Path

from tsmfs.session.namespaces import Namespace, setns, unshare

_GO = b"\0"


def enter_new_network() -> bool:
    """Be in a new network namespace; False when it hears the host's uevents too.

    That is so where no user namespace can be made. OSError when there is no network namespace.
    """
    try:
        owned = _open_owned_network()
    except OSError:
        unshare(Namespace.NET)
        return False
    try:
        setns(owned, Namespace.NET)
    finally:
        os.close(owned)
    return True


def _open_owned_network() -> int:
    """A descriptor of a network namespace that a user namespace like this one owns."""
    ours, theirs = _pipe_pair()
    child = os.fork()
    if child == 0:
        try:
            for descriptor in ours:
                os.close(descriptor)
            unshare(Namespace.USER)
            _meet(theirs)
            unshare(Namespace.NET)
            _meet(theirs)
        finally:
            os._exit(0)
    for descriptor in theirs:
        os.close(descriptor)
    try:
        _wait(ours)
        for kind in ("uid_map", "gid_map"):
            _write_same_map(Path(f"/proc/{child}") / kind, Path("/proc/self") / kind)
        _go(ours)
        _wait(ours)
        return os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in ours:
            os.close(descriptor)
        # It waits for a word, or for the end of the pipe.
        os.waitpid(child, 0)


def _pipe_pair() -> tuple[tuple[int, int], tuple[int, int]]:
    """Two ends, each to read from and to write to the other."""
    first_in, second_out = os.pipe2(os.O_CLOEXEC)
    second_in, first_out = os.pipe2(os.O_CLOEXEC)
    return (first_in, first_out), (second_in, second_out)


def _go(end: tuple[int, int]) -> None:
    os.write(end[1], _GO)


def _wait(end: tuple[int, int]) -> None:
    if not os.read(end[0], 1):
        raise OSError("the other process has ended")


def _meet(end: tuple[int, int]) -> None:
    _go(end)
    _wait(end)


def _write_same_map(target: Path, ours: Path) -> None:
    """Map every ID that is mapped here to itself; the kernel wants it in one write."""
    ranges = [line.split() for line in ours.read_text().splitlines()]
    text = "".join(f"{first} {first} {count}\n" for first, _, count in ranges)
    descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
