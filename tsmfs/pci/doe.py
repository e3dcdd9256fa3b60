# SPDX-License-Identifier: MIT
"""Data Object Exchange: the mailbox in a function's hardware, and the OS side that drives it.

PCI Express Base Specification 7.0, 6.30 and 7.9.24. `DoeMailbox` answers through the hooks of a
configuration space; `DoeTransport` is ``drivers/pci/doe.c`` and sees registers only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from tsmfs.kernel.errors import fail
from tsmfs.pci.config import ConfigAccess, ConfigSpace, ConfigStream
from tsmfs.pci.regs import (
    PCI_DOE_CTRL,
    PCI_DOE_CTRL_ABORT,
    PCI_DOE_CTRL_GO,
    PCI_DOE_CTRL_INT_EN,
    PCI_DOE_DATA_OBJECT_DISC_REQ_3_INDEX,
    PCI_DOE_DATA_OBJECT_DISC_REQ_3_VER,
    PCI_DOE_DATA_OBJECT_DISC_RSP_3_NEXT_INDEX,
    PCI_DOE_DATA_OBJECT_DISC_RSP_3_TYPE,
    PCI_DOE_DATA_OBJECT_DISC_RSP_3_VID,
    PCI_DOE_DATA_OBJECT_HEADER_1_TYPE,
    PCI_DOE_DATA_OBJECT_HEADER_1_VID,
    PCI_DOE_DATA_OBJECT_HEADER_2_LENGTH,
    PCI_DOE_FEATURE_DISCOVERY,
    PCI_DOE_READ,
    PCI_DOE_STATUS,
    PCI_DOE_STATUS_BUSY,
    PCI_DOE_STATUS_DATA_OBJECT_READY,
    PCI_DOE_STATUS_ERROR,
    PCI_DOE_STATUS_INT_STATUS,
    PCI_DOE_WRITE,
    PCI_EXT_CAP_VER_MASK,
    PCI_VENDOR_ID_PCI_SIG,
    field_get,
    field_prep,
)

Feature = tuple[int, int]
"""Vendor ID and data object type."""

Handler = Callable[[bytes], bytes]
"""Gets the payload of a request, padded to dwords, returns the payload of the response."""

PCI_DOE_MAX_LENGTH = 1 << 18
"""Dwords in the largest data object, header included (6.30.1)."""

PCI_DOE_TIMEOUT = 1.0
"""Seconds in which an instance answers a request or an abort (6.30.2)."""

PCI_DOE_POLL_INTERVAL = PCI_DOE_TIMEOUT / 128
"""Seconds between two looks at the status register."""

_DISCOVERY: Feature = (PCI_VENDOR_ID_PCI_SIG, PCI_DOE_FEATURE_DISCOVERY)
_NO_VENDOR = 0xFFFF

_PORTION = 256
"""Dwords of a response that are read without a look at the status."""

_log = logging.getLogger(__name__)


class DoeMailbox:
    """One DOE instance of a function's hardware.

    It answers DOE Discovery itself and hands every other data object to the handler of its vendor
    and type. A handler runs in the thread that sets Go, outside the lock of the space, while the
    status reads busy; an abort meanwhile discards its response. A handler that raises OSError
    makes the status read error until an abort, and so does an object that nothing handles; with
    ETIMEDOUT the mailbox hangs instead, busy until an abort.
    """

    __slots__ = (
        "_config",
        "_features",
        "_generation",
        "_pos",
        "_protocols",
        "_ready",
        "_request",
        "_response",
    )

    def __init__(self, protocols: Mapping[Feature, Handler]) -> None:
        """Make a mailbox for `protocols`, which discovery lists in their order, behind itself.

        Raises ValueError when they are more than discovery can index, or name discovery.
        """
        if _DISCOVERY in protocols or len(protocols) > 255:
            raise ValueError("protocols of a mailbox: at most 255, and none of them discovery")
        self._protocols = protocols
        self._features: tuple[Feature, ...] = (_DISCOVERY, *protocols)
        self._request: list[int] = []
        self._response: Iterator[int] = iter(())
        self._generation = 0
        self._ready = False

    def attach(self, config: ConfigSpace, pos: int) -> None:
        """Become the instance behind the DOE capability at `pos` of `config`."""
        self._config = config
        self._pos = pos
        control = config.rw_mask(pos + PCI_DOE_CTRL, 4) | PCI_DOE_CTRL_ABORT | PCI_DOE_CTRL_GO
        config.define(pos + PCI_DOE_CTRL, 4, 0, rw_mask=control)
        config.define(pos + PCI_DOE_WRITE, 4, 0, rw_mask=0xFFFF_FFFF)
        config.on_write(pos + PCI_DOE_CTRL, 4, self._control_written)
        config.on_write(pos + PCI_DOE_WRITE, 4, self._mailbox_written)
        config.on_write(pos + PCI_DOE_READ, 4, self._mailbox_acknowledged)
        config.on_reset(self._abort)

    def _control_written(self, _old: int, new: int) -> int:
        if new & PCI_DOE_CTRL_ABORT:
            self._abort()
        elif new & PCI_DOE_CTRL_GO:
            self._go()
        return new & ~(PCI_DOE_CTRL_ABORT | PCI_DOE_CTRL_GO)

    def _abort(self) -> None:
        self._generation += 1
        self._request.clear()
        self._set_response(())
        self._set_status(0)

    def _go(self) -> None:
        status = self._config.read(self._pos + PCI_DOE_STATUS, 4)
        if status & (PCI_DOE_STATUS_BUSY | PCI_DOE_STATUS_ERROR):
            return
        request, self._request = self._request, []
        length = len(request) % PCI_DOE_MAX_LENGTH
        if (
            status & PCI_DOE_STATUS_DATA_OBJECT_READY
            or len(request) < 2
            or len(request) > PCI_DOE_MAX_LENGTH
            or field_get(PCI_DOE_DATA_OBJECT_HEADER_2_LENGTH, request[1]) != length
        ):
            self._set_response(())
            self._set_status(PCI_DOE_STATUS_ERROR)
            return
        self._set_status(PCI_DOE_STATUS_BUSY)
        self._config.defer(partial(self._process, request, self._generation))

    def _mailbox_written(self, _old: int, new: int) -> int:
        # One dword more than allowed is enough to tell that the object is too long.
        if len(self._request) <= PCI_DOE_MAX_LENGTH:
            self._request.append(new)
        return 0

    def _mailbox_acknowledged(self, old: int, _new: int) -> int:
        if not self._ready:
            return old
        following = next(self._response, None)
        if following is None:
            self._set_status(0)
            return 0
        return following

    def _process(self, request: list[int], generation: int) -> None:
        try:
            response = self._respond(request)
            status = PCI_DOE_STATUS_DATA_OBJECT_READY
        except TimeoutError:
            return
        except OSError as error:
            _log.debug("DOE [%x]: %s", self._pos, error)
            response, status = (), PCI_DOE_STATUS_ERROR
        except Exception:
            _log.exception("DOE [%x]: handler failed", self._pos)
            response, status = (), PCI_DOE_STATUS_ERROR
        with self._config.atomic():
            if generation == self._generation:
                self._set_response(response)
                self._set_status(status)

    def _respond(self, request: list[int]) -> tuple[int, ...]:
        vendor = field_get(PCI_DOE_DATA_OBJECT_HEADER_1_VID, request[0])
        kind = field_get(PCI_DOE_DATA_OBJECT_HEADER_1_TYPE, request[0])
        payload = struct.pack(f"<{len(request) - 2}I", *request[2:])
        if (vendor, kind) == _DISCOVERY:
            answer = self._discover(payload)
        elif (handler := self._protocols.get((vendor, kind))) is not None:
            answer = handler(payload)
        else:
            fail(errno.EOPNOTSUPP, f"nothing handles vendor {vendor:#x} type {kind:#x}")
        return _data_object(vendor, kind, answer)

    def _discover(self, payload: bytes) -> bytes:
        if len(payload) != 4:
            fail(errno.EINVAL, f"discovery request of {len(payload)} bytes")
        (request,) = struct.unpack("<I", payload)
        index = field_get(PCI_DOE_DATA_OBJECT_DISC_REQ_3_INDEX, request)
        if index < len(self._features):
            vendor, kind = self._features[index]
            following = (index + 1) % len(self._features)
        else:
            vendor, kind, following = _NO_VENDOR, 0, 0
        return struct.pack(
            "<I",
            field_prep(PCI_DOE_DATA_OBJECT_DISC_RSP_3_VID, vendor)
            | field_prep(PCI_DOE_DATA_OBJECT_DISC_RSP_3_TYPE, kind)
            | field_prep(PCI_DOE_DATA_OBJECT_DISC_RSP_3_NEXT_INDEX, following),
        )

    def _set_response(self, response: tuple[int, ...]) -> None:
        self._response = iter(response)
        self._config.set(self._pos + PCI_DOE_READ, 4, next(self._response, 0))

    def _set_status(self, status: int) -> None:
        self._ready = bool(status & PCI_DOE_STATUS_DATA_OBJECT_READY)
        pos = self._pos + PCI_DOE_STATUS
        status |= self._config.read(pos, 4) & PCI_DOE_STATUS_INT_STATUS
        # 6.30.3: an interrupt tells of a response that is ready and of an error.
        events = PCI_DOE_STATUS_DATA_OBJECT_READY | PCI_DOE_STATUS_ERROR
        if status & events and self._config.read(self._pos + PCI_DOE_CTRL, 4) & PCI_DOE_CTRL_INT_EN:
            status |= PCI_DOE_STATUS_INT_STATUS
        self._config.set(pos, 4, status)


def _data_object(vendor: int, kind: int, payload: bytes) -> tuple[int, ...]:
    length = 2 + -(-len(payload) // 4)
    if length > PCI_DOE_MAX_LENGTH:
        fail(errno.EIO, f"data object of {length} dwords")
    padded = payload + bytes(-len(payload) % 4)
    return (
        field_prep(PCI_DOE_DATA_OBJECT_HEADER_1_VID, vendor)
        | field_prep(PCI_DOE_DATA_OBJECT_HEADER_1_TYPE, kind),
        field_prep(PCI_DOE_DATA_OBJECT_HEADER_2_LENGTH, length % PCI_DOE_MAX_LENGTH),
        *struct.unpack(f"<{length - 2}I", padded),
    )


class DoeTimeoutError(OSError):
    """EIO of an instance that did not answer in time."""


class DoeTransport:
    """One mailbox as the operating system drives it, ``struct pci_doe_mb``.

    Exchanges on it take turns; a caller waits with `sleep`, which may raise OSError (EINTR) to
    give up: the mailbox is then aborted and free for the next one, as it is whatever else ends an
    exchange. `fault`, if given, runs before each exchange and may delay it or fail it with an
    OSError of its own.
    """

    def __init__(
        self,
        config: ConfigAccess,
        pos: int,
        *,
        name: str = "",
        sleep: Callable[[float], None] = time.sleep,
        fault: Callable[[], None] | None = None,
        timeout: float = PCI_DOE_TIMEOUT,
    ) -> None:
        """Drive the DOE capability at `pos`.

        `name` is the function's, for messages; `timeout` is in seconds.
        """
        self._config = config
        self._stream = config if isinstance(config, ConfigStream) else None
        self._pos = pos
        self._label = f"{name}: DOE [{pos:x}]" if name else f"DOE [{pos:x}]"
        self._sleep = sleep
        self._fault = fault
        self._timeout = timeout
        self._turn = threading.Lock()
        self._features: list[Feature] | None = None
        self._cancelled = False
        self._dead = False

    def exchange(self, vendor: int, kind: int, payload: bytes) -> bytes:
        """Send a data object, zero-padded to dwords, and return the payload of the response.

        As ``pci_doe()``. Raises OSError: EINVAL for a feature that discovery did not list, EBUSY
        when somebody else uses the mailbox, EIO when the instance reports an error, answers with
        another object or not in time, or is cancelled or dead; and what `sleep` and `fault` raise.
        """
        features = self.features() if self._features is None else self._features
        if (vendor, kind) not in features:
            fail(errno.EINVAL, f"{self._label}: no vendor {vendor:#x} type {kind:#x}")
        if self._fault is not None:
            self._fault()
        with self._taking_turn():
            return self._exchange(vendor, kind, payload)

    def features(self) -> list[Feature]:
        """Return what the mailbox handles, in its order; found by discovery at the first call.

        Discovery itself is always among them. Raises OSError as `exchange` does.
        """
        if self._features is None:
            with self._taking_turn():
                if self._features is None:
                    self._abort()
                    self._features = self._discover()
        return list(self._features)

    def cancel(self) -> None:
        """Fail the exchange under way and every later one with EIO, for a device that goes away."""
        self._dead = self._cancelled = True

    @contextlib.contextmanager
    def _taking_turn(self) -> Iterator[None]:
        while not self._turn.acquire(blocking=False):
            self._wait()
        try:
            yield
        finally:
            self._turn.release()

    def _discover(self) -> list[Feature]:
        header = self._config.read(self._pos, 4)
        version = 2 if field_get(PCI_EXT_CAP_VER_MASK, header) >= 2 else 0
        found: list[Feature] = []
        index = 0
        # The index has 8 bits: an instance that goes on longer is in a loop.
        for _ in range(256):
            request = field_prep(PCI_DOE_DATA_OBJECT_DISC_REQ_3_INDEX, index)
            request |= field_prep(PCI_DOE_DATA_OBJECT_DISC_REQ_3_VER, version)
            response = self._exchange(*_DISCOVERY, struct.pack("<I", request))
            if len(response) != 4:
                fail(errno.EIO, f"{self._label}: discovery response of {len(response)} bytes")
            (value,) = struct.unpack("<I", response)
            found.append(
                (
                    field_get(PCI_DOE_DATA_OBJECT_DISC_RSP_3_VID, value),
                    field_get(PCI_DOE_DATA_OBJECT_DISC_RSP_3_TYPE, value),
                )
            )
            index = field_get(PCI_DOE_DATA_OBJECT_DISC_RSP_3_NEXT_INDEX, value)
            if not index:
                return found if _DISCOVERY in found else [_DISCOVERY, *found]
        fail(errno.EIO, f"{self._label}: discovery does not end")

    def _exchange(self, vendor: int, kind: int, payload: bytes) -> bytes:
        if self._dead:
            fail(errno.EIO, f"{self._label}: mailbox is dead")
        request = _data_object(vendor, kind, payload)
        try:
            self._send(request)
            self._await_response()
            return self._receive(request[0])
        except BaseException:
            # Also when Ctrl-C ends the caller: the next one may be another process.
            try:
                self._abort()
            except OSError:
                self._dead = True
            raise

    def _send(self, request: tuple[int, ...]) -> None:
        status = self._read(PCI_DOE_STATUS)
        if status & PCI_DOE_STATUS_BUSY:
            fail(errno.EBUSY, f"{self._label}: another entity sends conflicting requests")
        if status & PCI_DOE_STATUS_ERROR:
            fail(errno.EIO, f"{self._label}: error before the request")
        self._write_all(request)
        self._write_control(PCI_DOE_CTRL_GO)

    def _await_response(self) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            status = self._read(PCI_DOE_STATUS)
            if status & PCI_DOE_STATUS_ERROR:
                fail(errno.EIO, f"{self._label}: request refused")
            if status & PCI_DOE_STATUS_DATA_OBJECT_READY:
                return
            if time.monotonic() > deadline:
                raise DoeTimeoutError(errno.EIO, f"{self._label}: no response in {self._timeout} s")
            self._wait()

    def _receive(self, expected: int) -> bytes:
        header = self._take()
        mask = PCI_DOE_DATA_OBJECT_HEADER_1_VID | PCI_DOE_DATA_OBJECT_HEADER_1_TYPE
        if header & mask != expected:
            fail(errno.EIO, f"{self._label}: expected object {expected:#x}, got {header:#x}")
        length = field_get(PCI_DOE_DATA_OBJECT_HEADER_2_LENGTH, self._take())
        length = length or PCI_DOE_MAX_LENGTH
        if length < 2:
            fail(errno.EIO, f"{self._label}: response of {length} dwords")
        dwords: list[int] = []
        # The length may be garbage, when somebody else took the response away meanwhile.
        for start in range(2, length - 1, _PORTION):
            self._check_ready()
            dwords += self._take_all(min(_PORTION, length - 1 - start))
        if length > 2:
            # An instance that ran out of data has cleared Ready before the last acknowledgement.
            self._check_ready()
            dwords.append(self._take())
        if self._read(PCI_DOE_STATUS) & PCI_DOE_STATUS_ERROR:
            fail(errno.EIO, f"{self._label}: error in the response")
        return struct.pack(f"<{len(dwords)}I", *dwords)

    def _check_ready(self) -> None:
        if not self._read(PCI_DOE_STATUS) & PCI_DOE_STATUS_DATA_OBJECT_READY:
            fail(errno.EIO, f"{self._label}: response ended early")

    def _take(self) -> int:
        dword = self._read(PCI_DOE_READ)
        self._write(PCI_DOE_READ, 0)
        return dword

    def _write_all(self, dwords: tuple[int, ...]) -> None:
        if self._stream is not None:
            self._stream.write_stream(self._pos + PCI_DOE_WRITE, dwords)
            return
        for dword in dwords:
            self._write(PCI_DOE_WRITE, dword)

    def _take_all(self, count: int) -> list[int]:
        if self._stream is not None:
            return self._stream.read_stream(self._pos + PCI_DOE_READ, count)
        return [self._take() for _ in range(count)]

    def _abort(self) -> None:
        deadline = time.monotonic() + self._timeout
        self._write_control(PCI_DOE_CTRL_ABORT)
        while self._read(PCI_DOE_STATUS) & (PCI_DOE_STATUS_ERROR | PCI_DOE_STATUS_BUSY):
            if self._cancelled or time.monotonic() > deadline:
                fail(errno.EIO, f"{self._label}: abort timed out")
            # Not self._sleep: the caller may have given up, the mailbox still needs its reset.
            time.sleep(PCI_DOE_POLL_INTERVAL)

    def _wait(self) -> None:
        if self._cancelled:
            fail(errno.EIO, f"{self._label}: cancelled")
        self._sleep(PCI_DOE_POLL_INTERVAL)

    def _read(self, register: int) -> int:
        return self._config.read(self._pos + register, 4)

    def _write(self, register: int, value: int) -> None:
        self._config.write(self._pos + register, 4, value)

    def _write_control(self, bits: int) -> None:
        self._write(PCI_DOE_CTRL, bits)
