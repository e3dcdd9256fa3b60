# SPDX-License-Identifier: MIT
"""What modules find of the kernel they are loaded into."""

from __future__ import annotations

from tests.machines import boot
from tsmfs.drivers.devsec_common import DevsecCommon, common_of


def test_a_module_finds_the_cores_and_what_others_export() -> None:
    sh = boot("devsec")
    host = sh.machine.host
    assert host.core is sh.machine.core
    assert (host.pci, host.tsm, host.modules) == (
        sh.machine.pci,
        sh.machine.tsm,
        sh.machine.modules,
    )
    assert isinstance(common_of(host), DevsecCommon)


def test_exports_are_of_one_load() -> None:
    sh = boot("devsec", ["devsec_common"])
    first = common_of(sh.machine.host)
    sh.rmmod("devsec_common")
    sh.modprobe("devsec_common")
    assert common_of(sh.machine.host) is not first
