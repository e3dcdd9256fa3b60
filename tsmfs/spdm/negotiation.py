# SPDX-License-Identifier: MIT
"""What a responder makes of CAPABILITIES and ALGORITHMS (DSP0274 10.3, 10.4)."""

from __future__ import annotations

from tsmfs.spdm.algorithms import (
    KEY_SCHEDULE_SPDM,
    Algorithms,
    BaseHash,
    MeasurementHash,
    Offer,
    bits,
    choose,
)
from tsmfs.spdm.messages import (
    MEASUREMENT_SPECIFICATION_DMTF,
    MIN_DATA_TRANSFER_SIZE,
    SUPPORTED_ALGORITHMS,
    AlgorithmsResponse,
    AlgorithmTable,
    AlgorithmType,
    ErrorCode,
    GetCapabilities,
    NegotiateAlgorithms,
    OtherParams,
    RequesterFlags,
    SpdmError,
    Version,
)

MAX_CT_EXPONENT = 31

_SESSIONS = RequesterFlags.KEY_EX | RequesterFlags.PSK
_OF_SESSIONS = (
    RequesterFlags.ENCRYPT
    | RequesterFlags.MAC
    | RequesterFlags.HANDSHAKE_IN_THE_CLEAR
    | RequesterFlags.HBEAT
    | RequesterFlags.KEY_UPD
)
_PROTECTION = RequesterFlags.ENCRYPT | RequesterFlags.MAC
_IDENTITY = RequesterFlags.CERT | RequesterFlags.PUB_KEY_ID
_PSK_REQUESTER = 1 << 10
_EP_INFO = RequesterFlags.EP_INFO_NO_SIG | RequesterFlags.EP_INFO_SIG
_MULTI_KEY = RequesterFlags.MULTI_KEY_ONLY | RequesterFlags.MULTI_KEY_NEG


def _invalid(text: str) -> SpdmError:
    return SpdmError(ErrorCode.INVALID_REQUEST, text)


def check_capabilities(request: GetCapabilities) -> None:
    """Raise SpdmError if a GET_CAPABILITIES contradicts itself (10.3, table 14)."""
    chunks = bool(request.flags & RequesterFlags.CHUNK)
    transfer, message = request.data_transfer_size, request.max_message_size
    if not MIN_DATA_TRANSFER_SIZE <= transfer <= message:
        raise _invalid(f"DataTransferSize {transfer}, MaxSPDMmsgSize {message}")
    if transfer != message and not chunks:
        raise _invalid(f"messages of {message} bytes in pieces of {transfer} without chunks")
    if request.ct_exponent > MAX_CT_EXPONENT:
        raise _invalid(f"CTExponent {request.ct_exponent}")
    if request.version >= Version.V1_3 and request.attributes & SUPPORTED_ALGORITHMS and not chunks:
        raise _invalid("the supported algorithms are asked for without chunks")
    _check_flags(RequesterFlags(request.flags), request.version)


def _check_flags(flags: RequesterFlags, version: int) -> None:
    if flags & RequesterFlags.PSK not in (0, _PSK_REQUESTER):
        raise _invalid("a reserved value of PSK_CAP")
    if flags & _SESSIONS:
        if not flags & _PROTECTION:
            raise _invalid("sessions without ENCRYPT_CAP and MAC_CAP")
    elif flags & _OF_SESSIONS or (version >= Version.V1_3 and flags & RequesterFlags.EVENT):
        raise _invalid("a capability of sessions without sessions")
    if not flags & RequesterFlags.KEY_EX and flags & RequesterFlags.HANDSHAKE_IN_THE_CLEAR:
        raise _invalid("HANDSHAKE_IN_THE_CLEAR_CAP without KEY_EX_CAP")
    signs_info = version >= Version.V1_3 and bool(flags & RequesterFlags.EP_INFO_SIG)
    uses = bool(flags & (RequesterFlags.CHAL | RequesterFlags.KEY_EX))
    if flags & _IDENTITY:
        if flags & _IDENTITY == _IDENTITY:
            raise _invalid("CERT_CAP and PUB_KEY_ID_CAP")
        if not uses and not signs_info:
            raise _invalid("an identity that nothing uses")
    elif flags & (RequesterFlags.CHAL | RequesterFlags.MUT_AUTH) or signs_info:
        raise _invalid("authentication without an identity")
    if flags & RequesterFlags.MUT_AUTH and not uses:
        raise _invalid("MUT_AUTH_CAP without KEY_EX_CAP and CHAL_CAP")
    if version >= Version.V1_3:
        if flags & _EP_INFO == _EP_INFO or flags & _MULTI_KEY == _MULTI_KEY:
            raise _invalid("a reserved value of EP_INFO_CAP or MULTI_KEY_CAP")
        if flags & _MULTI_KEY and not flags & RequesterFlags.CERT:
            raise _invalid("MULTI_KEY_CAP without CERT_CAP")


def offered(offer: Offer, version: int) -> NegotiateAlgorithms:
    """`offer` as a requester would tell it: what CAPABILITIES of 1.3 appends."""
    return NegotiateAlgorithms(
        version=version,
        measurement_specification=MEASUREMENT_SPECIFICATION_DMTF,
        other_params=OtherParams.OPAQUE_FORMAT_1,
        base_asym=bits(offer.base_asym),
        base_hash=bits(offer.base_hash),
        tables=offer.tables,
    )


def _checked(request: NegotiateAlgorithms) -> dict[int, int]:
    """What is offered of each kind, after checks of the tables (10.4). Raises SpdmError."""
    tables: dict[int, int] = {}
    previous = 0
    extended = len(request.extended_asym) + len(request.extended_hash)
    for table in request.tables:
        if not max(previous + 1, AlgorithmType.DHE) <= table.kind <= AlgorithmType.KEY_SCHEDULE:
            raise _invalid(f"algorithm structure {table.kind} behind {previous}")
        if not table.supported and not table.extended:
            raise _invalid(f"algorithm structure {table.kind} offers nothing")
        tables[table.kind] = table.supported
        extended += len(table.extended)
        previous = table.kind
    if extended > NegotiateAlgorithms.MAX_EXTENDED:
        raise _invalid(f"{extended} extended algorithms")
    return tables


def _measurement_hash(offer: Offer, base_hash: BaseHash) -> MeasurementHash:
    """The one that is the same as the base hash, if it is supported; else the preferred one."""
    same = (member for member in offer.measurement_hash if member.base is base_hash)
    return next(same, offer.measurement_hash[0])


def negotiate(
    offer: Offer, request: NegotiateAlgorithms, *, sessions: bool, measures: bool
) -> tuple[Algorithms, AlgorithmsResponse]:
    """What is selected of a NEGOTIATE_ALGORITHMS, and the response that says so.

    `sessions` tells that both endpoints know KEY_EXCHANGE, `measures` that the responder can
    measure. Raises SpdmError where there is nothing in common.
    """
    tables = _checked(request)
    base_hash = choose(offer.base_hash, request.base_hash)
    base_asym = choose(offer.base_asym, request.base_asym)
    if base_hash is None or base_asym is None:
        raise _invalid("no hash or no signature algorithm that both sides know")
    dhe = choose(offer.dhe, tables.get(AlgorithmType.DHE, 0))
    aead = choose(offer.aead, tables.get(AlgorithmType.AEAD, 0))
    schedule = tables.get(AlgorithmType.KEY_SCHEDULE, 0) & KEY_SCHEDULE_SPDM
    if sessions and not (dhe and aead and schedule):
        raise _invalid("no DHE group, AEAD or key schedule that both sides know")
    selected = {
        AlgorithmType.DHE: dhe.bit if dhe else 0,
        AlgorithmType.AEAD: aead.bit if aead else 0,
        AlgorithmType.REQ_BASE_ASYM: 0,
        AlgorithmType.KEY_SCHEDULE: schedule,
    }
    dmtf = measures and bool(request.measurement_specification & MEASUREMENT_SPECIFICATION_DMTF)
    measurement_hash = _measurement_hash(offer, base_hash) if dmtf else None
    other_params = next(
        (
            int(form)
            for form in (OtherParams.OPAQUE_FORMAT_1, OtherParams.OPAQUE_FORMAT_0)
            if request.other_params & form
        ),
        0,
    )
    response = AlgorithmsResponse(
        version=request.version,
        measurement_specification=MEASUREMENT_SPECIFICATION_DMTF if dmtf else 0,
        other_params=other_params,
        measurement_hash=measurement_hash.bit if measurement_hash else 0,
        base_asym=base_asym.bit,
        base_hash=base_hash.bit,
        tables=tuple(AlgorithmTable(kind, selected[AlgorithmType(kind)]) for kind in tables),
    )
    usable = bool(dhe and aead and schedule)
    return (
        Algorithms(
            base_hash,
            base_asym,
            measurement_hash,
            dhe if usable else None,
            aead if usable else None,
            other_params,
        ),
        response,
    )
