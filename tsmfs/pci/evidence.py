# SPDX-License-Identifier: MIT
"""Device evidence: what a TSM collected of a device, for relying parties to read.

One store for each context, with its own reader/writer lock below ``pci_tsm_rwsem``
(drivers/pci/tsm/evidence.c). The netlink server reads it through :class:`PciEvidence`.
"""

from __future__ import annotations

import enum
import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tsmfs.kernel.errors import fail
from tsmfs.kernel.locking import RwSem

if TYPE_CHECKING:
    from tsmfs.pci.core import PciCore
    from tsmfs.pci.pci_dev import PciDev

EVIDENCE_OBJECT_MAX = 16 << 20
"""Bytes that one object can have."""


class EvidenceType(enum.IntEnum):
    """Objects of evidence (``enum pci_tsm_evidence_type``)."""

    CERT0 = 0
    CERT1 = 1
    CERT2 = 2
    CERT3 = 3
    CERT4 = 4
    CERT5 = 5
    CERT6 = 6
    CERT7 = 7
    VCA = 8
    MEASUREMENTS = 9
    REPORT = 10


class HashAlgo(enum.Enum):
    """Digest algorithms, by their names in :mod:`hashlib`."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


@dataclass(slots=True, eq=False)
class PciTsmEvidence:
    """Evidence of one context (``struct pci_tsm_evidence``)."""

    slot: int = 0
    """Certificate slot in use."""
    digest_algo: HashAlgo = HashAlgo.SHA384
    generation: int = 0
    """0 while there is none; every refresh makes it one more."""
    objects: dict[EvidenceType, bytes] = field(default_factory=dict)
    digests: dict[EvidenceType, bytes] = field(default_factory=dict)
    validated: int | None = None
    """Generation that was validated last."""
    lock: RwSem = field(default_factory=lambda: RwSem("pci_tsm_evidence"))

    def update(self, objects: dict[EvidenceType, bytes]) -> None:
        """Present *objects* from now on, each with the TSM's digest; a new generation.

        EFBIG when one is too large.
        """
        for kind, data in objects.items():
            if len(data) > EVIDENCE_OBJECT_MAX:
                fail(errno.EFBIG, f"{kind.name} of {len(data)} bytes")
        digests = {
            kind: hashlib.new(self.digest_algo.value, data).digest()
            for kind, data in objects.items()
            if data
        }
        with self.lock.write():
            self.objects = dict(objects)
            self.digests = digests
            self.generation += 1

    def validate(self, generation: int) -> None:
        """Record that *generation* was found good; EAGAIN when it is not the current one."""
        with self.lock.write():
            if not self.generation or generation != self.generation:
                fail(errno.EAGAIN, "evidence updated")
            self.validated = generation

    @property
    def is_validated(self) -> bool:
        """Whether the current generation was validated: a later one revokes it."""
        return self.validated is not None and self.validated == self.generation


@dataclass(slots=True, eq=False)
class PciEvidenceReader:
    """One function's evidence as a reader sees it, anew at each call: it may go meanwhile.

    A context that comes after the one that the reader began with counts its generations from 1
    again; to the reader it is an update.
    """

    pci: PciCore
    pdev: PciDev
    _began_with: PciTsmEvidence | None = None

    @contextmanager
    def _evidence(self) -> Iterator[PciTsmEvidence]:
        with self.pci.tsm_rwsem.read_interruptible():
            tsm = self.pdev.tsm
            if tsm is None:
                fail(errno.ENXIO, "no TSM context")
            evidence = tsm.evidence
            if self._began_with is None:
                self._began_with = evidence
            elif self._began_with is not evidence:
                fail(errno.EAGAIN, "evidence updated during read")
            with evidence.lock.read_interruptible():
                yield evidence

    def generation(self) -> int:
        """The current generation; ENXIO without a context, or before it has evidence."""
        with self._evidence() as evidence:
            if not evidence.generation:
                fail(errno.ENXIO, "no evidence available")
            return evidence.generation

    def object_size(self, kind: int) -> int:
        """Bytes of an object, 0 when the TSM does not have it."""
        with self._evidence() as evidence:
            return len(evidence.objects.get(EvidenceType(kind), b""))

    def read(self, kind: int, offset: int, count: int) -> bytes:
        """Bytes of an object."""
        with self._evidence() as evidence:
            return evidence.objects.get(EvidenceType(kind), b"")[offset : offset + count]

    def digest(self, kind: int) -> bytes:
        """The TSM's digest of an object, empty when it has none."""
        with self._evidence() as evidence:
            return evidence.digests.get(EvidenceType(kind), b"")

    def refresh(self, nonce: bytes) -> None:
        """Let the TSM produce evidence over *nonce*; EOPNOTSUPP when it cannot, else its errno."""
        self.pci.tsm.refresh_evidence(self.pdev, nonce)

    def validate(self, generation: int) -> None:
        """Record that *generation* was found good; EAGAIN when it is not the current one."""
        with self.pci.tsm_rwsem.read_interruptible():
            tsm = self.pdev.tsm
            if tsm is None:
                fail(errno.ENXIO, "no TSM context")
            tsm.evidence.validate(generation)


@dataclass(frozen=True, slots=True, eq=False)
class PciEvidence:
    """What the netlink server asks for evidence: the subsystem ``pci`` is here."""

    pci: PciCore

    def open(self, subsys: str, name: str) -> PciEvidenceReader:
        """A reader of the function called *name*: EOPNOTSUPP another subsystem, ENODEV no such."""
        if subsys != "pci":
            fail(errno.EOPNOTSUPP, f"no evidence of subsystem '{subsys}'")
        pdev = self.pci.find_device(name)
        if pdev is None:
            fail(errno.ENODEV, f"device '{name}' not found")
        return PciEvidenceReader(self.pci, pdev)
