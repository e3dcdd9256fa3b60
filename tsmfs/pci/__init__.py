# SPDX-License-Identifier: MIT
"""The emulated PCI core: config space, capabilities, mailboxes, functions and their buses."""
