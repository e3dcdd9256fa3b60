# SPDX-License-Identifier: MIT
"""From a machine description to devices with keys: responders, key slots, interfaces.

Imported for a machine that has such devices; nothing of them is computed before they are used.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tsmfs import description
from tsmfs.board import BuiltFunction, header_bar, placeholders
from tsmfs.description import CmaHash, CmaKey, Function, Kind, MeasurementKind, has_keys
from tsmfs.kernel.errors import fail
from tsmfs.pci import regs
from tsmfs.pci.capability import Doe, Ide, Sriov
from tsmfs.pci.cma import CmaDevice, Nature
from tsmfs.pci.config import ConfigSpace
from tsmfs.pci.doe import DoeMailbox
from tsmfs.pci.hardware import HwFunction, pci_name
from tsmfs.pci.ide_km import IdePort
from tsmfs.pci.tdisp import MemoryBar, Tdi, memory_bars, vf_memory_bars, watch_vfs
from tsmfs.spdm.interface import Interface
from tsmfs.spdm.measurements import MANIFEST_INDEX, Measurement
from tsmfs.spdm.measurements import MeasurementKind as DmtfKind
from tsmfs.spdm.tdisp import TdiState, function_id

if TYPE_CHECKING:
    from tsmfs.spdm.algorithms import BaseAsym, BaseHash
    from tsmfs.spdm.identity import Identity, Subject

_DMTF_KINDS: Mapping[MeasurementKind, DmtfKind] = {
    MeasurementKind.ROM: DmtfKind.IMMUTABLE_ROM,
    MeasurementKind.FIRMWARE: DmtfKind.MUTABLE_FIRMWARE,
    MeasurementKind.HARDWARE_CONFIG: DmtfKind.HARDWARE_CONFIGURATION,
    MeasurementKind.FIRMWARE_CONFIG: DmtfKind.FIRMWARE_CONFIGURATION,
    MeasurementKind.MANIFEST: DmtfKind.MEASUREMENT_MANIFEST,
    MeasurementKind.VERSION: DmtfKind.FIRMWARE_VERSION,
}
_VERSIONS = {description.CmaVersion.V1_2: 0x12, description.CmaVersion.V1_3: 0x13}


def root_certificates(machine: description.Machine) -> str:
    """The roots in PEM of the devices whose keys are made from the machine's seed.

    Each algorithm has its own, so a machine has as many as its devices have algorithms.
    """
    algorithms = {
        (_base_asym(cma), _base_hash(cma)): None
        for bridge in machine.host_bridges
        for cma in _keys(bridge.functions)
        if cma.seed is None and not cma.files
    }
    if not algorithms:
        return ""
    from tsmfs.spdm.identity import root_pem

    return "".join(root_pem(machine.key_seed, *pair).decode() for pair in algorithms)


def _keys(functions: Sequence[Function]) -> Iterator[description.Cma]:
    for function in functions:
        if function.cma is not None:
            yield function.cma
        yield from _keys(function.children)


def add_keys(root: Sequence[BuiltFunction], *, seed: bytes, report: Callable[[str], None]) -> None:
    """Give the devices on the root bus *root*, and those below, what they have of keys.

    Keys come from *seed*; *report*, the kernel log, is told of key files that others may read and
    of interfaces that go to ERROR. OSError for PEM files that make no identity: EINVAL, or what
    opening one gave.
    """
    _Wiring(seed, report).add(root, None, None)


class _Wiring:
    def __init__(self, seed: bytes, report: Callable[[str], None]) -> None:
        self._seed = seed
        self._report = report

    def add(
        self,
        bus: Sequence[BuiltFunction],
        upstream: CmaDevice | None,
        root_port: IdePort | None,
    ) -> None:
        """Add the functions of *bus*; *upstream* is the DSM of the switch directly above."""
        for built in bus:
            if built.function.cma is not None:
                self._device(built, root_port)
        for built in bus:
            device = self._dsm(built, bus) or upstream
            if device is not None:
                self._interfaces(built, device)
        for built in bus:
            self._below(built, upstream, root_port)

    def _below(
        self, port: BuiltFunction, upstream: CmaDevice | None, root_port: IdePort | None
    ) -> None:
        if port.function.kind is Kind.ROOT_PORT and has_keys(port.function.children):
            root_port = port.hw.ide = self._port(port)
        # What is behind a switch is secured by its upstream port, unless it secures itself.
        if port.function.kind is Kind.UPSTREAM_PORT:
            upstream = port.hw.cma
        elif port.function.kind is not Kind.DOWNSTREAM_PORT:
            upstream = None
        self.add(port.children, upstream, root_port)

    def _port(self, built: BuiltFunction) -> IdePort | None:
        found = built.capability(Ide)
        if found is None:
            return None
        ide, position = found
        return IdePort(built.hw.config, position, ide, segment=built.domain, rid=built.rid)

    def _device(self, built: BuiltFunction, root_port: IdePort | None) -> None:
        cma = built.function.cma
        assert cma is not None
        port = self._port(built) if built.function.ide and built.function.ide.ide_km else None
        if port is not None and root_port is not None:
            port.partners.append(root_port)
            root_port.partners.append(port)
        device = CmaDevice(partial(_nature, built, self._seed, self._files(built, cma)), port)
        device.attach(built.hw.config)
        found = built.capability(Doe)
        assert found is not None
        assert built.function.doe is not None
        others = placeholders(built.function.doe.protocols)
        DoeMailbox({**others, **device.protocols()}).attach(built.hw.config, found[1])
        built.hw.powered.append(device.power_on)
        built.hw.ide, built.hw.cma = port, device
        if cma.tamper:
            from tsmfs.pci.tamper import Tamper, disguise

            disguise(device, [Tamper(one.value) for one in cma.tamper])

    def _files(self, built: BuiltFunction, cma: description.Cma) -> Identity | None:
        if not cma.files:
            return None
        from tsmfs.spdm.identity import IdentityError, SlotFiles, load_identity

        files = {one.slot: SlotFiles(chain=Path(one.chain), key=Path(one.key)) for one in cma.files}
        try:
            return load_identity(files, _base_hash(cma), self._report)
        except IdentityError as error:
            fail(errno.EINVAL, f"{built.name}: {error}")
        except OSError as error:
            fail(error.errno or errno.EIO, f"{built.name}: {error.filename}: {error.strerror}")

    @staticmethod
    def _dsm(built: BuiltFunction, bus: Sequence[BuiltFunction]) -> CmaDevice | None:
        """What secures *built* in its own device: that of function 0."""
        return next((one.hw.cma for one in bus if one.rid == built.rid & ~7), None)

    def _interfaces(self, built: BuiltFunction, device: CmaDevice) -> None:
        function = built.function
        if function.tee_io:
            config = built.hw.config
            bars = memory_bars(config, [header_bar(bar) for bar in function.bars])
            _add_interface(device, self._report, built.domain, built.rid, config, bars)
        make = built.hw.virtual_functions
        found = built.capability(Sriov)
        if make is not None and found is not None and function.sriov and function.sriov.tee_io:
            built.hw.virtual_functions = _VirtualFunctions(
                built, device, self._report, make, found[1]
            )


def _add_interface(
    device: CmaDevice,
    report: Callable[[str], None],
    domain: int,
    rid: int,
    config: ConfigSpace,
    bars: Sequence[MemoryBar],
    exists: Callable[[], bool] = lambda: True,
) -> Interface:
    tdi = Tdi(
        function_id(rid, domain & 0xFF),
        config,
        bars,
        port=device.port,
        keyed=device.keyed,
        report_filter=device.report_filter,
        on_change=partial(_changed, report, pci_name(domain, rid >> 8, rid & 0xFF)),
    )
    device.tdis.add(tdi, exists)
    return tdi.interface


def _changed(
    report: Callable[[str], None], name: str, interface: Interface, old: TdiState, new: TdiState
) -> None:
    # The only state that comes about without a request: nobody else would tell.
    if new is TdiState.ERROR:
        report(f"pci {name}: TDISP: {old.name} to ERROR: {interface.reason}")


class _VirtualFunctions:
    """Makes the virtual functions of a PF, each with its interface."""

    def __init__(
        self,
        pf: BuiltFunction,
        device: CmaDevice,
        report: Callable[[str], None],
        make: Callable[[int], HwFunction],
        position: int,
    ) -> None:
        self._pf = pf
        self._device = device
        self._report = report
        self._make = make
        self._position = position
        sriov = pf.function.sriov
        assert sriov is not None
        self._routing_ids = sriov.routing_ids(pf.function.devfn)
        self._bars = [header_bar(bar) for bar in sriov.bars]
        self._interfaces: dict[int, Interface] = {}
        watch_vfs(pf.hw.config, position, lambda: list(self._interfaces.values()))

    def __call__(self, index: int) -> HwFunction:
        """Virtual function number *index*."""
        hw = self._make(index)
        pf = self._pf
        self._interfaces[index] = _add_interface(
            self._device,
            self._report,
            pf.domain,
            (pf.rid & ~0xFF) + self._routing_ids[index],
            hw.config,
            vf_memory_bars(pf.hw.config, self._position, self._bars, index),
            partial(self._exists, index),
        )
        return hw

    def _exists(self, index: int) -> bool:
        config = self._pf.hw.config
        control = config.read(self._position + regs.PCI_SRIOV_CTRL, 2)
        count = config.read(self._position + regs.PCI_SRIOV_NUM_VF, 2)
        return bool(control & regs.PCI_SRIOV_CTRL_VFE) and index < count


# --- What a device is ----------------------------------------------------------------------------


def _base_hash(cma: description.Cma) -> BaseHash:
    from tsmfs.spdm.algorithms import BaseHash

    return {
        CmaHash.SHA_256: BaseHash.SHA_256,
        CmaHash.SHA_384: BaseHash.SHA_384,
        CmaHash.SHA_512: BaseHash.SHA_512,
    }[cma.hash]


def _base_asym(cma: description.Cma) -> BaseAsym:
    from tsmfs.spdm.algorithms import BaseAsym

    return {
        CmaKey.ECDSA_P256: BaseAsym.ECDSA_P256,
        CmaKey.ECDSA_P384: BaseAsym.ECDSA_P384,
        CmaKey.RSA_3072: BaseAsym.RSAPSS_3072,
    }[cma.key]


def _subject(built: BuiltFunction) -> Subject:
    from tsmfs.spdm.identity import Subject

    function = built.function
    bridge = function.kind.is_port
    return Subject(
        vendor=function.vendor,
        device=function.device,
        subsystem_vendor=None if bridge else function.subsystem_vendor,
        subsystem=None if bridge else function.subsystem_device,
        class_code=function.class_code,
        revision=function.revision,
        serial=None if function.serial is None else function.serial.to_bytes(8, "big"),
        # Two devices may have all of the above in common, and have keys of their own.
        name=f"{function.name or function.kind.value} {built.name}",
    )


def _nature(built: BuiltFunction, seed: bytes, files: Identity | None) -> Nature:
    from tsmfs.spdm.identity import Origin

    cma = built.function.cma
    assert cma is not None
    origin = Origin(
        seed=seed if cma.seed is None else description.key_seed(cma.seed),
        subject=_subject(built),
        base_asym=_base_asym(cma) if files is None else files.base_asym,
        base_hash=_base_hash(cma),
        slots=cma.slots if files is None else tuple(files.slots),
    )
    measured = tuple(_measurements(built.function))
    return Nature(
        identity=origin.identity if files is None else lambda: files,
        measurements=lambda: measured,
        versions=tuple(_VERSIONS[version] for version in cma.versions),
        origin=origin,
    )


def _measurements(function: Function) -> Iterator[Measurement]:
    assert function.cma is not None
    described = function.cma.measurements
    if described:
        for one in sorted(described, key=lambda one: one.index):
            yield Measurement(one.index, _DMTF_KINDS[one.kind], one.value.encode())
        return
    label = f"{function.vendor:04x}:{function.device:04x}"
    sizes = ", ".join(f"{bar.index}: {bar.kind.value} {bar.size:#x}" for bar in function.bars)
    parts = (
        (DmtfKind.IMMUTABLE_ROM, f"{label} boot ROM, mask {function.revision:#04x}"),
        (DmtfKind.MUTABLE_FIRMWARE, f"{label} firmware 1.0"),
        (
            DmtfKind.HARDWARE_CONFIGURATION,
            f"{label} class {function.class_code:#08x}, TEE-IO {function.tee_io:d}, BARs {sizes}",
        ),
        (DmtfKind.FIRMWARE_CONFIGURATION, f"{label} debug off, updates signed"),
    )
    for index, (kind, text) in enumerate(parts, 1):
        yield Measurement(index, kind, text.encode())
    manifest = "\n".join(f"{index} {kind.name}" for index, (kind, _) in enumerate(parts, 1))
    yield Measurement(MANIFEST_INDEX, DmtfKind.MEASUREMENT_MANIFEST, manifest.encode())
