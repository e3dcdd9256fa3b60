# SPDX-License-Identifier: MIT
"""Another command in a session that runs already."""

from __future__ import annotations

import contextlib
import os
import socket

from tsmfs.session import SessionError, attendant, namespaces, registry, root
from tsmfs.session.front import Attended, Program, Signals, fill_standard_streams
from tsmfs.session.init import interpose
from tsmfs.session.namespaces import NAMESPACE_FILES, Namespace
from tsmfs.session.terminal import Terminal


def run_in_session(name: str, program: Program) -> int:
    """Run COMMAND in the session *name*; returns its exit status.

    SessionError when it cannot be entered or ends; Interrupted when a signal came before COMMAND.
    """
    directory, record = registry.find(name)
    inherited = attendant.inheritable()
    fill_standard_streams()
    entrance = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        entrance.connect(str(directory.control_socket))
        target = os.pidfd_open(record.init)
    except OSError as error:
        raise SessionError(f"{name}: the session is ending") from error
    with Signals() as signals, contextlib.closing(Terminal()) as terminal:
        command = program.command(name, signals.before, terminal)
        top = os.open(f"/proc/{record.init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kinds = {kind for kind in NAMESPACE_FILES if not namespaces.same(record.init, kind)}
        # The mounts are left to the child: this process stays where its program is.
        for kind in kinds & {Namespace.USER, Namespace.PID}:
            namespaces.setns(target, kind)
        moves = kinds & {Namespace.MOUNT, Namespace.NET}

        def work(channel: socket.socket) -> int:
            for kind in moves:
                namespaces.setns(target, kind)
            os.fchdir(top)
            os.chroot(".")
            for line in root.go_to(command.directory):
                attendant.say(line)
            interpose(entrance)
            attendant.close_all_but(channel, inherited)
            return attendant.attend(command, channel)

        pid, channel = attendant.fork(work)
        for descriptor in (entrance.detach(), top, target):
            os.close(descriptor)
        attended = Attended(pid, channel, signals, terminal)
        try:
            return attended.wait(record.daemon)
        finally:
            attended.end()
