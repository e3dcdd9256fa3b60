# SPDX-License-Identifier: MIT
"""The network namespace of a session, into which the host's kernel sends no uevents.

The kernel broadcasts uevents of its own devices in every network namespace that belongs to the
initial user namespace (``uevent_net_init()`` in lib/kobject_uevent.c). One that belongs to another
hears only what is sent in it, and root has the same rights over it.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from tsmfs.session.namespaces import Namespace, setns, unshare

_GO = b"\0"

_SHORTAGES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""These tell of no process or no descriptor, and nothing of what can be made here."""


def enter_new_network() -> bool:
    """Be in a new network namespace; False when it hears the host's uevents too.

    That is so where no user namespace can be made. OSError when there is no network namespace, or
    want of what it takes to make one.
    """
    try:
        owned = _open_owned_network()
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        unshare(Namespace.NET)
        return False
    try:
        setns(owned, Namespace.NET)
    finally:
        os.close(owned)
    return True


def _open_owned_network() -> int:
    """A descriptor of a network namespace that a user namespace like this one owns."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = os.fork()
            if child == 0:
                try:
                    ours.close()
                    unshare(Namespace.USER)
                    _meet(theirs)
                    unshare(Namespace.NET)
                    _meet(theirs)
                finally:
                    os._exit(0)
        try:
            _wait(ours)
            for kind in ("uid_map", "gid_map"):
                _write_same_map(Path(f"/proc/{child}") / kind, Path("/proc/self") / kind)
            _go(ours)
            _wait(ours)
            return os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            # It waits for a word, or for the end of this.
            ours.close()
            os.waitpid(child, 0)


def _go(end: socket.socket) -> None:
    end.sendall(_GO)


def _wait(end: socket.socket) -> None:
    if not end.recv(1):
        raise OSError("the other process has ended")


def _meet(end: socket.socket) -> None:
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
