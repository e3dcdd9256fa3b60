# SPDX-License-Identifier: MIT
"""The top of the tree."""

from __future__ import annotations

from tsmfs.base.core import DriverCore
from tsmfs.base.kobject import Kobject, find


def test_the_top_has_what_tools_look_for(core: DriverCore) -> None:
    assert set(core.root.names()) == {
        "block", "bus", "class", "dev", "devices", "firmware", "fs", "kernel", "module", "power",
    }  # fmt: skip
    for path in ("/dev/block", "/dev/char", "/kernel/uevent_seqnum"):
        assert find(core.root, path) is not None


def test_the_top_is_nobodys_to_write(core: DriverCore) -> None:
    assert core.root.inode().mode == 0o555


def test_virtual_parents_are_made_once(core: DriverCore) -> None:
    tsm = core.virtual_parent("tsm")
    assert tsm.path() == "/devices/virtual/tsm"
    assert core.virtual_parent("tsm") is tsm
    assert isinstance(core.virtual_parent("net").parent, Kobject)
    assert core.virtual_parent("net").parent is tsm.parent
