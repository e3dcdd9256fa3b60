# SPDX-License-Identifier: MIT
"""Uevents for the udev of a network namespace: sent through the real kernel as if its own.

A message to NETLINK_KOBJECT_UEVENT that comes from user space is broadcast in the sender's
network namespace after the kernel put its own SEQNUM behind it (``uevent_net_broadcast()`` in
lib/kobject_uevent.c). It takes CAP_SYS_ADMIN over that namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

from tsmfs.base.uevent import Uevent
from tsmfs.kernel.errors import fail

NETLINK_KOBJECT_UEVENT = 15
"""Netlink protocol (include/uapi/linux/netlink.h)."""

UEVENT_BUFFER_SIZE = 2048
"""Longest message with header and SEQNUM, in bytes (include/linux/kobject.h)."""

_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
_NLMSG_ERROR = 2
_NLMSG_MIN_TYPE = 0x10
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4
_KERNEL = (0, 0)


class UeventSocket:
    """Sends the uevents of a machine into the network namespace of the process."""

    def __init__(self, report: Callable[[str], None]) -> None:
        """Open the socket; OSError (EPERM) when the process may not send. *report* logs."""
        self._report = report
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT
        )
        # A message that is too long is refused after the sender's right to send is checked.
        answer = self._request(bytes(UEVENT_BUFFER_SIZE))
        if answer != errno.EINVAL:
            self._socket.close()
            fail(answer or errno.EPROTO)

    def send(self, event: Uevent) -> None:
        """Send *event*, whose SEQNUM the kernel replaces by its own. A failure is logged."""
        parts = [f"{event.action}@{event.devpath}"]
        parts += [f"{key}={value}" for key, value in event.env if key != "SEQNUM"]
        error = self._request("".join(f"{part}\0" for part in parts).encode())
        if error:
            self._report(f"{event.devpath}: uevent not sent to the host: {os.strerror(error)}")

    def close(self) -> None:
        """Close the socket; nothing can be sent any more."""
        self._socket.close()

    def _request(self, payload: bytes) -> int:
        """The errno with which the kernel answers, 0 for success."""
        header = _HEADER.pack(
            _HEADER.size + len(payload), _NLMSG_MIN_TYPE, _NLM_F_REQUEST | _NLM_F_ACK, 0, 0
        )
        try:
            self._socket.sendto(header + payload, _KERNEL)
            answer = self._socket.recv(UEVENT_BUFFER_SIZE)
        except OSError as error:
            return error.errno or errno.EIO
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind != _NLMSG_ERROR:
            return errno.EPROTO
        (number,) = _ERROR.unpack_from(answer, _HEADER.size)
        return -int(number)
