#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reads all evidence of a device with pyroute2: evidence.py DEVICE DIR.

Each object goes to a file DIR/NAME.bin. Written for a kernel that has the family ``pci-tsm``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

EVIDENCE_READ = 1
NAMES = [*(f"cert{slot}" for slot in range(8)), "vca", "measurements", "report"]


class EvidenceMessage(genlmsg):  # type: ignore[misc]  # It has no annotations.
    """A request or reply of the family."""

    nla_map = (
        (1, "TYPE", "uint32"),
        (2, "TYPE_MASK", "uint32"),
        (3, "FLAGS", "uint32"),
        (4, "DEV_NAME", "asciiz"),
        (5, "NONCE", "cdata"),
        (6, "VAL", "cdata"),
    )


def read_evidence(device: str) -> dict[str, bytes]:
    """The objects of *device* by their names."""
    objects: dict[str, bytearray] = {}
    name = ""
    with GenericNetlinkSocket(ext_ack=True) as netlink:
        netlink.bind("pci-tsm", EvidenceMessage)
        request = EvidenceMessage()
        request["cmd"] = EVIDENCE_READ
        request["version"] = 1
        request["attrs"] = [("TYPE_MASK", (1 << len(NAMES)) - 1), ("DEV_NAME", device)]
        for reply in netlink.nlm_request(
            request, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
        ):
            if (kind := reply.get_attr("TYPE")) is not None:
                name = NAMES[kind]
            objects.setdefault(name, bytearray()).extend(reply.get_attr("VAL"))
    return {name: bytes(content) for name, content in objects.items()}


def main(device: str, directory: Path) -> None:
    """Read everything that *device* has into *directory*."""
    for name, content in read_evidence(device).items():
        (directory / f"{name}.bin").write_bytes(content)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(f"usage: {sys.argv[0]} DEVICE DIR", file=sys.stderr)
        sys.exit(2)
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except NetlinkError as error:
        print(f"{sys.argv[1]}: {error.args[1]} (errno {error.code})", file=sys.stderr)
        sys.exit(1)
