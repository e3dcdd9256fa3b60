# SPDX-License-Identifier: MIT
"""The TSM class device: ``class/tsm/tsmN`` (drivers/virt/coco/tsm-core.c)."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Any, Protocol

from tsmfs.base.class_ import Class
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.kobject import Attribute, AttributeGroup
from tsmfs.base.uevent import Action
from tsmfs.kernel.errors import fail


class PciTsmHook(Protocol):
    """What the PCI core offers to TSMs."""

    def register(self, tsm_dev: Any) -> None:
        """PCI operations of a TSM are there."""

    def unregister(self, tsm_dev: Any, forget: Callable[[], None]) -> None:
        """They go; *forget* takes them away."""


class TsmDevice(Device):
    """``struct tsm_dev``."""

    __slots__ = ("_streams", "id", "pci_mode", "pci_ops")

    def __init__(self, core: DriverCore, cls: Class, parent: Device, number: int) -> None:
        super().__init__(core, f"tsm{number}", parent=parent, cls=cls)
        self.groups = (TSM_GROUP,)
        self.id = number
        self.pci_ops: Any = None
        self.pci_mode: str | None = None
        self._streams: dict[str, int] = {}

    def ide_stream_register(self, bridge: Device) -> None:
        """List *bridge*: one more stream of this TSM is below it."""
        count = self._streams.get(bridge.name, 0)
        if not count:
            self.create_link(bridge, bridge.name)
        self._streams[bridge.name] = count + 1

    def ide_stream_unregister(self, bridge: Device) -> None:
        """Undo one :meth:`ide_stream_register`; the last one takes the link away."""
        count = self._streams.get(bridge.name, 0)
        if count <= 1:
            self._streams.pop(bridge.name, None)
            self.remove_link(bridge.name)
        else:
            self._streams[bridge.name] = count - 1


TSM_GROUP = AttributeGroup(
    [Attribute("pci_mode", 0o444, lambda tsm: f"{tsm.pci_mode}\n")],
    is_visible=lambda tsm, attr: attr.mode if tsm.pci_mode is not None else 0,
)


class TsmClass:
    """Class ``tsm`` and its devices."""

    def __init__(
        self, core: DriverCore, pci: PciTsmHook, pci_mode: Callable[[object], str | None]
    ) -> None:
        self._core = core
        self._pci = pci
        self._pci_mode = pci_mode
        self.cls = Class(core, "tsm")
        self._devices: dict[int, TsmDevice] = {}

    def find_tsm_dev(self, number: int) -> TsmDevice | None:
        """The TSM of that number."""
        return self._devices.get(number)

    def register(self, parent: Device, pci_ops: object) -> TsmDevice:
        """Add a TSM below *parent*; ``change`` follows ``add`` once its files are there.

        EINVAL when *pci_ops* are neither those of a link nor of a devsec TSM.
        """
        number = next(n for n in itertools.count() if n not in self._devices)
        tsm_dev = TsmDevice(self._core, self.cls, parent, number)
        self._devices[number] = tsm_dev
        try:
            tsm_dev.device_add()
        except BaseException:
            del self._devices[number]
            raise
        if pci_ops is None:
            return tsm_dev
        tsm_dev.pci_ops = pci_ops
        try:
            self._pci.register(tsm_dev)
        except BaseException as error:
            if isinstance(error, OSError):
                parent.err(f"PCI/TSM registration failure: -{error.errno}")
            self._forget(tsm_dev)
            self._remove(tsm_dev)
            raise
        try:
            tsm_dev.pci_mode = self._pci_mode(pci_ops)
            tsm_dev.update_group(TSM_GROUP)
        except BaseException:
            self.unregister(tsm_dev)
            raise
        tsm_dev.uevent(Action.CHANGE)
        return tsm_dev

    def unregister(self, tsm_dev: TsmDevice) -> None:
        """End all that the TSM holds, then remove it; ENODEV when it is not registered."""
        if self._devices.get(tsm_dev.id) is not tsm_dev:
            fail(errno.ENODEV)
        if tsm_dev.pci_ops is not None:
            self._pci.unregister(tsm_dev, lambda: self._forget(tsm_dev))
        self._remove(tsm_dev)

    def _forget(self, tsm_dev: TsmDevice) -> None:
        tsm_dev.pci_ops = None

    def _remove(self, tsm_dev: TsmDevice) -> None:
        tsm_dev.device_del()
        del self._devices[tsm_dev.id]
