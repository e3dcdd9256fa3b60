# SPDX-License-Identifier: MIT
"""Chains in the format of SPDM, the device's name in a leaf, and the checks of a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.certificates import (
    EKU_REQUESTER_AUTH,
    EKU_RESPONDER_AUTH,
    HARDWARE_IDENTITY,
    MUTABLE_CERTIFICATE,
    PCI_CMA_NAME,
    CertificateError,
    Chain,
    CmaName,
    check_chain,
    check_path,
    check_root,
    check_usage,
    check_validity,
    cma_name,
    is_self_signed,
    issuer_of,
    spdm_extension,
    spdm_oids,
    split_der,
    subject_of,
)
from tsmfs.spdm.identity import (
    Extensions,
    Issuer,
    authority_extensions,
    derive_key,
    distinguished_name,
    leaf_extensions,
)
from tsmfs.spdm.messages import Version

NAME = CmaName(0x1234, 0x5678, 0x010802, 0x01, 0xABCD, 0x00EF, bytes.fromhex("0123456789abcdef"))
TEXT = "Vendor=1234:Device=5678:CC=010802:REV=01:SSVID=abcd:SSID=00ef:0123456789abcdef"
NOW = datetime(2026, 7, 1, tzinfo=UTC)
P256, SHA256 = BaseAsym.ECDSA_P256, BaseHash.SHA_256


def key(label: str) -> ec.EllipticCurvePrivateKey:
    """A key of P-256 called `label`."""
    derived = derive_key(b"tests", label, P256)
    assert isinstance(derived, ec.EllipticCurvePrivateKey)
    return derived


def issuer(name: str) -> Issuer:
    """An issuer called `name` with the key of that name."""
    return Issuer(distinguished_name(name), key(name), SHA256)


def certificate(by: str, name: str, extensions: Extensions) -> x509.Certificate:
    """The certificate of `name` that `by` issues."""
    return issuer(by).issue(name, key(name).public_key(), extensions)


ROOT = certificate("root", "root", authority_extensions(1))
MIDDLE = certificate("root", "middle", authority_extensions(0))
LEAF = certificate("middle", "leaf", leaf_extensions(NAME))
PATH = (ROOT, MIDDLE, LEAF)
CHAIN = Chain.of(PATH, SHA256)


def without(kind: type[x509.ExtensionType]) -> Extensions:
    """The extensions of a leaf but the one of `kind`."""
    return [entry for entry in leaf_extensions(NAME) if not isinstance(entry[0], kind)]


def leaf_with(extension: x509.ExtensionType, critical: bool = False) -> x509.Certificate:
    """A leaf with `extension` in the place of that of its kind."""
    return certificate("middle", "leaf", [*without(type(extension)), (extension, critical)])


# --- The format --------------------------------------------------------------------------------


@pytest.mark.parametrize("base_hash", BaseHash)
def test_a_chain_is_length_reserved_root_hash_and_certificates(base_hash: BaseHash) -> None:
    data = Chain.of(PATH, base_hash).pack()
    assert int.from_bytes(data[:2], "little") == len(data)
    assert data[2:4] == bytes(2)
    root = ROOT.public_bytes(Encoding.DER)
    assert data[4 : 4 + base_hash.size] == base_hash.digest(root)
    assert data[4 + base_hash.size :].startswith(root)
    parsed = Chain.parse(data, base_hash)
    assert parsed.certificates == PATH
    assert parsed.leaf == LEAF


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "length"),
        (lambda data: data + b"\0", "length"),
        (lambda data: b"", "no certificate"),
        (lambda data: data[:36], "no certificate"),
        (lambda data: data[:2] + b"\1\0" + data[4:], "reserved"),
        (lambda data: data[:36] + b"\x31" + data[37:], "tag"),
        (lambda data: data[:36] + b"\x30\x80" + data[38:], "length"),
        (lambda data: data[:36] + b"\x30\x84\xff\xff\xff\xff" + data[42:], "needs"),
    ],
)
def test_what_is_no_chain_is_refused(change: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        Chain.parse(change(CHAIN.pack()), SHA256)


def test_a_certificate_that_is_none_is_refused_when_it_is_read() -> None:
    chain = Chain(CHAIN.root_hash, (b"\x30\x03\x02\x01\x00",))
    with pytest.raises(CertificateError, match="certificate 0"):
        _ = Chain.parse(chain.pack(), SHA256).certificates


def test_a_chain_too_long_for_its_length_field_is_refused() -> None:
    with pytest.raises(CertificateError, match="65535"):
        Chain(bytes(32), (bytes(0x10000),)).pack()


@given(st.binary(max_size=400), st.sampled_from(list(BaseHash)))
def test_any_bytes_are_a_chain_or_refused(data: bytes, base_hash: BaseHash) -> None:
    try:
        chain = Chain.parse(data, base_hash)
        _ = chain.certificates
    except CertificateError:
        return
    assert chain.pack() == data


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.data())
def test_a_mutated_chain_is_refused_by_some_check(data: st.DataObject) -> None:
    packed = bytearray(CHAIN.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(packed) == CHAIN.pack():
        return
    with pytest.raises(CertificateError):
        check_chain(bytes(packed), base_hash=SHA256, base_asym=P256, roots=[ROOT], now=NOW)


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    packed = CHAIN.pack()
    version3 = bytes.fromhex("a003020102")
    assert version3 in packed
    with pytest.raises(CertificateError, match="version"):
        _ = Chain.parse(packed.replace(version3, version3[:-1] + b"\x05"), SHA256).certificates


def test_a_subject_that_cannot_be_read_is_refused_where_it_matters() -> None:
    # UTF8String becomes a bit string, which no common name is.
    broken = LEAF.public_bytes(Encoding.DER).replace(b"\x0c\x04leaf", b"\x03\x04\x00eaf")
    leaf = x509.load_der_x509_certificate(broken)
    assert subject_of(leaf) == "a certificate with a malformed subject"
    with pytest.raises(CertificateError, match="malformed subject"):
        check_path((ROOT, MIDDLE, leaf))


def test_an_issuer_that_cannot_be_read_is_refused() -> None:
    broken = LEAF.public_bytes(Encoding.DER).replace(b"\x0c\x06middle", b"\x03\x06\x00iddle")
    with pytest.raises(CertificateError, match="issuer"):
        issuer_of(x509.load_der_x509_certificate(broken))


def test_a_name_cannot_control_a_terminal() -> None:
    assert (
        subject_of(certificate("root", "a\x1b[2J\u202e", [])) == "CN=a\\1B[2J\\E2\\80\\AE,O=tsmfs"
    )
    assert issuer_of(certificate("a\x07", "leaf", [])) == "CN=a\\07,O=tsmfs"


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_der_is_split_where_its_elements_end(contents: list[bytes]) -> None:
    ders = [_sequence(content) for content in contents]
    assert split_der(b"".join(ders)) == tuple(ders)


def _sequence(content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((0x30, size)) + content
    return b"\x30\x82" + size.to_bytes(2, "big") + content


# --- The name ----------------------------------------------------------------------------------


def test_a_name_is_written_as_linux_compares_it() -> None:
    assert NAME.text == TEXT
    bridge = CmaName(0x1234, 0x5678, 0x060400, 0x01)
    assert bridge.text == "Vendor=1234:Device=5678:CC=060400:REV=01"


def test_a_name_is_read_in_both_cases_and_with_a_key_before_the_serial_number() -> None:
    assert CmaName.parse(TEXT.replace("abcd", "ABCD").replace(":0123", ":SN=0123")) == NAME


_16 = st.integers(0, 0xFFFF)


@given(
    st.builds(
        CmaName,
        _16,
        _16,
        st.integers(0, 0xFFFFFF),
        st.integers(0, 0xFF),
        _16 | st.none(),
        _16 | st.none(),
        st.binary(min_size=8, max_size=8) | st.none(),
    )
)
def test_every_name_is_read_as_it_was_written(name: CmaName) -> None:
    assert CmaName.parse(name.text) == name


@given(st.text(max_size=60) | st.text("VendorDviceCREVSI=:0123456789", max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = CmaName.parse(text)
    except CertificateError:
        return
    assert CmaName.parse(name.text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no Vendor, Device, CC, REV"),
        ("Vendor=1234:Device=5678:CC=010802", "has no REV"),
        (TEXT.replace("1234:", "123:", 1), "Vendor='123'"),
        (TEXT.replace("=01:", "=0x:"), "REV='0x'"),
        (TEXT + ":Vendor=1234", "part 7"),
        (TEXT + ":Colour=red", "part 7"),
        (TEXT[:-1], "SN="),
    ],
)
def test_a_text_that_is_no_name_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        CmaName.parse(text)


def test_the_name_is_found_in_a_leaf_beside_others() -> None:
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName("device.test"),
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1"), b"\x0c\x01x"),
            NAME.general_name(),
        ]
    )
    assert cma_name(leaf_with(names)) == NAME


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x16\x01x", "tag 0x0c expected, 0x16 found"),
        (b"\x0c\x02\xff\xff", "not UTF-8"),
        (b"\x0c\x01x", "has no Vendor"),
    ],
)
def test_a_name_of_another_form_is_refused(value: bytes, reason: str) -> None:
    other = leaf_with(x509.SubjectAlternativeName([x509.OtherName(PCI_CMA_NAME, value)]))
    with pytest.raises(CertificateError, match=reason):
        cma_name(other)


def test_a_leaf_without_a_name_is_refused() -> None:
    with pytest.raises(CertificateError, match="no subject alternative name"):
        cma_name(certificate("middle", "leaf", without(x509.SubjectAlternativeName)))
    with pytest.raises(CertificateError, match=r"no otherName of type 2\.23\.147"):
        cma_name(leaf_with(x509.SubjectAlternativeName([x509.DNSName("device.test")])))


# --- The SPDM extension ------------------------------------------------------------------------


def test_the_spdm_extension_is_that_of_the_specification() -> None:
    assert spdm_extension(HARDWARE_IDENTITY).value.hex() == "300e300c060a2b06010401831c821202"
    assert spdm_oids(LEAF) == {HARDWARE_IDENTITY.dotted_string}
    assert spdm_oids(ROOT) == set()


def test_the_spdm_extension_may_carry_values_behind_its_identifiers() -> None:
    inner = bytes.fromhex("060a2b06010401831c821202") + b"\x04\x01x"
    value = _sequence(_sequence(inner))
    leaf = leaf_with(x509.UnrecognizedExtension(spdm_extension().oid, value))
    assert spdm_oids(leaf) == {HARDWARE_IDENTITY.dotted_string}


def test_an_identifier_that_is_too_long_is_refused() -> None:
    content = b"\xff" * 5000 + b"\x01"
    identifier = b"\x06\x82" + len(content).to_bytes(2, "big") + content
    inner = b"\x30\x82" + len(identifier).to_bytes(2, "big") + identifier
    value = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
    leaf = leaf_with(x509.UnrecognizedExtension(spdm_extension().oid, value))
    with pytest.raises(CertificateError, match="an object identifier of 5001 bytes"):
        spdm_oids(leaf)


@given(st.binary(max_size=40))
def test_any_spdm_extension_is_read_or_refused(value: bytes) -> None:
    leaf = leaf_with(x509.UnrecognizedExtension(spdm_extension().oid, value))
    try:
        found = spdm_oids(leaf)
    except CertificateError:
        return
    assert all(part.isdigit() for oid in found for part in oid.split("."))


# --- The path ----------------------------------------------------------------------------------


def test_a_sound_chain_gives_its_leaf() -> None:
    leaf = check_chain(
        CHAIN.pack(),
        base_hash=SHA256,
        base_asym=P256,
        roots=[MIDDLE, ROOT],
        now=NOW,
        version=Version.V1_3,
    )
    assert leaf == LEAF


def test_a_chain_may_leave_out_its_root() -> None:
    chain = replace(CHAIN, ders=CHAIN.ders[1:])
    assert check_root(chain, SHA256, [ROOT], NOW) == ROOT


def test_a_root_that_the_chain_leaves_out_has_to_be_valid_too() -> None:
    end = datetime(2025, 6, 1, tzinfo=UTC)
    root = issuer("root").issue(
        "root", key("root").public_key(), authority_extensions(1), not_after=end
    )
    whole = Chain.of((root, MIDDLE, LEAF), SHA256)
    chain = replace(whole, ders=whole.ders[1:])
    assert check_root(chain, SHA256, [root], end) == root
    late = end + timedelta(seconds=1)
    reason = "until 2025-06-01 00:00:00 UTC, it is 2025-06-01 00:00:01 UTC"
    with pytest.raises(CertificateError, match=reason):
        check_root(chain, SHA256, [root], late)
    # One that is in the chain is for the check of validity.
    assert check_root(whole, SHA256, [root], late) == root


def test_a_chain_that_names_a_root_which_did_not_sign_it_is_refused() -> None:
    other = certificate("other", "other", authority_extensions(1))
    chain = Chain(Chain.of((other,), SHA256).root_hash, CHAIN.ders[1:])
    with pytest.raises(CertificateError, match="CN=middle,O=tsmfs under CN=other"):
        check_root(chain, SHA256, [ROOT, other], NOW)


def test_a_chain_under_another_root_is_refused_with_both_hashes() -> None:
    other = certificate("other", "other", authority_extensions(1))
    expected = Chain.of((other,), SHA256).root_hash.hex()
    with pytest.raises(CertificateError, match=f"{expected} expected.*{CHAIN.root_hash.hex()}"):
        check_root(CHAIN, SHA256, [other], NOW)
    with pytest.raises(CertificateError, match="root hash none expected"):
        check_root(CHAIN, SHA256, [], NOW)


def test_a_self_signed_leaf_is_refused_as_such() -> None:
    leaf = certificate("leaf", "leaf", leaf_extensions(NAME))
    assert is_self_signed(leaf)
    with pytest.raises(CertificateError, match="is self-signed and no root"):
        check_root(Chain.of((leaf,), SHA256), SHA256, [ROOT], NOW)


def _path(middle: Extensions) -> tuple[x509.Certificate, ...]:
    return ROOT, certificate("root", "middle", middle), LEAF


_PLAIN_USAGE = next(one for one, _ in leaf_extensions(NAME) if isinstance(one, x509.KeyUsage))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ((ROOT, LEAF), "CN=leaf,O=tsmfs under CN=root"),
        ((MIDDLE, ROOT), "CN=root,O=tsmfs under CN=middle"),
        (_path(leaf_extensions(NAME)), "CN=middle,O=tsmfs signs and is no CA"),
        (_path(()), "CN=middle,O=tsmfs signs and is no CA"),
        (
            _path([authority_extensions(0)[0], (_PLAIN_USAGE, True)]),
            "CN=middle,O=tsmfs signs without the key usage keyCertSign",
        ),
        (
            (certificate("root", "root", authority_extensions(0)), MIDDLE, LEAF),
            "CN=root,O=tsmfs allows 0 authorities below it, 1 found",
        ),
        (
            _path(
                middle=[
                    *authority_extensions(0),
                    (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True),
                ]
            ),
            r"critical extension 1\.2\.3",
        ),
        (
            _path(
                middle=[
                    *authority_extensions(0),
                    (x509.NameConstraints([x509.DNSName("test")], None), True),
                ]
            ),
            r"critical extension 2\.5\.29\.30",
        ),
        (
            (ROOT, MIDDLE, Issuer(MIDDLE.subject, key("other"), SHA256).issue(
                "leaf", key("leaf").public_key(), leaf_extensions(NAME))),
            "the signature of CN=leaf,O=tsmfs is not one of CN=middle",
        ),
    ],
)  # fmt: skip
def test_a_path_in_which_one_may_not_sign_or_did_not_is_refused(
    path: tuple[x509.Certificate, ...], reason: str
) -> None:
    with pytest.raises(CertificateError, match=reason):
        check_path(path)


def test_a_signature_over_another_hash_than_sha_2_is_refused() -> None:
    builder = (
        x509.CertificateBuilder()
        .subject_name(distinguished_name("leaf"))
        .issuer_name(MIDDLE.subject)
        .public_key(key("leaf").public_key())
        .serial_number(1)
        .not_valid_before(datetime(2024, 1, 1))
        .not_valid_after(datetime(2030, 1, 1))
    )
    leaf = builder.sign(key("middle"), hashes.SHA3_256())
    with pytest.raises(CertificateError, match="is signed over sha3-256, not SHA-2"):
        check_path((ROOT, MIDDLE, leaf))


def test_a_certificate_is_valid_from_its_first_to_its_last_second() -> None:
    first, last = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC)
    leaf = issuer("middle").issue(
        "leaf", key("leaf").public_key(), (), not_before=first, not_after=last
    )
    check_validity([leaf], first)
    check_validity([leaf], last)
    with pytest.raises(
        CertificateError, match="from 2025-01-01 00:00:00 UTC, it is 2024-12-31 23:59:59 UTC"
    ):
        check_validity([leaf], datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC))
    with pytest.raises(CertificateError, match="was valid until 2025-06-01 00:00:00 UTC, it is"):
        check_validity([leaf], datetime(2025, 6, 1, 0, 0, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (leaf_with(x509.BasicConstraints(ca=True, path_length=0), True), "is a CA"),
        (certificate("middle", "leaf", without(x509.BasicConstraints)), "no basic constraints"),
        (certificate("middle", "leaf", without(x509.KeyUsage)), "digitalSignature"),
        (
            leaf_with(next(e for e, _ in authority_extensions(0) if isinstance(e, x509.KeyUsage))),
            "digitalSignature",
        ),
        (leaf_with(x509.ExtendedKeyUsage([EKU_REQUESTER_AUTH])), "requesters alone"),
        (
            leaf_with(spdm_extension(HARDWARE_IDENTITY, MUTABLE_CERTIFICATE)),
            "of hardware and mutable",
        ),
    ],
)
def test_a_leaf_that_may_not_authenticate_a_responder_is_refused(
    leaf: x509.Certificate, reason: str
) -> None:
    with pytest.raises(CertificateError, match=reason):
        check_usage(leaf, P256, Version.V1_3)


@pytest.mark.parametrize(
    "leaf",
    [
        LEAF,
        certificate("middle", "leaf", without(x509.ExtendedKeyUsage)),
        leaf_with(x509.ExtendedKeyUsage([EKU_REQUESTER_AUTH, EKU_RESPONDER_AUTH])),
    ],
)
def test_a_leaf_for_responders_or_for_any_purpose_is_accepted(leaf: x509.Certificate) -> None:
    check_usage(leaf, P256, Version.V1_3)


def test_basic_constraints_may_be_absent_before_1_3() -> None:
    check_usage(certificate("middle", "leaf", without(x509.BasicConstraints)), P256, Version.V1_2)


def test_a_key_of_another_algorithm_is_refused() -> None:
    with pytest.raises(CertificateError, match="ECDSA_P384 expected, ECDSA_P256 found"):
        check_usage(LEAF, BaseAsym.ECDSA_P384, Version.V1_2)
    other = ec.derive_private_key(1, ec.SECP521R1()).public_key()
    with pytest.raises(CertificateError, match="ECDSA_P256 expected, 521 bits found"):
        check_usage(issuer("middle").issue("leaf", other, ()), P256, Version.V1_2)
