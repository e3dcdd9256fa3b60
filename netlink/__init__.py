# SPDX-License-Identifier: MIT
"""Generic netlink in user space: families described by YNL specifications and served to clients.

The package knows nothing of the emulated machine and imports nothing of ``tsmfs``. A machine that
wants to be reached by netlink hands a provider of its data to a server here, so the package is of
use to any program that has to speak generic netlink without a kernel family behind it.

This release contains the package itself and no family: nothing is exported yet.
"""

from __future__ import annotations

__all__: list[str] = []
