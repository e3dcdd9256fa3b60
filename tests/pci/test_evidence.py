# SPDX-License-Identifier: MIT
"""Evidence of a context: filling it, reading it, losing it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator

import pytest

from tsmfs import description
from tsmfs.base.kobject import File, find
from tsmfs.machine import Machine
from tsmfs.pci.evidence import (
    EVIDENCE_OBJECT_MAX,
    EvidenceType,
    PciEvidence,
    PciTsmEvidence,
)
from tsmfs.pci.tsm import PciTsm, PciTsmLinkOps

F0 = "10000:01:00.0"
F1 = "10000:01:00.1"


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(*description.find("devsec"))
    machine.boot()
    write(machine, "/devices/faux/devsec_link_tsm/certs", b"C" * 4096)
    write(machine, "/devices/faux/devsec_link_tsm/transcript", b"T" * 100)
    yield machine
    machine.stop()


def write(machine: Machine, path: str, data: bytes) -> None:
    node = find(machine.root, path)
    assert isinstance(node, File)
    node.write(0, data)


def raises(number: int, message: str, function: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=message or None) as caught:
        function()
    assert caught.value.errno == number


def test_a_connected_function_shows_the_blobs_and_nothing_else(machine: Machine) -> None:
    pdev = machine.pci.find_device(F0)
    assert pdev is not None
    machine.pci.tsm.connect(pdev, 0)
    reader = PciEvidence(machine.pci).open("pci", F0)
    assert reader.generation() == 1
    sizes = {kind: reader.object_size(kind) for kind in EvidenceType}
    assert sizes == {
        kind: {EvidenceType.CERT0: 4096, EvidenceType.MEASUREMENTS: 100}.get(kind, 0)
        for kind in EvidenceType
    }
    assert reader.read(EvidenceType.CERT0, 4090, 100) == b"C" * 6
    assert reader.read(EvidenceType.REPORT, 0, 100) == b""
    assert reader.digest(EvidenceType.MEASUREMENTS) == hashlib.sha384(b"T" * 100).digest()
    assert reader.digest(EvidenceType.REPORT) == b""


def test_a_locked_function_shows_them_as_well(machine: Machine) -> None:
    pdev = machine.pci.find_device(F1)
    assert pdev is not None
    machine.pci.tsm.lock(pdev, 1)
    reader = PciEvidence(machine.pci).open("pci", F1)
    assert reader.read(EvidenceType.MEASUREMENTS, 0, 4096) == b"T" * 100
    machine.pci.tsm.unlock(pdev, b"tsm1\n")
    raises(errno.ENXIO, "no TSM context", reader.generation)


def test_what_has_no_evidence_says_why(machine: Machine) -> None:
    evidence = PciEvidence(machine.pci)
    raises(errno.ENODEV, "device 'nothing' not found", lambda: evidence.open("pci", "nothing"))
    raises(errno.EOPNOTSUPP, "usb", lambda: evidence.open("usb", F0))
    dependent = evidence.open("pci", F1)
    raises(errno.ENXIO, "no TSM context", dependent.generation)
    pdev = machine.pci.find_device(F0)
    assert pdev is not None
    machine.pci.tsm.connect(pdev, 0)
    raises(errno.ENXIO, "no evidence available", dependent.generation)


def test_a_later_context_is_an_update_to_who_began_with_an_earlier(machine: Machine) -> None:
    pdev = machine.pci.find_device(F0)
    assert pdev is not None
    machine.pci.tsm.connect(pdev, 0)
    reader = PciEvidence(machine.pci).open("pci", F0)
    assert reader.generation() == 1
    machine.pci.tsm.disconnect(pdev, b"tsm0\n")
    machine.pci.tsm.connect(pdev, 0)
    raises(errno.EAGAIN, "evidence updated during read", reader.generation)
    assert PciEvidence(machine.pci).open("pci", F0).generation() == 1


def test_the_samples_cannot_refresh(machine: Machine) -> None:
    pdev = machine.pci.find_device(F0)
    assert pdev is not None
    reader = PciEvidence(machine.pci).open("pci", F0)
    raises(errno.ENXIO, "no TSM context", lambda: reader.refresh(b"n"))
    machine.pci.tsm.connect(pdev, 0)
    raises(errno.EOPNOTSUPP, "", lambda: reader.refresh(b"n"))


def test_a_refresh_makes_a_new_generation_and_revokes_a_validation(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refresh(self: PciTsmLinkOps, tsm: PciTsm, nonce: bytes) -> None:
        tsm.evidence.update({EvidenceType.MEASUREMENTS: nonce})

    monkeypatch.setattr(PciTsmLinkOps, "refresh_evidence", refresh)
    pdev = machine.pci.find_device(F0)
    assert pdev is not None
    machine.pci.tsm.connect(pdev, 0)
    reader = PciEvidence(machine.pci).open("pci", F0)
    reader.validate(1)
    assert pdev.tsm is not None
    evidence = pdev.tsm.evidence
    states = [evidence.is_validated]
    reader.refresh(b"nonce")
    assert reader.generation() == 2
    assert reader.read(EvidenceType.MEASUREMENTS, 0, 100) == b"nonce"
    assert reader.object_size(EvidenceType.CERT0) == 0
    states.append(evidence.is_validated)
    assert states == [True, False]
    raises(errno.EAGAIN, "", lambda: reader.validate(1))


def test_a_driver_that_raises_while_it_refreshes_gives_eio(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refresh(self: PciTsmLinkOps, tsm: PciTsm, nonce: bytes) -> None:
        raise ValueError("broken driver")

    monkeypatch.setattr(PciTsmLinkOps, "refresh_evidence", refresh)
    pdev = machine.pci.find_device(F0)
    assert pdev is not None
    machine.pci.tsm.connect(pdev, 0)
    reader = PciEvidence(machine.pci).open("pci", F0)
    raises(errno.EIO, "", lambda: reader.refresh(b"n"))
    assert reader.generation() == 1
    assert "broken driver" in machine.log.text()


def test_nothing_can_be_validated_before_there_is_evidence() -> None:
    evidence = PciTsmEvidence()
    raises(errno.EAGAIN, "", lambda: evidence.validate(0))
    assert not evidence.is_validated


def test_an_object_that_is_too_large_changes_nothing() -> None:
    evidence = PciTsmEvidence()
    evidence.update({EvidenceType.VCA: b"v"})
    raises(
        errno.EFBIG,
        "",
        lambda: evidence.update({EvidenceType.VCA: bytes(EVIDENCE_OBJECT_MAX + 1)}),
    )
    assert (evidence.generation, evidence.objects[EvidenceType.VCA]) == (1, b"v")
