# SPDX-License-Identifier: MIT
"""The sample link TSM: streams step by step, and nothing left of a connect that fails."""

from __future__ import annotations

import errno

import pytest

from tests.machines import (
    SAMPLE_TSMS,
    Caller,
    Shell,
    boot,
    errno_of_result,
    fails,
    pci,
    threads,
    without_keys,
)
from tsmfs.coco.tsm import TsmDevice
from tsmfs.drivers import devsec_link_tsm
from tsmfs.drivers.devsec_common import BLOB_MAX, common_of
from tsmfs.kernel.errors import fail
from tsmfs.pci import regs
from tsmfs.pci.ide import PciIde, pci_ide_stream_setup
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.tsm import PciTsmReqScope

EP0, EP1, OTHER = "10000:01:00.0", "10000:01:00.1", "10001:03:00.0"
FAUX = "/bus/faux/devices/devsec_link_tsm"
BRIDGE = "/devices/faux/devsec_bus/pci10000:00"


@pytest.fixture
def sh() -> Shell:
    return boot("devsec")


def connect(sh: Shell, name: str = EP0, tsm: str = "tsm0") -> None:
    sh.echo(tsm, f"{pci(name)}/tsm/connect")


def disconnect(sh: Shell, name: str = EP0, tsm: str = "tsm0") -> None:
    sh.echo(tsm, f"{pci(name)}/tsm/disconnect")


def everything(sh: Shell) -> object:
    """All that a connection may change."""
    functions = sh.machine.pci.devices()
    return (
        {dev.name: dev.config.read_bytes(0, dev.config.size) for dev in functions},
        {dev.name: (dev.tsm is not None, sh.ls(pci(dev.name))) for dev in functions},
        {
            bridge.name: (
                set(bridge.names()),
                len(bridge.ide_stream_ida),
                len(bridge.ide_stream_ids),
            )
            for bridge in sh.machine.pci.host_bridges
        },
        {dev.name: len(dev.ide_stream_ida) for dev in functions},
        {name: sh.ls(f"/class/tsm/{name}") for name in sh.ls("/class/tsm")},
        common_of(sh.machine.host).contexts,
    )


def test_a_connection_is_seen_everywhere(sh: Shell) -> None:
    connect(sh)
    assert sh.cat(f"{pci(EP0)}/tsm/connect") == "tsm0\n"
    assert sh.cat(f"{BRIDGE}/available_secure_streams") == "3\n"
    assert sh.readlink(f"{BRIDGE}/stream0.0.0") == f"10000:00:00.0/{EP0}"
    assert sh.realpath("/class/tsm/tsm0/pci10000:00") == BRIDGE
    dev = sh.dev(EP0)
    block = dev.ide_cap + regs.PCI_IDE_LINK_STREAM_0 + 4 * regs.PCI_IDE_LINK_BLOCK_SIZE
    control = dev.config.read(block + regs.PCI_IDE_SEL_CTL, 4)
    assert control & regs.PCI_IDE_SEL_CTL_EN
    status = dev.config.read(block + regs.PCI_IDE_SEL_STS, 4)
    assert status == regs.PCI_IDE_SEL_STS_STATE_SECURE


def test_connecting_and_disconnecting_leaves_everything_as_it_was(sh: Shell) -> None:
    before = everything(sh)
    for _ in range(3):
        connect(sh)
        connect(sh, OTHER)
        sh.echo(EP1, f"{FAUX}/tsm_bind")
        disconnect(sh, OTHER)
        disconnect(sh)
        assert everything(sh) == before


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("tsm_probe", errno.ENXIO),
        ("doe_transfer", errno.ETIMEDOUT),
        ("tsm_connect", errno.ETIMEDOUT),
        ("ide_stream_enable", errno.ETIMEDOUT),
    ],
)
def test_a_fault_at_any_point_of_connect_leaves_nothing(sh: Shell, point: str, number: int) -> None:
    before = everything(sh)
    # More often than the platform has Stream IDs.
    for _ in range(5):
        sh.fault(point, errno="ETIMEDOUT")
        with fails(number):
            connect(sh)
        assert everything(sh) == before
    connect(sh)


STEPS = [
    "pci_ide_stream_alloc",
    "pci_ide_stream_register",
    "pci_ide_stream_setup",
    "pci_ide_stream_enable",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("crash", [True, False])
def test_a_step_of_connect_that_fails_leaves_nothing(
    sh: Shell, monkeypatch: pytest.MonkeyPatch, step: str, crash: bool
) -> None:
    before = everything(sh)

    def failing(*_: object) -> None:
        if crash:
            raise ZeroDivisionError
        fail(errno.EBADE)

    monkeypatch.setattr(devsec_link_tsm, step, failing)
    with fails(errno.EIO if crash else errno.EBADE):
        connect(sh)
    assert everything(sh) == before
    monkeypatch.undo()
    connect(sh)


def test_a_link_of_the_tsm_that_cannot_be_made_leaves_nothing(sh: Shell) -> None:
    tsm_dev = sh.machine.tsm.find_tsm_dev(0)
    assert tsm_dev is not None
    tsm_dev.create_link(tsm_dev, "pci10000:00")
    before = everything(sh)
    with fails(errno.EEXIST):
        connect(sh)
    assert everything(sh) == before


def test_a_connect_that_cannot_present_its_evidence_leaves_nothing(sh: Shell) -> None:
    tsm_dev = sh.machine.tsm.find_tsm_dev(0)
    assert tsm_dev is not None
    before = everything(sh)
    common_of(sh.machine.host).blobs["certs"].extend(bytes(BLOB_MAX + 1))
    with fails(errno.EFBIG):
        connect(sh)
    assert everything(sh) == before
    assert tsm_dev.pci_ops._streams == {}
    sh.write(f"{FAUX}/certs", b"\0")
    connect(sh)


def test_the_setup_of_the_second_end_that_fails_undoes_the_first(
    sh: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(sh)
    ends: list[PciDev] = []

    def second(port: PciDev, ide: PciIde) -> None:
        ends.append(port)
        if len(ends) == 2:
            fail(errno.EREMOTEIO)
        pci_ide_stream_setup(port, ide)

    monkeypatch.setattr(devsec_link_tsm, "pci_ide_stream_setup", second)
    with fails(errno.EREMOTEIO):
        connect(sh)
    assert everything(sh) == before


def test_an_endpoint_that_does_not_become_secure(sh: Shell) -> None:
    dev = sh.dev(EP0)
    block = dev.ide_cap + regs.PCI_IDE_LINK_STREAM_0 + 4 * regs.PCI_IDE_LINK_BLOCK_SIZE
    dev.config.on_read(block + regs.PCI_IDE_SEL_STS, 4, lambda _: 0)
    before = everything(sh)
    with fails(errno.ENXIO):
        connect(sh)
    assert everything(sh) == before


@pytest.mark.parametrize("pool", ["bridge", "port", "endpoint"])
def test_an_empty_pool_is_out_of_memory_and_takes_nothing(sh: Shell, pool: str) -> None:
    dev = sh.dev(EP0)
    assert dev.root_port is not None
    match pool:
        case "bridge":
            for _ in range(4):
                dev.host_bridge.ide_stream_ida.alloc(4)
        case "port":
            dev.root_port.ide_stream_ida.alloc(1)
        case _:
            dev.ide_stream_ida.alloc(1)
    before = everything(sh)
    with fails(errno.ENOMEM):
        connect(sh)
    assert everything(sh) == before


MANY = "\n".join(
    [
        "[[host_bridge]]",
        "stream_pool = 8",
        *(
            f"""
  [[host_bridge.root_port]]
  slot = {slot}
  ide = true
    [[host_bridge.root_port.endpoint]]
    tee_io = true
    doe = true
    ide = true"""
            for slot in range(1, 7)
        ),
    ]
)


def test_the_platform_has_four_stream_ids() -> None:
    sh = boot(MANY, ["devsec_link_tsm all_bridges=1"])
    names = [f"0000:0{number}:00.0" for number in range(1, 7)]
    for name in names[:4]:
        connect(sh, name)
    before = everything(sh)
    with fails(errno.EBUSY):
        connect(sh, names[4])
    assert everything(sh) == before
    assert sh.cat("/devices/pci0000:00/available_secure_streams") == "4\n"
    disconnect(sh, names[1])
    connect(sh, names[4])
    dev = sh.dev(names[4])
    block = dev.ide_cap + regs.PCI_IDE_LINK_STREAM_0
    control = dev.config.read(block + regs.PCI_IDE_SEL_CTL, 4)
    assert regs.field_get(regs.PCI_IDE_SEL_CTL_ID, control) == 1
    assert sh.exists("/devices/pci0000:00/stream1.0.0")


@pytest.mark.parametrize(("parameter", "connects"), [("", False), ("all_bridges=1", True)])
def test_devices_of_other_bridges_are_taken_only_on_request(parameter: str, connects: bool) -> None:
    sh = boot(without_keys("server"), [f"devsec_link_tsm {parameter}"])
    if connects:
        connect(sh, "0000:01:00.0")
    else:
        with fails(errno.ENXIO):
            connect(sh, "0000:01:00.0")


@pytest.mark.parametrize("name", ["0000:02:00.0", "0000:00:08.0"])
def test_what_cannot_have_a_stream_gets_a_session_alone(name: str) -> None:
    sh = boot(without_keys("server"), SAMPLE_TSMS)
    before = everything(sh)
    connect(sh, name)
    assert sh.cat("/devices/pci0000:00/available_secure_streams") == "8\n"
    assert not [link for link in sh.ls("/class/tsm/tsm0") if link.startswith("pci0")]
    disconnect(sh, name)
    assert everything(sh) == before


def test_a_port_with_keys_of_its_own_is_not_secure_without_any() -> None:
    sh = boot("server", SAMPLE_TSMS)
    before = everything(sh)
    with fails(errno.ENXIO):
        connect(sh, "0000:01:00.0")
    assert everything(sh) == before


# Its own files


def test_bind_and_unbind_by_name(sh: Shell) -> None:
    connect(sh)
    for name in (EP0, EP1):
        sh.echo(name, f"{FAUX}/tsm_bind")
        assert sh.cat(f"{pci(name)}/tsm/bound") == "tsm0\n"
    sh.echo(EP0, f"{FAUX}/tsm_bind")
    for name in (EP0, EP1):
        sh.echo(name, f"{FAUX}/tsm_unbind")
        assert sh.cat(f"{pci(name)}/tsm/bound") == "\n"
    sh.echo(EP0, f"{FAUX}/tsm_unbind")
    sh.write(f"{FAUX}/tsm_bind", EP0.encode())


@pytest.mark.parametrize("file", ["tsm_bind", "tsm_unbind", "tsm_request"])
def test_errors_of_its_files(sh: Shell, file: str) -> None:
    path = f"{FAUX}/{file}"
    assert sh.mode(path) == 0o200
    for text in ("", "10000:01:00", f"{EP0} ", "tsm0", "0000:00:00.0", "\0"):
        with fails(errno.ENODEV):
            sh.echo(text, path)
    with fails(errno.ENXIO):
        sh.echo(EP0, path)
    sh.echo("tsm1", f"{pci(EP0)}/tsm/lock")
    with fails(errno.ENXIO):
        sh.echo(EP0, path)


def test_a_request_needs_a_bound_function(sh: Shell) -> None:
    connect(sh)
    with fails(errno.ENXIO):
        sh.echo(EP0, f"{FAUX}/tsm_request")
    sh.echo(EP0, f"{FAUX}/tsm_bind")
    sh.echo(EP0, f"{FAUX}/tsm_request")
    with fails(errno.EINVAL):
        sh.machine.pci.tsm.guest_req(sh.dev(EP0), PciTsmReqScope.DEBUG_READ, b"")


def test_what_another_tsm_holds_is_not_its_to_bind(sh: Shell) -> None:
    class Other(devsec_link_tsm.DevsecLinkOps):
        pass

    parent = sh.machine.host.faux.create("other")
    other = sh.machine.tsm.register(parent, Other(common_of(sh.machine.host), all_bridges=False))
    assert isinstance(other, TsmDevice)
    connect(sh, EP0, "tsm2")
    with fails(errno.ENXIO):
        sh.echo(EP0, f"{FAUX}/tsm_bind")


# The module


def test_unloading_ends_connections_with_functions_bound(sh: Shell) -> None:
    before = everything(sh)
    connect(sh)
    connect(sh, OTHER)
    sh.echo(EP1, f"{FAUX}/tsm_bind")
    sh.rmmod("devsec_link_tsm")
    assert not sh.exists(FAUX)
    assert sh.ls("/class/tsm") == {"tsm1"}
    assert common_of(sh.machine.host).contexts == 0
    assert not [name for name in sh.ls(BRIDGE) if name.startswith("stream")]
    sh.modprobe("devsec_link_tsm")
    assert everything(sh) == before


def test_the_bus_may_go_in_the_middle_of_a_connection(sh: Shell) -> None:
    connect(sh)
    connect(sh, OTHER)
    sh.echo(EP0, f"{FAUX}/tsm_bind")
    sh.rmmod("devsec_bus")
    assert common_of(sh.machine.host).contexts == 0
    assert not [name for name in sh.ls("/class/tsm/tsm0") if name.startswith("pci1")]
    sh.modprobe("devsec_bus")
    connect(sh)


@pytest.mark.parametrize(
    "order", [("devsec_bus", "devsec_link_tsm"), ("devsec_link_tsm", "devsec_bus")]
)
def test_bus_and_tsm_come_in_any_order(order: tuple[str, str]) -> None:
    sh = boot("devsec", order)
    connect(sh)
    connect(sh, OTHER)


def test_a_killed_connect_leaves_nothing(sh: Shell) -> None:
    before = everything(sh)
    sh.fault("ide_stream_enable", delay_ms=3_600_000, errno=0)
    caller = Caller()
    with threads() as pool:
        future = pool.submit(connect, sh.as_task(caller.task))
        assert caller.waiting.wait(10)
        caller.kill()
        assert errno_of_result(future) == errno.EINTR
    assert everything(sh) == before
    connect(sh)


def test_its_parameter_is_shown(sh: Shell) -> None:
    assert sh.cat("/module/devsec_link_tsm/parameters/all_bridges") == "N\n"
