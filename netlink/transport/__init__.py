# SPDX-License-Identifier: MIT
"""How datagrams get to a server of generic netlink and back; each transport is a module."""

from __future__ import annotations
