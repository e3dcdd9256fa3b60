# SPDX-License-Identifier: MIT
"""The host's unmodified udev in a session: its daemon, its tool, and rules with their mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT

BDF = "10000:01:00.0"
DEVICE = f"/sys/bus/pci/devices/{BDF}"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def session(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a session."""
    return subprocess.run(
        [sys.executable, "-m", "tsmfs", "exec", *map(str, options), "--", "bash", "-euc", script],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def output(script: str, *options: str | Path) -> str:
    """What a script that succeeds prints in a session with udevd."""
    done = session(script, "--udevd", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rules(directory: Path, text: str, name: str = "70-test.rules", **programs: str) -> Path:
    """A directory with a file of rules and shell scripts."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    for program, body in programs.items():
        (directory / program).write_text(f"#!/bin/sh\n{body}\n")
        (directory / program).chmod(0o755)
    return directory


def records(text: str) -> list[list[str]]:
    """The properties of each event that ``udevadm monitor --property`` prints, but SEQNUM."""
    blocks = (block.splitlines()[1:] for block in re.findall(r"^KERNEL\[.*(?:\n.+)*", text, re.M))
    return [[line for line in block if not line.startswith("SEQNUM=")] for block in blocks]


# --- udevadm ----------------------------------------------------------------------------------

WALK = f"""
udevadm monitor --kernel --property >/run/monitor &
monitor=$!
until grep -q '^KERNEL -' /run/monitor; do sleep 0.05; done
before=$(stat -c %s /run/monitor)
tr '\\0' '\\n' </sys/kernel/tsmfs/uevents | wc -l >/run/before
echo tsm0 >{DEVICE}/tsm/connect
echo tsm0 >{DEVICE}/tsm/disconnect
echo tsm1 >{DEVICE}/tsm/lock
echo 1 >{DEVICE}/tsm/accept
echo tsm1 >{DEVICE}/tsm/unlock
modprobe pci_stub
echo pci-stub >{DEVICE}/driver_override
echo {BDF} >/sys/bus/pci/drivers/pci-stub/bind
echo tsm0 >{DEVICE}/tsm/connect
echo 1 >{DEVICE}/remove
echo 1 >/sys/bus/pci/rescan
echo 'change {UUID} A=1 WHY=test' >/sys/class/tsm/tsm0/uevent
rmmod devsec_link_tsm
sent() {{ tr '\\0' '\\n' </sys/kernel/tsmfs/uevents | tail -n +$(($(cat /run/before) + 1)); }}
# SEQNUM, with which a record ends, is the host's in the monitor.
until [ $(grep -c ^SEQNUM= /run/monitor) -ge $(sent | grep -c ^SEQNUM=) ]; do sleep 0.05; done
kill $monitor
wait $monitor || :
cat /run/monitor
echo =====
sent
"""


def test_the_monitor_sees_the_events_that_the_machine_sends() -> None:
    done = session(WALK)
    assert done.returncode == 0, done.stderr
    monitored, sent = done.stdout.split("=====\n")
    expected = [
        [line for line in record.splitlines()[1:] if not line.startswith("SEQNUM=")]
        for record in sent.strip().split("\n\n")
    ]
    seen = records(monitored)
    assert seen == expected
    short = [
        f"{fields['ACTION']} {fields['DEVPATH'].rpartition('/')[2]}"
        for fields in (dict(line.split("=", 1) for line in record) for record in seen)
    ]
    # Neither connect nor lock, accept and unlock send anything.
    assert short == [
        "add pci_stub",
        "add pci-stub",
        f"bind {BDF}",
        f"unbind {BDF}",
        f"remove {BDF}",
        f"add {BDF}",
        "change tsm0",
        "remove tsm0",
        "unbind devsec_link_tsm",
        "remove devsec_link_tsm",
        "remove devsec_link_tsm",
    ]
    (change,) = (record for record in seen if "ACTION=change" in record)
    assert {f"SYNTH_UUID={UUID}", "SYNTH_ARG_A=1", "SYNTH_ARG_WHY=test"} <= set(change)


def test_info_walks_up_from_a_device() -> None:
    text = output(f"echo tsm0 >{DEVICE}/tsm/connect; udevadm info -a -p {DEVICE}")
    looking = re.findall(r"looking at (?:parent )?device '(.*)'", text)
    bridge = "/devices/faux/devsec_bus/pci10000:00"
    assert looking[:3] == [f"{bridge}/10000:00:00.0/{BDF}", f"{bridge}/10000:00:00.0", bridge]
    assert f'KERNEL=="{BDF}"' in text
    assert 'SUBSYSTEM=="pci"' in text
    assert 'ATTR{tsm/connect}=="tsm0"' in text
    assert 'ATTR{vendor}=="0x8086"' in text


def test_info_has_the_properties_that_a_rule_set(tmp_path: Path) -> None:
    rule = 'SUBSYSTEM=="tsm", ENV{TSM_MODE}="$attr{pci_mode}", TAG+="tsm"\n'
    text = output(
        "udevadm info -q property /sys/class/tsm/tsm1; udevadm trigger -n -v --tag-match=tsm",
        *("--rules", rules(tmp_path / "rules", rule)),
    )
    assert "TSM_MODE=devsec\n" in text
    assert text.count("/sys/devices/faux/devsec_") == 2


def test_trigger_sends_an_event_and_waits_for_its_rules(tmp_path: Path) -> None:
    rule = 'SUBSYSTEM=="tsm", ACTION=="change", RUN+="note $kernel"\n'
    text = output(
        "udevadm trigger --settle --action=change --subsystem-match=tsm; sort /run/noted",
        *("--rules", rules(tmp_path / "rules", rule, note='echo "$1" >>/run/noted')),
    )
    assert text == "tsm0\ntsm1\n"


def test_test_shows_what_rules_would_do(tmp_path: Path) -> None:
    rule = 'SUBSYSTEM=="pci", TEST=="tsm/connect", ENV{PF0}="1", RUN+="/bin/true $kernel"\n'
    text = output(
        f"udevadm test --action=add {DEVICE} 2>&1", "--rules", rules(tmp_path / "rules", rule)
    )
    assert "PF0=1" in text
    assert f"/bin/true {BDF}" in text


def test_synthetic_events_run_rules_with_what_they_carry(tmp_path: Path) -> None:
    rule = (
        'SUBSYSTEM=="pci", ACTION=="change", '
        'RUN+="note $kernel $env{SYNTH_UUID} -$env{SYNTH_ARG_WHY}"\n'
    )
    text = output(
        f"""
        echo change >{DEVICE}/uevent; udevadm settle
        echo change {UUID} WHY=lock >{DEVICE}/uevent; udevadm settle
        ! echo change {UUID} why >{DEVICE}/uevent
        ! echo nonsense >{DEVICE}/uevent
        udevadm settle; cat /run/noted
        """,
        *("--rules", rules(tmp_path / "rules", rule, note='echo "$@" >>/run/noted')),
    )
    assert text.splitlines() == [f"{BDF} 0 -", f"{BDF} {UUID} -lock"]


# --- Rules ------------------------------------------------------------------------------------


def test_coldplug_is_over_before_the_command_starts(tmp_path: Path) -> None:
    rule = 'ACTION=="add", RUN+="note $env{SUBSYSTEM}"\n'
    text = output(
        "sort -u /run/noted",
        *("--rules", rules(tmp_path / "rules", rule, note='sleep 0.02; echo "$1" >>/run/noted')),
    )
    assert text.split() == ["bus", "drivers", "faux", "module", "pci", "pci_bus", "tsm"]


def test_a_mistake_in_rules_is_told_where_it_is_and_the_session_starts(tmp_path: Path) -> None:
    directory = rules(
        tmp_path / "rules",
        'SUBSYSTEM=="tsm", NONSENSE="1"\nSUBSYSTEM=="tsm" ATTR{\n'
        'SUBSYSTEM=="tsm", ATTR{pci_mode}="x"\nSUBSYSTEM=="tsm", RUN+="note $kernel"\n',
        note='echo "$1" >>/run/noted',
    )
    done = session("sort /run/noted", "--udevd", "--rules", directory)
    assert (done.returncode, done.stdout) == (0, "tsm0\ntsm1\n")
    lines = done.stderr.splitlines()
    assert all(line.startswith("udevd: ") for line in lines), done.stderr
    for number in (1, 2, 3):
        assert [line for line in lines if f"{directory}/70-test.rules:{number}" in line]
    assert not [line for line in lines if f"{directory}/70-test.rules:4" in line]


def test_a_program_that_fails_is_told_with_what_it_says(tmp_path: Path) -> None:
    rule = 'KERNEL=="tsm0", RUN+="broken", RUN+="/no/such/program", RUN+="killed"\n'
    directory = rules(
        tmp_path / "rules", rule, broken="echo all is lost >&2; exit 3", killed="kill -KILL $$"
    )
    done = session("true", "--udevd", "--rules", directory)
    assert done.returncode == 0
    assert re.search(r"^udevd: tsm0: 'broken'\(err\) 'all is lost'$", done.stderr, re.M)
    assert re.search(r"^udevd: tsm0: .*'broken'.* exit code 3", done.stderr, re.M)
    assert re.search(r"^udevd: tsm0: .*'/no/such/program'", done.stderr, re.M)
    assert re.search(r"^udevd: tsm0: .*'killed'.* signal KILL", done.stderr, re.M)


def test_rules_without_mistakes_say_nothing(tmp_path: Path) -> None:
    directory = rules(tmp_path / "rules", 'SUBSYSTEM=="tsm", RUN+="/bin/echo $kernel"\n')
    done = session("grep -c echo /run/tsmfs/udevd.log", "--udevd", "--rules", directory)
    assert done.stderr == ""
    assert int(done.stdout) > 0


def test_the_later_directory_goes_before_the_earlier(tmp_path: Path) -> None:
    first = rules(tmp_path / "1", 'KERNEL=="tsm0", RUN+="note first"\n', note="exit 1")
    rules(first, 'KERNEL=="tsm0", RUN+="note only"\n', "60-only.rules")
    second = rules(
        tmp_path / "2", 'KERNEL=="tsm0", RUN+="note second"\n', note='echo "$1" >>/run/noted'
    )
    text = output("cat /run/noted", "--rules", first, "--rules", second)
    assert text.split() == ["only", "second"]


@pytest.mark.parametrize("others", [0, 1])
def test_rules_that_are_edited_are_read_again(tmp_path: Path, others: int) -> None:
    directory = rules(tmp_path / "rules", "", note='echo "$1" >>/run/noted')
    options: list[str | Path] = [
        *("--rules", rules(tmp_path / "other", "", "60-other.rules"))
    ] * others
    # What the daemon notices by itself it looks for every three seconds only.
    text = output(
        f"""
        event() {{ udevadm control --reload; udevadm trigger --settle -c change -y tsm0; }}
        echo 'KERNEL=="tsm0", RUN+="note new"' >{directory}/70-test.rules; event
        mv {directory}/70-test.rules {directory}/71-test.rules
        sed -i s/new/renamed/ {directory}/71-test.rules
        until [ -e /run/udev/rules.d/71-test.rules ]; do sleep 0.01; done; event
        printf '#!/bin/sh\\necho added >>/run/noted\\n' >{directory}/added
        chmod +x {directory}/added
        echo 'KERNEL=="tsm0", RUN+="added"' >{directory}/71-test.rules
        until [ -x /usr/lib/udev/added ]; do sleep 0.01; done; event
        rm {directory}/71-test.rules
        until [ ! -e /run/udev/rules.d/71-test.rules ]; do sleep 0.01; done; event
        cat /run/noted
        """,
        *("--rules", directory),
        *options,
    )
    assert text.split() == ["new", "renamed", "added"]


def test_rules_below_run_are_found(tmp_path: Path) -> None:
    directory = Path(f"/run/tsmfs-test-{os.getpid()}")
    rules(directory, 'KERNEL=="tsm0", RUN+="/bin/touch /run/touched"\n')
    try:
        assert output("ls /run/touched", "--rules", directory) == "/run/touched\n"
    finally:
        (directory / "70-test.rules").unlink()
        directory.rmdir()


def test_the_hosts_rules_are_there_only_when_asked_for(tmp_path: Path) -> None:
    directory = rules(tmp_path / "rules", 'KERNEL=="tsm0", ENV{OURS}="1"\n')
    # Debian's own rules name every PCI function from the database of ids.
    script = f"""
        udevadm info -q property {DEVICE} | grep -c ID_PATH= || :
        udevadm info -q property /sys/class/tsm/tsm0 | grep OURS
        ls /usr/lib/udev/rules.d | wc -l
    """
    options = ("--rules", directory)
    assert output(script, *options).split() == ["0", "OURS=1", "0"]
    with_id, ours, there = output(script, "--host-rules", *options).split()
    assert (with_id, ours) == ("1", "OURS=1")
    assert int(there) == len(os.listdir("/usr/lib/udev/rules.d"))


# --- The host ---------------------------------------------------------------------------------

NODES = ("null", "zero", "full", "random", "urandom", "tty")


def test_no_rule_reaches_the_hosts_device_nodes(tmp_path: Path) -> None:
    before = {name: Path("/dev", name).lstat() for name in NODES}
    text = "".join(
        f'KERNEL=="{name}", MODE="0600", OPTIONS+="static_node={name}"\n' for name in NODES
    )
    text += (
        'KERNEL=="tsm0", RUN+="/bin/chmod 0600 /dev/null", RUN+="note"\n'
        'KERNEL=="tsm0", SYMLINK+="tsm", NAME="tsm", OWNER="1", MODE="0666"\n'
    )
    note = "ls /dev >/run/dev; : >/dev/made; [ ! -e /dev/fuse ] && echo fine >/dev/null || exit 1"
    directory = rules(tmp_path / "rules", text, note=note)
    done = session("cat /run/dev", "--udevd", "--rules", directory)
    assert done.returncode == 0, done.stderr
    assert "'note' failed" not in done.stderr
    assert set(NODES) < set(done.stdout.split())
    for name in ("tsm", "made"):
        assert not os.path.lexists(f"/dev/{name}")
    for name in NODES:
        after = Path("/dev", name).lstat()
        assert (before[name].st_mode, before[name].st_uid) == (after.st_mode, after.st_uid)


def test_no_rule_loads_a_module_of_the_host(tmp_path: Path) -> None:
    directory = rules(
        tmp_path / "rules",
        'KERNEL=="tsm0", RUN+="/bin/cp /proc/self/status /run/status"\n',
    )
    text = output("grep CapBnd /run/status", "--rules", directory)
    cap_sys_module = 16
    assert not int(text.split()[1], 16) >> cap_sys_module & 1


def test_the_session_outlives_its_udevd() -> None:
    done = session(
        f"""
        [ -S /run/udev/control ]
        kill -KILL $(pgrep -x systemd-udevd || pgrep -f '^/(usr/)?lib/systemd/systemd-udevd')
        ! udevadm control --ping --timeout=1 2>/dev/null
        echo tsm0 >{DEVICE}/tsm/connect
        until grep -q 'has ended' /run/tsmfs/udevd.log; do sleep 0.05; done
        cat {DEVICE}/tsm/connect
        """,
        "--udevd",
    )
    assert (done.returncode, done.stdout) == (0, "tsm0\n")
    assert done.stderr == "udevd: has ended: no more events are handled in this session\n"


def test_nothing_of_udevd_is_left_behind(tmp_path: Path) -> None:
    sleeper = f"sleep 61.{os.getpid()}"
    rule = 'KERNEL=="tsm0", RUN+="sleeper"\n'
    directory = rules(tmp_path / "rules", rule, sleeper=f"{sleeper} & : >/run/started")
    started = time.monotonic()
    done = session("[ -e /run/started ] && exit 7", "--udevd", "--rules", directory)
    assert (done.returncode, done.stderr) == (7, "")
    assert time.monotonic() - started < 60
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert sleeper not in processes.stdout.splitlines()
