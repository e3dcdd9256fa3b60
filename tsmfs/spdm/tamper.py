# SPDX-License-Identifier: MIT
"""Identities that a verifier has to refuse, each for one reason; for testing verifiers.

Each differs from `Origin.identity` in that one thing.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

from tsmfs.spdm.identity import (
    NOT_AFTER,
    NOT_BEFORE,
    Identity,
    Issuer,
    Origin,
    Slot,
    SlotTable,
    distinguished_name,
    leaf_extensions,
    leaf_key,
    leaf_name,
)

EXPIRED = NOT_BEFORE + timedelta(days=90)
"""Until when the leaf of `expired` was valid."""


def expired(origin: Origin) -> Identity:
    """An identity whose leaf was valid until `EXPIRED`."""
    return origin.identity_with(origin.subject.cma_name, EXPIRED)


def wrong_san(origin: Origin) -> Identity:
    """An identity whose leaf names another device of the same vendor."""
    subject = origin.subject
    name = replace(subject.cma_name, device=subject.device ^ 1)
    return origin.identity_with(name, NOT_AFTER)


def self_signed(origin: Origin) -> Identity:
    """An identity whose leaf is its whole chain, signed with its own key."""
    subject, base_hash = origin.subject, origin.base_hash

    def make(number: int) -> Slot:
        key = leaf_key(origin.seed, subject, origin.base_asym)
        name = leaf_name(subject, number)
        issuer = Issuer(distinguished_name(name), key, base_hash)
        leaf = issuer.issue(name, key.public_key(), leaf_extensions(subject.cma_name))
        return Slot((leaf,), key, base_hash)

    return Identity(SlotTable(origin.slots, make), origin.base_asym, base_hash)


def foreign(origin: Origin) -> Identity:
    """An identity that is sound, under the root of another machine."""
    return replace(origin, seed=foreign_seed(origin.seed)).identity()


def foreign_seed(seed: bytes) -> bytes:
    """The seed of the machine whose root `foreign` has."""
    return hashlib.sha256(b"foreign" + seed).digest()
