# SPDX-License-Identifier: MIT
"""Capability structures of an emulated function, and finding one as Linux does.

Each structure is a dataclass whose `write` defines its registers; `add_capabilities` places a
list of them and links the two capability lists (PCI Express Base Specification 7.0, 7.5.1.1.11
and 7.6).
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from tsmfs.pci import regs
from tsmfs.pci.config import Bar, ConfigAccess, ConfigSpace, write_bars
from tsmfs.pci.regs import PciBusSpeed, PciExpType, field_get, field_prep

StreamGate = Callable[[int], bool]
"""Gets the index of a selective stream being enabled, tells whether it may become secure."""

_ALL = 0xFFFF_FFFF

# As many as fit, so that a list that loops ends: Linux's PCI_FIND_CAP_TTL and its extended twin.
_FIND_CAP_TTL = 48
_FIND_EXT_CAP_TTL = (regs.PCI_CFG_SPACE_EXP_SIZE - regs.PCI_CFG_SPACE_SIZE) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability(abc.ABC):
    """A capability in the first 256 bytes, 7.5.1.1.11.

    `position` asks for a place; without it `add_capabilities` takes the next free one.
    """

    id: ClassVar[int]
    position: int | None = None

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Bytes in the structure, header included."""

    @abc.abstractmethod
    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers behind the header of a structure at `pos`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedCapability(Capability):
    """A capability in the extended configuration space, 7.6."""

    version: ClassVar[int] = 1


def add_capabilities(config: ConfigSpace, capabilities: Sequence[Capability]) -> list[int]:
    """Place and link `capabilities`, once for a space; return their positions in the same order.

    Both lists run in ascending order of address. Raises ValueError when a structure does not fit,
    is not dword-aligned or lies over another.
    """
    positions: dict[int, int] = {}
    for is_extended, start, end in (
        (False, regs.PCI_STD_HEADER_SIZEOF, regs.PCI_CFG_SPACE_SIZE),
        (True, regs.PCI_CFG_SPACE_SIZE, config.size),
    ):
        members = [
            (number, capability)
            for number, capability in enumerate(capabilities)
            if isinstance(capability, ExtendedCapability) is is_extended
        ]
        placed = _place(members, start, end)
        if is_extended:
            _link_extended(config, placed)
        else:
            _link(config, placed)
        for pos, number, capability in placed:
            capability.write(config, pos)
            positions[number] = pos
    return [positions[number] for number in range(len(capabilities))]


def _place(
    members: Sequence[tuple[int, Capability]], start: int, end: int
) -> list[tuple[int, int, Capability]]:
    placed: list[tuple[int, int, Capability]] = []
    free = start
    for number, capability in members:
        pos = free if capability.position is None else capability.position
        free = pos + -(-capability.size // 4) * 4
        if pos & 3 or pos < start or free > end:
            raise ValueError(f"no room for {type(capability).__name__} at {pos:#x}")
        placed.append((pos, number, capability))
    placed.sort(key=lambda entry: entry[0])
    for (pos, _, capability), (following, _, _) in itertools.pairwise(placed):
        if pos + capability.size > following:
            raise ValueError(f"{type(capability).__name__} at {pos:#x} reaches {following:#x}")
    return placed


def _link(config: ConfigSpace, placed: Sequence[tuple[int, int, Capability]]) -> None:
    if not placed:
        return
    status = config.read(regs.PCI_STATUS, 2) | regs.PCI_STATUS_CAP_LIST
    config.define(
        regs.PCI_STATUS,
        2,
        status,
        rw_mask=config.rw_mask(regs.PCI_STATUS, 2),
        rw1c_mask=config.rw1c_mask(regs.PCI_STATUS, 2),
    )
    config.define(regs.PCI_CAPABILITY_LIST, 1, placed[0][0])
    for number, (pos, _, capability) in enumerate(placed):
        following = placed[number + 1][0] if number + 1 < len(placed) else 0
        config.define(pos, 2, capability.id | following << 8)


def _link_extended(config: ConfigSpace, placed: Sequence[tuple[int, int, Capability]]) -> None:
    if placed and placed[0][0] != regs.PCI_CFG_SPACE_SIZE:
        # The list starts at a fixed place; a null capability there leads to the first real one.
        null = field_prep(regs.PCI_EXT_CAP_NEXT_MASK, placed[0][0])
        config.define(regs.PCI_CFG_SPACE_SIZE, 4, null)
    for number, (pos, _, capability) in enumerate(placed):
        assert isinstance(capability, ExtendedCapability)
        following = placed[number + 1][0] if number + 1 < len(placed) else 0
        header = (
            field_prep(regs.PCI_EXT_CAP_ID_MASK, capability.id)
            | field_prep(regs.PCI_EXT_CAP_VER_MASK, capability.version)
            | field_prep(regs.PCI_EXT_CAP_NEXT_MASK, following)
        )
        config.define(pos, 4, header)


def find_capability(config: ConfigAccess, capability_id: int, after: int = 0) -> int:
    """Return the position of the first capability with this ID behind `after`, 0 if none.

    As ``pci_find_capability()``, and ``pci_find_next_capability()`` with an `after`.
    """
    if not config.read(regs.PCI_STATUS, 2) & regs.PCI_STATUS_CAP_LIST:
        return 0
    pos = config.read(after + regs.PCI_CAP_LIST_NEXT if after else regs.PCI_CAPABILITY_LIST, 1)
    for _ in range(_FIND_CAP_TTL):
        pos &= ~3
        if pos < regs.PCI_STD_HEADER_SIZEOF:
            return 0
        entry = config.read(pos, 2)
        if entry & 0xFF == 0xFF:
            return 0
        if entry & 0xFF == capability_id:
            return pos
        pos = entry >> 8
    return 0


def find_ext_capability(config: ConfigAccess, capability_id: int, after: int = 0) -> int:
    """Return the position of the first extended capability with this ID behind `after`, 0 if none.

    As ``pci_find_ext_capability()``, and ``pci_find_next_ext_capability()`` with an `after`.
    """
    if config.size <= regs.PCI_CFG_SPACE_SIZE:
        return 0
    pos = after or regs.PCI_CFG_SPACE_SIZE
    for _ in range(_FIND_EXT_CAP_TTL):
        header = config.read(pos, 4)
        if header in (0, _ALL):
            return 0
        if field_get(regs.PCI_EXT_CAP_ID_MASK, header) == capability_id and pos != after:
            return pos
        pos = field_get(regs.PCI_EXT_CAP_NEXT_MASK, header) & ~3
        if pos < regs.PCI_CFG_SPACE_SIZE:
            return 0
    return 0


# Capabilities in the first 256 bytes


@dataclass(frozen=True, slots=True)
class PowerManagement(Capability):
    """PCI Power Management, version 3, with D0 and D3hot, 7.5.2.

    `pme` has a bit for each state that can signal PME: bit 0 for D0 up to bit 4 for D3cold.
    """

    id: ClassVar[int] = regs.PCI_CAP_ID_PM
    pme: int = 0

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_PM_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define PMC and PMCSR; a write of D1 or D2, which do not exist, changes no state."""
        pmc = field_prep(regs.PCI_PM_CAP_VER_MASK, 3)
        config.define(
            pos + regs.PCI_PM_PMC, 2, pmc | field_prep(regs.PCI_PM_CAP_PME_MASK, self.pme)
        )
        config.define(
            pos + regs.PCI_PM_CTRL,
            2,
            regs.PCI_PM_CTRL_NO_SOFT_RESET,
            rw_mask=regs.PCI_PM_CTRL_STATE_MASK | (regs.PCI_PM_CTRL_PME_ENABLE if self.pme else 0),
            rw1c_mask=regs.PCI_PM_CTRL_PME_STATUS if self.pme else 0,
        )
        config.on_write(pos + regs.PCI_PM_CTRL, 2, _pm_ctrl_written)


def _pm_ctrl_written(old: int, new: int) -> int:
    if new & regs.PCI_PM_CTRL_STATE_MASK in (1, 2):
        mask = regs.PCI_PM_CTRL_STATE_MASK
        return new & ~mask | old & mask
    return new


@dataclass(frozen=True, slots=True)
class Msi(Capability):
    """Message Signalled Interrupts with 64-bit addresses, 7.7.1; `vectors` is a power of two."""

    id: ClassVar[int] = regs.PCI_CAP_ID_MSI
    vectors: int = 1
    per_vector_masking: bool = False

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_MSI_PENDING_64 + 4 if self.per_vector_masking else regs.PCI_MSI_DATA_64 + 4

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers; ValueError unless `vectors` is 1, 2, 4, 8, 16 or 32."""
        if self.vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI cannot have {self.vectors} vectors")
        flags = regs.PCI_MSI_FLAGS_64BIT
        flags |= field_prep(regs.PCI_MSI_FLAGS_QMASK, self.vectors.bit_length() - 1)
        if self.per_vector_masking:
            flags |= regs.PCI_MSI_FLAGS_MASKBIT
            config.define(pos + regs.PCI_MSI_MASK_64, 4, 0, rw_mask=(1 << self.vectors) - 1)
            config.define(pos + regs.PCI_MSI_PENDING_64, 4, 0)
        writable = regs.PCI_MSI_FLAGS_ENABLE | regs.PCI_MSI_FLAGS_QSIZE
        config.define(pos + regs.PCI_MSI_FLAGS, 2, flags, rw_mask=writable)
        config.define(pos + regs.PCI_MSI_ADDRESS_LO, 4, 0, rw_mask=0xFFFF_FFFC)
        config.define(pos + regs.PCI_MSI_ADDRESS_HI, 4, 0, rw_mask=_ALL)
        config.define(pos + regs.PCI_MSI_DATA_64, 2, 0, rw_mask=0xFFFF)


@dataclass(frozen=True, slots=True)
class Msix(Capability):
    """MSI-X, 7.7.2: `table_size` vectors; offsets are bytes into their BARs, multiples of 8."""

    id: ClassVar[int] = regs.PCI_CAP_ID_MSIX
    table_size: int
    table_bar: int = 0
    table_offset: int = 0
    pba_bar: int = 0
    pba_offset: int = 0

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_CAP_MSIX_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers; ValueError for a table size or an offset that has no encoding."""
        config.define(
            pos + regs.PCI_MSIX_FLAGS,
            2,
            field_prep(regs.PCI_MSIX_FLAGS_QSIZE, self.table_size - 1),
            rw_mask=regs.PCI_MSIX_FLAGS_ENABLE | regs.PCI_MSIX_FLAGS_MASKALL,
        )
        for offset, bar, register in (
            (self.table_offset, self.table_bar, regs.PCI_MSIX_TABLE),
            (self.pba_offset, self.pba_bar, regs.PCI_MSIX_PBA),
        ):
            if offset & ~regs.PCI_MSIX_TABLE_OFFSET:
                raise ValueError(f"MSI-X structure at {offset:#x}, not a multiple of 8")
            config.define(pos + register, 4, offset | field_prep(regs.PCI_MSIX_TABLE_BIR, bar))


_PORTS_DOWNSTREAM = (PciExpType.ROOT_PORT, PciExpType.DOWNSTREAM)
_EXP_DEVCTL_RW = (
    regs.PCI_EXP_DEVCTL_CERE
    | regs.PCI_EXP_DEVCTL_NFERE
    | regs.PCI_EXP_DEVCTL_FERE
    | regs.PCI_EXP_DEVCTL_URRE
    | regs.PCI_EXP_DEVCTL_RELAX_EN
    | regs.PCI_EXP_DEVCTL_PAYLOAD
    | regs.PCI_EXP_DEVCTL_NOSNOOP_EN
    | regs.PCI_EXP_DEVCTL_READRQ
)
_EXP_DEVCTL_DEFAULT = (
    regs.PCI_EXP_DEVCTL_RELAX_EN | regs.PCI_EXP_DEVCTL_NOSNOOP_EN | regs.PCI_EXP_DEVCTL_READRQ_512B
)
_EXP_DEVSTA_RW1C = (
    regs.PCI_EXP_DEVSTA_CED
    | regs.PCI_EXP_DEVSTA_NFED
    | regs.PCI_EXP_DEVSTA_FED
    | regs.PCI_EXP_DEVSTA_URD
)
_EXP_LNKCTL_RW = (
    regs.PCI_EXP_LNKCTL_ASPMC
    | regs.PCI_EXP_LNKCTL_RCB
    | regs.PCI_EXP_LNKCTL_CCC
    | regs.PCI_EXP_LNKCTL_ES
    | regs.PCI_EXP_LNKCTL_HAWD
)
_EXP_LNKCTL_RW_PORT = regs.PCI_EXP_LNKCTL_LD | regs.PCI_EXP_LNKCTL_LBMIE | regs.PCI_EXP_LNKCTL_LABIE


@dataclass(frozen=True, slots=True)
class PcieCap(Capability):
    """PCI Express capability, 7.5.3.

    `max_payload` is in bytes, 128..4096. A link of width 0 is down; `link_speed` and `link_width`
    are what the link runs at and default to the maximum. `slot` is the physical slot number, None
    for no slot; a slot is occupied while its link is up. `ari_forwarding` is for ports,
    `tee_io` and `flr` for endpoints. `on_flr` runs after software initiates a function level
    reset (6.6.2), outside the lock of the space; without one the space goes back to its power-on
    values. A `cap_version` below 2 has no registers behind Link Status (ports: Root Status).
    """

    id: ClassVar[int] = regs.PCI_CAP_ID_EXP
    port_type: PciExpType = PciExpType.ENDPOINT
    cap_version: int = 2
    flr: bool = False
    tee_io: bool = False
    max_payload: int = 128
    extended_tag: bool = False
    max_link_speed: PciBusSpeed = PciBusSpeed.PCIE_SPEED_2_5GT
    max_link_width: int = 1
    link_speed: PciBusSpeed | None = None
    link_width: int | None = None
    port_number: int = 0
    slot: int | None = None
    hotplug: bool = False
    ari_forwarding: bool = False
    on_flr: Callable[[], None] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes in the structure: it shrinks only below version 2."""
        if self.cap_version >= 2:
            return regs.PCI_EXP_SIZEOF_V2
        if self.port_type is PciExpType.ROOT_PORT:
            return regs.PCI_EXP_RTSTA + 4
        if self.slot is not None:
            return regs.PCI_EXP_RTCTL
        if self.port_type is PciExpType.RC_END:
            return regs.PCI_CAP_EXP_RC_ENDPOINT_SIZEOF_V1
        return regs.PCI_CAP_EXP_ENDPOINT_SIZEOF_V1

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers; ValueError for a value that has no encoding."""
        if self.max_payload not in (128, 256, 512, 1024, 2048, 4096):
            raise ValueError(f"Max_Payload_Size cannot be {self.max_payload}")
        flags = field_prep(regs.PCI_EXP_FLAGS_VERS, self.cap_version)
        flags |= field_prep(regs.PCI_EXP_FLAGS_TYPE, self.port_type)
        if self.slot is not None:
            flags |= regs.PCI_EXP_FLAGS_SLOT
        config.define(pos + regs.PCI_EXP_FLAGS, 2, flags)
        self._write_device(config, pos)
        if self.port_type is not PciExpType.RC_END:
            self._write_link(config, pos)
        if self.slot is not None:
            self._write_slot(config, pos, self.slot)
        if self.port_type is PciExpType.ROOT_PORT:
            config.define(
                pos + regs.PCI_EXP_RTCTL,
                2,
                0,
                rw_mask=regs.PCI_EXP_RTCTL_SECEE
                | regs.PCI_EXP_RTCTL_SENFEE
                | regs.PCI_EXP_RTCTL_SEFEE
                | regs.PCI_EXP_RTCTL_PMEIE,
            )
            config.define(pos + regs.PCI_EXP_RTSTA, 4, 0, rw1c_mask=regs.PCI_EXP_RTSTA_PME)
        if self.cap_version >= 2:
            self._write_version2(config, pos)

    def _write_device(self, config: ConfigSpace, pos: int) -> None:
        devcap = field_prep(
            regs.PCI_EXP_DEVCAP_PAYLOAD, self.max_payload.bit_length() - (128).bit_length()
        )
        if self.cap_version:
            devcap |= regs.PCI_EXP_DEVCAP_RBER
        writable = _EXP_DEVCTL_RW
        if self.extended_tag:
            devcap |= regs.PCI_EXP_DEVCAP_EXT_TAG
            writable |= regs.PCI_EXP_DEVCTL_EXT_TAG
        if self.tee_io:
            devcap |= regs.PCI_EXP_DEVCAP_TEE
        if self.flr:
            devcap |= regs.PCI_EXP_DEVCAP_FLR
            writable |= regs.PCI_EXP_DEVCTL_BCR_FLR
            hook = partial(_devctl_written, config, self.on_flr or config.reset)
            config.on_write(pos + regs.PCI_EXP_DEVCTL, 2, hook)
        config.define(pos + regs.PCI_EXP_DEVCAP, 4, devcap)
        config.define(pos + regs.PCI_EXP_DEVCTL, 2, _EXP_DEVCTL_DEFAULT, rw_mask=writable)
        config.define(pos + regs.PCI_EXP_DEVSTA, 2, 0, rw1c_mask=_EXP_DEVSTA_RW1C)

    def _write_link(self, config: ConfigSpace, pos: int) -> None:
        width = self.max_link_width if self.link_width is None else self.link_width
        speed = self.link_speed or self.max_link_speed
        lnkcap = (
            field_prep(regs.PCI_EXP_LNKCAP_SLS, self.max_link_speed)
            | field_prep(regs.PCI_EXP_LNKCAP_MLW, self.max_link_width)
            | field_prep(regs.PCI_EXP_LNKCAP_PN, self.port_number)
        )
        lnksta = 0
        if width:
            lnksta = field_prep(regs.PCI_EXP_LNKSTA_CLS, speed)
            lnksta |= field_prep(regs.PCI_EXP_LNKSTA_NLW, width)
        writable, clearable = _EXP_LNKCTL_RW, 0
        if self.port_type in _PORTS_DOWNSTREAM:
            lnkcap |= regs.PCI_EXP_LNKCAP_DLLLARC | regs.PCI_EXP_LNKCAP_LBNC
            lnksta |= regs.PCI_EXP_LNKSTA_DLLLA if width else 0
            # Retrain Link reads as zero at all times: writing it has nothing to change here.
            writable |= _EXP_LNKCTL_RW_PORT
            clearable = regs.PCI_EXP_LNKSTA_LBMS | regs.PCI_EXP_LNKSTA_LABS
        config.define(pos + regs.PCI_EXP_LNKCAP, 4, lnkcap)
        config.define(pos + regs.PCI_EXP_LNKCTL, 2, 0, rw_mask=writable)
        config.define(pos + regs.PCI_EXP_LNKSTA, 2, lnksta, rw1c_mask=clearable)

    def _write_slot(self, config: ConfigSpace, pos: int, slot: int) -> None:
        # Without command completion the slot needs no state machine: every command is immediate.
        sltcap = regs.PCI_EXP_SLTCAP_NCCS | field_prep(regs.PCI_EXP_SLTCAP_PSN, slot)
        writable = clearable = 0
        if self.hotplug:
            sltcap |= regs.PCI_EXP_SLTCAP_HPC | regs.PCI_EXP_SLTCAP_HPS
            writable = (
                regs.PCI_EXP_SLTCTL_PDCE | regs.PCI_EXP_SLTCTL_HPIE | regs.PCI_EXP_SLTCTL_DLLSCE
            )
            clearable = regs.PCI_EXP_SLTSTA_PDC | regs.PCI_EXP_SLTSTA_DLLSC
        width = self.max_link_width if self.link_width is None else self.link_width
        config.define(pos + regs.PCI_EXP_SLTCAP, 4, sltcap)
        config.define(pos + regs.PCI_EXP_SLTCTL, 2, 0, rw_mask=writable)
        config.define(
            pos + regs.PCI_EXP_SLTSTA,
            2,
            regs.PCI_EXP_SLTSTA_PDS if width else 0,
            rw1c_mask=clearable,
        )

    def _write_version2(self, config: ConfigSpace, pos: int) -> None:
        devcap2, writable = regs.PCI_EXP_DEVCAP2_COMP_TMOUT_DIS, regs.PCI_EXP_DEVCTL2_COMP_TMOUT_DIS
        if self.ari_forwarding:
            devcap2 |= regs.PCI_EXP_DEVCAP2_ARI
            writable |= regs.PCI_EXP_DEVCTL2_ARI
        config.define(pos + regs.PCI_EXP_DEVCAP2, 4, devcap2)
        config.define(pos + regs.PCI_EXP_DEVCTL2, 2, 0, rw_mask=writable)
        if self.port_type is PciExpType.RC_END:
            return
        speeds = (1 << self.max_link_speed) - 1
        config.define(pos + regs.PCI_EXP_LNKCAP2, 4, field_prep(regs.PCI_EXP_LNKCAP2_SLS, speeds))
        config.define(
            pos + regs.PCI_EXP_LNKCTL2, 2, self.max_link_speed, rw_mask=regs.PCI_EXP_LNKCTL2_TLS
        )


def _devctl_written(config: ConfigSpace, on_flr: Callable[[], None], old: int, new: int) -> int:
    if new & regs.PCI_EXP_DEVCTL_BCR_FLR:
        config.defer(on_flr)
    return new & ~regs.PCI_EXP_DEVCTL_BCR_FLR


# Extended capabilities

_ERR_UNC = (
    regs.PCI_ERR_UNC_DLP
    | regs.PCI_ERR_UNC_SURPDN
    | regs.PCI_ERR_UNC_POISON_TLP
    | regs.PCI_ERR_UNC_FCP
    | regs.PCI_ERR_UNC_COMP_TIME
    | regs.PCI_ERR_UNC_COMP_ABORT
    | regs.PCI_ERR_UNC_UNX_COMP
    | regs.PCI_ERR_UNC_RX_OVER
    | regs.PCI_ERR_UNC_MALF_TLP
    | regs.PCI_ERR_UNC_ECRC
    | regs.PCI_ERR_UNC_UNSUP
    | regs.PCI_ERR_UNC_ACSV
    | regs.PCI_ERR_UNC_INTN
)
_ERR_UNC_SEVERITY_DEFAULT = (
    regs.PCI_ERR_UNC_DLP
    | regs.PCI_ERR_UNC_SURPDN
    | regs.PCI_ERR_UNC_FCP
    | regs.PCI_ERR_UNC_RX_OVER
    | regs.PCI_ERR_UNC_MALF_TLP
    | regs.PCI_ERR_UNC_INTN
)
_ERR_COR = (
    regs.PCI_ERR_COR_RCVR
    | regs.PCI_ERR_COR_BAD_TLP
    | regs.PCI_ERR_COR_BAD_DLLP
    | regs.PCI_ERR_COR_REP_ROLL
    | regs.PCI_ERR_COR_REP_TIMER
    | regs.PCI_ERR_COR_ADV_NFAT
    | regs.PCI_ERR_COR_INTERNAL
    | regs.PCI_ERR_COR_LOG_OVER
)
_ERR_COR_MASK_DEFAULT = (
    regs.PCI_ERR_COR_ADV_NFAT | regs.PCI_ERR_COR_INTERNAL | regs.PCI_ERR_COR_LOG_OVER
)
_ERR_ROOT_STATUS_RW1C = 0x7F


@dataclass(frozen=True, slots=True)
class Aer(ExtendedCapability):
    """Advanced Error Reporting, 7.8.4; `root` adds the registers of a root port."""

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_ERR
    version: ClassVar[int] = 2
    root: bool = False

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_ERR_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers, with the specification's default mask and severity."""
        config.define(pos + regs.PCI_ERR_UNCOR_STATUS, 4, 0, rw1c_mask=_ERR_UNC)
        config.define(pos + regs.PCI_ERR_UNCOR_MASK, 4, regs.PCI_ERR_UNC_INTN, rw_mask=_ERR_UNC)
        config.define(
            pos + regs.PCI_ERR_UNCOR_SEVER, 4, _ERR_UNC_SEVERITY_DEFAULT, rw_mask=_ERR_UNC
        )
        config.define(pos + regs.PCI_ERR_COR_STATUS, 4, 0, rw1c_mask=_ERR_COR)
        config.define(pos + regs.PCI_ERR_COR_MASK, 4, _ERR_COR_MASK_DEFAULT, rw_mask=_ERR_COR)
        if self.root:
            config.define(
                pos + regs.PCI_ERR_ROOT_COMMAND,
                4,
                0,
                rw_mask=regs.PCI_ERR_ROOT_CMD_COR_EN
                | regs.PCI_ERR_ROOT_CMD_NONFATAL_EN
                | regs.PCI_ERR_ROOT_CMD_FATAL_EN,
            )
            config.define(pos + regs.PCI_ERR_ROOT_STATUS, 4, 0, rw1c_mask=_ERR_ROOT_STATUS_RW1C)


@dataclass(frozen=True, slots=True)
class Ari(ExtendedCapability):
    """Alternative Routing-ID Interpretation, 7.8.8; `next_function` 0 ends the list of them."""

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_ARI
    next_function: int = 0

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_EXT_CAP_ARI_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the capability register; there are no function groups to control."""
        config.define(
            pos + regs.PCI_ARI_CAP, 2, field_prep(regs.PCI_ARI_CAP_NFN_MASK, self.next_function)
        )


@dataclass(frozen=True, slots=True)
class AccessControl(ExtendedCapability):
    """Access Control Services, 7.7.11; `services` are ``PCI_ACS_*`` bits without egress control."""

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_ACS
    services: int = (
        regs.PCI_ACS_SV | regs.PCI_ACS_TB | regs.PCI_ACS_RR | regs.PCI_ACS_CR | regs.PCI_ACS_UF
    )

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_ACS_CTRL + 2

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the capability and control registers."""
        config.define(pos + regs.PCI_ACS_CAP, 2, self.services)
        config.define(pos + regs.PCI_ACS_CTRL, 2, 0, rw_mask=self.services)


@dataclass(frozen=True, slots=True)
class DeviceSerialNumber(ExtendedCapability):
    """Device Serial Number, 7.9.3: an EUI-64."""

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_DSN
    serial: int

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_EXT_CAP_DSN_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the two halves of the serial number."""
        config.define(pos + 4, 4, self.serial & _ALL)
        config.define(pos + 8, 4, self.serial >> 32)


@dataclass(frozen=True, slots=True)
class Sriov(ExtendedCapability):
    """Single Root I/O Virtualization, 9.3.3.

    `first_vf_offset` and `vf_stride` are routing ID distances. `function_link` is the Function
    Dependency Link, the function's own number when it depends on no other. `bars` describe one
    virtual function. `on_vf_enable` gets the number of virtual functions that VF Enable turned
    on, and 0 when it was turned off; it runs outside the lock of the space.
    """

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_SRIOV
    total_vfs: int
    initial_vfs: int | None = None
    first_vf_offset: int = 1
    vf_stride: int = 1
    vf_device_id: int = 0
    bars: Sequence[Bar] = ()
    function_link: int = 0
    supported_page_sizes: int = 0x553
    on_vf_enable: Callable[[int], None] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_EXT_CAP_SRIOV_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers; ValueError for VF BARs that overlap."""
        initial = self.total_vfs if self.initial_vfs is None else self.initial_vfs
        config.define(pos + regs.PCI_SRIOV_CAP, 4, regs.PCI_SRIOV_CAP_ARI_PRESERVED)
        config.define(
            pos + regs.PCI_SRIOV_CTRL,
            2,
            0,
            rw_mask=regs.PCI_SRIOV_CTRL_VFE | regs.PCI_SRIOV_CTRL_MSE | regs.PCI_SRIOV_CTRL_ARI,
        )
        config.define(pos + regs.PCI_SRIOV_STATUS, 2, 0)
        config.define(pos + regs.PCI_SRIOV_INITIAL_VF, 2, initial)
        config.define(pos + regs.PCI_SRIOV_TOTAL_VF, 2, self.total_vfs)
        config.define(pos + regs.PCI_SRIOV_NUM_VF, 2, 0, rw_mask=0xFFFF)
        config.define(pos + regs.PCI_SRIOV_FUNC_LINK, 1, self.function_link)
        config.define(pos + regs.PCI_SRIOV_VF_OFFSET, 2, self.first_vf_offset)
        config.define(pos + regs.PCI_SRIOV_VF_STRIDE, 2, self.vf_stride)
        config.define(pos + regs.PCI_SRIOV_VF_DID, 2, self.vf_device_id)
        config.define(pos + regs.PCI_SRIOV_SUP_PGSIZE, 4, self.supported_page_sizes)
        config.define(pos + regs.PCI_SRIOV_SYS_PGSIZE, 4, 1, rw_mask=self.supported_page_sizes)
        write_bars(config, self.bars, pos + regs.PCI_SRIOV_BAR, regs.PCI_SRIOV_NUM_BARS)

        config.on_write(pos + regs.PCI_SRIOV_CTRL, 2, partial(self._control_written, config, pos))
        config.on_write(pos + regs.PCI_SRIOV_NUM_VF, 2, partial(self._num_written, config, pos))
        if self.on_vf_enable is not None:
            config.on_reset(partial(self._reset, config, pos))

    def _control_written(self, config: ConfigSpace, pos: int, old: int, new: int) -> int:
        if (old ^ new) & regs.PCI_SRIOV_CTRL_VFE and self.on_vf_enable is not None:
            enabled = new & regs.PCI_SRIOV_CTRL_VFE
            number = config.read(pos + regs.PCI_SRIOV_NUM_VF, 2) if enabled else 0
            config.defer(partial(self.on_vf_enable, number))
        return new

    def _reset(self, config: ConfigSpace, pos: int) -> None:
        self._control_written(config, pos, config.read(pos + regs.PCI_SRIOV_CTRL, 2), 0)

    def _num_written(self, config: ConfigSpace, pos: int, old: int, new: int) -> int:
        # 9.3.3.7: what happens is undefined with VF Enable set, or beyond TotalVFs. Nothing does.
        if config.read(pos + regs.PCI_SRIOV_CTRL, 2) & regs.PCI_SRIOV_CTRL_VFE:
            return old
        return new if new <= self.total_vfs else old


@dataclass(frozen=True, slots=True)
class Doe(ExtendedCapability):
    """Data Object Exchange, 7.9.24; a `doe.DoeMailbox` attached to it gives it life.

    `interrupt_message` is the interrupt message number, None for no interrupt support.
    """

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_DOE
    version: ClassVar[int] = 2
    interrupt_message: int | None = None

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return regs.PCI_DOE_CAP_SIZEOF

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers; without a mailbox it is never busy and never answers."""
        capability = control = 0
        if self.interrupt_message is not None:
            capability = regs.PCI_DOE_CAP_INT_SUP
            capability |= field_prep(regs.PCI_DOE_CAP_INT_MSG_NUM, self.interrupt_message)
            control = regs.PCI_DOE_CTRL_INT_EN
        config.define(pos + regs.PCI_DOE_CAP, 4, capability)
        config.define(pos + regs.PCI_DOE_CTRL, 4, 0, rw_mask=control)
        config.define(pos + regs.PCI_DOE_STATUS, 4, 0, rw1c_mask=regs.PCI_DOE_STATUS_INT_STATUS)
        config.define(pos + regs.PCI_DOE_WRITE, 4, 0)
        config.define(pos + regs.PCI_DOE_READ, 4, 0)


@dataclass(frozen=True, slots=True)
class Ide(ExtendedCapability):
    """Integrity & Data Encryption, 6.33 and 7.9.26.

    `nr_link_streams` 0..8 and `nr_sel_streams` 0..256 are the register blocks present, each
    selective block with `nr_addr_assoc` (0..15) address associations. The one algorithm is
    AES-GCM-256 with a 96-bit MAC. Setting the enable bit of a selective stream makes it secure
    when `stream_gate` agrees or is absent; clearing it makes the stream insecure. The gate runs
    with the lock of the space held.
    """

    id: ClassVar[int] = regs.PCI_EXT_CAP_ID_IDE
    nr_link_streams: int = 0
    nr_sel_streams: int = 1
    nr_addr_assoc: int = 1
    ide_km: bool = True
    tee_limited: bool = True
    selective_config: bool = False
    flow_through: bool = False
    partial_header_encryption: bool = False
    aggregation: bool = False
    pcrc: bool = False
    stream_gate: StreamGate | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes in the structure."""
        return self.stream_offset(self.nr_sel_streams)

    def stream_offset(self, index: int) -> int:
        """Return where the block of selective stream `index` is, from the capability's start."""
        return (
            regs.PCI_IDE_LINK_STREAM_0
            + self.nr_link_streams * regs.PCI_IDE_LINK_BLOCK_SIZE
            + index * regs.PCI_IDE_SEL_BLOCK_SIZE(self.nr_addr_assoc)
        )

    def write(self, config: ConfigSpace, pos: int) -> None:
        """Define the registers; ValueError for a number of streams that has no encoding."""
        capability = 0
        for supported, bit in (
            (self.nr_link_streams, regs.PCI_IDE_CAP_LINK),
            (self.nr_sel_streams, regs.PCI_IDE_CAP_SELECTIVE),
            (self.flow_through, regs.PCI_IDE_CAP_FLOWTHROUGH),
            (self.partial_header_encryption, regs.PCI_IDE_CAP_PARTIAL_HEADER_ENC),
            (self.aggregation, regs.PCI_IDE_CAP_AGGREGATION),
            (self.pcrc, regs.PCI_IDE_CAP_PCRC),
            (self.ide_km, regs.PCI_IDE_CAP_IDE_KM),
            (self.selective_config, regs.PCI_IDE_CAP_SEL_CFG),
            (self.tee_limited, regs.PCI_IDE_CAP_TEE_LIMITED),
        ):
            capability |= bit if supported else 0
        if self.nr_link_streams:
            capability |= field_prep(regs.PCI_IDE_CAP_LINK_TC_NUM, self.nr_link_streams - 1)
        if self.nr_sel_streams:
            capability |= field_prep(regs.PCI_IDE_CAP_SEL_NUM, self.nr_sel_streams - 1)
        config.define(pos + regs.PCI_IDE_CAP, 4, capability)
        flow_through = regs.PCI_IDE_CTL_FLOWTHROUGH_IDE if self.flow_through else 0
        config.define(pos + regs.PCI_IDE_CTL, 4, 0, rw_mask=flow_through)

        # Bits 31:24, 21:14, 13:10, 8, 7:2 and 0 mean the same in both kinds of control register.
        control = regs.PCI_IDE_LINK_CTL_EN | regs.PCI_IDE_LINK_CTL_ALG
        control |= regs.PCI_IDE_LINK_CTL_TC | regs.PCI_IDE_LINK_CTL_ID
        if self.aggregation:
            control |= regs.PCI_IDE_LINK_CTL_TX_AGGR
        if self.pcrc:
            control |= regs.PCI_IDE_LINK_CTL_PCRC_EN
        if self.partial_header_encryption:
            control |= regs.PCI_IDE_LINK_CTL_PART_ENC
        for index in range(self.nr_link_streams):
            block = pos + regs.PCI_IDE_LINK_STREAM_0 + index * regs.PCI_IDE_LINK_BLOCK_SIZE
            config.define(block + regs.PCI_IDE_LINK_CTL_0, 4, 0, rw_mask=control)
            config.define(
                block + regs.PCI_IDE_LINK_STS_0, 4, 0, rw1c_mask=regs.PCI_IDE_LINK_STS_IDE_FAIL
            )
        control |= regs.PCI_IDE_SEL_CTL_DEFAULT
        if self.selective_config:
            control |= regs.PCI_IDE_SEL_CTL_CFG_EN
        if self.tee_limited:
            control |= regs.PCI_IDE_SEL_CTL_TEE_LIMITED
        for index in range(self.nr_sel_streams):
            self._write_selective(config, pos + self.stream_offset(index), index, control)

    def _write_selective(self, config: ConfigSpace, block: int, index: int, control: int) -> None:
        config.define(
            block + regs.PCI_IDE_SEL_CAP,
            4,
            field_prep(regs.PCI_IDE_SEL_CAP_ASSOC_NUM, self.nr_addr_assoc),
        )
        config.define(block + regs.PCI_IDE_SEL_CTL, 4, 0, rw_mask=control)
        config.define(
            block + regs.PCI_IDE_SEL_STS,
            4,
            regs.PCI_IDE_SEL_STS_STATE_INSECURE,
            rw1c_mask=regs.PCI_IDE_SEL_STS_IDE_FAIL,
        )
        config.define(block + regs.PCI_IDE_SEL_RID_1, 4, 0, rw_mask=regs.PCI_IDE_SEL_RID_1_LIMIT)
        config.define(
            block + regs.PCI_IDE_SEL_RID_2,
            4,
            0,
            rw_mask=regs.PCI_IDE_SEL_RID_2_VALID
            | regs.PCI_IDE_SEL_RID_2_BASE
            | regs.PCI_IDE_SEL_RID_2_SEG,
        )
        for number in range(self.nr_addr_assoc):
            config.define(
                block + regs.PCI_IDE_SEL_ADDR_1(number),
                4,
                0,
                rw_mask=regs.PCI_IDE_SEL_ADDR_1_VALID
                | regs.PCI_IDE_SEL_ADDR_1_BASE_LOW
                | regs.PCI_IDE_SEL_ADDR_1_LIMIT_LOW,
            )
            config.define(block + regs.PCI_IDE_SEL_ADDR_2(number), 4, 0, rw_mask=_ALL)
            config.define(block + regs.PCI_IDE_SEL_ADDR_3(number), 4, 0, rw_mask=_ALL)
        config.on_write(
            block + regs.PCI_IDE_SEL_CTL,
            4,
            partial(_sel_ctl_written, config, block, index, self.stream_gate),
        )


def _sel_ctl_written(
    config: ConfigSpace, block: int, index: int, gate: StreamGate | None, _old: int, new: int
) -> int:
    state = regs.PCI_IDE_SEL_STS_STATE_INSECURE
    if new & regs.PCI_IDE_SEL_CTL_EN and (gate is None or gate(index)):
        state = regs.PCI_IDE_SEL_STS_STATE_SECURE
    set_stream_state(config, block, state)
    return new


def set_stream_state(config: ConfigSpace, block: int, state: int) -> None:
    """Have the hardware move a selective stream to `state` (``PCI_IDE_SEL_STS_STATE_*``).

    `block` is the position of the stream's register block in `config`.
    """
    status = config.read(block + regs.PCI_IDE_SEL_STS, 4) & ~regs.PCI_IDE_SEL_STS_STATE
    status |= field_prep(regs.PCI_IDE_SEL_STS_STATE, state)
    config.set(block + regs.PCI_IDE_SEL_STS, 4, status)
