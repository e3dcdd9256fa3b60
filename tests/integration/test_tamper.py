# SPDX-License-Identifier: MIT
"""A mounted machine's device is tampered with by a control file, and ``evidence verify`` tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsmfs.pci.tamper import CERTIFICATES, Tamper

from .conftest import mounting, tsmfs, write

BDF = "0000:01:00.0"
TAMPER = "kernel/tsmfs/fault/tamper"

CAUGHT = {
    Tamper.EXPIRED_CERTIFICATE: {"validity": "was valid until 2024-03-31"},
    Tamper.SELF_SIGNED: {"root": "is self-signed and no root"},
    Tamper.WRONG_NAME: {"name": "Device=1040"},
    Tamper.FOREIGN_CERTIFICATE: {"root": "is none of the roots"},
    Tamper.BAD_SIGNATURE: {"signature": "another found"},
    Tamper.STALE_NONCE: {"nonce": "expected"},
    Tamper.CHANGED_MEASUREMENT: {"reference": "measurement 2"},
    Tamper.WRONG_RANGE: {"resource": "a range in"},
    Tamper.OVERLAPPING_RANGE: {"ranges": "ranges apart expected"},
    Tamper.REPLAYED_TRANSCRIPT: {"nonce": "expected", "freshness": "replayed"},
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine of the module's own, and evidence of its device while it is honest beside it."""
    directory = tmp_path_factory.mktemp("tamper")
    with mounting(directory / "sys", "--machine", "server") as sysfs:
        echo(sysfs, "connect", "tsm0")
        read = tsmfs("evidence", "read", BDF, "--out", directory / "good", "--sysfs", sysfs)
        assert read.returncode == 0, read.stderr
        echo(sysfs, "disconnect", "tsm0")
        yield sysfs


def echo(sysfs: Path, name: str, text: str) -> None:
    write(sysfs / f"bus/pci/devices/{BDF}/tsm/{name}", text)


def failures(sysfs: Path) -> dict[str, str]:
    """The checks that fail, with their reasons."""
    reference = ("--reference", sysfs.parent / "good")
    done = tsmfs("evidence", "verify", BDF, *reference, "--json", "--sysfs", sysfs)
    result = json.loads(done.stdout)
    found = {one["name"]: one["reason"] for one in result["checks"] if one["ok"] is False}
    assert done.returncode == int(bool(found)), done.stderr
    return found


@pytest.mark.parametrize("tamper", [None, *Tamper])
def test_each_is_caught_by_the_command_for_its_reason(machine: Path, tamper: Tamper | None) -> None:
    write(machine / TAMPER, f"{BDF} {tamper or 'none'}")
    shown = (machine / TAMPER).read_text()
    assert shown == (f"{BDF} {tamper}\n" if tamper else "")
    echo(machine, "connect", "tsm0")
    write(machine / "bus/faux/devices/soft_link_tsm/tsm_bind", BDF)
    try:
        found = failures(machine)
    finally:
        write(machine / "bus/faux/devices/soft_link_tsm/tsm_unbind", BDF)
        echo(machine, "disconnect", "tsm0")
        write(machine / TAMPER, f"{BDF} none")
    expected = CAUGHT[tamper] if tamper else {}
    assert found.keys() == expected.keys()
    assert all(reason in found[name] for name, reason in expected.items())


def test_what_is_no_certificate_needs_no_new_connection(machine: Path) -> None:
    echo(machine, "connect", "tsm0")
    try:
        for tamper in sorted({*Tamper} - CERTIFICATES):
            write(machine / TAMPER, f"{BDF} {tamper}")
            # Without a lock there is no report to be wrong.
            expected = {} if tamper.endswith("range") else CAUGHT[tamper]
            assert failures(machine).keys() == expected.keys()
    finally:
        write(machine / TAMPER, f"{BDF} none")
        assert failures(machine) == {}
        echo(machine, "disconnect", "tsm0")
