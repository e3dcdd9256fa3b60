# SPDX-License-Identifier: MIT
"""The system calls of namespaces and mounts, made by child processes."""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tsmfs.session import namespaces
from tsmfs.session.namespaces import CAP_SYS_ADMIN, NAMESPACE_FILES, Mount, Namespace


def in_child(body: Callable[[], None]) -> int:
    """The exit status of a child that runs *body*: 1 when it raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def be_root() -> None:
    """Have the right to make the other namespaces."""
    if not namespaces.has_capability(CAP_SYS_ADMIN):
        namespaces.become_root_of_user_namespace()


def test_unshare_makes_other_namespaces() -> None:
    def body() -> None:
        be_root()
        before = {kind: os.readlink(f"/proc/self/ns/{NAMESPACE_FILES[kind]}") for kind in moved}
        namespaces.unshare(Namespace.MOUNT | Namespace.NET)
        for kind, name in before.items():
            assert os.readlink(f"/proc/self/ns/{NAMESPACE_FILES[kind]}") != name

    moved = (Namespace.MOUNT, Namespace.NET)
    assert in_child(body) == 0


def test_setns_enters_the_namespace_of_another() -> None:
    reader, writer = os.pipe()

    def body() -> None:
        be_root()
        other = os.fork()
        if other == 0:
            namespaces.unshare(Namespace.NET)
            os.write(writer, b"x")
            signal.pause()
        os.read(reader, 1)
        try:
            assert not namespaces.same(other, Namespace.NET)
            assert namespaces.same(other, Namespace.MOUNT)
            namespaces.setns(os.pidfd_open(other), Namespace.NET)
            assert namespaces.same(other, Namespace.NET)
        finally:
            os.kill(other, signal.SIGKILL)

    assert in_child(body) == 0
    os.close(reader)
    os.close(writer)


def test_mount_bind_and_detach(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def body() -> None:
        be_root()
        namespaces.unshare(Namespace.MOUNT)
        namespaces.make_mounts_private()
        namespaces.mount("tmpfs", first, "tmpfs", Mount.NODEV, "mode=700")
        (first / "file").touch()
        namespaces.bind(first, second)
        assert os.listdir(second) == ["file"]
        namespaces.detach(first)
        assert os.listdir(first) == []
        assert os.listdir(second) == ["file"]

    first.mkdir()
    second.mkdir()
    assert in_child(body) == 0
    assert os.listdir(second) == []


def test_another_root_directory(tmp_path: Path) -> None:
    def body() -> None:
        be_root()
        namespaces.unshare(Namespace.MOUNT)
        namespaces.make_mounts_private()
        namespaces.mount("tmpfs", tmp_path, "tmpfs")
        (tmp_path / "file").touch()
        namespaces.become_root_directory(tmp_path)
        assert os.listdir("/") == ["file"]
        assert os.listdir("..") == ["file"]

    assert in_child(body) == 0


def test_error_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere") as error:
        namespaces.detach(tmp_path / "nowhere")
    assert error.value.filename == str(tmp_path / "nowhere")


def test_error_of_a_call_without_a_path() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as error:
        namespaces.setns(-1, Namespace.NET)
    assert error.value.filename is None


def test_user_namespace_makes_its_maker_root() -> None:
    def body() -> None:
        namespaces.become_root_of_user_namespace()
        assert (os.geteuid(), os.getegid()) == (0, 0)
        assert namespaces.has_capability(CAP_SYS_ADMIN)

    assert in_child(body) == 0


def test_loopback_comes_up() -> None:
    def body() -> None:
        be_root()
        namespaces.unshare(Namespace.NET)
        namespaces.bring_up_loopback()
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), 1).close()

    assert in_child(body) == 0


def test_child_dies_with_its_parent() -> None:
    reader, writer = os.pipe()

    def body() -> None:
        parent = os.getpid()
        if os.fork() == 0:
            namespaces.die_with_parent(signal.SIGKILL)
            os.write(writer, b"x")
            while os.getppid() == parent:
                signal.pause()
            os._exit(0)
        os.read(reader, 1)

    assert in_child(body) == 0
    os.close(writer)
    # The end of the pipe is that of the last process that had it.
    assert select.select([reader], [], [], 10)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_signals_are_read_from_a_descriptor() -> None:
    def body() -> None:
        wanted = [signal.SIGUSR1, signal.SIGRTMAX]
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        descriptor = namespaces.signal_descriptor(wanted)
        assert not os.get_inheritable(descriptor)
        for number in wanted:
            os.kill(os.getpid(), number)
        found = [struct.unpack_from("=I", os.read(descriptor, 128))[0] for _ in wanted]
        assert found == wanted

    assert in_child(body) == 0
