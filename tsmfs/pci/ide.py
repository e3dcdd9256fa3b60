# SPDX-License-Identifier: MIT
"""Integrity & Data Encryption streams (drivers/pci/ide.c; PCIe 7.0, 6.33).

A library of steps for a TSM driver's connect: allocate, register, set up, enable; each has its
undoing, and :func:`pci_ide_stream_release` undoes what was done in reverse order.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsmfs.base.kobject import Attribute, AttributeGroup
from tsmfs.kernel.errors import fail
from tsmfs.kernel.fault import Point
from tsmfs.kernel.resource import Resource
from tsmfs.pci import regs
from tsmfs.pci.capability import find_ext_capability
from tsmfs.pci.regs import PciExpType, field_get, field_prep

if TYPE_CHECKING:
    from tsmfs.pci.host_bridge import PciHostBridge
    from tsmfs.pci.pci_dev import Ida, PciDev

PCI_IDE_STREAM_ID_RESERVED = 255
"""Stream ID that marks an unused register block; never given to a stream."""


@dataclass(slots=True)
class PciIdePartner:
    """Settings of one end of a stream (``struct pci_ide_partner``)."""

    rid_start: int
    rid_end: int
    """First and last requester ID that the stream covers."""
    stream_index: int
    """Selective stream register block in this port."""
    addresses: Sequence[Resource] = ()
    """Memory ranges of the other end, for the address association blocks."""
    setup: bool = False
    enable: bool = False


@dataclass(slots=True, eq=False)
class PciIde:
    """A selective stream between an endpoint and its root port (``struct pci_ide``)."""

    pdev: PciDev
    root_port: PciDev
    endpoint_partner: PciIdePartner
    root_port_partner: PciIdePartner
    host_bridge_stream: int
    """Index in the pool of the host bridge."""
    stream_id: int = -1
    """ID on the wire, 0 to 254; the TSM driver sets it before registering."""
    name: str | None = None
    """``streamH.R.E`` while registered."""

    def partner(self, port: PciDev) -> PciIdePartner:
        """Settings of *port*; EINVAL when it is neither end (``pci_ide_to_settings()``)."""
        if port is self.pdev:
            return self.endpoint_partner
        if port is self.root_port:
            return self.root_port_partner
        fail(errno.EINVAL, f"{port.name} is no end of the stream of {self.pdev.name}")


def pci_ide_init(pdev: PciDev) -> None:
    """Read a new function's IDE capability (``pci_ide_init()``).

    One without selective streams, or an endpoint below a root port without IDE, counts as none.
    """
    if not pdev.is_pcie or pdev.is_virtfn:
        return
    pos = find_ext_capability(pdev.config, regs.PCI_EXT_CAP_ID_IDE)
    if not pos:
        return
    cap = pdev.config.read(pos + regs.PCI_IDE_CAP, 4)
    if not cap & regs.PCI_IDE_CAP_SELECTIVE:
        return
    if pdev.pcie_type is PciExpType.ENDPOINT:
        root_port = pdev.root_port
        if root_port is None or not root_port.ide_cap:
            return
    pdev.nr_link_ide = (
        1 + field_get(regs.PCI_IDE_CAP_LINK_TC_NUM, cap) if cap & regs.PCI_IDE_CAP_LINK else 0
    )
    nr_streams = 1 + field_get(regs.PCI_IDE_CAP_SEL_NUM, cap)
    for index in range(nr_streams):
        block = _sel_ide_offset(pos, pdev.nr_link_ide, index, pdev.nr_ide_mem)
        sel_cap = pdev.config.read(block + regs.PCI_IDE_SEL_CAP, 4)
        nr_assoc = field_get(regs.PCI_IDE_SEL_CAP_ASSOC_NUM, sel_cap)
        if index and nr_assoc != pdev.nr_ide_mem:
            pdev.info(f"PCI/IDE: Unsupported Selective Stream {index} capability, SKIP the rest")
            nr_streams = index
            break
        pdev.nr_ide_mem = nr_assoc
    pdev.ide_cap = pos
    pdev.ide_cfg = bool(cap & regs.PCI_IDE_CAP_SEL_CFG)
    pdev.ide_tee_limit = bool(cap & regs.PCI_IDE_CAP_TEE_LIMITED)
    pdev.nr_sel_ide = nr_streams


def _sel_ide_offset(ide_cap: int, nr_link_ide: int, stream_index: int, nr_ide_mem: int) -> int:
    return (
        ide_cap
        + regs.PCI_IDE_LINK_STREAM_0
        + nr_link_ide * regs.PCI_IDE_LINK_BLOCK_SIZE
        + stream_index * regs.PCI_IDE_SEL_BLOCK_SIZE(nr_ide_mem)
    )


def _block(port: PciDev, settings: PciIdePartner) -> int:
    return _sel_ide_offset(port.ide_cap, port.nr_link_ide, settings.stream_index, port.nr_ide_mem)


def pci_ide_stream_alloc(pdev: PciDev) -> PciIde | None:
    """Reserve an index in host bridge, root port and endpoint; None when one of them is full."""
    root_port = pdev.root_port
    if pdev.pcie_type is not PciExpType.ENDPOINT or not pdev.ide_cap or root_port is None:
        return None
    bridge = pdev.host_bridge
    pools: list[tuple[Ida, int]] = [
        (bridge.ide_stream_ida, bridge.nr_ide_streams),
        (root_port.ide_stream_ida, root_port.nr_sel_ide),
        (pdev.ide_stream_ida, pdev.nr_sel_ide),
    ]
    indices: list[int] = []
    for pool, limit in pools:
        index = pool.alloc(limit)
        if index is None:
            for (taken, _), number in zip(pools, indices, strict=False):
                taken.free(number)
            return None
        indices.append(index)
    last = pdev.devid
    if pdev.sriov is not None and pdev.sriov.num_vfs:
        last = pdev.devid + pdev.sriov.rid_offset(pdev.sriov.num_vfs - 1)
    return PciIde(
        pdev=pdev,
        root_port=root_port,
        endpoint_partner=PciIdePartner(root_port.devid, root_port.devid, indices[2]),
        root_port_partner=PciIdePartner(
            pdev.devid, last, indices[1], addresses=_bridge_memory(pdev)
        ),
        host_bridge_stream=indices[0],
    )


def _bridge_memory(pdev: PciDev) -> list[Resource]:
    upstream = pdev.bus.self_dev
    windows = upstream.resource[14:16] if upstream is not None else []
    return [w for w in windows if w is not None]


def pci_ide_stream_free(ide: PciIde) -> None:
    """Give the three indices back."""
    ide.pdev.ide_stream_ida.free(ide.endpoint_partner.stream_index)
    ide.root_port.ide_stream_ida.free(ide.root_port_partner.stream_index)
    ide.pdev.host_bridge.ide_stream_ida.free(ide.host_bridge_stream)


def pci_ide_stream_register(ide: PciIde) -> None:
    """Show the stream at its host bridge; its Stream ID is in use from now on.

    ENXIO for an ID out of range, EBUSY for one in use in this bridge.
    """
    bridge = ide.pdev.host_bridge
    if not 0 <= ide.stream_id <= PCI_IDE_STREAM_ID_RESERVED:
        ide.pdev.err(f"PCI/IDE: Setup fail: Invalid Stream ID: {ide.stream_id}")
        fail(errno.ENXIO)
    if not bridge.ide_stream_ids.reserve(ide.stream_id):
        ide.pdev.err(f"PCI/IDE: Setup fail: Stream ID {ide.stream_id} in use")
        fail(errno.EBUSY)
    name = (
        f"stream{ide.host_bridge_stream}"
        f".{ide.root_port_partner.stream_index}.{ide.endpoint_partner.stream_index}"
    )
    try:
        bridge.create_link(ide.pdev, name)
    except BaseException:
        bridge.ide_stream_ids.free(ide.stream_id)
        raise
    ide.name = name


def pci_ide_stream_unregister(ide: PciIde) -> None:
    """Undo :func:`pci_ide_stream_register`."""
    bridge = ide.pdev.host_bridge
    if ide.name is not None:
        bridge.remove_link(ide.name)
        bridge.ide_stream_ids.free(ide.stream_id)
        ide.name = None


def _set_sel_ctl(port: PciDev, ide: PciIde, block: int, *, enable: bool) -> None:
    value = (
        field_prep(regs.PCI_IDE_SEL_CTL_ID, ide.stream_id)
        | field_prep(regs.PCI_IDE_SEL_CTL_CFG_EN, port.ide_cfg)
        | field_prep(regs.PCI_IDE_SEL_CTL_TEE_LIMITED, port.ide_tee_limit)
        | field_prep(regs.PCI_IDE_SEL_CTL_EN, enable)
    )
    port.config.write(block + regs.PCI_IDE_SEL_CTL, 4, value)


def _address_blocks(port: PciDev, settings: PciIdePartner) -> list[tuple[int, int, int]]:
    """The three dwords of each address association block (PCIe 7.0, 7.9.26.5.4)."""
    blocks = []
    for window in list(settings.addresses)[: port.nr_ide_mem]:
        base, limit = window.start >> 20, window.end >> 20
        blocks.append(
            (
                field_prep(regs.PCI_IDE_SEL_ADDR_1_VALID, 1)
                | field_prep(regs.PCI_IDE_SEL_ADDR_1_BASE_LOW, base & 0xFFF)
                | field_prep(regs.PCI_IDE_SEL_ADDR_1_LIMIT_LOW, limit & 0xFFF),
                limit >> 12,
                base >> 12,
            )
        )
    return blocks


def pci_ide_stream_setup(port: PciDev, ide: PciIde) -> None:
    """Write the stream's settings to the registers of *port*, not yet enabled."""
    settings = ide.partner(port)
    block = _block(port, settings)
    port.config.write(
        block + regs.PCI_IDE_SEL_RID_1,
        4,
        field_prep(regs.PCI_IDE_SEL_RID_1_LIMIT, settings.rid_end),
    )
    # The segment number counts only in flit mode, which no emulated link is in.
    port.config.write(
        block + regs.PCI_IDE_SEL_RID_2,
        4,
        field_prep(regs.PCI_IDE_SEL_RID_2_VALID, 1)
        | field_prep(regs.PCI_IDE_SEL_RID_2_BASE, settings.rid_start),
    )
    for number, (low, limit_high, base_high) in enumerate(_address_blocks(port, settings)):
        port.config.write(block + regs.PCI_IDE_SEL_ADDR_2(number), 4, limit_high)
        port.config.write(block + regs.PCI_IDE_SEL_ADDR_3(number), 4, base_high)
        port.config.write(block + regs.PCI_IDE_SEL_ADDR_1(number), 4, low)
    _set_sel_ctl(port, ide, block, enable=False)
    settings.setup = True


def pci_ide_stream_teardown(port: PciDev, ide: PciIde) -> None:
    """Disable the stream in *port* and clear every register that setup wrote."""
    settings = ide.partner(port)
    block = _block(port, settings)
    port.config.write(block + regs.PCI_IDE_SEL_CTL, 4, 0)
    for number in range(len(_address_blocks(port, settings))):
        for register in (
            regs.PCI_IDE_SEL_ADDR_1,
            regs.PCI_IDE_SEL_ADDR_2,
            regs.PCI_IDE_SEL_ADDR_3,
        ):
            port.config.write(block + register(number), 4, 0)
    port.config.write(block + regs.PCI_IDE_SEL_RID_2, 4, 0)
    port.config.write(block + regs.PCI_IDE_SEL_RID_1, 4, 0)
    settings.setup = False


def pci_ide_stream_enable(port: PciDev, ide: PciIde) -> None:
    """Enable the stream in *port*; ENXIO when it does not become secure."""
    settings = ide.partner(port)
    block = _block(port, settings)
    settings.enable = True
    port.core.faults.inject(Point.IDE_STREAM_ENABLE, port.name)
    _set_sel_ctl(port, ide, block, enable=True)
    status = port.config.read(block + regs.PCI_IDE_SEL_STS, 4)
    if field_get(regs.PCI_IDE_SEL_STS_STATE, status) != regs.PCI_IDE_SEL_STS_STATE_SECURE:
        fail(errno.ENXIO, f"{port.name}: stream {ide.name} is not secure")


def pci_ide_stream_disable(port: PciDev, ide: PciIde) -> None:
    """Disable the stream in *port* and leave its other settings."""
    settings = ide.partner(port)
    port.config.write(_block(port, settings) + regs.PCI_IDE_SEL_CTL, 4, 0)
    settings.enable = False


def pci_ide_stream_release(ide: PciIde) -> None:
    """Undo all that was done for the stream, in reverse order."""
    for port in (ide.root_port, ide.pdev):
        if ide.partner(port).enable:
            pci_ide_stream_disable(port, ide)
    for port in (ide.root_port, ide.pdev):
        if ide.partner(port).setup:
            pci_ide_stream_teardown(port, ide)
    pci_ide_stream_unregister(ide)
    pci_ide_stream_free(ide)


def _available(bridge: PciHostBridge) -> str:
    return f"{bridge.nr_ide_streams - len(bridge.ide_stream_ida)}\n"


IDE_HOST_BRIDGE_GROUP = AttributeGroup(
    [Attribute("available_secure_streams", 0o444, _available)],
    is_visible=lambda bridge, attr: attr.mode if bridge.nr_ide_streams else 0,
)
