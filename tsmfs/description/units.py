# SPDX-License-Identifier: MIT
"""Sizes in bytes, and the units in which descriptions write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

UNITS: Final[Mapping[str, int]] = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
"""Bytes by the suffix of a size."""


def in_units(size: int) -> str:
    """``size`` in the largest unit that divides it."""
    unit = next(unit for unit in "TGMK" + " " if not size % UNITS[unit.strip()])
    return f"{size // UNITS[unit.strip()]}{unit.strip()}"
