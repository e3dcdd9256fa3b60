# SPDX-License-Identifier: MIT
"""TEE device interfaces: the state machine of 11.2 (PCIe 7.0), apart from its messages."""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Callable, Iterable

from tsmfs.spdm.tdisp import (
    MAX_REPORT_SIZE,
    NONCE_SIZE,
    PAGE_SHIFT,
    InterfaceInfo,
    LockFlags,
    LockParameters,
    MmioRange,
    RangeAttributes,
    Report,
    TdispCapabilities,
    TdispError,
    TdispErrorCode,
    TdiState,
    canonical_function_id,
)

ReportSource = Callable[[LockParameters], Report]
"""Describes the interface as it is to be locked. May raise TdispError."""

Lockable = Callable[[LockParameters, int], None]
"""Raises TdispError unless the interface may be locked by the session with this ID."""

StateChange = Callable[["Interface", TdiState, TdiState], None]
"""Told of a change from one state to another, without the interface's own lock held."""


def _always_lockable(parameters: LockParameters, session: int) -> None:
    pass


class Interface:
    """A TEE device interface: the state machine of 11.2, which no byte from outside bypasses.

    The hardware describes the interface through `report_source` and `lockable`. It calls `error`
    when something that a lock protects is lost or changed, and `reset` after a conventional
    reset; a function level reset is an `error` (11.4.9). Both may be called with locks of the
    hardware held: the callbacks run without the one of the interface.
    """

    def __init__(
        self,
        function_id: int,
        report_source: ReportSource,
        lockable: Lockable = _always_lockable,
        *,
        capabilities: TdispCapabilities | None = None,
        random: Callable[[int], bytes] = os.urandom,
        on_change: StateChange | None = None,
    ) -> None:
        self.function_id = canonical_function_id(function_id)
        self.capabilities = capabilities or TdispCapabilities()
        self._report_source = report_source
        self._lockable = lockable
        self._random = random
        self._on_change = on_change
        self._mutex = threading.Lock()
        self._state = TdiState.CONFIG_UNLOCKED
        self._locking: int | None = None
        self._disturbed: str | None = None
        self._reason: str | None = None
        self._owner: int | None = None
        self._parameters: LockParameters | None = None
        self._report: Report | None = None
        self._packed = b""
        self._nonce: bytes | None = None
        self._non_tee: dict[MmioRange, bool] = {}

    @property
    def state(self) -> TdiState:
        """The state that GET_DEVICE_INTERFACE_STATE tells."""
        return self._state

    @property
    def reason(self) -> str | None:
        """Why the interface is in ERROR."""
        return self._reason

    @property
    def owner(self) -> int | None:
        """ID of the session that locked the interface, while it lives."""
        return self._owner

    @property
    def parameters(self) -> LockParameters | None:
        """What the interface was locked with; None while it is unlocked."""
        return self._parameters

    def lock(self, parameters: LockParameters, session: int) -> bytes:
        """Lock the configuration for `session` and return the nonce to start with.

        Raises TdispError: INVALID_REQUEST for flags that are not supported and for a reporting
        offset that is not of whole pages (the report has page numbers, 11.3.11),
        INVALID_INTERFACE_STATE unless unlocked, BUSY while another lock is under way,
        INSUFFICIENT_ENTROPY, INVALID_DEVICE_CONFIGURATION if the configuration changed meanwhile
        or cannot be reported, and what `lockable` and `report_source` raise.
        """
        unsupported = parameters.flags & ~self.capabilities.lock_flags & _ALL_LOCK_FLAGS
        if unsupported:
            raise TdispError(
                TdispErrorCode.INVALID_REQUEST, f"lock flags {unsupported:#x} are not supported"
            )
        if parameters.mmio_reporting_offset % _PAGE_SIZE:
            raise TdispError(
                TdispErrorCode.INVALID_REQUEST,
                f"reporting offset {parameters.mmio_reporting_offset:#x} is not of whole pages",
            )
        with self._mutex:
            self._require(TdiState.CONFIG_UNLOCKED)
            if self._locking is not None:
                raise TdispError(TdispErrorCode.BUSY, "the interface is being locked")
            self._locking = session
            self._disturbed = None
        try:
            self._lockable(parameters, session)
            report = self._report_source(parameters)
            packed = _packed_report(report)
            nonce = self._new_nonce()
            with self._mutex:
                if self._disturbed is not None:
                    raise TdispError(TdispErrorCode.INVALID_DEVICE_CONFIGURATION, self._disturbed)
                self._state = TdiState.CONFIG_LOCKED
                self._owner = session
                self._parameters = parameters
                self._report, self._packed = report, packed
                self._nonce = nonce
        finally:
            with self._mutex:
                self._locking = None
        self._changed(TdiState.CONFIG_UNLOCKED, TdiState.CONFIG_LOCKED)
        return nonce

    def report(self) -> bytes:
        """The packed report that was made for the lock. Raises TdispError."""
        with self._mutex:
            self._require(TdiState.CONFIG_LOCKED, TdiState.RUN)
            return self._packed

    def start(self, nonce: bytes) -> None:
        """Run, if `nonce` is that of the lock; it is used up. Raises TdispError."""
        with self._mutex:
            self._require(TdiState.CONFIG_LOCKED)
            if self._nonce is None or not hmac.compare_digest(nonce, self._nonce):
                raise TdispError(TdispErrorCode.INVALID_NONCE, "the nonce is not that of the lock")
            self._nonce = None
            self._state = TdiState.RUN
        self._changed(TdiState.CONFIG_LOCKED, TdiState.RUN)

    def stop(self) -> None:
        """Unlock, from whichever state."""
        self._unlock()

    def error(self, reason: str) -> None:
        """A protection of the lock failed: go to ERROR if locked or running."""
        with self._mutex:
            old = self._state
            if self._locking is not None:
                self._disturbed = reason
            if old not in (TdiState.CONFIG_LOCKED, TdiState.RUN):
                return
            self._state = TdiState.ERROR
            self._reason = reason
            self._nonce = None
        self._changed(old, TdiState.ERROR)

    def reset(self) -> None:
        """A conventional reset: the interface is unlocked, and nothing is left of the lock."""
        self._unlock("the device was reset")

    def session_ended(self, session: int) -> None:
        """The session with this ID ended: to ERROR if it had locked the interface (11.4.5)."""
        with self._mutex:
            if session not in (self._owner, self._locking):
                return
            self._owner = None
        self.error("the SPDM session that locked the interface ended")

    def set_mmio_attribute(self, wanted: MmioRange) -> None:
        """Make a range of the report, which allows it, TEE or non-TEE memory. Raises TdispError."""
        with self._mutex:
            self._require(TdiState.RUN)
            ranges = () if self._report is None else self._report.mmio_ranges
            for known in ranges:
                if _place(known) == _place(wanted):
                    break
            else:
                raise TdispError(TdispErrorCode.INVALID_REQUEST, "no such range in the report")
            if not known.attributes & RangeAttributes.IS_MEM_ATTR_UPDATABLE:
                raise TdispError(TdispErrorCode.INVALID_REQUEST, "the range is not updatable")
            self._non_tee[known] = bool(wanted.attributes & RangeAttributes.IS_NON_TEE_MEM)

    def is_non_tee(self, mmio_range: MmioRange) -> bool:
        """Whether a range of the report is accessible from outside of the TEE now."""
        with self._mutex:
            reported = bool(mmio_range.attributes & RangeAttributes.IS_NON_TEE_MEM)
            return self._non_tee.get(mmio_range, reported)

    def _require(self, *states: TdiState) -> None:
        if self._state not in states:
            raise TdispError(
                TdispErrorCode.INVALID_INTERFACE_STATE, f"the interface is {self._state.name}"
            )

    def _unlock(self, disturbed: str | None = None) -> None:
        with self._mutex:
            if self._locking is not None and disturbed is not None:
                self._disturbed = disturbed
            old, self._state = self._state, TdiState.CONFIG_UNLOCKED
            self._reason = self._owner = self._parameters = self._report = self._nonce = None
            self._packed = b""
            self._non_tee.clear()
        if old is not TdiState.CONFIG_UNLOCKED:
            self._changed(old, TdiState.CONFIG_UNLOCKED)

    def _new_nonce(self) -> bytes:
        try:
            nonce = self._random(NONCE_SIZE)
        except (OSError, NotImplementedError) as error:
            raise TdispError(TdispErrorCode.INSUFFICIENT_ENTROPY, str(error)) from None
        if len(nonce) != NONCE_SIZE:
            raise TdispError(TdispErrorCode.INSUFFICIENT_ENTROPY, "there is no nonce")
        return nonce

    def _changed(self, old: TdiState, new: TdiState) -> None:
        if self._on_change is not None:
            self._on_change(self, old, new)


_ALL_LOCK_FLAGS = sum(LockFlags)

_PAGE_SIZE = 1 << PAGE_SHIFT


def _packed_report(report: Report) -> bytes:
    try:
        packed = report.pack()
    except ValueError as error:
        raise TdispError(TdispErrorCode.INVALID_DEVICE_CONFIGURATION, str(error)) from None
    if len(packed) > MAX_REPORT_SIZE:
        raise TdispError(
            TdispErrorCode.INVALID_DEVICE_CONFIGURATION, f"a report of {len(packed)} bytes"
        )
    return packed


def _place(mmio_range: MmioRange) -> tuple[int, int, int]:
    return mmio_range.first_page, mmio_range.pages, mmio_range.range_id


def fixed_interface(function_id: int, ranges: Iterable[tuple[int, int]] = ()) -> Interface:
    """An interface without a device: `ranges` are address and size of each of its BARs."""
    bars = tuple(ranges)

    def report(parameters: LockParameters) -> Report:
        return Report(
            interface_info=InterfaceInfo.DMA_WITHOUT_PASID
            | (parameters.flags & LockFlags.NO_FW_UPDATE),
            mmio_ranges=tuple(
                MmioRange.of(
                    address, size, parameters.mmio_reporting_offset, attributes=0, range_id=bar
                )
                for bar, (address, size) in enumerate(bars)
            ),
        )

    return Interface(function_id, report)
