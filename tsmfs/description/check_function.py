# SPDX-License-Identifier: MIT
"""The rules that one function must satisfy, whatever is around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tsmfs.description.capability import DOE_CMA, DOE_SECURED_CMA, Bar, BarKind, Msix, Sriov
from tsmfs.description.findings import Findings
from tsmfs.description.model import LINK_ABOVE, PCI_CLASS_BRIDGE_PCI, PORTS, Function, Kind
from tsmfs.description.units import GIB, KIB, TIB, in_units

# Bytes of the extended capabilities, headers included, by the key that asks for them.
_EXT_CAP_BYTES: Final[Mapping[str, int]] = {
    "aer": 0x48,
    "ari": 0x08,
    "acs": 0x08,
    "serial": 0x0C,
    "doe": 0x18,
    "sriov": 0x40,
}
_EXT_CONFIG_BYTES: Final = 0x1000 - 0x100

_BAR_SIZES: Final[Mapping[BarKind, tuple[int, int]]] = {
    BarKind.MEM32: (16, 2 * GIB),
    BarKind.MEM64: (16, 8 * TIB),
    BarKind.IO: (4, 256),
}

_PCIE: Final = frozenset(Kind) - {Kind.CONVENTIONAL}
_LINKED: Final = _PCIE - {Kind.RC_ENDPOINT}
_DEVICES: Final = frozenset({Kind.ENDPOINT, Kind.RC_ENDPOINT})
_PLUGGABLE: Final = frozenset({Kind.ENDPOINT, Kind.UPSTREAM_PORT, Kind.CONVENTIONAL})

# Which kinds may have what, and why the others may not.
_ONLY: Final[tuple[tuple[str, frozenset[Kind], str], ...]] = (
    ("secondary_bus", PORTS, "only a port has a bus below it"),
    ("link", _LINKED, "there is no PCI Express link here"),
    ("flr", _DEVICES, "only PCI Express endpoints have function level reset"),
    ("tee_io", _DEVICES | {Kind.UPSTREAM_PORT}, "TEE-IO is for endpoints and upstream ports"),
    ("aer", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    (
        "ari",
        LINK_ABOVE | {Kind.ENDPOINT},
        "ARI is a capability of endpoints, and forwarding in root and downstream ports",
    ),
    ("acs", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    ("serial", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    ("doe", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    (
        "cma",
        _DEVICES | {Kind.UPSTREAM_PORT},
        "keys are for endpoints, and for the upstream ports of switches",
    ),
    ("ide", _PCIE, "needs PCI Express: IDE protects its packets"),
    ("sriov", _DEVICES, "SR-IOV is for PCI Express endpoints"),
)


class FunctionChecker:
    """The rules about the keys of a function, and about its BARs and capabilities."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def check(self, function: Function, key: str) -> None:
        """Record what is wrong with ``function``, whose table is ``key``."""
        kind = function.kind
        for name, kinds, reason in _ONLY:
            if kind not in kinds and _present(getattr(function, name)):
                self._findings.broken(key, name, reason)
        if not function.plugged and kind not in _PLUGGABLE:
            self._findings.broken(key, "plugged", f"a {kind.value} is part of what it sits in")
        if (function.class_code >> 8 == PCI_CLASS_BRIDGE_PCI) != kind.is_port:
            self._findings.broken(
                key, "class", "0x0604xx is the class of ports, of all and of nothing else"
            )
        if function.msi & (function.msi - 1):
            self._findings.broken(
                key, "msi", f"must be 0, 1, 2, 4, 8, 16 or 32 vectors, not {function.msi}"
            )
        self._bars(function.bars, key, "", 2 if kind.is_port else 6, 128 if kind.is_pcie else 16)
        self._msix(function.msix, function.bars, key, "")
        self._cma(function, key)
        self._ide(function, key)
        if function.sriov is not None:
            self._sriov(function.sriov, key)
        self._ext_config(function, key)

    def _bars(
        self, bars: Sequence[Bar], owner: str, prefix: str, registers: int, least: int
    ) -> None:
        used: set[int] = set()
        for position, bar in enumerate(bars):
            key = f"{prefix}bar[{position}]"
            if self._findings.doubts(owner, f"{key}.index", f"{key}.kind"):
                continue
            slots = {bar.index, bar.index + 1} if bar.kind is BarKind.MEM64 else {bar.index}
            if max(slots) >= registers:
                reason = "its upper half is" if bar.index < registers else "it is"
                self._findings.broken(
                    owner, f"{key}.index", f"{reason} past the last BAR, {registers - 1}"
                )
            elif slots & used:
                self._findings.broken(owner, f"{key}.index", f"BAR {min(slots & used)} is taken")
            used |= slots
            low, high = _BAR_SIZES[bar.kind]
            low = max(low, least) if bar.kind is not BarKind.IO else low
            if bar.size & (bar.size - 1):
                self._findings.broken(owner, f"{key}.size", "must be a power of two")
            elif not low <= bar.size <= high:
                limits = f"{in_units(low)} to {in_units(high)}"
                self._findings.broken(
                    owner, f"{key}.size", f"must be {limits} for {bar.kind.value}"
                )
            if bar.prefetch and bar.kind is BarKind.IO:
                self._findings.broken(owner, f"{key}.prefetch", "I/O space is not prefetchable")

    def _msix(self, msix: Msix | None, bars: Sequence[Bar], owner: str, prefix: str) -> None:
        doubtful = (f"{prefix}bar[{position}]" for position in range(len(bars)))
        if msix is None or self._findings.doubts(owner, *doubtful):
            return
        bar = next((bar for bar in bars if bar.index == msix.bar), None)
        if bar is None or bar.kind is BarKind.IO:
            self._findings.broken(owner, f"{prefix}msix.bar", f"there is no memory BAR {msix.bar}")
            return
        parts = {
            "table_offset": (msix.table_offset, 16 * msix.vectors),
            "pba_offset": (msix.pba_offset, (msix.vectors + 63) // 64 * 8),
        }
        for name, (offset, length) in parts.items():
            if offset % 8:
                self._findings.broken(owner, f"{prefix}msix.{name}", "must be a multiple of 8")
            elif offset + length > bar.size:
                reason = f"ends past BAR {bar.index}, which has {in_units(bar.size)}"
                self._findings.broken(owner, f"{prefix}msix.{name}", reason)
        (table, table_length), (pba, pba_length) = parts.values()
        if table < pba + pba_length and pba < table + table_length:
            self._findings.broken(owner, f"{prefix}msix.pba_offset", "overlaps the table")

    def _cma(self, function: Function, owner: str) -> None:
        if function.cma is None or function.kind not in _DEVICES | {Kind.UPSTREAM_PORT}:
            return
        if function.function:
            self._findings.broken(owner, "cma", "the keys of a device are in its function 0")
        protocols = function.doe.protocols if function.doe is not None else ()
        if not {DOE_CMA, DOE_SECURED_CMA} <= set(protocols) and not self._findings.doubts(
            owner, "doe"
        ):
            self._findings.broken(owner, "cma", "needs doe, with the protocols [1, 1] and [1, 2]")

    def _ide(self, function: Function, owner: str) -> None:
        ide = function.ide
        if ide is None:
            return
        if not ide.link_streams and not ide.selective_streams:
            self._findings.broken(owner, "ide", "needs link_streams or selective_streams")
        if ide.link_streams and function.kind is Kind.RC_ENDPOINT:
            self._findings.broken(owner, "ide.link_streams", "there is no PCI Express link here")

    def _sriov(self, sriov: Sriov, owner: str) -> None:
        # VF BARs are multiples of the system page size (section 9.3.3.14), and never I/O.
        self._bars(sriov.bars, owner, "sriov.", 6, 4 * KIB)
        for position, bar in enumerate(sriov.bars):
            if bar.kind is BarKind.IO:
                self._findings.broken(owner, f"sriov.bar[{position}].kind", "VFs have no I/O space")
        self._msix(sriov.msix, sriov.bars, owner, "sriov.")

    def _ext_config(self, function: Function, owner: str) -> None:
        needed = sum(
            length for name, length in _EXT_CAP_BYTES.items() if _present(getattr(function, name))
        )
        needed += function.ide.size if function.ide is not None else 0
        if function.kind.is_pcie and needed > _EXT_CONFIG_BYTES:
            key = "ide.selective_streams" if function.ide is not None else ""
            room = f"{needed} bytes of extended capabilities in {_EXT_CONFIG_BYTES}"
            self._findings.broken(owner, key, f"does not fit in config space: {room}")


def _present(value: object) -> bool:
    return value is not None and value is not False
