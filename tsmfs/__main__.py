# SPDX-License-Identifier: MIT
"""``python3 -m tsmfs`` is the command ``tsmfs``."""

from __future__ import annotations

from tsmfs.cli import main

if __name__ == "__main__":
    main()
