# SPDX-License-Identifier: MIT
"""The example rules of the guide, each under the host's own systemd-udevd."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

GUIDE = ROOT / "Documentation/udev.md"
EXAMPLES = ROOT / "Documentation/examples/udev"
BDF = "10000:01:00.0"


ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
"""Runs a command as somebody without privileges who may read the files of who runs the tests."""


def run(
    script: str, *options: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a session with these options of ``tsmfs exec``."""
    command = [sys.executable, "-m", "tsmfs", "exec", *options, "--", "bash", "-euc", script]
    return subprocess.run(
        [*prefix, *command],
        cwd=ROOT,
        # Where there is no .venv, the command is run by the Python that runs the tests.
        env={
            **os.environ,
            "PATH": f"{ROOT}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def session(
    script: str, *examples: str, machine: str = "devsec"
) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a session with some of the examples."""
    rules = [option for name in examples for option in ("--rules", str(EXAMPLES / name))]
    return run(script, "--machine", machine, "--udevd", *rules)


SHELL = f"""
devices=/sys/bus/pci/devices
device=$devices/{BDF}
held() {{ (cd $devices; grep -sH . */tsm/connect | sed 's,/tsm/connect:, ,') || :; }}
driver() {{ [ ! -e $device/driver ] && echo - || basename "$(readlink $device/driver)"; }}
tell() {{ udevadm trigger --settle --action=change $device; }}
"""


def output(script: str, *examples: str, machine: str = "devsec") -> list[str]:
    """The lines that a script prints that succeeds, and about which nobody complains."""
    done = session(SHELL + script, *examples, machine=machine)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# --- connect ----------------------------------------------------------------------------------


def test_devices_are_connected_when_a_link_tsm_comes() -> None:
    lines = output(
        """
        held; echo -
        modprobe -r devsec_link_tsm; udevadm settle
        held; echo -
        modprobe devsec_link_tsm; udevadm settle
        held
        """,
        "connect",
    )
    both = ["10000:01:00.0 tsm0", "10001:03:00.0 tsm0"]
    assert lines == [*both, "-", "-", *both]


def test_devices_are_connected_when_they_come() -> None:
    lines = output(
        """
        plain=0000:06:00.0 nvme=0000:82:00.0 gpu=0000:05:00.0
        held; echo -
        echo $nvme >/sys/kernel/tsmfs/plug
        echo $gpu >/sys/kernel/tsmfs/plug
        udevadm settle; held; echo -
        cat $devices/$gpu/tsm/dsm
        echo $nvme >/sys/kernel/tsmfs/unplug
        echo 1 >$devices/0000:01:00.0/remove
        udevadm settle; held; echo -
        echo 1 >/sys/bus/pci/rescan
        udevadm settle; held
        """,
        "connect",
        machine="server",
    )
    there = [f"0000:{name} tsm0" for name in ("00:08.0", "01:00.0", "02:00.0", "81:00.0")]
    late = "0000:82:00.0 tsm0"
    # The GPU is below the switch, whose connection it shares.
    assert lines == [
        *there,
        "-",
        *there,
        late,
        "-",
        "0000:02:00.0",
        *(line for line in there if "01:00.0" not in line),
        "-",
        *there,
    ]


def test_devices_that_cannot_be_connected_are_told_and_tried_again_with_the_next_event() -> None:
    done = session(
        f"""{SHELL}
        modprobe -r devsec_link_tsm; udevadm settle
        fault=/sys/kernel/tsmfs/fault/tsm_connect
        echo EPROTO >$fault/errno; echo -1 >$fault/times; echo 100 >$fault/probability
        modprobe devsec_link_tsm; udevadm settle
        held; echo -
        echo 0 >$fault/probability
        udevadm trigger --settle --subsystem-match=tsm
        held
        """,
        "connect",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-", BDF, "tsm0", "10001:03:00.0", "tsm0"]
    for function in (BDF, "10001:03:00.0"):
        assert f"tsm-connect: {function}: not connected to tsm0" in done.stderr


# --- gate -------------------------------------------------------------------------------------

WITH_DRIVER = "modprobe pci_stub autoprobe=0; udevadm settle\n"


def test_a_driver_is_bound_once_the_function_is_accepted() -> None:
    lines = output(
        f"""{WITH_DRIVER}
        cat $device/driver_override
        driver
        echo tsm1 >$device/tsm/lock; tell; driver
        echo 1 >$device/tsm/accept; tell; driver
        """,
        "gate",
    )
    assert lines == ["pci-stub", "-", "-", "pci-stub"]


def test_a_driver_that_comes_after_acceptance_is_bound() -> None:
    lines = output(
        f"""
        echo tsm1 >$device/tsm/lock
        echo 1 >$device/tsm/accept; tell; driver
        {WITH_DRIVER}
        driver
        """,
        "gate",
    )
    assert lines == ["-", "pci-stub"]


@pytest.mark.parametrize("devsec", ["", "modprobe -r devsec_tsm"])
def test_a_driver_that_has_a_function_before_acceptance_loses_it(devsec: str) -> None:
    done = session(
        f"""{SHELL}{devsec}
        modprobe pci_stub; udevadm settle; driver
        echo {BDF} >/sys/bus/pci/drivers/pci-stub/bind 2>/dev/null || :
        udevadm settle; driver
        """,
        "gate",
    )
    assert (done.returncode, done.stdout) == (0, "-\n-\n"), done.stderr
    assert f"tsm-gate: {BDF}: not accepted" in done.stderr


def test_the_driver_can_be_had_without_the_gate() -> None:
    assert output(
        f"""{WITH_DRIVER}
        echo pci-stub >$device/driver_override
        echo {BDF} >/sys/bus/pci/drivers/pci-stub/bind
        udevadm settle; driver
        """
    ) == ["pci-stub"]


# --- attest -----------------------------------------------------------------------------------

PREPARE = f"""
printf 'a chain' >/sys/bus/faux/devices/devsec_tsm/certs
mkdir /run/tsm-attest
expect() {{ # TEXT
    echo "$(printf '%s' "$1" | sha384sum | cut -d' ' -f1)  cert0.bin" >/run/tsm-attest/{BDF}.sha384
}}
"""


def test_a_function_is_accepted_when_attestation_succeeds() -> None:
    lines = output(
        f"""{PREPARE}
        expect 'a chain'
        cat $device/tsm/accept
        echo tsm1 >$device/tsm/lock; cat $device/tsm/accept
        tell; udevadm settle; cat $device/tsm/accept
        grep -c 'PCI MMIO Encrypted' /proc/iomem
        """,
        "attest",
    )
    assert lines == ["0", "0", "1", "1"]


@pytest.mark.parametrize("state", [":", "echo tsm0 >$device/tsm/connect", "echo 1 >$device/remove"])
def test_a_function_that_is_not_locked_any_more_is_passed_over(state: str) -> None:
    done = run(f"{SHELL}{state}; {EXAMPLES}/attest/tsm-accept {BDF}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_connected_function_is_not_attested() -> None:
    lines = output(
        """
        echo tsm0 >$device/tsm/connect
        cat $device/tsm/lock $device/tsm/accept
        for name in $devices/*; do udevadm trigger --settle --action=change $name; done
        cat $device/tsm/accept
        """,
        "attest",
    )
    assert lines == ["tsm0", "0", "0"]


def test_a_function_stays_locked_when_attestation_fails() -> None:
    done = session(
        f"""{SHELL}{PREPARE}
        echo tsm1 >$device/tsm/lock
        tell; cat $device/tsm/accept
        expect 'another chain'
        tell; cat $device/tsm/accept $device/tsm/lock
        expect 'a chain'
        tell; cat $device/tsm/accept
        """,
        "attest",
    )
    assert (done.returncode, done.stdout) == (0, "0\n0\ntsm1\n1\n"), done.stderr
    assert "there are no reference values" in done.stderr
    assert "cert0.bin: FAILED" in done.stderr
    assert done.stderr.count(f"tsm-accept: {BDF}: not accepted") == 2


@pytest.mark.parametrize("prefix", [(), ORDINARY_USER], ids=["as I am", "ordinary user"])
def test_the_examples_work_together(prefix: tuple[str, ...]) -> None:
    done = run(
        f"""{SHELL}
        held
        for file in $devices/*/tsm/disconnect; do echo tsm0 >$file; done
        {PREPARE}
        expect 'a chain'
        echo tsm1 >$device/tsm/lock; tell; udevadm settle
        cat $device/tsm/accept; driver
        """,
        *("--module", "pci_stub autoprobe=0", "--udevd"),
        *(f"--rules={EXAMPLES / name}" for name in ("connect", "gate", "attest")),
        prefix=prefix,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "10000:01:00.0 tsm0",
        "10001:03:00.0 tsm0",
        "1",
        "pci-stub",
    ]


# --- The guide --------------------------------------------------------------------------------


def test_the_guide_quotes_the_rules_as_they_are() -> None:
    texts = [file.read_text() for file in EXAMPLES.glob("*/*.rules")]
    quoted = re.findall(r"^```udev\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.M)
    assert quoted
    assert [block for block in quoted if not any(block in text for text in texts)] == []


def sessions_of_the_guide() -> list[str]:
    """The examples of the guide that start a session: its options, what is typed, what comes."""
    blocks = re.findall(r"(?:^ {4}.*\n)+", GUIDE.read_text(), re.M)
    return [block for block in blocks if block.startswith("    # tsmfs exec ")]


@pytest.mark.parametrize("block", sessions_of_the_guide())
def test_the_sessions_of_the_guide_go_as_it_says(block: str) -> None:
    first, *lines = (line.removeprefix("    ") for line in block.splitlines())
    options = shlex.split(first.removeprefix("# tsmfs exec "))
    assert options[-2:] == ["--", "bash"]
    typed = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    expected = [line for line in lines if not line.startswith("# ")]
    done = run("\n".join(typed), *options[:-2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected
