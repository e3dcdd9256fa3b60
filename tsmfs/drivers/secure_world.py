# SPDX-License-Identifier: MIT
"""The software TSM's secure world: sessions with device security managers, and what they protect.

It is to the ``soft_*`` modules what a platform's TSM firmware is to its drivers: the host's and
the guest's part ask the same one, which alone has keys. Imported when ``soft_tsm`` is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from tsmfs.drivers.soft_tsm import Preferences
from tsmfs.kernel import task
from tsmfs.kernel.errors import fail
from tsmfs.kernel.locking import Mutex
from tsmfs.pci import regs
from tsmfs.pci.capability import find_ext_capability
from tsmfs.pci.cma import direct
from tsmfs.pci.doe import DoeTimeoutError, DoeTransport
from tsmfs.pci.evidence import EvidenceType, PciTsmEvidence
from tsmfs.pci.hardware import HwFunction
from tsmfs.pci.ide_km import IdePort
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.regs import PciExpType
from tsmfs.pci.tsm import is_pci_tsm_pf0
from tsmfs.spdm.algorithms import BaseHash, PublicKey
from tsmfs.spdm.certificates import (
    CertificateError,
    Chain,
    CmaName,
    check_path,
    check_usage,
    check_validity,
    cma_name,
)
from tsmfs.spdm.exchange import VerificationError
from tsmfs.spdm.ide_km import (
    KEY_SIZE,
    Direction,
    IdeKmError,
    k_set_go,
    k_set_stop,
    key_prog,
    query,
    stream_slots,
)
from tsmfs.spdm.messages import NONCE_SIZE, SpdmError
from tsmfs.spdm.requester import Requester, Session, leaf_key
from tsmfs.spdm.tdisp import (
    GetDeviceInterfaceState,
    LockFlags,
    LockParameters,
    RangeAttributes,
    Report,
    StartInterfaceRequest,
    TdispCode,
    TdispError,
    TdiState,
    function_id,
)
from tsmfs.spdm.tdisp import parse as parse_tdisp
from tsmfs.spdm.tdisp_requester import TdispRequester
from tsmfs.spdm.vendor import PciProtocol
from tsmfs.spdm.wire import SpdmDecodeError

_CMA = (regs.PCI_VENDOR_ID_PCI_SIG, regs.PCI_DOE_FEATURE_CMA)
_SECURED_CMA = (regs.PCI_VENDOR_ID_PCI_SIG, regs.PCI_DOE_FEATURE_SSESSION)

_PORT = 0
"""Port index in IDE_KM of the function that a DSM is."""

_QUESTIONS = frozenset(
    {
        TdispCode.GET_TDISP_VERSION,
        TdispCode.GET_TDISP_CAPABILITIES,
        TdispCode.GET_DEVICE_INTERFACE_REPORT,
        TdispCode.GET_DEVICE_INTERFACE_STATE,
    }
)
"""Requests that change nothing."""

_NOT_PRIVATE = (
    RangeAttributes.MSIX_TABLE | RangeAttributes.MSIX_PBA | RangeAttributes.IS_NON_TEE_MEM
)

Evidence = Mapping[EvidenceType, bytes]


class DoeLink:
    """An SPDM requester's transport over the kernel's driver of a mailbox."""

    def __init__(self, mailbox: DoeTransport) -> None:
        self._mailbox = mailbox

    def plain(self, request: bytes) -> bytes:
        """The response to a message in the clear. Raises OSError."""
        return self._mailbox.exchange(*_CMA, request)

    def secured(self, record: bytes) -> bytes:
        """The response to a secured message. Raises OSError."""
        return self._mailbox.exchange(*_SECURED_CMA, record)


@contextlib.contextmanager
def kernel_errors(what: str) -> Iterator[None]:
    """Have what goes wrong in the block leave it as OSError.

    EKEYREJECTED for a certificate or signature that does not hold, ETIMEDOUT for a device that
    does not answer, EPROTO for one that breaks a protocol, and what its error codes stand for.
    """
    try:
        yield
    except (SpdmError, TdispError, IdeKmError) as error:
        raise OSError(error.errno, f"{what}: {error}") from None
    except DoeTimeoutError as error:
        raise OSError(errno.ETIMEDOUT, f"{what}: {error.strerror}") from None


def _why(error: Exception) -> str:
    """What the log has of an error."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def find_mailbox(pdev: PciDev) -> DoeTransport | None:
    """The mailbox of *pdev* for SPDM in the clear and secured, None without one."""
    for mailbox in pdev.doe_mailboxes:
        if {_CMA, _SECURED_CMA} <= set(mailbox.features()):
            return mailbox
    return None


def find_dsm(pdev: PciDev) -> PciDev | None:
    """The function that hosts the DSM of *pdev*, connected or not; None when there is none."""
    pf = pdev.physfn or pdev
    port = pf.bus.self_dev
    upstream = port.bus.self_dev if port is not None else None
    candidates = [pf.function_at(0)]
    if upstream is not None and upstream.pcie_type is PciExpType.UPSTREAM:
        candidates.append(upstream)
    for candidate in candidates:
        if candidate is not None and is_pci_tsm_pf0(candidate) and find_mailbox(candidate):
            return candidate
    return None


def function_id_of(pdev: PciDev) -> int:
    """FUNCTION_ID of *pdev* in TDISP."""
    return function_id(pdev.devid & 0xFFFF, pdev.host_bridge.domain & 0xFF)


def cma_name_of(pdev: PciDev) -> CmaName:
    """The name that the leaf certificate of *pdev* has to have."""
    pos = find_ext_capability(pdev.config, regs.PCI_EXT_CAP_ID_DSN)
    serial = None
    if pos:
        serial = bytes(reversed(pdev.config.read_bytes(pos + 4, 8)))
    bridge = pdev.subordinate is not None
    return CmaName(
        vendor=pdev.vendor,
        device=pdev.device,
        class_code=pdev.class_code,
        revision=pdev.revision,
        subsystem_vendor=None if bridge else pdev.subsystem_vendor,
        subsystem=None if bridge else pdev.subsystem_device,
        serial=serial,
    )


@dataclass(frozen=True, slots=True)
class LockedInterface:
    """A TEE device interface that was locked, and the nonce that starts it."""

    requester: TdispRequester
    nonce: bytes
    report: bytes

    def private_ranges(self) -> list[tuple[int, int, int]]:
        """BAR, first and last address of each range of the report that only the guest may reach.

        EINVAL for bytes that are no report.
        """
        try:
            report = Report.parse(self.report)
        except SpdmDecodeError as error:
            fail(errno.EINVAL, f"interface report: {error}")
        return [
            (one.range_id, one.address(), one.address() + one.size - 1)
            for one in report.mmio_ranges
            if not one.attributes & _NOT_PRIVATE
        ]

    def __repr__(self) -> str:
        return f"LockedInterface({self.requester.function_id:#x})"


class Dsm:
    """What the secure world has of one device security manager: connection, session, keys.

    Its users share one session; the last that lets go ends it. Every method raises OSError as
    `kernel_errors` tells, and takes the lock of this DSM, below all locks of the kernel's cores.
    """

    def __init__(self, pdev: PciDev) -> None:
        self.name = pdev.name
        self._pdev = pdev
        self._lock = Mutex("soft_tsm_dsm")
        self._requester: Requester | None = None
        self._session: Session | None = None
        self._chain = b""
        self._transcript = b""
        self._preferences = Preferences()
        self._stream_id = 0
        self.users = 0

    @property
    def slot(self) -> int:
        """The certificate slot that the session was authenticated with."""
        return self._preferences.slot

    def open(self, preferences: Preferences) -> None:
        """Have a session: that of other users while it lives, else a new one."""
        with self._lock.lock_interruptible(), kernel_errors(self.name):
            if self._session is not None and not self._session.ended:
                try:
                    self._session.digests()
                    return
                except (SpdmError, OSError) as error:
                    self._pdev.info(f"soft_tsm: the session was lost: {_why(error)}")
            self._session = None
            self._authenticate(preferences)

    def _authenticate(self, preferences: Preferences) -> None:
        mailbox = find_mailbox(self._pdev)
        if mailbox is None:
            fail(errno.ENODEV, f"{self.name}: no mailbox for SPDM")
        self._preferences = preferences
        requester = Requester(
            DoeLink(mailbox),
            versions=preferences.versions,
            trust=self._trust,
            slot=preferences.slot,
            sleep=task.sleep,
        )
        requester.connect()
        self._requester = requester
        if preferences.slot not in requester.digests():
            fail(errno.ENOKEY, f"{self.name}: no certificate in slot {preferences.slot}")
        self._chain = requester.certificate()
        self._transcript = b""
        session = requester.key_exchange()
        session.judge_measurements = self._judge
        self._session = session

    def _trust(self, chain: bytes, base_hash: BaseHash) -> PublicKey:
        key = leaf_key(chain, base_hash)
        if self._preferences.strict:
            requester = self._requester
            assert requester is not None
            try:
                parsed = Chain.parse(chain, base_hash)
                check_path(parsed.certificates)
                check_validity(parsed.certificates, datetime.now(UTC))
                check_usage(parsed.leaf, requester.algorithms.base_asym, requester.version)
                found, expected = cma_name(parsed.leaf), cma_name_of(self._pdev)
            except CertificateError as error:
                raise VerificationError(str(error)) from None
            if found != expected:
                raise VerificationError(f"certificate of {found.text}, not {expected.text}")
        return key

    def _judge(self, error: VerificationError) -> None:
        # Whoever relies on the evidence judges it, unless the platform is told to.
        if self._preferences.strict:
            raise error
        self._pdev.warn(f"soft_tsm: {error}")

    def close(self) -> None:
        """End the session; cannot fail."""
        with self._lock.lock():
            session, self._session, self._requester = self._session, None, None
            if session is None or session.ended:
                return
            try:
                session.end()
            except (SpdmError, OSError) as error:
                self._pdev.info(f"soft_tsm: the session ended by itself: {_why(error)}")

    def _live(self) -> Session:
        if self._session is None or self._session.ended:
            fail(errno.ENOTCONN, f"{self.name}: the session was lost")
        return self._session

    # Evidence

    def evidence(self, nonce: bytes | None = None) -> Evidence:
        """Chain, VCA, and measurements signed now over *nonce*, by default a random one.

        EINVAL for a nonce of another size than SPDM's 32 bytes.
        """
        if nonce is not None and len(nonce) != NONCE_SIZE:
            fail(errno.EINVAL, f"nonce of {len(nonce)} bytes, SPDM has {NONCE_SIZE}")
        with self._lock.lock_interruptible(), kernel_errors(self.name):
            session = self._live()
            assert self._requester is not None
            cma = self._pdev.hw.cma
            relay = cma.relay if cma is not None else direct

            def measure(over: bytes | None) -> bytes:
                return session.measurements(sign=True, nonce=over).transcript

            self._transcript = relay(measure, nonce, self._transcript)
            return {
                EvidenceType(EvidenceType.CERT0 + self.slot): self._chain,
                EvidenceType.VCA: self._requester.vca,
                EvidenceType.MEASUREMENTS: self._transcript,
            }

    def refresh(self, evidence: PciTsmEvidence, nonce: bytes) -> None:
        """Have *evidence* hold what `evidence` returns, and the report that it holds."""
        with self._lock.lock_interruptible():
            objects = dict(self.evidence(nonce))
            if EvidenceType.REPORT in evidence.objects:
                objects[EvidenceType.REPORT] = evidence.objects[EvidenceType.REPORT]
            # Another user may have had to open a new session, with its own preferences.
            evidence.slot = self.slot
            evidence.update(objects)

    # IDE

    def key_stream(self, stream_id: int, root_port: IdePort) -> None:
        """Give both ends of a stream new keys and have them use these.

        What was done when it raises is undone by `unkey_stream`.
        """
        with self._lock.lock_interruptible(), kernel_errors(self.name):
            send = partial(self._live().vendor, PciProtocol.IDE_KM)
            place = query(send, _PORT)
            if (place.bus << 8 | place.dev_func) != self._pdev.devid:
                fail(errno.EPROTO, f"{self.name}: IDE_KM names another port")
            slots = stream_slots(_PORT, stream_id)
            for slot in slots:
                key = os.urandom(KEY_SIZE)
                root_port.program(slot.partner(0), key)
                key_prog(send, slot, key)
            # 6.33.3: a receiver is ready before the other end sends.
            receiving = [slot for slot in slots if slot.direction is Direction.RX]
            sending = [slot for slot in slots if slot.direction is Direction.TX]
            for slot in receiving:
                k_set_go(send, slot)
            for slot in sending:
                root_port.go(slot.partner(0))
            for slot in receiving:
                root_port.go(slot.partner(0))
            for slot in sending:
                k_set_go(send, slot)
            self._stream_id = stream_id

    def unkey_stream(self, stream_id: int, root_port: IdePort) -> None:
        """Stop the keys of both ends, and forget them; cannot fail."""
        with self._lock.lock():
            self._stream_id = 0
            slots = stream_slots(_PORT, stream_id)
            try:
                send = partial(self._live().vendor, PciProtocol.IDE_KM)
                for slot in slots:
                    k_set_stop(send, slot)
            except (SpdmError, OSError) as error:
                self._pdev.info(
                    f"soft_tsm: stream {stream_id} was stopped at one end: {_why(error)}"
                )
            for slot in slots:
                root_port.stop(slot.partner(0))

    # TDISP

    def lock(self, pdev: PciDev) -> LockedInterface:
        """Lock the interface of *pdev* and read its report; unlocked again when that fails.

        It is bound to the stream that was keyed, if there is one. An interface that is locked
        already stays so: what locked it may use it.
        """
        with self._lock.lock_interruptible(), kernel_errors(pdev.name):
            requester = self._interface(pdev)
            state = requester.state()
            # It stays in ERROR for as long as nobody stops it, whose session may be gone.
            if state is TdiState.ERROR:
                requester.stop()
            supported = requester.capabilities().lock_flags
            # MSI-X stays with the driver, which enables it when it likes.
            flags = LockFlags.NO_FW_UPDATE & supported
            parameters = LockParameters(flags=flags, stream_id=self._stream_id)
            with contextlib.ExitStack() as undo:
                if state in (TdiState.CONFIG_UNLOCKED, TdiState.ERROR):
                    # The device may have locked it, whatever came of the answer.
                    undo.callback(self._stop, requester)
                nonce = requester.lock(parameters)
                interface = LockedInterface(requester, nonce, requester.report())
                undo.pop_all()
                return interface

    def start(self, interface: LockedInterface) -> None:
        """Have a locked interface run."""
        with self._lock.lock_interruptible(), kernel_errors(self.name):
            self._live()
            interface.requester.start(interface.nonce)

    def stop(self, interface: LockedInterface) -> None:
        """Unlock an interface from whichever state; cannot fail."""
        with self._lock.lock():
            self._stop(interface.requester)

    def guest_request(
        self, interface: LockedInterface, request: bytes, *, may_start: bool
    ) -> bytes:
        """The device's answer to a guest's TDISP message for *interface*.

        EINVAL for what is no request, or one for another interface; EPERM for one that guests
        have no say in. The nonce of START_INTERFACE is the platform's own: what the guest has in
        its place does not matter.
        """
        try:
            message = parse_tdisp(request)
        except SpdmDecodeError as error:
            fail(errno.EINVAL, f"{self.name}: {error}")
        if message.function_id != interface.requester.function_id:
            fail(errno.EINVAL, f"{self.name}: a request for {message.function_id:#x}")
        if may_start and isinstance(message, StartInterfaceRequest):
            request = replace(message, nonce=interface.nonce).pack()
        elif message.CODE not in _QUESTIONS:
            fail(errno.EPERM, f"{self.name}: {TdispCode(message.CODE).name} of a guest")
        with self._lock.lock_interruptible(), kernel_errors(self.name):
            return self._live().vendor(PciProtocol.TDISP, request)

    def _interface(self, pdev: PciDev) -> TdispRequester:
        # The session at the time of each call: a new one can stop what an earlier one locked.
        return TdispRequester(
            lambda message: self._live().vendor(PciProtocol.TDISP, message), function_id_of(pdev)
        )

    def _stop(self, requester: TdispRequester) -> None:
        try:
            requester.stop()
        except (SpdmError, TdispError, OSError) as error:
            self._pdev.info(
                f"soft_tsm: interface {requester.function_id:#x} was not stopped: {_why(error)}"
            )

    def __repr__(self) -> str:
        return f"Dsm({self.name})"


def state_request(pdev: PciDev) -> bytes:
    """A guest's question for the state of the interface of *pdev*."""
    return GetDeviceInterfaceState(function_id=function_id_of(pdev)).pack()


class SecureWorld:
    """The DSMs that somebody uses."""

    def __init__(self) -> None:
        self._lock = Mutex("soft_tsm_world")
        self._dsms: dict[HwFunction, Dsm] = {}

    def open(self, pdev: PciDev, preferences: Preferences) -> Dsm:
        """The DSM in *pdev*, with a session: made as *preferences* tell if there is none.

        OSError as `Dsm.open` raises it.
        """
        with self._lock.lock():
            dsm = self._dsms.setdefault(pdev.hw, Dsm(pdev))
            dsm.users += 1
        try:
            dsm.open(preferences)
        except BaseException:
            self.close(dsm)
            raise
        return dsm

    def open_for(self, pdev: PciDev, preferences: Preferences) -> Dsm:
        """The DSM that secures *pdev*, as `open` does; ENXIO when there is none."""
        dsm_dev = find_dsm(pdev)
        if dsm_dev is None:
            fail(errno.ENXIO, f"{pdev.name}: no device security manager")
        return self.open(dsm_dev, preferences)

    def close(self, dsm: Dsm) -> None:
        """Give up what `open` returned; cannot fail."""
        with self._lock.lock():
            dsm.users -= 1
            last = not dsm.users
            if last:
                for hw, known in list(self._dsms.items()):
                    if known is dsm:
                        del self._dsms[hw]
        if last:
            dsm.close()

    @property
    def dsms(self) -> list[Dsm]:
        """The DSMs in use."""
        with self._lock.lock():
            return list(self._dsms.values())
