# SPDX-License-Identifier: MIT
"""The running kernel as a module's init sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tsmfs.base.core import DriverCore
from tsmfs.base.faux import FauxBus
from tsmfs.coco.tsm import TsmClass
from tsmfs.kernel.module import Module, ModuleTable
from tsmfs.pci.core import PciCore


@dataclass(slots=True)
class Host:
    """What the kernel exports to modules."""

    core: DriverCore
    faux: FauxBus
    pci: PciCore
    tsm: TsmClass
    modules: ModuleTable[Any] = field(init=False)
    """The loaded modules; a module finds there what its dependencies export."""


HostModule = Module[Host]
"""A module of this kernel; the entry point group ``tsmfs.modules`` names instances of it."""
