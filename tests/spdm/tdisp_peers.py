# SPDX-License-Identifier: MIT
"""Both sides of TDISP for the tests: a device with one interface, and hosts for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tsmfs.spdm import tdisp
from tsmfs.spdm.interface import Interface
from tsmfs.spdm.tdisp import (
    InterfaceInfo,
    LockParameters,
    MmioRange,
    RangeAttributes,
    Report,
    TdispError,
    TdispErrorCode,
    TdispMessage,
    TdiState,
)
from tsmfs.spdm.tdisp_requester import TdispRequester
from tsmfs.spdm.tdisp_responder import TdispResponder

FUNCTION = 0x0100
UPDATABLE = RangeAttributes.IS_MEM_ATTR_UPDATABLE
REPORT = Report(
    interface_info=InterfaceInfo.NO_FW_UPDATE | InterfaceInfo.DMA_WITHOUT_PASID,
    msix_message_control=0x8007,
    lnr_control=0x0102,
    tph_control=0x01020304,
    mmio_ranges=(
        MmioRange(first_page=0xD0000, pages=16, attributes=UPDATABLE, range_id=0),
        MmioRange(first_page=0xD0010, pages=1, attributes=RangeAttributes.MSIX_TABLE, range_id=2),
    ),
    device_info=b"net",
)


@dataclass(frozen=True)
class OneSession:
    id: int


def make_interface(**options: object) -> Interface:
    return Interface(FUNCTION, lambda parameters: REPORT, **options)  # type: ignore[arg-type]


@dataclass
class Device:
    """A responder with one interface."""

    interface: Interface = field(default_factory=make_interface)

    def __post_init__(self) -> None:
        self.responder = TdispResponder({FUNCTION: self.interface}, portion_limit=20)

    def host(self, session: int = 1, function: int = FUNCTION) -> TdispRequester:
        return TdispRequester(
            lambda payload: self.responder.respond(OneSession(session), payload), function
        )

    def ask(self, message: TdispMessage, session: int = 1) -> TdispMessage:
        return tdisp.parse(self.responder.respond(OneSession(session), message.pack()))


def in_state(interface: Interface, state: TdiState) -> bytes:
    """Bring an unlocked interface to `state`; the nonce of its lock."""
    if state is TdiState.CONFIG_UNLOCKED:
        return b""
    nonce = interface.lock(LockParameters(), 1)
    if state is TdiState.RUN:
        interface.start(nonce)
    elif state is TdiState.ERROR:
        interface.error("a test")
    assert interface.state is state
    return nonce


@contextmanager
def refused(code: TdispErrorCode) -> Iterator[None]:
    with pytest.raises(TdispError) as caught:
        yield
    assert caught.value.code == code
