# SPDX-License-Identifier: MIT
"""``module/``: what user space sees of loaded modules."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.machines import fails, summary
from tsmfs.base.core import DriverCore
from tsmfs.base.kobject import File, Link, find
from tsmfs.base.module import ModuleSysfs
from tsmfs.base.uevent import Uevent
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule, Module, ModuleTable, Param, ParamType

Table = ModuleTable[DriverCore]
Init = Callable[[DriverCore, LoadedModule], None]

PARAMS = (
    Param("flag", ParamType.BOOL, False, "a boolean", mode=0o644),
    Param("count", ParamType.INT, 7, "an integer", mode=0o600),
    Param("text", ParamType.CHARP, "none", "a text"),
    Param("hidden", ParamType.BOOL, True, "not shown", mode=0),
)


def nothing(core: DriverCore, module: LoadedModule) -> None:
    pass


def failing(core: DriverCore, module: LoadedModule) -> None:
    fail(errno.ENODEV)


@pytest.fixture
def table(core: DriverCore) -> Table:
    modules: list[Module[DriverCore]] = [
        Module("base", nothing, "Base"),
        Module("user", nothing, "User", PARAMS, depends=("base",), version="1.2"),
        Module("other", nothing, "Other user", depends=("base",)),
        Module("bad", failing, "Fails", PARAMS, depends=("base",)),
    ]
    made = Table(modules, core.log, core)
    made.observers.append(ModuleSysfs(core, made))
    return made


def node(core: DriverCore, path: str) -> File:
    found = find(core.root, f"/module/{path}")
    assert isinstance(found, File), path
    return found


def cat(core: DriverCore, path: str) -> str:
    return node(core, path).show().decode()


def names(core: DriverCore, path: str = "") -> set[str]:
    found = find(core.root, f"/module/{path}")
    return set(getattr(found, "names")())  # noqa: B009 - any kind of directory


def test_a_loaded_module_has_its_files(core: DriverCore, table: Table) -> None:
    table.modprobe("user", "count=3")
    assert names(core, "user") == {
        "coresize", "holders", "initsize", "initstate", "parameters", "refcnt", "taint", "uevent",
        "version",
    }  # fmt: skip
    assert names(core, "base") == names(core, "user") - {"version"}
    assert {n: cat(core, f"user/{n}") for n in ("initstate", "refcnt", "version", "taint")} == {
        "initstate": "live\n",
        "refcnt": "0\n",
        "version": "1.2\n",
        "taint": "\n",
    }
    assert (cat(core, "user/coresize"), cat(core, "user/initsize")) == ("16384\n", "0\n")


def test_parameters_are_files_with_their_modes(core: DriverCore, table: Table) -> None:
    table.modprobe("user", "flag=1")
    assert {
        n: (node(core, f"user/parameters/{n}").mode, cat(core, f"user/parameters/{n}"))
        for n in names(core, "user/parameters")
    } == {
        "flag": (0o644, "Y\n"),
        "count": (0o600, "7\n"),
        "text": (0o444, "none\n"),
        "autoprobe": (0o644, "Y\n"),
    }


def test_parameters_can_be_written_if_their_mode_says_so(core: DriverCore, table: Table) -> None:
    table.modprobe("user")
    node(core, "user/parameters/count").store(b"0x10\n")
    node(core, "user/parameters/autoprobe").store(b"off\n")
    assert table.loaded["user"].params["count"] == 16
    assert not table.loaded["user"].autoprobe
    assert not node(core, "user/parameters/text").writable
    for data in (b"x\n", b"", b"1 2", b"\xff"):
        if data:
            with fails(errno.EINVAL):
                node(core, "user/parameters/count").store(data)
    with fails(errno.ERANGE):
        node(core, "user/parameters/count").store(b"0x100000000")
    assert cat(core, "user/parameters/count") == "16\n"


def test_holders_are_links_to_who_depends(core: DriverCore, table: Table) -> None:
    table.modprobe("user")
    table.modprobe("other")
    assert names(core, "base/holders") == {"user", "other"}
    link = find(core.root, "/module/base/holders/user")
    assert isinstance(link, Link)
    assert link.readlink() == "../../user"
    assert cat(core, "base/refcnt") == "2\n"
    table.rmmod("user")
    assert names(core, "base/holders") == {"other"}
    assert cat(core, "base/refcnt") == "1\n"


def test_a_module_that_goes_leaves_nothing(
    core: DriverCore, table: Table, heard: list[Uevent]
) -> None:
    table.modprobe("user")
    table.rmmod("user")
    table.rmmod("base")
    assert names(core) == {"module"}
    assert summary(heard) == ["add base", "add user", "remove user", "remove base"]
    assert {event.subsystem for event in heard} == {"module"}


def test_a_failed_init_leaves_nothing(core: DriverCore, table: Table, heard: list[Uevent]) -> None:
    table.modprobe("base")
    with fails(errno.ENODEV):
        table.modprobe("bad")
    assert names(core) == {"module", "base"}
    assert names(core, "base/holders") == set()
    assert cat(core, "base/refcnt") == "0\n"
    assert summary(heard) == ["add base", "add bad", "remove bad"]


def test_while_it_initializes_a_module_is_coming(core: DriverCore) -> None:
    seen: list[str] = []

    def init(core: DriverCore, module: LoadedModule) -> None:
        seen.append(cat(core, "slow/initstate") + cat(core, "slow/refcnt"))
        module.on_exit(lambda: seen.append(cat(core, "slow/initstate")))

    table = Table([Module("slow", init, "Slow")], core.log, core)
    table.observers.append(ModuleSysfs(core, table))
    table.modprobe("slow")
    table.rmmod("slow")
    assert seen == ["coming\n1\n", "going\n"]


def test_a_name_that_is_taken_in_sysfs_stays_with_who_has_it(core: DriverCore) -> None:
    table = Table([Module("module", nothing, "Called as the built-in one")], core.log, core)
    table.observers.append(ModuleSysfs(core, table))
    with fails(errno.EEXIST):
        table.modprobe("module")
    assert table.loaded == {}
    assert cat(core, "module/parameters/modules_autoprobe") == "Y\n"


@pytest.mark.parametrize(("text", "on"), [(b"0\n", False), (b"N", False), (b"1\n", True)])
def test_the_policy_for_modules_to_come_is_a_parameter(
    core: DriverCore, table: Table, text: bytes, on: bool
) -> None:
    policy = node(core, "module/parameters/modules_autoprobe")
    assert (policy.mode, policy.show()) == (0o644, b"Y\n")
    policy.store(text)
    assert policy.show() == (b"Y\n" if on else b"N\n")
    table.modprobe("user")
    assert table.loaded["user"].autoprobe is on


def test_the_policy_is_a_boolean(core: DriverCore, table: Table) -> None:
    for text in (b"\n", b"2", b"maybe", b"\xff\0"):
        with fails(errno.EINVAL):
            node(core, "module/parameters/modules_autoprobe").store(text)
    assert table.autoprobe_default
