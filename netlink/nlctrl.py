# SPDX-License-Identifier: MIT
"""The controller of generic netlink: which families there are, and what they accept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from pyroute2.netlink import GENL_ID_CTRL

from netlink.af_netlink import Dump
from netlink.codec import Values
from netlink.genl import GenericNetlink, GenlFamily, GenlInfo, Messages, SplitOp
from netlink.policy import NetlinkError, Policy, describe
from netlink.spec import builtin

SPEC: Final = builtin("nlctrl")
_OP_FLAGS: Final = SPEC.enums["op-flags"]


def serve_nlctrl(genl: GenericNetlink) -> None:
    """Register nlctrl under the number that all clients know."""
    genl.register(SPEC, Controller(genl), GENL_ID_CTRL)


class Controller:
    """The operations of nlctrl over the families of a registry."""

    def __init__(self, genl: GenericNetlink) -> None:
        self._genl = genl

    def do_getfamily(self, info: GenlInfo) -> Iterator[Values]:
        """``ctrl_getfamily()``: the name counts when there are both a name and a number."""
        return iter([_family(self._find(info, by_name_first=True))])

    def dump_getfamily(self, info: GenlInfo) -> Dump:
        """``ctrl_dumpfamily()``."""
        return Messages(info, (_family(family) for family in self._genl.families()))

    def dump_getpolicy(self, info: GenlInfo) -> Dump:
        """``ctrl_dumppolicy_start()``: the number counts when there are both."""
        family = self._find(info, by_name_first=False)
        ops = list(family.ops.values())
        only = info.nla("op")
        if only is not None:
            command = info.integer("op")
            ops = [op for op in ops if op.operation.request_value == command]
            if not ops:
                raise NetlinkError(errno.ENOENT, bad_attr=only.offset)
        return Messages(info, _policies(family, ops))

    def _find(self, info: GenlInfo, by_name_first: bool) -> GenlFamily:
        number, name = info.integer("family-id"), info.get("family-name")
        if number is None and name is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if name is not None and (by_name_first or number is None):
            family = self._genl.by_name(str(name))
        else:
            family = self._genl.by_id(number or 0)
        if family is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return family


def _family(family: GenlFamily) -> Values:
    """``ctrl_fill_info()``."""
    ops: dict[int, int] = {}
    for (command, dump), op in family.ops.items():
        flags = _OP_FLAGS.value("cmd-cap-dump" if dump else "cmd-cap-do")
        for name in op.operation.flags:
            flags |= _OP_FLAGS.value(name)
        ops[command] = ops.get(command, 0) | flags | _OP_FLAGS.value("cmd-cap-haspol")
    return {
        "family-name": family.spec.name,
        "family-id": family.id,
        "version": family.spec.version,
        "hdrsize": 0,
        # Each operation has its own policy, so the family has no greatest attribute.
        "maxattr": 0,
        "ops": [{"id": command, "flags": flags} for command, flags in ops.items()],
    }


def _policies(family: GenlFamily, ops: list[SplitOp]) -> Iterator[Values]:
    """``ctrl_dumppolicy()``: which policy each operation has, then the policies."""
    index: dict[Policy, int] = {}
    for op in ops:
        _add(index, op.policy)
    commands: dict[int, dict[str, int]] = {}
    for op in ops:
        number = op.operation.request_value
        commands.setdefault(number, {})["dump" if op.dump else "do"] = index[op.policy]
    for command, which in commands.items():
        yield {"family-id": family.id, "op-policy": {"op-id": command, **which}}
    for policy, number in index.items():
        for kind, demand in policy.entries:
            shown = describe(demand, index)
            if shown is not None:
                yield {
                    "family-id": family.id,
                    "policy": {"policy-id": number, "attr-id": kind, **shown},
                }


def _add(index: dict[Policy, int], policy: Policy) -> None:
    """Number a policy and those nested in it, equal ones once."""
    if policy in index:
        return
    index[policy] = len(index)
    for _, demand in policy.entries:
        if demand.nested is not None:
            _add(index, demand.nested)
