# SPDX-License-Identifier: MIT
"""What tests of several packages share.

Property tests take the same examples in each run, so that a run that fails fails again. Others are
taken by ``pytest --hypothesis-profile=fresh``, those of a seed by ``--hypothesis-seed=N`` besides.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.command_line import Result, Run
from tsmfs.cli import main

# How long an example takes, or drawing it, says nothing on a machine that has other things to do.
_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _UNHURRIED, derandomize=True, database=None)
settings.register_profile("fresh", _UNHURRIED, derandomize=False, print_blob=True)
settings.load_profile("same")

MODULES = """\
devsec_tsm 16384 0 - Live 0x0000000000000000
devsec_bus 16384 0 - Live 0x0000000000000000
devsec_common 8192 2 devsec_tsm,devsec_bus, Live 0x0000000000000000
"""

MODINFO = """\
devsec_bus\tTwo emulated host bridges\tdevsec_common\tautoprobe:bool:bind by itself
devsec_common\tWhat the others share\t\t
devsec_link_tsm\tA link TSM\tdevsec_common,devsec_bus\t
devsec_pci\tA driver\t\tautoprobe:bool:bind by itself: 0 or 1;depth:int:how deep
devsec_tsm\tA devsec TSM\tdevsec_common\t
"""


@pytest.fixture
def fake_sysfs(tmp_path: Path) -> Path:
    """A directory with the control files of a machine as ordinary files, so that a write stays."""
    control = tmp_path / "sysfs" / "kernel" / "tsmfs"
    control.mkdir(parents=True)
    for name in ("modprobe", "rmmod", "log", "uevents"):
        (control / name).touch()
    (control / "modules").write_text(MODULES)
    (control / "modinfo").write_text(MODINFO)
    return tmp_path / "sysfs"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command as the console script does; it works on no machine unless told to."""
    monkeypatch.delenv("TSMFS_SYSFS", raising=False)

    def run_main(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return run_main
