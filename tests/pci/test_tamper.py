# SPDX-License-Identifier: MIT
"""What a device is made to present is handed out by the software TSM, and refused by a verifier."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import load_pem_x509_certificates

from tests.machines import Shell, boot, fails, pci
from tsmfs import description
from tsmfs.kernel.task import running_as
from tsmfs.pci.cma import CmaDevice
from tsmfs.pci.evidence import EvidenceType
from tsmfs.pci.tamper import CERTIFICATES, Tamper, disguise
from tsmfs.spdm.measurements import Measurement, MeasurementKind
from tsmfs.spdm.requester import Requester
from tsmfs.verify import CheckName, DeviceFacts, Evidence, measured_values, verify_evidence

BDF = "0000:01:00.0"
FILE = "/kernel/tsmfs/fault/tamper"
NONCE = bytes(range(32))
ATTRIBUTES = (
    "vendor", "device", "class", "revision", "subsystem_vendor", "subsystem_device", "resource",
)  # fmt: skip

MACHINE = """
name = "tampered"
seed = 7
modules = ["soft_link_tsm", "soft_devsec_tsm"]

[[host_bridge]]
stream_pool = 2

[[host_bridge.root_port]]
slot = 1
ide = true

  [[host_bridge.root_port.endpoint]]
  tee_io = true
  serial = "01-23-45-67-89-ab-cd-ef"
  doe = true
  ide = true
  bar = [
    { index = 0, size = "64K", kind = "mem64" },
    { index = 2, size = "16K", kind = "mem32" },
  ]
  cma = { key = "ecdsa-p256", hash = "sha-256", slots = [0, 2] }
"""

CAUGHT: Mapping[Tamper, Mapping[CheckName, str]] = {
    Tamper.EXPIRED_CERTIFICATE: {CheckName.VALIDITY: "was valid until 2024-03-31"},
    Tamper.SELF_SIGNED: {CheckName.ROOT: "is self-signed and no root"},
    Tamper.WRONG_NAME: {CheckName.NAME: ":Device="},
    Tamper.FOREIGN_CERTIFICATE: {CheckName.ROOT: "is none of the roots"},
    Tamper.BAD_SIGNATURE: {CheckName.SIGNATURE: "over VCA and bytes 0 to"},
    Tamper.STALE_NONCE: {CheckName.NONCE: f"{NONCE.hex()} expected"},
    Tamper.CHANGED_MEASUREMENT: {CheckName.REFERENCE: "measurement 2: "},
    Tamper.WRONG_RANGE: {CheckName.RESOURCE: "a range in 0x"},
    Tamper.OVERLAPPING_RANGE: {CheckName.RANGES: "ranges apart expected"},
    Tamper.REPLAYED_TRANSCRIPT: {
        CheckName.NONCE: f"{NONCE.hex()} expected",
        CheckName.FRESHNESS: "replayed",
    },
}
"""Checks that each fails, with what its reason says."""


def machine(tampers: Iterable[Tamper] = (), modules: str = "") -> Shell:
    """The machine; its device presents *tampers* from the start."""
    names = ", ".join(f'"{one}"' for one in tampers)
    text = MACHINE.replace(
        "slots = [0, 2]", f"slots = [0, 2], tamper = [{names}]", 1 if names else 0
    )
    return boot(text.replace("soft_link_tsm", f"soft_link_tsm {modules}".strip()))


def device(sh: Shell) -> CmaDevice:
    cma = sh.dev(BDF).hw.cma
    assert cma is not None
    return cma


def connect(sh: Shell) -> None:
    sh.echo("tsm0", f"{pci(BDF)}/tsm/connect")


def disconnect(sh: Shell) -> None:
    sh.echo("tsm0", f"{pci(BDF)}/tsm/disconnect")


def bind(sh: Shell) -> None:
    sh.echo(BDF, "/bus/faux/devices/soft_link_tsm/tsm_bind")


def evidence(sh: Shell) -> Evidence:
    """What a reader is given."""
    tsm = sh.dev(BDF).tsm
    assert tsm is not None
    objects, digests = tsm.evidence.objects, tsm.evidence.digests
    return Evidence.of(
        {kind.name.lower(): data for kind, data in objects.items()},
        {kind.name.lower(): data for kind, data in digests.items()},
    )


def refreshed(sh: Shell, nonce: bytes = NONCE) -> Evidence:
    """What a reader is given who asks with *nonce*."""
    with running_as(sh.task):
        sh.machine.pci.tsm.refresh_evidence(sh.dev(BDF), nonce)
    return evidence(sh)


def facts(sh: Shell, directory: Path) -> DeviceFacts:
    """What sysfs shows of the device."""
    directory.mkdir(exist_ok=True)
    for name in ATTRIBUTES:
        (directory / name).write_text(sh.cat(f"{pci(BDF)}/{name}"))
    (directory / "config").write_bytes(sh.read(f"{pci(BDF)}/config", 0, 4096))
    return DeviceFacts.from_sysfs(directory)


@cache
def reference() -> Mapping[int, bytes]:
    """The measurements of the honest device."""
    sh = machine()
    connect(sh)
    return measured_values(evidence(sh))


def failures(sh: Shell, directory: Path) -> dict[CheckName, str]:
    """What a verifier finds wrong who asks for evidence anew, and knows what was there before."""
    before = evidence(sh)
    checks = verify_evidence(
        refreshed(sh),
        roots=load_pem_x509_certificates(sh.read("/kernel/tsmfs/spdm_root")),
        device=facts(sh, directory),
        nonce=NONCE,
        reference=reference(),
        earlier=[before],
    )
    assert all(check.ok is not None for check in checks)
    return {check.name: check.reason for check in checks if not check.ok}


def assert_caught(found: Mapping[CheckName, str], tamper: Tamper) -> None:
    assert found.keys() == CAUGHT[tamper].keys()
    for name, reason in CAUGHT[tamper].items():
        assert reason in found[name]


# --- Each is caught ------------------------------------------------------------------------------


def test_an_honest_device_passes_every_check(tmp_path: Path) -> None:
    sh = machine()
    connect(sh)
    bind(sh)
    assert failures(sh, tmp_path / "facts") == {}


@pytest.mark.parametrize("tamper", Tamper)
def test_what_a_description_tampers_with_is_caught_by_its_own_check(
    tamper: Tamper, tmp_path: Path
) -> None:
    sh = machine([tamper])
    assert sh.cat(FILE) == f"{BDF} {tamper}\n"
    connect(sh)
    bind(sh)
    assert_caught(failures(sh, tmp_path / "facts"), tamper)


@pytest.mark.parametrize("tamper", Tamper)
def test_what_is_tampered_with_while_it_runs_is_caught_until_it_is_undone(
    tamper: Tamper, tmp_path: Path
) -> None:
    sh = machine()
    connect(sh)
    sh.echo(f"{BDF} {tamper}", FILE)
    if tamper in CERTIFICATES:
        disconnect(sh)
        connect(sh)
    bind(sh)
    assert_caught(failures(sh, tmp_path / "facts"), tamper)
    sh.echo(f"{BDF} none", FILE)
    disconnect(sh)
    connect(sh)
    bind(sh)
    assert failures(sh, tmp_path / "facts") == {}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    "tamper", [Tamper.BAD_SIGNATURE, Tamper.STALE_NONCE, Tamper.REPLAYED_TRANSCRIPT]
)
def test_transcripts_of_both_versions_and_any_slot_can_be_wrong(
    tamper: Tamper, version: str, tmp_path: Path
) -> None:
    sh = machine([tamper], f"slot=2 version={version}")
    connect(sh)
    bind(sh)
    assert_caught(failures(sh, tmp_path / "facts"), tamper)
    assert evidence(sh).slot == 2


def test_the_guest_is_handed_out_the_same(tmp_path: Path) -> None:
    sh = machine([Tamper.OVERLAPPING_RANGE])
    sh.echo("tsm1", f"{pci(BDF)}/tsm/lock")
    assert_caught(failures(sh, tmp_path / "facts"), Tamper.OVERLAPPING_RANGE)
    # Its kernel would map private memory by the report.
    with fails(errno.EINVAL):
        sh.echo("1", f"{pci(BDF)}/tsm/accept")


def test_several_things_can_be_wrong_at_once(tmp_path: Path) -> None:
    several = (Tamper.WRONG_NAME, Tamper.BAD_SIGNATURE, Tamper.WRONG_RANGE)
    sh = machine(several)
    connect(sh)
    bind(sh)
    assert failures(sh, tmp_path / "facts").keys() == {
        name for one in several for name in CAUGHT[one]
    }


def test_a_strict_platform_refuses_by_itself_what_it_can_see() -> None:
    for tamper, number in (
        (Tamper.EXPIRED_CERTIFICATE, errno.EKEYREJECTED),
        (Tamper.WRONG_NAME, errno.EKEYREJECTED),
        (Tamper.BAD_SIGNATURE, errno.EKEYREJECTED),
    ):
        with fails(number):
            connect(machine([tamper], "strict=1"))


# --- How -----------------------------------------------------------------------------------------


def test_another_certificate_ends_the_connection_and_the_same_does_not() -> None:
    sh = machine()
    connect(sh)
    sh.echo(f"{BDF} wrong-name", FILE)
    with fails(errno.ENOTCONN):
        # The first request finds out that the device has forgotten the session.
        for _ in range(2):
            refreshed_or_lost(sh)
    disconnect(sh)
    connect(sh)
    sh.echo(f"{BDF} wrong-name bad-signature", FILE)
    refreshed(sh)


def refreshed_or_lost(sh: Shell) -> None:
    try:
        refreshed(sh)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise


def test_a_stale_nonce_is_the_one_before_with_measurements_of_now() -> None:
    sh = machine()
    connect(sh)
    first = refreshed(sh, bytes(32))
    sh.echo(f"{BDF} stale-nonce", FILE)
    second = refreshed(sh)
    assert second.measurements[:4] == first.measurements[:4]
    assert second.measurements[4:36] == first.measurements[4:36] == bytes(32)
    assert second.measurements != first.measurements
    assert second.digests != first.digests


def test_a_replayed_transcript_does_not_move_while_all_else_does() -> None:
    sh = machine([Tamper.REPLAYED_TRANSCRIPT])
    connect(sh)
    first = evidence(sh)
    assert refreshed(sh).measurements == refreshed(sh, bytes(32)).measurements == first.measurements
    tsm = sh.dev(BDF).tsm
    assert tsm is not None
    assert tsm.evidence.generation == 3


def test_a_challenge_is_signed_badly_and_a_session_well() -> None:
    from tsmfs.spdm.exchange import VerificationError

    cma = device(machine([Tamper.BAD_SIGNATURE]))
    requester = Requester(cma)
    requester.connect()
    with pytest.raises(VerificationError, match="challenge_auth"):
        requester.challenge()
    with pytest.raises(VerificationError, match="measurements"):
        requester.measurements(sign=True)
    requester.key_exchange().end()


def test_one_bit_of_one_measurement_is_changed() -> None:
    def measured(*tampers: Tamper) -> list[bytes]:
        cma = device(sh)
        disguise(cma, tampers)
        return [one.value for one in cma.responder.measurements()]

    sh = machine()
    honest, changed = measured(), measured(Tamper.CHANGED_MEASUREMENT)
    differing = [number for number, pair in enumerate(zip(honest, changed, strict=True))
                 if pair[0] != pair[1]]  # fmt: skip
    assert differing == [1]
    assert len(honest[1]) == len(changed[1])
    assert measured() == honest


@pytest.mark.parametrize(
    ("measured", "changed"),
    [
        (
            (
                Measurement(3, MeasurementKind.IMMUTABLE_ROM, b"a"),
                Measurement(4, MeasurementKind.HARDWARE_CONFIGURATION, b"b"),
            ),
            [b"`", b"b"],
        ),
        ((Measurement(1, MeasurementKind.IMMUTABLE_ROM, b""),), [b"\1"]),
        ((), []),
    ],
)
def test_without_firmware_the_first_measurement_is_changed(
    measured: Sequence[Measurement], changed: list[bytes]
) -> None:
    nature = device(machine()).nature
    cma = CmaDevice(lambda: replace(nature, measurements=lambda: measured))
    disguise(cma, [Tamper.CHANGED_MEASUREMENT])
    assert [one.value for one in cma.responder.measurements()] == changed


def test_a_device_with_keys_from_files_lies_with_keys_from_the_seed(tmp_path: Path) -> None:
    origin = device(machine()).nature.origin
    slot = replace(origin, seed=b"another").identity().slots[0]
    (tmp_path / "chain.pem").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in slot.certificates)
    )
    key = tmp_path / "key.pem"
    key.touch(0o600)
    key.write_bytes(slot.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files = (
        f'files = [{{ chain = "{tmp_path}/chain.pem", key = "{key}" }}], tamper = ["wrong-name"]'
    )
    sh = boot(MACHINE.replace('key = "ecdsa-p256"', files).replace(", slots = [0, 2]", ""))
    lying = device(sh).identity.slots[0].certificates
    sh.echo(f"{BDF} none", FILE)
    honest = device(sh).identity.slots[0].certificates
    assert honest == slot.certificates
    assert lying[0] == origin.identity().slots[0].certificates[0]


def test_what_excludes_each_other_is_refused_and_changes_nothing() -> None:
    cma = device(machine([Tamper.WRONG_RANGE]))
    pairs = [
        *itertools.combinations(sorted(CERTIFICATES), 2),
        (Tamper.STALE_NONCE, Tamper.REPLAYED_TRANSCRIPT),
    ]
    for pair in pairs:
        with fails(errno.EINVAL):
            disguise(cma, pair)
        assert cma.disguise.names == (Tamper.WRONG_RANGE,)


def test_an_interface_without_ranges_reports_none() -> None:
    text = MACHINE.replace('"64K", kind = "mem64"', '"1K", kind = "mem64"')
    sh = boot(text.replace('"16K", kind = "mem32"', '"1K", kind = "mem32"'))
    sh.echo(f"{BDF} wrong-range overlapping-range", FILE)
    connect(sh)
    bind(sh)
    tsm = sh.dev(BDF).tsm
    assert tsm is not None
    assert tsm.evidence.objects[EvidenceType.REPORT]


# --- The file and the description ----------------------------------------------------------------


def test_the_file_lists_devices_with_what_is_wrong_in_one_order() -> None:
    sh = boot("server")
    assert sh.cat(FILE) == ""
    sh.echo("0000:81:00.0 replayed-transcript", FILE)
    sh.echo("0000:01:00.0 wrong-range   bad-signature wrong-range", FILE)
    assert sh.cat(FILE) == (
        "0000:01:00.0 bad-signature wrong-range\n0000:81:00.0 replayed-transcript\n"
    )
    sh.echo("0000:01:00.0 self-signed", FILE)
    sh.echo("0000:81:00.0 none", FILE)
    assert sh.cat(FILE) == "0000:01:00.0 self-signed\n"


def test_a_device_that_is_not_plugged_in_can_be_prepared() -> None:
    sh = boot("server")
    sh.echo("0000:82:00.0 wrong-name", FILE)
    sh.echo("0000:82:00.0", "/kernel/tsmfs/plug")
    assert sh.cat(FILE) == "0000:82:00.0 wrong-name\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0000:01:00.1 none", errno.ENODEV),
        ("0000:00:01.0 bad-signature", errno.ENODEV),
        ("1234:01:00.0 bad-signature", errno.ENODEV),
        ("0000:06:00.0 bad-signature", errno.ENODEV),
        ("0000:01:00.0", errno.EINVAL),
        ("0000:01:00.0 bad", errno.EINVAL),
        ("0000:01:00.0 Bad-Signature", errno.EINVAL),
        ("0000:01:00.0 bad-signature none", errno.EINVAL),
        ("0000:01:00.0 none none", errno.EINVAL),
        ("0000:01:00.0 self-signed wrong-name", errno.EINVAL),
        ("0000:01:00.0 none\n0000:81:00.0 none", errno.EINVAL),
        ("bad-signature 0000:01:00.0", errno.EINVAL),
        ("", errno.EINVAL),
        ("\0", errno.EINVAL),
        ("\udcff", errno.EINVAL),
    ],
)
def test_other_lines_are_refused_and_change_nothing(text: str, number: int) -> None:
    sh = boot("server", [])
    sh.echo("0000:01:00.0 wrong-range", FILE)
    with fails(number):
        sh.write(FILE, f"{text}\n".encode(errors="surrogateescape"))
    assert sh.cat(FILE) == "0000:01:00.0 wrong-range\n"


def test_a_machine_without_keys_has_the_file_too() -> None:
    sh = boot("devsec")
    assert sh.cat(FILE) == ""
    with fails(errno.ENODEV):
        sh.echo("10000:01:00.0 bad-signature", FILE)


def test_descriptions_and_devices_know_the_same_names() -> None:
    assert [one.value for one in description.Tamper] == list(Tamper)


@pytest.mark.parametrize(
    ("names", "mistake"),
    [
        ('["bad"]', "must be one of"),
        ('["bad-signature", "bad-signature"]', "is listed before"),
        ('"bad-signature"', "must be an array"),
        ('["self-signed", "wrong-name"]', "self-signed and wrong-name exclude each other"),
        ('["stale-nonce", "replayed-transcript"]', "exclude each other"),
    ],
)
def test_a_description_is_refused_for_its_mistakes(names: str, mistake: str) -> None:
    text = MACHINE.replace("slots = [0, 2]", f"tamper = {names}")
    with pytest.raises(description.DescriptionError) as info:
        description.parse(text, "test.toml")
    assert mistake in str(info.value)
    assert "tamper" in str(info.value)


def test_a_description_with_tampering_is_written_and_read_back() -> None:
    text = MACHINE.replace("slots = [0, 2]", 'tamper = ["wrong-range", "self-signed"]')
    machine = description.parse(text, "test.toml")
    assert 'tamper = ["wrong-range", "self-signed"]' in description.to_toml(machine)
    assert description.parse(description.to_toml(machine), "again.toml") == machine
