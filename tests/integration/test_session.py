# SPDX-License-Identifier: MIT
"""What programs in a session see, get and leave, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tsmfs.session.registry import SessionDirectory

SECONDS = 20

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

AS_NOBODY = """
import ctypes, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
# All that is imported later, from where the other user may not look.
import json, subprocess, encodings.ascii, encodings.idna, encodings.latin_1
import tsmfs.fs, tsmfs.description, tsmfs.machine, tsmfs.session_cli, tsmfs.session.front
import tsmfs.session.enter, tsmfs.session.shell, tsmfs.base.uevent_socket
from tsmfs.cli import main
machine = tsmfs.machine.Machine(*tsmfs.description.find("devsec"))
machine.boot(None)
place = Path(f"/tmp/tsmfs-test-{os.getpid()}.sock")
machine.netlink.start(place, 0)
machine.netlink.interpose(print)
machine.stop()
tsmfs.fs.Filesystem(machine.root, tsmfs.fs.choose_binding())
os.chdir("/")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
# A program that a user starts can be looked at by him; one that changed its user cannot.
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
main(sys.argv[2:])
"""

Done = subprocess.CompletedProcess[str]
Tsmfs = Callable[..., Done]


def variables() -> dict[str, str]:
    """An environment that any user can work with."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "XDG_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def as_caller(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tsmfs", *arguments]


def as_nobody(*arguments: str) -> list[str]:
    return [sys.executable, "-c", AS_NOBODY, str(ROOT), *arguments]


def run(program: list[str], **options: object) -> Done:
    done: Done = subprocess.run(
        program,
        env=variables(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    return done


def tsmfs(*arguments: str, **options: object) -> Done:
    return run(as_caller(*arguments), **options)


@pytest.fixture(params=["caller", pytest.param("nobody", marks=NEEDS_ROOT)])
def execute(request: pytest.FixtureRequest) -> Tsmfs:
    """``tsmfs exec`` of who runs the tests, or of an ordinary user."""
    program = as_caller if request.param == "caller" else as_nobody

    def execute(*arguments: str, **options: object) -> Done:
        return run(program("exec", *arguments), **options)

    return execute


def script(execute: Tsmfs, text: str, *options: str) -> str:
    """What a shell script in a session prints; it must succeed and nothing else be said."""
    done = execute(*options, "--", "sh", "-euc", text)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def directories() -> list[Path]:
    """The directories of all sessions."""
    bases = (Path("/run/tsmfs"), *Path("/tmp").glob("tsmfs-*[0-9]"))
    return [path for base in bases for path in (base / "sessions").glob("*")]


def leftovers() -> list[Path]:
    """Those of them that no session has any more."""
    return [path for path in directories() if not SessionDirectory(path).is_alive()]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    mounts = Path("/proc/self/mountinfo").read_text().count("/sessions/")
    before = leftovers()
    yield
    deadline = time.monotonic() + SECONDS
    # Those of others come as well, and go with who started them; one of ours would stay.
    while left := set(leftovers()) - set(before):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert Path("/proc/self/mountinfo").read_text().count("/sessions/") == mounts


def test_devices_connect_in_a_session(execute: Tsmfs) -> None:
    shown = script(
        execute,
        "echo tsm0 > /sys/bus/pci/devices/10000:01:00.0/tsm/connect && "
        "cat /sys/class/tsm/tsm0/pci_mode && grep 10000:01:00.0 /proc/iomem",
    )
    assert shown.splitlines()[0] == "link"
    assert re.search(r"^ +[0-9a-f]+-[0-9a-f]+ : 10000:01:00\.0$", shown, re.MULTILINE)


def test_machine_and_modules_are_those_that_were_asked_for(execute: Tsmfs) -> None:
    text = "cat /sys/kernel/tsmfs/name; lsmod"
    shown = script(execute, text, "--machine", "server", "--no-modules", "--module", "pci_stub")
    assert re.sub(" .*", "", shown.replace("\nModule", "")).split() == ["server", "pci_stub"]


def test_namespaces_are_the_session_s_own(execute: Tsmfs) -> None:
    shown = script(execute, "for n in mnt net pid; do readlink /proc/self/ns/$n; done").split()
    assert len(shown) == 3
    assert not set(shown) & {os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "net", "pid")}


def test_processes_are_the_session_s_only(execute: Tsmfs) -> None:
    shown = script(execute, "for p in /proc/[0-9]*; do echo ${p##*/}; done; echo $$")
    assert shown.split() == ["1", "2", "2"]


def test_loopback_is_up_and_there_is_nothing_else(execute: Tsmfs) -> None:
    shown = script(execute, "cat /proc/net/dev; grep -o 127.0.0.1 /proc/net/fib_trie")
    assert re.findall(r"^ *(\w+):", shown, re.MULTILINE) == ["lo"]
    assert "127.0.0.1" in shown


def test_run_is_fresh(execute: Tsmfs) -> None:
    assert script(execute, "umask 077; ls /run; stat -c %a /run /run/lock").split()[-2:] == [
        "755",
        "1777",
    ]
    shown = set(script(execute, "ls /run").split())
    assert {"lock"} <= shown <= {"lock", "tsmfs"}


def test_netlink_socket_is_where_the_control_file_says(execute: Tsmfs) -> None:
    shown = script(
        execute,
        "path=$(cat /sys/kernel/tsmfs/netlink_socket); test -S $path; ls ${path%/*}",
    )
    assert shown == "netlink.sock\n"


@NEEDS_ROOT
def test_netlink_socket_can_be_reached_by_any_user_inside() -> None:
    text = (
        "path=$(cat /sys/kernel/tsmfs/netlink_socket); "
        "setpriv --reuid=65534 --clear-groups test -w $path"
    )
    script(lambda *arguments: tsmfs("exec", *arguments, preexec_fn=lambda: os.umask(0o077)), text)


def test_environment_is_clean(execute: Tsmfs) -> None:
    shown = script(execute, "env")
    names = {line.partition("=")[0] for line in shown.splitlines()}
    assert {"TSMFS_SYSFS", "TSMFS_SESSION", "SYSTEMD_DEVICE_VERIFY_SYSFS", "PATH"} <= names
    assert "PYTHONPATH" not in names
    assert "PYTHONPATH=" in script(execute, "env", "--keep-env")


def test_tools_for_modules_are_stand_ins(execute: Tsmfs) -> None:
    shown = script(execute, "modprobe devsec_pci; lsmod; modinfo -d devsec_tsm; rmmod devsec_pci")
    assert re.search(r"^devsec_pci +\d+ +0$", shown, re.MULTILINE)


OVERLAY = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" none /usr/sbin
printf '#!/bin/sh\\necho real' > /usr/sbin/kmod
chmod 755 /usr/sbin/kmod
ln -sf kmod /usr/sbin/lsmod
ln -sf /usr/bin/env /usr/sbin/modinfo
shift
exec "$@"
"""


@NEEDS_ROOT
def test_tools_at_their_absolute_paths_are_stand_ins(tmp_path: Path) -> None:
    program = as_caller("exec", "--", "sh", "-c", "/usr/sbin/lsmod; /usr/sbin/modinfo true; kmod")
    done = run(["unshare", "-m", "sh", "-c", OVERLAY, "sh", str(tmp_path), *program])
    assert "devsec_tsm " in done.stdout
    assert "real" not in done.stdout
    # env(1) is not only modinfo, and so is what it was.
    assert done.returncode == 1
    assert done.stderr == "kmod: call this as modprobe, rmmod, lsmod, insmod or modinfo\n"


def test_the_host_s_sysfs_is_out_of_reach(execute: Tsmfs) -> None:
    """Neither below ours, nor through another process, nor on the way up from /sys."""
    shown = script(
        execute,
        "ls -A /sys/.. > /tmp/up.$$; rm /tmp/up.$$; "
        "grep -c ' - sysfs ' /proc/self/mountinfo || true; "
        "ls /proc/1/root/sys/kernel/tsmfs/name; "
        "ls -l /proc/1/fd | grep -c ' -> /' || true; "
        "umount /sys; ls -A /sys; ls -A /proc/1/root/sys",
    ).split()
    assert shown[:2] == ["0", "/proc/1/root/sys/kernel/tsmfs/name"]
    assert len(shown) == 3


def test_a_user_cannot_mount_sysfs_inside() -> None:
    program = as_nobody if os.geteuid() == 0 else as_caller
    done = run(program("exec", "--", "mount", "-t", "sysfs", "none", "/mnt"))
    assert done.returncode == 32
    assert "denied" in done.stderr


def test_descriptors_of_the_caller_and_no_others_are_inherited(execute: Tsmfs) -> None:
    with open(ROOT / "LICENSE") as file:
        os.set_inheritable(file.fileno(), True)
        done = execute("--", "sh", "-c", "ls /proc/$$/fd", pass_fds=[file.fileno()])
        assert sorted(map(int, done.stdout.split())) == [0, 1, 2, file.fileno()]


def test_streams_that_the_caller_closed_stay_closed() -> None:
    text = "ls /proc/$$/fd >&3 2>&3"
    program = " ".join(as_caller("exec", "--", "sh", "-c", f"'{text}'"))
    done = run(["sh", "-c", f"{program} 3>&1 <&- >&- 2>&-"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "0" not in done.stdout.split()


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status_is_that_of_the_command(status: int) -> None:
    assert tsmfs("exec", "--", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        ("nosuchcommand", 127, "tsmfs: exec: nosuchcommand: No such file or directory\n"),
        ("/etc/passwd", 126, "tsmfs: exec: /etc/passwd: Permission denied\n"),
    ],
)
def test_command_that_cannot_be_run(execute: Tsmfs, command: str, status: int, text: str) -> None:
    done = execute("--", command)
    assert (done.returncode, done.stderr) == (status, text)


def test_options_of_the_command_are_its_own(execute: Tsmfs) -> None:
    assert execute("echo", "--machine", "-x", "--", "y").stdout == "--machine -x -- y\n"


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--machine", "nosuch"], 125, "nosuch: unknown machine"),
        (["--module", "nosuch"], 125, "cannot load nosuch"),
        (["--name", "a/b"], 125, "a/b: a name is up to 40"),
        (["--rules", "/"], 2, "--rules and --host-rules are of use with --udevd only"),
        (["--host-rules"], 2, "--rules and --host-rules are of use with --udevd only"),
        (["--nosuch"], 2, "No such option"),
    ],
)
def test_session_that_does_not_start(options: list[str], status: int, reason: str) -> None:
    done = tsmfs("exec", *options, "--", "echo", "x")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"tsmfs: {reason}")
    assert done.stderr.count("\n") == 1


NO_USER_NAMESPACES = (
    "echo 0 > /proc/sys/user/max_user_namespaces && "
    'exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"'
)


@pytest.mark.parametrize(
    ("preparation", "reason"),
    [
        (NO_USER_NAMESPACES, "who is not root needs a user namespace for a session, and gets none"),
        (
            'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"',
            "no mount and network namespaces here (No space left on device)",
        ),
        (
            'echo 0 > /proc/sys/user/max_pid_namespaces && exec "$@"',
            "no PID namespace here (No space left on device)",
        ),
        ('mount -t tmpfs none /dev && exec "$@"', "/dev/fuse: No such file or directory"),
    ],
)
def test_what_is_missing_is_told_with_what_works_without(preparation: str, reason: str) -> None:
    program = as_caller("exec", "--", "true")
    done = run(["unshare", "-Urm", "sh", "-c", preparation, "sh", *program])
    assert done.returncode == 125
    assert done.stderr.startswith(f"tsmfs: {reason}")
    assert done.stderr.rstrip().endswith(("works", "works without"))
    assert done.stderr.count("\n") == 1


def test_what_a_command_leaves_running_ends_with_it(execute: Tsmfs) -> None:
    mark = f"9{os.getpid()}.{time.monotonic_ns() % 10**6}"
    done = execute("--", "sh", "-c", f"setsid sleep {mark} </dev/null >/dev/null 2>&1 & exit 3")
    assert done.returncode == 3
    assert not processes(mark)


def processes(word: str) -> list[int]:
    """The processes that have *word* in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_orphans_are_reaped(execute: Tsmfs) -> None:
    # What is left is process 1 and the shell, which starts no other to look.
    wait = "until set -- /proc/[0-9]*; [ $# = 2 ]; do sleep 0.05; done; echo $*"
    shown = script(execute, f"for i in 1 2 3 4 5; do (true &) ; done; {wait}")
    assert shown == "/proc/1 /proc/2\n"


@pytest.mark.parametrize("directory", ["/run", "/usr", "/"])
def test_working_directory_is_the_caller_s(execute: Tsmfs, directory: str) -> None:
    program = execute("--", "pwd", cwd=directory)
    assert program.returncode == 0
    if program.args[1] != "-c":
        assert program.stdout == f"{directory}\n"


@NEEDS_ROOT
def test_working_directory_below_run_stays() -> None:
    place = Path("/run/lock") / f"tsmfs-test-{os.getpid()}"
    place.mkdir(parents=True)
    try:
        done = tsmfs("exec", "--", "sh", "-c", "pwd; echo x > file; ls /run/lock", cwd=place)
        assert done.stdout == f"{place}\n{place.name}\n"
        assert (place / "file").read_text() == "x\n"
        (place / "file").unlink()
    finally:
        place.rmdir()


def test_working_directory_that_is_not_there_is_told() -> None:
    done = tsmfs("exec", "--", "pwd", cwd="/proc/self/fdinfo")
    assert (done.returncode, done.stdout) == (0, "/\n")
    assert re.fullmatch(
        r"tsmfs: the working directory is /: /proc/\d+/fdinfo is not there\n", done.stderr
    )


def test_two_sessions_with_different_machines_at_once() -> None:
    script = "cat /sys/kernel/tsmfs/name; read -r line; lsmod | wc -l"
    both = [
        subprocess.Popen(
            as_caller("exec", "--machine", machine, "--", "sh", "-c", script),
            env=variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for machine in ("devsec", "server")
    ]
    for process, machine in zip(both, ("devsec", "server"), strict=True):
        assert process.stdout is not None
        assert process.stdout.readline() == f"{machine}\n"
    for process in both:
        process.communicate("go\n", timeout=SECONDS)
        assert process.returncode == 0


def test_a_session_inside_a_session(execute: Tsmfs) -> None:
    inner = " ".join(as_caller("exec", "--machine", "server", "--", "sh", "-c"))
    text = "'cat /sys/kernel/tsmfs/name; umount /sys; ls -A /sys'"
    done = tsmfs("exec", "--keep-env", "--", "sh", "-c", f"{inner} {text}")
    assert (done.returncode, done.stdout) == (0, "server\n")
    assert done.stderr.count("\n") == 1
    assert "another session or container around this one has it" in done.stderr


def test_generic_netlink_has_the_families_of_the_machine(execute: Tsmfs) -> None:
    client = (
        "import socket, struct\n"
        "s = socket.socket(16, 3, 16)\n"
        "s.sendto(struct.pack('=IHHIIBBHHH8s', 32, 16, 1, 1, 0, 3, 2, 0, 12, 2, b'pci-tsm\\0'),"
        " (0, 0))\n"
        "answer, sender = s.recvfrom(65536)\n"
        "print(struct.unpack_from('=IH', answer)[1], sender)\n"
    )
    shown = script(execute, f'/usr/bin/python3 -c "{client}"')
    assert shown == "16 (0, 0)\n"


@pytest.fixture
def session() -> Iterator[subprocess.Popen[str]]:
    """A session named ``test-PID`` whose COMMAND waits for a line."""
    name = f"test-{os.getpid()}"
    process = subprocess.Popen(
        as_caller("exec", "--name", name, "--", "sh", "-c", "echo ready; read -r line"),
        env=variables(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    if process.poll() is None:
        process.communicate("go\n", timeout=SECONDS)


def test_sessions_are_listed(session: subprocess.Popen[str]) -> None:
    name = f"test-{os.getpid()}"
    listed = {entry["name"]: entry for entry in json.loads(tsmfs("sessions", "--json").stdout)}
    assert listed[name]["machine"] == "devsec"
    assert listed[name]["front"] == session.pid
    assert listed[name]["command"][0] == "sh"
    (line,) = (line for line in tsmfs("sessions").stdout.splitlines() if name in line)
    assert re.match(rf"{name} +devsec +{session.pid} [-\d]+ [:\d]+  sh -c ", line)


def test_enter_joins_a_session(session: subprocess.Popen[str]) -> None:
    name = f"test-{os.getpid()}"
    namespaces = "for n in mnt net pid user; do readlink /proc/$$/ns/$n; done; "
    text = (
        namespaces + "cat /sys/kernel/tsmfs/name; pwd; echo $TSMFS_SESSION; ls /proc/$$/fd; exit 9"
    )
    done = tsmfs("enter", name, "--", "sh", "-c", text, cwd="/usr")
    assert (done.returncode, done.stderr) == (9, "")
    shown = done.stdout.split()
    record = next(e for e in json.loads(tsmfs("sessions", "--json").stdout) if e["name"] == name)
    assert shown[:4] == [
        os.readlink(f"/proc/{record['init']}/ns/{kind}") for kind in ("mnt", "net", "pid", "user")
    ]
    assert shown[4:] == ["devsec", "/usr", name, "0", "1", "2"]


def test_enter_has_generic_netlink_too(session: subprocess.Popen[str]) -> None:
    client = (
        "import socket, struct\n"
        "s = socket.socket(16, 3, 16)\n"
        "s.sendto(struct.pack('=IHHIIBBHHH8s', 32, 16, 1, 1, 0, 3, 2, 0, 12, 2, b'pci-tsm\\0'),"
        " (0, 0))\n"
        "print(struct.unpack_from('=IH', s.recv(65536))[1])\n"
    )
    done = tsmfs("enter", f"test-{os.getpid()}", "--", "/usr/bin/python3", "-c", client)
    assert done.stdout == "16\n"


def test_who_entered_ends_with_the_session(session: subprocess.Popen[str]) -> None:
    entered = subprocess.Popen(
        as_caller("enter", f"test-{os.getpid()}", "sh", "-c", "echo ready; sleep 100"),
        env=variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert entered.stdout is not None
    assert entered.stdout.readline() == "ready\n"
    session.communicate("go\n", timeout=SECONDS)
    _, errors = entered.communicate(timeout=SECONDS)
    assert entered.returncode == 125
    assert errors == "tsmfs: the session was killed, and COMMAND with it\n"


def test_signal_to_the_front_reaches_who_entered(session: subprocess.Popen[str]) -> None:
    entered = subprocess.Popen(
        as_caller(
            "enter",
            f"test-{os.getpid()}",
            "sh",
            "-c",
            "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done",
        ),
        env=variables(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert entered.stdout is not None
    assert entered.stdout.readline() == "ready\n"
    entered.send_signal(signal.SIGTERM)
    entered.communicate(timeout=SECONDS)
    assert entered.returncode == 5


def test_no_such_session() -> None:
    done = tsmfs("enter", "nosuch", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("tsmfs: nosuch: no session of this name is running")


def test_a_name_is_taken_once(session: subprocess.Popen[str]) -> None:
    name = f"test-{os.getpid()}"
    done = tsmfs("exec", "--name", name, "--", "true")
    assert done.returncode == 125
    assert done.stderr == f"tsmfs: {name}: a session of this name is running\n"
