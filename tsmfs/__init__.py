# SPDX-License-Identifier: MIT
"""An emulated kernel for TEE I/O devices: driver core, PCI core and PCI/TSM core behind a sysfs."""

from __future__ import annotations

__version__ = "0.1.0"
