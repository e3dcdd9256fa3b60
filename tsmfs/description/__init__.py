# SPDX-License-Identifier: MIT
"""Machine descriptions: TOML text to a checked, immutable model of the hardware, and back.

A description says what is soldered and plugged together: host bridges, ports, functions, their
ids, BARs and capabilities, and which modules are loaded at the start. Nothing is built here. The
nesting of the tables is the nesting of the hardware, and the name of a table is the kind of the
function: ``[[host_bridge.root_port.endpoint]]``. ``Documentation/machine-description.md`` is the
guide.
"""

from __future__ import annotations

from tsmfs.description.buses import BusRange, assign_buses
from tsmfs.description.capability import (
    DOE_CMA,
    DOE_DISCOVERY,
    DOE_SECURED_CMA,
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
from tsmfs.description.cma import (
    Cma,
    CmaFiles,
    CmaHash,
    CmaKey,
    CmaVersion,
    Measurement,
    MeasurementKind,
    Tamper,
)
from tsmfs.description.dump import to_toml
from tsmfs.description.files import builtin_names, builtin_text, find, load
from tsmfs.description.findings import DescriptionError, Mistake
from tsmfs.description.model import (
    Function,
    HostBridge,
    Kind,
    Machine,
    ModuleLoad,
    defaults,
    has_keys,
    key_seed,
)
from tsmfs.description.parsing import parse
from tsmfs.description.synthetic import generate

__all__ = [
    "DOE_CMA",
    "DOE_DISCOVERY",
    "DOE_SECURED_CMA",
    "LINK_WIDTHS",
    "Bar",
    "BarKind",
    "BusRange",
    "Cma",
    "CmaFiles",
    "CmaHash",
    "CmaKey",
    "CmaVersion",
    "DescriptionError",
    "Doe",
    "Function",
    "HostBridge",
    "Ide",
    "Kind",
    "Link",
    "LinkSpeed",
    "Machine",
    "Measurement",
    "MeasurementKind",
    "Mistake",
    "ModuleLoad",
    "Msix",
    "Sriov",
    "Tamper",
    "assign_buses",
    "builtin_names",
    "builtin_text",
    "defaults",
    "find",
    "generate",
    "has_keys",
    "key_seed",
    "load",
    "parse",
    "to_toml",
]
