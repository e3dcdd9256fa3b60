# SPDX-License-Identifier: MIT
"""What a session starts before COMMAND when it is asked for: udevd."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tsmfs.session import SessionError, udevd


def udevd_service(rules: Sequence[Path], host_rules: bool) -> Callable[[Mapping[str, str]], None]:
    """Starts udevd with the rules in some directories; to be called in the session."""

    def start(environment: Mapping[str, str]) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        descriptors = [os.open(directory, flags) for directory in rules]
        try:
            udevd.start(descriptors, host_rules, environment)
        except udevd.UdevdError as error:
            raise SessionError(str(error)) from error
        for descriptor in descriptors:
            os.close(descriptor)

    return start
