# SPDX-License-Identifier: MIT
"""Classes: the directory of all devices of one kind."""

from __future__ import annotations

import errno

from tests.machines import fails
from tsmfs.base.class_ import Class
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.kobject import find


def test_a_class_lists_its_devices_in_the_order_of_their_arrival(core: DriverCore) -> None:
    cls = Class(core, "tsm")
    names = ("tsm2", "tsm0", "tsm1")
    for name in names:
        Device(core, name, cls=cls).device_add()
    assert [dev.name for dev in cls] == list(names)
    assert cls.kobj.names() == list(names)


def test_devices_may_go_while_the_class_is_walked(core: DriverCore) -> None:
    cls = Class(core, "tsm")
    for number in range(3):
        Device(core, f"tsm{number}", cls=cls).device_add()
    for dev in cls:
        dev.device_del()
    assert list(cls) == []


def test_a_class_exists_once_and_can_be_taken_out(core: DriverCore) -> None:
    cls = Class(core, "tsm")
    with fails(errno.EEXIST):
        Class(core, "tsm")
    cls.destroy()
    assert find(core.root, "/class/tsm") is None
    Class(core, "tsm")
