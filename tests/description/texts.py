# SPDX-License-Identifier: MIT
"""Descriptions for the tests, and a walk over what they describe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tsmfs.description import Function


def endpoint(text: str = "", port: str = "") -> str:
    """A machine of one root port and one endpoint with the keys of `text`."""
    return f"""
        [[host_bridge]]
        [[host_bridge.root_port]]
        slot = 1
        {port}
        [[host_bridge.root_port.endpoint]]
        {text}
        """


def walk(functions: Sequence[Function]) -> Iterator[Function]:
    """Every function at and below `functions`."""
    for function in functions:
        yield function
        yield from walk(function.children)
