# SPDX-License-Identifier: MIT
"""What a session starts before COMMAND when it is asked for: udevd."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tsmfs.session import SessionError, udevd


def udevd_service(rules: Sequence[Path], host_rules: bool) -> Callable[[Mapping[str, str]], None]:
    """Starts udevd with the rules in some directories; to be called in the session."""

    def start(environment: Mapping[str, str]) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        descriptors: list[int] = []
        with contextlib.ExitStack() as stack:
            for directory in rules:
                descriptors.append(os.open(directory, flags))
                stack.callback(os.close, descriptors[-1])
            try:
                udevd.start(descriptors, host_rules, environment)
            except udevd.UdevdError as error:
                raise SessionError(str(error)) from error

    return start
