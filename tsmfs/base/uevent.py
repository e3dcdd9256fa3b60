# SPDX-License-Identifier: MIT
"""Uevents: what the kernel tells user space about kobjects (lib/kobject_uevent.c)."""

from __future__ import annotations

import enum
import errno
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tsmfs.kernel.errors import fail
from tsmfs.kernel.printk import ByteRing


class Action(enum.StrEnum):
    """``enum kobject_action``."""

    ADD = "add"
    REMOVE = "remove"
    CHANGE = "change"
    MOVE = "move"
    ONLINE = "online"
    OFFLINE = "offline"
    BIND = "bind"
    UNBIND = "unbind"


UEVENT_NUM_ENVP = 64
"""Most variables of one uevent (include/linux/kobject.h)."""
UEVENT_BUFFER_SIZE = 2048
"""Bytes for all of them, each with its NUL."""

Env = list[tuple[str, str]]
"""Variables of a uevent in the order in which they are sent."""


@dataclass(frozen=True, slots=True)
class Uevent:
    """One uevent."""

    action: Action
    devpath: str
    subsystem: str
    env: tuple[tuple[str, str], ...]
    """Every variable, ACTION first, SEQNUM last."""

    def payload(self) -> bytes:
        """``ACTION@DEVPATH\\0KEY=VALUE\\0...``: the message as libudev reads it."""
        parts = [f"{self.action}@{self.devpath}", *(f"{k}={v}" for k, v in self.env)]
        return "".join(f"{part}\0" for part in parts).encode()


class Uevents:
    """Numbers the uevents of a machine, keeps the last ones, and tells the listeners."""

    def __init__(self, capacity: int = 1 << 20) -> None:
        self.seqnum = 0
        """Number of the last uevent; the first is 1."""
        self.ring = ByteRing(capacity)
        """Payloads, each followed by an extra NUL."""
        self.listeners: list[Callable[[Uevent], None]] = []
        # A listener may act on a uevent, and so cause another.
        self._lock = threading.RLock()

    def send(
        self, action: Action, devpath: str, subsystem: str, env: Iterable[tuple[str, str]]
    ) -> None:
        """Send a uevent with the kernel's variables around *env* (``kobject_uevent_env()``)."""
        with self._lock:
            self.seqnum += 1
            event = Uevent(
                action,
                devpath,
                subsystem,
                (
                    ("ACTION", action.value),
                    ("DEVPATH", devpath),
                    ("SUBSYSTEM", subsystem),
                    *env,
                    ("SEQNUM", str(self.seqnum)),
                ),
            )
            self.ring.append(event.payload() + b"\0")
            for listener in self.listeners:
                listener(event)


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ARG = re.compile(r"[0-9A-Za-z]+=[0-9A-Za-z]+")


def parse_synthetic(data: bytes) -> tuple[Action, Env]:
    """What was written to a ``uevent`` file: the action and the variables it adds.

    EINVAL when it is no action, the second word is no UUID, an argument is not KEY=VALUE of
    letters and digits, or all are more than a uevent holds (``kobject_synth_uevent()``).
    """
    # One newline or one NUL may end it; anywhere else they are wrong as any other character.
    text = (data[:-1] if data[-1:] in (b"\n", b"\0") else data).decode("latin-1")
    word, space, rest = text.partition(" ")
    if word not in Action.__members__.values():
        fail(errno.EINVAL, "unknown uevent action string")
    action = Action(word)
    if not space:
        return action, [("SYNTH_UUID", "0")]
    uuid, *args = rest.split(" ")
    if not _UUID.fullmatch(uuid):
        fail(errno.EINVAL, "incorrect uevent action arguments")
    env: Env = [("SYNTH_UUID", uuid)]
    for arg in args:
        if not _ARG.fullmatch(arg):
            fail(errno.EINVAL, "incorrect uevent action arguments")
        key, _, value = arg.partition("=")
        env.append((f"SYNTH_ARG_{key}", value))
    size = sum(len(key) + len(value) + 2 for key, value in env)
    if len(env) > UEVENT_NUM_ENVP or size > UEVENT_BUFFER_SIZE:
        fail(errno.EINVAL, "incorrect uevent action arguments")
    return action, env
