# SPDX-License-Identifier: MIT
"""``module/<name>``: loaded modules in sysfs (kernel/module/sysfs.c, kernel/params.c)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tsmfs.base.core import DriverCore
from tsmfs.base.kobject import Attribute, AttributeGroup, Kobject
from tsmfs.base.uevent import Action, parse_synthetic
from tsmfs.kernel.module import CORESIZE, LoadedModule, ModuleTable, Param, kstrtobool


class ModuleKobject(Kobject):
    """The directory of one module."""

    __slots__ = ("core", "module")

    def __init__(self, core: DriverCore, module: LoadedModule) -> None:
        super().__init__(core.root.tree, module.name)
        self.core = core
        self.module = module


def _uevent_store(kobj: ModuleKobject, data: bytes) -> None:
    action, env = parse_synthetic(data)
    kobj.core.uevent(kobj, action, "module", env)


MODULE_GROUP = AttributeGroup(
    [
        Attribute("coresize", 0o444, lambda kobj: f"{CORESIZE}\n"),
        Attribute("initsize", 0o444, lambda kobj: "0\n"),
        Attribute("initstate", 0o444, lambda kobj: f"{kobj.module.state}\n"),
        Attribute("refcnt", 0o444, lambda kobj: f"{kobj.module.refcnt}\n"),
        Attribute("taint", 0o444, lambda kobj: "\n"),
        Attribute("uevent", 0o200, store=_uevent_store),
        Attribute("version", 0o444, lambda kobj: f"{kobj.module.version}\n"),
    ],
    is_visible=lambda kobj, attr: (
        0 if attr.name == "version" and kobj.module.version is None else attr.mode
    ),
)


def _parameter(param: Param) -> Attribute:
    def show(kobj: ModuleKobject) -> str:
        return param.show(kobj.module.params[param.name])

    def store(kobj: ModuleKobject, data: bytes) -> None:
        text = data.removesuffix(b"\n").decode("latin-1")
        kobj.module.params[param.name] = param.parse(text)

    return Attribute(param.name, param.mode, show, store if param.mode & 0o222 else None)


class ModuleSysfs:
    """Keeps ``module/`` in step with the table of modules."""

    def __init__(self, core: DriverCore, table: ModuleTable[Any]) -> None:
        self._core = core
        builtin = core.module.add_child("module")
        builtin.add_groups([_policy_group(table)])

    def module_coming(self, module: LoadedModule) -> None:
        """Show a module that is being loaded."""
        kobj = ModuleKobject(self._core, module)
        self._core.module.add(kobj)
        parameters = [_parameter(p) for p in module.definitions.values() if p.mode]
        kobj.add_groups([MODULE_GROUP, AttributeGroup(parameters, name="parameters")])
        kobj.add_child("holders")
        for holders in self._holders_of(module):
            holders.create_link(kobj, module.name)
        self._core.uevent(kobj, Action.ADD, "module", [])

    def module_gone(self, module: LoadedModule) -> None:
        """Take a module's directory out."""
        kobj = self._core.module.lookup(module.name)
        if not isinstance(kobj, ModuleKobject) or kobj.module is not module:
            return
        for holders in self._holders_of(module):
            holders.remove_link(module.name)
        self._core.uevent(kobj, Action.REMOVE, "module", [])
        kobj.delete()

    def _holders_of(self, module: LoadedModule) -> Iterator[Kobject]:
        for name in module.depends:
            dependency = self._core.module.lookup(name)
            if isinstance(dependency, Kobject):
                holders = dependency.lookup("holders")
                if isinstance(holders, Kobject):
                    yield holders


def _policy_group(table: ModuleTable[Any]) -> AttributeGroup:
    def store(_: Kobject, data: bytes) -> None:
        table.autoprobe_default = kstrtobool(data.decode("latin-1"))

    def show(_: Kobject) -> str:
        return "Y\n" if table.autoprobe_default else "N\n"

    return AttributeGroup([Attribute("modules_autoprobe", 0o644, show, store)], name="parameters")
