# SPDX-License-Identifier: MIT
"""What a responder proves: certificates, CHALLENGE and measurements (DSP0274 10.5 to 10.11).

Public methods of `Attester` that take nothing but a `Call` answer one request each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.connection import Call, Connection, invalid, unexpected
from tsmfs.spdm.identity import Identity, Slot
from tsmfs.spdm.measurements import (
    MeasurementBlock,
    MeasurementSource,
    pack_record,
    summary_hash,
)
from tsmfs.spdm.messages import (
    MEASUREMENT_ALL,
    MEASUREMENT_COUNT,
    NONCE_SIZE,
    SLOT_COUNT,
    SLOT_MASK,
    SLOT_SIZE_REQUESTED,
    Certificate,
    Challenge,
    ChallengeAuth,
    ContentChanged,
    Digests,
    GetCertificate,
    GetDigests,
    GetMeasurements,
    MeasurementAttributes,
    Measurements,
    RequesterFlags,
    ResponderFlags,
    SummaryType,
    Version,
)
from tsmfs.spdm.transcript import SigningContext, signing_message

_CERTIFICATE_HEADER = 8
_SUMMARY_TYPES = frozenset(SummaryType)
_SUPPORTED_SLOTS = (1 << SLOT_COUNT) - 1


@dataclass(frozen=True, slots=True)
class SigningJob:
    """What is to be signed, and by which algorithms (DSP0274 15)."""

    version: int
    context: SigningContext
    base_asym: BaseAsym
    base_hash: BaseHash
    digest: bytes
    """The hash of the transcript."""
    transcript: bytes = b""
    """M1/M2 or L1/L2 itself; empty for KEY_EXCHANGE_RSP."""

    @property
    def message(self) -> bytes:
        """The combined SPDM prefix and the digest."""
        return signing_message(self.version, self.context, self.digest)


Signer = Callable[[Slot, SigningJob], bytes]
"""Gets the slot that signs, and what; returns the signature."""


def sign(slot: Slot, job: SigningJob) -> bytes:
    """The signature by the key of `slot`: the `Signer` of an honest device."""
    return job.base_asym.sign(slot.key, job.message, job.base_hash)


class Attester:
    """The identity of a device, what it measures, and how it signs."""

    def __init__(
        self,
        identity: Identity,
        measurements: MeasurementSource,
        signer: Signer,
        random: Callable[[int], bytes],
    ) -> None:
        self.identity = identity
        self.measurements = measurements
        self.signer = signer
        self._random = random

    def _slot(self, number: int) -> Slot:
        slot = self.identity.slots.get(number)
        if slot is None:
            raise invalid(f"slot {number} has no certificate chain")
        return slot

    @property
    def _slot_mask(self) -> int:
        mask = 0
        for number in self.identity.slots:
            mask |= 1 << number
        return mask

    def chain(self, call: Call, number: int) -> tuple[bytes, bytes]:
        """The chain in a slot, and its digest. Raises SpdmError if there is none."""
        found = call.connection.chains.get(number)
        if found is None:
            base_hash = call.algorithms.base_hash
            chain = self._slot(number).chain_with(base_hash)
            found = call.connection.chains[number] = chain, base_hash.digest(chain)
        return found

    def signature(
        self,
        call: Call,
        number: int,
        context: SigningContext,
        digest: bytes,
        transcript: bytes = b"",
    ) -> bytes:
        """The signature by the key of slot `number` for `context`. Raises SpdmError."""
        algorithms = call.algorithms
        job = SigningJob(
            call.version, context, algorithms.base_asym, algorithms.base_hash, digest, transcript
        )
        return self.signer(self._slot(number), job)

    def summary(self, call: Call, summary_type: int) -> bytes:
        """The measurement summary hash, empty for type none. Raises SpdmError."""
        algorithms = call.algorithms
        if summary_type == SummaryType.NONE:
            return b""
        measurement_hash = algorithms.measurement_hash
        if measurement_hash is None or summary_type not in _SUMMARY_TYPES:
            raise invalid(f"measurement summary {summary_type:#04x}")
        blocks = [one.block(measurement_hash, raw=False) for one in self.measurements()]
        return summary_hash(blocks, summary_type, algorithms.base_hash)

    def digests(self, call: Call) -> bytes:
        """DIGESTS."""
        _, asked = call.take(GetDigests)
        if call.session is None:
            call.connection.transcripts.b.clear()
        answer = Digests(
            version=call.version,
            supported_slots=_SUPPORTED_SLOTS if call.version >= Version.V1_3 else 0,
            slots=self._slot_mask,
            digests=tuple(self.chain(call, number)[1] for number in sorted(self.identity.slots)),
        ).pack(call.algorithms.sizes)
        _note_identity(call, asked, answer)
        return answer

    def certificate(self, call: Call) -> bytes:
        """CERTIFICATE."""
        message, asked = call.take(GetCertificate)
        number = message.slot & SLOT_MASK
        chain, _ = self.chain(call, number)
        if call.version >= Version.V1_3 and message.attributes & SLOT_SIZE_REQUESTED:
            portion = b""
            remainder = len(chain)
        else:
            if message.offset >= len(chain):
                raise invalid(f"offset {message.offset} in a chain of {len(chain)} bytes")
            # With chunks a requester may count on getting all that it asks for at once.
            chunks = call.both(RequesterFlags.CHUNK)
            room = call.connection.max_message_size if chunks else call.room
            length = min(message.length, room - _CERTIFICATE_HEADER)
            portion = chain[message.offset : message.offset + length]
            remainder = len(chain) - message.offset - len(portion)
        answer = Certificate(
            version=call.version, slot=number, remainder=remainder, portion=portion
        ).pack()
        _note_identity(call, asked, answer)
        return answer

    def challenge(self, call: Call) -> bytes:
        """CHALLENGE_AUTH."""
        message, asked = call.take(Challenge)
        connection = call.connection
        algorithms = call.algorithms
        _, digest = self.chain(call, message.slot)
        summary = self.summary(call, message.summary_type)
        sizes = replace(algorithms.sizes, summary=len(summary), signature=0)
        answer = ChallengeAuth(
            version=call.version,
            slot=message.slot,
            slots=self._slot_mask,
            chain_hash=digest,
            nonce=self._random(NONCE_SIZE),
            summary=summary,
            context=message.context,
        ).pack(sizes)
        transcripts = connection.transcripts
        m1 = bytes(transcripts.vca) + bytes(transcripts.b) + asked + answer
        signature = self.signature(
            call,
            message.slot,
            SigningContext.CHALLENGE_AUTH,
            algorithms.base_hash.digest(m1),
            m1,
        )
        transcripts.b.clear()
        connection.authenticated = True
        return answer + signature

    def get_measurements(self, call: Call) -> bytes:
        """MEASUREMENTS."""
        message, asked = call.take(GetMeasurements)
        channel = call.channel
        algorithms = call.algorithms
        if algorithms.measurement_hash is None:
            raise unexpected("no measurement specification was negotiated")
        signed = bool(message.attributes & MeasurementAttributes.SIGNATURE)
        number = message.slot & SLOT_MASK
        if signed:
            if not call.settings.flags & ResponderFlags.MEAS_SIG:
                raise invalid("measurements are not signed")
            self._slot(number)
        measured = tuple(self.measurements())
        blocks: Sequence[MeasurementBlock] = ()
        if message.operation != MEASUREMENT_COUNT:
            raw = bool(message.attributes & MeasurementAttributes.RAW)
            blocks = [
                one.block(algorithms.measurement_hash, raw=raw)
                for one in measured
                if message.operation in (MEASUREMENT_ALL, one.index)
            ]
            if not blocks:
                raise invalid(f"no measurement {message.operation:#04x}")
        if channel.measured is None:
            channel.measured = measured
        changed = (
            ContentChanged.UNCHANGED if channel.measured == measured else ContentChanged.CHANGED
        )
        answer = Measurements(
            version=call.version,
            total=len(measured) if message.operation == MEASUREMENT_COUNT else 0,
            slot=number | changed if signed else 0,
            blocks=len(blocks),
            record=pack_record(blocks),
            nonce=self._random(NONCE_SIZE),
            context=message.context,
        ).pack()
        channel.l1.append(asked, answer)
        if not signed:
            return answer
        l1 = bytes(call.connection.transcripts.vca) + bytes(channel.l1)
        signature = self.signature(
            call, number, SigningContext.MEASUREMENTS, algorithms.base_hash.digest(l1), l1
        )
        channel.forget_l1()
        return answer + signature


def _note_identity(call: Call, *messages: bytes) -> None:
    if call.session is None:
        call.connection.transcripts.b.append(*messages)


def forget_m1(connection: Connection) -> None:
    """Reset M1/M2 for a request that skips CHALLENGE (10.8.3)."""
    if not connection.authenticated:
        connection.transcripts.b.clear()
