# SPDX-License-Identifier: MIT
"""The device security manager of a device: its SPDM responder, behind the DOE mailbox.

PCI Express Base Specification 7.0, 6.31. Nothing is computed before the first request comes: keys
and certificates are made then, and the cryptography is imported then.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsmfs.kernel.errors import fail
from tsmfs.pci.config import ConfigSpace
from tsmfs.pci.doe import Feature, Handler
from tsmfs.pci.ide_km import DeviceKeySlots, IdePort
from tsmfs.pci.regs import (
    PCI_DOE_FEATURE_CMA,
    PCI_DOE_FEATURE_SSESSION,
    PCI_VENDOR_ID_PCI_SIG,
)
from tsmfs.pci.tdisp import ReportFilter, TdiTable, honest
from tsmfs.spdm.ide_km import IdeKmResponder
from tsmfs.spdm.tdisp_responder import TdispResponder
from tsmfs.spdm.vendor import PciProtocol, VendorResponder

if TYPE_CHECKING:
    from tsmfs.spdm.identity import Identity, Origin
    from tsmfs.spdm.measurements import MeasurementSource
    from tsmfs.spdm.responder import Responder, Signer


@dataclass(frozen=True, slots=True)
class Nature:
    """What a device is when nobody tampers with it."""

    identity: Callable[[], Identity]
    measurements: MeasurementSource
    versions: Sequence[int]
    """Version bytes of SPDM that it speaks."""
    origin: Origin
    """What identities like its own are made from, for one that came from files too."""


Measure = Callable[[bytes | None], bytes]
"""Has measurements signed over a nonce, None for a random one; returns their transcript."""

Relay = Callable[[Measure, bytes | None, bytes], bytes]
"""Gets how to measure, the nonce that was asked for, and the transcript that was handed out before
(empty if none was); returns the transcript to hand out."""


def direct(measure: Measure, nonce: bytes | None, before: bytes) -> bytes:
    """Measurements over *nonce*: the `Relay` of an honest platform."""
    return measure(nonce)


@dataclass(frozen=True, slots=True)
class Disguise:
    """What a device presents instead of what it is by nature; None where it does not lie."""

    names: tuple[str, ...] = ()
    """What it is called in control files."""
    identity: Identity | None = None
    measurements: MeasurementSource | None = None
    signer: Signer | None = None
    """Makes the signatures."""
    report: ReportFilter | None = None
    """Changes the interface reports of later locks."""
    relay: Relay | None = None
    """What stands between a TSM that asks for measurements and the device."""


HONEST = Disguise()


class _Tdisp(TdispResponder):
    """TDISP of a device whose interfaces come and go with its virtual functions."""

    def __init__(self, tdis: TdiTable) -> None:
        super().__init__(tdis)
        self._tdis = tdis

    def session_ended(self, session: int) -> None:
        # A reset that ends sessions disables virtual functions, too.
        self._tdis.session_ended(session)


class CmaDevice:
    """The responder of one device, made at the first request; of one mailbox, in any thread.

    Whoever sends GET_VERSION begins a new connection, and so ends the sessions of another. A reset
    of the function ends all, as its hardware is told by `attach`.
    """

    def __init__(self, nature: Callable[[], Nature], port: IdePort | None = None) -> None:
        """*nature* is asked at the first request; *port* has the keys of the device's streams."""
        self._nature = nature
        self._lock = threading.RLock()
        self._known: Nature | None = None
        self._responder: Responder | None = None
        self._own: Identity | None = None
        self._disguise = HONEST
        self.port = port
        self.tdis = TdiTable()
        """The TEE device interfaces that it manages."""
        self._ide_km = IdeKmResponder(DeviceKeySlots([port])) if port is not None else None
        self.vendor: dict[int, VendorResponder] = {
            PciProtocol.TDISP: _Tdisp(self.tdis),
        }
        """The protocols of the PCI-SIG inside its sessions."""
        if self._ide_km is not None:
            self.vendor[PciProtocol.IDE_KM] = self._ide_km

    def attach(self, config: ConfigSpace) -> None:
        """Lose the connection at each reset of the function with *config*."""
        # A request may be under way in another thread, and look at registers.
        config.on_reset(lambda: config.defer(self.reset))

    def protocols(self) -> Mapping[Feature, Handler]:
        """The handlers of its data objects, for a `DoeMailbox`."""
        return {
            (PCI_VENDOR_ID_PCI_SIG, PCI_DOE_FEATURE_CMA): self.plain,
            (PCI_VENDOR_ID_PCI_SIG, PCI_DOE_FEATURE_SSESSION): self.secured,
        }

    def plain(self, request: bytes) -> bytes:
        """The response to an SPDM message in the clear."""
        with self._lock:
            return self.responder.respond(request)

    def secured(self, record: bytes) -> bytes:
        """The response to a secured message; EIO where the specification has none."""
        with self._lock:
            answer = self.responder.respond_secured(record)
        if not answer:
            fail(errno.EIO, "a secured message of no session")
        return answer

    def reset(self) -> None:
        """Forget the connection and its sessions; interfaces that they locked go to ERROR."""
        with self._lock:
            if self._responder is not None:
                self._responder.reset()

    def power_on(self) -> None:
        """Come from power-on: besides, every interface is unlocked."""
        self.reset()
        self.tdis.power_on()

    @property
    def nature(self) -> Nature:
        """What it is when nobody tampers with it."""
        with self._lock:
            if self._known is None:
                self._known = self._nature()
            return self._known

    @property
    def identity(self) -> Identity:
        """The identity that it presents."""
        with self._lock:
            if self._disguise.identity is not None:
                return self._disguise.identity
            if self._own is None:
                self._own = self.nature.identity()
            return self._own

    @property
    def responder(self) -> Responder:
        """Its responder, which one thread at a time may use: `plain` and `secured` see to that."""
        with self._lock:
            if self._responder is None:
                self._responder = self._make()
            return self._responder

    def keyed(self, stream_id: int, session: int) -> bool:
        """Whether *session* gave the stream its keys."""
        return self._ide_km is not None and self._ide_km.keyed(stream_id, session)

    def report_filter(self) -> ReportFilter:
        """What the reports of its interfaces go through."""
        return self._disguise.report or honest

    @property
    def relay(self) -> Relay:
        """What a TSM's request for signed measurements goes through."""
        return self._disguise.relay or direct

    @property
    def disguise(self) -> Disguise:
        """What it presents instead of what it is."""
        return self._disguise

    def tamper(self, disguise: Disguise) -> None:
        """Present *disguise* from now on. Another identity ends the connection."""
        with self._lock:
            other = disguise.identity is not self._disguise.identity
            self._disguise = disguise
            if self._responder is None:
                return
            if other:
                self._responder.reset()
                self._responder = None
            else:
                self._dress(self._responder)

    def _make(self) -> Responder:
        from tsmfs.spdm.algorithms import BaseHash, DheGroup, MeasurementHash, Offer
        from tsmfs.spdm.responder import Responder

        nature, identity = self.nature, self.identity
        hashes = sorted(BaseHash, key=lambda one: one is not nature.origin.base_hash)
        measuring = sorted(MeasurementHash, key=lambda one: one.base is not nature.origin.base_hash)
        curve = identity.base_asym.curve
        groups = sorted(
            DheGroup, key=lambda one: curve is not None and one.curve.name != curve.name
        )
        responder = Responder(
            identity,
            nature.measurements,
            vendor=self.vendor,
            versions=nature.versions,
            algorithms=Offer(
                base_hash=tuple(hashes), measurement_hash=tuple(measuring), dhe=tuple(groups)
            ),
        )
        self._dress(responder)
        return responder

    def _dress(self, responder: Responder) -> None:
        from tsmfs.spdm.responder import sign

        responder.measurements = self._disguise.measurements or self.nature.measurements
        responder.signer = self._disguise.signer or sign

    def __repr__(self) -> str:
        return f"CmaDevice({len(self.tdis)} interfaces)"
