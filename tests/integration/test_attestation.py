# SPDX-License-Identifier: MIT
"""The whole story of a device with keys, told by a shell in a session of the machine `server`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NIC = "0000:01:00.0"
ACCELERATOR = "0000:00:08.0"

CONNECT = f"""
device=/sys/bus/pci/devices/{NIC}
echo tsm0 > $device/tsm/connect
cat $device/authenticated
tsmfs evidence verify --nonce {"5a" * 32} {NIC}
echo tsm0 > $device/tsm/disconnect
"""

LOCK = f"""
device=/sys/bus/pci/devices/{ACCELERATOR}
echo tsm1 > $device/tsm/lock
tsmfs evidence verify {ACCELERATOR}
grep -c Encrypted /proc/iomem || true
echo 1 > $device/tsm/accept
tsmfs evidence verify {ACCELERATOR}
grep Encrypted /proc/iomem
modprobe pci_stub
echo pci-stub > $device/driver_override
echo {ACCELERATOR} > /sys/bus/pci/drivers_probe
basename $(readlink $device/driver)
echo {ACCELERATOR} > $device/driver/unbind
echo tsm1 > $device/tsm/unlock
grep -c Encrypted /proc/iomem || true
cat $device/tsm/accept
"""


def session(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tsmfs", "exec", "--machine", "server", "--", "sh", "-euc", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def results(output: str) -> dict[str, str]:
    """Result of each check in a table."""
    words = [line.split() for line in output.splitlines()]
    return {line[0]: line[1] for line in words if len(line) > 2 and line[1] in {"ok", "FAIL", "-"}}


def test_a_connected_device_proves_itself_over_the_callers_nonce() -> None:
    done = session(CONNECT)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first == "tsm0"
    found = results("\n".join(rest))
    assert found["signature"] == found["nonce"] == found["root"] == found["name"] == "ok"
    assert found["report"] == "-"
    assert "5a" * 32 in done.stdout


def test_a_locked_device_is_verified_accepted_bound_and_unlocked() -> None:
    done = session(LOCK)
    assert (done.returncode, done.stderr) == (0, "")
    locked, _, accepted = done.stdout.partition("\n0\n")
    assert results(locked)["ranges"] == results(locked)["resource"] == "ok"
    assert results(accepted)["resource"] == "ok"
    assert "PCI MMIO Encrypted" in accepted
    assert accepted.splitlines()[-3:] == ["pci-stub", "0", "0"]
