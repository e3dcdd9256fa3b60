# SPDX-License-Identifier: MIT
"""Tests of the algorithms and of what is offered and chosen."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.algorithms import (
    AeadSuite,
    Algorithms,
    BaseAsym,
    BaseHash,
    CryptoError,
    DheGroup,
    MeasurementHash,
    Offer,
    PrivateKey,
    bits,
    choose,
    unseal,
)
from tsmfs.spdm.messages import AlgorithmType


@cache
def key_of(base_asym: BaseAsym) -> PrivateKey:
    if base_asym.curve is None:
        return rsa.generate_private_key(65537, base_asym.signature_size * 8)
    return ec.generate_private_key(base_asym.curve)


@pytest.mark.parametrize("base_asym", BaseAsym)
@pytest.mark.parametrize("base_hash", BaseHash)
def test_a_signature_verifies_under_its_key_alone(base_asym: BaseAsym, base_hash: BaseHash) -> None:
    key = key_of(base_asym)
    signature = base_asym.sign(key, b"message", base_hash)
    assert len(signature) == base_asym.signature_size
    public = key.public_key()
    assert base_asym.verify(public, signature, b"message", base_hash)
    assert not base_asym.verify(public, signature, b"another", base_hash)
    assert not base_asym.verify(public, signature[:-1], b"message", base_hash)
    flipped = bytes((signature[0] ^ 1,)) + signature[1:]
    assert not base_asym.verify(public, flipped, b"message", base_hash)
    assert not base_asym.verify(public, bytes(len(signature)), b"message", base_hash)
    others = [other for other in BaseAsym if other is not base_asym]
    for other in others:
        foreign = key_of(other).public_key()
        assert not base_asym.verify(foreign, signature, b"message", base_hash)
        with pytest.raises(ValueError, match="not one of"):
            base_asym.sign(key_of(other), b"message", base_hash)


@pytest.mark.parametrize("base_asym", BaseAsym)
def test_a_key_tells_its_algorithm(base_asym: BaseAsym) -> None:
    assert BaseAsym.of_key(key_of(base_asym)) is base_asym
    assert BaseAsym.of_key(key_of(base_asym).public_key()) is base_asym


def test_a_key_of_no_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="no signature algorithm"):
        BaseAsym.of_key(ec.generate_private_key(ec.SECP521R1()))


@pytest.mark.parametrize("group", DheGroup)
def test_both_sides_of_an_exchange_get_the_same_secret(group: DheGroup) -> None:
    ours, our_public = group.generate()
    theirs, their_public = group.generate()
    assert len(our_public) == group.exchange_size
    secret = group.shared(ours, their_public)
    assert len(secret) == group.secret_size
    assert group.shared(theirs, our_public) == secret


@pytest.mark.parametrize("group", DheGroup)
def test_exchange_data_that_is_no_point_is_refused(group: DheGroup) -> None:
    private, public = group.generate()
    for wrong in (bytes(group.exchange_size), public[:-1], public[:-1] + bytes((public[-1] ^ 1,))):
        with pytest.raises(CryptoError):
            group.shared(private, wrong)


@pytest.mark.parametrize("suite", AeadSuite)
def test_only_what_was_sealed_can_be_opened(suite: AeadSuite) -> None:
    cipher, iv = suite.cipher(bytes(suite.key_size)), bytes(suite.iv_size)
    sealed = cipher.encrypt(iv, b"plain", b"associated")
    assert len(sealed) == 5 + suite.tag_size
    assert unseal(cipher, iv, sealed, b"associated") == b"plain"
    for changed, associated in ((sealed[:-1] + b"x", b"associated"), (sealed, b"other")):
        with pytest.raises(CryptoError):
            unseal(cipher, iv, changed, associated)


@pytest.mark.parametrize("base_hash", BaseHash)
def test_hashes_are_those_of_hashlib(base_hash: BaseHash) -> None:
    expected = hashlib.new(base_hash.label, b"data").digest()
    running = base_hash.new(b"da")
    running.update(b"ta")
    assert base_hash.digest(b"data") == running.digest() == expected
    assert len(expected) == base_hash.size


@given(st.permutations(list(BaseHash)), st.integers(0, 7))
def test_the_first_preference_that_is_offered_is_chosen(
    preference: list[BaseHash], offered: int
) -> None:
    chosen = choose(preference, offered)
    known = [member for member in preference if member.bit & offered]
    assert chosen is (known[0] if known else None)


def test_bits_are_those_of_the_specification() -> None:
    assert bits(BaseHash) == 0b111
    assert bits(BaseAsym) == 0x98
    assert bits(DheGroup) == 0x18
    assert bits(AeadSuite) == 0b111
    assert bits(MeasurementHash) == 0b1111


def test_an_offer_tells_its_tables_in_ascending_order() -> None:
    tables = Offer(dhe=(DheGroup.SECP_256_R1,), aead=(AeadSuite.AES_128_GCM,)).tables
    assert [(table.kind, table.supported) for table in tables] == [
        (AlgorithmType.DHE, 0x08),
        (AlgorithmType.AEAD, 0x01),
        (AlgorithmType.KEY_SCHEDULE, 0x01),
    ]


def test_sizes_follow_from_the_algorithms() -> None:
    sizes = Algorithms(
        BaseHash.SHA_384, BaseAsym.ECDSA_P256, None, DheGroup.SECP_384_R1, AeadSuite.AES_256_GCM
    ).sizes
    assert (sizes.hash, sizes.signature, sizes.exchange, sizes.verify) == (48, 64, 96, 48)
    assert sizes.summary == 0
    assert Algorithms(BaseHash.SHA_256, BaseAsym.RSAPSS_3072).sizes.exchange == 0
