# SPDX-License-Identifier: MIT
"""nlctrl tells of the families what the kernel's tells, in the same bytes."""

from __future__ import annotations

import struct
from typing import cast

import pytest

from netlink.codec import AttributeCodec, Value
from netlink.evidence import serve_device_evidence, serve_pci_tsm
from netlink.genl import GenericNetlink
from netlink.nlctrl import SPEC, serve_nlctrl
from tests.netlink.devices import Provider
from tests.netlink.test_genl import Client
from tests.netlink.wire import (
    DUMP,
    FAMILY_ID,
    FAMILY_NAME,
    GENERIC,
    GETFAMILY,
    GETPOLICY,
    MULTI,
    NEWFAMILY,
    NLCTRL,
    NLMSG_DONE,
    OP,
    REQUEST,
    Message,
    NetlinkConnection,
    attribute,
    do,
    genl,
    message,
    u32,
)


@pytest.fixture
def client() -> Client:
    registry = GenericNetlink()
    serve_nlctrl(registry)
    serve_pci_tsm(registry, Provider())
    serve_device_evidence(registry, Provider())
    return Client(registry, admin=False)


def family(name: str) -> bytes:
    return attribute(FAMILY_NAME, name.encode() + b"\0")


def decode(answer: Message) -> dict[str, Value]:
    ctrl = SPEC.attribute_sets["ctrl-attrs"]
    return AttributeCodec(SPEC).decode(ctrl, answer.payload[4:])


def test_family_is_found_by_name_and_by_number(client: Client) -> None:
    (by_name,) = client.ask(message(NLCTRL, REQUEST, genl(GETFAMILY, family("pci-tsm"))))
    shown = decode(by_name)
    assert by_name.payload[:4] == bytes([NEWFAMILY, 2, 0, 0])
    assert shown == {
        "family-name": "pci-tsm",
        "family-id": 19,
        "version": 1,
        "hdrsize": 0,
        "maxattr": 0,
        # admin-perm, dump, has-policy
        "ops": [{"id": 1, "flags": 0x01 | 0x04 | 0x08}],
    }
    number = attribute(FAMILY_ID, struct.pack("=H", 19))
    (by_number,) = client.ask(message(NLCTRL, REQUEST, genl(GETFAMILY, number)))
    assert by_number == by_name


def test_flags_tell_do_from_dump(client: Client) -> None:
    (answer,) = client.ask(message(NLCTRL, REQUEST, genl(GETFAMILY, family("device-evidence"))))
    assert decode(answer)["ops"] == [{"id": 1, "flags": 0x0D}, {"id": 2, "flags": 0x0B}]


def test_dump_has_all_families(client: Client) -> None:
    *families, done = client.ask(message(NLCTRL, REQUEST | DUMP, genl(GETFAMILY)))
    names = [decode(one)["family-name"] for one in families]
    assert names == ["nlctrl", "pci-tsm", "device-evidence"]
    assert {one.flags for one in families} == {MULTI}
    assert (done.type, done.error) == (NLMSG_DONE, 0)


def kernel(request: bytes) -> list[Message]:
    connection = NetlinkConnection(GENERIC)
    try:
        return do(connection, request)
    finally:
        connection.close()


def test_nlctrl_describes_itself_as_the_kernels_does(client: Client) -> None:
    request = message(NLCTRL, REQUEST, genl(GETFAMILY, family("nlctrl")))
    (expected,), (got,) = kernel(request), client.ask(request)
    groups = {"mcast-groups": [{"id": NLCTRL, "name": "notify"}]}
    assert decode(expected) == decode(got) | groups
    # The groups come last, and there are none here.
    assert expected.payload.startswith(got.payload)


def test_policies_of_nlctrl_are_those_of_the_kernels(client: Client) -> None:
    request = message(NLCTRL, REQUEST | DUMP, genl(GETPOLICY, family("nlctrl")))
    expected, got = kernel(request), client.ask(request)
    assert [one.payload for one in policies(got)] == [one.payload for one in policies(expected)]
    assert policies(got) != []
    assert [op_policy(one) for one in got if "op-policy" in decoded(one)] == [
        {"op-id": GETFAMILY, "do": 0, "dump": 0},
        {"op-id": GETPOLICY, "dump": 1},
    ]


def policies(answers: list[Message]) -> list[Message]:
    return [one for one in answers if "policy" in decoded(one)]


def decoded(answer: Message) -> dict[str, Value]:
    return decode(answer) if answer.type == NLCTRL else {}


def op_policy(answer: Message) -> Value:
    shown = decode(answer)["op-policy"]
    assert isinstance(shown, list)
    (one,) = shown
    return cast(Value, one)


def test_policy_of_an_operation_is_what_its_requests_are_judged_by(client: Client) -> None:
    wanted = genl(GETPOLICY, family("pci-tsm"), attribute(OP, u32(1)))
    first, *rest, done = client.ask(message(NLCTRL, REQUEST | DUMP, wanted))
    assert op_policy(first) == {"op-id": 1, "dump": 0}
    assert [decode(one)["policy"] for one in rest] == [
        [{"policy-id": 0, "attr-id": 2, "min-value-u": 0, "max-value-u": 2**32 - 1, "type": 4}],
        [{"policy-id": 0, "attr-id": 3, "min-value-u": 0, "max-value-u": 2**32 - 1, "type": 4}],
        [{"policy-id": 0, "attr-id": 4, "type": 12}],
        [{"policy-id": 0, "attr-id": 5, "type": 10}],
    ]
    assert (done.type, done.error) == (NLMSG_DONE, 0)


def test_each_operation_has_its_own_policy(client: Client) -> None:
    answers = client.ask(
        message(NLCTRL, REQUEST | DUMP, genl(GETPOLICY, family("device-evidence")))
    )
    assert [op_policy(one) for one in answers[:2]] == [
        {"op-id": 1, "dump": 0},
        {"op-id": 2, "do": 1},
    ]
