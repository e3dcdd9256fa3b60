# SPDX-License-Identifier: MIT
"""Services that a session starts before COMMAND, when they do not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.left_behind import nothing_left
from tsmfs.session import SessionError, udevd
from tsmfs.session.services import udevd_service


def test_a_directory_of_rules_that_is_gone_leaves_none_open(tmp_path: Path) -> None:
    start = udevd_service([tmp_path, tmp_path / "gone"], True)
    with nothing_left(), pytest.raises(FileNotFoundError, match="gone"):
        start({})


def test_a_udevd_that_does_not_start_leaves_no_directory_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise udevd.UdevdError("no udevd")

    monkeypatch.setattr(udevd, "start", refuse)
    with nothing_left(), pytest.raises(SessionError, match=r"^no udevd$"):
        udevd_service([tmp_path], True)({})
