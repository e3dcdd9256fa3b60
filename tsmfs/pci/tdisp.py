# SPDX-License-Identifier: MIT
"""TEE device interfaces of real functions: reports from their BARs, and what ends a lock.

PCI Express Base Specification 7.0, 11. An `Interface` of `tsmfs.spdm.interface` is the state
machine; here are the registers that it depends on (11.4.9).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tsmfs.pci import regs
from tsmfs.pci.capability import find_capability
from tsmfs.pci.config import Bar, ConfigSpace, bar_address
from tsmfs.pci.ide_km import IdePort
from tsmfs.pci.regs import field_get
from tsmfs.spdm.interface import Interface, StateChange
from tsmfs.spdm.tdisp import (
    PAGE_SHIFT,
    InterfaceInfo,
    LockFlags,
    LockParameters,
    MmioRange,
    RangeAttributes,
    Report,
    TdispError,
    TdispErrorCode,
)

PAGE_SIZE = 1 << PAGE_SHIFT

ReportFilter = Callable[[Report], Report]
"""Gets the report of an interface, returns the one to present."""

_MSIX_ENTRY = 16
_PBA_BITS = 64
_PROTECTED_COMMAND = regs.PCI_COMMAND_MEMORY | regs.PCI_COMMAND_MASTER


def honest(report: Report) -> Report:
    """*report*: the `ReportFilter` of an honest device."""
    return report


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """A memory BAR, or the part of a VF BAR that is one VF's."""

    index: int
    size: int
    address: Callable[[], int]


def memory_bars(config: ConfigSpace, bars: Sequence[Bar]) -> list[MemoryBar]:
    """The memory BARs among *bars* of a function with a header of type 0 or 1."""
    return [
        MemoryBar(bar.index, bar.size, partial(bar_address, config, bar.index))
        for bar in sorted(bars, key=lambda bar: bar.index)
        if not bar.is_io
    ]


def vf_memory_bars(pf: ConfigSpace, sriov: int, bars: Sequence[Bar], vf: int) -> list[MemoryBar]:
    """Those of virtual function number *vf*, from the SR-IOV capability at *sriov* of its PF."""

    def address(bar: Bar) -> int:
        base = bar_address(pf, bar.index, sriov + regs.PCI_SRIOV_BAR)
        return base + vf * bar.size if base else 0

    return [
        MemoryBar(bar.index, bar.size, partial(address, bar))
        for bar in sorted(bars, key=lambda bar: bar.index)
    ]


class Tdi:
    """The TEE device interface that one function is.

    It leaves CONFIG_LOCKED and RUN for ERROR when software clears Memory Space Enable or Bus
    Master Enable, changes a BAR, a locked MSI-X control or the power state, resets the function,
    and when the IDE stream that it was locked with is lost. A device whose streams are all
    insecure may be locked without one: its link is then for the platform to vouch for.
    """

    __slots__ = ("_bars", "_config", "_filter", "_keyed", "_msix", "_port", "_stream", "interface")

    def __init__(
        self,
        function_id: int,
        config: ConfigSpace,
        bars: Sequence[MemoryBar],
        *,
        port: IdePort | None = None,
        keyed: Callable[[int, int], bool] | None = None,
        report_filter: Callable[[], ReportFilter] = lambda: honest,
        on_change: StateChange | None = None,
    ) -> None:
        """Watch *config* from now on.

        *port* is where the device's streams are, *keyed* tells whether a stream has keys of a
        session (by both IDs). *on_change* is told of the interface's states, perhaps with the lock
        of *config* held.
        """
        self._config = config
        self._bars = bars
        self._port = port
        self._keyed = keyed
        self._filter = report_filter
        self._msix = find_capability(config, regs.PCI_CAP_ID_MSIX)
        self._stream: int | None = None
        self.interface = Interface(function_id, self._report, self._check_lock, on_change=on_change)
        if port is not None:
            port.on_lost.append(self._stream_lost)
        self._watch()

    def gone(self) -> None:
        """The function is no more: it listens to nothing, and its interface is unlocked."""
        if self._port is not None:
            self._port.on_lost.remove(self._stream_lost)
        self.interface.reset()

    # What a lock looks at

    def _check_lock(self, parameters: LockParameters, session: int) -> None:
        stream_id = parameters.stream_id
        # Before the look at it: a stream that is lost from then on disturbs the lock.
        self._stream = stream_id
        secure = self._port.secure_streams() if self._port is not None else frozenset()
        if not secure:
            self._stream = None
            return
        keyed = self._keyed is None or self._keyed(stream_id, session)
        if stream_id not in secure or not keyed:
            raise TdispError(
                TdispErrorCode.INVALID_REQUEST, f"stream {stream_id} is not of this session"
            )

    def _report(self, parameters: LockParameters) -> Report:
        flags = LockFlags(parameters.flags)
        info = InterfaceInfo.DMA_WITHOUT_PASID
        if flags & LockFlags.NO_FW_UPDATE:
            info |= InterfaceInfo.NO_FW_UPDATE
        control = 0
        if self._msix and flags & LockFlags.LOCK_MSIX:
            control = self._config.read(self._msix + regs.PCI_MSIX_FLAGS, 2)
        report = Report(
            interface_info=info,
            msix_message_control=control,
            mmio_ranges=tuple(self._ranges(parameters)),
        )
        return self._filter()(report)

    def _ranges(self, parameters: LockParameters) -> Iterator[MmioRange]:
        flagged = self._msix_pages()
        for bar in self._bars:
            # A page is the least that can be protected.
            if bar.size < PAGE_SIZE:
                continue
            address = bar.address()
            if not address:
                raise TdispError(
                    TdispErrorCode.INVALID_DEVICE_CONFIGURATION, f"BAR {bar.index} has no address"
                )
            pages = flagged.get(bar.index, {})
            for attributes, first, last in _runs(pages, bar.size >> PAGE_SHIFT):
                # 11.3.11: these are reported only if they are locked.
                if attributes and not parameters.flags & LockFlags.LOCK_MSIX:
                    continue
                yield MmioRange.of(
                    address + (first << PAGE_SHIFT),
                    last - first << PAGE_SHIFT,
                    parameters.mmio_reporting_offset,
                    attributes=attributes,
                    range_id=bar.index,
                )

    def _msix_pages(self) -> dict[int, dict[int, RangeAttributes]]:
        """Attributes of the pages with the MSI-X table or PBA, by BAR and page."""
        if not self._msix:
            return {}
        config = self._config
        control = config.read(self._msix + regs.PCI_MSIX_FLAGS, 2)
        vectors = field_get(regs.PCI_MSIX_FLAGS_QSIZE, control) + 1
        found: dict[int, dict[int, RangeAttributes]] = {}
        for register, size, attribute in (
            (regs.PCI_MSIX_TABLE, vectors * _MSIX_ENTRY, RangeAttributes.MSIX_TABLE),
            (regs.PCI_MSIX_PBA, -(-vectors // _PBA_BITS) * 8, RangeAttributes.MSIX_PBA),
        ):
            value = config.read(self._msix + register, 4)
            offset = value & regs.PCI_MSIX_TABLE_OFFSET
            pages = found.setdefault(field_get(regs.PCI_MSIX_TABLE_BIR, value), {})
            for page in range(offset >> PAGE_SHIFT, (offset + size - 1 >> PAGE_SHIFT) + 1):
                pages[page] = pages.get(page, RangeAttributes(0)) | attribute
        return found

    # What ends a lock

    def _watch(self) -> None:
        config = self._config
        config.on_write(regs.PCI_COMMAND, 2, self._command_written)
        header = config.read(regs.PCI_HEADER_TYPE, 1) & regs.PCI_HEADER_TYPE_MASK
        # A header of type 1 has bus numbers and windows behind its two BARs.
        bars = 2 if header == regs.PCI_HEADER_TYPE_BRIDGE else regs.PCI_STD_NUM_BARS
        for bar in range(bars):
            position = regs.PCI_BASE_ADDRESS_0 + 4 * bar
            config.on_write(position, 4, partial(self._written, f"BAR {bar} was changed"))
        if self._msix:
            config.on_write(self._msix + regs.PCI_MSIX_FLAGS, 2, self._msix_written)
        power = find_capability(config, regs.PCI_CAP_ID_PM)
        if power:
            config.on_write(power + regs.PCI_PM_CTRL, 2, self._power_written)
        config.on_reset(partial(self.interface.error, "the function was reset"))

    def _command_written(self, old: int, new: int) -> int:
        if old & ~new & _PROTECTED_COMMAND:
            self.interface.error("memory space or bus mastering was disabled")
        return new

    def _written(self, reason: str, old: int, new: int) -> int:
        if old != new:
            self.interface.error(reason)
        return new

    def _msix_written(self, old: int, new: int) -> int:
        parameters = self.interface.parameters
        if old != new and parameters is not None and parameters.flags & LockFlags.LOCK_MSIX:
            self.interface.error("the MSI-X control was changed")
        return new

    def _power_written(self, old: int, new: int) -> int:
        if (old ^ new) & regs.PCI_PM_CTRL_STATE_MASK:
            self.interface.error("the power state was changed")
        return new

    def _stream_lost(self, stream_id: int) -> None:
        if stream_id == self._stream:
            self.interface.error(f"IDE stream {stream_id} was lost")


def _runs(
    pages: Mapping[int, RangeAttributes], count: int
) -> Iterator[tuple[RangeAttributes, int, int]]:
    """Runs of pages with the same attributes: these, the first page, and the one behind."""
    edges = sorted({0, count, *(edge for page in pages for edge in (page, page + 1))})
    pieces = [
        (pages.get(first, RangeAttributes(0)), first, last)
        for first, last in itertools.pairwise(edges)
        if last <= count
    ]
    for attributes, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        members = list(group)
        yield attributes, members[0][1], members[-1][2]


class TdiTable(Mapping[int, Interface]):
    """The interfaces of a device by FUNCTION_ID; those of VFs only while they are enabled."""

    def __init__(self) -> None:
        self._tdis: dict[int, tuple[Tdi, Callable[[], bool]]] = {}

    def add(self, tdi: Tdi, exists: Callable[[], bool] = lambda: True) -> None:
        """Have *tdi* answer from now on, while *exists* says so; an earlier one of its ID goes."""
        former = self._tdis.pop(tdi.interface.function_id, None)
        if former is not None:
            former[0].gone()
        self._tdis[tdi.interface.function_id] = tdi, exists

    def __getitem__(self, function_id: int) -> Interface:
        tdi, exists = self._tdis[function_id]
        if not exists():
            raise KeyError(function_id)
        return tdi.interface

    def __iter__(self) -> Iterator[int]:
        return (number for number, (_, exists) in list(self._tdis.items()) if exists())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def session_ended(self, session: int) -> None:
        """Tell every interface, those of disabled VFs too, that this session ended."""
        for tdi, _ in list(self._tdis.values()):
            tdi.interface.session_ended(session)

    def power_on(self) -> None:
        """The device comes from power-on: every interface is unlocked."""
        for tdi, _ in list(self._tdis.values()):
            tdi.interface.reset()


def watch_vfs(pf: ConfigSpace, sriov: int, vfs: Callable[[], Sequence[Interface]]) -> None:
    """Have writes to the SR-IOV capability at *sriov* of *pf* end the locks of its *vfs*."""

    def changed(protected: int, old: int, new: int) -> int:
        lost = old & ~new & protected if protected else old ^ new
        if lost:
            for interface in vfs():
                interface.error("the SR-IOV configuration was changed")
        return new

    enabled = regs.PCI_SRIOV_CTRL_VFE | regs.PCI_SRIOV_CTRL_MSE
    pf.on_write(sriov + regs.PCI_SRIOV_CTRL, 2, partial(changed, enabled))
    pf.on_write(sriov + regs.PCI_SRIOV_NUM_VF, 2, partial(changed, 0))
    pf.on_write(sriov + regs.PCI_SRIOV_SYS_PGSIZE, 4, partial(changed, 0))
    for bar in range(regs.PCI_SRIOV_NUM_BARS):
        pf.on_write(sriov + regs.PCI_SRIOV_BAR + 4 * bar, 4, partial(changed, 0))

    def reset() -> None:
        for interface in vfs():
            interface.error("the physical function was reset")

    pf.on_reset(reset)
