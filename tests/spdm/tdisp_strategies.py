# SPDX-License-Identifier: MIT
"""TDISP messages and reports of every kind, for property-based tests."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import strategies as st

from tsmfs.spdm import tdisp
from tsmfs.spdm.tdisp import (
    NONCE_SIZE,
    ErrorResponse,
    LockParameters,
    MmioRange,
    Report,
    TdispCapabilities,
    TdispMessage,
)

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
RANGES = st.builds(MmioRange, first_page=U64, pages=U32, attributes=U16, range_id=U16)
REPORTS = st.builds(
    Report,
    interface_info=U16,
    msix_message_control=U16,
    lnr_control=U16,
    tph_control=U32,
    mmio_ranges=st.lists(RANGES, max_size=5).map(tuple),
    device_info=st.binary(max_size=20),
)
LOCKS = st.builds(
    LockParameters,
    flags=U16,
    stream_id=U8,
    mmio_reporting_offset=st.integers(-(1 << 63), (1 << 63) - 1),
    bind_p2p_address_mask=U64,
)
CAPABILITIES = st.builds(
    TdispCapabilities,
    dsm_caps=U32,
    requests=st.integers(0, (1 << 128) - 1),
    lock_flags=U16,
    address_width=U8,
    outstanding=U8,
    outstanding_all=U8,
)
NONCES = st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)
FIELDS = {
    "versions": st.binary(max_size=255),
    "tsm_caps": U32,
    "capabilities": CAPABILITIES,
    "parameters": LOCKS,
    "nonce": NONCES,
    "offset": U16,
    "length": U16,
    "remainder": U16,
    "portion": st.binary(max_size=40),
    "state": U8,
    "stream_id": U8,
    "mmio_range": RANGES,
    "registry": U8,
    "vendor": st.binary(max_size=255),
    "data": st.binary(max_size=20),
    "config": U32,
    "error": U32,
    "extended": st.binary(max_size=20),
    "function_id": U32,
    "version": U8,
}


def messages_of(kind: type[TdispMessage]) -> st.SearchStrategy[TdispMessage]:
    values = {each.name: FIELDS[each.name] for each in fields(kind)}
    if kind is ErrorResponse:
        values["data"] = U32
    return st.builds(kind, **values)


MESSAGES = st.sampled_from(sorted(tdisp.MESSAGES)).flatmap(
    lambda code: messages_of(tdisp.MESSAGES[code])
)
