# SPDX-License-Identifier: MIT
"""Data Object Exchange: the mailbox's registers, and the transport that drives them."""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsmfs.kernel.errors import fail
from tsmfs.pci import regs
from tsmfs.pci.capability import Doe, add_capabilities
from tsmfs.pci.config import ConfigSpace
from tsmfs.pci.doe import DoeMailbox, DoeTransport, Feature, Handler

POS = 0x100
CTRL, STATUS = POS + regs.PCI_DOE_CTRL, POS + regs.PCI_DOE_STATUS
WRITE, READ = POS + regs.PCI_DOE_WRITE, POS + regs.PCI_DOE_READ
CMA: Feature = (regs.PCI_VENDOR_ID_PCI_SIG, regs.PCI_DOE_FEATURE_CMA)
READY = regs.PCI_DOE_STATUS_DATA_OBJECT_READY
ERROR = regs.PCI_DOE_STATUS_ERROR
BUSY = regs.PCI_DOE_STATUS_BUSY


def echo(payload: bytes) -> bytes:
    return payload


def mailbox(
    protocols: Mapping[Feature, Handler] | None = None, doe: Doe | None = None
) -> ConfigSpace:
    config = ConfigSpace()
    add_capabilities(config, [doe or Doe()])
    DoeMailbox({CMA: echo} if protocols is None else protocols).attach(config, POS)
    return config


def send(config: ConfigSpace, *dwords: int) -> int:
    """Write dwords, set Go, return the status."""
    for dword in dwords:
        config.write(WRITE, 4, dword)
    config.write(CTRL, 4, regs.PCI_DOE_CTRL_GO)
    return config.read(STATUS, 4)


def receive(config: ConfigSpace) -> list[int]:
    dwords = []
    while config.read(STATUS, 4) & READY:
        dwords.append(config.read(READ, 4))
        config.write(READ, 4, 0)
    return dwords


def abort(config: ConfigSpace) -> int:
    config.write(CTRL, 4, regs.PCI_DOE_CTRL_ABORT)
    return config.read(STATUS, 4)


def header(feature: Feature, length: int) -> tuple[int, int]:
    return feature[0] | feature[1] << 16, length


def test_discovery_lists_itself_and_cma() -> None:
    config = mailbox()
    assert send(config, 0x0000_0001, 3, 0) == READY
    assert receive(config) == [0x0000_0001, 3, 0x0100_0001]
    assert send(config, 0x0000_0001, 3, 1) == READY
    assert receive(config) == [0x0000_0001, 3, 0x0001_0001]


def test_discovery_behind_the_last_index_names_no_vendor() -> None:
    config = mailbox()
    send(config, 0x0000_0001, 3, 2)
    assert receive(config)[2] == 0x0000_FFFF


def test_control_bits_read_as_zero() -> None:
    config = mailbox()
    for bit in (regs.PCI_DOE_CTRL_GO, regs.PCI_DOE_CTRL_ABORT):
        config.write(CTRL, 4, bit)
        assert config.read(CTRL, 4) == 0


@pytest.mark.parametrize(
    "request_dwords",
    [
        pytest.param((), id="nothing written"),
        pytest.param((0x0001_0001,), id="half a header"),
        pytest.param((*header(CMA, 4), 0), id="shorter than its length"),
        pytest.param((*header(CMA, 2), 0), id="longer than its length"),
        pytest.param((*header(CMA, 0), 0), id="length of the largest object"),
        pytest.param((*header((1, 2), 3), 0), id="unknown type"),
        pytest.param((*header((0x8086, 1), 3), 0), id="unknown vendor"),
        pytest.param((0x0000_0001, 2), id="discovery without an index"),
    ],
)
def test_an_object_that_is_not_understood_is_an_error_until_an_abort(
    request_dwords: tuple[int, ...],
) -> None:
    config = mailbox()
    assert send(config, *request_dwords) == ERROR
    assert config.read(READ, 4) == 0
    assert send(config, *header(CMA, 3), 7) == ERROR
    assert abort(config) == 0
    assert send(config, *header(CMA, 3), 7) == READY
    assert receive(config) == [*header(CMA, 3), 7]


def test_sending_before_the_response_was_read_is_an_error() -> None:
    config = mailbox()
    send(config, *header(CMA, 3), 7)
    assert send(config, *header(CMA, 3), 8) == ERROR


def test_abort_forgets_a_half_written_request_and_an_unread_response() -> None:
    config = mailbox()
    config.write(WRITE, 4, 0xDEAD)
    abort(config)
    assert send(config, *header(CMA, 3), 7) == READY
    config.write(READ, 4, 0)
    assert abort(config) == 0
    assert config.read(READ, 4) == 0


def test_acknowledging_nothing_changes_nothing() -> None:
    config = mailbox()
    config.write(READ, 4, 0)
    assert (config.read(READ, 4), config.read(STATUS, 4)) == (0, 0)


def test_reset_of_the_function_empties_the_mailbox() -> None:
    config = mailbox()
    send(config, *header(CMA, 3), 7)
    config.reset()
    assert (config.read(READ, 4), config.read(STATUS, 4)) == (0, 0)
    assert send(config, *header(CMA, 3), 8) == READY


def test_interrupt_status_is_set_only_when_enabled_and_cleared_by_a_one() -> None:
    config = mailbox(doe=Doe(interrupt_message=0))
    assert send(config, *header(CMA, 3), 7) == READY
    receive(config)
    config.write(CTRL, 4, regs.PCI_DOE_CTRL_INT_EN)
    for dword in (*header(CMA, 3), 7):
        config.write(WRITE, 4, dword)
    config.write(CTRL, 4, regs.PCI_DOE_CTRL_INT_EN | regs.PCI_DOE_CTRL_GO)
    assert config.read(STATUS, 4) == READY | regs.PCI_DOE_STATUS_INT_STATUS
    config.write(STATUS, 4, regs.PCI_DOE_STATUS_INT_STATUS)
    assert config.read(STATUS, 4) == READY


def test_without_interrupt_support_the_enable_bit_stays_clear() -> None:
    config = mailbox()
    config.write(CTRL, 4, regs.PCI_DOE_CTRL_INT_EN)
    assert config.read(CTRL, 4) == 0


def test_registers_can_be_read_while_a_handler_works_and_an_abort_drops_its_answer() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(_payload: bytes) -> bytes:
        started.set()
        go_on.wait(10)
        return b"late"

    config = mailbox({CMA: slow})
    sender = threading.Thread(target=send, args=(config, *header(CMA, 2)))
    sender.start()
    assert started.wait(10)
    seen = [config.read(STATUS, 4), abort(config)]
    go_on.set()
    sender.join(10)
    seen.append(config.read(STATUS, 4))
    assert seen == [BUSY, 0, 0]


def test_a_handler_that_crashes_is_logged_and_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def crash(_payload: bytes) -> bytes:
        raise KeyError("bug")

    config = mailbox({CMA: crash})
    with caplog.at_level(logging.ERROR):
        assert send(config, *header(CMA, 2)) == ERROR
    assert "KeyError" in caplog.text


def test_protocols_must_be_indexable_and_not_discovery() -> None:
    for protocols in (
        {(1, 0): echo},
        {(vendor, 1): echo for vendor in range(256)},
    ):
        with pytest.raises(ValueError, match="at most 255"):
            DoeMailbox(protocols)


# The OS side


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=50)
def test_payloads_cross_unchanged_but_padded(request_payload: bytes, response: bytes) -> None:
    seen: list[bytes] = []

    def handler(payload: bytes) -> bytes:
        seen.append(payload)
        return response

    transport = DoeTransport(mailbox({CMA: handler}), POS)
    answer = transport.exchange(*CMA, request_payload)
    assert seen == [request_payload + bytes(-len(request_payload) % 4)]
    assert answer == response + bytes(-len(response) % 4)


def test_features_are_found_once_in_the_order_of_the_mailbox() -> None:
    config = mailbox({CMA: echo, (1, 2): echo, (0x1234, 9): echo})
    send(config, *header(CMA, 3), 7)
    transport = DoeTransport(config, POS)
    expected = [(1, 0), CMA, (1, 2), (0x1234, 9)]
    assert transport.features() == expected
    config.on_write(CTRL, 4, lambda _old, _new: pytest.fail("discovered again"))
    assert transport.features() == expected


def test_all_255_protocols_are_discovered() -> None:
    protocols = {(vendor, 1): echo for vendor in range(2, 257)}
    assert DoeTransport(mailbox(protocols), POS).features() == [(1, 0), *protocols]


def failing(transport: DoeTransport, payload: bytes = b"\0\0\0\0") -> int | None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        transport.exchange(*CMA, payload)
    return caught.value.errno


def handler_failing_once(number: int) -> Handler:
    pending = [number]

    def handler(payload: bytes) -> bytes:
        if pending:
            fail(pending.pop())
        return payload

    return handler


@pytest.mark.parametrize("number", [errno.EACCES, errno.ETIMEDOUT])
def test_a_request_refused_or_never_answered_is_eio_and_the_next_one_works(number: int) -> None:
    transport = DoeTransport(mailbox({CMA: handler_failing_once(number)}), POS, timeout=0.02)
    assert failing(transport) == errno.EIO
    assert transport.exchange(*CMA, b"1234") == b"1234"


def test_a_feature_that_is_not_there_is_einval() -> None:
    transport = DoeTransport(mailbox(), POS, name="0000:01:00.0")
    with pytest.raises(OSError, match=r"0000:01:00.0: DOE \[100\]: .* type 0x2") as caught:
        transport.exchange(1, 2, b"")
    assert caught.value.errno == errno.EINVAL


def test_a_mailbox_in_use_by_another_is_ebusy() -> None:
    config = mailbox()
    transport = DoeTransport(config, POS)
    transport.features()
    config.set(STATUS, 4, BUSY)
    assert failing(transport) == errno.EBUSY
    assert transport.exchange(*CMA, b"1234") == b"1234"


def test_an_error_left_behind_is_eio_and_cleared() -> None:
    config = mailbox()
    transport = DoeTransport(config, POS)
    transport.features()
    config.set(STATUS, 4, ERROR)
    assert failing(transport) == errno.EIO
    assert transport.exchange(*CMA, b"") == b""


def test_an_object_too_large_is_eio() -> None:
    transport = DoeTransport(mailbox(), POS)
    transport.features()
    assert failing(transport, bytes(4 * (1 << 18))) == errno.EIO


class Scripted:
    """Registers of a mailbox that is always ready with these dwords."""

    size = 4096

    def __init__(self, dwords: list[int]) -> None:
        self.dwords = dwords
        self.taken = 0

    def read(self, pos: int, size: int) -> int:
        if pos == STATUS:
            return READY if self.dwords else 0
        return self.dwords[0] if pos == READ and self.dwords else 0

    def write(self, pos: int, size: int, value: int) -> None:
        if pos == READ:
            self.taken += 1
            if self.dwords:
                self.dwords.pop(0)


@pytest.mark.parametrize(
    "dwords",
    [
        pytest.param([0x0001_0001, 3, 0], id="another object"),
        pytest.param([0x0000_0001, 1, 0], id="length below the header"),
        pytest.param([0x0000_0001, 4, 0x0001_0001], id="less than its length"),
        pytest.param([0x0000_0001, 2], id="discovery without a feature"),
        pytest.param([0x0000_0001, 3, 0x0501_0001] * 300, id="discovery that never ends"),
    ],
)
def test_a_malformed_response_is_eio(dwords: list[int]) -> None:
    with pytest.raises(OSError, match=r"DOE \[100\]") as caught:
        DoeTransport(Scripted(dwords), POS, timeout=0.05).features()
    assert caught.value.errno == errno.EIO


def test_a_response_that_somebody_else_took_away_is_not_waited_for() -> None:
    # The length of the largest object there is, and nothing behind it.
    config = Scripted([0x0000_0001, 0, 1])
    with pytest.raises(OSError, match="ended early"):
        DoeTransport(config, POS).features()
    assert config.taken < 1000


def test_the_largest_object_crosses() -> None:
    payload = os.urandom(4 * ((1 << 18) - 2))
    assert DoeTransport(mailbox(), POS).exchange(*CMA, payload) == payload


def test_a_mailbox_that_cannot_abort_is_dead_for_good() -> None:
    config = mailbox()
    transport = DoeTransport(config, POS, timeout=0.02)
    transport.features()
    config.on_read(STATUS, 4, lambda _value: ERROR)
    assert failing(transport) == errno.EIO
    config.on_read(STATUS, 4, lambda _value: 0)
    with pytest.raises(OSError, match="dead"):
        transport.exchange(*CMA, b"")


def test_a_caller_that_gives_up_frees_the_mailbox() -> None:
    def sleep(_seconds: float) -> None:
        fail(errno.EINTR)

    config = mailbox({CMA: handler_failing_once(errno.ETIMEDOUT)})
    transport = DoeTransport(config, POS, sleep=sleep)
    assert failing(transport) == errno.EINTR
    assert transport.exchange(*CMA, b"1234") == b"1234"


class Interrupted:
    """Registers at which Ctrl-C comes once, in the access number *at*."""

    def __init__(self, config: ConfigSpace, at: int, *, done: bool) -> None:
        self.size = config.size
        self._config = config
        self._left = at
        self._done = done

    def _access(self, *, done: bool) -> None:
        if done is self._done:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt

    def read(self, pos: int, size: int) -> int:
        self._access(done=False)
        value = self._config.read(pos, size)
        self._access(done=True)
        return value

    def write(self, pos: int, size: int, value: int) -> None:
        self._access(done=False)
        self._config.write(pos, size, value)
        self._access(done=True)


@pytest.mark.parametrize("done", [False, True], ids=["before the access", "after it"])
def test_ctrl_c_anywhere_leaves_the_mailbox_to_the_next_one(done: bool) -> None:
    config = mailbox()
    other = DoeTransport(config, POS)
    other.features()
    for at in range(1, 100):
        transport = DoeTransport(Interrupted(config, at, done=done), POS)
        try:
            transport.exchange(*CMA, b"1234")
        except KeyboardInterrupt:
            assert other.exchange(*CMA, b"5678") == b"5678", at
            assert transport.exchange(*CMA, b"1234") == b"1234"
        else:
            break
    # Discovery of two features and the exchange, every access of them.
    assert 30 < at < 99


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_waiting_caller_can_give_up_while_another_is_served() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(payload: bytes) -> bytes:
        started.set()
        go_on.wait(10)
        return payload

    def sleep(_seconds: float) -> None:
        fail(errno.EINTR)

    transport = DoeTransport(mailbox({CMA: slow}), POS, sleep=sleep)
    transport.features()
    served: list[bytes] = []
    first = in_thread(lambda: served.append(transport.exchange(*CMA, b"1234")))
    assert started.wait(10)
    assert failing(transport) == errno.EINTR
    go_on.set()
    first.join(10)
    assert served == [b"1234"]


def test_exchanges_of_many_threads_do_not_mix() -> None:
    transport = DoeTransport(mailbox(), POS)
    wrong: list[bytes] = []

    def work(number: int) -> None:
        for count in range(20):
            payload = struct.pack("<II", number, count) * 4
            if transport.exchange(*CMA, payload) != payload:
                wrong.append(payload)

    threads = [in_thread(partial(work, number)) for number in range(4)]
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_cancelling_ends_the_exchange_under_way_and_refuses_later_ones() -> None:
    config = mailbox({CMA: handler_failing_once(errno.ETIMEDOUT)})
    transport = DoeTransport(config, POS, timeout=30)
    transport.features()
    numbers: list[int | None] = []
    waiting = in_thread(lambda: numbers.append(failing(transport)))
    while not config.read(STATUS, 4) & BUSY:
        time.sleep(0.001)
    transport.cancel()
    waiting.join(10)
    numbers.append(failing(transport))
    assert numbers == [errno.EIO, errno.EIO]


def test_an_injected_fault_reaches_the_caller_as_it_is() -> None:
    faults = [errno.ENOMEM]

    def fault() -> None:
        if faults:
            fail(faults.pop())

    transport = DoeTransport(mailbox(), POS, fault=fault)
    assert failing(transport) == errno.ENOMEM
    assert transport.exchange(*CMA, b"1234") == b"1234"


def test_a_certificate_chain_crosses_in_one_object() -> None:
    chain = os.urandom(1 << 16)
    transport = DoeTransport(mailbox({CMA: lambda _payload: chain}), POS)
    assert transport.exchange(*CMA, b"") == chain
