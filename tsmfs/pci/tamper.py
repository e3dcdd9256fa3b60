# SPDX-License-Identifier: MIT
"""What devices with keys can be made to present for the tests of verifiers, each wrong in one way.

A verifier has to refuse all of it, so the software TSM passes it on, and the session stays sound:
what signs KEY_EXCHANGE_RSP is the key of the certificate that is presented.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tsmfs.kernel.errors import fail
from tsmfs.pci.cma import CmaDevice, Disguise, Measure, Relay
from tsmfs.pci.tdisp import ReportFilter
from tsmfs.spdm.measurements import Measurement, MeasurementKind, MeasurementSource
from tsmfs.spdm.tdisp import Report

if TYPE_CHECKING:
    from tsmfs.spdm.attestation import SigningJob
    from tsmfs.spdm.identity import Identity, Origin, Slot


class Tamper(enum.StrEnum):
    """What is wrong, by its name in descriptions and control files."""

    EXPIRED_CERTIFICATE = "expired-certificate"
    """The leaf's time is over since 31 March 2024."""
    SELF_SIGNED = "self-signed"
    """The chain is the leaf alone, signed with its own key."""
    WRONG_NAME = "wrong-name"
    """The leaf names another device: bit 0 of the device ID is inverted."""
    FOREIGN_CERTIFICATE = "foreign-certificate"
    """The chain is sound, under the root of another machine."""
    BAD_SIGNATURE = "bad-signature"
    """MEASUREMENTS and CHALLENGE_AUTH are signed with the right key over another transcript."""
    STALE_NONCE = "stale-nonce"
    """Measurements are signed over the nonce of the request before, not over the caller's."""
    CHANGED_MEASUREMENT = "changed-measurement"
    """The first measurement of firmware, else the first of all, has another value."""
    WRONG_RANGE = "wrong-range"
    """The last range of an interface report lies 1 TiB away from its BAR."""
    OVERLAPPING_RANGE = "overlapping-range"
    """The last page of the first range of a report comes a second time, as a range."""
    REPLAYED_TRANSCRIPT = "replayed-transcript"
    """The transcript that was handed out before is handed out again, byte for byte."""


CERTIFICATES = frozenset(
    {
        Tamper.EXPIRED_CERTIFICATE,
        Tamper.SELF_SIGNED,
        Tamper.WRONG_NAME,
        Tamper.FOREIGN_CERTIFICATE,
    }
)
"""Those of which a device has one at most."""

_FAR_PAGES = 1 << 28
"""1 TiB in pages."""


def disguise(device: CmaDevice, tampers: Collection[Tamper]) -> None:
    """Have *device* present *tampers* from now on, and nothing else that is wrong.

    Another certificate ends the connection of *device*; reports change with the next lock. EINVAL
    for two of `CERTIFICATES`, or for a transcript that is to be both stale and replayed.
    """
    wanted = frozenset(tampers)
    certificates = wanted & CERTIFICATES
    if len(certificates) > 1:
        fail(errno.EINVAL, "one certificate at a time can be wrong")
    relays = [relay for name, relay in _RELAYS.items() if name in wanted]
    if len(relays) > 1:
        fail(errno.EINVAL, "a transcript is stale or replayed")
    changed = Tamper.CHANGED_MEASUREMENT in wanted
    filters = [one for name, one in _REPORTS.items() if name in wanted]
    device.tamper(
        Disguise(
            names=tuple(name for name in Tamper if name in wanted),
            identity=_identity(device, *certificates) if certificates else None,
            measurements=_changed(device.nature.measurements) if changed else None,
            signer=_badly_signed if Tamper.BAD_SIGNATURE in wanted else None,
            report=_filtered(filters) if filters else None,
            relay=relays[0] if relays else None,
        )
    )


# --- Certificates --------------------------------------------------------------------------------


def _identity(device: CmaDevice, kind: Tamper) -> Identity:
    known = device.disguise
    # The same lie again is no reason to lose the connection.
    if kind in known.names and known.identity is not None:
        return known.identity
    return _maker(kind)(device.nature.origin)


def _maker(kind: Tamper) -> Callable[[Origin], Identity]:
    from tsmfs.spdm import tamper

    return {
        Tamper.EXPIRED_CERTIFICATE: tamper.expired,
        Tamper.SELF_SIGNED: tamper.self_signed,
        Tamper.WRONG_NAME: tamper.wrong_san,
        Tamper.FOREIGN_CERTIFICATE: tamper.foreign,
    }[kind]


# --- Measurements --------------------------------------------------------------------------------


def _badly_signed(slot: Slot, job: SigningJob) -> bytes:
    from tsmfs.spdm.attestation import sign
    from tsmfs.spdm.transcript import SigningContext

    # A session could not begin.
    if job.context is SigningContext.KEY_EXCHANGE_RSP:
        return sign(slot, job)
    return sign(slot, replace(job, digest=bytes(byte ^ 0xFF for byte in job.digest)))


def _changed(source: MeasurementSource) -> MeasurementSource:
    def measure() -> Sequence[Measurement]:
        measured = list(source())
        firmware = (one.kind is MeasurementKind.MUTABLE_FIRMWARE for one in measured)
        at = next((number for number, found in enumerate(firmware) if found), 0)
        if measured:
            *others, last = measured[at].value or b"\0"
            measured[at] = replace(measured[at], value=bytes((*others, last ^ 1)))
        return measured

    return measure


def _stale(measure: Measure, nonce: bytes | None, before: bytes) -> bytes:
    from tsmfs.spdm.messages import GetMeasurements

    return measure(GetMeasurements.take(before)[0].nonce if before else nonce)


def _replayed(measure: Measure, nonce: bytes | None, before: bytes) -> bytes:
    return before or measure(nonce)


_RELAYS: Mapping[Tamper, Relay] = {
    Tamper.STALE_NONCE: _stale,
    Tamper.REPLAYED_TRANSCRIPT: _replayed,
}


# --- Reports -------------------------------------------------------------------------------------


def _wrong_range(report: Report) -> Report:
    *others, last = report.mmio_ranges
    moved = replace(last, first_page=last.first_page ^ _FAR_PAGES)
    return replace(report, mmio_ranges=(*others, moved))


def _overlapping_range(report: Report) -> Report:
    first, *others = report.mmio_ranges
    again = replace(first, first_page=first.first_page + first.pages - 1, pages=1)
    return replace(report, mmio_ranges=(first, again, *others))


_REPORTS: Mapping[Tamper, ReportFilter] = {
    Tamper.WRONG_RANGE: _wrong_range,
    Tamper.OVERLAPPING_RANGE: _overlapping_range,
}


def _filtered(filters: Sequence[ReportFilter]) -> ReportFilter:
    def report(honest: Report) -> Report:
        if not honest.mmio_ranges:
            return honest
        for one in filters:
            honest = one(honest)
        return honest

    return report
