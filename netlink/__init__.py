# SPDX-License-Identifier: MIT
"""Generic netlink in user space: families described by YNL specifications and served to clients.

The package knows nothing of the emulated machine and imports nothing of ``tsmfs``. A machine that
wants to be reached by netlink hands a provider of its data to a server here, so the package is of
use to any program that has to speak generic netlink without a kernel family behind it.

From the wire upwards: ``spec`` reads the YNL files in ``specs/``, ``codec`` has headers and
attributes, ``policy`` the kernel's validation, ``af_netlink`` requests, acks and dumps, ``genl``
families and operations, ``nlctrl`` the family of families, ``evidence`` those of device evidence.
``server`` puts a registry of families on ``transport/``s; ``client`` is the other end.
"""

from __future__ import annotations

__all__: list[str] = []
