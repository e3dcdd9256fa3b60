# SPDX-License-Identifier: MIT
"""The netlink server of a machine: its evidence, on a Unix socket and on NETLINK_USERSOCK."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from netlink.record import RECORD
from tsmfs.kernel.printk import ByteRing
from tsmfs.pci.core import PciCore
from tsmfs.pci.evidence import PciEvidence

if TYPE_CHECKING:
    from netlink.server import Direction, Server
    from netlink.transport.interpose import InterposeTransport

_CAPACITY = 8 << 20
_FAMILIES = 2


class EvidenceService:
    """Serves ``pci-tsm`` and ``device-evidence`` while it is started."""

    def __init__(self, pci: PciCore) -> None:
        self._provider = PciEvidence(pci)
        self._server: Server | None = None
        self._interpose: InterposeTransport | None = None
        self._recording = False
        self.socket_path = ""
        """Path of the Unix socket, empty while it does not serve."""
        self.port: int | None = None
        """Port of NETLINK_USERSOCK, None while it does not serve."""
        self.messages = ByteRing(_CAPACITY)
        """Datagrams that passed while they were recorded, each behind a :data:`RECORD`."""

    def start(self, socket_path: Path, owner: int) -> None:
        """Serve clients; *owner* is the uid of the machine's root. OSError when it cannot."""
        # Only a mounted machine needs these, and they take long to import.
        from netlink.evidence import serve_device_evidence, serve_pci_tsm
        from netlink.genl import GENL_START_ALLOC, GenericNetlink
        from netlink.server import Server
        from netlink.transport.kernel import free_numbers
        from netlink.transport.unix import UnixTransport
        from netlink.transport.usersock import UsersockTransport

        try:
            # Where programs see these families beside the kernel's, no number may be both's.
            first = free_numbers(_FAMILIES)
        except OSError:
            first = GENL_START_ALLOC
        server = Server(GenericNetlink(first))
        serve_pci_tsm(server.genl, self._provider)
        serve_device_evidence(server.genl, self._provider)
        try:
            server.add(UnixTransport(socket_path, owner))
            usersock = UsersockTransport(owner=owner)
            server.add(usersock)
        except BaseException:
            server.close()
            raise
        self._server = server
        self.socket_path = str(socket_path)
        self.port = usersock.port

    def interpose(self, report: Callable[[str], None]) -> None:
        """Serve processes whose filter's listener is attached, too; *report* is told of problems.

        It is for the network namespace of the calling thread, in which it needs CAP_NET_ADMIN.
        Raises OSError when it cannot, OSError(ENOTCONN) before :meth:`start`.
        """
        from netlink.transport.interpose import InterposeTransport

        transport = InterposeTransport(report)
        self._running().add(transport)
        self._interpose = transport

    def attach(self, listener: int, reserved: range | None = None) -> None:
        """Serve the processes of a filter, whose *listener* is taken over.

        *reserved* are the descriptors of the filter, where it has not the usual ones. Raises
        OSError, and the listener is closed then; OSError(ENOTCONN) before :meth:`interpose`.
        """
        if self._interpose is None:
            os.close(listener)
            raise OSError(errno.ENOTCONN, "generic netlink is not interposed")
        if reserved is None:
            self._interpose.attach(listener)
        else:
            self._interpose.attach(listener, reserved)

    def _running(self) -> Server:
        if self._server is None:
            raise OSError(errno.ENOTCONN, "the netlink server does not run")
        return self._server

    def stop(self) -> None:
        """Serve nobody any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._interpose = None
            self.socket_path, self.port = "", None

    @property
    def recording(self) -> bool:
        """Whether datagrams are recorded as they pass."""
        return self._recording

    @recording.setter
    def recording(self, value: bool) -> None:
        if self._server is not None and value != self._recording:
            self._recording = value
            if value:
                self._server.add_tap(self._record)
            else:
                self._server.remove_tap(self._record)

    def _record(self, direction: Direction, port: int, datagram: bytes) -> None:
        sent = int(direction.value == "sent")
        header = RECORD.pack(len(datagram), sent, time.time_ns(), port, 0)
        self.messages.append(header + datagram)
