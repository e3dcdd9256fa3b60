# SPDX-License-Identifier: MIT
"""The controlling terminal of who started a session, as far as job control goes."""

from __future__ import annotations

import contextlib
import os
import termios
from typing import Any


def lead_foreground() -> None:
    """Lead a process group of its own, and have the foreground of the terminal on standard input.

    SIGTTOU has to be blocked.
    """
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())


class Terminal:
    """The controlling terminal; without one nothing happens. SIGTTOU has to be blocked."""

    def __init__(self) -> None:
        """Note who has the foreground, and the modes."""
        self._own = os.getpgrp()
        self._modes: list[Any] | None = None
        try:
            self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            self._descriptor = -1
        self._was_foreground = self.foreground() == self._own
        if self._was_foreground:
            with contextlib.suppress(termios.error):
                self._modes = termios.tcgetattr(self._descriptor)

    def close(self) -> None:
        """Let go of it; again, or without one: nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def foreground(self) -> int | None:
        """The process group in the foreground, None when there is none."""
        try:
            return os.tcgetpgrp(self._descriptor)
        except OSError:
            return None

    def is_ours(self) -> bool:
        """Whether this process had the foreground at the beginning."""
        return self._was_foreground

    def foreground_inside(self) -> int | None:
        """The process group in the foreground if it is one of the session that began here."""
        group = self.foreground()
        try:
            theirs = os.readlink(f"/proc/{group}/ns/pid")
        except OSError:
            return None
        return group if theirs == os.readlink("/proc/self/ns/pid_for_children") else None

    def hand_to(self, group: int | None) -> None:
        """Let *group*, if any, have the foreground when it is this process's."""
        if group is not None and self.foreground() == self._own:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(self._descriptor, group)

    def take_back(self) -> None:
        """Have the foreground again, if this process had it at the beginning.

        A shell in another PID namespace cannot give it back: it has no number for who had it.
        """
        if self._was_foreground and self.foreground() != self._own:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(self._descriptor, self._own)

    def restore_modes(self) -> None:
        """Set the modes that were noted, for a program that could not do so itself."""
        if self._modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._modes)
