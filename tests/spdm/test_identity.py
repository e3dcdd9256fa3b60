# SPDX-License-Identifier: MIT
"""Identities from a seed and from PEM files, as openssl sees them, and those to be refused."""

from __future__ import annotations

import io
import pickle
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tsmfs.spdm import identity as identity_module
from tsmfs.spdm import tamper
from tsmfs.spdm.algorithms import BaseAsym, BaseHash, PrivateKey
from tsmfs.spdm.certificates import CertificateError, Chain, check_chain, cma_name
from tsmfs.spdm.identity import (
    NOT_AFTER,
    NOT_BEFORE,
    Identity,
    IdentityError,
    Origin,
    Slot,
    SlotFiles,
    SlotTable,
    Subject,
    derive_key,
    load_identity,
    make_identity,
    root_certificate,
    root_pem,
)
from tsmfs.spdm.messages import Version

SEED = bytes(range(32))
SERIAL = bytes.fromhex("0123456789abcdef")
SUBJECT = Subject(0x1234, 0x5678, 0xABCD, 0x00EF, 0x010802, 0x01, SERIAL, "0000:01:00.0")
NOW = datetime(2026, 7, 1, tzinfo=UTC)
ELLIPTIC = (BaseAsym.ECDSA_P256, BaseAsym.ECDSA_P384)


def check(identity: Identity, number: int = 0) -> x509.Certificate:
    """Check a slot as a requester of 1.3 does that trusts the root of `SEED`."""
    return check_chain(
        identity.slots[number].chain,
        base_hash=identity.base_hash,
        base_asym=identity.base_asym,
        roots=[root_certificate(SEED, identity.base_asym, identity.base_hash)],
        now=NOW,
        version=Version.V1_3,
    )


# --- From a seed -------------------------------------------------------------------------------


@pytest.mark.parametrize("base_asym", BaseAsym)
@pytest.mark.parametrize("base_hash", BaseHash)
def test_a_chain_from_a_seed_is_sound_and_names_the_device(
    base_asym: BaseAsym, base_hash: BaseHash
) -> None:
    identity = make_identity(SEED, SUBJECT, base_asym, base_hash)
    leaf = check(identity)
    assert cma_name(leaf) == SUBJECT.cma_name
    assert BaseAsym.of_key(identity.slots[0].key) is base_asym
    signature = base_asym.sign(identity.slots[0].key, b"message", base_hash)
    public = identity.slots[0].key.public_key()
    assert leaf.public_key() == public
    assert base_asym.verify(public, signature, b"message", base_hash)


@pytest.mark.parametrize("base_asym", BaseAsym)
def test_the_same_seed_gives_the_same_bytes(base_asym: BaseAsym) -> None:
    first = make_identity(SEED, SUBJECT, base_asym).slots[0].chain
    identity_module.root_authority.cache_clear()
    assert make_identity(SEED, SUBJECT, base_asym).slots[0].chain == first


def test_keys_from_a_seed_do_not_change_from_one_release_to_the_next() -> None:
    root = root_certificate(SEED)
    assert root.subject.rfc4514_string() == "CN=tsmfs root 9cec58c0f3d53c19 SHA_384,O=tsmfs"


@pytest.mark.parametrize(
    "other",
    [
        replace(SUBJECT, device=0x5679),
        replace(SUBJECT, serial=None),
        replace(SUBJECT, name="0000:02:00.0"),
    ],
)
def test_every_device_has_its_own_key_under_the_same_root(other: Subject) -> None:
    one, two = make_identity(SEED, SUBJECT).slots[0], make_identity(SEED, other).slots[0]
    assert one.key.public_key() != two.key.public_key()
    assert one.certificates[0] == two.certificates[0]
    assert one.certificates[1] != two.certificates[1]


def test_another_seed_gives_another_root() -> None:
    assert root_pem(SEED) != root_pem(SEED + b"\0")
    assert root_certificate(SEED).subject != root_certificate(SEED + b"\0").subject


def test_the_slots_of_a_device_have_one_key_and_chains_of_their_own() -> None:
    identity = make_identity(SEED, SUBJECT, slots=(3, 0, 7))
    assert list(identity.slots) == [0, 3, 7]
    chains = {slot.chain for slot in identity.slots.values()}
    assert len(chains) == 3
    assert identity.slots[0].key.public_key() == identity.slots[7].key.public_key()
    assert [check(identity, number).subject.rfc4514_string() for number in (0, 7)] == [
        "CN=0000:01:00.0 slot 0,O=tsmfs",
        "CN=0000:01:00.0 slot 7,O=tsmfs",
    ]


def test_a_slot_that_is_not_there_is_not_made() -> None:
    identity = make_identity(SEED, SUBJECT)
    assert 1 not in identity.slots
    with pytest.raises(KeyError):
        _ = identity.slots[1]
    with pytest.raises(ValueError, match="slot 8"):
        make_identity(SEED, SUBJECT, slots=(8,))


def test_nothing_is_made_before_a_slot_is_looked_at_and_then_once() -> None:
    made: list[int] = []
    slot = make_identity(SEED, SUBJECT).slots[0]

    def make(number: int) -> Slot:
        made.append(number)
        return slot

    table = SlotTable((0, 1), make)
    assert len(table) == 2
    assert 1 in table
    assert made == []
    threads = [Thread(target=table.__getitem__, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_long_name_is_cut_so_that_certificates_stay_distinct() -> None:
    identity = make_identity(SEED, replace(SUBJECT, name="x" * 100))
    check(identity)
    names = {one.subject.rfc4514_string() for one in identity.slots[0].certificates}
    assert len(names) == 3


def test_a_chain_has_the_root_hash_that_was_negotiated() -> None:
    slot = make_identity(SEED, SUBJECT).slots[0]
    for base_hash in BaseHash:
        chain = Chain.parse(slot.chain_with(base_hash), base_hash)
        assert chain.root_hash == base_hash.digest(chain.ders[0])
    assert slot.digest == BaseHash.SHA_384.digest(slot.chain)


def _secret(key: PrivateKey) -> list[str]:
    """Spellings of a private key."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    numbers = key.private_numbers()
    number = numbers.d if isinstance(numbers, rsa.RSAPrivateNumbers) else numbers.private_value
    return [pem.splitlines()[2], str(number), f"{number:x}"]


@pytest.mark.parametrize("base_asym", BaseAsym)
def test_no_representation_has_a_private_key_or_the_seed(base_asym: BaseAsym) -> None:
    identity = make_identity(SEED, SUBJECT, base_asym)
    slot = identity.slots[0]
    _, issuer = identity_module.root_authority(SEED, base_asym, BaseHash.SHA_384)
    shown = "".join(map(repr, (identity, identity.slots, slot, issuer))) + f"{identity} {slot}"
    assert "key" not in shown.lower()
    assert SEED.hex() not in shown
    for spelling in _secret(slot.key) + _secret(issuer.key):
        assert spelling not in shown


def test_an_identity_cannot_be_pickled() -> None:
    with pytest.raises((TypeError, AttributeError)):
        pickle.dump(make_identity(SEED, SUBJECT).slots[0], io.BytesIO())


def test_keys_of_rsa_have_their_size_and_sound_primes() -> None:
    key = derive_key(SEED, "leaf", BaseAsym.RSAPSS_3072)
    assert key.key_size == 3072
    numbers = key.private_numbers()
    assert isinstance(numbers, rsa.RSAPrivateNumbers)
    assert numbers.p != numbers.q
    assert {numbers.p.bit_length(), numbers.q.bit_length()} == {1536}
    assert key is derive_key(SEED, "leaf", BaseAsym.RSAPSS_3072)


# --- As openssl sees it ------------------------------------------------------------------------


def openssl(*arguments: str | Path) -> str:
    """What openssl prints."""
    return subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("base_asym", BaseAsym)
def test_openssl_accepts_the_chain_and_shows_name_and_purpose(
    base_asym: BaseAsym, tmp_path: Path
) -> None:
    identity = make_identity(SEED, SUBJECT, base_asym)
    root, middle, leaf = tmp_path / "root.pem", tmp_path / "middle.pem", tmp_path / "leaf.pem"
    root.write_bytes(root_pem(SEED, base_asym))
    _, intermediate, end = identity.slots[0].certificates
    middle.write_bytes(intermediate.public_bytes(Encoding.PEM))
    leaf.write_bytes(end.public_bytes(Encoding.PEM))
    found = openssl("verify", "-x509_strict", "-CAfile", root, "-untrusted", middle, leaf)
    assert found == f"{leaf}: OK\n"
    text = openssl("x509", "-in", leaf, "-noout", "-text")
    assert f"othername: 2.23.147::{SUBJECT.cma_name.text}" in text
    assert "X509v3 Extended Key Usage: critical\n                1.3.6.1.4.1.412.274.3\n" in text
    assert "1.3.6.1.4.1.412.274.6:" in text
    assert "CA:FALSE" in text


def test_openssl_refuses_the_chain_under_another_root(tmp_path: Path) -> None:
    root, leaf = tmp_path / "root.pem", tmp_path / "leaf.pem"
    root.write_bytes(root_pem(b"other"))
    _, middle, end = make_identity(SEED, SUBJECT).slots[0].certificates
    leaf.write_bytes(end.public_bytes(Encoding.PEM) + middle.public_bytes(Encoding.PEM))
    with pytest.raises(subprocess.CalledProcessError):
        openssl("verify", "-CAfile", root, "-untrusted", leaf, leaf)


# --- From files --------------------------------------------------------------------------------


def pem(slot: Slot) -> list[bytes]:
    """The certificates of a slot."""
    return [one.public_bytes(Encoding.PEM) for one in slot.certificates]


def private(key: PrivateKey) -> bytes:
    """A key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def files(tmp_path: Path) -> SlotFiles:
    """Chain and key of a device, the key readable by its owner alone."""
    slot = make_identity(SEED, SUBJECT, BaseAsym.ECDSA_P256, BaseHash.SHA_256).slots[0]
    paths = SlotFiles(tmp_path / "chain.pem", tmp_path / "key.pem")
    paths.chain.write_bytes(b"".join(pem(slot)))
    paths.key.touch(0o600)
    paths.key.write_bytes(private(slot.key))
    return paths


def test_an_identity_is_loaded_as_it_was_made(files: SlotFiles) -> None:
    told: list[str] = []
    identity = load_identity({2: files}, BaseHash.SHA_256, told.append)
    made = make_identity(SEED, SUBJECT, BaseAsym.ECDSA_P256, BaseHash.SHA_256, slots=(2,))
    assert list(identity.slots) == [2]
    assert identity.base_asym is BaseAsym.ECDSA_P256
    assert identity.root == made.root == root_pem(SEED, BaseAsym.ECDSA_P256, BaseHash.SHA_256)
    assert check(identity, 2).public_key() == made.slots[2].key.public_key()
    assert identity.slots[2].key.private_numbers() == made.slots[2].key.private_numbers()
    assert told == []


def test_a_chain_file_may_begin_with_the_leaf(files: SlotFiles) -> None:
    before = load_identity({0: files}).slots[0].chain
    certificates = x509.load_pem_x509_certificates(files.chain.read_bytes())
    files.chain.write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in reversed(certificates))
    )
    assert load_identity({0: files}).slots[0].chain == before


def test_a_key_that_others_may_read_is_used_and_told_of(files: SlotFiles) -> None:
    files.key.chmod(0o640)
    told: list[str] = []
    assert 0 in load_identity({0: files}, report=told.append).slots
    assert told == [f"{files.key}: mode 0640, others than its owner may use the key"]


def _encrypted() -> bytes:
    key = derive_key(SEED, "x", BaseAsym.ECDSA_P256)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def _self_signed_ed25519() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOT_BEFORE, NOT_AFTER)
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def _chain(kind: str) -> bytes:
    slot = make_identity(SEED, SUBJECT, BaseAsym.ECDSA_P256, BaseHash.SHA_256).slots[0]
    root, middle, leaf = pem(slot)
    if kind == "ed25519":
        return _self_signed_ed25519()
    return {
        "key": private(slot.key),
        "no root": middle + leaf,
        "a gap": root + leaf,
        "nothing": b"",
        "no pem": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no root", "has no root, neither first nor last"),
        ("a gap", "CN=0000:01:00.0 slot 0,O=tsmfs under"),
        ("nothing", r"chain\.pem has no readable certificates in PEM$"),
        ("no pem", r"chain\.pem has no readable certificates in PEM$"),
        ("key", r"chain\.pem is a key, not a chain of certificates in PEM$"),
        ("ed25519", r"CN=x is signed with ED25519, not with ECDSA or RSA$"),
    ],
)
def test_a_chain_file_that_is_no_chain_is_refused(files: SlotFiles, kind: str, reason: str) -> None:
    files.chain.write_bytes(_chain(kind))
    with pytest.raises(IdentityError, match=reason):
        load_identity({0: files})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (private(derive_key(SEED, "x", BaseAsym.ECDSA_P256)), "is not the key of the leaf"),
        (_encrypted(), "has a passphrase"),
        (b"", "has no private key that can be read"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "has no private key"),
        (
            b"-----BEGIN PRIVATE KEY-----\n"
            b"MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n"
            b"-----END PRIVATE KEY-----\n",
            "has neither a key of ECDSA nor of RSA",
        ),
    ],
)
def test_a_key_file_without_the_key_of_the_leaf_is_refused(
    files: SlotFiles, content: bytes, reason: str
) -> None:
    files.key.write_bytes(content)
    with pytest.raises(IdentityError, match=reason) as caught:
        load_identity({0: files})
    assert content.decode()[40:60] not in str(caught.value) or not content


def test_a_file_that_is_not_there_is_an_oserror(files: SlotFiles) -> None:
    files.key.unlink()
    with pytest.raises(FileNotFoundError):
        load_identity({0: files})


def test_an_identity_needs_slots_of_one_algorithm(files: SlotFiles, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="needs a slot"):
        load_identity({})
    slot = make_identity(SEED, SUBJECT).slots[0]
    other = SlotFiles(tmp_path / "other.pem", tmp_path / "other.key")
    other.chain.write_bytes(b"".join(pem(slot)))
    other.key.write_bytes(private(slot.key))
    with pytest.raises(IdentityError, match="ECDSA_P256, ECDSA_P384 found"):
        load_identity({0: files, 1: other})


# --- To be refused -----------------------------------------------------------------------------


def origin(base_asym: BaseAsym = BaseAsym.ECDSA_P384, slots: Sequence[int] = (0,)) -> Origin:
    return Origin(SEED, SUBJECT, base_asym, BaseHash.SHA_384, slots)


@pytest.mark.parametrize("base_asym", ELLIPTIC)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tamper.expired, "was valid until 2024-03-31"),
        (tamper.self_signed, "is self-signed and no root"),
        (tamper.foreign, "is none of the roots"),
    ],
)
def test_a_tampered_identity_is_refused_for_its_reason(
    make: Callable[[Origin], Identity], reason: str, base_asym: BaseAsym
) -> None:
    identity = make(origin(base_asym, slots=(0, 5)))
    for number in (0, 5):
        with pytest.raises(CertificateError, match=reason):
            check(identity, number)


def test_a_wrong_name_is_all_that_is_wrong_with_it() -> None:
    found = cma_name(check(tamper.wrong_san(origin())))
    assert found == replace(SUBJECT.cma_name, device=0x5679)


def test_a_foreign_identity_is_sound_under_its_own_root() -> None:
    identity = tamper.foreign(origin())
    check_chain(
        identity.slots[0].chain,
        base_hash=identity.base_hash,
        base_asym=identity.base_asym,
        roots=[root_certificate(tamper.foreign_seed(SEED))],
        now=NOW,
    )


@pytest.mark.parametrize(
    "make", [tamper.expired, tamper.self_signed, tamper.foreign, tamper.wrong_san]
)
def test_a_tampered_identity_signs_with_the_key_of_its_leaf(
    make: Callable[[Origin], Identity],
) -> None:
    slot = make(origin()).slots[0]
    assert slot.certificates[-1].public_key() == slot.key.public_key()
