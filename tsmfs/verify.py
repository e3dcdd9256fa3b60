# SPDX-License-Identifier: MIT
"""Checks of a device's evidence, as one who relies on it makes them: bytes in, a table out.

Nothing here asks a machine: the evidence is what was read (`load` for saved files), the device is
described by :class:`DeviceFacts`.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Self, TypeVar

from cryptography import x509

from tsmfs.spdm.algorithms import (
    A,
    AeadSuite,
    Algorithms,
    BaseAsym,
    BaseHash,
    DheGroup,
    MeasurementHash,
)
from tsmfs.spdm.certificates import (
    CertificateError,
    Chain,
    CmaName,
    check_path,
    check_root,
    check_usage,
    check_validity,
    cma_name,
    public_key,
    subject_of,
    utc,
)
from tsmfs.spdm.measurements import FIRST_INDEX, LAST_INDEX, MeasurementBlock, parse_record
from tsmfs.spdm.messages import (
    CONTENT_MASK,
    MAX_OPAQUE_SIZE,
    MEASUREMENT_ALL,
    MEASUREMENT_COUNT,
    SLOT_COUNT,
    SLOT_MASK,
    SUPPORTED_ALGORITHMS,
    AlgorithmsResponse,
    AlgorithmType,
    Capabilities,
    ContentChanged,
    GetCapabilities,
    GetMeasurements,
    GetVersion,
    MeasurementAttributes,
    Measurements,
    NegotiateAlgorithms,
    ResponderFlags,
    Version,
    VersionResponse,
)
from tsmfs.spdm.tdisp import PAGE_SHIFT, InterfaceInfo, MmioRange, RangeAttributes, Report
from tsmfs.spdm.transcript import SigningContext, l1, signing_message
from tsmfs.spdm.wire import NO_SIZES, Sizes, SpdmDecodeError

BAR_COUNT = 6

_IORESOURCE_MEM = 0x00000200
_DSN_CAPABILITY = 0x0003
_EXTENDED_CONFIG = 0x100
_HEADER_TYPE = 0x0E
_HEADER_MASK = 0x7F
_CAPABILITIES_SIZE = 20
_PAGE_LIMIT = 1 << 64 - PAGE_SHIFT
_INTERFACE_INFO = sum(InterfaceInfo)
_RANGE_ATTRIBUTES = sum(RangeAttributes)
_DIGESTS = {32: "sha256", 48: "sha384", 64: "sha512"}

T = TypeVar("T")


class CheckName(StrEnum):
    """What is checked, in the order of the table; the values do not change."""

    VCA = "vca"
    """The negotiation is whole and comes to one version and one algorithm of each kind."""
    CHAIN = "chain"
    """The chain has the format of SPDM, and certificates in it."""
    ROOT = "root"
    """It begins at a root that is trusted."""
    PATH = "path"
    """Each certificate was signed by the one before it, which might do so."""
    VALIDITY = "validity"
    """All certificates are valid now."""
    USAGE = "usage"
    """The key of the leaf may authenticate a responder, and is of the negotiated algorithm."""
    NAME = "name"
    """The leaf names the device."""
    MEASUREMENTS = "measurements"
    """The transcript consists of requests and their responses, from the slot of the chain."""
    SIGNATURE = "signature"
    """The leaf's key signed VCA and transcript."""
    NONCE = "nonce"
    """It signed over the nonce that was asked for."""
    FRESHNESS = "freshness"
    """Nothing changed while it was measured, and nothing repeats what was seen before."""
    RECORD = "record"
    """The measurement record consists of measurements."""
    REFERENCE = "reference"
    """The measurements are those that were expected."""
    DIGESTS = "digests"
    """The TSM's digests are those of the objects."""
    REPORT = "report"
    """The interface report has the format of TDISP, and reserved bits are zero."""
    RANGES = "ranges"
    """Its ranges have pages and do not overlap."""
    RESOURCE = "resource"
    """Its ranges lie in the BARs of the device, each in the one that it names."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: CheckName
    ok: bool | None
    """None if it does not apply, or could not be made because another one failed."""
    reason: str
    """What was found; where it failed, what was expected and what was found."""


class _FailedError(ValueError):
    """A check fails."""


class _InapplicableError(Exception):
    """A check cannot be made."""


# --- What is checked ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """The objects of a device's evidence; those that the TSM does not have are empty."""

    chains: Mapping[int, bytes]
    """Certificate chains by slot, in the format of SPDM."""
    slot: int
    """The slot in use."""
    vca: bytes = b""
    """GET_VERSION to ALGORITHMS, one behind the other."""
    measurements: bytes = b""
    """GET_MEASUREMENTS and MEASUREMENTS, once or several times."""
    report: bytes = b""
    """The TDISP interface report."""
    digests: Mapping[str, bytes] = field(default_factory=dict)
    """The TSM's digests by the names of the objects; empty if they were not read."""

    @classmethod
    def of(cls, objects: Mapping[str, bytes], digests: Mapping[str, bytes] | None = None) -> Self:
        """Evidence from its objects by name: cert0 to cert7, vca, measurements, report.

        The slot in use is that of the last request for measurements, else the first one with a
        chain.
        """
        chains = {
            slot: objects[f"cert{slot}"] for slot in range(SLOT_COUNT) if objects.get(f"cert{slot}")
        }
        measurements = objects.get("measurements", b"")
        slot = _slot_of(measurements)
        if slot is None:
            slot = min(chains, default=0)
        return cls(
            chains=chains,
            slot=slot,
            vca=objects.get("vca", b""),
            measurements=measurements,
            report=objects.get("report", b""),
            digests={name: digest for name, digest in (digests or {}).items() if digest},
        )

    @property
    def chain(self) -> bytes:
        """The chain of the slot in use."""
        return self.chains.get(self.slot, b"")

    @property
    def objects(self) -> dict[str, bytes]:
        """All objects that are not empty, by name."""
        found = {f"cert{slot}": chain for slot, chain in self.chains.items()}
        found |= {"vca": self.vca, "measurements": self.measurements, "report": self.report}
        return {name: content for name, content in found.items() if content}


def load(directory: Path, digests: Path | None = None) -> Evidence:
    """The evidence that `tsmfs evidence read --out` wrote to `directory`.

    `digests` is the directory of a second read with `--digest`. Raises OSError if there is none.
    """
    return Evidence.of(_files(directory), _files(digests) if digests is not None else None)


def _files(directory: Path) -> dict[str, bytes]:
    files = {path.stem: path.read_bytes() for path in sorted(directory.iterdir())
             if path.suffix == ".bin"}  # fmt: skip
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no evidence", str(directory))
    return files


@dataclass(frozen=True)
class DeviceFacts:
    """What the kernel shows of the device."""

    name: CmaName
    resource: tuple[tuple[int, int, int], ...] = ()
    """Start, end (inclusive) and flags of its resources, the BARs first."""
    mmio_offset: int = 0
    """Bytes that the TSM had added to the addresses in the report (MMIO_REPORTING_OFFSET)."""

    @classmethod
    def from_sysfs(cls, directory: Path) -> Self:
        """The facts of the PCI function whose sysfs directory is `directory`.

        Raises OSError: with EACCES if it may read only the head of the configuration space.
        """
        config = (directory / "config").read_bytes()
        if len(config) < _EXTENDED_CONFIG:
            raise PermissionError(
                errno.EACCES, "the serial number is not in what may be read of", "config"
            )

        def number(attribute: str) -> int:
            return int((directory / attribute).read_text(), 16)

        is_device = config[_HEADER_TYPE] & _HEADER_MASK == 0
        lines = (directory / "resource").read_text().splitlines()
        return cls(
            CmaName(
                vendor=number("vendor"),
                device=number("device"),
                class_code=number("class"),
                revision=number("revision"),
                subsystem_vendor=number("subsystem_vendor") if is_device else None,
                subsystem=number("subsystem_device") if is_device else None,
                serial=_serial(config),
            ),
            tuple((start, end, flags) for start, end, flags in map(_resource, lines)),
        )

    @property
    def bars(self) -> tuple[tuple[int, int, int], ...]:
        """Number, start and end (inclusive) of the BARs with memory."""
        return tuple(
            (number, start, end)
            for number, (start, end, flags) in enumerate(self.resource[:BAR_COUNT])
            if flags & _IORESOURCE_MEM and end >= start
        )


def _resource(line: str) -> tuple[int, int, int]:
    start, end, flags = (int(word, 16) for word in line.split())
    return start, end, flags


def _serial(config: bytes) -> bytes | None:
    """The Device Serial Number (PCIe 7.9.3), as Linux prints it: 0 is none, too."""
    at, seen = _EXTENDED_CONFIG, set[int]()
    while at and at not in seen and at + 12 <= len(config):
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if header & 0xFFFF == _DSN_CAPABILITY:
            serial = config[at + 4 : at + 12][::-1]
            return serial if any(serial) else None
        at = header >> 20
    return None


# --- The negotiation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Negotiated:
    """What VCA came to."""

    version: int
    flags: ResponderFlags
    algorithms: Algorithms

    @property
    def measurement_sizes(self) -> Sizes:
        """Sizes of a MEASUREMENTS that is signed."""
        return Sizes(signature=self.algorithms.base_asym.signature_size)


def parse_vca(vca: bytes) -> Negotiated:
    """What the six messages in `vca` negotiated. Raises ValueError."""
    get_version, at = GetVersion.take(vca)
    versions, size = VersionResponse.take(vca[at:])
    at += size
    if (get_version.version, versions.version) != (Version.V1_0, Version.V1_0):
        raise _FailedError("GET_VERSION and VERSION of version 1.0 expected, others found")
    get_capabilities, size = GetCapabilities.take(vca[at:])
    at += size
    capabilities, size = _take_capabilities(vca[at:])
    at += size
    offer, size = NegotiateAlgorithms.take(vca[at:])
    at += size
    answer, size = AlgorithmsResponse.take(vca[at:])
    at += size
    if at != len(vca):
        raise _FailedError(f"{len(vca) - at} bytes behind ALGORITHMS")
    version = capabilities.version
    for message in (get_capabilities, offer, answer):
        if message.version != version:
            raise _FailedError(
                f"{type(message).__name__} of version {version:#04x} expected, "
                f"{message.version:#04x} found"
            )
    if version not in (Version.V1_2, Version.V1_3):
        raise _FailedError(f"version 0x12 or 0x13 expected, {version:#04x} found")
    if version not in {entry.version for entry in versions.entries}:
        raise _FailedError(f"version {version:#04x} is none of those that VERSION has")
    offered = {table.kind: table.supported for table in offer.tables}
    selected = {table.kind: table.supported for table in answer.tables}

    def table(kind: AlgorithmType, members: Iterable[A]) -> A | None:
        return _perhaps(members, selected.get(kind, 0), offered.get(kind, 0), kind.name)

    base_hash = _perhaps(BaseHash, answer.base_hash, offer.base_hash, "hash")
    base_asym = _perhaps(BaseAsym, answer.base_asym, offer.base_asym, "signature")
    # The responder's own choice: a requester offers none.
    measured = answer.measurement_hash
    if base_hash is None or base_asym is None:
        raise _FailedError("ALGORITHMS selects no hash or no signature")
    return Negotiated(
        version,
        ResponderFlags(capabilities.flags),
        Algorithms(
            base_hash=base_hash,
            base_asym=base_asym,
            measurement_hash=_perhaps(MeasurementHash, measured, measured, "measurement hash"),
            dhe=table(AlgorithmType.DHE, DheGroup),
            aead=table(AlgorithmType.AEAD, AeadSuite),
            other_params=answer.other_params,
        ),
    )


def _take_capabilities(data: bytes) -> tuple[Capabilities, int]:
    """CAPABILITIES at the start of `data`; a block of algorithms in it tells its own size."""
    size = _CAPABILITIES_SIZE
    if len(data) > size and data[0] >= Version.V1_3 and data[2] & SUPPORTED_ALGORITHMS:
        size += int.from_bytes(data[size + 2 : size + 4], "little")
    return Capabilities.take(data[:size])


def _perhaps(members: Iterable[A], selected: int, offered: int, what: str) -> A | None:
    """The one of `members` that is selected, None if none is."""
    if not selected:
        return None
    if selected & ~offered:
        raise _FailedError(f"{what}: one of {offered:#x} expected, {selected:#x} found")
    for member in members:
        if member.bit == selected:
            return member
    raise _FailedError(f"{what}: one known algorithm expected, {selected:#x} found")


# --- The transcript of measurements ------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A request for measurements and its response."""

    request: GetMeasurements
    response: Measurements
    start: int
    """Where L1/L2 of the signature begins in the transcript."""
    end: int
    """Where the response ends, behind its signature."""

    @property
    def signed(self) -> bool:
        """Whether the response has a signature."""
        return bool(self.request.attributes & MeasurementAttributes.SIGNATURE)


def parse_measurements(data: bytes, negotiated: Negotiated) -> tuple[Measured, ...]:
    """The pairs in a transcript without VCA. Raises ValueError.

    A signature ends what it covers: the next pair begins anew (DSP0274 10.11.1).
    """
    pairs: list[Measured] = []
    start = at = 0
    while at < len(data):
        request, size = GetMeasurements.take(data, start=at)
        at += size
        signed = request.attributes & MeasurementAttributes.SIGNATURE
        sizes = negotiated.measurement_sizes if signed else NO_SIZES
        response, size = Measurements.take(data, sizes, at)
        at += size
        for message in (request, response):
            if message.version != negotiated.version:
                raise _FailedError(
                    f"version {negotiated.version:#04x} expected, {message.version:#04x} found"
                )
        if request.context != response.context:
            raise _FailedError(
                f"context {request.context.hex()} expected, {response.context.hex()} found"
            )
        if len(response.opaque) > MAX_OPAQUE_SIZE:
            raise _FailedError(
                f"{MAX_OPAQUE_SIZE} bytes of opaque data expected, {len(response.opaque)} found"
            )
        pairs.append(Measured(request, response, start, at))
        if signed:
            start = at
    return tuple(pairs)


def measured_values(evidence: Evidence) -> dict[int, bytes]:
    """The measurements in `evidence` by index, to compare later ones with. Raises ValueError."""
    pairs = parse_measurements(evidence.measurements, parse_vca(evidence.vca))
    return {
        block.index: block.value for pair in pairs for block in parse_record(pair.response.record)
    }


def _slot_of(measurements: bytes) -> int | None:
    """The slot in the last request that is signed; the responses need no negotiation to be found.

    Without the size of the signature only a transcript with one such request tells it.
    """
    at = 0
    while at < len(measurements):
        try:
            request, size = GetMeasurements.take(measurements, start=at)
            if request.attributes & MeasurementAttributes.SIGNATURE:
                return request.slot & SLOT_MASK
            at += size
            at += Measurements.take(measurements, start=at)[1]
        except SpdmDecodeError:
            return None
    return None


# --- The table ---------------------------------------------------------------------------------


def load_roots(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file. Raises OSError, and ValueError if there is none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path}: no certificate in PEM") from None


def verify_evidence(
    evidence: Evidence,
    *,
    roots: Iterable[x509.Certificate],
    device: DeviceFacts | None = None,
    nonce: bytes | None = None,
    now: datetime | None = None,
    reference: Mapping[int, bytes] | None = None,
    earlier: Sequence[Evidence] = (),
) -> list[Check]:
    """Every check of `evidence`, in the order of `CheckName`; none raises.

    `roots` are trusted; `device` is what the kernel shows of it; `nonce` is what was asked for
    with the evidence; `now` has a time zone; `reference` has values of measurements by index, as
    their blocks have them; `earlier` is evidence of before, none of which may come again.
    """
    return _Verification(
        evidence, tuple(roots), device, nonce, now or datetime.now(UTC), reference, earlier
    ).run()


@dataclass
class _Verification:
    """The checks of one evidence; what one finds others need."""

    evidence: Evidence
    roots: tuple[x509.Certificate, ...]
    device: DeviceFacts | None
    nonce: bytes | None
    now: datetime
    reference: Mapping[int, bytes] | None
    earlier: Sequence[Evidence]
    negotiated: Negotiated | None = None
    chain_hash: BaseHash | None = None
    """The hash of the chain: the negotiated one, or what its size fits."""
    chain: Chain | None = None
    pairs: tuple[Measured, ...] | None = None
    blocks: Mapping[int, MeasurementBlock] | None = None
    parsed_report: Report | None = None

    def run(self) -> list[Check]:
        methods: Mapping[CheckName, Callable[[], str]] = {
            CheckName.VCA: self._vca,
            CheckName.CHAIN: self._chain,
            CheckName.ROOT: self._root,
            CheckName.PATH: self._path,
            CheckName.VALIDITY: self._validity,
            CheckName.USAGE: self._usage,
            CheckName.NAME: self._name,
            CheckName.MEASUREMENTS: self._measurements,
            CheckName.SIGNATURE: self._signature,
            CheckName.NONCE: self._nonce,
            CheckName.FRESHNESS: self._freshness,
            CheckName.RECORD: self._record,
            CheckName.REFERENCE: self._reference,
            CheckName.DIGESTS: self._digests,
            CheckName.REPORT: self._report,
            CheckName.RANGES: self._ranges,
            CheckName.RESOURCE: self._resource,
        }
        return [_check(name, methods[name]) for name in CheckName]

    # Each of these returns what it found, or raises ValueError with what it expected and found.

    def _vca(self) -> str:
        if not self.evidence.vca:
            raise _FailedError("six messages expected, none found")
        self.negotiated = found = parse_vca(self.evidence.vca)
        algorithms = found.algorithms
        kinds = (algorithms.base_hash, algorithms.base_asym, algorithms.dhe, algorithms.aead)
        names = ", ".join(kind.name for kind in kinds if kind is not None)
        return f"SPDM {found.version >> 4}.{found.version & 0x0F}, {names}"

    def _chain(self) -> str:
        data = self.evidence.chain
        if not data:
            raise _FailedError(f"a chain in slot {self.evidence.slot} expected, none found")
        if self.negotiated is not None:
            self.chain_hash = self.negotiated.algorithms.base_hash
        else:
            self.chain_hash = _fitting_hash(data)
        chain = Chain.parse(data, self.chain_hash)
        count = len(chain.certificates)
        self.chain = chain
        return f"slot {self.evidence.slot}, {count} certificates, {len(data)} bytes"

    def _root(self) -> str:
        chain, chain_hash = _need(self.chain, "chain"), _need(self.chain_hash, "chain")
        return subject_of(check_root(chain, chain_hash, self.roots, self.now))

    def _path(self) -> str:
        chain = _need(self.chain, "chain")
        check_path(chain.certificates)
        return " > ".join(map(subject_of, chain.certificates))

    def _validity(self) -> str:
        chain = _need(self.chain, "chain")
        check_validity(chain.certificates, self.now)
        end = min(one.not_valid_after_utc for one in chain.certificates)
        return f"until {utc(end)}"

    def _usage(self) -> str:
        chain, negotiated = _need(self.chain, "chain"), _need(self.negotiated, "vca")
        check_usage(chain.leaf, negotiated.algorithms.base_asym, negotiated.version)
        return f"{negotiated.algorithms.base_asym.name}, may authenticate a responder"

    def _name(self) -> str:
        chain = _need(self.chain, "chain")
        if self.device is None:
            raise _InapplicableError("no device to compare it with")
        found, expected = cma_name(chain.leaf), self.device.name
        if found != expected:
            raise _FailedError(f"{expected.text} expected, {found.text} found")
        return found.text

    def _measurements(self) -> str:
        negotiated = _need(self.negotiated, "vca")
        if not self.evidence.measurements:
            raise _FailedError("a request and its response expected, none found")
        pairs = parse_measurements(self.evidence.measurements, negotiated)
        for pair in pairs:
            slots = {pair.request.slot & SLOT_MASK, pair.response.slot & SLOT_MASK}
            if pair.signed and slots != {self.evidence.slot}:
                raise _FailedError(f"slot {self.evidence.slot} expected, {sorted(slots)} found")
        self.pairs = pairs
        responses = "1 response" if len(pairs) == 1 else f"{len(pairs)} responses"
        return f"{responses}, {len(self.evidence.measurements)} bytes"

    def _signature(self) -> str:
        negotiated = _need(self.negotiated, "vca")
        chain = _need(self.chain, "chain")
        pairs = _need(self.pairs, "measurements")
        if not pairs[-1].signed:
            raise _FailedError("a signature behind the last response expected, none found")
        algorithms = negotiated.algorithms
        signed = [pair for pair in pairs if pair.signed]
        for pair in signed:
            covered = pair.end - algorithms.base_asym.signature_size
            digest = l1(
                algorithms.base_hash,
                self.evidence.vca,
                self.evidence.measurements[pair.start : covered],
            )
            message = signing_message(negotiated.version, SigningContext.MEASUREMENTS, digest)
            if not algorithms.base_asym.verify(
                public_key(chain.leaf), pair.response.signature, message, algorithms.base_hash
            ):
                raise _FailedError(
                    f"a signature of {subject_of(chain.leaf)} over VCA and bytes "
                    f"{pair.start} to {covered} expected, another found"
                )
        return f"{len(signed)} by {subject_of(chain.leaf)}"

    def _nonce(self) -> str:
        if self.nonce is None:
            raise _InapplicableError("none was asked for, so the evidence may be old")
        pairs = _need(self.pairs, "measurements")
        found = [pair.request.nonce for pair in pairs if pair.signed]
        if not found:
            raise _FailedError(f"{self.nonce.hex()} expected, none found: nothing is signed")
        for nonce in found:
            if nonce != self.nonce:
                raise _FailedError(f"{self.nonce.hex()} expected, {nonce.hex()} found")
        return self.nonce.hex()

    def _freshness(self) -> str:
        negotiated = _need(self.negotiated, "vca")
        pairs = [pair for pair in _need(self.pairs, "measurements") if pair.signed]
        seen = {nonce for one in self.earlier for nonce in _responder_nonces(one)}
        for pair in pairs:
            nonce = pair.response.nonce
            transcript = self.evidence.measurements[pair.start : pair.end]
            if any(transcript in one.measurements for one in self.earlier):
                raise _FailedError(
                    f"a new transcript expected, that of earlier evidence with the responder's "
                    f"nonce {nonce.hex()} found: replayed"
                )
            if not any(nonce):
                raise _FailedError("a random nonce of the responder expected, zeros found")
            if nonce in seen:
                raise _FailedError(
                    f"a new nonce of the responder expected, {nonce.hex()} found as before"
                )
            seen.add(nonce)
            if pair.response.slot & CONTENT_MASK == ContentChanged.CHANGED:
                raise _FailedError("unchanged measurements expected, they changed meanwhile")
        compared = "nothing comes again" if self.earlier else "compared with nothing earlier"
        if negotiated.flags & ResponderFlags.MEAS_FRESH:
            return f"measured when it was asked, {compared}"
        return f"measured when the device was reset, {compared}"

    def _record(self) -> str:
        pairs, negotiated = _need(self.pairs, "measurements"), _need(self.negotiated, "vca")
        algorithm = negotiated.algorithms.measurement_hash
        base = algorithm.base if algorithm is not None else None
        found: dict[int, MeasurementBlock] = {}
        for pair in pairs:
            blocks = parse_record(pair.response.record)
            if len(blocks) != pair.response.blocks:
                raise _FailedError(
                    f"{pair.response.blocks} measurements expected, {len(blocks)} found"
                )
            indices = [block.index for block in blocks]
            operation = pair.request.operation
            if len(set(indices)) != len(indices):
                raise _FailedError(f"an index comes twice: {indices}")
            if operation == MEASUREMENT_COUNT and blocks:
                raise _FailedError(f"a number alone expected, measurements {indices} found")
            if operation not in (MEASUREMENT_ALL, MEASUREMENT_COUNT) and indices != [operation]:
                raise _FailedError(f"measurement {operation} expected, {indices} found")
            for block in blocks:
                if not FIRST_INDEX <= block.index <= LAST_INDEX:
                    raise _FailedError(
                        f"an index from {FIRST_INDEX} to {LAST_INDEX} expected, {block.index} found"
                    )
                before = found.get(block.index)
                if before is not None and before.raw == block.raw and before != block:
                    raise _FailedError(
                        f"measurement {block.index}: {before.value.hex()} expected as before, "
                        f"{block.value.hex()} found"
                    )
                size = len(block.value)
                if not block.raw and (base is None or size != base.size):
                    raise _FailedError(
                        f"measurement {block.index}: a digest of "
                        f"{base.name if base else 'no algorithm'} expected, {size} bytes found"
                    )
                found[block.index] = block
        if not found:
            raise _FailedError("measurements expected, none found")
        self.blocks = found
        return f"{len(found)} measurements: {', '.join(map(str, sorted(found)))}"

    def _reference(self) -> str:
        if self.reference is None:
            raise _InapplicableError("no values to compare them with")
        blocks = _need(self.blocks, "record")
        for index, expected in sorted(self.reference.items()):
            block = blocks.get(index)
            found = block.value.hex() if block is not None else "none"
            if block is None or block.value != expected:
                raise _FailedError(f"measurement {index}: {expected.hex()} expected, {found} found")
        return f"{len(self.reference)} measurements as expected"

    def _digests(self) -> str:
        digests, objects = self.evidence.digests, self.evidence.objects
        if not digests:
            raise _InapplicableError("they were not read")
        for name in sorted(digests.keys() | objects.keys()):
            expected, content = digests.get(name), objects.get(name)
            if expected is None or content is None:
                what = "a digest" if expected is None else "an object"
                raise _FailedError(f"{name}: {what} expected, none found")
            algorithm = _DIGESTS.get(len(expected))
            if algorithm is None:
                raise _FailedError(f"{name}: a digest expected, {len(expected)} bytes found")
            found = hashlib.new(algorithm, content).digest()
            if found != expected:
                raise _FailedError(f"{name}: {expected.hex()} expected, {found.hex()} found")
        return ", ".join(sorted(digests))

    def _report(self) -> str:
        if not self.evidence.report:
            raise _InapplicableError("there is none: the interface is not locked")
        report = Report.parse(self.evidence.report)
        if report.pack() != self.evidence.report:
            raise _FailedError("reserved bytes of zero expected, others found")
        _check_bits("INTERFACE_INFO", report.interface_info, _INTERFACE_INFO)
        for number, one in enumerate(report.mmio_ranges):
            _check_bits(f"attributes of range {number}", one.attributes, _RANGE_ATTRIBUTES)
        self.parsed_report = report
        info = InterfaceInfo(report.interface_info).name or "no flags"
        return f"{len(report.mmio_ranges)} ranges, {info}"

    def _ranges(self) -> str:
        ranges = sorted(self._need_report().mmio_ranges, key=lambda one: one.first_page)
        for one in ranges:
            if not one.pages:
                raise _FailedError(f"pages from {one.address():#x} on expected, none found")
            if one.first_page + one.pages > _PAGE_LIMIT:
                raise _FailedError(f"an end within 64 bits expected, {_span(one)} found")
        for one, following in pairwise(ranges):
            if following.first_page < one.first_page + one.pages:
                raise _FailedError(
                    f"ranges apart expected, {_span(one)} and {_span(following)} found"
                )
        return ", ".join(map(_span, ranges)) or "none"

    def _resource(self) -> str:
        report = self._need_report()
        if self.device is None:
            raise _InapplicableError("no device to compare it with")
        bars = self.device.bars
        found = []
        for one in report.mmio_ranges:
            start = one.address(self.device.mmio_offset)
            end = start + one.size - 1
            inside = [number for number, first, last in bars if first <= start and end <= last]
            if not inside:
                places = ", ".join(f"{first:#x}-{last:#x}" for _, first, last in bars) or "no BAR"
                raise _FailedError(f"a range in {places} expected, {start:#x}-{end:#x} found")
            if one.range_id not in inside:
                raise _FailedError(
                    f"range ID {inside[0]} expected of {start:#x}-{end:#x}, {one.range_id} found"
                )
            found.append(f"BAR {one.range_id}")
        return ", ".join(found) or "none"

    def _need_report(self) -> Report:
        if not self.evidence.report:
            raise _InapplicableError("there is no report: the interface is not locked")
        return _need(self.parsed_report, "report")


def _check_bits(what: str, value: int, known: int) -> None:
    if value & ~known:
        raise _FailedError(f"{what}: bits of {known:#x} expected, {value:#x} found")


def _span(one: MmioRange) -> str:
    """The addresses of a range as the report has them."""
    return f"{one.address():#x}-{one.address() + one.size - 1:#x}"


def _check(name: CheckName, method: Callable[[], str]) -> Check:
    try:
        return Check(name, True, method())
    except _InapplicableError as error:
        return Check(name, None, str(error))
    except ValueError as error:
        return Check(name, False, str(error))


def _need(value: T | None, check: str) -> T:
    """`value`, which the check called `check` found."""
    if value is None:
        raise _InapplicableError(f"not without {check}")
    return value


def _fitting_hash(data: bytes) -> BaseHash:
    """The hash whose size leaves certificates in a chain, where the negotiation tells none."""
    for base_hash in BaseHash:
        try:
            if Chain.parse(data, base_hash).certificates:
                return base_hash
        except CertificateError:
            continue
    raise _FailedError("a hash and certificates expected, neither found for any hash")


def _responder_nonces(evidence: Evidence) -> list[bytes]:
    try:
        pairs = parse_measurements(evidence.measurements, parse_vca(evidence.vca))
    except ValueError:
        return []
    return [pair.response.nonce for pair in pairs if pair.signed]
