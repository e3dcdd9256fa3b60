# SPDX-License-Identifier: MIT
"""Sample devsec: what its modules share, the evidence blobs and the mark of its bridges."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tsmfs.base.kobject import AttributeGroup, BinAttribute
from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule
from tsmfs.pci.evidence import EvidenceType, PciTsmEvidence

BLOB_MAX = 16 << 20
"""Bytes that one blob can have."""


class DevsecSysdata:
    """Mark of a host bridge that the sample bus module brought."""


@dataclass(slots=True)
class DevsecCommon:
    """Evidence that every sample context presents."""

    blobs: dict[str, bytearray] = field(
        default_factory=lambda: {"certs": bytearray(), "transcript": bytearray()}
    )
    contexts: int = 0
    """Contexts that present the blobs; while there is one they cannot be written."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self) -> None:
        """A context presents the blobs."""
        with self._lock:
            self.contexts += 1

    def put(self) -> None:
        """A context is gone."""
        with self._lock:
            self.contexts -= 1

    def present(self, evidence: PciTsmEvidence) -> None:
        """Fill a context's evidence with the blobs."""
        evidence.update(
            {
                EvidenceType.CERT0: bytes(self.blobs["certs"]),
                EvidenceType.MEASUREMENTS: bytes(self.blobs["transcript"]),
            }
        )

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Bytes of a blob."""
        return bytes(self.blobs[name][offset : offset + count])

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Put *data* at *offset*, with zeros before it where nothing was.

        One byte at offset 0 empties the blob. EBUSY while a context exists, EFBIG beyond 16 MiB.
        """
        with self._lock:
            if self.contexts:
                fail(errno.EBUSY)
            if offset + len(data) > BLOB_MAX:
                fail(errno.EFBIG)
            blob = self.blobs[name]
            if offset == 0 and len(data) == 1:
                blob.clear()
                return
            if len(blob) < offset:
                blob.extend(bytes(offset - len(blob)))
            blob[offset : offset + len(data)] = data


def common_of(host: Host) -> DevsecCommon:
    """What ``devsec_common`` exports."""
    exports = host.modules.loaded["devsec_common"].exports
    assert isinstance(exports, DevsecCommon)
    return exports


def blob_group(common: DevsecCommon) -> AttributeGroup:
    """The binary attributes ``certs`` and ``transcript`` of a sample's faux device."""

    def reader(name: str) -> Callable[[object, int, int], bytes]:
        return lambda _, offset, count: common.read(name, offset, count)

    def writer(name: str) -> Callable[[object, int, bytes], None]:
        return lambda _, offset, data: common.write(name, offset, data)

    return AttributeGroup(
        [BinAttribute(name, 0o644, 0, reader(name), writer(name)) for name in common.blobs]
    )


def _init(host: Host, module: LoadedModule) -> None:
    module.exports = DevsecCommon()


MODULE = HostModule("devsec_common", _init, "Device Security sample: data that its modules share")
