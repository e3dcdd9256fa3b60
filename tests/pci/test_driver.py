# SPDX-License-Identifier: MIT
"""PCI drivers: which devices they take, and the managed calls they make."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.machines import Shell, boot, fails, pci
from tsmfs.base.driver import driver_register
from tsmfs.kernel.module import LoadedModule
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource
from tsmfs.pci.driver import pci_driver_register, pcim_enable_device, pcim_iomap_region
from tsmfs.pci.pci_dev import PCI_ANY_ID, PciDev, PciDeviceId, PciDriver

#: Vendor and device: 1af4:1041 the NIC, 1af4:1050 two functions of the GPU.
NIC, GPU = "0000:01:00.0", "0000:04:00.0"
GPU_AUDIO, GPU_PARTITION = "0000:04:00.1", "0000:04:00.2"


def register(
    sh: Shell,
    *ids: PciDeviceId,
    name: str = "test",
    probe: Callable[[PciDev], object] = lambda dev: None,
) -> PciDriver:
    class Driver(PciDriver):
        __slots__ = ()
        id_table: Sequence[PciDeviceId] = ids  # type: ignore[misc]

        def probe(self, dev: PciDev) -> None:
            probe(dev)

    driver = Driver(sh.machine.core, sh.machine.pci.bus_type, name, None)
    driver_register(driver)
    return driver


def bound(driver: PciDriver) -> list[str]:
    return sorted(driver.devices)


def echo_id(sh: Shell, text: str, file: str = "new_id") -> None:
    sh.echo(text, f"/bus/pci/drivers/test/{file}")


@pytest.fixture
def sh() -> Shell:
    return boot("server", [])


# Matching


@pytest.mark.parametrize(
    ("entry", "taken"),
    [
        (PciDeviceId(0x1AF4, 0x1050), [GPU, GPU_PARTITION]),
        (PciDeviceId(PCI_ANY_ID, 0x1041), [NIC]),
        (PciDeviceId(0x1AF4, 0x1041, 0x1AF4, PCI_ANY_ID), [NIC]),
        (PciDeviceId(0x1AF4, 0x1041, 0x8086, PCI_ANY_ID), []),
        (PciDeviceId(0x1AF4, 0x1041, PCI_ANY_ID, 0xBAD), []),
        (PciDeviceId(PCI_ANY_ID, PCI_ANY_ID, class_code=0x030200, class_mask=0xFFFF00),
         [GPU, GPU_PARTITION]),
        (PciDeviceId(PCI_ANY_ID, PCI_ANY_ID, class_code=0x040300, class_mask=0xFF0000),
         [GPU_AUDIO]),
        (PciDeviceId(0x1AF4, 0x1050, override_only=True), []),
    ],
)  # fmt: skip
def test_a_driver_takes_what_its_table_matches(
    sh: Shell, entry: PciDeviceId, taken: list[str]
) -> None:
    assert bound(register(sh, entry)) == taken


def test_an_override_keeps_every_other_driver_away(sh: Shell) -> None:
    sh.echo("other", f"{pci(GPU)}/driver_override")
    driver = register(sh, PciDeviceId(0x1AF4, 0x1050))
    assert bound(driver) == [GPU_PARTITION]
    with fails(errno.ENODEV):
        sh.echo(GPU, "/bus/pci/drivers/test/bind")


@pytest.mark.parametrize("table", [(), (PciDeviceId(0x1AF4, 0x1041, override_only=True),)])
def test_an_override_brings_the_driver_whatever_its_table_says(
    sh: Shell, table: tuple[PciDeviceId, ...]
) -> None:
    driver = register(sh, *table)
    with fails(errno.ENODEV):
        sh.echo(NIC, "/bus/pci/drivers/test/bind")
    sh.echo("test", f"{pci(NIC)}/driver_override")
    assert bound(driver) == []
    sh.echo(NIC, "/bus/pci/drivers_probe")
    assert bound(driver) == [NIC]


def test_the_entry_that_matched_is_found_dynamic_ones_first(sh: Shell) -> None:
    static = PciDeviceId(0x1AF4, 0x1041, driver_data=1)
    driver = register(sh, static)
    dev = sh.dev(NIC)
    assert driver.match_id(dev) is static
    driver.dynids.append(PciDeviceId(0x1AF4, 0x1041, driver_data=2))
    found = driver.match_id(dev)
    assert found is not None
    assert found.driver_data == 2
    assert driver.match_id(sh.dev(GPU)) is None


# new_id and remove_id


def test_new_id_attaches_at_once_and_remove_id_detaches_nothing(sh: Shell) -> None:
    driver = register(sh)
    echo_id(sh, "1af4 1050")
    assert bound(driver) == [GPU, GPU_PARTITION]
    echo_id(sh, "1af4 1050", "remove_id")
    assert bound(driver) == [GPU, GPU_PARTITION]
    assert driver.dynids == []
    sh.echo(GPU, "/bus/pci/drivers/test/unbind")
    with fails(errno.ENODEV):
        sh.echo(GPU, "/bus/pci/drivers/test/bind")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1af4 1041", PciDeviceId(0x1AF4, 0x1041)),
        ("0x1AF4 0X1041", PciDeviceId(0x1AF4, 0x1041)),
        ("  1af4\t1041  ", PciDeviceId(0x1AF4, 0x1041)),
        ("1af4 1041 1 2", PciDeviceId(0x1AF4, 0x1041, 1, 2)),
        ("1 2 3 4 30200 ffff00 9", PciDeviceId(1, 2, 3, 4, 0x30200, 0xFFFF00, 9)),
        ("1 2 3 4 5 6 7 8 9", PciDeviceId(1, 2, 3, 4, 5, 6, 7)),
        ("1 2 what", PciDeviceId(1, 2)),
        ("1 2,3", PciDeviceId(1, 2)),
        ("1 2 -3", PciDeviceId(1, 2)),
    ],
)
def test_an_id_is_read_as_hexadecimal_words(sh: Shell, text: str, expected: PciDeviceId) -> None:
    driver = register(sh)
    echo_id(sh, text)
    assert driver.dynids == [expected]


@pytest.mark.parametrize("text", ["", "1af4", "what", "1af4 xyz", "1_af4 1041", "-1 -1", "\0", ","])
@pytest.mark.parametrize("file", ["new_id", "remove_id"])
def test_an_id_of_less_than_two_words_is_invalid(sh: Shell, file: str, text: str) -> None:
    register(sh)
    with fails(errno.EINVAL):
        echo_id(sh, text, file)


def test_an_id_that_is_known_exists(sh: Shell) -> None:
    driver = register(sh, PciDeviceId(0x1AF4, PCI_ANY_ID), PciDeviceId(1, 2, override_only=True))
    for text in ("1af4 1041", "1af4 1041 1 1"):
        with fails(errno.EEXIST):
            echo_id(sh, text)
    echo_id(sh, "1 2")
    with fails(errno.EEXIST):
        echo_id(sh, "1 2")
    # All seven words are taken for meant.
    echo_id(sh, "1 2 3 4 5 6 0")
    assert len(driver.dynids) == 2


def test_driver_data_must_be_one_of_the_tables(sh: Shell) -> None:
    driver = register(sh, PciDeviceId(1, 2, driver_data=7))
    with fails(errno.EINVAL):
        echo_id(sh, "3 4")
    echo_id(sh, "3 4 5 6 0 0 7")
    assert driver.dynids[0].driver_data == 7


def test_remove_id_takes_an_id_that_new_id_brought(sh: Shell) -> None:
    driver = register(sh, PciDeviceId(1, 2))
    echo_id(sh, "3 4")
    echo_id(sh, "5 6 7 8 9 a")
    for text in ("1 2", "3 5", "5 6 1 8", "5 6 7 8 f ff"):
        with fails(errno.ENODEV):
            echo_id(sh, text, "remove_id")
    echo_id(sh, "5 6", "remove_id")
    echo_id(sh, "3 4", "remove_id")
    assert driver.dynids == []


# Managed calls


def enabled(sh: Shell, name: str) -> str:
    return sh.cat(f"{pci(name)}/enable")


def test_a_device_is_enabled_until_its_driver_goes(sh: Shell) -> None:
    register(sh, PciDeviceId(0x1AF4, 0x1041), probe=pcim_enable_device)
    assert enabled(sh, NIC) == "1\n"
    sh.echo(NIC, "/bus/pci/drivers/test/unbind")
    assert enabled(sh, NIC) == "0\n"


def test_a_mapped_region_is_listed_until_its_driver_goes(sh: Shell) -> None:
    before = sh.iomem()
    register(
        sh, PciDeviceId(0x1AF4, 0x1041), probe=lambda dev: pcim_iomap_region(dev, 2, "my driver")
    )
    assert "      84000000-8400ffff : my driver\n" in sh.iomem()
    sh.echo(NIC, "/bus/pci/drivers/test/unbind")
    assert sh.iomem() == before


@pytest.mark.parametrize(("bar", "number"), [(1, errno.EINVAL), (5, errno.EINVAL)])
def test_a_bar_that_is_not_there_cannot_be_mapped(sh: Shell, bar: int, number: int) -> None:
    with fails(number):
        pcim_iomap_region(sh.dev(NIC), bar, "x")


def test_a_bar_without_a_place_cannot_be_mapped(sh: Shell) -> None:
    dev = sh.dev(NIC)
    bar = dev.resource[2]
    assert bar is not None
    bar.release()
    with fails(errno.EINVAL):
        pcim_iomap_region(dev, 2, "x")


def test_a_bar_is_mapped_once(sh: Shell) -> None:
    dev = sh.dev(NIC)
    pcim_iomap_region(dev, 2, "first")
    with fails(errno.EBUSY):
        pcim_iomap_region(dev, 2, "second")


@pytest.mark.parametrize("part", [(0, 0), (0, -0x1000), (0x1000, 0)])
def test_a_bar_any_part_of_which_is_private_cannot_be_mapped(
    sh: Shell, part: tuple[int, int]
) -> None:
    dev = sh.dev(NIC)
    bar = dev.resource[2]
    assert bar is not None
    private = Resource(bar.start + part[0], bar.end + part[1], "PCI MMIO Encrypted", IORESOURCE_MEM)
    sh.machine.iomem.insert(private)
    with fails(errno.EINVAL):
        pcim_iomap_region(dev, 2, "x")
    private.remove()
    pcim_iomap_region(dev, 2, "x")


def test_a_driver_is_registered_as_long_as_its_module_is_loaded(sh: Shell) -> None:
    params: Any = {"autoprobe": True}
    module = LoadedModule("mod", params, {})
    driver = PciDriver(sh.machine.core, sh.machine.pci.bus_type, "test", module)
    pci_driver_register(driver, module)
    assert sh.exists("/bus/pci/drivers/test")
    module.unwind()
    assert not sh.exists("/bus/pci/drivers/test")


def test_a_driver_without_sriov_support_says_so(sh: Shell) -> None:
    driver = register(sh)
    with fails(errno.ENOENT):
        driver.sriov_configure(sh.dev(NIC), 1)
