# SPDX-License-Identifier: MIT
"""TOML text to a checked machine."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tsmfs.description.check import MachineChecker
from tsmfs.description.cma import CmaFiles
from tsmfs.description.findings import DescriptionError, Findings, Mistake
from tsmfs.description.model import Function, Machine
from tsmfs.description.read import MACHINE_NAME, read_machine
from tsmfs.description.table import Table

_TOML_POSITION: Final = re.compile(r"(.*) \(at (line \d+, column \d+|end of document)\)", re.DOTALL)


def parse(text: str, source: str) -> Machine:
    """The machine that ``text`` describes; ``source`` names it in messages.

    Raises DescriptionError with every mistake found.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise DescriptionError([Mistake(source, "", "nested too deeply")]) from None
    except ValueError as error:
        match = _TOML_POSITION.fullmatch(str(error))
        position, reason = (match[2], match[1]) if match else ("", str(error))
        raise DescriptionError([Mistake(source, position, reason)]) from None
    findings = Findings(source)
    stem = Path(source).stem
    machine = read_machine(
        Table(data, "", findings), stem if MACHINE_NAME.fullmatch(stem) else "machine"
    )
    MachineChecker(findings).check(machine)
    if findings.mistakes:
        raise DescriptionError(findings.mistakes)
    directory = Path(source).parent
    bridges = tuple(
        replace(
            bridge,
            functions=tuple(
                _with_places(function, directory) for function in _in_bus_order(bridge.functions)
            ),
        )
        for bridge in machine.host_bridges
    )
    return replace(machine, host_bridges=bridges)


def _with_places(function: Function, directory: Path) -> Function:
    """``function`` with the files that it and those below it name found from ``directory``."""
    cma = function.cma
    if cma is not None and cma.files:
        files = tuple(
            CmaFiles(
                file.slot,
                os.path.abspath(directory / file.chain),
                os.path.abspath(directory / file.key),
            )
            for file in cma.files
        )
        cma = replace(cma, files=files)
    children = tuple(_with_places(child, directory) for child in function.children)
    return replace(function, cma=cma, children=children)


def _ordered(function: Function) -> Function:
    """``function`` with its BARs and everything below it in the order of their numbers."""
    sriov = function.sriov
    return replace(
        function,
        bars=tuple(sorted(function.bars, key=lambda bar: bar.index)),
        sriov=sriov and replace(sriov, bars=tuple(sorted(sriov.bars, key=lambda bar: bar.index))),
        children=_in_bus_order(function.children),
    )


def _in_bus_order(functions: Sequence[Function]) -> tuple[Function, ...]:
    return tuple(_ordered(function) for function in sorted(functions, key=lambda f: f.devfn))
