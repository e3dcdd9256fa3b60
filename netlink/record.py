# SPDX-License-Identifier: MIT
"""How a recorded datagram begins: written by who records, read by the monitor."""

from __future__ import annotations

import struct
from typing import Final

RECORD: Final = struct.Struct("=IIQII")
"""Before each recorded datagram: its size in bytes, 1 if the server sent it and 0 if it received
it, nanoseconds of CLOCK_REALTIME, the port of the client, and a zero."""
