# SPDX-License-Identifier: MIT
"""Tables to the model: what a function has."""

from __future__ import annotations

import re
from typing import Final

from tsmfs.description.capability import (
    DOE_DISCOVERY,
    LINK_WIDTHS,
    Bar,
    BarKind,
    Doe,
    Ide,
    Link,
    LinkSpeed,
    Msix,
    Sriov,
)
from tsmfs.description.table import Table

_SERIAL: Final = re.compile(r"[0-9a-fA-F]{2}(-[0-9a-fA-F]{2}){7}")


def read_link(table: Table, default: Link | None) -> Link | None:
    """The table ``link`` of a function."""
    sub = table.table("link")
    if sub is None:
        return default
    link = Link(sub.one_of("speed", LinkSpeed.GT_2_5), sub.integer("width", 1, 1, 32))
    if link.width not in LINK_WIDTHS:
        widths = ", ".join(map(str, LINK_WIDTHS))
        sub.wrong("width", f"must be one of {widths}, not {link.width}")
    sub.finish()
    return link


def read_serial(table: Table) -> int | None:
    """The key ``serial`` of a function as a number, or None."""
    text = table.string("serial", "")
    if _SERIAL.fullmatch(text):
        return int(text.replace("-", ""), 16)
    if text:
        table.wrong("serial", 'must be eight bytes such as "52-54-00-ff-fe-12-34-56"')
    return None


def read_bars(table: Table) -> tuple[Bar, ...]:
    """The tables ``bar`` of a function, or of its VFs."""
    bars: list[Bar] = []
    for sub in table.tables("bar"):
        bars.append(
            Bar(
                sub.required_integer("index", 0, 5),
                sub.required_size("size"),
                sub.one_of("kind", BarKind.MEM32),
                sub.boolean("prefetch", False),
            )
        )
        sub.finish()
    return tuple(bars)


def read_msix(table: Table) -> Msix | None:
    """The table ``msix`` of a function, or of its VFs; the PBA follows the table by default."""
    sub = table.capability("msix")
    if sub is None:
        return None
    vectors = sub.integer("vectors", 1, 1, 2048)
    bar = sub.integer("bar", 0, 0, 5)
    table_offset = sub.integer("table_offset", 0, 0, 0xFFFFFFF8)
    behind = table_offset + 16 * vectors + 7 & ~7
    pba_offset = sub.integer("pba_offset", behind, 0, 0xFFFFFFF8)
    sub.finish()
    return Msix(vectors, bar, table_offset, pba_offset)


def read_doe(table: Table) -> Doe | None:
    """The table ``doe`` of a function, or None."""
    sub = table.capability("doe")
    if sub is None:
        return None
    protocols: list[tuple[int, int]] = []
    for index, value in enumerate(sub.array("protocols")):
        protocol = _protocol(value)
        reason = (
            "must be [vendor, type], of 16 and 8 bits"
            if protocol is None
            else "is discovery, which every mailbox has: leave it out"
            if protocol == DOE_DISCOVERY
            else "is listed before"
            if protocol in protocols
            else ""
        )
        if protocol is None or reason:
            sub.wrong(f"protocols[{index}]", reason)
        else:
            protocols.append(protocol)
    doe = Doe(tuple(protocols)) if "protocols" in sub else Doe()
    sub.finish()
    return doe


def _protocol(value: object) -> tuple[int, int] | None:
    match value:
        case [bool(), _] | [_, bool()]:
            return None
        case [int(vendor), int(kind)] if 0 <= vendor <= 0xFFFF and 0 <= kind <= 0xFF:
            return vendor, kind
    return None


def read_ide(table: Table) -> Ide | None:
    """The table ``ide`` of a function, or None."""
    sub = table.capability("ide")
    if sub is None:
        return None
    base = Ide()
    ide = Ide(
        # The ranges are those of the register fields: 3 bits, 8 bits and 4 bits.
        link_streams=sub.integer("link_streams", base.link_streams, 0, 8),
        selective_streams=sub.integer("selective_streams", base.selective_streams, 0, 256),
        address_associations=sub.integer("address_associations", base.address_associations, 0, 15),
        tee_limited=sub.boolean("tee_limited", base.tee_limited),
        ide_km=sub.boolean("ide_km", base.ide_km),
        selective_config=sub.boolean("selective_config", base.selective_config),
        flow_through=sub.boolean("flow_through", base.flow_through),
        partial_header_encryption=sub.boolean(
            "partial_header_encryption", base.partial_header_encryption
        ),
        aggregation=sub.boolean("aggregation", base.aggregation),
        pcrc=sub.boolean("pcrc", base.pcrc),
    )
    sub.finish()
    return ide


def read_sriov(table: Table, pf_device: int, pf_tee_io: bool) -> Sriov | None:
    """The table ``sriov`` of a function, or None; VFs are like their PF by default."""
    sub = table.capability("sriov")
    if sub is None:
        return None
    sriov = Sriov(
        total_vfs=sub.required_integer("total_vfs", 1, 0xFFFF),
        vf_device=sub.identifier("vf_device", pf_device, 0, 0xFFFF),
        first_vf_offset=sub.integer("first_vf_offset", 1, 1, 0xFFFF),
        vf_stride=sub.integer("vf_stride", 1, 1, 0xFFFF),
        tee_io=sub.boolean("tee_io", pf_tee_io),
        bars=read_bars(sub),
        msix=read_msix(sub),
    )
    sub.finish()
    return sriov
