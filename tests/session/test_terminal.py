# SPDX-License-Identifier: MIT
"""The controlling terminal as a session has it."""

from __future__ import annotations

import os
import pty
import sys
import traceback

from tests.left_behind import open_files
from tsmfs.session.terminal import Terminal


def test_a_terminal_that_is_closed_is_no_longer_open() -> None:
    child, master = pty.fork()
    if child == 0:
        status = 1
        try:
            before = open_files()
            terminal = Terminal()
            assert terminal.is_ours()
            terminal.close()
            terminal.close()
            assert open_files() == before
            assert terminal.foreground() is None
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0
