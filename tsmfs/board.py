# SPDX-License-Identifier: MIT
"""From a machine description to hardware: functions with registers, on buses, at addresses."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tsmfs import description
from tsmfs.description import BarKind, Function, HostBridge, Kind
from tsmfs.kernel.errors import fail
from tsmfs.kernel.resource import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    Resource,
)
from tsmfs.pci import regs
from tsmfs.pci.capability import (
    AccessControl,
    Aer,
    Ari,
    Capability,
    DeviceSerialNumber,
    Doe,
    Ide,
    Msi,
    Msix,
    PcieCap,
    PowerManagement,
    Sriov,
    add_capabilities,
)
from tsmfs.pci.config import Bar, ConfigSpace, Header0, Header1, HeaderVf
from tsmfs.pci.doe import DoeMailbox, Feature, Handler
from tsmfs.pci.firmware import Space, demands
from tsmfs.pci.hardware import HwBus, HwFunction, pci_name
from tsmfs.pci.regs import PciBusSpeed, PciExpType

_C = TypeVar("_C", bound=Capability)

_PORT_TYPES = {
    Kind.ROOT_PORT: PciExpType.ROOT_PORT,
    Kind.UPSTREAM_PORT: PciExpType.UPSTREAM,
    Kind.DOWNSTREAM_PORT: PciExpType.DOWNSTREAM,
    Kind.ENDPOINT: PciExpType.ENDPOINT,
    Kind.RC_ENDPOINT: PciExpType.RC_END,
}


def header_bar(bar: description.Bar) -> Bar:
    """A BAR as the header has it."""
    return Bar(bar.index, bar.size, bar.kind is BarKind.MEM64, bar.prefetch, bar.kind is BarKind.IO)


def _msix(msix: description.Msix) -> Msix:
    return Msix(msix.vectors, msix.bar, msix.table_offset, msix.bar, msix.pba_offset)


def _no_responder(payload: bytes) -> bytes:
    """A device without an SPDM responder answers CMA requests with a DOE error."""
    fail(errno.EIO, "no SPDM responder")


def placeholders(protocols: Sequence[Feature]) -> dict[Feature, Handler]:
    """Handlers of *protocols* that serve none of them."""
    return dict.fromkeys(protocols, _no_responder)


def placeholder_mailbox(protocols: Sequence[Feature]) -> DoeMailbox:
    """A mailbox that discovery finds *protocols* in, none of which it serves."""
    return DoeMailbox(placeholders(protocols))


def _pcie_cap(function: Function, link_up: bool) -> PcieCap:
    speed = PciBusSpeed(function.link.speed.code) if function.link else None
    width = function.link.width if function.link else 0
    is_port = function.kind.is_port
    return PcieCap(
        port_type=_PORT_TYPES[function.kind],
        flr=function.flr,
        tee_io=function.tee_io,
        max_link_speed=speed or PciBusSpeed.PCIE_SPEED_2_5GT,
        max_link_width=width,
        link_width=None if link_up else 0,
        ari_forwarding=is_port and function.ari,
    )


def _capabilities(function: Function) -> list[Capability]:
    caps: list[Capability] = []
    if function.pm:
        caps.append(PowerManagement())
    if function.msi:
        caps.append(Msi(function.msi))
    if function.msix is not None:
        caps.append(_msix(function.msix))
    if function.kind.is_pcie:
        link_up = not function.kind.is_port or bool(function.children)
        caps.append(_pcie_cap(function, link_up))
    if function.aer:
        caps.append(Aer(root=function.kind is Kind.ROOT_PORT))
    if function.serial is not None:
        caps.append(DeviceSerialNumber(function.serial))
    if function.ari and not function.kind.is_port:
        caps.append(Ari())
    if function.acs:
        caps.append(AccessControl())
    if function.sriov is not None:
        sriov = function.sriov
        caps.append(
            Sriov(
                sriov.total_vfs,
                first_vf_offset=sriov.first_vf_offset,
                vf_stride=sriov.vf_stride,
                vf_device_id=sriov.vf_device,
                bars=[header_bar(b) for b in sriov.bars],
                function_link=function.function,
            )
        )
    if function.doe is not None:
        caps.append(Doe())
    if function.ide is not None:
        ide = function.ide
        caps.append(
            Ide(
                ide.link_streams,
                ide.selective_streams,
                ide.address_associations,
                ide_km=ide.ide_km,
                tee_limited=ide.tee_limited,
                selective_config=ide.selective_config,
                flow_through=ide.flow_through,
                partial_header_encryption=ide.partial_header_encryption,
                aggregation=ide.aggregation,
                pcrc=ide.pcrc,
            )
        )
    return caps


def _virtual_function(function: Function, index: int) -> HwFunction:
    sriov = function.sriov
    assert sriov is not None
    config = ConfigSpace()
    HeaderVf(
        function.revision,
        function.class_code,
        function.subsystem_vendor,
        function.subsystem_device,
    ).write(config)
    caps: list[Capability] = [PcieCap(flr=True, tee_io=sriov.tee_io)]
    if sriov.msix is not None:
        caps.append(_msix(sriov.msix))
    if function.ari:
        caps.append(Ari())
    add_capabilities(config, caps)
    return HwFunction(sriov.routing_ids(function.devfn)[index] & 0xFF, config)


@dataclass(slots=True)
class BuiltFunction:
    """A function that was built, with what was built below it."""

    function: Function
    hw: HwFunction
    domain: int
    bus: int
    capabilities: Sequence[tuple[Capability, int]]
    """Each with its position."""
    children: Sequence[BuiltFunction]

    @property
    def rid(self) -> int:
        """Routing ID: bus, device and function number."""
        return self.bus << 8 | self.function.devfn

    @property
    def name(self) -> str:
        """``DDDD:BB:DD.F``."""
        return pci_name(self.domain, self.bus, self.function.devfn)

    def capability(self, kind: type[_C]) -> tuple[_C, int] | None:
        """Its capability of that kind, and where it is."""
        for capability, position in self.capabilities:
            if isinstance(capability, kind):
                return capability, position
        return None


AddKeys = Callable[[Sequence[BuiltFunction]], None]
"""Gives the devices on a root bus, and those below, what they have of keys."""


def without_keys(built: Sequence[BuiltFunction]) -> None:
    """No device gets keys: the mailboxes of those that have some do not answer."""


class _Builder:
    """Builds the functions below one host bridge."""

    def __init__(self, bridge: HostBridge) -> None:
        self._domain = bridge.domain
        self._buses = description.assign_buses(bridge)

    def bus(
        self, functions: Sequence[Function], path: tuple[int, ...]
    ) -> tuple[HwBus, list[BuiltFunction]]:
        """The bus behind the port at *path*, with all below it."""
        bus = HwBus(self._buses[path].secondary)
        multifunction = {f.slot for f in functions if sum(g.slot == f.slot for g in functions) > 1}
        built = [
            self._function(function, path, bus.number, function.slot in multifunction)
            for function in functions
        ]
        for each in built:
            bus.add(each.hw)
        return bus, built

    def _function(
        self, function: Function, path: tuple[int, ...], primary: int, multifunction: bool
    ) -> BuiltFunction:
        config = ConfigSpace(
            regs.PCI_CFG_SPACE_EXP_SIZE if function.kind.is_pcie else regs.PCI_CFG_SPACE_SIZE
        )
        bars = [header_bar(b) for b in function.bars]
        secondary: HwBus | None = None
        children: list[BuiltFunction] = []
        if function.kind.is_port:
            below = (*path, function.devfn)
            secondary, children = self.bus(function.children, below)
            Header1(
                function.vendor,
                function.device,
                function.revision,
                function.class_code,
                bars,
                multifunction,
                primary=primary,
                secondary=secondary.number,
                subordinate=self._buses[below].subordinate,
            ).write(config)
        else:
            Header0(
                function.vendor,
                function.device,
                function.revision,
                function.class_code,
                function.subsystem_vendor,
                function.subsystem_device,
                bars,
                multifunction,
            ).write(config)
        caps = _capabilities(function)
        positions = add_capabilities(config, caps)
        placed = list(zip(caps, positions, strict=True))
        for cap, pos in placed:
            # The mailbox of a function with keys comes with them.
            if isinstance(cap, Doe) and function.doe is not None and function.cma is None:
                placeholder_mailbox(function.doe.protocols).attach(config, pos)
        hw = HwFunction(
            function.devfn,
            config,
            secondary,
            function.plugged,
            virtual_functions=(
                partial(_virtual_function, function) if function.sriov is not None else None
            ),
        )
        return BuiltFunction(function, hw, self._domain, primary, placed, children)


_WINDOW_FLAGS = {
    Space.IO: IORESOURCE_IO,
    Space.MEMORY: IORESOURCE_MEM,
    Space.PREFETCHABLE: IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_MEM_64,
}
_WINDOW_RANGE = {
    Space.IO: (0x1000, 0xFFFF),
    Space.MEMORY: (0x80000000, 0xFEBFFFFF),
    Space.PREFETCHABLE: (0x40_0000_0000, (1 << 52) - 1),
}


def build_host_bridge(
    bridge: HostBridge, iomem: Resource, ioport: Resource, add_keys: AddKeys = without_keys
) -> tuple[HwBus, list[Resource]]:
    """The root bus of *bridge* with all hardware below, and the windows it decodes.

    *add_keys* gives keys to the devices that have any. ENOSPC when the machine's address space
    has no room for its BARs, or a window that the description sets is too small for them; and
    what *add_keys* raises.
    """
    root, built = _Builder(bridge).bus(bridge.functions, ())
    add_keys(built)
    wanted = {
        Space.IO: bridge.io_window,
        Space.MEMORY: bridge.mem32_window,
        Space.PREFETCHABLE: bridge.mem64_window,
    }
    needs = {demand.space: demand for demand in demands(root)}
    windows = []
    name = f"PCI Bus {bridge.domain:04x}:{bridge.bus:02x}"
    for space in Space:
        need = needs.get(space)
        size = wanted[space] or (need.size if need else 0)
        if need is not None and size < need.size:
            fail(
                errno.ENOSPC,
                f"{name}: {need.size:#x} bytes of {space.value.value} do not fit its window",
            )
        if not size:
            continue
        low, high = _WINDOW_RANGE[space]
        tree = ioport if space is Space.IO else iomem
        align = max(need.align if need else 1, space.granularity)
        try:
            window = tree.allocate(size, align, low, high, name, _WINDOW_FLAGS[space])
        except OSError:
            fail(errno.ENOSPC, f"{name}: no room for a {space.value.value} window of {size:#x}")
        if need is not None:
            need.place(window.start)
        windows.append(window)
    return root, windows
