# SPDX-License-Identifier: MIT
"""Evidence of a device is verified, and each thing that is wrong with it found by its own check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm import tamper
from tsmfs.spdm.algorithms import BaseAsym, BaseHash, Offer
from tsmfs.spdm.certificates import Chain, CmaName
from tsmfs.spdm.identity import (
    NOT_BEFORE,
    Identity,
    Origin,
    Subject,
    make_identity,
    root_certificate,
    root_pem,
)
from tsmfs.spdm.measurements import Measurement, MeasurementKind
from tsmfs.spdm.messages import GetMeasurements, Measurements, Version
from tsmfs.spdm.requester import Requester
from tsmfs.spdm.responder import Responder
from tsmfs.spdm.tdisp import InterfaceInfo, MmioRange, RangeAttributes, Report
from tsmfs.spdm.transcript import SigningContext, l1, signing_message
from tsmfs.verify import (
    Check,
    CheckName,
    DeviceFacts,
    Evidence,
    load,
    load_roots,
    parse_measurements,
    parse_vca,
    verify_evidence,
)

SEED = bytes(range(32))
SERIAL = bytes.fromhex("0123456789abcdef")
SUBJECT = Subject(0x1234, 0x5678, 0xABCD, 0x00EF, 0x010802, 0x01, SERIAL, "0000:01:00.0")
NOW = datetime(2026, 7, 1, tzinfo=UTC)
NONCE = bytes(range(0x80, 0xA0))
P256 = (BaseAsym.ECDSA_P256, BaseHash.SHA_256)
ROOT = root_certificate(SEED, *P256)

_MEM = 0x00040200
_IO = 0x00040101
DEVICE = DeviceFacts(
    SUBJECT.cma_name,
    (
        (0xFE000000, 0xFE00FFFF, _MEM),
        (0, 0, 0),
        (0xFE010000, 0xFE013FFF, _MEM),
        (0, 0, 0),
        (0x1000, 0x103F, _IO),
        (0, 0, 0),
        (0xFE020000, 0xFE02FFFF, 0x00046200),
    ),
)
REPORT = Report(
    interface_info=InterfaceInfo.NO_FW_UPDATE | InterfaceInfo.DMA_WITHOUT_PASID,
    mmio_ranges=(
        MmioRange.of(0xFE000000, 0x10000, 0, attributes=0, range_id=0),
        MmioRange.of(0xFE010000, 0x1000, 0, attributes=RangeAttributes.MSIX_TABLE, range_id=2),
        MmioRange.of(0xFE011000, 0x3000, 0, attributes=0, range_id=2),
    ),
    device_info=b"device",
)
MEASURED = (
    Measurement(1, MeasurementKind.IMMUTABLE_ROM, b"rom"),
    Measurement(2, MeasurementKind.MUTABLE_FIRMWARE, b"firmware"),
    Measurement(3, MeasurementKind.SECURE_VERSION_NUMBER, bytes(8)),
)


@dataclass(frozen=True)
class Wire:
    """A transport to a responder in the same process."""

    responder: Responder

    def plain(self, request: bytes) -> bytes:
        """What the responder answers."""
        return self.responder.respond(request)

    def secured(self, record: bytes) -> bytes:
        """What the responder answers in its session."""
        return self.responder.respond_secured(record)


def collect(
    identity: Identity,
    *,
    slot: int = 0,
    version: int = Version.V1_2,
    nonce: bytes = NONCE,
    single: bool = False,
) -> Evidence:
    """What a TSM collects of a device: all signed, with `single` after two by themselves."""
    responder = Responder(identity, lambda: MEASURED, versions=(version,))
    offer = Offer(base_hash=(identity.base_hash,), base_asym=(identity.base_asym,))
    requester = Requester(Wire(responder), versions=(version,), offer=offer, slot=slot)
    requester.connect()
    chain = requester.certificate(slot)
    if single:
        for index in (1, 2):
            requester.measurements(index)
    measured = requester.measurements(sign=True, nonce=nonce)
    objects = {
        f"cert{slot}": chain,
        "vca": requester.vca,
        "measurements": measured.transcript,
        "report": REPORT.pack(),
    }
    return Evidence.of(objects, digests_of(objects))


def digests_of(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the TSM has as the digests of `objects`."""
    return {name: hashlib.sha384(content).digest() for name, content in objects.items() if content}


@cache
def sound() -> Evidence:
    """Evidence of an honest device, collected once."""
    return collect(make_identity(SEED, SUBJECT, *P256))


def checked(
    evidence: Evidence,
    *,
    root: x509.Certificate = ROOT,
    device: DeviceFacts | None = DEVICE,
    nonce: bytes | None = NONCE,
    reference: Mapping[int, bytes] | None = None,
    earlier: tuple[Evidence, ...] = (),
) -> dict[CheckName, Check]:
    """The table, as one makes it who knows the device."""
    table = verify_evidence(
        evidence,
        roots=[root],
        device=device,
        nonce=nonce,
        now=NOW,
        reference=reference,
        earlier=earlier,
    )
    assert [check.name for check in table] == list(CheckName)
    return {check.name: check for check in table}


def failures(table: Mapping[CheckName, Check]) -> dict[str, str]:
    """Names and reasons of the checks that failed."""
    return {check.name: check.reason for check in table.values() if check.ok is False}


def only_failure(table: Mapping[CheckName, Check], name: CheckName) -> str:
    """The reason of the check called `name`, which is the only one that failed."""
    found = failures(table)
    assert list(found) == [name]
    return found[name]


def reseal(evidence: Evidence, **objects: bytes) -> Evidence:
    """Evidence with other objects, and the digests that a TSM has for them."""
    changed = Evidence.of(evidence.objects | objects)
    return replace(changed, digests=digests_of(changed.objects))


def signed_anew(
    evidence: Evidence,
    change: Callable[[GetMeasurements, Measurements], tuple[GetMeasurements, Measurements]],
) -> Evidence:
    """Evidence whose only pair was changed and signed by the device itself."""
    negotiated = parse_vca(evidence.vca)
    (pair,) = parse_measurements(evidence.measurements, negotiated)
    request, response = change(pair.request, pair.response)
    sizes = negotiated.measurement_sizes
    asym, base_hash = negotiated.algorithms.base_asym, negotiated.algorithms.base_hash
    plain = request.pack() + response.pack(sizes)[: -sizes.signature]
    message = signing_message(
        negotiated.version, SigningContext.MEASUREMENTS, l1(base_hash, evidence.vca, plain)
    )
    key = make_identity(SEED, SUBJECT, *P256).slots[0].key
    return reseal(evidence, measurements=plain + asym.sign(key, message, base_hash))


# --- Sound evidence ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [Version.V1_2, Version.V1_3])
@pytest.mark.parametrize(
    ("base_asym", "base_hash"),
    [
        P256,
        (BaseAsym.ECDSA_P384, BaseHash.SHA_384),
        (BaseAsym.ECDSA_P384, BaseHash.SHA_512),
        (BaseAsym.RSAPSS_3072, BaseHash.SHA_256),
    ],
)
def test_evidence_of_an_honest_device_passes_every_check(
    base_asym: BaseAsym, base_hash: BaseHash, version: int
) -> None:
    evidence = collect(make_identity(SEED, SUBJECT, base_asym, base_hash), version=version)
    table = checked(
        evidence,
        root=root_certificate(SEED, base_asym, base_hash),
        reference={1: base_hash.digest(b"rom"), 3: bytes(8)},
    )
    assert [check for check in table.values() if check.ok is not True] == []
    assert table[CheckName.VCA].reason.startswith(f"SPDM 1.{version & 0xF}, {base_hash.name}, ")
    assert table[CheckName.NAME].reason == SUBJECT.cma_name.text
    assert table[CheckName.RECORD].reason == "3 measurements: 1, 2, 3"
    assert table[CheckName.RESOURCE].reason == "BAR 0, BAR 2, BAR 2"


@pytest.mark.parametrize("version", [Version.V1_2, Version.V1_3])
def test_several_responses_may_be_signed_by_the_last(version: int) -> None:
    evidence = collect(make_identity(SEED, SUBJECT, *P256), version=version, single=True)
    table = checked(evidence)
    assert failures(table) == {}
    assert table[CheckName.MEASUREMENTS].reason.startswith("3 responses")


def test_another_slot_is_found_by_the_request() -> None:
    identity = make_identity(SEED, SUBJECT, *P256, slots=(0, 4))
    evidence = collect(identity, slot=4)
    both = Evidence.of(evidence.objects | {"cert0": identity.slots[0].chain})
    assert both.slot == 4
    assert failures(checked(both)) == {}


def test_what_was_not_asked_for_does_not_apply() -> None:
    evidence = replace(reseal(sound(), report=b""), digests={})
    table = checked(evidence, device=None, nonce=None)
    assert failures(table) == {}
    assert {name for name, check in table.items() if check.ok is None} == {
        CheckName.NAME,
        CheckName.NONCE,
        CheckName.REFERENCE,
        CheckName.DIGESTS,
        CheckName.REPORT,
        CheckName.RANGES,
        CheckName.RESOURCE,
    }
    assert table[CheckName.NONCE].reason == "none was asked for, so the evidence may be old"
    assert table[CheckName.REPORT].reason == "there is none: the interface is not locked"


def test_the_present_is_now_unless_told() -> None:
    table = {check.name: check for check in verify_evidence(sound(), roots=[ROOT])}
    assert table[CheckName.VALIDITY].ok


def test_an_offset_of_the_report_is_taken_off() -> None:
    offset = 0x7000_0000_0000
    moved = tuple(
        replace(one, first_page=one.first_page + (offset >> 12)) for one in REPORT.mmio_ranges
    )
    evidence = reseal(sound(), report=replace(REPORT, mmio_ranges=moved).pack())
    assert failures(checked(evidence, device=replace(DEVICE, mmio_offset=offset))) == {}
    assert list(failures(checked(evidence))) == [CheckName.RESOURCE]


# --- Evidence that was tampered with -----------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (tamper.expired, CheckName.VALIDITY, "was valid until 2024-03-31"),
        (tamper.self_signed, CheckName.ROOT, "is self-signed and no root"),
        (tamper.foreign, CheckName.ROOT, "is none of the roots"),
        (tamper.wrong_san, CheckName.NAME, "Device=5678:CC=010802:REV=01:SSVID=abcd:SSID=00ef:"),
    ],
)
def test_a_tampered_identity_fails_one_check(
    make: Callable[[Origin], Identity], name: CheckName, reason: str
) -> None:
    assert reason in only_failure(
        checked(collect(make(Origin(SEED, SUBJECT, *P256, slots=(0,))))), name
    )


def test_a_device_that_differs_in_anything_is_told_with_both_names() -> None:
    for other in (
        replace(SUBJECT.cma_name, revision=2),
        replace(SUBJECT.cma_name, serial=None),
        replace(SUBJECT.cma_name, subsystem=0),
    ):
        reason = only_failure(checked(sound(), device=replace(DEVICE, name=other)), CheckName.NAME)
        assert reason == f"{other.text} expected, {SUBJECT.cma_name.text} found"


def test_certificates_from_the_future_are_not_valid_yet() -> None:
    early = NOT_BEFORE - timedelta(seconds=1)
    table = verify_evidence(sound(), roots=[ROOT], now=early)
    assert [check.name for check in table if check.ok is False] == [CheckName.VALIDITY]


def test_a_gap_in_the_chain_fails_the_path() -> None:
    chain = Chain.parse(sound().chain, BaseHash.SHA_256)
    short = replace(chain, ders=(chain.ders[0], chain.ders[2])).pack()
    reason = only_failure(checked(reseal(sound(), cert0=short)), CheckName.PATH)
    assert reason.startswith("CN=0000:01:00.0 slot 0,O=tsmfs under CN=tsmfs root")


def test_a_leaf_of_another_algorithm_than_the_negotiated_fails() -> None:
    other = make_identity(SEED, SUBJECT, BaseAsym.ECDSA_P384, BaseHash.SHA_256)
    table = checked(
        reseal(sound(), cert0=other.slots[0].chain),
        root=root_certificate(SEED, BaseAsym.ECDSA_P384, BaseHash.SHA_256),
    )
    found = failures(table)
    assert list(found) == [CheckName.USAGE, CheckName.SIGNATURE]
    assert found[CheckName.USAGE] == "a key of ECDSA_P256 expected, ECDSA_P384 found"


def test_a_chain_of_another_device_fails_name_and_signature() -> None:
    other = make_identity(SEED, replace(SUBJECT, device=1), *P256)
    table = checked(reseal(sound(), cert0=other.slots[0].chain))
    assert list(failures(table)) == [CheckName.NAME, CheckName.SIGNATURE]


def test_a_bad_signature_fails_alone() -> None:
    measurements = bytearray(sound().measurements)
    measurements[-1] ^= 1
    table = checked(reseal(sound(), measurements=bytes(measurements)))
    assert "over VCA and bytes 0 to" in only_failure(table, CheckName.SIGNATURE)


def test_a_changed_measurement_fails_signature_and_reference() -> None:
    digest = hashlib.sha256(b"firmware").digest()
    other = hashlib.sha256(b"malware").digest()
    changed = sound().measurements.replace(digest, other)
    table = checked(reseal(sound(), measurements=changed), reference={2: digest})
    assert list(failures(table)) == [CheckName.SIGNATURE, CheckName.REFERENCE]


def test_a_measurement_that_the_device_signs_fails_the_reference_alone() -> None:
    expected = hashlib.sha256(b"other").digest()
    found = hashlib.sha256(b"firmware").digest()
    reason = only_failure(checked(sound(), reference={2: expected}), CheckName.REFERENCE)
    assert reason == f"measurement 2: {expected.hex()} expected, {found.hex()} found"
    reason = only_failure(checked(sound(), reference={9: expected}), CheckName.REFERENCE)
    assert reason.endswith("none found")


def test_a_downgraded_negotiation_fails_the_signature() -> None:
    vca = bytearray(sound().vca)
    # DataTransferSize of CAPABILITIES: it parses as well as before.
    vca[4 + 8 + 20 + 12] ^= 1
    table = checked(reseal(sound(), vca=bytes(vca)))
    assert CheckName.SIGNATURE in failures(table)
    assert CheckName.ROOT not in failures(table)


def test_a_stale_nonce_fails_the_nonce() -> None:
    table = checked(collect(make_identity(SEED, SUBJECT, *P256), nonce=bytes(32)))
    reason = only_failure(table, CheckName.NONCE)
    assert reason == f"{NONCE.hex()} expected, {bytes(32).hex()} found"


def test_a_nonce_put_into_an_old_transcript_fails_the_signature() -> None:
    old = collect(make_identity(SEED, SUBJECT, *P256), nonce=bytes(range(32)))
    faked = old.measurements.replace(bytes(range(32)), NONCE, 1)
    only_failure(checked(reseal(old, measurements=faked)), CheckName.SIGNATURE)


def test_a_replayed_transcript_fails_freshness() -> None:
    reason = only_failure(checked(sound(), earlier=(sound(),)), CheckName.FRESHNESS)
    assert reason.startswith("a new transcript expected")
    assert reason.endswith("found: replayed")
    other = collect(make_identity(SEED, SUBJECT, *P256))
    assert failures(checked(other, earlier=(sound(), Evidence({}, 0, b"x", b"y")))) == {}


def test_a_nonce_of_the_responder_that_comes_again_fails_freshness() -> None:
    again = signed_anew(sound(), lambda one, two: (replace(one, nonce=bytes(32)), two))
    reason = only_failure(checked(again, nonce=bytes(32), earlier=(sound(),)), CheckName.FRESHNESS)
    assert reason.startswith("a new nonce of the responder expected")


def test_measurements_that_changed_meanwhile_fail_freshness() -> None:
    evidence = signed_anew(sound(), lambda one, two: (one, replace(two, slot=0x10)))
    reason = only_failure(checked(evidence), CheckName.FRESHNESS)
    assert reason == "unchanged measurements expected, they changed meanwhile"


def test_a_responder_without_randomness_fails_freshness() -> None:
    evidence = signed_anew(sound(), lambda one, two: (one, replace(two, nonce=bytes(32))))
    assert only_failure(checked(evidence), CheckName.FRESHNESS).endswith("zeros found")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda two: replace(two, blocks=2), "2 measurements expected, 3 found"),
        (lambda two: replace(two, record=two.record + two.record[:39], blocks=4), "comes twice"),
        (lambda two: replace(two, record=two.record[:-1]), "measurement 3 has a wrong size"),
        (
            lambda two: replace(two, record=b"\1\1\x07\0\0\4\0abcd", blocks=1),
            "measurement 1: a digest of SHA_256 expected, 4 bytes found",
        ),
        (
            lambda two: replace(two, record=b"\0" + two.record[1:]),
            "an index from 1 to 254 expected, 0 found",
        ),
        (lambda two: replace(two, record=b"", blocks=0), "measurements expected, none found"),
    ],
)
def test_a_record_that_is_none_fails_alone(
    change: Callable[[Measurements], Measurements], reason: str
) -> None:
    evidence = signed_anew(sound(), lambda one, two: (one, change(two)))
    assert reason in only_failure(checked(evidence), CheckName.RECORD)


def test_another_measurement_than_the_one_asked_for_fails_the_record() -> None:
    evidence = signed_anew(sound(), lambda one, two: (replace(one, operation=2), two))
    reason = only_failure(checked(evidence), CheckName.RECORD)
    assert reason == "measurement 2 expected, [1, 2, 3] found"


def test_measurements_in_the_answer_to_their_number_fail_the_record() -> None:
    evidence = signed_anew(sound(), lambda one, two: (replace(one, operation=0), two))
    reason = only_failure(checked(evidence), CheckName.RECORD)
    assert reason == "a number alone expected, measurements [1, 2, 3] found"


def test_a_number_of_measurements_without_any_fails_the_record() -> None:
    evidence = signed_anew(
        sound(),
        lambda one, two: (replace(one, operation=0), replace(two, record=b"", blocks=0, total=3)),
    )
    reason = only_failure(checked(evidence), CheckName.RECORD)
    assert reason == "measurements expected, none found"


def test_a_measurement_that_changes_within_a_transcript_fails_the_record() -> None:
    values = [b"firmware", b"others", b"others"]
    responder = Responder(
        make_identity(SEED, SUBJECT, *P256),
        lambda: (Measurement(2, MeasurementKind.MUTABLE_FIRMWARE, values.pop(0)),),
    )
    requester = Requester(Wire(responder), offer=Offer(base_hash=(P256[1],), base_asym=(P256[0],)))
    requester.connect()
    chain = requester.certificate()
    requester.measurements()
    measured = requester.measurements(sign=True, nonce=NONCE).transcript
    objects = {"cert0": chain, "vca": requester.vca, "measurements": measured}
    found = failures(checked(Evidence.of(objects)))
    assert list(found) == [CheckName.FRESHNESS, CheckName.RECORD]
    assert found[CheckName.RECORD].startswith("measurement 2: ")


def test_opaque_data_that_is_too_long_fails_the_measurements() -> None:
    evidence = signed_anew(sound(), lambda one, two: (one, replace(two, opaque=bytes(1025))))
    reason = only_failure(checked(evidence), CheckName.MEASUREMENTS)
    assert reason == "1024 bytes of opaque data expected, 1025 found"


def test_measurements_from_another_slot_fail() -> None:
    evidence = signed_anew(sound(), lambda one, two: (one, replace(two, slot=1)))
    reason = failures(checked(evidence))[CheckName.MEASUREMENTS]
    assert reason == "slot 0 expected, [0, 1] found"


@pytest.mark.parametrize("name", ["cert0", "vca", "measurements", "report"])
def test_a_digest_of_something_else_fails_alone(name: str) -> None:
    evidence = replace(sound(), digests={**sound().digests, name: bytes(48)})
    reason = only_failure(checked(evidence), CheckName.DIGESTS)
    assert reason.startswith(f"{name}: {bytes(48).hex()} expected, ")


@pytest.mark.parametrize(
    ("digests", "reason"),
    [
        ({"cert3": bytes(48)}, "cert3: an object expected, none found"),
        ({"vca": bytes(20)}, "vca: a digest expected, 20 bytes found"),
    ],
)
def test_digests_without_objects_and_of_no_algorithm_fail(
    digests: dict[str, bytes], reason: str
) -> None:
    evidence = replace(sound(), digests={**sound().digests, **digests})
    assert only_failure(checked(evidence), CheckName.DIGESTS) == reason


def test_an_object_without_a_digest_fails() -> None:
    digests = {name: digest for name, digest in sound().digests.items() if name != "report"}
    reason = only_failure(checked(replace(sound(), digests=digests)), CheckName.DIGESTS)
    assert reason == "report: a digest expected, none found"


def _ranges(*ranges: MmioRange) -> bytes:
    return replace(REPORT, mmio_ranges=ranges).pack()


def _range(address: int, size: int) -> MmioRange:
    return MmioRange.of(address, size, 0, attributes=0, range_id=0)


@pytest.mark.parametrize(
    ("report", "name", "reason"),
    [
        (REPORT.pack()[:-1], CheckName.REPORT, "device_info needs 6 bytes"),
        (REPORT.pack() + b"\0", CheckName.REPORT, "1 bytes behind Report"),
        (
            REPORT.pack()[:2] + b"\1\0" + REPORT.pack()[4:],
            CheckName.REPORT,
            "reserved bytes of zero",
        ),
        (
            replace(REPORT, interface_info=0x8000).pack(),
            CheckName.REPORT,
            "INTERFACE_INFO: bits of 0x1f expected, 0x8000 found",
        ),
        (
            _ranges(replace(REPORT.mmio_ranges[0], attributes=0x10)),
            CheckName.REPORT,
            "attributes of range 0: bits of 0xf expected, 0x10 found",
        ),
        (
            _ranges(_range(0xFE000000, 0x3000), _range(0xFE002000, 0x1000)),
            CheckName.RANGES,
            "0xfe000000-0xfe002fff and 0xfe002000-0xfe002fff found",
        ),
        (
            _ranges(_range(0xFE000000, 0)),
            CheckName.RANGES,
            "pages from 0xfe000000 on expected, none found",
        ),
        (
            _ranges(_range(0xFE013000, 0x2000)),
            CheckName.RESOURCE,
            "0xfe013000-0xfe014fff found",
        ),
        (
            _ranges(_range(0xFE020000, 0x1000)),
            CheckName.RESOURCE,
            "a range in 0xfe000000-0xfe00ffff, 0xfe010000-0xfe013fff expected, "
            "0xfe020000-0xfe020fff found",
        ),
        (_ranges(_range(0x1000, 0x1000)), CheckName.RESOURCE, "0x1000-0x1fff found"),
        (
            _ranges(_range(0xFE010000, 0x1000)),
            CheckName.RESOURCE,
            "range ID 2 expected of 0xfe010000-0xfe010fff, 0 found",
        ),
    ],
)
def test_a_wrong_report_fails_the_check_it_concerns(
    report: bytes, name: CheckName, reason: str
) -> None:
    assert reason in only_failure(checked(reseal(sound(), report=report)), name)


def test_a_range_beyond_all_addresses_fails() -> None:
    report = _ranges(replace(REPORT.mmio_ranges[0], first_page=(1 << 52) - 1))
    found = failures(checked(reseal(sound(), report=report)))
    assert list(found) == [CheckName.RANGES, CheckName.RESOURCE]
    assert found[CheckName.RANGES].startswith("an end within 64 bits expected")


# --- Evidence that is not there, or is no evidence ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "check", "reason"),
    [
        ("vca", CheckName.VCA, "six messages expected, none found"),
        ("cert0", CheckName.CHAIN, "a chain in slot 0 expected, none found"),
        ("measurements", CheckName.MEASUREMENTS, "a request and its response expected, none found"),
    ],
)
def test_a_missing_object_fails_its_check_and_those_that_need_it_are_not_made(
    name: str, check: CheckName, reason: str
) -> None:
    table = checked(reseal(sound(), **{name: b""}))
    assert only_failure(table, check) == reason
    assert table[CheckName.SIGNATURE].ok is None
    assert table[CheckName.SIGNATURE].reason == f"not without {check}"


def test_measurements_without_a_signature_fail() -> None:
    identity = make_identity(SEED, SUBJECT, *P256)
    requester = Requester(Wire(Responder(identity, lambda: MEASURED)))
    requester.connect()
    objects = {
        "cert0": requester.certificate(0),
        "vca": requester.vca,
        "measurements": requester.measurements().transcript,
    }
    found = failures(checked(Evidence.of(objects)))
    assert found == {
        CheckName.SIGNATURE: "a signature behind the last response expected, none found",
        CheckName.NONCE: f"{NONCE.hex()} expected, none found: nothing is signed",
    }


def _vca(**changes: Callable[[bytes], bytes]) -> bytes:
    messages = _messages()
    for name, change in changes.items():
        messages[name] = change(messages[name])
    return b"".join(messages.values())


def _messages() -> dict[str, bytes]:
    vca = sound().vca
    sizes, names = [], ("get_version", "version", "get_capabilities", "capabilities", "ask")
    at = 0
    for size in (4, 6 + 2 * vca[4 + 5], 20, 20):
        sizes.append(vca[at : at + size])
        at += size
    size = int.from_bytes(vca[at + 4 : at + 6], "little")
    sizes.append(vca[at : at + size])
    return dict(zip(names, sizes, strict=True)) | {"answer": vca[at + size :]}


def _put(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda message: message[:offset] + value + message[offset + len(value) :]


@pytest.mark.parametrize(
    ("vca", "reason"),
    [
        (sound().vca + b"\0", "1 bytes behind ALGORITHMS"),
        (sound().vca[:-1], "an algorithm structure is cut off"),
        (_vca(version=_put(6, b"\0\x11")), "version 0x12 is none of those that VERSION has"),
        (_vca(get_version=_put(0, b"\x12")), "version 1.0 expected"),
        (_vca(answer=_put(0, b"\x13")), "AlgorithmsResponse of version 0x12 expected, 0x13 found"),
        (
            _vca(
                get_capabilities=_put(0, b"\x11"),
                capabilities=_put(0, b"\x11"),
                ask=_put(0, b"\x11"),
                answer=_put(0, b"\x11"),
            ),
            "version 0x12 or 0x13 expected, 0x11 found",
        ),
        (_vca(answer=_put(12, bytes(4))), "selects no hash or no signature"),
        (_vca(answer=_put(16, b"\2\0\0\0")), "hash: one of 0x1 expected, 0x2 found"),
        (
            _vca(ask=_put(12, b"\x03\0\0\0"), answer=_put(16, b"\3\0\0\0")),
            "hash: one known algorithm expected, 0x3 found",
        ),
    ],
)
def test_a_negotiation_that_is_none_fails_and_the_chain_is_still_checked(
    vca: bytes, reason: str
) -> None:
    table = checked(reseal(sound(), vca=vca))
    assert reason in only_failure(table, CheckName.VCA)
    assert all(table[name].ok for name in (CheckName.ROOT, CheckName.PATH, CheckName.NAME))


def test_capabilities_may_tell_the_supported_algorithms() -> None:
    evidence = collect(make_identity(SEED, SUBJECT, *P256), version=Version.V1_3)
    vca = evidence.vca
    at = 4 + 6 + 2 * vca[4 + 5] + 20
    block = b"\0\0" + (28).to_bytes(2, "little") + bytes(24)
    told = vca[: at + 2] + b"\1" + vca[at + 3 : at + 20] + block + vca[at + 20 :]
    assert parse_vca(told) == parse_vca(vca)


def test_no_bytes_make_it_raise() -> None:
    table = checked(Evidence({}, 0))
    assert set(failures(table)) == {
        CheckName.VCA,
        CheckName.CHAIN,
    }


@given(st.data())
def test_no_mutation_of_evidence_passes_or_raises(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["vca", "measurements"]))
    changed = bytearray(sound().objects[name])
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    assert failures(checked(reseal(sound(), **{name: bytes(changed)})))


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200), st.binary())
def test_any_bytes_give_a_table(
    vca: bytes, chain: bytes, measurements: bytes, report: bytes
) -> None:
    objects = {"vca": vca, "cert0": chain, "measurements": measurements, "report": report}
    assert failures(checked(Evidence.of(objects, digests_of(objects))))


@given(st.binary(max_size=200))
def test_any_transcript_is_read_or_refused(data: bytes) -> None:
    negotiated = parse_vca(sound().vca)
    try:
        pairs = parse_measurements(data, negotiated)
    except ValueError:
        return
    assert sum(pair.end for pair in pairs[-1:]) == len(data)


# --- Files -------------------------------------------------------------------------------------


def test_evidence_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    objects, digests = tmp_path / "objects", tmp_path / "digests"
    for directory, contents in ((objects, sound().objects), (digests, sound().digests)):
        directory.mkdir()
        for name in (*(f"cert{slot}" for slot in range(8)), "vca", "measurements", "report"):
            (directory / f"{name}.bin").write_bytes(contents.get(name, b""))
    (objects / "note.txt").write_text("not evidence")
    assert load(objects, digests) == sound()
    assert load(objects).digests == {}


def test_a_directory_without_evidence_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no evidence"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_roots_are_loaded_from_pem(tmp_path: Path) -> None:
    path = tmp_path / "roots.pem"
    path.write_bytes(root_pem(SEED, *P256) + root_pem(SEED))
    assert load_roots(path) == [ROOT, root_certificate(SEED)]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path}: no certificate in PEM"):
        load_roots(path)


def _sysfs(directory: Path, config: bytes) -> Path:
    values = {
        "vendor": "0x1234",
        "device": "0x5678",
        "class": "0x010802",
        "revision": "0x01",
        "subsystem_vendor": "0xabcd",
        "subsystem_device": "0x00ef",
    }
    for name, text in values.items():
        (directory / name).write_text(text + "\n")
    lines = [f"0x{start:016x} 0x{end:016x} 0x{flags:016x}" for start, end, flags in DEVICE.resource]
    (directory / "resource").write_text("\n".join(lines) + "\n")
    (directory / "config").write_bytes(config)
    return directory


def _config(*, header_type: int = 0, capability: int = 3, serial: bytes = SERIAL) -> bytes:
    config = bytearray(0x1000)
    config[0x0E] = header_type
    config[0x100:0x104] = (0x0001 | 1 << 16 | 0x140 << 20).to_bytes(4, "little")
    config[0x140:0x144] = (capability | 1 << 16).to_bytes(4, "little")
    config[0x144:0x14C] = serial[::-1]
    return bytes(config)


def test_the_facts_of_a_device_are_those_of_its_directory(tmp_path: Path) -> None:
    assert DeviceFacts.from_sysfs(_sysfs(tmp_path, _config(header_type=0x80))) == DEVICE
    assert [number for number, *_ in DEVICE.bars] == [0, 2]


@pytest.mark.parametrize(
    "config", [_config(capability=2), _config(serial=bytes(8)), _config()[:0x100]]
)
def test_a_device_without_a_serial_number_has_none(tmp_path: Path, config: bytes) -> None:
    assert DeviceFacts.from_sysfs(_sysfs(tmp_path, config)).name.serial is None


def test_capabilities_in_a_ring_end(tmp_path: Path) -> None:
    config = bytearray(_config(capability=2))
    config[0x142:0x144] = (0x100 << 4 | 1).to_bytes(2, "little")
    assert DeviceFacts.from_sysfs(_sysfs(tmp_path, bytes(config))).name.serial is None


def test_a_bridge_has_no_subsystem_in_its_name(tmp_path: Path) -> None:
    facts = DeviceFacts.from_sysfs(_sysfs(tmp_path, _config(header_type=1)))
    assert facts.name == CmaName(0x1234, 0x5678, 0x010802, 0x01, serial=SERIAL)


def test_who_may_not_read_the_configuration_space_is_told(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="serial number"):
        DeviceFacts.from_sysfs(_sysfs(tmp_path, _config()[:64]))
