# SPDX-License-Identifier: MIT
"""Identities that a verifier has to refuse, each for one reason; for testing verifiers.

Each takes what `identity.make_identity` takes and differs from its result in that one thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.certificates import CmaName
from tsmfs.spdm.identity import (
    NOT_AFTER,
    NOT_BEFORE,
    Identity,
    Issuer,
    Slot,
    SlotTable,
    Subject,
    distinguished_name,
    leaf_extensions,
    leaf_key,
    leaf_name,
    make_identity,
    root_authority,
    slot_authority,
)

EXPIRED = NOT_BEFORE + timedelta(days=90)
"""Until when the leaf of `expired` was valid."""


def expired(
    seed: bytes,
    subject: Subject,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
    slots: Sequence[int] = (0,),
) -> Identity:
    """An identity whose leaf was valid until `EXPIRED`."""
    return _other_leaf(seed, subject, base_asym, base_hash, slots, subject.cma_name, EXPIRED)


def wrong_san(
    seed: bytes,
    subject: Subject,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
    slots: Sequence[int] = (0,),
) -> Identity:
    """An identity whose leaf names another device of the same vendor."""
    name = replace(subject.cma_name, device=subject.device ^ 1)
    return _other_leaf(seed, subject, base_asym, base_hash, slots, name, NOT_AFTER)


def self_signed(
    seed: bytes,
    subject: Subject,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
    slots: Sequence[int] = (0,),
) -> Identity:
    """An identity whose leaf is its whole chain, signed with its own key."""

    def make(number: int) -> Slot:
        key = leaf_key(seed, subject, base_asym)
        name = leaf_name(subject, number)
        issuer = Issuer(distinguished_name(name), key, base_hash)
        leaf = issuer.issue(name, key.public_key(), leaf_extensions(subject.cma_name))
        return Slot((leaf,), key, base_hash)

    return Identity(SlotTable(slots, make), base_asym, base_hash)


def foreign(
    seed: bytes,
    subject: Subject,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
    slots: Sequence[int] = (0,),
) -> Identity:
    """An identity that is sound, under the root of another machine."""
    return make_identity(foreign_seed(seed), subject, base_asym, base_hash, slots)


def foreign_seed(seed: bytes) -> bytes:
    """The seed of the machine whose root `foreign` has."""
    return hashlib.sha256(b"foreign" + seed).digest()


def _other_leaf(
    seed: bytes,
    subject: Subject,
    base_asym: BaseAsym,
    base_hash: BaseHash,
    slots: Sequence[int],
    name: CmaName,
    not_after: datetime,
) -> Identity:
    def make(number: int) -> Slot:
        root, issuer = root_authority(seed, base_asym, base_hash)
        intermediate, issuer = slot_authority(seed, subject, number, issuer, base_asym)
        key = leaf_key(seed, subject, base_asym)
        leaf = issuer.issue(
            leaf_name(subject, number), key.public_key(), leaf_extensions(name), not_after=not_after
        )
        return Slot((root, intermediate, leaf), key, base_hash)

    return Identity(SlotTable(slots, make), base_asym, base_hash)
