# SPDX-License-Identifier: MIT
"""A PCI function of the running kernel and an emulated one, side by side, line by line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REAL = Path("/sys/bus/pci/devices")
EMULATED = "10000:01:00.0"

# Every difference that may be, and why. A difference that is not here fails the test, and so does
# an explanation that cannot be the reason.
ONLY_REAL: Mapping[str, str] = {
    "firmware_node": "its description comes from ACPI",
    "waiting_for_supplier": "it has a firmware node, and with it fw_devlink",
    "firmware": "its description comes from ACPI",
    "msi_irqs": "its driver has enabled MSI",
    "driver": "it has a driver bound",
    "iommu": "it is behind an IOMMU",
    "iommu_group": "it is behind an IOMMU",
    "rom": "it has an expansion ROM",
    "label": "its firmware labels it",
    "acpi_index": "its firmware labels it",
    "index": "its firmware labels it",
    "boot_vga": "it is a VGA device",
}
ONLY_REAL_PATTERNS: Mapping[str, str] = {
    r"virtio[0-9]+|net|nvme|drm|ata[0-9]+|pci_bus": "a driver made it, or it is a bridge",
    r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7].*": "it is a bridge",
    r"resource[0-9].*": "it has a BAR that the emulated one has not",
}
PCIE = {
    "current_link_speed",
    "current_link_width",
    "max_link_speed",
    "max_link_width",
}
ONLY_EMULATED: Mapping[str, str] = {
    **dict.fromkeys(PCIE, "it is PCI Express"),
    "reset": "it has FLR",
    "reset_method": "it has FLR",
    "resource0": "the running kernel may be built without mmap of BARs",
    "resource0_wc": "its BAR 0 is prefetchable",
    "tsm": "there is a TSM, and it has IDE and TEE-I/O",
    "authenticated": "there is a TSM, and it has IDE and TEE-I/O",
}
SIZES: Mapping[str, str] = {"config": "PCI Express has 4096 bytes, conventional PCI 256"}


def real_function() -> Path:
    functions = sorted(REAL.iterdir())
    assert functions, "this machine has no PCI function to compare with"
    # One with a driver shows more than one without.
    return next((f for f in functions if (f / "driver").exists()), functions[0])


def names(directory: Path) -> set[str]:
    return {entry.name for entry in os.scandir(directory)}


def test_names_differ_only_where_the_devices_do(devsec: Path) -> None:
    real, emulated = real_function(), devsec / "bus/pci/devices" / EMULATED
    for name in sorted(names(real) - names(emulated)):
        reason = ONLY_REAL.get(name) or next(
            (why for pattern, why in ONLY_REAL_PATTERNS.items() if re.fullmatch(pattern, name)),
            None,
        )
        assert reason, f"{name}: the kernel shows it, the emulated function does not"
        print(f"< {name}: {reason}")
    for name in sorted(names(emulated) - names(real)):
        assert name in ONLY_EMULATED, f"{name}: the kernel shows no such file"
        print(f"> {name}: {ONLY_EMULATED[name]}")
    if not (real / "current_link_speed").exists():
        assert (real / "config").stat().st_size == 256, "PCI Express, and no link attributes"


def test_modes_sizes_and_types_of_common_files_are_the_same(devsec: Path) -> None:
    real, emulated = real_function(), devsec / "bus/pci/devices" / EMULATED
    common = names(real) & names(emulated)
    assert len(common) >= 25
    for name in sorted(common):
        ours, theirs = (emulated / name).lstat(), (real / name).lstat()
        assert oct(ours.st_mode) == oct(theirs.st_mode), name
        assert (ours.st_uid, ours.st_gid, ours.st_blksize) == (0, 0, theirs.st_blksize), name
        if ours.st_size != theirs.st_size:
            assert name in SIZES, f"{name}: {ours.st_size} bytes, the kernel {theirs.st_size}"
        if not stat.S_ISDIR(ours.st_mode):
            assert ours.st_nlink == theirs.st_nlink == 1, name


def test_directories_in_common_hold_the_same_files(devsec: Path) -> None:
    real, emulated = real_function(), devsec / "bus/pci/devices" / EMULATED
    for name in ("power", "link"):
        if not (real / name).is_dir():
            continue
        ours = {n: oct((emulated / name / n).stat().st_mode) for n in names(emulated / name)}
        theirs = {n: oct((real / name / n).stat().st_mode) for n in names(real / name)}
        optional = {n for n in theirs if n.startswith(("wakeup", "async", "l0s", "l1", "clkpm"))}
        assert ours == {n: mode for n, mode in theirs.items() if n not in optional}


def test_links_have_the_shape_of_the_kernels(devsec: Path) -> None:
    real = real_function()
    for name in ("subsystem",):
        for device, root in ((real, Path("/sys")), (devsec / "bus/pci/devices" / EMULATED, devsec)):
            place = device.resolve()
            depth = len(place.relative_to(root).parts)
            assert os.readlink(device / name) == "../" * depth + "bus/pci", device
    for device in (real, devsec / "bus/pci/devices" / EMULATED):
        assert os.readlink(device).startswith("../../../devices/")
        assert os.readlink(device).endswith(device.name)
        assert (device / "subsystem").resolve().name == "pci"


FORMATS: Mapping[str, str] = {
    "vendor": r"0x[0-9a-f]{4}\n",
    "device": r"0x[0-9a-f]{4}\n",
    "subsystem_vendor": r"0x[0-9a-f]{4}\n",
    "subsystem_device": r"0x[0-9a-f]{4}\n",
    "revision": r"0x[0-9a-f]{2}\n",
    "class": r"0x[0-9a-f]{6}\n",
    "irq": r"[0-9]+\n",
    "resource": r"(0x[0-9a-f]{16} 0x[0-9a-f]{16} 0x[0-9a-f]{16}\n)+",
    "modalias": r"pci:v[0-9A-F]{8}d[0-9A-F]{8}sv[0-9A-F]{8}sd[0-9A-F]{8}"
    r"bc[0-9A-F]{2}sc[0-9A-F]{2}i[0-9A-F]{2}\n",
    "local_cpus": r"[0-9a-f,]+\n",
    "local_cpulist": r"[0-9,-]+\n",
    "numa_node": r"-?[0-9]+\n",
    "enable": r"[0-9]+\n",
    "dma_mask_bits": r"[0-9]+\n",
    "consistent_dma_mask_bits": r"[0-9]+\n",
    "broken_parity_status": r"[01]\n",
    "msi_bus": r"[01]\n",
    "ari_enabled": r"[01]\n",
    "d3cold_allowed": r"[01]\n",
    "driver_override": r"\(null\)\n",
    "power_state": r"D[0-3](hot|cold)?\n|unknown\n",
    "uevent": r"(DRIVER=\S+\n)?PCI_CLASS=[0-9A-F]{4,6}\nPCI_ID=[0-9A-F]{4}:[0-9A-F]{4}\n"
    r"PCI_SUBSYS_ID=[0-9A-F]{4}:[0-9A-F]{4}\nPCI_SLOT_NAME=\S+\nMODALIAS=pci:\S+\n",
    "power/control": r"on\n|auto\n",
    "power/runtime_status": r"active\n|suspended\n",
    "power/runtime_active_time": r"[0-9]+\n",
    "power/runtime_suspended_time": r"[0-9]+\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_text_has_the_same_form(devsec: Path, name: str) -> None:
    for device in (real_function(), devsec / "bus/pci/devices" / EMULATED):
        if name == "d3cold_allowed" and not (device / name).exists():
            assert device.is_relative_to(REAL), "only a kernel without ACPI lacks it"
            continue
        assert re.fullmatch(FORMATS[name], (device / name).read_text()), f"{device}/{name}"


def test_machine_wide_values_are_the_same(devsec: Path) -> None:
    for name in ("local_cpus", "local_cpulist"):
        ours = (devsec / "bus/pci/devices" / EMULATED / name).read_text()
        assert ours == (real_function() / name).read_text()


def write(path: Path, data: bytes) -> str:
    """The name of the errno that a write gives, or how many bytes it took."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError as error:
        return f"open: {os.strerror(error.errno or 0)}"
    try:
        return f"{os.write(descriptor, data)} of {len(data)}"
    except OSError as error:
        return os.strerror(error.errno or 0)
    finally:
        os.close(descriptor)


# Writes that change nothing, asked of both trees. {real} stands for the function's own name.
WRITES = [
    ("{device}/uevent", b"foo\n"),
    ("{device}/uevent", b"add 1\n"),
    ("{device}/uevent", b"add 12345678-1234-1234-1234-123456789abc A\n"),
    ("{device}/uevent", b"\n"),
    ("{device}/remove", b"x\n"),
    ("{device}/remove", b"0\n"),
    ("{device}/rescan", b"\n"),
    ("{device}/rescan", b"0\n"),
    ("{device}/rescan", b"0x\n"),
    ("{device}/enable", b"maybe\n"),
    ("{device}/numa_node", b"x\n"),
    ("{device}/numa_node", b"99999\n"),
    ("{device}/numa_node", b"-2\n"),
    ("{device}/msi_bus", b"x\n"),
    ("{device}/d3cold_allowed", b"x\n"),
    ("{device}/broken_parity_status", b"x\n"),
    ("{device}/power/control", b"off\n"),
    ("{device}/power/autosuspend_delay_ms", b"1\n"),
    ("{device}/driver_override", b"x" * 4095),
    ("{device}/driver_override", b"x" * 4096),
    ("{device}/vendor", b"1\n"),
    ("bus/pci/drivers_probe", b"nothing\n"),
    ("bus/pci/drivers_probe", b"\n"),
    ("bus/pci/rescan", b"x\n"),
    ("bus/pci/rescan", b"0\n"),
    ("bus/pci/uevent", b"nothing\n"),
    ("{driver}/bind", b"nothing\n"),
    ("{driver}/bind", b"\n"),
    ("{driver}/bind", b"{name}\n"),
    ("{driver}/unbind", b"nothing\n"),
    ("{driver}/new_id", b"5\n"),
    ("{driver}/new_id", b"x y\n"),
    ("{driver}/remove_id", b"5\n"),
    ("{driver}/remove_id", b"ffff 1234\n"),
    ("{driver}/uevent", b"nothing\n"),
]


@pytest.fixture
def bound(devsec: Path) -> Iterator[Path]:
    """The emulated function with a driver, as the real one has."""
    device = devsec / "bus/pci/devices" / EMULATED
    (devsec / "kernel/tsmfs/modprobe").write_text("devsec_pci\n")
    (device / "driver_override").write_text("devsec_pci\n")
    (devsec / "bus/pci/drivers_probe").write_text(f"{EMULATED}\n")
    yield device
    (devsec / "kernel/tsmfs/rmmod").write_text("devsec_pci\n")
    (device / "driver_override").write_text("\n")


@pytest.mark.parametrize(("path", "data"), WRITES, ids=lambda value: repr(value)[:40])
def test_a_write_gives_the_errno_of_the_kernel(
    devsec: Path, bound: Path, path: str, data: bytes
) -> None:
    real = real_function()
    assert (real / "driver").exists()
    answers = []
    for root, device in ((Path("/sys"), real), (devsec, bound)):
        driver = (device / "driver").resolve()
        place = Path(path.format(device=device, driver=driver))
        payload = data.replace(b"{name}", device.name.encode())
        answers.append(write(place if place.is_absolute() else root / place, payload))
    # Names differ in length; what counts is whether all was taken.
    ours, theirs = (re.sub(r"^(\d+) of \1$", "all", answer) for answer in reversed(answers))
    assert ours == theirs


def test_the_driver_link_and_module_have_the_kernels_shape(devsec: Path, bound: Path) -> None:
    for root, device in ((Path("/sys"), real_function()), (devsec, bound)):
        driver = (device / "driver").resolve()
        assert driver.parent == (root / "bus/pci/drivers").resolve()
        assert (driver / device.name).resolve() == device.resolve()
        modes = {n: oct((driver / n).stat().st_mode) for n in ("bind", "unbind", "new_id")}
        assert set(modes.values()) == {oct(stat.S_IFREG | 0o200)}


def test_reading_at_offsets_is_the_kernels(devsec: Path) -> None:
    for device in (real_function(), devsec / "bus/pci/devices" / EMULATED):
        descriptor = os.open(device / "modalias", os.O_RDONLY)
        try:
            whole = os.pread(descriptor, 4096, 0)
            assert os.pread(descriptor, 4, 4) == whole[4:8]
            assert os.pread(descriptor, 100, len(whole)) == b""
            assert os.lseek(descriptor, 0, os.SEEK_END) in (4096, len(whole))
        finally:
            os.close(descriptor)
