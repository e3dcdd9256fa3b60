# SPDX-License-Identifier: MIT
"""What is plugged in where: functions and the buses they sit on, before any kernel sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tsmfs.pci.config import ConfigSpace

if TYPE_CHECKING:
    from tsmfs.pci.cma import CmaDevice
    from tsmfs.pci.ide_km import IdePort


def pci_name(domain: int, bus: int, devfn: int) -> str:
    """``DDDD:BB:DD.F`` of a function; *devfn* is its device and function number."""
    return f"{domain:04x}:{bus:02x}:{devfn >> 3 & 0x1F:02x}.{devfn & 7}"


@dataclass(slots=True, eq=False)
class HwFunction:
    """One function of a device in a slot."""

    devfn: int
    config: ConfigSpace
    secondary: HwBus | None = None
    """The bus behind it, for a port or bridge."""
    present: bool = True
    """False while the device is unplugged."""
    settings: list[Callable[[], None]] = field(default_factory=list)
    """What firmware programs after power-on: BARs and windows."""
    virtual_functions: Callable[[int], HwFunction] | None = None
    """Makes the virtual function of an index, for an SR-IOV physical function."""
    powered: list[Callable[[], None]] = field(default_factory=list)
    """What is lost besides registers when power comes."""
    ide: IdePort | None = None
    """The keys of its IDE streams; without any, every stream that is enabled is secure."""
    cma: CmaDevice | None = None
    """Its device security manager, for a function with keys."""

    @property
    def slot(self) -> int:
        """Device number."""
        return self.devfn >> 3


@dataclass(slots=True, eq=False)
class HwBus:
    """A bus: its functions by devfn."""

    number: int
    functions: dict[int, HwFunction] = field(default_factory=dict)

    def add(self, function: HwFunction) -> HwFunction:
        """Put *function* on the bus."""
        self.functions[function.devfn] = function
        return function

    def present(self) -> list[HwFunction]:
        """Functions that answer, by devfn; a device without function 0 does not."""
        return [
            f
            for devfn, f in sorted(self.functions.items())
            if f.present and (zero := self.functions.get(devfn & ~7)) and zero.present
        ]

    def walk(self) -> Iterator[tuple[HwBus, HwFunction]]:
        """Every function from here down, absent ones too, ports before what is below them."""
        for _, function in sorted(self.functions.items()):
            yield self, function
            if function.secondary is not None:
                yield from function.secondary.walk()

    def slot_functions(self, slot: int) -> list[HwFunction]:
        """All functions of the device in *slot*."""
        return [f for devfn, f in sorted(self.functions.items()) if devfn >> 3 == slot]


def power_on(function: HwFunction) -> None:
    """Bring *function* and all below to their state after power-on and firmware."""
    functions = [function]
    if function.secondary is not None:
        functions += [f for _, f in function.secondary.walk()]
    for each in functions:
        each.config.reset()
        for forget in each.powered:
            forget()
        for setting in each.settings:
            setting()
