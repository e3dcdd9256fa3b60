# SPDX-License-Identifier: MIT
"""Starts the host's own systemd-udevd in a session, and waits until it is through with coldplug."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsmfs.daemon import close_all_but
from tsmfs.oserror import reason
from tsmfs.session.namespaces import Mount, Namespace, bind, make_mounts_private, mount, unshare
from tsmfs.session.udev_keeper import LOG, MARK, Keeper
from tsmfs.session.udev_rules import KEPT, RulesView, UdevdError, arrange

__all__ = ["CONTROL", "ENVIRONMENT", "READY_SECONDS", "SETTLE_SECONDS", "UdevdError", "start"]

ENVIRONMENT = Path("/run/tsmfs/environment")
"""The variables of the session for a shell to read: udevd gives its programs none of them."""

CONTROL = Path("/run/udev/control")
"""The socket by which udevadm talks to udevd."""

READY_SECONDS = 10.0
"""udevd answers by then, or the session does not start."""
TRIGGER_SECONDS = 30.0
"""So long may it take to ask for the events of coldplug."""
SETTLE_SECONDS = 60
"""Rules that are not through with coldplug by then go on while the command runs."""

_DAEMONS = (
    Path("/lib/systemd/systemd-udevd"),
    Path("/usr/lib/systemd/systemd-udevd"),
    Path("/sbin/systemd-udevd"),
)
_ADMIN = "udevadm"
_ADMIN_PLACES = "/usr/bin:/bin:/usr/sbin:/sbin"
_NAME = "systemd-udevd"
_MISSING = (
    "there is no systemd-udevd on this host: install the package udev "
    "(Debian, Ubuntu), systemd-udev (Fedora) or systemd (Arch, openSUSE)"
)

_COLDPLUG = (("--type=subsystems", "--action=add"), ("--type=devices", "--action=add"))
"""What a system does once udevd runs (systemd-udev-trigger.service)."""

_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_DEV = Path("/dev")
_INHERITED_FLAGS = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC

_POLL_SECONDS = 0.02
_LAST_WORDS_SECONDS = 2.0
_PR_CAPBSET_DROP = 24
_CAP_SYS_MODULE = 16
_SERVICE_VARIABLES = ("LISTEN_", "NOTIFY_", "WATCHDOG_", "SYSTEMD_EXEC_PID", "INVOCATION_ID")
"""With these a service manager speaks to the process that it started, which this is not."""

_libc = ctypes.CDLL(None, use_errno=True)


def start(rules: Sequence[int], host_rules: bool, environment: Mapping[str, str]) -> int:
    """Start udevd with the rules in the directories *rules*; returns its PID once it has settled.

    For process 1 of a session that is inside all its namespaces, with the machine on ``/sys`` and
    a ``/run`` of its own. *rules* are open directories, the later going before the earlier for
    equal names, and all before those of the host, which udevd has only with *host_rules*.
    *environment* is that of the session. Covers directories in this mount namespace, and leaves a
    second child that ends after udevd, and has shown what udevd has to say by now. Raises
    UdevdError, and no child is left then.
    """
    daemon, admin = _find_daemon(), _find_admin()
    try:
        view = arrange(rules, host_rules=host_rules)
        _write_environment(environment)
        CONTROL.parent.mkdir(exist_ok=True)
        keeper = _start_keeper(view)
        try:
            udevd = _start_daemon(daemon, _daemon_environment(environment), keeper.log)
            try:
                _coldplug(udevd, admin, _admin_environment(environment))
                keeper.hear_out()
            except BaseException:
                os.kill(udevd, signal.SIGKILL)
                os.waitpid(udevd, 0)
                raise
        except BaseException:
            keeper.end()
            raise
        keeper.close()
    except OSError as error:
        raise UdevdError(f"udevd cannot be started: {reason(error)}") from error
    return udevd


def _find_daemon() -> list[str]:
    """The program and its name; newer systemd has it in udevadm, which looks at its name."""
    for path in _DAEMONS:
        if os.access(path, os.X_OK):
            return [str(path), str(path)]
    return [_find_admin(), _NAME]


def _find_admin() -> str:
    admin = shutil.which(_ADMIN, path=_ADMIN_PLACES)
    if admin is None:
        raise UdevdError(_MISSING)
    return admin


def _write_environment(environment: Mapping[str, str]) -> None:
    lines = [
        f"export {name}={shlex.quote(value)}\n"
        for name, value in sorted(environment.items())
        # A shell may have functions in variables that it cannot name.
        if name.isidentifier()
    ]
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    ENVIRONMENT.touch(mode=0o600)
    ENVIRONMENT.write_text("".join(lines), errors="surrogateescape")


def _admin_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For udevadm: it says errors on standard error, and does not think itself in a chroot."""
    own = {k: v for k, v in environment.items() if not k.startswith(_SERVICE_VARIABLES)}
    return {
        **own,
        "SYSTEMD_DEVICE_VERIFY_SYSFS": "0",
        "SYSTEMD_IGNORE_CHROOT": "1",
        "SYSTEMD_IN_CHROOT": "0",
        "SYSTEMD_LOG_TARGET": "console",
        "SYSTEMD_LOG_LEVEL": "info",
        "SYSTEMD_LOG_COLOR": "0",
    }


def _daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For udevd: it logs all, since it tells only so what programs write to standard error."""
    return {
        **_admin_environment(environment),
        "SYSTEMD_LOG_TARGET": "console-prefixed",
        "SYSTEMD_LOG_LEVEL": "debug",
    }


@dataclass(frozen=True, slots=True)
class _RunningKeeper:
    """The keeper, as the process that started it has it."""

    pid: int
    log: int
    """The pipe from which it reads, for udevd to write into."""
    answer: int
    """The pipe in which it answers."""

    def hear_out(self) -> None:
        """Wait until all that was said so far is shown, but not for ever."""
        if select.select([], [self.log], [], _LAST_WORDS_SECONDS)[1]:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.log, MARK)
            select.select([self.answer], [], [], _LAST_WORDS_SECONDS)

    def close(self) -> None:
        """Leave it alone."""
        os.close(self.log)
        os.close(self.answer)

    def end(self) -> None:
        """Let it end with what was said so far, and without a word about the end."""
        # It heeds the signal once it has answered.
        self.hear_out()
        os.kill(self.pid, signal.SIGTERM)
        self.close()
        _reap(self.pid)


def _start_keeper(view: RulesView) -> _RunningKeeper:
    LOG.parent.mkdir(exist_ok=True)
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        reader, log = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, reader)
        ours.callback(os.close, log)
        answer, writer = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, writer)
        ours.callback(os.close, answer)
        stderr = os.dup(2)
        theirs.callback(os.close, stderr)
        keeper = Keeper(reader, writer, stderr, view)
        theirs.callback(keeper.close)
        pid = _fork(lambda: _keep(keeper))
        ours.pop_all()
    return _RunningKeeper(pid, log, answer)


def _keep(keeper: Keeper) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    close_all_but(keeper.descriptors())
    os.chdir("/")

    def end_is_known(*_: object) -> None:
        keeper.end_is_known = True

    signal.signal(signal.SIGTERM, end_is_known)
    # When nobody reads what it shows, it goes on.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    keeper.run()


def _start_daemon(command: Sequence[str], environment: Mapping[str, str], log: int) -> int:
    """Start udevd with a /dev of its own; UdevdError when it is not executed."""
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def execute() -> None:
        try:
            _protect_host()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            close_all_but([writer])
            os.chdir("/")
            os.umask(0o022)
            program, *arguments = command
            os.execve(program, arguments, environment)
        except OSError as error:
            os.write(writer, reason(error).encode(errors="replace"))

    with open(reader, "rb") as pipe:
        try:
            pid = _fork(execute)
        finally:
            os.close(writer)
        problem = pipe.read().decode(errors="replace")
    if problem:
        os.waitpid(pid, 0)
        raise UdevdError(f"udevd cannot be started: {problem}")
    return pid


def _protect_host() -> None:
    """Keep udevd off the host's device nodes and out of the host's kernel."""
    unshare(Namespace.MOUNT)
    make_mounts_private()
    place = KEPT / "dev"
    place.mkdir(exist_ok=True)
    mount("tmpfs", place, "tmpfs", data="mode=755")
    for name in _DEVICES:
        with contextlib.suppress(FileNotFoundError):
            _bind_device(_DEV / name, place / name)
    for name, target in _LINKS.items():
        (place / name).symlink_to(target)
    (place / "shm").mkdir()
    (place / "shm").chmod(0o1777)
    mount(place, _DEV, flags=Mount.MOVE)
    # A rule may load the module for a MODALIAS: the host's modules, for an emulated device.
    _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(_CAP_SYS_MODULE), 0, 0, 0)


def _bind_device(device: Path, place: Path) -> None:
    """Show a device node read-only: it can be written to, and not be changed itself."""
    device.stat()
    place.touch()
    bind(device, place)
    # What the host's mount does not allow cannot be allowed in a user namespace.
    inherited = os.statvfs(place).f_flag & _INHERITED_FLAGS
    mount("none", place, flags=Mount.REMOUNT | Mount.BIND | Mount.RDONLY | inherited)


def _coldplug(udevd: int, admin: str, environment: Mapping[str, str]) -> None:
    """Wait for udevd, ask for an event of everything that is there, and let it settle."""

    def run(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [admin, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )

    _wait_until_ready(udevd, run)
    for options in _COLDPLUG:
        try:
            done = run("trigger", *options, seconds=TRIGGER_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UdevdError(
                f"udevd: the events of coldplug cannot be triggered in {TRIGGER_SECONDS:.0f} s"
            ) from error
        _show(done.stderr)
    try:
        settled = run("settle", f"--timeout={SETTLE_SECONDS}", seconds=SETTLE_SECONDS + 10)
    except subprocess.TimeoutExpired:
        settled = None
    if settled is None or settled.returncode:
        _show(f"rules are not through after {SETTLE_SECONDS} s, and go on")


def _wait_until_ready(udevd: int, run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    said = ""
    while (left := deadline - time.monotonic()) > 0:
        if os.waitid(os.P_PID, udevd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise UdevdError(f"udevd ended at once: see what it said above, or in {LOG}")
        if CONTROL.exists():
            try:
                ping = run("control", "--ping", seconds=left)
            except subprocess.TimeoutExpired:
                break
            # Before version 243 there is no such option; the socket has to do.
            if not ping.returncode or "--ping" in ping.stderr:
                return
            said = ping.stderr
        time.sleep(_POLL_SECONDS)
    reason = said.strip().splitlines()[-1:] or ["it does not answer"]
    raise UdevdError(f"udevd is not ready after {READY_SECONDS:.0f} s: {reason[0]}")


def _show(text: str) -> None:
    for line in text.splitlines():
        print(f"udevd: {line}", file=sys.stderr, flush=True)


def _fork(body: Callable[[], None]) -> int:
    """Run *body* in a child with a terminal session and signals of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        _reset_signals()
        body()
        status = 0
    finally:
        os._exit(status)


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _reap(keeper: int) -> None:
    """Wait until the keeper has shown all, but not for ever: others may have the pipe too."""
    descriptor = os.pidfd_open(keeper)
    if not select.select([descriptor], [], [], _LAST_WORDS_SECONDS)[0]:
        os.kill(keeper, signal.SIGKILL)
    os.close(descriptor)
    os.waitpid(keeper, 0)
