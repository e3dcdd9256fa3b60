# SPDX-License-Identifier: MIT
"""A server on both transports, and clients of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlink.evidence import serve_device_evidence, serve_pci_tsm
from netlink.server import Server
from netlink.transport.unix import UnixTransport
from netlink.transport.usersock import UsersockTransport
from tests.netlink.devices import BDF, Device, Provider
from tests.netlink.wire import Connection, NetlinkConnection, UnixConnection


@dataclass
class Served:
    """A server, what it serves, and where."""

    server: Server
    device: Device
    path: Path
    port: int


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server with one device on a Unix socket and on a port."""
    device = Device()
    provider = Provider(**{BDF: device})
    with Server() as server:
        serve_pci_tsm(server.genl, provider)
        serve_device_evidence(server.genl, provider)
        path = tmp_path / "netlink"
        usersock = UsersockTransport()
        server.add(UnixTransport(path))
        server.add(usersock)
        yield Served(server, device, path, usersock.port)


@pytest.fixture(params=["unix", "usersock"])
def connect(request: pytest.FixtureRequest, served: Served) -> Iterator[Callable[[], Connection]]:
    """Makes clients, once on each transport; they are closed at the end."""
    with contextlib.ExitStack() as clients:

        def one() -> Connection:
            client: Connection
            if request.param == "unix":
                client = UnixConnection(served.path)
            else:
                client = NetlinkConnection(socket.NETLINK_USERSOCK, served.port)
            clients.callback(client.close)
            return client

        yield one


@pytest.fixture
def client(connect: Callable[[], Connection]) -> Connection:
    """One client."""
    return connect()
