# SPDX-License-Identifier: MIT
"""The netlink server of a machine: when it serves, and when it refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlink.client import PciTsmClient, evidence_types
from netlink.connection import UnixEndpoint, connect, usersock
from tests.machines import Shell, boot, fails, pci

BDF = "10000:01:00.0"


@pytest.fixture
def listener() -> Iterator[int]:
    """A descriptor to be taken over, which is closed by whoever does that."""
    ours, theirs = os.pipe()
    os.close(theirs)
    yield ours
    with fails(errno.EBADF):
        os.close(ours)


@pytest.fixture
def shell() -> Iterator[Shell]:
    one = boot("devsec")
    yield one
    one.machine.stop()


def test_nobody_is_served_before_it_starts(shell: Shell, listener: int) -> None:
    service = shell.machine.netlink
    assert service.socket_path == ""
    assert service.port is None
    with fails(errno.ENOTCONN):
        service.interpose(lambda _: None)
    with fails(errno.ENOTCONN):
        service.attach(listener)


def test_it_serves_on_both_transports_until_it_is_stopped(shell: Shell, tmp_path: Path) -> None:
    service = shell.machine.netlink
    service.start(tmp_path / "socket", os.geteuid())
    shell.echo("tsm0", f"{pci(BDF)}/tsm/connect")
    path, port = Path(service.socket_path), service.port
    assert path == tmp_path / "socket"
    assert port is not None
    for endpoint in (UnixEndpoint(path), usersock(port)):
        with connect(endpoint) as connection:
            assert set(PciTsmClient(connection).read(BDF)) == set(evidence_types())
    service.stop()
    assert (service.socket_path, service.port) == ("", None)
    with pytest.raises(OSError):  # noqa: PT011 (which one depends on the transport)
        connect(UnixEndpoint(path))
    with fails(errno.ENOTCONN):
        service.interpose(lambda _: None)


def test_listener_is_closed_if_it_does_not_interpose(
    shell: Shell, tmp_path: Path, listener: int
) -> None:
    service = shell.machine.netlink
    service.start(tmp_path / "socket", os.geteuid())
    with fails(errno.ENOTCONN):
        service.attach(listener)


def test_datagrams_are_recorded_while_they_are_to_be(shell: Shell, tmp_path: Path) -> None:
    service = shell.machine.netlink
    service.start(tmp_path / "socket", os.geteuid())
    shell.echo("tsm0", f"{pci(BDF)}/tsm/connect")
    with connect(UnixEndpoint(tmp_path / "socket")) as connection:
        client = PciTsmClient(connection)
        client.read(BDF, ["vca"])
        assert service.messages.end == 0
        service.recording = True
        client.read(BDF, ["vca"])
        seen = service.messages.end
        assert seen > 0
        service.recording = False
        client.read(BDF, ["vca"])
        assert service.messages.end == seen
