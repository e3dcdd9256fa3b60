# SPDX-License-Identifier: MIT
"""A driver core with nothing in it."""

from __future__ import annotations

import pytest

from tsmfs.base.core import DriverCore
from tsmfs.base.uevent import Uevent, Uevents
from tsmfs.kernel.fault import Faults
from tsmfs.kernel.printk import Level, Log


@pytest.fixture
def core() -> DriverCore:
    log = Log(loglevel=Level.DEBUG)
    return DriverCore(log, Faults(log), Uevents(), uid=0, gid=0)


@pytest.fixture
def heard(core: DriverCore) -> list[Uevent]:
    """Every uevent from here on."""
    events: list[Uevent] = []
    core.uevents.listeners.append(events.append)
    return events
