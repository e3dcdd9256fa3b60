# SPDX-License-Identifier: MIT
"""Faux devices: made and probed at once, or not at all."""

from __future__ import annotations

import errno

import pytest

from tests.base.hardware import crashes
from tests.machines import fails, summary
from tsmfs.base.core import DriverCore
from tsmfs.base.faux import FauxBus, FauxDevice
from tsmfs.base.kobject import Attribute, AttributeGroup, find
from tsmfs.base.uevent import Uevent
from tsmfs.kernel.errors import fail


@pytest.fixture
def faux(core: DriverCore) -> FauxBus:
    return FauxBus(core)


def test_a_faux_device_is_probed_when_it_is_made(faux: FauxBus, heard: list[Uevent]) -> None:
    probed: list[FauxDevice] = []
    dev = faux.create("dev", probed.append, [AttributeGroup([Attribute("own", 0o444)])])
    assert probed == [dev]
    assert dev.path() == "/devices/faux/dev"
    assert set(dev.names()) == {"uevent", "own", "power", "subsystem", "driver"}
    assert summary(heard) == ["add dev", "bind dev"]
    assert find(faux.core.root, "/bus/faux/devices/dev") is not None


def test_destroying_undoes_what_probe_did_last_first(faux: FauxBus) -> None:
    order: list[str] = []

    def probe(dev: FauxDevice) -> None:
        dev.devres.callback(lambda: order.append("first"))
        dev.devres.callback(lambda: order.append("second"))

    dev = faux.create("dev", probe)
    faux.destroy(dev)
    assert order == ["second", "first"]
    assert find(faux.core.root, "/devices/faux/dev") is None
    assert faux.bus.devices == {}


def test_a_probe_that_fails_leaves_nothing_and_its_error_is_the_callers(faux: FauxBus) -> None:
    with fails(errno.ENOSPC):
        faux.create("dev", lambda dev: fail(errno.ENOSPC))
    assert set(faux.root.names()) == {"uevent", "power"}
    assert faux.bus.devices == {}
    with pytest.raises(ZeroDivisionError):
        faux.create("dev", crashes)
    faux.create("dev")


def test_without_autoprobe_there_is_no_driver_and_no_device(faux: FauxBus) -> None:
    faux.bus.drivers_autoprobe = False
    with fails(errno.ENODEV):
        faux.create("dev")
    assert faux.bus.devices == {}


def test_a_name_is_taken_once(faux: FauxBus) -> None:
    dev = faux.create("dev")
    with fails(errno.EEXIST):
        faux.create("dev")
    assert faux.bus.devices == {"dev": dev}
    assert dev.driver is not None


def test_its_driver_cannot_be_taken_off(faux: FauxBus) -> None:
    drivers = find(faux.core.root, "/bus/faux/drivers/faux_driver")
    assert drivers is faux.bus.drivers["faux_driver"]
    assert faux.bus.drivers["faux_driver"].names() == ["uevent"]
