# SPDX-License-Identifier: MIT
"""What firmware does before a kernel starts: give every BAR and every bridge window its place."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tsmfs.kernel.resource import IORESOURCE_IO, IORESOURCE_MEM_64, IORESOURCE_PREFETCH
from tsmfs.pci import regs
from tsmfs.pci.bars import read_bases
from tsmfs.pci.capability import find_ext_capability
from tsmfs.pci.config import BridgeWindow, set_bar_address, set_bridge_window
from tsmfs.pci.hardware import HwBus, HwFunction


class Space(enum.Enum):
    """The three address spaces that bridges forward, with the granularity of their windows."""

    IO = BridgeWindow.IO
    MEMORY = BridgeWindow.MEMORY
    PREFETCHABLE = BridgeWindow.PREFETCHABLE

    @property
    def granularity(self) -> int:
        """Bytes that a bridge window of this space is aligned to."""
        return 0x1000 if self is Space.IO else 0x100000


@dataclass(slots=True)
class _Need:
    """Room that something needs, and how to tell it where it is."""

    size: int
    align: int
    place: Callable[[int], None]


@dataclass(slots=True)
class _Layout:
    """Needs of one bus in one space, packed: largest alignment first."""

    needs: list[_Need] = field(default_factory=list)

    def packed(self) -> Iterator[tuple[int, _Need]]:
        """Offset and need of each."""
        at = 0
        for need in sorted(self.needs, key=lambda n: -n.align):
            at = -(-at // need.align) * need.align
            yield at, need
            at += need.size

    def size(self) -> int:
        """Bytes from the first to the last."""
        return max((at + need.size for at, need in self.packed()), default=0)

    def align(self) -> int:
        """The alignment that the whole needs."""
        return max((need.align for need in self.needs), default=1)


def _space_of(flags: int, *, behind_bridge: bool) -> Space:
    if flags & IORESOURCE_IO:
        return Space.IO
    if flags & IORESOURCE_PREFETCH and flags & IORESOURCE_MEM_64:
        return Space.PREFETCHABLE
    # Directly on a root bus a 64-bit BAR may be high without being prefetchable.
    if flags & IORESOURCE_MEM_64 and not behind_bridge:
        return Space.PREFETCHABLE
    return Space.MEMORY


def _bar_needs(
    function: HwFunction, base: int, count: int, copies: int
) -> Iterator[tuple[int, _Need]]:
    """Flags and need of each BAR at *base*; *copies* of it follow one another."""
    for index, _, size, flags in read_bases(function.config, base, count):

        def place(address: int, index: int = index) -> None:
            _program(function, lambda: set_bar_address(function.config, index, address, base))

        yield flags, _Need(size * copies, size, place)


def _program(function: HwFunction, setting: Callable[[], None]) -> None:
    """Do *setting* now and after every power-on."""
    function.settings.append(setting)
    setting()


def _layouts(bus: HwBus, *, behind_bridge: bool) -> dict[Space, _Layout]:
    layouts = {space: _Layout() for space in Space}
    for _, function in sorted(bus.functions.items()):
        function.settings.clear()
        bars = [(regs.PCI_BASE_ADDRESS_0, 2 if function.secondary is not None else 6, 1)]
        sriov = (
            find_ext_capability(function.config, regs.PCI_EXT_CAP_ID_SRIOV)
            if function.virtual_functions is not None
            else 0
        )
        if sriov:
            total = function.config.read(sriov + regs.PCI_SRIOV_TOTAL_VF, 2)
            bars.append((sriov + regs.PCI_SRIOV_BAR, 6, total))
        for base, count, copies in bars:
            for flags, need in _bar_needs(function, base, count, copies):
                layouts[_space_of(flags, behind_bridge=behind_bridge)].needs.append(need)
        if function.secondary is not None:
            _bridge_needs(function, function.secondary, layouts)
    return layouts


def _bridge_needs(port: HwFunction, secondary: HwBus, layouts: Mapping[Space, _Layout]) -> None:
    _program(port, lambda: _enable_bridge(port))
    for space, below in _layouts(secondary, behind_bridge=True).items():
        if not below.needs:
            continue
        grain = space.granularity
        size = -(-below.size() // grain) * grain

        def place(
            base: int, space: Space = space, below: _Layout = below, size: int = size
        ) -> None:
            _program(
                port,
                lambda: set_bridge_window(port.config, space.value, base, base + size - 1),
            )
            for offset, need in below.packed():
                need.place(base + offset)

        layouts[space].needs.append(_Need(size, max(grain, below.align()), place))


def _enable_bridge(port: HwFunction) -> None:
    command = regs.PCI_COMMAND_IO | regs.PCI_COMMAND_MEMORY | regs.PCI_COMMAND_MASTER
    port.config.write(regs.PCI_COMMAND, 2, command)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a root bus needs in one space."""

    space: Space
    size: int
    align: int
    place: Callable[[int], None]
    """Give it its base address: every BAR and window below is programmed."""


def demands(root: HwBus) -> Sequence[Demand]:
    """What the hierarchy below *root* needs of each space it uses."""
    found = []
    for space, layout in _layouts(root, behind_bridge=False).items():
        if not layout.needs:
            continue

        def place(base: int, layout: _Layout = layout) -> None:
            for offset, need in layout.packed():
                need.place(base + offset)

        grain = space.granularity
        size = -(-layout.size() // grain) * grain
        found.append(Demand(space, size, max(grain, layout.align()), place))
    return found
