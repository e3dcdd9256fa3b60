# SPDX-License-Identifier: MIT
"""The PCI/TSM core: who may do what to which function, in which order, and what undoes it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import (
    STUCK,
    Caller,
    Shell,
    boot,
    errno_from,
    errno_of_result,
    fails,
    pci,
    threads,
)
from tsmfs.coco.tsm import TsmDevice
from tsmfs.kernel.errors import fail
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource
from tsmfs.kernel.task import running_as
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.tsm import (
    PciTdi,
    PciTsm,
    PciTsmCore,
    PciTsmDevsec,
    PciTsmDevsecOps,
    PciTsmLinkOps,
    PciTsmPf0,
    PciTsmReqScope,
    TsmDev,
    encrypt_memory_bars,
    find_dsm_dev,
    free_encrypted_resources,
    is_pci_tsm_pf0,
    link_constructor,
    parse_tsm_id,
    pci_mode,
    pf0_constructor,
    sysfs_streq,
)

NIC, NVME, ACCEL = "0000:01:00.0", "0000:81:00.0", "0000:00:08.0"
SWITCH, DOWNSTREAM = "0000:02:00.0", "0000:03:00.0"
GPU, GPU_AUDIO, GPU_PARTITION = "0000:04:00.0", "0000:04:00.1", "0000:04:00.2"
SECOND_GPU, SECOND_NVME = "0000:05:00.0", "0000:82:00.0"
PLAIN, BMC, PORT = "0000:06:00.0", "0000:00:1e.0", "0000:00:01.0"
VF = "0000:01:00.1"

VM, OTHER_VM = object(), object()

LINK = {"connect", "disconnect", "dsm", "bound"}
DEPENDENT = {"dsm", "bound"}
DEVSEC = {"lock", "unlock", "accept"}


@dataclass
class Script:
    """What a driver's operations do instead of nothing, and in which order they were called."""

    calls: list[str] = field(default_factory=list)
    instead: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def run(self, name: str, dev: PciDev, default: Callable[[], Any], *args: object) -> Any:
        self.calls.append(f"{name} {dev.name}")
        if name in self.instead:
            return self.instead[name](dev, *args)
        return default()

    def take(self) -> list[str]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class LinkOps(PciTsmLinkOps):
    """A link TSM that takes everything, unless its script says otherwise."""

    def __init__(self) -> None:
        self.script = Script()

    def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        def default() -> PciTsm:
            constructor = pf0_constructor if is_pci_tsm_pf0(pdev) else link_constructor
            return constructor(pdev, tsm_dev)

        made: PciTsm | None = self.script.run("probe", pdev, default, tsm_dev)
        return made

    def remove(self, tsm: PciTsm) -> None:
        self.script.run("remove", tsm.pdev, lambda: None)

    def connect(self, pdev: PciDev) -> None:
        self.script.run("connect", pdev, lambda: None)

    def disconnect(self, pdev: PciDev) -> None:
        self.script.run("disconnect", pdev, lambda: None)

    def bind(self, pdev: PciDev, kvm: object, tdi_id: int) -> PciTdi:
        tdi: PciTdi = self.script.run("bind", pdev, lambda: PciTdi(pdev, kvm, tdi_id))
        return tdi

    def unbind(self, tdi: PciTdi) -> None:
        self.script.run("unbind", tdi.pdev, lambda: None)

    def guest_req(self, tdi: PciTdi, scope: PciTsmReqScope, request: bytes) -> bytes:
        answer: bytes = self.script.run("guest_req", tdi.pdev, lambda: request[::-1], scope)
        return answer


class DevsecOps(PciTsmDevsecOps):
    """A devsec TSM that locks everything, unless its script says otherwise."""

    def __init__(self) -> None:
        self.script = Script()

    def lock(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsmDevsec:
        tsm: PciTsmDevsec = self.script.run(
            "lock", pdev, lambda: PciTsmDevsec(pdev, tsm_dev), tsm_dev
        )
        return tsm

    def unlock(self, tsm: PciTsmDevsec) -> None:
        self.script.run("unlock", tsm.pdev, lambda: None)

    def accept(self, pdev: PciDev) -> None:
        self.script.run("accept", pdev, lambda: None)


class Rig:
    """The server with TSMs of the test's own."""

    def __init__(self) -> None:
        self.sh = boot("server", ["pci_stub", "pci_pf_stub"])
        host = self.sh.machine.host
        self.parent = host.faux.create("test")
        self.tsms = host.tsm
        self.core: PciTsmCore = host.pci.tsm

    def register(self, ops: LinkOps | DevsecOps) -> TsmDevice:
        return self.tsms.register(self.parent, ops)

    def link(self) -> LinkOps:
        """Register a link TSM."""
        ops = LinkOps()
        self.register(ops)
        return ops

    def devsec(self) -> DevsecOps:
        """Register a devsec TSM."""
        ops = DevsecOps()
        self.register(ops)
        return ops

    def dev(self, name: str) -> PciDev:
        return self.sh.dev(name)

    def echo(self, text: str, name: str, file: str) -> None:
        self.sh.echo(text, f"{pci(name)}/tsm/{file}")

    def cat(self, name: str, file: str) -> str:
        where = "authenticated" if file == "authenticated" else f"tsm/{file}"
        return self.sh.cat(f"{pci(name)}/{where}").removesuffix("\n")

    def files(self, name: str) -> set[str]:
        """What of ``tsm/`` and ``authenticated`` a function shows."""
        files = {name for name in self.sh.ls(pci(name)) if name == "authenticated"}
        if self.sh.exists(f"{pci(name)}/tsm"):
            below = self.sh.ls(f"{pci(name)}/tsm")
            assert below, "an empty directory"
            files |= below
        return files

    def connect(self, name: str, tsm: str = "tsm0") -> None:
        self.echo(tsm, name, "connect")

    def disconnect(self, name: str, tsm: str = "tsm0") -> None:
        self.echo(tsm, name, "disconnect")

    def bind(self, name: str, kvm: object = VM) -> None:
        self.core.bind(self.dev(name), kvm, 1)

    def drive(self, name: str) -> None:
        """Bind a driver to the function."""
        self.sh.echo("pci-stub", f"{pci(name)}/driver_override")
        self.sh.echo(name, "/bus/pci/drivers/pci-stub/bind")

    def undrive(self, name: str) -> None:
        self.sh.echo(name, "/bus/pci/drivers/pci-stub/unbind")

    def set_vfs(self, number: int) -> None:
        if not self.sh.exists(f"{pci(NIC)}/driver"):
            self.sh.echo("pci-pf-stub", f"{pci(NIC)}/driver_override")
            self.sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")
        self.sh.echo(str(number), f"{pci(NIC)}/sriov_numvfs")

    def control(self, file: str, text: str) -> None:
        self.sh.echo(text, f"/kernel/tsmfs/{file}")

    def contexts(self) -> set[str]:
        """Functions that some TSM holds."""
        return {dev.name for dev in self.sh.machine.pci.devices() if dev.tsm is not None}

    def context(self, name: str) -> PciTsm:
        tsm = self.dev(name).tsm
        assert tsm is not None
        return tsm


@pytest.fixture
def rig() -> Rig:
    return Rig()


def crash(*_: object) -> NoReturn:
    raise ZeroDivisionError


def declines(number: int) -> Callable[..., NoReturn]:
    return lambda *_: fail(number)


# What is visible


PF0_LINK = {*LINK, "authenticated"}

VISIBLE = {
    # A TSM of either mode, none of them, connected: each column adds to "link" and "devsec".
    NIC: (PF0_LINK, DEVSEC),
    SWITCH: (PF0_LINK, DEVSEC),
    ACCEL: (PF0_LINK, DEVSEC),
    NVME: (PF0_LINK - {"bound"}, set()),
    GPU: (set(), set()),
    GPU_AUDIO: (set(), set()),
    GPU_PARTITION: (set(), DEVSEC),
    DOWNSTREAM: (set(), set()),
    PLAIN: (set(), set()),
    BMC: (set(), set()),
    PORT: (set(), set()),
}
"""Files that each function of the server shows with a link TSM, and with a devsec TSM."""


@pytest.mark.parametrize("name", VISIBLE)
def test_files_are_visible_by_the_modes_of_the_tsms_there_are(rig: Rig, name: str) -> None:
    link, devsec = VISIBLE[name]
    assert rig.files(name) == set()
    one = rig.register(LinkOps())
    assert rig.files(name) == link
    two = rig.register(DevsecOps())
    assert rig.files(name) == link | devsec
    other = rig.register(LinkOps())
    rig.tsms.unregister(one)
    assert rig.files(name) == link | devsec
    rig.tsms.unregister(other)
    assert rig.files(name) == devsec
    rig.tsms.unregister(two)
    assert rig.files(name) == set()


def test_modes_of_the_files(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    assert {file: rig.sh.mode(f"{pci(NIC)}/tsm/{file}") for file in LINK | DEVSEC} == {
        "connect": 0o644,
        "disconnect": 0o200,
        "dsm": 0o444,
        "bound": 0o444,
        "lock": 0o644,
        "unlock": 0o200,
        "accept": 0o644,
    }
    assert rig.sh.mode(f"{pci(NIC)}/authenticated") == 0o444


@pytest.mark.parametrize(
    ("dsm", "dependents"),
    [(SWITCH, {GPU, GPU_AUDIO, GPU_PARTITION}), (NIC, {VF}), (ACCEL, set()), (NVME, set())],
)
def test_dependent_functions_show_dsm_and_bound_while_their_dsm_is_connected(
    rig: Rig, dsm: str, dependents: set[str]
) -> None:
    rig.set_vfs(1)
    rig.link()
    before = {name: rig.files(name) for name in rig.sh.devices()}
    rig.connect(dsm)
    assert rig.contexts() == {dsm, *dependents}
    for name in rig.sh.devices():
        more = {*DEPENDENT, "authenticated"} if name in dependents else set()
        assert rig.files(name) == before[name] | more
    for name in dependents:
        assert (rig.cat(name, "dsm"), rig.cat(name, "bound")) == (dsm, "")
        assert rig.cat(name, "authenticated") == "tsm0"
    rig.disconnect(dsm)
    assert {name: rig.files(name) for name in rig.sh.devices()} == before
    assert rig.contexts() == set()


def test_a_device_whose_dsm_has_no_tee_io_has_no_dependents(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(NVME)
    assert ops.script.take() == [f"probe {NVME}", f"connect {NVME}"]
    assert (rig.cat(NVME, "connect"), rig.cat(NVME, "dsm")) == ("tsm0", NVME)
    assert "bound" not in rig.files(NVME)


def test_what_is_read_of_a_device_that_nobody_holds(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    files = ("connect", "dsm", "bound", "lock", "accept", "authenticated")
    assert [rig.cat(NIC, file) for file in files] == ["", "", "", "", "0", ""]


def test_what_is_read_of_a_connected_device(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    rig.connect(NIC)
    files = ("connect", "dsm", "bound", "lock", "accept", "authenticated")
    assert [rig.cat(NIC, f) for f in files] == ["tsm0", NIC, "", "tsm0", "0", "tsm0"]
    rig.bind(NIC)
    assert rig.cat(NIC, "bound") == "tsm0"


def test_what_is_read_of_a_locked_device(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    rig.echo("tsm1", NIC, "lock")
    files = ("connect", "dsm", "bound", "lock", "accept", "authenticated")
    assert [rig.cat(NIC, f) for f in files] == ["tsm1", "", "", "tsm1", "0", "tsm1"]
    rig.echo("1", NIC, "accept")
    assert rig.cat(NIC, "accept") == "1"


def test_a_locked_function_that_is_no_dsm_shows_who_holds_it(rig: Rig) -> None:
    rig.devsec()
    rig.echo("tsm0", GPU_PARTITION, "lock")
    assert rig.files(GPU_PARTITION) == DEVSEC
    link = rig.register(LinkOps())
    assert rig.files(GPU_PARTITION) == {*DEVSEC, "authenticated"}
    assert rig.cat(GPU_PARTITION, "authenticated") == "tsm0"
    rig.tsms.unregister(link)
    assert rig.files(GPU_PARTITION) == DEVSEC


# The form of the input


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"tsm0", 0),
        (b"tsm0\n", 0),
        (b"tsm12\n", 12),
        (b"tsm007", 7),
        (b"tsm 3", 3),
        (b"tsm\t\n3", 3),
        (b"tsm-1", -1),
        (b"tsm3 and more", 3),
        (b"tsm3x", 3),
        (b"tsm0x10", 0),
        (b"tsm4294967296", 0),
        (b"tsm4294967295", -1),
        (b"tsm2147483648", -(1 << 31)),
    ],
)
def test_a_tsm_is_named_as_sscanf_reads_it(data: bytes, number: int) -> None:
    assert parse_tsm_id(data) == number


NO_TSM = [b"\n", b"tsm", b"tsm\n", b"tsmx", b"tsm+1", b"tsm--1", b"tsm- 1", b" tsm0", b"TSM0",
          b"0", b"xtsm0", b"\0tsm0", b"tsm\xb2", b"\xff" * 4096]  # fmt: skip


@pytest.mark.parametrize("data", NO_TSM)
@pytest.mark.parametrize("file", ["connect", "lock"])
def test_what_names_no_tsm_is_invalid(rig: Rig, file: str, data: bytes) -> None:
    rig.link()
    rig.devsec()
    with fails(errno.EINVAL):
        rig.sh.write(f"{pci(NIC)}/tsm/{file}", data)
    # That is checked first of all.
    rig.connect(NIC)
    with fails(errno.EINVAL):
        rig.sh.write(f"{pci(NIC)}/tsm/{file}", data)


@given(st.binary(max_size=12) | st.from_regex(rb"tsm.{0,12}", fullmatch=True))
def test_any_bytes_are_a_number_or_invalid(data: bytes) -> None:
    assert errno_from(lambda: parse_tsm_id(data)) in (None, "EINVAL")


@pytest.mark.parametrize(
    ("data", "equal"),
    [
        (b"tsm0", True),
        (b"tsm0\n", True),
        (b"tsm0\0junk", True),
        (b"tsm0\n\n", False),
        (b"tsm0 ", False),
        (b"tsm00", False),
        (b"tsm", False),
        (b"", False),
        (b"\xff\xff", False),
    ],
)
def test_names_are_compared_as_sysfs_streq_does(data: bytes, equal: bool) -> None:
    assert sysfs_streq(data, "tsm0") is equal


# connect


def test_connect_probes_connects_and_then_offers_the_dependents(rig: Rig) -> None:
    rig.set_vfs(2)
    ops = rig.link()
    rig.connect(NIC)
    assert ops.script.take() == [
        f"probe {NIC}",
        f"connect {NIC}",
        "probe 0000:01:00.1",
        "probe 0000:01:00.2",
    ]
    assert rig.cat(NIC, "connect") == "tsm0"


def test_connect_to_what_is_connected_is_busy_before_anything_else(rig: Rig) -> None:
    rig.link()
    rig.connect(NIC)
    for tsm in ("tsm0", "tsm9"):
        with fails(errno.EBUSY):
            rig.connect(NIC, tsm)


def test_connect_to_what_is_locked_is_busy(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    rig.echo("tsm1", NIC, "lock")
    with fails(errno.EBUSY):
        rig.connect(NIC)


@pytest.mark.parametrize("tsm", ["tsm1", "tsm9", "tsm-1"])
def test_connect_to_no_link_tsm_is_no_such_device_or_address(rig: Rig, tsm: str) -> None:
    ops = rig.link()
    rig.devsec()
    with fails(errno.ENXIO):
        rig.connect(NIC, tsm)
    assert ops.script.calls == []


@pytest.mark.parametrize(
    "probe",
    [
        lambda *_: None,
        declines(errno.EBUSY),
        crash,
        lambda dev, tsm_dev: "nonsense",
        lambda dev, tsm_dev: PciTsm(dev.function_at(0).bus.self_dev, tsm_dev),
    ],
)
def test_a_tsm_that_declines_is_no_such_device_or_address(
    rig: Rig, probe: Callable[..., Any]
) -> None:
    ops = rig.link()
    ops.script.instead["probe"] = probe
    with fails(errno.ENXIO):
        rig.connect(NIC)
    assert ops.script.calls == [f"probe {NIC}"]
    assert rig.contexts() == set()


@pytest.mark.parametrize(
    ("connect", "number"),
    [(declines(errno.ETIMEDOUT), errno.ETIMEDOUT), (crash, errno.EIO)],
)
def test_a_connect_that_fails_leaves_no_context(
    rig: Rig, connect: Callable[..., Any], number: int
) -> None:
    ops = rig.link()
    files = rig.files(NIC)
    ops.script.instead["connect"] = connect
    with fails(number):
        rig.connect(NIC)
    assert ops.script.take() == [f"probe {NIC}", f"connect {NIC}", f"remove {NIC}"]
    assert rig.contexts() == set()
    assert (rig.cat(NIC, "connect"), rig.files(NIC)) == ("", files)
    del ops.script.instead["connect"]
    rig.connect(NIC)


def test_a_probe_that_gives_no_context_of_a_dsm_is_an_io_error(rig: Rig) -> None:
    ops = rig.link()
    ops.script.instead["probe"] = lambda dev, tsm_dev: PciTsm(dev, tsm_dev, dev)
    with fails(errno.EIO):
        rig.connect(NIC)
    assert ops.script.take() == [f"probe {NIC}", f"remove {NIC}"]
    assert rig.contexts() == set()


def test_a_remove_that_crashes_after_a_failed_connect_changes_nothing(rig: Rig) -> None:
    ops = rig.link()
    ops.script.instead = {"connect": declines(errno.ENOMEM), "remove": crash}
    with fails(errno.ENOMEM):
        rig.connect(NIC)
    assert rig.contexts() == set()
    assert "PCI/TSM: remove raised" in rig.sh.dmesg()


@pytest.mark.parametrize(
    ("point", "number", "calls"),
    [
        ("tsm_probe", errno.ENXIO, []),
        ("tsm_connect", errno.EBADMSG, [f"probe {NIC}", f"remove {NIC}"]),
    ],
)
def test_injected_faults_of_connect(rig: Rig, point: str, number: int, calls: list[str]) -> None:
    ops = rig.link()
    rig.sh.fault(point, errno="EBADMSG")
    with fails(number):
        rig.connect(NIC)
    assert ops.script.take() == calls
    assert rig.contexts() == set()
    rig.connect(NIC)


@pytest.mark.parametrize("probe", [lambda *_: None, declines(errno.EIO), crash, lambda *_: 5])
def test_a_dependent_that_fails_its_probe_has_no_context(
    rig: Rig, probe: Callable[..., Any]
) -> None:
    ops = rig.link()
    original = ops.probe

    def only_first(dev: PciDev, tsm_dev: TsmDev) -> Any:
        if dev.name == GPU_AUDIO:
            return probe(dev, tsm_dev)
        del ops.script.instead["probe"]
        try:
            return original(tsm_dev, dev)
        finally:
            ops.script.instead["probe"] = only_first

    ops.script.instead["probe"] = only_first
    rig.connect(SWITCH)
    assert rig.contexts() == {SWITCH, GPU, GPU_PARTITION}
    assert rig.files(GPU_AUDIO) == set()
    ops.script.take()
    rig.disconnect(SWITCH)
    assert f"remove {GPU_AUDIO}" not in ops.script.calls
    assert rig.contexts() == set()


def test_an_injected_probe_fault_may_hit_a_dependent(rig: Rig) -> None:
    rig.link()
    rig.sh.fault("tsm_probe", space=3)
    rig.connect(SWITCH)
    assert rig.contexts() == {SWITCH, GPU, GPU_PARTITION}


def test_a_locked_function_stays_locked_when_its_dsm_is_connected(rig: Rig) -> None:
    ops = rig.link()
    rig.devsec()
    rig.echo("tsm1", GPU_PARTITION, "lock")
    rig.connect(SWITCH)
    assert f"probe {GPU_PARTITION}" not in ops.script.take()
    assert rig.cat(GPU_PARTITION, "lock") == "tsm1"
    rig.disconnect(SWITCH)
    assert rig.contexts() == {GPU_PARTITION}


# disconnect


def test_disconnect_undoes_all_in_reverse(rig: Rig) -> None:
    rig.set_vfs(2)
    ops = rig.link()
    rig.connect(NIC)
    for name in (NIC, "0000:01:00.1", "0000:01:00.2"):
        rig.bind(name)
    ops.script.take()
    rig.disconnect(NIC)
    assert ops.script.take() == [
        "unbind 0000:01:00.2",
        "unbind 0000:01:00.1",
        f"unbind {NIC}",
        "remove 0000:01:00.2",
        "remove 0000:01:00.1",
        f"disconnect {NIC}",
        f"remove {NIC}",
    ]
    assert rig.contexts() == set()


@pytest.mark.parametrize("text", ["tsm0", "tsm1", "nonsense", ""])
def test_disconnect_of_what_is_not_connected(rig: Rig, text: str) -> None:
    rig.link()
    rig.devsec()
    with fails(errno.ENXIO):
        rig.disconnect(NIC, text)
    rig.echo("tsm1", NIC, "lock")
    with fails(errno.ENXIO):
        rig.disconnect(NIC, text)


@pytest.mark.parametrize("text", ["tsm1", "tsm", "tsm00", "tsm0 ", "tsm0\n", "", "\udcff", "1"])
def test_disconnect_from_another_tsm_is_invalid(rig: Rig, text: str) -> None:
    rig.link()
    rig.link()
    rig.connect(NIC)
    with fails(errno.EINVAL):
        rig.sh.write(f"{pci(NIC)}/tsm/disconnect", f"{text}\n".encode(errors="surrogateescape"))
    assert rig.cat(NIC, "connect") == "tsm0"


def test_an_injected_fault_keeps_the_connection(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(NIC)
    ops.script.take()
    rig.sh.fault("tsm_disconnect", errno="EAGAIN")
    with fails(errno.EAGAIN):
        rig.disconnect(NIC)
    assert ops.script.take() == []
    rig.disconnect(NIC)


@pytest.mark.parametrize("operation", ["unbind", "disconnect", "remove"])
@pytest.mark.parametrize("how", [crash, declines(errno.EBUSY)])
def test_a_driver_that_fails_to_let_go_is_passed_over(
    rig: Rig, operation: str, how: Callable[..., Any]
) -> None:
    rig.set_vfs(1)
    ops = rig.link()
    rig.connect(NIC)
    rig.bind(VF)
    ops.script.instead[operation] = how
    rig.disconnect(NIC)
    assert rig.contexts() == set()
    assert f"PCI/TSM: {operation} raised" in rig.sh.dmesg()
    del ops.script.instead[operation]
    rig.connect(NIC)
    rig.bind(VF)


# The DSM of a function


def test_a_function_that_could_be_a_dsm_is_its_own(rig: Rig) -> None:
    for name in (NIC, SWITCH, ACCEL, NVME):
        assert is_pci_tsm_pf0(rig.dev(name))
        assert find_dsm_dev(rig.dev(name)) is rig.dev(name)
    for name in (GPU, GPU_PARTITION, DOWNSTREAM, PLAIN, BMC, PORT):
        assert not is_pci_tsm_pf0(rig.dev(name))


@pytest.mark.parametrize(
    ("name", "dsm"),
    [
        (VF, NIC),
        (GPU, SWITCH),
        (GPU_AUDIO, SWITCH),
        (GPU_PARTITION, SWITCH),
        (DOWNSTREAM, None),
        (PLAIN, None),
        (BMC, None),
        (PORT, None),
    ],
)
def test_the_dsm_of_other_functions_is_the_one_connected_above(
    rig: Rig, name: str, dsm: str | None
) -> None:
    rig.set_vfs(1)
    rig.link()
    assert find_dsm_dev(rig.dev(name)) is None
    for pf0 in (NIC, SWITCH, ACCEL, NVME):
        rig.connect(pf0)
    found = find_dsm_dev(rig.dev(name))
    assert (found.name if found else None) == dsm


def test_function_0_is_the_dsm_of_its_siblings() -> None:
    sh = boot("devsec")
    first, second = sh.dev("10000:01:00.0"), sh.dev("10000:01:00.1")
    assert find_dsm_dev(second) is None
    sh.echo("tsm0", f"{pci(first.name)}/tsm/connect")
    assert find_dsm_dev(second) is first
    sh.echo("1", f"{pci(first.name)}/remove")
    assert second.tsm is None
    assert find_dsm_dev(second) is None


def test_a_virtual_function_that_sits_at_a_low_number_is_offered_once(rig: Rig) -> None:
    rig.set_vfs(8)
    ops = rig.link()
    ops.script.instead["probe"] = lambda dev, tsm_dev: (
        None if dev.is_virtfn else pf0_constructor(dev, tsm_dev)
    )
    rig.connect(NIC)
    probes = [call for call in ops.script.take() if call.startswith("probe")]
    assert len(probes) == len(set(probes)) == 9
    assert rig.contexts() == {NIC}


def test_contexts_want_a_dsm_and_a_mailbox(rig: Rig) -> None:
    tsm_dev = rig.register(LinkOps())
    with fails(errno.ENXIO):
        link_constructor(rig.dev(GPU), tsm_dev)
    assert "failed to find Device Security Manager" in rig.sh.dmesg()
    dev = rig.dev(NIC)
    assert pf0_constructor(dev, tsm_dev).doe_mb is dev.doe_mailboxes[0]
    dev.doe_mailboxes.clear()
    with fails(errno.ENODEV):
        pf0_constructor(dev, tsm_dev)
    with fails(errno.ENXIO):
        rig.connect(NIC)
    assert "TSM init failure, no CMA mailbox" in rig.sh.dmesg()


def test_a_mailbox_without_cma_does_not_count() -> None:
    sh = boot(
        """\
[[host_bridge]]
  [[host_bridge.rc_endpoint]]
  tee_io = true
  doe = { protocols = [[1, 2]] }
""",
        ["devsec_link_tsm all_bridges=1"],
    )
    with fails(errno.ENXIO):
        sh.echo("tsm0", f"{pci('0000:00:00.0')}/tsm/connect")


# Functions that arrive later


def test_virtual_functions_enabled_after_connect_are_dependents_at_once(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(NIC)
    shown: list[set[str]] = []
    rig.sh.machine.uevents.listeners.append(
        lambda event: shown.append(rig.files(VF)) if event.action == "add" else None
    )
    rig.set_vfs(1)
    assert rig.contexts() == {NIC, VF}
    assert shown == [{*DEPENDENT, "authenticated"}]
    assert rig.cat(VF, "dsm") == NIC
    ops.script.take()
    rig.bind(VF)
    rig.set_vfs(0)
    assert ops.script.take() == [f"bind {VF}", f"unbind {VF}", f"remove {VF}"]
    assert rig.contexts() == {NIC}


def test_a_device_plugged_below_a_connected_upstream_port_is_a_dependent_at_once(rig: Rig) -> None:
    rig.link()
    rig.connect(SWITCH)
    rig.control("plug", SECOND_GPU)
    assert rig.cat(SECOND_GPU, "dsm") == SWITCH
    assert rig.files(SECOND_GPU) == {*DEPENDENT, "authenticated"}
    rig.bind(SECOND_GPU)
    rig.control("unplug", SECOND_GPU)
    assert rig.contexts() == {SWITCH, GPU, GPU_AUDIO, GPU_PARTITION}


def test_a_function_found_by_a_rescan_is_a_dependent_again(rig: Rig) -> None:
    rig.link()
    rig.connect(SWITCH)
    rig.sh.echo("1", f"{pci(GPU_AUDIO)}/remove")
    assert GPU_AUDIO not in rig.contexts()
    rig.sh.echo("1", "/bus/pci/rescan")
    assert rig.cat(GPU_AUDIO, "dsm") == SWITCH


def test_what_arrives_below_something_that_is_not_connected_is_nobodys(rig: Rig) -> None:
    ops = rig.link()
    rig.control("plug", SECOND_GPU)
    rig.set_vfs(1)
    assert rig.contexts() == set()
    assert ops.script.calls == []
    rig.connect(NVME)
    rig.control("plug", SECOND_NVME)
    assert rig.contexts() == {NVME}
    assert rig.files(SECOND_NVME) == PF0_LINK
    rig.connect(SECOND_NVME)


def test_a_late_function_that_fails_its_probe_arrives_all_the_same(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(NIC)
    ops.script.instead["probe"] = crash
    rig.set_vfs(2)
    assert rig.contexts() == {NIC}
    assert rig.sh.cat(f"{pci(NIC)}/sriov_numvfs") == "2\n"


# bind and guest requests


def test_bind_and_unbind(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(SWITCH)
    ops.script.take()
    rig.bind(GPU)
    tdi = rig.context(GPU).tdi
    assert tdi is not None
    assert (tdi.pdev, tdi.kvm, tdi.tdi_id) == (rig.dev(GPU), VM, 1)
    assert (rig.cat(GPU, "bound"), rig.cat(GPU_AUDIO, "bound")) == ("tsm0", "")
    rig.bind(GPU)
    rig.core.unbind(rig.dev(GPU))
    rig.core.unbind(rig.dev(GPU))
    assert rig.cat(GPU, "bound") == ""
    assert ops.script.take() == [f"bind {GPU}", f"unbind {GPU}"]
    rig.bind(GPU, OTHER_VM)


def test_errors_of_bind_in_their_order(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    with fails(errno.EINVAL):
        rig.bind(NIC)
    rig.echo("tsm1", NIC, "lock")
    with fails(errno.ENXIO):
        rig.bind(NIC)
    rig.connect(SWITCH)
    rig.bind(GPU)
    with fails(errno.EBUSY):
        rig.bind(GPU, OTHER_VM)


@pytest.mark.parametrize(
    ("bind", "number"),
    [
        (declines(errno.ENOSPC), errno.ENOSPC),
        (crash, errno.EIO),
        (lambda *_: None, errno.EIO),
        (lambda *_: "nonsense", errno.EIO),
    ],
)
def test_a_bind_that_fails_leaves_nothing_bound(
    rig: Rig, bind: Callable[..., Any], number: int
) -> None:
    ops = rig.link()
    rig.connect(NIC)
    ops.script.instead["bind"] = bind
    with fails(number):
        rig.bind(NIC)
    assert rig.context(NIC).tdi is None
    ops.script.take()
    rig.disconnect(NIC)
    assert f"unbind {NIC}" not in ops.script.take()


def test_an_injected_fault_fails_a_bind(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(NIC)
    rig.sh.fault("tsm_bind", errno="EPERM")
    with fails(errno.EPERM):
        rig.bind(NIC)
    assert f"bind {NIC}" not in ops.script.take()
    rig.bind(NIC)


def test_unbind_of_what_nobody_holds_does_nothing(rig: Rig) -> None:
    rig.devsec()
    rig.core.unbind(rig.dev(NIC))
    rig.echo("tsm0", NIC, "lock")
    rig.core.unbind(rig.dev(NIC))
    assert rig.contexts() == {NIC}


def test_a_guest_request_reaches_the_tsm_of_a_bound_function(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(NIC)
    rig.bind(NIC)
    for scope in (PciTsmReqScope.INFO, PciTsmReqScope.STATE_CHANGE):
        assert rig.core.guest_req(rig.dev(NIC), scope, b"abc") == b"cba"
    assert ops.script.take()[-1] == f"guest_req {NIC}"


def test_errors_of_a_guest_request_in_their_order(rig: Rig) -> None:
    rig.link()
    rig.devsec()

    def request(scope: PciTsmReqScope = PciTsmReqScope.INFO) -> bytes:
        return rig.core.guest_req(rig.dev(NIC), scope, b"")

    for scope in (PciTsmReqScope.DEBUG_READ, PciTsmReqScope.DEBUG_WRITE):
        with fails(errno.EINVAL):
            request(scope)
    with fails(errno.ENXIO):
        request()
    rig.echo("tsm1", NIC, "lock")
    with fails(errno.ENXIO):
        request()
    rig.echo("tsm1", NIC, "unlock")
    rig.connect(NIC)
    with fails(errno.ENXIO):
        request()


@pytest.mark.parametrize(
    ("answer", "number"),
    [(declines(errno.EPROTO), errno.EPROTO), (crash, errno.EIO), (lambda *_: None, errno.EIO)],
)
def test_a_guest_request_that_fails(rig: Rig, answer: Callable[..., Any], number: int) -> None:
    ops = rig.link()
    rig.connect(NIC)
    rig.bind(NIC)
    ops.script.instead["guest_req"] = answer
    with fails(number):
        rig.core.guest_req(rig.dev(NIC), PciTsmReqScope.INFO, b"")
    assert rig.context(NIC).tdi is not None


def test_a_tsm_need_not_bind_or_answer_requests(rig: Rig) -> None:
    class Least(PciTsmLinkOps):
        def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
            return pf0_constructor(pdev, tsm_dev)

        def connect(self, pdev: PciDev) -> None:
            pass

        def disconnect(self, pdev: PciDev) -> None:
            pass

    ops = Least()
    rig.tsms.register(rig.parent, ops)
    rig.connect(NIC)
    with fails(errno.EOPNOTSUPP):
        rig.bind(NIC)
    tsm = rig.context(NIC)
    tsm.tdi = PciTdi(rig.dev(NIC), VM, 1)
    with fails(errno.EOPNOTSUPP):
        rig.core.guest_req(rig.dev(NIC), PciTsmReqScope.INFO, b"")
    for any_ops in (ops, DevsecOps()):
        with fails(errno.EOPNOTSUPP):
            any_ops.refresh_evidence(tsm, b"")
    rig.disconnect(NIC)
    assert rig.contexts() == set()


# lock, accept, unlock


def test_lock_accept_unlock(rig: Rig) -> None:
    ops = rig.devsec()
    rig.echo("tsm0", NIC, "lock")
    assert (rig.cat(NIC, "lock"), rig.cat(NIC, "accept")) == ("tsm0", "0")
    rig.echo("1", NIC, "accept")
    assert rig.cat(NIC, "accept") == "1"
    rig.echo("tsm0", NIC, "unlock")
    assert (rig.cat(NIC, "lock"), rig.cat(NIC, "accept")) == ("", "0")
    assert ops.script.take() == [f"lock {NIC}", f"accept {NIC}", f"unlock {NIC}"]


def test_lock_and_unlock_without_accept(rig: Rig) -> None:
    rig.devsec()
    for _ in range(2):
        rig.echo("tsm0", NIC, "lock")
        rig.echo("tsm0", NIC, "unlock")
    assert rig.contexts() == set()


def test_errors_of_lock_in_their_order(rig: Rig) -> None:
    rig.link()
    ops = rig.devsec()
    rig.drive(NIC)
    for tsm in ("tsm0", "tsm2"):
        with fails(errno.ENXIO):
            rig.echo(tsm, NIC, "lock")
    with fails(errno.EBUSY):
        rig.echo("tsm1", NIC, "lock")
    assert ops.script.calls == []
    rig.undrive(NIC)
    rig.connect(NIC)
    for tsm in ("tsm1", "tsm2"):
        with fails(errno.EBUSY):
            rig.echo(tsm, NIC, "lock")


@pytest.mark.parametrize(
    ("lock", "number"),
    [
        (declines(errno.EACCES), errno.EACCES),
        (crash, errno.EIO),
        (lambda *_: None, errno.EIO),
        (lambda dev, tsm_dev: PciTsm(dev, tsm_dev), errno.EIO),
        (lambda dev, tsm_dev: PciTsmDevsec(dev.bus.self_dev, tsm_dev), errno.EIO),
    ],
)
def test_a_lock_that_fails_leaves_no_context(
    rig: Rig, lock: Callable[..., Any], number: int
) -> None:
    ops = rig.devsec()
    ops.script.instead["lock"] = lock
    with fails(number):
        rig.echo("tsm0", NIC, "lock")
    assert rig.contexts() == set()
    del ops.script.instead["lock"]
    rig.echo("tsm0", NIC, "lock")


def test_errors_of_unlock_in_their_order(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    for text in ("tsm0", "tsm1", "nonsense"):
        with fails(errno.EINVAL):
            rig.echo(text, NIC, "unlock")
    rig.connect(NIC)
    with fails(errno.EINVAL):
        rig.echo("tsm0", NIC, "unlock")
    rig.disconnect(NIC)
    rig.echo("tsm1", NIC, "lock")
    rig.drive(NIC)
    with fails(errno.EINVAL):
        rig.echo("tsm0", NIC, "unlock")
    with fails(errno.EBUSY):
        rig.echo("tsm1", NIC, "unlock")
    rig.undrive(NIC)
    rig.echo("tsm1", NIC, "unlock")


def test_errors_of_accept_in_their_order(rig: Rig) -> None:
    rig.link()
    ops = rig.devsec()
    for text in ("", "0", "n", "off", "2", "maybe", "\udcff"):
        with fails(errno.EINVAL):
            rig.sh.write(f"{pci(NIC)}/tsm/accept", f"{text}\n".encode(errors="surrogateescape"))
    with fails(errno.EINVAL):
        rig.echo("1", NIC, "accept")
    rig.connect(NIC)
    with fails(errno.EINVAL):
        rig.echo("1", NIC, "accept")
    rig.disconnect(NIC)
    rig.echo("tsm1", NIC, "lock")
    with fails(errno.EINVAL):
        rig.echo("0", NIC, "accept")
    rig.drive(NIC)
    with fails(errno.EBUSY):
        rig.echo("1", NIC, "accept")
    rig.undrive(NIC)
    ops.script.instead["accept"] = declines(errno.EKEYREJECTED)
    with fails(errno.EKEYREJECTED):
        rig.echo("1", NIC, "accept")
    ops.script.instead["accept"] = crash
    with fails(errno.EIO):
        rig.echo("1", NIC, "accept")
    assert rig.cat(NIC, "accept") == "0"
    del ops.script.instead["accept"]
    rig.echo("y", NIC, "accept")


def test_a_second_accept_is_busy_and_reaches_no_driver(rig: Rig) -> None:
    ops = rig.devsec()
    rig.echo("tsm0", NIC, "lock")
    rig.echo("1", NIC, "accept")
    ops.script.take()
    with fails(errno.EBUSY):
        rig.echo("1", NIC, "accept")
    assert ops.script.take() == []
    assert rig.cat(NIC, "accept") == "1"


@pytest.mark.parametrize(("point", "file"), [("tsm_lock", "lock"), ("tsm_accept", "accept")])
def test_injected_faults_of_lock_and_accept(rig: Rig, point: str, file: str) -> None:
    ops = rig.devsec()
    if file == "accept":
        rig.echo("tsm0", NIC, "lock")
    ops.script.take()
    rig.sh.fault(point, errno="ECANCELED")
    text = "tsm0" if file == "lock" else "1"
    with fails(errno.ECANCELED):
        rig.echo(text, NIC, file)
    assert ops.script.take() == []
    rig.echo(text, NIC, file)


@pytest.mark.parametrize("how", [crash, declines(errno.EBUSY)])
def test_an_unlock_that_fails_unlocks(rig: Rig, how: Callable[..., Any]) -> None:
    ops = rig.devsec()
    rig.echo("tsm0", NIC, "lock")
    rig.echo("1", NIC, "accept")
    ops.script.instead["unlock"] = how
    rig.echo("tsm0", NIC, "unlock")
    assert rig.contexts() == set()
    assert rig.cat(NIC, "accept") == "0"


# Private memory


def test_every_memory_bar_is_listed_as_private(rig: Rig) -> None:
    tsm = PciTsmDevsec(rig.dev(BMC), rig.register(DevsecOps()))
    before = rig.sh.iomem()
    encrypt_memory_bars(tsm, rig.sh.machine.iomem)
    assert (
        "  83000000-83ffffff : PCI MMIO Encrypted\n    83000000-83ffffff : 0000:00:1e.0\n"
    ) in rig.sh.iomem()
    assert rig.sh.iomem().count("PCI MMIO Encrypted") == 2
    free_encrypted_resources(tsm)
    assert rig.sh.iomem() == before
    free_encrypted_resources(tsm)


def test_private_ranges_are_listed_all_or_none(rig: Rig) -> None:
    dev = rig.dev(BMC)
    tsm = PciTsmDevsec(dev, rig.register(DevsecOps()))
    second = dev.resource[1]
    assert second is not None
    second.remove()
    rig.sh.machine.iomem.insert(
        Resource(second.start + 0x1000, second.end + 0x1000, "in the way", IORESOURCE_MEM)
    )
    before = rig.sh.iomem()
    with fails(errno.EBUSY):
        encrypt_memory_bars(tsm, rig.sh.machine.iomem)
    assert (rig.sh.iomem(), tsm.resources) == (before, [])


# TSMs and devices that go


def everywhere(rig: Rig) -> tuple[LinkOps, DevsecOps, list[TsmDevice]]:
    """Two TSMs that hold as much as there is, with TDIs bound and a function accepted."""
    rig.set_vfs(2)
    link, devsec = LinkOps(), DevsecOps()
    tsms = [rig.register(link), rig.register(devsec)]
    for name in (NIC, SWITCH, NVME):
        rig.connect(name)
    for name in (NIC, VF, GPU, GPU_PARTITION):
        rig.bind(name)
    rig.echo("tsm1", ACCEL, "lock")
    rig.echo("1", ACCEL, "accept")
    link.script.take()
    devsec.script.take()
    return link, devsec, tsms


def test_a_tsm_that_goes_ends_all_it_holds_last_device_first(rig: Rig) -> None:
    link, devsec, tsms = everywhere(rig)
    rig.tsms.unregister(tsms[0])
    assert link.script.take() == [
        "remove 0000:01:00.2",
        f"unbind {VF}",
        f"remove {VF}",
        f"disconnect {NVME}",
        f"remove {NVME}",
        f"unbind {GPU_PARTITION}",
        f"remove {GPU_PARTITION}",
        f"remove {GPU_AUDIO}",
        f"unbind {GPU}",
        f"remove {GPU}",
        f"disconnect {SWITCH}",
        f"remove {SWITCH}",
        f"unbind {NIC}",
        f"disconnect {NIC}",
        f"remove {NIC}",
    ]
    assert rig.contexts() == {ACCEL}
    assert rig.files(NIC) == DEVSEC
    rig.tsms.unregister(tsms[1])
    assert devsec.script.take() == [f"unlock {ACCEL}"]
    assert rig.contexts() == set()
    assert all(rig.files(name) == set() for name in rig.sh.devices())


def test_a_tsm_leaves_what_another_of_its_mode_holds(rig: Rig) -> None:
    one, two = rig.register(LinkOps()), rig.register(LinkOps())
    rig.connect(NIC, "tsm0")
    rig.connect(NVME, "tsm1")
    rig.tsms.unregister(one)
    assert rig.contexts() == {NVME}
    assert rig.files(NIC) == PF0_LINK
    with fails(errno.ENXIO):
        rig.connect(NIC, "tsm0")
    rig.tsms.unregister(two)


def test_a_locked_device_with_a_driver_loses_it_when_the_tsm_goes(rig: Rig) -> None:
    tsm_dev = rig.register(DevsecOps())
    rig.echo("tsm0", NIC, "lock")
    rig.drive(NIC)
    rig.tsms.unregister(tsm_dev)
    assert not rig.sh.exists(f"{pci(NIC)}/driver")
    assert rig.contexts() == set()


@pytest.mark.parametrize("operation", ["unbind", "disconnect", "remove", "unlock"])
def test_a_tsm_whose_driver_crashes_goes_all_the_same(rig: Rig, operation: str) -> None:
    link, devsec, tsms = everywhere(rig)
    for ops in (link, devsec):
        ops.script.instead[operation] = crash
    for tsm_dev in tsms:
        rig.tsms.unregister(tsm_dev)
    assert rig.contexts() == set()
    assert all(rig.files(name) == set() for name in rig.sh.devices())
    assert f"PCI/TSM: {operation} raised" in rig.sh.dmesg()


REMOVALS = {
    "remove": lambda rig, name: rig.sh.echo("1", f"{pci(name)}/remove"),
    "unplug": lambda rig, name: rig.control("unplug", name),
}


@pytest.mark.parametrize("how", REMOVALS)
@pytest.mark.parametrize(
    ("name", "calls", "left"),
    [
        (
            NIC,
            ["remove 0000:01:00.2", f"unbind {VF}", f"remove {VF}", f"unbind {NIC}",
             f"disconnect {NIC}", f"remove {NIC}"],
            {SWITCH, GPU, GPU_AUDIO, GPU_PARTITION, NVME, ACCEL},
        ),
        (
            SWITCH,
            [f"unbind {GPU_PARTITION}", f"remove {GPU_PARTITION}", f"remove {GPU_AUDIO}",
             f"unbind {GPU}", f"remove {GPU}", f"disconnect {SWITCH}", f"remove {SWITCH}"],
            {NIC, VF, "0000:01:00.2", NVME, ACCEL},
        ),
        (
            NVME,
            [f"disconnect {NVME}", f"remove {NVME}"],
            {NIC, VF, "0000:01:00.2", SWITCH, GPU, GPU_AUDIO, GPU_PARTITION, ACCEL},
        ),
    ],
)  # fmt: skip
def test_a_device_that_goes_is_let_go_first(
    rig: Rig, how: str, name: str, calls: list[str], left: set[str]
) -> None:
    link, _, tsms = everywhere(rig)
    dev = rig.dev(name)
    REMOVALS[how](rig, name)
    assert link.script.take() == calls
    assert rig.contexts() == left
    assert dev.tsm is None
    for tsm_dev in tsms:
        rig.tsms.unregister(tsm_dev)


@pytest.mark.parametrize("how", REMOVALS)
def test_an_accepted_device_that_goes_is_unlocked_first(rig: Rig, how: str) -> None:
    _, devsec, _ = everywhere(rig)
    rig.drive(ACCEL)
    dev = rig.dev(ACCEL)
    REMOVALS[how](rig, ACCEL)
    assert devsec.script.take() == [f"unlock {ACCEL}"]
    assert (dev.tsm, dev.cc_accepted, dev.driver) == (None, False, None)


def test_a_dependent_that_goes_leaves_its_siblings(rig: Rig) -> None:
    link, _, _ = everywhere(rig)
    rig.sh.echo("1", f"{pci(GPU)}/remove")
    assert link.script.take() == [f"unbind {GPU}", f"remove {GPU}"]
    assert {GPU_AUDIO, GPU_PARTITION} < rig.contexts()
    assert rig.cat(GPU_PARTITION, "bound") == "tsm0"


def test_a_device_that_went_while_its_writer_waited_is_no_device(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    files = {
        file: rig.sh.file(f"{pci(NIC)}/tsm/{file}")
        for file in ("connect", "disconnect", "lock", "unlock", "accept")
    }
    rig.dev(NIC).dead = True
    for file, node in files.items():
        with fails(errno.ENODEV):
            node.store(b"1" if file == "accept" else b"tsm0")


# Registration


def test_a_tsm_has_operations_of_exactly_one_mode(rig: Rig) -> None:
    class Both(LinkOps, DevsecOps):
        pass

    for ops in (Both(), object()):
        with fails(errno.EINVAL):
            rig.tsms.register(rig.parent, ops)
    assert (rig.core.link_count, rig.core.devsec_count) == (0, 0)
    assert rig.sh.ls("/class/tsm") == set()


@pytest.mark.parametrize(("ops", "shown"), [(LinkOps, PF0_LINK), (DevsecOps, DEVSEC)])
def test_a_function_whose_files_cannot_be_shown_does_without(
    rig: Rig, ops: type[LinkOps | DevsecOps], shown: set[str]
) -> None:
    other = rig.dev(ACCEL).add_child("tsm")
    tsm_dev = rig.register(ops())
    for name in (NIC, SWITCH):
        assert rig.files(name) == shown
    assert rig.dev(ACCEL).lookup("tsm") is other
    assert f"{ACCEL}: sysfs: cannot create duplicate" in rig.sh.dmesg()
    rig.tsms.unregister(tsm_dev)
    assert rig.dev(ACCEL).lookup("tsm") is other
    rig.dev(ACCEL).discard("tsm")
    assert [name for name in rig.sh.devices() if rig.files(name)] == []
    rig.register(ops())
    assert rig.files(ACCEL) == shown


@pytest.mark.parametrize("ops", [LinkOps, DevsecOps])
def test_a_tsm_whose_registration_crashes_is_not_counted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, ops: type[LinkOps | DevsecOps]
) -> None:
    update = rig.core._update_groups

    def crash(pdev: PciDev) -> None:
        update(pdev)
        if pdev is rig.dev(ACCEL):
            monkeypatch.undo()
            raise MemoryError

    monkeypatch.setattr(rig.core, "_update_groups", crash)
    with pytest.raises(MemoryError):
        rig.register(ops())
    assert (rig.core.link_count, rig.core.devsec_count) == (0, 0)
    assert rig.sh.ls("/class/tsm") == set()
    assert [name for name in rig.sh.devices() if rig.files(name)] == []


def test_the_mode_of_a_tsm() -> None:
    assert pci_mode(None) is None
    assert pci_mode(LinkOps()) == "link"
    assert pci_mode(DevsecOps()) == "devsec"
    assert pci_mode(object()) == "none"


def test_without_a_class_no_tsm_is_found() -> None:
    sh = boot("server", [])
    core = PciTsmCore(sh.machine.core, sh.machine.pci.devices, sh.machine.pci.tsm_rwsem)
    assert core.find_tsm_dev(0) is None


# Several at once


def test_of_two_writers_exactly_one_connects(rig: Rig) -> None:
    ops = rig.link()
    with threads() as pool:
        futures = [pool.submit(rig.connect, NIC) for _ in range(8)]
        results = [errno_of_result(future) for future in futures]
    assert sorted(results, key=str) == [errno.EBUSY] * 7 + [None]
    assert ops.script.take() == [f"probe {NIC}", f"connect {NIC}"]


def test_connecting_and_locking_at_once_ends_in_one_of_the_two(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    with threads() as pool:
        futures = [
            *(pool.submit(rig.connect, NIC) for _ in range(4)),
            *(pool.submit(rig.echo, "tsm1", NIC, "lock") for _ in range(4)),
        ]
        results = [errno_of_result(future) for future in futures]
    assert sorted(results, key=str) == [errno.EBUSY] * 7 + [None]
    assert rig.cat(NIC, "connect") in ("tsm0", "tsm1")


def test_of_many_who_accept_one_succeeds(rig: Rig) -> None:
    rig.devsec()
    rig.echo("tsm0", NIC, "lock")
    with threads() as pool:
        futures = [pool.submit(rig.echo, "1", NIC, "accept") for _ in range(8)]
        results = [errno_of_result(future) for future in futures]
    assert sorted(results, key=str) == [errno.EBUSY] * 7 + [None]


def test_many_bind_and_unbind_without_harm(rig: Rig) -> None:
    ops = rig.link()
    rig.connect(SWITCH)
    ops.script.take()

    def work(name: str) -> None:
        for _ in range(20):
            rig.bind(name)
            rig.core.unbind(rig.dev(name))

    with threads() as pool:
        for future in [pool.submit(work, name) for name in (GPU, GPU_AUDIO, GPU, GPU_AUDIO)]:
            assert errno_of_result(future) is None
    calls = ops.script.take()
    for name in (GPU, GPU_AUDIO):
        mine = [call for call in calls if call.endswith(name)]
        assert mine == [f"bind {name}", f"unbind {name}"] * (len(mine) // 2)


class Hang:
    """An operation that hangs until it is told to go on."""

    def __init__(self) -> None:
        self.caller = Caller()

    def __call__(self, *_: object) -> None:
        self.caller.waiting.set()
        assert self.caller.killed.wait(STUCK)

    def hangs(self) -> bool:
        return self.caller.waiting.wait(STUCK)

    def go_on(self) -> None:
        self.caller.kill()


def as_caller(caller: Caller, call: Callable[[], object]) -> None:
    with running_as(caller.task):
        call()


def test_plain_files_are_read_while_a_connect_hangs(rig: Rig) -> None:
    ops, hang = rig.link(), Hang()
    ops.script.instead["connect"] = hang
    plain = ("vendor", "resource", "uevent", "config", "power/control", "enable")
    with threads() as pool:
        future = pool.submit(rig.connect, NIC)
        assert hang.hangs()
        for name in (NVME, NIC, VF[:-1] + "0"):
            for file in plain:
                assert rig.sh.read(f"{pci(name)}/{file}")
        assert "tsm" in rig.sh.ls(pci(NVME))
        rig.sh.echo("on", f"{pci(NVME)}/power/control")
        assert not future.done()
        hang.go_on()
        future.result(STUCK)


def test_a_killed_waiter_lets_the_others_go_on(rig: Rig) -> None:
    ops, hang = rig.link(), Hang()
    ops.script.instead["connect"] = hang
    sh = rig.sh
    waiters = {
        "connect": lambda who: sh.as_task(who).echo("tsm0", f"{pci(NVME)}/tsm/connect"),
        "dsm": lambda who: sh.as_task(who).cat(f"{pci(NVME)}/tsm/dsm"),
        "remove": lambda who: sh.as_task(who).echo("1", f"{pci(PLAIN)}/remove"),
        "rescan": lambda who: sh.as_task(who).echo("1", "/bus/pci/rescan"),
        "plug": lambda who: sh.as_task(who).echo(SECOND_GPU, "/kernel/tsmfs/plug"),
    }
    with threads() as pool:
        first = pool.submit(rig.connect, NIC)
        assert hang.hangs()
        callers = {name: Caller() for name in waiters}
        futures = {name: pool.submit(call, callers[name].task) for name, call in waiters.items()}
        for caller in callers.values():
            assert caller.waiting.wait(STUCK)
        for name, caller in callers.items():
            caller.kill()
            assert errno_of_result(futures[name]) == errno.EINTR, name
        patient = Caller()
        last = pool.submit(waiters["connect"], patient.task)
        assert patient.waiting.wait(STUCK)
        del ops.script.instead["connect"]
        hang.go_on()
        assert (errno_of_result(first), errno_of_result(last)) == (None, None)
    assert rig.contexts() == {NIC, NVME}
    assert (PLAIN in sh.devices(), SECOND_GPU in sh.devices()) == (True, False)


def test_who_waits_for_a_hanging_bind_can_be_killed(rig: Rig) -> None:
    ops, hang = rig.link(), Hang()
    rig.connect(SWITCH)

    def bind(dev: PciDev) -> PciTdi:
        hang()
        return PciTdi(dev, VM, 1)

    ops.script.instead["bind"] = bind
    gpu = rig.dev(GPU)
    waiters: list[Callable[[Shell], object]] = [
        lambda sh: rig.bind(GPU_AUDIO),
        lambda sh: sh.cat(f"{pci(GPU)}/tsm/bound"),
        lambda sh: rig.core.guest_req(gpu, PciTsmReqScope.INFO, b""),
        lambda sh: rig.core.refresh_evidence(gpu, b""),
    ]
    with threads() as pool:
        first = pool.submit(rig.bind, GPU)
        assert hang.hangs()
        # What has another DSM is not in the way.
        assert rig.cat(NVME, "dsm") == ""
        for waiter in waiters:
            caller = Caller()
            future = pool.submit(as_caller, caller, partial(waiter, rig.sh.as_task(caller.task)))
            assert caller.waiting.wait(STUCK)
            caller.kill()
            assert errno_of_result(future) == errno.EINTR
        hang.go_on()
        assert errno_of_result(first) is None
    assert rig.cat(GPU, "bound") == "tsm0"


def test_a_delayed_connect_that_is_killed_leaves_nothing(rig: Rig) -> None:
    ops = rig.link()
    rig.sh.fault("tsm_connect", delay_ms=3_600_000, errno=0)
    caller = Caller()
    with threads() as pool:
        future = pool.submit(rig.sh.as_task(caller.task).echo, "tsm0", f"{pci(NIC)}/tsm/connect")
        assert caller.waiting.wait(STUCK)
        caller.kill()
        assert errno_of_result(future) == errno.EINTR
    assert rig.contexts() == set()
    assert ops.script.take() == [f"probe {NIC}", f"remove {NIC}"]
    rig.connect(NIC)


def test_everything_at_once_ends_in_a_sane_state(rig: Rig) -> None:
    rig.link()
    rig.devsec()
    actions: list[Callable[[], object]] = [
        lambda: rig.connect(NIC),
        lambda: rig.disconnect(NIC),
        lambda: rig.echo("tsm1", NIC, "lock"),
        lambda: rig.echo("1", NIC, "accept"),
        lambda: rig.echo("tsm1", NIC, "unlock"),
        lambda: rig.set_vfs(1),
        lambda: rig.set_vfs(0),
        lambda: rig.sh.echo("1", f"{pci(NIC)}/remove"),
        lambda: rig.sh.echo("1", "/bus/pci/rescan"),
        lambda: rig.files(NIC),
    ]

    def work(action: Callable[[], object]) -> None:
        for _ in range(15):
            try:
                action()
            except OSError as error:
                allowed = (errno.EBUSY, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ENOENT)
                if error.errno not in allowed:
                    raise
            except AssertionError as error:
                # The path was not there at that moment.
                if not str(error).startswith("no "):
                    raise

    with threads() as pool:
        for future in [pool.submit(work, action) for action in actions]:
            assert errno_of_result(future) is None
    rig.sh.echo("1", "/bus/pci/rescan")
    dev = rig.dev(NIC)
    if isinstance(dev.tsm, PciTsmPf0):
        rig.disconnect(NIC)
    elif dev.tsm is not None:
        if dev.driver is not None:
            dev.driver.bus.release_driver(dev)
        rig.echo("tsm1", NIC, "unlock")
    assert rig.contexts() <= {VF}
    rig.connect(NIC)
    assert "Traceback" not in rig.sh.dmesg()


def test_names_of_scopes_are_the_kernels() -> None:
    assert [scope.value for scope in PciTsmReqScope] == [0, 1, 2, 3]


@pytest.mark.parametrize("data", [b"x" * 4096, b"\0" * 8, b"\xff\xfe\xfd", b"\n" * 100])
def test_odd_writes_harm_nothing(rig: Rig, data: bytes) -> None:
    rig.link()
    rig.devsec()
    for file in ("connect", "disconnect", "lock", "unlock", "accept"):
        path = f"{pci(NIC)}/tsm/{file}"
        assert errno_from(partial(rig.sh.write, path, data)) == (
            "ENXIO" if file == "disconnect" else "EINVAL"
        )
        assert rig.sh.write(path, b"") == 0
    assert rig.contexts() == set()
    assert "Traceback" not in rig.sh.dmesg()


@pytest.mark.parametrize("kind", ["own", "none", "devsec"])
def test_a_dependent_context_that_is_not_the_dsms_is_not_taken(rig: Rig, kind: str) -> None:
    def probe(dev: PciDev, tsm_dev: TsmDev) -> PciTsm:
        if is_pci_tsm_pf0(dev):
            return pf0_constructor(dev, tsm_dev)
        if kind == "devsec":
            return PciTsmDevsec(dev, tsm_dev)
        return PciTsm(dev, tsm_dev, dev if kind == "own" else None)

    ops = LinkOps()
    tsm = rig.register(ops)
    ops.script.instead["probe"] = probe
    rig.connect(SWITCH)
    assert rig.contexts() == {SWITCH}
    assert "gave a context of another DSM" in rig.sh.dmesg()
    rig.tsms.unregister(tsm)
    assert rig.contexts() == set()
    assert rig.core.link_count == 0
