# SPDX-License-Identifier: MIT
"""The software TSM: its two drivers, and the secure world that they share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.machines import (
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
from tsmfs.drivers.link_files import KVM
from tsmfs.drivers.secure_world import cma_name_of, function_id_of, state_request
from tsmfs.drivers.soft_tsm import world_of
from tsmfs.kernel.fault import Point
from tsmfs.kernel.resource import IORESOURCE_MEM
from tsmfs.pci import evidence, regs
from tsmfs.pci.cma import CmaDevice, Disguise
from tsmfs.pci.evidence import EvidenceType
from tsmfs.pci.regs import field_get
from tsmfs.pci.tsm import PciTsmReqScope
from tsmfs.spdm import tamper
from tsmfs.spdm.identity import Slot, root_certificate
from tsmfs.spdm.interface import Interface
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.responder import SigningJob, sign
from tsmfs.spdm.tdisp import (
    GetDeviceInterfaceState,
    LockInterfaceRequest,
    MmioRange,
    Report,
    StartInterfaceRequest,
    StartInterfaceResponse,
    StopInterfaceRequest,
    TdispMessage,
    TdiState,
)
from tsmfs.spdm.tdisp import parse as parse_tdisp
from tsmfs.spdm.tdisp_requester import TdispRequester
from tsmfs.spdm.tdisp_responder import TdispResponder
from tsmfs.spdm.transcript import SigningContext
from tsmfs.verify import Check, CheckName, DeviceFacts, Evidence, verify_evidence

NIC, VF = "0000:01:00.0", "0000:01:00.1"
SWITCH, AUDIO, GPU = "0000:02:00.0", "0000:04:00.1", "0000:04:00.2"
ACCELERATOR, NVME = "0000:00:08.0", "0000:81:00.0"
LINK = "/bus/faux/devices/soft_link_tsm"
PRIVATE = "PCI MMIO Encrypted"
COMMAND = regs.PCI_COMMAND_MEMORY | regs.PCI_COMMAND_MASTER
DSM_OF = {NIC: NIC, VF: NIC, SWITCH: SWITCH, GPU: SWITCH, ACCELERATOR: ACCELERATOR, NVME: NVME}


@pytest.fixture
def sh() -> Shell:
    return boot("server")


@pytest.fixture
def vf(sh: Shell) -> Shell:
    """The machine with virtual functions, and no driver bound to their PF."""
    sh.echo("pci-pf-stub", f"{pci(NIC)}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("2", f"{pci(NIC)}/sriov_numvfs")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/unbind")
    return sh


def tsm(sh: Shell, file: str, name: str, value: str) -> None:
    sh.echo(value, f"{pci(name)}/tsm/{file}")


def connect(sh: Shell, name: str = NIC) -> None:
    tsm(sh, "connect", name, "tsm0")


def disconnect(sh: Shell, name: str = NIC) -> None:
    tsm(sh, "disconnect", name, "tsm0")


def lock(sh: Shell, name: str = NIC) -> None:
    tsm(sh, "lock", name, "tsm1")


def accept(sh: Shell, name: str = NIC) -> None:
    tsm(sh, "accept", name, "1")


def unlock(sh: Shell, name: str = NIC) -> None:
    tsm(sh, "unlock", name, "tsm1")


def cma(sh: Shell, name: str = NIC) -> CmaDevice:
    device = sh.dev(DSM_OF[name]).hw.cma
    assert device is not None
    return device


def interface(sh: Shell, name: str = NIC) -> Interface:
    return cma(sh, name).tdis[function_id_of(sh.dev(name))]


def objects(sh: Shell, name: str = NIC) -> dict[EvidenceType, bytes]:
    context = sh.dev(name).tsm
    assert context is not None
    return context.evidence.objects


def names(sh: Shell, name: str = NIC) -> set[str]:
    return {kind.name for kind in objects(sh, name)}


def verdicts(sh: Shell, name: str = NIC, nonce: bytes | None = None) -> list[Check]:
    """What a verifier who knows the machine's root says of the evidence."""
    dev, dsm = sh.dev(name), sh.dev(DSM_OF[name])
    assert dev.tsm is not None
    held = dev.tsm.evidence
    evidence = Evidence.of(
        {kind.name.lower(): data for kind, data in held.objects.items()},
        {kind.name.lower(): data for kind, data in held.digests.items()},
    )
    places = tuple((r.start, r.end, r.flags) if r else (0, 0, 0) for r in dev.resource)
    origin = cma(sh, name).nature.origin
    root = root_certificate(origin.seed, origin.base_asym, origin.base_hash)
    facts = DeviceFacts(cma_name_of(dsm), places)
    return verify_evidence(evidence, roots=[root], device=facts, nonce=nonce)


def failed(sh: Shell, name: str = NIC, nonce: bytes | None = None) -> set[CheckName]:
    return {check.name for check in verdicts(sh, name, nonce) if check.ok is False}


def made(sh: Shell, name: str = NIC, nonce: bytes | None = None) -> set[CheckName]:
    return {check.name for check in verdicts(sh, name, nonce) if check.ok}


def stream_states(sh: Shell, name: str = NIC) -> list[int]:
    """State of the first stream of a function and of its root port."""
    dev = sh.dev(name)
    states = []
    for port in (dev, dev.root_port):
        assert port is not None
        block = port.ide_cap + regs.PCI_IDE_LINK_STREAM_0
        block += port.nr_link_ide * regs.PCI_IDE_LINK_BLOCK_SIZE
        status = port.config.read(block + regs.PCI_IDE_SEL_STS, 4)
        states.append(field_get(regs.PCI_IDE_SEL_STS_STATE, status))
    return states


def everything(sh: Shell) -> object:
    """All that connecting and locking change, apart from what no one can see."""
    devices = list(map(sh.dev, sh.devices()))
    held = [len(dev.hw.ide._held) for dev in devices if dev.hw.ide is not None]
    # A handshake that the platform gave up is the device's until its next connection.
    sessions = [
        session
        for dev in devices
        if dev.hw.cma is not None and dev.hw.cma._responder is not None
        for session in dev.hw.cma._responder.sessions.values()
        if session.established
    ]
    states = [
        tdi.state for dev in devices if dev.hw.cma is not None for tdi in dev.hw.cma.tdis.values()
    ]
    return (
        sh.iomem(),
        [dev.tsm for dev in devices],
        [dev.config.read_bytes(0x100, 0xF00) for dev in devices if dev.ide_cap],
        [sh.ls(f"/devices/pci0000:{bus}") for bus in ("00", "80")],
        [len(bridge.ide_stream_ida) for bridge in sh.machine.pci.host_bridges],
        [len(bridge.ide_stream_ids) for bridge in sh.machine.pci.host_bridges],
        held,
        sessions,
        states,
        world_of(sh.machine.host).dsms,
        [sh.ls(f"/class/tsm/tsm{n}") for n in (0, 1)],
    )


@pytest.fixture
def unchanged(sh: Shell) -> Iterator[None]:
    before = everything(sh)
    yield
    assert everything(sh) == before
    assert "Traceback" not in sh.dmesg()


# The host's side


@pytest.mark.parametrize("name", [NIC, SWITCH, ACCELERATOR, NVME])
@pytest.mark.usefixtures("unchanged")
def test_connect_collects_evidence_that_verifies(sh: Shell, name: str) -> None:
    connect(sh, name)
    assert names(sh, name) == {"CERT0", "VCA", "MEASUREMENTS"}
    assert failed(sh, name) == set()
    assert made(sh, name) > {
        CheckName.ROOT, CheckName.NAME, CheckName.SIGNATURE, CheckName.DIGESTS
    }  # fmt: skip
    disconnect(sh, name)


@pytest.mark.usefixtures("unchanged")
def test_a_connected_endpoint_has_a_stream_under_keys_that_both_ends_hold(sh: Shell) -> None:
    connect(sh)
    assert stream_states(sh) == [regs.PCI_IDE_SEL_STS_STATE_SECURE] * 2
    dev = sh.dev(NIC)
    assert dev.hw.ide is not None
    assert dev.root_port is not None
    assert dev.root_port.hw.ide is not None
    mine, theirs = dev.hw.ide._held, dev.root_port.hw.ide._held
    assert {slot.partner(0): held.key for slot, held in mine.items()} == {
        slot: held.key for slot, held in theirs.items()
    }
    assert len({held.key for held in mine.values()}) == 6
    assert sh.readlink("/devices/pci0000:00/stream0.0.0").endswith(NIC)
    disconnect(sh)


@pytest.mark.usefixtures("unchanged")
def test_what_cannot_have_a_stream_gets_a_session_alone(sh: Shell) -> None:
    for name in (SWITCH, ACCELERATOR):
        connect(sh, name)
    assert sh.cat("/devices/pci0000:00/available_secure_streams") == "8\n"
    assert {dsm.name for dsm in world_of(sh.machine.host).dsms} == {SWITCH, ACCELERATOR}
    for name in (SWITCH, ACCELERATOR):
        disconnect(sh, name)


def test_disabling_the_stream_by_hand_is_seen(sh: Shell) -> None:
    connect(sh)
    dev = sh.dev(NIC)
    block = dev.ide_cap + regs.PCI_IDE_LINK_STREAM_0 + regs.PCI_IDE_LINK_BLOCK_SIZE
    sh.write(f"{pci(NIC)}/config", bytes(4), block + regs.PCI_IDE_SEL_CTL)
    assert stream_states(sh)[0] == regs.PCI_IDE_SEL_STS_STATE_INSECURE
    disconnect(sh)


def refresh(sh: Shell, nonce: bytes, name: str = NIC) -> None:
    sh.machine.pci.tsm.refresh_evidence(sh.dev(name), nonce)


def test_evidence_is_made_anew_over_the_nonce_of_the_caller(sh: Shell) -> None:
    connect(sh)
    before = dict(objects(sh))
    nonce = os.urandom(32)
    refresh(sh, nonce)
    context = sh.dev(NIC).tsm
    assert context is not None
    assert context.evidence.generation == 2
    assert objects(sh)[EvidenceType.CERT0] == before[EvidenceType.CERT0]
    assert objects(sh)[EvidenceType.MEASUREMENTS] != before[EvidenceType.MEASUREMENTS]
    assert failed(sh, nonce=nonce) == set()
    assert CheckName.NONCE in made(sh, nonce=nonce)
    assert failed(sh, nonce=bytes(32)) == {CheckName.NONCE}


@pytest.mark.parametrize("size", [0, 1, 31, 33, 256])
def test_a_nonce_has_the_size_of_spdms(sh: Shell, size: int) -> None:
    connect(sh)
    with fails(errno.EINVAL):
        refresh(sh, bytes(size))


def test_a_dependent_function_has_no_evidence_without_a_report(vf: Shell) -> None:
    connect(vf)
    assert objects(vf, VF) == {}
    with fails(errno.ENXIO):
        refresh(vf, bytes(32), VF)


# Binding


@pytest.mark.parametrize(("dsm", "name"), [(NIC, NIC), (NIC, VF), (SWITCH, GPU)])
def test_bind_locks_the_interface_and_shows_its_report(vf: Shell, dsm: str, name: str) -> None:
    connect(vf, dsm)
    own = names(vf, name)
    vf.echo(name, f"{LINK}/tsm_bind")
    assert interface(vf, name).state is TdiState.CONFIG_LOCKED
    assert names(vf, name) == {"CERT0", "VCA", "MEASUREMENTS", "REPORT"}
    nonce = os.urandom(32)
    refresh(vf, nonce, name)
    assert failed(vf, name, nonce) == set()
    assert CheckName.RESOURCE in made(vf, name)
    vf.echo(name, f"{LINK}/tsm_request")
    vf.echo(name, f"{LINK}/tsm_unbind")
    assert interface(vf, name).state is TdiState.CONFIG_UNLOCKED
    assert names(vf, name) == own


def test_the_lock_is_bound_to_the_stream(sh: Shell) -> None:
    connect(sh)
    sh.echo(NIC, f"{LINK}/tsm_bind")
    dev = sh.dev(NIC)
    assert dev.root_port is not None
    dev.root_port.config.reset()
    assert interface(sh).state is TdiState.ERROR
    assert "pci 0000:01:00.0: TDISP: CONFIG_LOCKED to ERROR: IDE stream 0 was lost\n" in sh.dmesg()
    disconnect(sh)
    assert interface(sh).state is TdiState.CONFIG_UNLOCKED


def test_a_function_without_tee_io_is_no_interface(sh: Shell) -> None:
    connect(sh, SWITCH)
    with fails(errno.ENODEV):
        sh.echo(AUDIO, f"{LINK}/tsm_bind")
    assert sh.cat(f"{pci(AUDIO)}/tsm/bound") == "\n"


def test_disconnect_unlocks_what_is_bound(vf: Shell) -> None:
    before = everything(vf)
    connect(vf)
    for name in (NIC, VF):
        vf.echo(name, f"{LINK}/tsm_bind")
    disconnect(vf)
    assert everything(vf) == before


def test_guest_requests(sh: Shell) -> None:
    connect(sh)
    sh.echo(NIC, f"{LINK}/tsm_bind")
    core, dev, function = sh.machine.pci.tsm, sh.dev(NIC), function_id_of(sh.dev(NIC))
    info, change = PciTsmReqScope.INFO, PciTsmReqScope.STATE_CHANGE

    def errno_at(scope: PciTsmReqScope, request: bytes) -> str | None:
        return errno_from(lambda: core.guest_req(dev, scope, request))

    start = StartInterfaceRequest(function_id=function).pack()
    assert errno_at(info, b"") == errno_at(info, b"x" * 16) == "EINVAL"
    assert errno_at(info, GetDeviceInterfaceState(function_id=function + 1).pack()) == "EINVAL"
    assert errno_at(info, start) == "EPERM"
    assert errno_at(change, StopInterfaceRequest(function_id=function).pack()) == "EPERM"
    assert parse_tdisp(core.guest_req(dev, info, state_request(dev))).state == 1  # type: ignore[attr-defined]
    core.guest_req(dev, change, start)
    assert parse_tdisp(core.guest_req(dev, info, state_request(dev))).state == 2  # type: ignore[attr-defined]
    assert interface(sh).state is TdiState.RUN


# The guest's side


@pytest.mark.parametrize("name", [NIC, VF, GPU, ACCELERATOR])
def test_lock_accept_and_unlock(vf: Shell, name: str) -> None:
    before = everything(vf)
    lock(vf, name)
    assert interface(vf, name).state is TdiState.CONFIG_LOCKED
    assert names(vf, name) == {"CERT0", "VCA", "MEASUREMENTS", "REPORT"}
    assert failed(vf, name) == set()
    assert {CheckName.REPORT, CheckName.RANGES, CheckName.RESOURCE} <= made(vf, name)
    assert PRIVATE not in vf.iomem()
    nonce = os.urandom(32)
    refresh(vf, nonce, name)
    assert failed(vf, name, nonce) == set()
    assert "REPORT" in names(vf, name)
    accept(vf, name)
    assert interface(vf, name).state is TdiState.RUN
    assert vf.cat(f"{pci(name)}/tsm/accept") == "1\n"
    with fails(errno.EBUSY):
        accept(vf, name)
    unlock(vf, name)
    assert everything(vf) == before


@pytest.mark.parametrize("name", [NIC, VF, GPU, ACCELERATOR])
def test_private_ranges_are_those_of_the_report(vf: Shell, name: str) -> None:
    lock(vf, name)
    accept(vf, name)
    report = Report.parse(objects(vf, name)[EvidenceType.REPORT])
    reported = {(one.address(), one.address() + one.size - 1) for one in report.mmio_ranges}
    lines = [line.strip() for line in vf.iomem().splitlines() if line.endswith(PRIVATE)]
    listed = {tuple(int(end, 16) for end in line.split(" ")[0].split("-")) for line in lines}
    assert listed == reported
    bars = {number for number, bar in vf.dev(name).bars() if bar.flags & IORESOURCE_MEM}
    # All but the GPU have a BAR with their MSI-X table.
    private = {one.range_id for one in report.mmio_ranges}
    assert private == bars if name == GPU else private < bars


def test_a_driver_works_with_an_accepted_device_that_it_may_reach(sh: Shell) -> None:
    sh.modprobe("pci_stub")
    lock(sh, ACCELERATOR)
    accept(sh, ACCELERATOR)
    sh.echo("1", f"{pci(ACCELERATOR)}/enable")
    assert interface(sh, ACCELERATOR).state is TdiState.RUN
    sh.echo("pci-stub", f"{pci(ACCELERATOR)}/driver_override")
    sh.echo(ACCELERATOR, "/bus/pci/drivers/pci-stub/bind")
    with fails(errno.EBUSY):
        unlock(sh, ACCELERATOR)


@pytest.mark.parametrize("accepted", [False, True])
def test_a_change_of_the_configuration_is_found_out(sh: Shell, accepted: bool) -> None:
    before = everything(sh)
    sh.echo("1", f"{pci(ACCELERATOR)}/enable")
    lock(sh, ACCELERATOR)
    if accepted:
        accept(sh, ACCELERATOR)
    sh.write(f"{pci(ACCELERATOR)}/config", bytes(2), regs.PCI_COMMAND)
    assert interface(sh, ACCELERATOR).state is TdiState.ERROR
    if not accepted:
        with fails(errno.EIO):
            accept(sh, ACCELERATOR)
        assert PRIVATE not in sh.iomem()
    unlock(sh, ACCELERATOR)
    assert everything(sh) == before
    lock(sh, ACCELERATOR)
    accept(sh, ACCELERATOR)


def without_ranges(report: Report) -> Report:
    return Report(mmio_ranges=())


def foreign_range(report: Report) -> Report:
    return Report(mmio_ranges=(MmioRange(first_page=1, pages=1),))


def twice(report: Report) -> Report:
    return Report(mmio_ranges=(report.mmio_ranges[0], report.mmio_ranges[0]))


def other_bar(report: Report) -> Report:
    (first, *_) = report.mmio_ranges
    return Report(mmio_ranges=(MmioRange(first_page=first.first_page, pages=1, range_id=4),))


@pytest.mark.parametrize("lie", [foreign_range, twice, other_bar])
def test_a_report_that_does_not_fit_can_be_read_and_is_not_accepted(
    sh: Shell, lie: Callable[[Report], Report]
) -> None:
    cma(sh).tamper(Disguise(report=lie))
    lock(sh)
    assert failed(sh) or lie is other_bar
    before = sh.iomem()
    with fails(errno.EINVAL):
        accept(sh)
    assert sh.iomem() == before
    assert interface(sh).state is TdiState.CONFIG_LOCKED
    assert (" overlaps or precedes the range before it in BAR 0" in sh.dmesg()) == (lie is twice)
    unlock(sh)


def test_a_function_with_nothing_private_is_accepted(sh: Shell) -> None:
    cma(sh).tamper(Disguise(report=without_ranges))
    lock(sh)
    accept(sh)
    assert PRIVATE not in sh.iomem()


def test_only_a_function_that_something_secures_is_locked() -> None:
    text = """
[[host_bridge]]
[[host_bridge.root_port]]
slot = 1
[[host_bridge.root_port.endpoint]]
tee_io = true
"""
    sh = boot(text, ["soft_devsec_tsm"])
    with fails(errno.ENXIO):
        tsm(sh, "lock", NIC, "tsm0")
    mailbox = text + "doe = true\n"
    sh = boot(mailbox, ["soft_devsec_tsm", "soft_link_tsm"])
    with fails(errno.EIO):
        tsm(sh, "lock", NIC, "tsm0")
    with fails(errno.EIO):
        tsm(sh, "connect", NIC, "tsm1")


# Both on one device


def test_the_two_sides_share_the_session_of_a_device(vf: Shell) -> None:
    lock(vf, VF)
    accept(vf, VF)
    session = next(iter(cma(vf).responder.sessions))
    connect(vf)
    assert set(cma(vf).responder.sessions) == {session}
    assert interface(vf, VF).state is TdiState.RUN
    disconnect(vf)
    assert set(cma(vf).responder.sessions) == {session}
    assert interface(vf, VF).state is TdiState.RUN
    unlock(vf, VF)
    assert cma(vf).responder.sessions == {}


def test_a_lock_is_bound_to_the_stream_that_the_host_keyed(vf: Shell) -> None:
    lock(vf, VF)
    connect(vf, NVME)
    connect(vf)
    unlock(vf, VF)
    lock(vf, VF)
    parameters = interface(vf, VF).parameters
    assert parameters is not None
    # The first stream of the platform is that of the NVMe.
    assert parameters.stream_id == 1
    disconnect(vf)
    assert interface(vf, VF).state is TdiState.ERROR
    unlock(vf, VF)
    lock(vf, VF)
    accept(vf, VF)


def test_a_refresh_after_a_session_of_another_slot_is_all_of_that_slot() -> None:
    sh = boot("server", ["pci_pf_stub", "soft_link_tsm slot=0", "soft_devsec_tsm slot=1"])
    sh.echo("pci-pf-stub", f"{pci(NIC)}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("2", f"{pci(NIC)}/sriov_numvfs")
    lock(sh, VF)
    sh.echo("1", f"{pci(NIC)}/reset")
    connect(sh)
    assert "CERT0" in names(sh)
    refresh(sh, bytes(32), VF)
    assert names(sh, VF) == {"CERT0", "VCA", "MEASUREMENTS", "REPORT"}
    context = sh.dev(VF).tsm
    assert context is not None
    assert context.evidence.slot == 0


def test_a_function_that_the_host_holds_is_not_locked(vf: Shell) -> None:
    connect(vf)
    for name in (NIC, VF):
        with fails(errno.EBUSY):
            lock(vf, name)


def test_a_session_that_was_lost_is_made_anew_for_the_next_user(vf: Shell) -> None:
    lock(vf, VF)
    vf.echo("1", f"{pci(NIC)}/reset")
    assert interface(vf, VF).state is TdiState.ERROR
    connect(vf)
    assert failed(vf) == set()
    unlock(vf, VF)
    assert interface(vf, VF).state is TdiState.CONFIG_UNLOCKED
    disconnect(vf)


def test_two_link_tsms_take_turns(sh: Shell) -> None:
    sh.modprobe("devsec_link_tsm all_bridges=1")
    connect(sh)
    with fails(errno.EBUSY):
        tsm(sh, "connect", NIC, "tsm2")
    with fails(errno.EINVAL):
        tsm(sh, "disconnect", NIC, "tsm2")
    disconnect(sh)
    tsm(sh, "connect", SWITCH, "tsm2")
    with fails(errno.EBUSY):
        connect(sh, SWITCH)


def test_why_something_could_not_be_stopped_is_told_in_words(sh: Shell) -> None:
    connect(sh)
    sh.echo(NIC, f"{LINK}/tsm_bind")
    cma(sh).reset()
    disconnect(sh)
    where = "0000:01:00.0:"
    assert f"soft_tsm: interface 0x100 was not stopped: {where} DOE [" in sh.dmesg()
    assert f"soft_tsm: stream 0 was stopped at one end: {where} the session was lost" in sh.dmesg()


@pytest.mark.parametrize("name", [NIC, VF])
def test_what_ends_a_lock_is_told_in_the_log_and_accept_stays(vf: Shell, name: str) -> None:
    dev = vf.dev(name)

    def told(state: str) -> str:
        reason = "memory space or bus mastering was disabled"
        return f"pci {name}: TDISP: {state} to ERROR: {reason}\n"

    for state in ("CONFIG_LOCKED", "RUN"):
        lock(vf, name)
        dev.config.write(regs.PCI_COMMAND, 2, COMMAND)
        if state == "RUN":
            accept(vf, name)
        assert told(state) not in vf.dmesg()
        dev.config.write(regs.PCI_COMMAND, 2, 0)
        assert vf.dmesg().count(told(state)) == 1
        assert vf.cat(f"{pci(name)}/tsm/accept") == ("1\n" if state == "RUN" else "0\n")
        unlock(vf, name)


# Parameters


@pytest.mark.parametrize("module", ["soft_link_tsm", "soft_devsec_tsm"])
@pytest.mark.parametrize(
    "parameter", ["slot=8", "slot=-1", "slot=x", "version=1.1", "version=1.4", "version=2"]
)
def test_parameters_that_make_no_sense_are_refused(module: str, parameter: str) -> None:
    sh = boot("server", [])
    with fails(errno.EINVAL):
        sh.modprobe(f"{module} {parameter}")
    assert sh.ls("/module") == {"module"}
    name, value = parameter.split("=")
    assert f"{module}: `{value}' invalid for parameter `{name}'" in sh.dmesg()


@pytest.mark.parametrize(("version", "byte"), [("1.2", 0x12), ("1.3", 0x13)])
@pytest.mark.parametrize("slot", [0, 1])
def test_slot_and_version_are_chosen_by_parameters(version: str, byte: int, slot: int) -> None:
    parameters = f"slot={slot} version={version}"
    sh = boot("server", [f"soft_link_tsm {parameters}", f"soft_devsec_tsm {parameters}"])
    for begin, end in ((connect, disconnect), (lock, unlock)):
        begin(sh)
        assert f"CERT{slot}" in names(sh)
        assert objects(sh)[EvidenceType.MEASUREMENTS][0] == byte
        context = sh.dev(NIC).tsm
        assert context is not None
        assert context.evidence.slot == slot
        assert failed(sh) == set()
        end(sh)
    assert sh.cat("/module/soft_link_tsm/parameters/slot") == f"{slot}\n"
    assert sh.cat("/module/soft_link_tsm/parameters/version") == f"{version}\n"


def test_a_slot_without_a_certificate_has_no_key() -> None:
    sh = boot("server", ["soft_link_tsm slot=1", "soft_devsec_tsm slot=2"])
    connect(sh)
    with fails(errno.ENOKEY):
        connect(sh, ACCELERATOR)
    with fails(errno.ENOKEY):
        lock(sh, ACCELERATOR)


def test_a_version_that_the_device_does_not_speak_is_not_supported() -> None:
    sh = boot("server", ["soft_link_tsm version=1.3"])
    with fails(errno.EPROTONOSUPPORT):
        connect(sh, NVME)


def test_devices_that_only_list_spdm_in_the_clear_are_declined() -> None:
    sh = boot("devsec", ["devsec_bus", "soft_link_tsm", "soft_devsec_tsm"])
    with fails(errno.ENXIO):
        connect(sh, "10000:01:00.0")
    with fails(errno.ENXIO):
        lock(sh, "10000:01:00.0")


# What devices can do wrong


def break_signature(context: SigningContext) -> Callable[[Slot, SigningJob], bytes]:
    def signer(slot: Slot, job: SigningJob) -> bytes:
        signature = sign(slot, job)
        return signature[::-1] if job.context is context else signature

    return signer


@pytest.mark.usefixtures("unchanged")
def test_a_device_that_cannot_sign_its_key_exchange_is_rejected(sh: Shell) -> None:
    cma(sh).tamper(Disguise(signer=break_signature(SigningContext.KEY_EXCHANGE_RSP)))
    with fails(errno.EKEYREJECTED):
        connect(sh)
    with fails(errno.EKEYREJECTED):
        lock(sh)
    assert "connect failed: 0000:01:00.0: the signature for" in sh.dmesg()


def test_a_wrong_signature_of_measurements_is_for_the_relying_party_to_judge(sh: Shell) -> None:
    cma(sh).tamper(Disguise(signer=break_signature(SigningContext.MEASUREMENTS)))
    connect(sh)
    assert failed(sh) == {CheckName.SIGNATURE}


def expired(sh: Shell) -> Disguise:
    return Disguise(identity=tamper.expired(cma(sh).nature.origin))


def wrong_name(sh: Shell) -> Disguise:
    return Disguise(identity=tamper.wrong_san(cma(sh).nature.origin))


def bad_measurements(sh: Shell) -> Disguise:
    return Disguise(signer=break_signature(SigningContext.MEASUREMENTS))


@pytest.mark.parametrize("lie", [expired, wrong_name, bad_measurements])
def test_a_strict_platform_judges_by_itself(lie: Callable[[Shell], Disguise]) -> None:
    sh = boot("server", ["soft_link_tsm strict=1", "soft_devsec_tsm strict=1"])
    before = everything(sh)
    connect(sh)
    disconnect(sh)
    cma(sh).tamper(lie(sh))
    for begin in (connect, lock):
        with fails(errno.EKEYREJECTED):
            begin(sh)
    assert everything(sh) == before


@pytest.mark.usefixtures("unchanged")
def test_a_device_that_does_not_answer_times_out(sh: Shell) -> None:
    def hang(request: bytes) -> bytes:
        raise TimeoutError(errno.ETIMEDOUT, "never")

    mailbox = sh.dev(NIC).doe_mailboxes[0]
    mailbox.features()
    mailbox._timeout = 0.05
    _handlers(sh)[1, 1] = hang
    for begin in (connect, lock):
        with fails(errno.ETIMEDOUT):
            begin(sh)


def _handlers(sh: Shell) -> dict[tuple[int, int], Callable[[bytes], bytes]]:
    """The table of handlers behind the NIC's mailbox."""
    hooks = sh.dev(NIC).config._write_hooks.values()
    boxes = [hook.__self__ for entry in hooks for *_, hook in entry if hasattr(hook, "__self__")]
    box = next(box for box in boxes if hasattr(box, "_protocols"))
    table: dict[tuple[int, int], Callable[[bytes], bytes]] = dict(box._protocols)
    box._protocols = table
    return table


@pytest.mark.usefixtures("unchanged")
def test_a_device_that_breaks_the_protocol_is_told_as_such(sh: Shell) -> None:
    cma(sh).responder.transform = lambda request, response: response[:1] + b"\x7e" + response[2:]
    with fails(errno.EPROTO):
        connect(sh)


def test_a_mailbox_that_user_space_took_over_has_lost_the_session(sh: Shell) -> None:
    connect(sh)
    cma(sh).plain(bytes((0x10, 0x84, 0, 0)))
    assert errno_from(lambda: refresh(sh, bytes(32))) == "EIO"
    assert errno_from(lambda: refresh(sh, bytes(32))) == "ENOTCONN"
    assert stream_states(sh) == [regs.PCI_IDE_SEL_STS_STATE_INSECURE] * 2
    disconnect(sh)
    connect(sh)
    assert failed(sh) == set()


# Unwinding


def exchanges(sh: Shell, operation: Callable[[Shell], None]) -> int:
    """How many data objects an operation exchanges."""
    attribute = sh.machine.faults.points[Point.DOE_TRANSFER]
    sh.fault(Point.DOE_TRANSFER, space=1 << 20)
    operation(sh)
    count = (1 << 20) - attribute.space
    sh.fault(Point.DOE_TRANSFER, probability=0, space=0)
    return count


@pytest.mark.parametrize(("begin", "end"), [(connect, disconnect), (lock, unlock)])
def test_a_failure_at_any_step_leaves_nothing_behind(
    sh: Shell, begin: Callable[[Shell], None], end: Callable[[Shell], None]
) -> None:
    sh.dev(NIC).doe_mailboxes[0].features()
    before = everything(sh)
    steps = exchanges(sh, begin)
    end(sh)
    assert steps > 10
    for step in range(1, steps + 1):
        sh.fault(Point.DOE_TRANSFER, space=step, times=1)
        with fails(errno.EIO):
            begin(sh)
        sh.fault(Point.DOE_TRANSFER, probability=0, space=0)
        # What the failing step could not undo at the device, the device's next session does.
        begin(sh)
        assert failed(sh) == set()
        end(sh)
        assert everything(sh) == before, step


@pytest.mark.parametrize("step", range(1, 6))
def test_a_bind_that_fails_at_any_step_leaves_the_connection(sh: Shell, step: int) -> None:
    connect(sh)
    before = everything(sh)
    sh.fault(Point.DOE_TRANSFER, space=step, times=1)
    result = errno_from(lambda: sh.echo(NIC, f"{LINK}/tsm_bind"))
    sh.fault(Point.DOE_TRANSFER, probability=0, space=0)
    if result is None:
        sh.echo(NIC, f"{LINK}/tsm_unbind")
        assert step > 3
        assert everything(sh) == before
    else:
        assert result == "EIO"
        assert sh.cat(f"{pci(NIC)}/tsm/bound") == "\n"
    disconnect(sh)
    connect(sh)


def bind(sh: Shell) -> None:
    sh.echo(NIC, f"{LINK}/tsm_bind")


@pytest.mark.parametrize("begin", [bind, lock])
def test_a_lock_whose_answer_is_not_understood_is_taken_back(
    sh: Shell, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Shell], None]
) -> None:
    if begin is bind:
        connect(sh)
    before = everything(sh)
    answer = TdispResponder._answer

    def confused(
        device: TdispResponder, session: int, tdi: Interface, request: TdispMessage
    ) -> TdispMessage:
        given = answer(device, session, tdi, request)
        if not isinstance(request, LockInterfaceRequest):
            return given
        return StartInterfaceResponse(function_id=request.function_id)

    with monkeypatch.context() as other:
        other.setattr(TdispResponder, "_answer", confused)
        for _ in range(2):
            with fails(errno.EPROTO):
                begin(sh)
            assert interface(sh).state is TdiState.CONFIG_UNLOCKED
    assert everything(sh) == before
    begin(sh)
    assert interface(sh).state is TdiState.CONFIG_LOCKED


def busy(*_: object) -> NoReturn:
    raise SpdmError(ErrorCode.BUSY, "busy")


@pytest.mark.parametrize("refuse", [None, busy], ids=["by TDISP", "by SPDM"])
def test_a_lock_that_the_device_refuses_leaves_the_lock_of_another(
    sh: Shell, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., NoReturn] | None
) -> None:
    connect(sh)
    (dsm,) = world_of(sh.machine.host).dsms
    locked = dsm.lock(sh.dev(NIC))
    with monkeypatch.context() as patch:
        if refuse is not None:
            patch.setattr(TdispRequester, "lock", refuse)
        with fails(errno.EIO if refuse is None else errno.EBUSY):
            bind(sh)
    assert interface(sh).state is TdiState.CONFIG_LOCKED
    dsm.start(locked)


def test_a_bind_whose_evidence_cannot_be_shown_unlocks_the_interface(
    sh: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(sh)
    before, shown = everything(sh), objects(sh)
    with monkeypatch.context() as small:
        small.setattr(evidence, "EVIDENCE_OBJECT_MAX", 16)
        with fails(errno.EFBIG):
            bind(sh)
    assert interface(sh).state is TdiState.CONFIG_UNLOCKED
    assert (everything(sh), objects(sh)) == (before, shown)
    assert "soft_tsm: bind failed: " in sh.dmesg()
    bind(sh)
    assert names(sh) == {"CERT0", "VCA", "MEASUREMENTS", "REPORT"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("point", [Point.IDE_STREAM_ENABLE, Point.TSM_CONNECT])
def test_a_stream_that_cannot_be_enabled_is_taken_down_again(sh: Shell, point: Point) -> None:
    sh.fault(point)
    with fails(errno.EIO):
        connect(sh)


@pytest.mark.usefixtures("unchanged")
def test_a_bridge_without_a_free_stream_is_no_memory(sh: Shell) -> None:
    bridge = sh.dev(NIC).host_bridge
    taken = [bridge.ide_stream_ida.alloc(bridge.nr_ide_streams) for _ in range(8)]
    with fails(errno.ENOMEM):
        connect(sh)
    for number in taken:
        assert number is not None
        bridge.ide_stream_ida.free(number)


@pytest.mark.usefixtures("unchanged")
def test_a_caller_who_is_killed_leaves_nothing_behind(sh: Shell) -> None:
    caller = Caller()

    def hang(request: bytes) -> bytes:
        caller.kill()
        raise TimeoutError(errno.ETIMEDOUT, "never")

    sh.dev(NIC).doe_mailboxes[0].features()
    _handlers(sh)[1, 2] = hang
    for begin in (connect, lock):
        caller.killed.clear()
        with fails(errno.EINTR):
            begin(sh.as_task(caller.task))


# Ends of all kinds


def bound(sh: Shell, name: str = NIC) -> None:
    connect(sh)
    sh.echo(name, f"{LINK}/tsm_bind")


def running(sh: Shell) -> None:
    lock(sh)
    accept(sh)


STATES: dict[str, Callable[[Shell], None]] = {
    "connected": connect,
    "bound": bound,
    "locked": lock,
    "running": running,
    "a VF locked": lambda sh: lock(sh, VF),
    "a VF bound": lambda sh: bound(sh, VF),
}


@pytest.mark.parametrize("state", STATES)
def test_a_reset_in_any_state(vf: Shell, state: str) -> None:
    STATES[state](vf)
    vf.echo("1", f"{pci(NIC)}/reset")
    locked = VF if "VF" in state else NIC
    if state != "connected":
        assert interface(vf, locked).state is TdiState.ERROR
    assert cma(vf).responder.sessions == {}
    with fails(errno.EIO):
        refresh(vf, bytes(32), locked)
    if vf.cat(f"{pci(NIC)}/tsm/connect") == "tsm0\n":
        disconnect(vf)
    else:
        unlock(vf, locked)
    assert PRIVATE not in vf.iomem()
    assert world_of(vf.machine.host).dsms == []
    lock(vf, locked)
    accept(vf, locked)
    unlock(vf, locked)
    connect(vf)
    assert failed(vf) == set()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("end", ["unplug", "remove", "rmmod", "stop"])
def test_an_end_in_any_state(vf: Shell, state: str, end: str) -> None:
    STATES[state](vf)
    match end:
        case "unplug":
            vf.echo(NIC, "/kernel/tsmfs/unplug")
        case "remove":
            vf.echo("1", f"{pci(NIC)}/remove")
        case "rmmod":
            for module in ("soft_devsec_tsm", "soft_link_tsm"):
                vf.rmmod(module)
        case _:
            vf.machine.stop()
    assert "Traceback" not in vf.dmesg()
    assert PRIVATE not in vf.iomem()
    if end == "stop":
        return
    if end == "unplug":
        vf.echo(NIC, "/kernel/tsmfs/plug")
    elif end == "remove":
        vf.echo("1", "/bus/pci/rescan")
    else:
        for module in ("soft_link_tsm", "soft_devsec_tsm"):
            vf.modprobe(module)
    assert world_of(vf.machine.host).dsms == []
    lock(vf)
    accept(vf)
    unlock(vf)
    connect(vf)
    assert failed(vf) == set()
    assert stream_states(vf) == [regs.PCI_IDE_SEL_STS_STATE_SECURE] * 2


def test_a_device_that_comes_back_is_unlocked_and_without_keys(sh: Shell) -> None:
    lock(sh)
    device = interface(sh)
    connect(sh, NVME)
    sh.echo(NIC, "/kernel/tsmfs/unplug")
    sh.echo(NIC, "/kernel/tsmfs/plug")
    assert device.state is TdiState.CONFIG_UNLOCKED
    assert stream_states(sh, NVME) == [regs.PCI_IDE_SEL_STS_STATE_SECURE] * 2


# Several at once


def test_devices_are_connected_side_by_side(sh: Shell) -> None:
    everyone = (NIC, SWITCH, ACCELERATOR, NVME)
    with threads() as pool:
        for _ in range(3):
            futures = [pool.submit(connect, sh, name) for name in everyone]
            assert [errno_of_result(one) for one in futures] == [None] * 4
            futures = [pool.submit(refresh, sh, bytes(32), name) for name in everyone * 4]
            assert [errno_of_result(one) for one in futures] == [None] * 16
            assert [failed(sh, name) for name in everyone] == [set()] * 4
            futures = [pool.submit(disconnect, sh, name) for name in everyone]
            assert [errno_of_result(one) for one in futures] == [None] * 4


def test_functions_of_one_device_are_locked_side_by_side(vf: Shell) -> None:
    before = everything(vf)
    both = (NIC, VF, "0000:01:00.2")
    with threads() as pool:
        for _ in range(3):
            for operation in (lock, accept, unlock):
                futures = [pool.submit(operation, vf, name) for name in both]
                assert [errno_of_result(one) for one in futures] == [None] * 3
    assert everything(vf) == before


# Secrets


def test_private_keys_and_nonces_show_nowhere(sh: Shell) -> None:
    connect(sh)
    sh.echo(NIC, f"{LINK}/tsm_bind")
    dev = sh.dev(NIC)
    key = cma(sh).identity.slots[0].key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value.to_bytes(48, "big")
    assert dev.hw.ide is not None
    secrets = [number, *(held.key for held in dev.hw.ide._held.values())]
    context = dev.tsm
    assert context is not None
    assert context.tdi is not None
    nonce = context.tdi.interface.nonce  # type: ignore[attr-defined]
    shown = b"".join(objects(sh).values()) + sh.read(f"{pci(NIC)}/config")
    text = repr(context) + repr(context.tdi) + sh.dmesg() + repr(world_of(sh.machine.host).dsms)
    for secret in (*secrets, nonce):
        assert secret not in shown
        assert secret.hex() not in text
        assert repr(secret)[2:20] not in text
    assert isinstance(context.tsm_dev, TsmDevice)
    assert KVM is context.tdi.kvm
