# SPDX-License-Identifier: MIT
"""A provider of evidence without a machine: devices as their objects."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass, field

from netlink.evidence import EvidenceReader

BDF = "0000:01:00.0"


@dataclass
class Device:
    """One device; what is None or empty it does not have."""

    objects: dict[int, bytes] = field(default_factory=dict)
    present: int | None = 1
    """The generation; None without a context, 0 without evidence."""
    refreshed: list[bytes] = field(default_factory=list)
    refresh_error: int | None = None
    validated: int | None = None

    def generation(self) -> int:
        if self.present is None:
            raise OSError(errno.ENXIO, "no TSM context")
        if not self.present:
            raise OSError(errno.ENXIO, "no evidence available")
        return self.present

    def refresh(self, nonce: bytes) -> None:
        if self.refresh_error is not None:
            raise OSError(self.refresh_error, "the TSM says no")
        self.refreshed.append(nonce)
        self.present = (self.present or 0) + 1

    def object_size(self, kind: int) -> int:
        return len(self.objects.get(kind, b""))

    def read(self, kind: int, offset: int, count: int) -> bytes:
        return self.objects[kind][offset : offset + count]

    def digest(self, kind: int) -> bytes:
        content = self.objects.get(kind)
        return hashlib.sha384(content).digest() if content is not None else b""

    def validate(self, generation: int) -> None:
        if generation != self.generation():
            raise OSError(errno.EAGAIN, "stale")
        self.validated = generation


class Provider:
    """Devices of the subsystem ``pci`` by name."""

    def __init__(self, **devices: Device) -> None:
        self.devices = devices

    def open(self, subsys: str, name: str) -> EvidenceReader:
        if subsys != "pci":
            raise OSError(errno.EOPNOTSUPP, "only pci here")
        if name not in self.devices:
            raise OSError(errno.ENODEV, "no such device")
        return self.devices[name]
