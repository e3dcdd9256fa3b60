# SPDX-License-Identifier: MIT
"""The PCI/TSM core: TEE security managers and the functions they secure (drivers/pci/tsm/core.c).

A *link* TSM secures the physical link of a device: connect, then bind of its functions. A
*devsec* TSM secures a function from inside the confidential VM: lock, accept, unlock. PCIe 7.0,
section 11 (TDISP).
"""

from __future__ import annotations

import abc
import contextlib
import enum
import errno
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from tsmfs.base.core import DriverCore
from tsmfs.base.kobject import AnyAttribute, Attribute, AttributeGroup
from tsmfs.kernel.errors import fail
from tsmfs.kernel.fault import Point
from tsmfs.kernel.locking import Mutex, RwSem
from tsmfs.kernel.module import kstrtobool
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource
from tsmfs.pci import regs
from tsmfs.pci.doe import DoeTransport
from tsmfs.pci.evidence import PciTsmEvidence
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.regs import PciExpType

PCI_VENDOR_ID_PCI_SIG = 0x0001
PCI_DOE_FEATURE_CMA = 1
PCI_MMIO_ENCRYPTED = "PCI MMIO Encrypted"
"""Name of a range that only private mappings of a confidential VM may reach."""


class TsmDev(Protocol):
    """A TSM class device as this core sees it."""

    @property
    def name(self) -> str:
        """``tsmN``."""

    @property
    def pci_ops(self) -> PciTsmLinkOps | PciTsmDevsecOps | None:
        """Its PCI operations, None before it has them and once it goes."""


class PciTsmReqScope(enum.IntEnum):
    """What a guest request may do (``enum pci_tsm_req_scope``)."""

    INFO = 0
    STATE_CHANGE = 1
    DEBUG_READ = 2
    DEBUG_WRITE = 3


@dataclass(slots=True, eq=False)
class PciTdi:
    """A function bound to a confidential VM (``struct pci_tdi``)."""

    pdev: PciDev
    kvm: object
    tdi_id: int


@dataclass(slots=True, eq=False)
class PciTsm:
    """What a TSM holds of one function (``struct pci_tsm``)."""

    pdev: PciDev
    tsm_dev: TsmDev
    dsm_dev: PciDev | None = None
    """The function that hosts the device security manager; None for a devsec context."""
    tdi: PciTdi | None = None
    evidence: PciTsmEvidence = field(default_factory=PciTsmEvidence)
    """What the TSM has of the device to show; empty until its driver fills it."""


@dataclass(slots=True, eq=False, kw_only=True)
class PciTsmPf0(PciTsm):
    """Context of a DSM: it has the mailbox, and the lock of all its functions."""

    doe_mb: DoeTransport
    lock: Mutex = field(default_factory=lambda: Mutex("pci_tsm_pf0"))


@dataclass(slots=True, eq=False)
class PciTsmDevsec(PciTsm):
    """Context of a locked function."""

    resources: list[Resource] = field(default_factory=list)
    """Ranges listed as ``PCI MMIO Encrypted`` while it runs."""


class PciTsmLinkOps(abc.ABC):
    """What a link TSM driver provides (``struct pci_tsm_ops``, link_ops).

    Every method may raise OSError; connect and disconnect hold ``pci_tsm_rwsem`` for writing,
    the others for reading, and all hold the DSM's lock where there is one.
    """

    @abc.abstractmethod
    def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        """A context for *pdev*, None to decline."""

    def remove(self, tsm: PciTsm) -> None:  # noqa: B027 - most contexts hold nothing
        """Give up the context; cannot fail."""

    @abc.abstractmethod
    def connect(self, pdev: PciDev) -> None:
        """Establish the session, and a stream where the platform wants one.

        What was done when it raises, it has undone.
        """

    @abc.abstractmethod
    def disconnect(self, pdev: PciDev) -> None:
        """Undo connect; cannot fail."""

    def bind(self, pdev: PciDev, kvm: object, tdi_id: int) -> PciTdi:
        """Bind the function to a VM under the ID that the TSM knows it by."""
        fail(errno.EOPNOTSUPP)

    def unbind(self, tdi: PciTdi) -> None:  # noqa: B027 - only for those who bind
        """Undo bind; cannot fail."""

    def guest_req(self, tdi: PciTdi, scope: PciTsmReqScope, request: bytes) -> bytes:
        """Pass a request of the guest on; the answer goes back to it."""
        fail(errno.EOPNOTSUPP)

    def refresh_evidence(self, tsm: PciTsm, nonce: bytes) -> None:
        """Produce evidence anew over *nonce*."""
        fail(errno.EOPNOTSUPP)


class PciTsmDevsecOps(abc.ABC):
    """What a devsec TSM driver provides (``struct pci_tsm_ops``, devsec_ops)."""

    @abc.abstractmethod
    def lock(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsmDevsec:
        """TDISP UNLOCKED to LOCKED."""

    @abc.abstractmethod
    def unlock(self, tsm: PciTsmDevsec) -> None:
        """To UNLOCKED from any state; cannot fail."""

    @abc.abstractmethod
    def accept(self, pdev: PciDev) -> None:
        """LOCKED to RUN; lists the function's private ranges."""

    def refresh_evidence(self, tsm: PciTsm, nonce: bytes) -> None:
        """Produce evidence anew over *nonce*."""
        fail(errno.EOPNOTSUPP)


def has_tee(pdev: PciDev) -> bool:
    """The function itself is TEE-I/O capable (DEVCAP bit 30; PCIe 7.0, 7.5.3.3)."""
    return bool(pdev.devcap & regs.PCI_EXP_DEVCAP_TEE)


_PF0_TYPES = (PciExpType.ENDPOINT, PciExpType.UPSTREAM, PciExpType.RC_END)


def is_pci_tsm_pf0(pdev: PciDev) -> bool:
    """The function can host a DSM: function 0 of a device with IDE or TEE-I/O."""
    return (
        pdev.pcie_type in _PF0_TYPES
        and not pdev.is_virtfn
        and pdev.function == 0
        and (bool(pdev.ide_cap) or has_tee(pdev))
    )


def is_dsm(pdev: PciDev) -> bool:
    """It hosts the DSM of a connected device."""
    return pdev.tsm is not None and pdev.tsm.dsm_dev is pdev


def find_dsm_dev(pdev: PciDev) -> PciDev | None:
    """The function that is, or would be, the DSM of *pdev*; None when there is none."""
    if is_pci_tsm_pf0(pdev):
        return pdev
    pf = pdev.physfn or pdev
    pf0 = pf.function_at(0)
    if pf0 is None:
        return None
    if is_dsm(pf0):
        return pf0
    port = pf.bus.self_dev
    upstream = port.bus.self_dev if port is not None else None
    if upstream is None or upstream.pcie_type is not PciExpType.UPSTREAM:
        return None
    return upstream if is_dsm(upstream) else None


def link_constructor(pdev: PciDev, tsm_dev: TsmDev) -> PciTsm:
    """Context of a dependent function; ENXIO when it has no DSM."""
    dsm_dev = find_dsm_dev(pdev)
    if dsm_dev is None:
        pdev.warn("PCI/TSM: failed to find Device Security Manager")
        fail(errno.ENXIO)
    return PciTsm(pdev, tsm_dev, dsm_dev)


def pf0_constructor(pdev: PciDev, tsm_dev: TsmDev) -> PciTsmPf0:
    """Context of a DSM; ENODEV when it has no mailbox for CMA (PCIe 7.0, 6.31.3)."""
    wanted = (PCI_VENDOR_ID_PCI_SIG, PCI_DOE_FEATURE_CMA)
    for mailbox in pdev.doe_mailboxes:
        if wanted in mailbox.features():
            return PciTsmPf0(pdev, tsm_dev, pdev, doe_mb=mailbox)
    pdev.warn("PCI/TSM: TSM init failure, no CMA mailbox")
    fail(errno.ENODEV)


def encrypt_memory_bars(tsm: PciTsmDevsec, iomem: Resource) -> None:
    """List every memory BAR of the function as private (``pci_tsm_alloc_encrypted_resources()``).

    All or none; EBUSY when a range cannot be listed.
    """
    bars = [(index, bar) for index, bar in tsm.pdev.bars() if bar.flags & IORESOURCE_MEM]
    encrypt_ranges(tsm, iomem, ((index, bar.start, bar.end) for index, bar in bars))


def encrypt_ranges(
    tsm: PciTsmDevsec, iomem: Resource, ranges: Iterable[tuple[int, int, int]]
) -> None:
    """List *ranges*, of BAR, first and last address, as private.

    All or none; EINVAL unless each lies in its memory BAR, behind those before it in that BAR;
    EBUSY when a range cannot be listed.
    """
    bars = {index: bar for index, bar in tsm.pdev.bars() if bar.flags & IORESOURCE_MEM}
    free = {index: bar.start for index, bar in bars.items()}
    try:
        for index, start, end in ranges:
            bar = bars.get(index)
            if bar is None or not bar.start <= start <= end <= bar.end:
                fail(errno.EINVAL, f"interface report: {start:#x}-{end:#x} is not in BAR {index}")
            if start < free[index]:
                fail(
                    errno.EINVAL,
                    f"interface report: {start:#x}-{end:#x} overlaps or precedes the range before "
                    f"it in BAR {index}",
                )
            free[index] = end + 1
            private = Resource(start, end, PCI_MMIO_ENCRYPTED, IORESOURCE_MEM)
            iomem.insert(private)
            tsm.resources.append(private)
    except OSError:
        free_encrypted_resources(tsm)
        raise


def free_encrypted_resources(tsm: PciTsmDevsec) -> None:
    """Take the function's private ranges out again."""
    while tsm.resources:
        tsm.resources.pop().remove()


_ID = re.compile(rb"tsm[ \t\n\v\f\r]*(-?)([0-9]+)")


def parse_tsm_id(data: bytes) -> int:
    """The number in ``tsmN`` as ``sscanf(buf, "tsm%d\\n")`` finds it; EINVAL when there is none."""
    match = _ID.match(data)
    if match is None:
        fail(errno.EINVAL)
    value = int(match[2]) & 0xFFFFFFFF
    value = -value if match[1] else value
    return value - (1 << 32) if value >= 1 << 31 else value


_T = TypeVar("_T")


class PciTsmCore:
    """The state that all functions of a machine share, and the operations on them."""

    def __init__(self, core: DriverCore, devices: Callable[[], list[PciDev]], rwsem: RwSem) -> None:
        self.core = core
        self.rwsem = rwsem
        self.link_count = 0
        self.devsec_count = 0
        self.find_tsm_dev: Callable[[int], TsmDev | None] = lambda number: None
        self._devices = devices

    # Calls into drivers: what they raise is an errno or EIO, what they return is checked.

    def _call(self, pdev: PciDev, what: str, function: Callable[[], _T]) -> _T:
        try:
            return function()
        except OSError:
            raise
        except Exception:
            pdev.err(f"PCI/TSM: {what} raised\n{traceback.format_exc()}")
            fail(errno.EIO, f"{what} raised")

    def _undo(self, pdev: PciDev, what: str, function: Callable[[], object]) -> None:
        """Call what cannot fail; a driver in which it does is reported and passed over."""
        try:
            function()
        except Exception:
            pdev.err(f"PCI/TSM: {what} raised\n{traceback.format_exc()}")

    def _probe(self, ops: PciTsmLinkOps, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        def probe() -> PciTsm | None:
            self.core.faults.inject(Point.TSM_PROBE, pdev.name)
            return ops.probe(tsm_dev, pdev)

        try:
            tsm = self._call(pdev, "probe", probe)
        except OSError as error:
            if error.errno == errno.EINTR:
                raise
            pdev.info(f"PCI/TSM: {tsm_dev.name} declines: {error.strerror}")
            return None
        if tsm is not None and (not isinstance(tsm, PciTsm) or tsm.pdev is not pdev):
            pdev.err(f"PCI/TSM: {tsm_dev.name} probe returned nonsense")
            return None
        return tsm

    # Walks over the functions that one DSM secures.

    def _walk_fns(self, pf0: PciDev) -> Iterator[PciDev]:
        """Functions that depend on *pf0*, without it (``pci_tsm_walk_fns()``)."""
        for number in range(8):
            pf = pf0.function_at(number)
            # A virtual function can have such a number too; it comes with its physical function.
            if pf is None or pf.is_virtfn:
                continue
            if number > 0:
                yield pf
            if pf.sriov is not None:
                yield from pf.sriov.virtfns
        if pf0.pcie_type is PciExpType.UPSTREAM and pf0.subordinate is not None:
            yield from pf0.subordinate.walk()

    def _dependents(self, pf0: PciDev) -> list[PciDev]:
        """Functions with a context whose DSM is *pf0*, last first."""
        return [
            pdev
            for pdev in reversed(list(self._walk_fns(pf0)))
            if pdev.tsm is not None and pdev.tsm.dsm_dev is pf0
        ]

    def _probe_fn(self, pdev: PciDev, dsm: PciDev) -> None:
        # A function that is a DSM of its own, or that somebody locked, stays as it is.
        if dsm.tsm is None or pdev.tsm is not None or find_dsm_dev(pdev) is not dsm:
            return
        ops = dsm.tsm.tsm_dev.pci_ops
        if isinstance(ops, PciTsmLinkOps):
            try:
                tsm = self._probe(ops, dsm.tsm.tsm_dev, pdev)
            except OSError:
                # Interrupted: the DSM is connected, this function just has no context.
                return
            if tsm is None:
                return
            if tsm.dsm_dev is not dsm:
                pdev.err(f"PCI/TSM: {tsm.tsm_dev.name} gave a context of another DSM")
                return
            pdev.tsm = tsm
            self._update_groups(pdev)

    def _update_groups(self, pdev: PciDev) -> None:
        # A function that only arrives is shown with its groups as they are by then.
        if pdev.parent is None or pdev.removed:
            return
        for group in (PCI_TSM_AUTH_ATTR_GROUP, PCI_TSM_ATTR_GROUP):
            try:
                pdev.update_group(group)
            except OSError as error:
                # As in Linux, the function does without.
                pdev.err(f"sysfs: {error.strerror}")

    def _pf0_context(self, tsm: PciTsm) -> PciTsmPf0 | None:
        """Context of the DSM of a link context, None for a devsec one (``to_pci_tsm_pf0()``)."""
        context = tsm.dsm_dev.tsm if tsm.dsm_dev is not None else None
        return context if isinstance(context, PciTsmPf0) else None

    def _link_tsm(self, number: int) -> tuple[TsmDev, PciTsmLinkOps]:
        tsm_dev = self.find_tsm_dev(number)
        if tsm_dev is None or not isinstance(tsm_dev.pci_ops, PciTsmLinkOps):
            fail(errno.ENXIO)
        return tsm_dev, tsm_dev.pci_ops

    def connect(self, pdev: PciDev, number: int) -> None:
        """Connect *pdev* to the link TSM of that number, then offer it the dependent functions.

        Errors in the order of the ABI: EBUSY a context exists, ENXIO no such link TSM or it
        declines, else the driver's.
        """
        with self.rwsem.write_killable():
            self._check_live(pdev)
            if pdev.tsm is not None:
                fail(errno.EBUSY)
            tsm_dev, ops = self._link_tsm(number)
            tsm = self._probe(ops, tsm_dev, pdev)
            if tsm is None:
                fail(errno.ENXIO)
            pdev.tsm = tsm

            def connect() -> None:
                self.core.faults.inject(Point.TSM_CONNECT, pdev.name)
                ops.connect(pdev)

            try:
                if not isinstance(tsm, PciTsmPf0) or tsm.dsm_dev is not pdev:
                    pdev.err(f"PCI/TSM: {tsm_dev.name} gave no DSM context")
                    fail(errno.EIO)
                with tsm.lock.lock_interruptible():
                    self._call(pdev, "connect", connect)
            except BaseException:
                self._undo(pdev, "remove", lambda: ops.remove(tsm))
                pdev.tsm = None
                raise
            self._update_groups(pdev)
            if has_tee(pdev):
                for function in self._walk_fns(pdev):
                    self._probe_fn(function, pdev)

    def disconnect(self, pdev: PciDev, data: bytes) -> None:
        """Disconnect *pdev* from the TSM that *data* names: ENXIO no connection, EINVAL another."""
        with self.rwsem.write_killable():
            self._check_live(pdev)
            tsm = pdev.tsm
            if tsm is None or tsm.dsm_dev is None:
                fail(errno.ENXIO)
            if not sysfs_streq(data, tsm.tsm_dev.name):
                fail(errno.EINVAL)
            self.core.faults.inject(Point.TSM_DISCONNECT, pdev.name)
            self._disconnect(pdev)

    def _disconnect(self, pdev: PciDev) -> None:
        """Undo connect in reverse: TDIs, dependent contexts, stream and session."""
        self.rwsem.assert_held_write()
        tsm = pdev.tsm
        assert isinstance(tsm, PciTsmPf0)
        ops = self._link_ops(tsm)
        dependents = self._dependents(pdev)
        for function in [*dependents, pdev]:
            self._unbind(function)
        with tsm.lock.lock():
            for function in dependents:
                self._remove_context(function)
            self._undo(pdev, "disconnect", lambda: ops.disconnect(pdev))
        self._remove_context(pdev)

    def _link_ops(self, tsm: PciTsm) -> PciTsmLinkOps:
        ops = tsm.tsm_dev.pci_ops
        assert isinstance(ops, PciTsmLinkOps)
        return ops

    def _remove_context(self, pdev: PciDev) -> None:
        tsm = pdev.tsm
        if tsm is None:
            return
        self._undo(pdev, "remove", lambda: self._link_ops(tsm).remove(tsm))
        pdev.tsm = None
        self._update_groups(pdev)

    def bind(self, pdev: PciDev, kvm: object, tdi_id: int) -> None:
        """Bind *pdev* as a TDI of *kvm* (``pci_tsm_bind()``).

        EINVAL no context, ENXIO not a link TSM's, EBUSY bound to another VM, else the driver's.
        """
        with self.rwsem.read_interruptible():
            tsm = pdev.tsm
            if tsm is None:
                fail(errno.EINVAL)
            pf0 = self._pf0_context(tsm)
            if pf0 is None:
                fail(errno.ENXIO)
            with pf0.lock.lock_interruptible():
                if tsm.tdi is not None:
                    if tsm.tdi.kvm is not kvm:
                        fail(errno.EBUSY)
                    return

                def bind() -> PciTdi:
                    self.core.faults.inject(Point.TSM_BIND, pdev.name)
                    return self._link_ops(tsm).bind(pdev, kvm, tdi_id)

                tdi: object = self._call(pdev, "bind", bind)
                if not isinstance(tdi, PciTdi):
                    pdev.err("PCI/TSM: bind returned nonsense")
                    fail(errno.EIO)
                tsm.tdi = tdi

    def unbind(self, pdev: PciDev) -> None:
        """Undo :meth:`bind`; nothing when it is not bound (``pci_tsm_unbind()``)."""
        with self.rwsem.read_interruptible():
            self._unbind(pdev)

    def _unbind(self, pdev: PciDev) -> None:
        tsm = pdev.tsm
        pf0 = self._pf0_context(tsm) if tsm is not None else None
        if tsm is None or pf0 is None:
            return
        with pf0.lock.lock():
            tdi = tsm.tdi
            if tdi is not None:
                self._undo(pdev, "unbind", lambda: self._link_ops(tsm).unbind(tdi))
                tsm.tdi = None

    def guest_req(self, pdev: PciDev, scope: PciTsmReqScope, request: bytes) -> bytes:
        """Pass a guest's request to the TSM (``pci_tsm_guest_req()``).

        EINVAL for a scope above state change, ENXIO without a bound TDI of a link TSM.
        """
        if scope > PciTsmReqScope.STATE_CHANGE:
            fail(errno.EINVAL)
        with self.rwsem.read_interruptible():
            tsm = pdev.tsm
            pf0 = self._pf0_context(tsm) if tsm is not None else None
            if tsm is None or pf0 is None:
                fail(errno.ENXIO)
            with pf0.lock.lock_interruptible():
                tdi = tsm.tdi
                if tdi is None:
                    fail(errno.ENXIO)
                answer: object = self._call(
                    pdev, "guest_req", lambda: self._link_ops(tsm).guest_req(tdi, scope, request)
                )
                if not isinstance(answer, bytes):
                    pdev.err("PCI/TSM: guest_req returned nonsense")
                    fail(errno.EIO)
                return answer

    def refresh_evidence(self, pdev: PciDev, nonce: bytes) -> None:
        """Let the TSM of *pdev* produce evidence anew over *nonce*.

        ENXIO without a context, EOPNOTSUPP when the TSM cannot, else the driver's errno.
        """
        with self.rwsem.read_interruptible():
            tsm = pdev.tsm
            if tsm is None:
                fail(errno.ENXIO, "no TSM context")
            ops = tsm.tsm_dev.pci_ops
            assert ops is not None
            pf0 = self._pf0_context(tsm)
            # Binding and unbinding change the evidence, too.
            with pf0.lock.lock_interruptible() if pf0 is not None else contextlib.nullcontext():
                self._call(pdev, "refresh_evidence", lambda: ops.refresh_evidence(tsm, nonce))

    def lock(self, pdev: PciDev, number: int) -> None:
        """Lock *pdev* with the devsec TSM of that number.

        EBUSY a context exists, ENXIO no such devsec TSM, EBUSY a driver is bound, else the
        driver's.
        """
        with self.rwsem.write_killable():
            self._check_live(pdev)
            if pdev.tsm is not None:
                fail(errno.EBUSY)
            tsm_dev = self.find_tsm_dev(number)
            ops = tsm_dev.pci_ops if tsm_dev is not None else None
            if tsm_dev is None or not isinstance(ops, PciTsmDevsecOps):
                fail(errno.ENXIO)
            owner, devsec_ops = tsm_dev, ops

            def lock() -> PciTsmDevsec:
                self.core.faults.inject(Point.TSM_LOCK, pdev.name)
                return devsec_ops.lock(owner, pdev)

            with pdev.lock.lock_interruptible():
                if pdev.driver is not None:
                    fail(errno.EBUSY)
                tsm: object = self._call(pdev, "lock", lock)
                if not isinstance(tsm, PciTsmDevsec) or tsm.pdev is not pdev:
                    pdev.err(f"PCI/TSM: {owner.name} lock returned nonsense")
                    fail(errno.EIO)
                pdev.tsm = tsm
            self._update_groups(pdev)

    def accept(self, pdev: PciDev) -> None:
        """Move a locked function to RUN.

        EINVAL no lock context, EBUSY a driver is bound or it runs already, else the driver's.
        """
        with self.rwsem.read_interruptible():
            self._check_live(pdev)
            tsm = pdev.tsm
            if not isinstance(tsm, PciTsmDevsec):
                fail(errno.EINVAL)
            ops = tsm.tsm_dev.pci_ops
            assert isinstance(ops, PciTsmDevsecOps)

            def accept() -> None:
                self.core.faults.inject(Point.TSM_ACCEPT, pdev.name)
                ops.accept(pdev)

            with pdev.lock.lock_interruptible():
                if pdev.driver is not None or pdev.cc_accepted:
                    fail(errno.EBUSY)
                self._call(pdev, "accept", accept)
                pdev.cc_accepted = True

    def unlock(self, pdev: PciDev, data: bytes) -> None:
        """Unlock *pdev*: EINVAL no lock context or another TSM's name, EBUSY a driver is bound."""
        with self.rwsem.write_killable():
            self._check_live(pdev)
            tsm = pdev.tsm
            if not isinstance(tsm, PciTsmDevsec):
                fail(errno.EINVAL)
            if not sysfs_streq(data, tsm.tsm_dev.name):
                fail(errno.EINVAL)
            with pdev.lock.lock_interruptible():
                if pdev.driver is not None:
                    fail(errno.EBUSY)
                self._unlock(pdev, tsm)

    def _unlock(self, pdev: PciDev, tsm: PciTsmDevsec) -> None:
        self.rwsem.assert_held_write()
        ops = tsm.tsm_dev.pci_ops
        assert isinstance(ops, PciTsmDevsecOps)
        pdev.cc_accepted = False
        self._undo(pdev, "unlock", lambda: ops.unlock(tsm))
        pdev.tsm = None
        self._update_groups(pdev)

    def _check_live(self, pdev: PciDev) -> None:
        # The function may have gone while the caller waited for the lock.
        if pdev.dead:
            fail(errno.ENODEV)

    def register(self, tsm_dev: TsmDev) -> None:
        """A TSM's operations are there: show the files of its mode (``pci_tsm_register()``).

        EINVAL when it has neither link nor devsec operations, or both.
        """
        link, devsec = _modes(tsm_dev)
        if link == devsec:
            fail(errno.EINVAL)
        with self.rwsem.write():
            if link:
                self.link_count += 1
            else:
                self.devsec_count += 1
            if (self.link_count if link else self.devsec_count) == 1:
                try:
                    for pdev in self._devices():
                        # One that a devsec TSM locked shows what the first link TSM brings, pf0
                        # or not.
                        concerned = is_pci_tsm_pf0(pdev) or pdev.tsm is not None
                        if concerned if link else has_tee(pdev):
                            self._update_groups(pdev)
                except BaseException:
                    self.unregister(tsm_dev, lambda: None)
                    raise

    def unregister(self, tsm_dev: TsmDev, forget: Callable[[], None]) -> None:
        """A TSM goes: end all that it holds, last device first, hide the files of its mode.

        *forget* takes its operations away, so that nothing finds it any more.
        """
        link, _ = _modes(tsm_dev)
        with self.rwsem.write():
            if link:
                self.link_count -= 1
            else:
                self.devsec_count -= 1
            devices = self._devices()
            for pdev in reversed(devices):
                if pdev.tsm is not None and pdev.tsm.tsm_dev is tsm_dev:
                    self._undo(pdev, "teardown", partial(self._destroy, pdev))
            forget()
            for pdev in devices:
                self._update_groups(pdev)

    def destroy(self, pdev: PciDev) -> None:
        """*pdev* goes: end what a TSM holds of it (``pci_tsm_destroy()``)."""
        with self.rwsem.write():
            self._destroy(pdev)

    def _destroy(self, pdev: PciDev) -> None:
        tsm = pdev.tsm
        if tsm is None:
            return
        if isinstance(tsm, PciTsmDevsec):
            # The driver, if any, loses a device whose private memory goes.
            with pdev.lock.lock():
                if pdev.driver is not None and pdev.bus_type is not None:
                    pdev.bus_type.release_driver(pdev)
                self._unlock(pdev, tsm)
        elif is_dsm(pdev):
            self._disconnect(pdev)
        else:
            self._unbind(pdev)
            self._remove_context(pdev)

    def init(self, pdev: PciDev) -> None:
        """A function arrived: give it a context if its DSM is connected (``pci_tsm_init()``)."""
        if pdev.tsm is not None or not self.link_count:
            return
        dsm = find_dsm_dev(pdev)
        if dsm is not None and dsm is not pdev and dsm.tsm is not None and has_tee(dsm):
            self._probe_fn(pdev, dsm)


def _modes(tsm_dev: TsmDev) -> tuple[bool, bool]:
    ops = tsm_dev.pci_ops
    return isinstance(ops, PciTsmLinkOps), isinstance(ops, PciTsmDevsecOps)


def pci_mode(ops: object) -> str | None:
    """``link``, ``devsec`` or ``none``; None without PCI operations."""
    if ops is None:
        return None
    if isinstance(ops, PciTsmLinkOps):
        return "link"
    return "devsec" if isinstance(ops, PciTsmDevsecOps) else "none"


def sysfs_streq(data: bytes, text: str) -> bool:
    """*data* is *text*, one trailing newline aside (``sysfs_streq()``)."""
    return data.split(b"\0")[0].removesuffix(b"\n") == text.encode()


def _tsm(pdev: PciDev) -> PciTsmCore:
    return pdev.host_bridge.pci.tsm


def _holder_show(pdev: PciDev) -> str:
    with _tsm(pdev).rwsem.read_interruptible():
        return f"{pdev.tsm.tsm_dev.name}\n" if pdev.tsm is not None else "\n"


def _dsm_show(pdev: PciDev) -> str:
    with _tsm(pdev).rwsem.read_interruptible():
        dsm_dev = pdev.tsm.dsm_dev if pdev.tsm is not None else None
        return f"{dsm_dev.name}\n" if dsm_dev is not None else "\n"


def _bound_show(pdev: PciDev) -> str:
    core = _tsm(pdev)
    with core.rwsem.read_interruptible():
        tsm = pdev.tsm
        pf0 = core._pf0_context(tsm) if tsm is not None else None
        if tsm is None or pf0 is None:
            return "\n"
        with pf0.lock.lock_interruptible():
            return f"{tsm.tsm_dev.name}\n" if tsm.tdi is not None else "\n"


def _connect_store(pdev: PciDev, data: bytes) -> None:
    _tsm(pdev).connect(pdev, parse_tsm_id(data))


def _disconnect_store(pdev: PciDev, data: bytes) -> None:
    _tsm(pdev).disconnect(pdev, data)


def _lock_store(pdev: PciDev, data: bytes) -> None:
    _tsm(pdev).lock(pdev, parse_tsm_id(data))


def _unlock_store(pdev: PciDev, data: bytes) -> None:
    _tsm(pdev).unlock(pdev, data)


def _accept_store(pdev: PciDev, data: bytes) -> None:
    # TDISP leaves RUN only for UNLOCKED or ERROR: there is no taking back.
    if not kstrtobool(data.split(b"\0")[0].decode("latin-1")):
        fail(errno.EINVAL)
    _tsm(pdev).accept(pdev)


def _link_group_visible(pdev: PciDev) -> bool:
    return (
        _tsm(pdev).link_count > 0
        and pdev.is_pcie
        and (is_pci_tsm_pf0(pdev) or pdev.tsm is not None)
    )


def _devsec_group_visible(pdev: PciDev) -> bool:
    return _tsm(pdev).devsec_count > 0 and has_tee(pdev)


def _dsm_is_tee(pdev: PciDev) -> bool:
    return pdev.tsm is not None and pdev.tsm.dsm_dev is not None and has_tee(pdev.tsm.dsm_dev)


def _attr_visible(pdev: PciDev, attr: AnyAttribute) -> int:
    if attr.name in ("lock", "unlock", "accept"):
        return attr.mode if _devsec_group_visible(pdev) else 0
    if not _link_group_visible(pdev):
        return 0
    pf0 = is_pci_tsm_pf0(pdev)
    match attr.name:
        case "dsm":
            visible = pf0 or _dsm_is_tee(pdev)
        case "bound":
            visible = (pf0 and has_tee(pdev)) or _dsm_is_tee(pdev)
        case _:
            visible = pf0
    return attr.mode if visible else 0


PCI_TSM_ATTR_GROUP = AttributeGroup(
    [
        Attribute("connect", 0o644, _holder_show, _connect_store),
        Attribute("disconnect", 0o200, store=_disconnect_store),
        Attribute("bound", 0o444, _bound_show),
        Attribute("dsm", 0o444, _dsm_show),
        Attribute("accept", 0o644, lambda pdev: f"{pdev.cc_accepted:d}\n", _accept_store),
        Attribute("lock", 0o644, _holder_show, _lock_store),
        Attribute("unlock", 0o200, store=_unlock_store),
    ],
    name="tsm",
    is_visible=_attr_visible,
    group_visible=lambda pdev: _link_group_visible(pdev) or _devsec_group_visible(pdev),
)

PCI_TSM_AUTH_ATTR_GROUP = AttributeGroup(
    [Attribute("authenticated", 0o444, _holder_show)],
    is_visible=lambda pdev, attr: attr.mode if _link_group_visible(pdev) else 0,
)
