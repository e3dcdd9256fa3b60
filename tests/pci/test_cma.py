# SPDX-License-Identifier: MIT
"""Devices with keys: their responders behind mailboxes, and where identities come from."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.machines import Shell, boot, fails, pci
from tsmfs.drivers.secure_world import DoeLink, cma_name_of
from tsmfs.pci import regs
from tsmfs.pci.cma import HONEST, CmaDevice, Disguise
from tsmfs.pci.doe import DoeTransport
from tsmfs.spdm import tamper
from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.certificates import Chain, cma_name
from tsmfs.spdm.exchange import VerificationError
from tsmfs.spdm.identity import Slot
from tsmfs.spdm.measurements import Measurement, MeasurementKind, parse_record
from tsmfs.spdm.messages import Code, ErrorCode, SpdmError
from tsmfs.spdm.requester import Requester, Session
from tsmfs.spdm.responder import SigningJob, sign
from tsmfs.spdm.transcript import SigningContext
from tsmfs.spdm.vendor import PciProtocol

NIC, NVME = "0000:01:00.0", "0000:81:00.0"
GET_VERSION = bytes((0x10, Code.GET_VERSION, 0, 0))
BUSY, ERROR = regs.PCI_DOE_STATUS_BUSY, regs.PCI_DOE_STATUS_ERROR
READY = regs.PCI_DOE_STATUS_DATA_OBJECT_READY

ENDPOINT = """
[[host_bridge]]
[[host_bridge.root_port]]
slot = {slot}
[[host_bridge.root_port.endpoint]]
doe = true
"""


def endpoint(cma: str = "cma = true", *, head: str = "", slot: int = 1) -> str:
    return head + ENDPOINT.format(slot=slot) + cma + "\n"


def device(sh: Shell, name: str = "0000:01:00.0") -> CmaDevice:
    cma = sh.dev(name).hw.cma
    assert cma is not None
    return cma


def chain(sh: Shell, name: str = "0000:01:00.0", slot: int = 0) -> tuple[x509.Certificate, ...]:
    return device(sh, name).identity.slots[slot].certificates


def requester(sh: Shell, name: str = NIC) -> Requester:
    link = DoeLink(sh.dev(name).doe_mailboxes[0])
    return Requester(link)


@pytest.fixture
def sh() -> Shell:
    return boot("server", ["pci_pf_stub"])


@pytest.fixture
def session(sh: Shell) -> Session:
    return open_session(sh)


def open_session(sh: Shell, name: str = NIC) -> Session:
    one = requester(sh, name)
    one.connect()
    return one.key_exchange()


# Identity


def test_nothing_is_made_before_a_request_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("tsmfs.spdm.identity.derive_key", lambda *a: made.append(a))
    sh = boot("server")
    assert made == []
    assert [sh.dev(name).hw.cma._responder for name in (NIC, NVME)] == [None, None]  # type: ignore[union-attr]


def test_the_leaf_names_the_function(sh: Shell) -> None:
    for name in (NIC, NVME, "0000:02:00.0", "0000:00:08.0"):
        assert cma_name(chain(sh, name)[-1]) == cma_name_of(sh.dev(name))


def test_the_same_machine_has_the_same_keys_again() -> None:
    assert chain(boot("server")) == chain(boot("server"))


@pytest.mark.parametrize(
    ("one", "two", "same_root"),
    [
        (endpoint(head="seed = 1\n"), endpoint(head="seed = 2\n"), False),
        (endpoint(head="name = 'a'\n"), endpoint(head="name = 'b'\n"), False),
        (endpoint(head="name = 'a'\nseed = 7\n"), endpoint(head="name = 'b'\nseed = 7\n"), True),
        (endpoint("cma = { seed = 7 }"), endpoint("cma = { seed = 8 }"), False),
        (endpoint("cma = { seed = 7 }"), endpoint(head="seed = 7\n"), True),
    ],
)
def test_keys_come_from_the_seed_or_the_name_of_the_machine(
    one: str, two: str, same_root: bool
) -> None:
    first, second = chain(boot(one)), chain(boot(two))
    assert (first[0] == second[0]) is same_root
    assert (first == second) is same_root


def test_equal_devices_have_different_keys_under_one_root() -> None:
    text = endpoint() + endpoint(slot=2).replace("[[host_bridge]]\n", "")
    sh = boot(text)
    one, two = chain(sh), chain(sh, "0000:02:00.0")
    assert one[0] == two[0]
    assert one[-1].public_key() != two[-1].public_key()


def test_the_description_tells_algorithms_slots_and_versions() -> None:
    sh = boot(
        endpoint(
            'cma = { key = "ecdsa-p256", hash = "sha-512", slots = [0, 5], versions = ["1.2"] }'
        )
    )
    one = requester(sh, "0000:01:00.0")
    one.connect()
    assert (one.version, one.algorithms.base_asym, one.algorithms.base_hash) == (
        0x12,
        BaseAsym.ECDSA_P256,
        BaseHash.SHA_512,
    )
    assert set(one.digests()) == {0, 5}


def test_measurements_are_those_of_the_description() -> None:
    sh = boot(
        endpoint(
            """cma = { measurements = [
                { index = 7, kind = "version", value = "1.2.3" },
                { index = 253, kind = "manifest", value = "all" },
                { index = 2, kind = "rom", value = "boot" },
            ] }"""
        )
    )
    one = requester(sh, "0000:01:00.0")
    one.connect()
    blocks = parse_record(one.measurements(raw=True).record)
    assert [(block.index, block.kind, block.value) for block in blocks] == [
        (2, MeasurementKind.IMMUTABLE_ROM, b"boot"),
        (7, MeasurementKind.FIRMWARE_VERSION, b"1.2.3"),
        (253, MeasurementKind.MEASUREMENT_MANIFEST, b"all"),
    ]


def test_measurements_of_a_device_tell_what_it_is(sh: Shell) -> None:
    one = requester(sh)
    one.connect()
    blocks = parse_record(one.measurements(raw=True).record)
    assert [block.index for block in blocks] == [1, 2, 3, 4, 253]
    assert [block.kind for block in blocks] == [0, 1, 2, 3, 4]
    assert all(b"1af4:1041" in block.value for block in blocks[:4])


# PEM files


@dataclass
class Pem:
    """PEM files of a device elsewhere, and a machine that names them."""

    directory: Path

    def __post_init__(self) -> None:
        slot = device(boot(endpoint(head="seed = 99\n"))).identity.slots[0]
        pems = [one.public_bytes(Encoding.PEM) for one in slot.certificates]
        (self.directory / "chain.pem").write_bytes(b"".join(pems))
        key = slot.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.directory / "key.pem").write_bytes(key)
        (self.directory / "key.pem").chmod(0o600)
        self.slot = slot
        self.secret = key

    def boot(self) -> Shell:
        path = self.directory / "lab.toml"
        files = '{ slot = 3, chain = "chain.pem", key = "key.pem" }'
        path.write_text(endpoint(f"cma = {{ files = [{files}] }}"))
        return boot(str(path))


@pytest.fixture
def pem(tmp_path: Path) -> Pem:
    return Pem(tmp_path)


def test_an_identity_may_come_from_pem_files_next_to_the_description(pem: Pem) -> None:
    sh = pem.boot()
    assert chain(sh, slot=3) == pem.slot.certificates
    one = requester(sh, "0000:01:00.0")
    one.slot = 3
    one.connect()
    assert set(one.digests()) == {3}
    one.challenge()
    assert "others than its owner" not in sh.dmesg()


def test_a_key_that_others_may_read_is_told(pem: Pem) -> None:
    (pem.directory / "key.pem").chmod(0o644)
    assert "key.pem: mode 0644, others than its owner may use the key" in pem.boot().dmesg()


def message(call: Callable[[], object], number: int) -> str:
    with pytest.raises(OSError) as info:  # noqa: PT011 - which one is told below
        call()
    assert info.value.errno == number
    return str(info.value.strerror)


def test_files_that_make_no_identity_end_the_start_with_their_names(pem: Pem) -> None:
    (pem.directory / "key.pem").write_bytes(b"garbage\n")
    text = message(pem.boot, errno.EINVAL)
    assert text == f"0000:01:00.0: {pem.directory}/key.pem has no private key that can be read"
    (pem.directory / "key.pem").unlink()
    text = message(pem.boot, errno.ENOENT)
    assert text == f"0000:01:00.0: {pem.directory}/key.pem: No such file or directory"


def test_a_key_of_somebody_else_is_refused(pem: Pem) -> None:
    other = device(boot(endpoint(head="seed = 98\n"))).identity.slots[0].key
    key = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (pem.directory / "key.pem").write_bytes(key)
    assert "is not the key of the leaf" in message(pem.boot, errno.EINVAL)


def test_private_keys_show_nowhere(pem: Pem) -> None:
    sh = pem.boot()
    one = requester(sh, "0000:01:00.0")
    one.slot = 3
    one.connect()
    one.challenge()
    cma = device(sh)
    shown = repr((cma, cma.identity, cma.nature, cma.nature.origin, cma.identity.slots[3]))
    shown += sh.dmesg() + sh.cat("/kernel/tsmfs/machine")
    body = "".join(pem.secret.decode().splitlines()[1:-1])
    number = format(cma.identity.slots[3].key.private_numbers().private_value, "x")  # type: ignore[union-attr]
    assert body[:24] not in shown
    assert number[:16] not in shown
    assert "seed=" not in shown


# The mailbox


def test_discovery_lists_spdm_in_the_clear_and_secured(sh: Shell) -> None:
    assert sh.dev(NIC).doe_mailboxes[0].features() == [(1, 0), (1, 1), (1, 2)]


@dataclass
class Registers:
    """A mailbox driven by hand through the file ``config``."""

    sh: Shell
    name: str = NIC

    def __post_init__(self) -> None:
        mailbox = self.sh.dev(self.name).doe_mailboxes[0]
        mailbox.features()
        self.pos = mailbox._pos
        self.path = f"{pci(self.name)}/config"

    def read(self, register: int) -> int:
        return int.from_bytes(self.sh.read(self.path, self.pos + register, 4), "little")

    def write(self, register: int, value: int) -> None:
        self.sh.write(self.path, value.to_bytes(4, "little"), self.pos + register)

    @property
    def status(self) -> int:
        return self.read(regs.PCI_DOE_STATUS)

    def begin(self, kind: int, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % 4)
        dwords = [1 | kind << 16, 2 + len(padded) // 4]
        dwords += [int.from_bytes(padded[at : at + 4], "little") for at in range(0, len(padded), 4)]
        for dword in dwords:
            self.write(regs.PCI_DOE_WRITE, dword)

    def send(self, kind: int, payload: bytes) -> int:
        self.begin(kind, payload)
        self.write(regs.PCI_DOE_CTRL, regs.PCI_DOE_CTRL_GO)
        return self.status

    def receive(self) -> bytes:
        dwords = []
        while self.status & READY:
            dwords.append(self.read(regs.PCI_DOE_READ))
            self.write(regs.PCI_DOE_READ, 0)
        return b"".join(dword.to_bytes(4, "little") for dword in dwords[2:])

    def abort(self) -> int:
        self.write(regs.PCI_DOE_CTRL, regs.PCI_DOE_CTRL_ABORT)
        return self.status


def test_user_space_speaks_spdm_through_config(sh: Shell) -> None:
    mailbox = Registers(sh)
    assert mailbox.send(1, GET_VERSION) == READY
    answer = mailbox.receive()
    assert answer[:2] == bytes((0x10, Code.VERSION))


def test_whoever_begins_a_connection_ends_the_sessions_of_the_other(
    sh: Shell, session: Session
) -> None:
    session.digests()
    Registers(sh).send(1, GET_VERSION)
    Registers(sh).receive()
    with fails(errno.EIO):
        session.digests()
    assert session.ended
    open_session(sh).digests()


def test_a_secured_message_of_no_session_is_an_error_until_an_abort(sh: Shell) -> None:
    mailbox = Registers(sh)
    assert mailbox.send(2, bytes(32)) == ERROR
    assert mailbox.send(1, GET_VERSION) == ERROR
    assert mailbox.abort() == 0
    assert mailbox.send(1, GET_VERSION) == READY


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\0", bytes(range(64)), bytes(70000)])
def test_what_is_no_request_is_answered_with_an_error_of_spdm(sh: Shell, payload: bytes) -> None:
    answer = sh.dev(NIC).doe_mailboxes[0].exchange(1, 1, payload)
    assert answer[1] == Code.ERROR


def test_a_request_longer_than_a_data_object_is_refused(sh: Shell) -> None:
    config = sh.dev(NIC).config
    mailbox = Registers(sh)
    config.write_stream(mailbox.pos + regs.PCI_DOE_WRITE, [0x10001, 0, *([0] * (1 << 18))])
    mailbox.write(regs.PCI_DOE_CTRL, regs.PCI_DOE_CTRL_GO)
    assert mailbox.status == ERROR
    assert mailbox.abort() == 0


def test_an_abort_in_the_middle_of_a_request_or_response_leaves_the_connection(sh: Shell) -> None:
    one = requester(sh)
    one.connect()
    mailbox = Registers(sh)
    mailbox.begin(1, GET_VERSION)
    assert mailbox.abort() == 0
    one.digests()
    digests = bytes((one.version, Code.GET_DIGESTS, 0, 0))
    assert mailbox.send(1, digests) == READY
    mailbox.read(regs.PCI_DOE_READ)
    mailbox.write(regs.PCI_DOE_READ, 0)
    assert mailbox.abort() == 0
    one.digests()


@pytest.fixture
def slow(sh: Shell) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A device that takes its time: it has begun, and it may end."""
    begun, go_on = threading.Event(), threading.Event()

    def transform(request: bytes, response: bytes) -> bytes:
        begun.set()
        go_on.wait(10)
        return response

    device(sh).responder.transform = transform
    yield begun, go_on
    go_on.set()


def test_a_second_user_of_a_busy_mailbox_is_told_so(
    sh: Shell, slow: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow
    mine = Registers(sh)
    other = DoeTransport(sh.dev(NIC).config, mine.pos)
    other._features = [(1, 0), (1, 1), (1, 2)]
    thread = threading.Thread(target=mine.send, args=(1, GET_VERSION))
    thread.start()
    assert begun.wait(10)
    assert sh.dev(NIC).config.read(mine.pos + regs.PCI_DOE_STATUS, 4) == BUSY
    with fails(errno.EBUSY):
        other._send((0x10001, 3, 0))
    go_on.set()
    thread.join()


def test_an_abort_discards_the_response_of_a_request_under_way(
    sh: Shell, slow: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow
    mailbox = Registers(sh)
    thread = threading.Thread(target=mailbox.send, args=(1, GET_VERSION))
    thread.start()
    assert begun.wait(10)
    assert mailbox.abort() == 0
    go_on.set()
    thread.join()
    assert mailbox.status == 0


# Resets


def reset(sh: Shell) -> None:
    sh.echo("1", f"{pci(NIC)}/reset")


def unplug(sh: Shell) -> None:
    sh.echo(NIC, "/kernel/tsmfs/unplug")
    sh.echo(NIC, "/kernel/tsmfs/plug")


@pytest.mark.parametrize("event", [reset, unplug])
def test_a_reset_ends_connection_and_sessions(
    sh: Shell, session: Session, event: Callable[[Shell], None]
) -> None:
    event(sh)
    assert device(sh).responder.sessions == {}
    with pytest.raises((SpdmError, OSError)):
        session.digests()
    stale = requester(sh)
    answer = sh.dev(NIC).doe_mailboxes[0].exchange(1, 1, bytes((0x13, Code.GET_DIGESTS, 0, 0)))
    assert answer[1:3] == bytes((Code.ERROR, ErrorCode.REQUEST_RESYNCH))
    stale.connect()


def test_a_reset_while_a_request_is_under_way_does_not_wait_for_ever(
    sh: Shell, slow: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow
    first = threading.Thread(target=Registers(sh).send, args=(1, GET_VERSION))
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=reset, args=(sh,))
    second.start()
    go_on.set()
    first.join(10)
    second.join(10)
    assert not first.is_alive()
    assert not second.is_alive()
    assert Registers(sh).status & (BUSY | READY) == 0


# Vendor-defined messages


def test_tdisp_is_there_always_and_ide_km_with_ide(sh: Shell) -> None:
    assert set(device(sh, NIC).vendor) == {PciProtocol.IDE_KM, PciProtocol.TDISP}
    assert set(device(sh, "0000:00:08.0").vendor) == {PciProtocol.TDISP}


# Tampering


def test_another_identity_ends_the_connection_and_is_presented_from_then_on(sh: Shell) -> None:
    session = open_session(sh)
    device(sh).tamper(Disguise(identity=tamper.foreign(device(sh).nature.origin)))
    with pytest.raises((SpdmError, OSError)):
        session.digests()
    one = requester(sh)
    one.connect()
    foreign = Chain.parse(one.certificate(), one.algorithms.base_hash).certificates[0]
    device(sh).tamper(HONEST)
    one.connect()
    own = Chain.parse(one.certificate(), one.algorithms.base_hash).certificates[0]
    assert own == chain(sh)[0] != foreign


def test_other_measurements_keep_the_session(sh: Shell, session: Session) -> None:
    before = session.measurements().record
    changed = (Measurement(2, MeasurementKind.MUTABLE_FIRMWARE, b"changed"),)
    device(sh).tamper(Disguise(measurements=lambda: changed))
    assert session.measurements().record != before
    device(sh).tamper(HONEST)
    assert session.measurements().record == before


def test_a_signer_may_lie_for_one_purpose(sh: Shell) -> None:
    def signer(slot: Slot, job: SigningJob) -> bytes:
        signature = sign(slot, job)
        return bytes(len(signature)) if job.context is SigningContext.MEASUREMENTS else signature

    device(sh).tamper(Disguise(signer=signer))
    session = open_session(sh)
    with pytest.raises(VerificationError):
        session.measurements(sign=True)
