# SPDX-License-Identifier: MIT
"""Function resets: which there are, and doing one (drivers/pci/pci.c)."""

from __future__ import annotations

import errno

from tsmfs.kernel.errors import fail
from tsmfs.pci import regs
from tsmfs.pci.capability import find_capability
from tsmfs.pci.iov import pci_restore_iov_state
from tsmfs.pci.pci_dev import PciDev

RESET_METHODS = ("flr", "pm", "bus")
"""Those that emulated functions can have, in the order in which Linux tries them."""


def _supported(dev: PciDev, method: str) -> bool:
    match method:
        case "flr":
            return dev.is_pcie and bool(dev.devcap & regs.PCI_EXP_DEVCAP_FLR)
        case "pm":
            pos = find_capability(dev.config, regs.PCI_CAP_ID_PM)
            if not pos:
                return False
            return not dev.config.read(pos + regs.PCI_PM_CTRL, 2) & regs.PCI_PM_CTRL_NO_SOFT_RESET
        case _:
            # A bus reset is a function's own only while nothing else is on the bus.
            return (
                dev.bus.self_dev is not None
                and dev.subordinate is None
                and dev.hw.secondary is None
                and not dev.is_virtfn
                and len(dev.bus.hw.functions) == 1
            )


def pci_init_reset_methods(dev: PciDev) -> None:
    """Note how *dev* can be reset (``pci_init_reset_methods()``)."""
    dev.reset_methods = [m for m in RESET_METHODS if _supported(dev, m)]


def pci_reset_function(dev: PciDev) -> None:
    """Reset *dev* and restore what the kernel had programmed (``pci_reset_function()``).

    ENOTTY when it has no way to.
    """
    methods = dev.reset_methods
    if not methods:
        fail(errno.ENOTTY)
    with dev.lock.lock_interruptible():
        saved = dev.config.read_bytes(0, regs.PCI_CFG_SPACE_SIZE)
        dev.config.reset()
        dev.config.write_bytes(0, saved)
        pci_restore_iov_state(dev)
        dev.info(f"reset by {methods[0]}")


def set_reset_methods(dev: PciDev, data: bytes) -> None:
    """Take a new order of methods: names, ``default``, or an empty line for none.

    EINVAL for a name that is none of them, or not supported by *dev*.
    """
    words = data.decode("latin-1").split()
    if words == ["default"]:
        pci_init_reset_methods(dev)
        return
    for word in words:
        if word not in RESET_METHODS or not _supported(dev, word):
            dev.err(f"Unsupported reset method '{word}'")
            fail(errno.EINVAL)
    dev.reset_methods = list(dict.fromkeys(words))
