# SPDX-License-Identifier: MIT
"""The running kernel's generic netlink: a socket of it, and the families that it has."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
from typing import Final

from pyroute2.netlink import GENL_ID_CTRL, GENL_MAX_ID, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink import NETLINK_GENERIC as _NETLINK_GENERIC
from pyroute2.netlink import NLMSG_DONE as _NLMSG_DONE

from netlink.codec import (
    GENL_HDRLEN,
    NLMSG_HDRLEN,
    NLMSGERR,
    GenlMsgHdr,
    NlMsgHdr,
    messages,
    parse_nla,
)
from netlink.genl import GENL_START_ALLOC
from netlink.spec import builtin

NLCTRL: Final = builtin("nlctrl")
GETFAMILY: Final = NLCTRL.operation("getfamily").request_value
FAMILY_ID: Final = NLCTRL.attribute_sets["ctrl-attrs"]["family-id"].value
_U16: Final = struct.Struct("=H")
_BUFFER: Final = 65536
_TIMEOUT: Final = 5.0


def generic_socket() -> socket.socket:
    """A socket of NETLINK_GENERIC on a port that no program chooses for itself. Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
    try:
        bind_anywhere(made)
    except OSError:
        made.close()
        raise
    return made


def bind_anywhere(unbound: socket.SocketType) -> None:
    """Bind a socket to a port that is none of a process. Raises OSError."""
    while True:
        try:
            unbound.bind((0x8000_0000 | secrets.randbits(31), 0))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise


def families() -> list[bytes]:
    """What the kernel's nlctrl says of each family, a message each. Raises OSError."""
    request = GenlMsgHdr(GETFAMILY, NLCTRL.version).pack()
    header = NlMsgHdr(NLMSG_HDRLEN + len(request), GENL_ID_CTRL, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    found: list[bytes] = []
    with generic_socket() as asking:
        asking.settimeout(_TIMEOUT)
        asking.sendto(header.pack() + request, (0, 0))
        while True:
            for answer, message in messages(asking.recv(_BUFFER)):
                if answer.type in (_NLMSG_DONE, NLMSG_ERROR):
                    (status,) = NLMSGERR.unpack_from(message, NLMSG_HDRLEN)
                    if status:
                        raise OSError(-status, os.strerror(-status))
                    return found
                found.append(bytes(message))


def number_of(message: bytes) -> int | None:
    """The number of the family that a message of nlctrl tells of."""
    for nla in parse_nla(message, NLMSG_HDRLEN + GENL_HDRLEN, len(message))[0]:
        if nla.type == FAMILY_ID:
            return int(_U16.unpack(nla.payload)[0])
    return None


def free_numbers(count: int) -> int:
    """The first of *count* numbers that no family of the kernel has, as high as possible.

    The kernel gives numbers from the lowest on, so these stay free. Raises OSError when it cannot
    be asked, or has no such numbers.
    """
    used = {number_of(message) for message in families()}
    for first in range(GENL_MAX_ID + 1 - count, GENL_START_ALLOC - 1, -1):
        if used.isdisjoint(range(first, first + count)):
            return first
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
