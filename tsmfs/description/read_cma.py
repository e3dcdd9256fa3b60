# SPDX-License-Identifier: MIT
"""Tables to the model: the keys, measurements and faults of a device."""

from __future__ import annotations

from tsmfs.description.cma import (
    EXCLUSIVE_TAMPERS,
    MAX_CERTIFICATE_SLOT,
    MAX_MEASUREMENT,
    MEASUREMENT_MANIFEST,
    Cma,
    CmaFiles,
    Measurement,
    MeasurementKind,
    Tamper,
)
from tsmfs.description.table import Table

_INDICES = (*range(1, MAX_MEASUREMENT + 1), MEASUREMENT_MANIFEST)
_SAID = f"1..{MAX_MEASUREMENT}, or {MEASUREMENT_MANIFEST} for the manifest"


def read_cma(table: Table) -> Cma | None:
    """The table ``cma`` of a function, or None."""
    sub = table.capability("cma")
    if sub is None:
        return None
    base = Cma()
    cma = Cma(
        key=sub.one_of("key", base.key),
        hash=sub.one_of("hash", base.hash),
        versions=sub.several("versions", base.versions),
        slots=sub.integers("slots", base.slots, 0, MAX_CERTIFICATE_SLOT),
        seed=sub.integer("seed", 0, 0, (1 << 63) - 1) if "seed" in sub else None,
        files=_read_cma_files(sub),
        measurements=_read_measurements(sub),
        tamper=sub.several("tamper", tuple(Tamper)) if "tamper" in sub else (),
    )
    for group in EXCLUSIVE_TAMPERS:
        found = [one.value for one in group if one in cma.tamper]
        if len(found) > 1:
            sub.wrong("tamper", f"{' and '.join(found)} exclude each other")
    for name in ("key", "slots", "seed"):
        if cma.files and name in sub:
            sub.wrong(name, "is told by files")
    sub.finish()
    return cma


def _read_cma_files(table: Table) -> tuple[CmaFiles, ...]:
    files: dict[int, CmaFiles] = {}
    for sub in table.tables("files"):
        slot = sub.integer("slot", 0, 0, MAX_CERTIFICATE_SLOT)
        if slot in files:
            sub.wrong("slot", f"slot {slot} has its files already")
        files[slot] = CmaFiles(slot, sub.required_string("chain"), sub.required_string("key"))
        sub.finish()
    return tuple(files.values())


def _read_measurements(table: Table) -> tuple[Measurement, ...]:
    found: dict[int, Measurement] = {}
    for sub in table.tables("measurements"):
        index = sub.required_number("index", _INDICES, _SAID)
        kind = sub.one_of("kind", MeasurementKind.FIRMWARE)
        value = sub.required_string("value")
        sub.finish()
        if index is None:
            continue
        if index in found:
            sub.wrong("index", f"measurement {index} is listed before")
        elif (index == MEASUREMENT_MANIFEST) != (kind is MeasurementKind.MANIFEST):
            sub.wrong("kind", f"the measurement {MEASUREMENT_MANIFEST} is the manifest")
        found[index] = Measurement(index, kind, value)
    return tuple(found.values())
