# SPDX-License-Identifier: MIT
"""How the daemon takes the listeners of the processes in a session."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.left_behind import NO_PROCESS, failing, nothing_left
from tsmfs import fs
from tsmfs.daemon import MachineRequest
from tsmfs.session import SessionError, supervisor
from tsmfs.session.registry import SessionDirectory
from tsmfs.umount import MountError


@dataclass
class Transport:
    """Stands for what serves the listeners."""

    refused: bool = False
    taken: list[tuple[str, range]] = field(default_factory=list)

    def attach(self, descriptor: int, reserved: range) -> None:
        if self.refused:
            raise OSError(5, "refused")
        self.taken.append((os.readlink(f"/proc/self/fd/{descriptor}"), reserved))
        os.close(descriptor)


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def entrance(tmp_path: Path, transport: Transport) -> Iterator[tuple[socket.socket, Path]]:
    """The first connection and the path of the socket for all others."""
    directory = SessionDirectory(tmp_path)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threading.Thread(
        target=supervisor._take_listeners,
        args=(transport.attach, theirs, supervisor._listen(directory)),
        daemon=True,
    ).start()
    with ours:
        yield ours, directory.control_socket


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    return connection


def test_listeners_are_taken_from_the_first_process_and_from_others(
    entrance: tuple[socket.socket, Path], transport: Transport
) -> None:
    first, path = entrance
    with open(os.devnull) as file:
        supervisor.hand_over(first, file.fileno(), range(512, 1024))
        with connect(path) as other, connect(path) as another:
            supervisor.hand_over(another, file.fileno(), range(16, 32))
            supervisor.hand_over(other, file.fileno(), range(512, 1024))
    assert transport.taken == [
        (os.devnull, range(512, 1024)),
        (os.devnull, range(16, 32)),
        (os.devnull, range(512, 1024)),
    ]


def test_refusal_is_told(entrance: tuple[socket.socket, Path], transport: Transport) -> None:
    transport.refused = True
    with open(os.devnull) as file, pytest.raises(OSError, match="refused"):
        supervisor.hand_over(entrance[0], file.fileno(), range(512, 1024))


def test_nonsense_is_refused_and_stops_nobody(
    entrance: tuple[socket.socket, Path], transport: Transport
) -> None:
    first, path = entrance
    with open(os.devnull) as file, connect(path) as rude, connect(path) as gone:
        rude.send(b"nonsense")
        assert rude.recv(100) == b"no descriptor came"
        socket.send_fds(rude, [b"odd"], [file.fileno()])
        assert rude.recv(100) == b"no descriptors are reserved"
        gone.send(b"x")
        gone.close()
        supervisor.hand_over(first, file.fileno(), range(512, 1024))
    assert len(transport.taken) == 1


def test_daemon_that_goes_is_told() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threading.Timer(0.05, theirs.close).start()
    with ours, open(os.devnull) as file, pytest.raises(OSError, match="the daemon has gone"):
        supervisor.hand_over(ours, file.fileno(), range(512, 1024))


def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="too long"):
        supervisor._listen(SessionDirectory(tmp_path / ("x" * 120)))


@NO_PROCESS
def test_a_daemon_that_cannot_be_started_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    monkeypatch.setattr(os, name, failing(getattr(os, name), number))
    binding, directory = fs.BINDINGS["fusepy"], SessionDirectory(tmp_path)
    said = f"^the daemon cannot be started: {os.strerror(number)}$"
    with nothing_left(), open(os.devnull) as lock, pytest.raises(SessionError, match=said):
        supervisor.start(MachineRequest(), binding, directory, lock.fileno())
