# SPDX-License-Identifier: MIT
"""Plain pyroute2 messages over NETLINK_USERSOCK: its classes read what the server sends."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, ctrlmsg, genlmsg, nlmsgerr

from tests.netlink.conftest import Served
from tests.netlink.devices import BDF
from tests.netlink.wire import NLCTRL, NLMSG_DONE, NLMSG_ERROR, NetlinkConnection, split


class evidencemsg(genlmsg):  # type: ignore[misc]  # noqa: N801 - named as pyroute2 names these
    """Messages of ``pci-tsm``, as a user of pyroute2 declares them."""

    prefix = "EVIDENCE_"
    nla_map = (
        ("EVIDENCE_UNSPEC", "none"),
        ("EVIDENCE_TYPE", "uint32"),
        ("EVIDENCE_TYPE_MASK", "uint32"),
        ("EVIDENCE_FLAGS", "uint32"),
        ("EVIDENCE_DEV_NAME", "asciiz"),
        ("EVIDENCE_NONCE", "cdata"),
        ("EVIDENCE_VAL", "cdata"),
    )


@pytest.fixture
def connection(served: Served) -> NetlinkConnection:
    return NetlinkConnection(socket.NETLINK_USERSOCK, served.port)


def send(connection: NetlinkConnection, request: Any, kind: int, flags: int) -> None:
    request["header"]["type"] = kind
    request["header"]["flags"] = flags
    request["header"]["sequence_number"] = 7
    request.encode()
    connection.send(bytes(request.data))


def decode(kind: type[Any], data: bytes) -> Any:
    message = kind(data)
    message.decode()
    return message


def lookup(connection: NetlinkConnection, name: str) -> Any:
    request = ctrlmsg()
    request["cmd"], request["version"] = 3, 1
    request["attrs"] = [("CTRL_ATTR_FAMILY_NAME", name)]
    send(connection, request, NLCTRL, NLM_F_REQUEST)
    return decode(ctrlmsg, connection.recv())


def test_family_and_evidence_are_read(connection: NetlinkConnection, served: Served) -> None:
    served.device.objects = {0: bytes(range(256)) * 40, 2: b"odd"}
    family = lookup(connection, "pci-tsm")
    assert family.get_attr("CTRL_ATTR_FAMILY_NAME") == "pci-tsm"
    (op,) = family.get_attr("CTRL_ATTR_OPS")
    assert (op.get_attr("CTRL_ATTR_OP_ID"), op.get_attr("CTRL_ATTR_OP_FLAGS")) == (1, 0x0D)

    request = evidencemsg()
    request["cmd"], request["version"] = 1, 1
    request["attrs"] = [("EVIDENCE_TYPE_MASK", 5), ("EVIDENCE_DEV_NAME", BDF)]
    number = family.get_attr("CTRL_ATTR_FAMILY_ID")
    send(connection, request, number, NLM_F_REQUEST | NLM_F_DUMP)

    objects: dict[int, bytes] = {}
    current = -1
    while True:
        datagram = connection.recv()
        first, *rest = split(datagram)
        message = decode(evidencemsg, datagram)
        kind = message.get_attr("EVIDENCE_TYPE")
        current = current if kind is None else kind
        objects[current] = objects.get(current, b"") + message.get_attr("EVIDENCE_VAL")
        if rest:
            assert rest[0].type == NLMSG_DONE
            break
    assert objects == served.device.objects
    assert first.type == number
    connection.close()


def test_refusal_is_read_with_its_message(connection: NetlinkConnection) -> None:
    number = lookup(connection, "pci-tsm").get_attr("CTRL_ATTR_FAMILY_ID")
    request = evidencemsg()
    request["cmd"], request["version"] = 1, 1
    send(connection, request, number, NLM_F_REQUEST | NLM_F_DUMP)
    refused = decode(nlmsgerr, connection.recv())
    assert refused["header"]["type"] == NLMSG_ERROR
    assert -refused["error"] == errno.EINVAL
    connection.close()
