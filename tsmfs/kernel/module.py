# SPDX-License-Identifier: MIT
"""Loadable modules: parameters, dependencies, reference counts, init with complete unwinding."""

from __future__ import annotations

import contextlib
import enum
import errno
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tsmfs.kernel.errors import fail
from tsmfs.kernel.locking import Mutex
from tsmfs.kernel.printk import Log

Kernel = TypeVar("Kernel", contravariant=True)
"""What a module's init is handed: the running kernel's services."""

ParameterValue = bool | int | str


class ParamType(enum.Enum):
    """Types of a parameter (include/linux/moduleparam.h)."""

    BOOL = "bool"
    INT = "int"
    CHARP = "charp"


def kstrtobool(text: str) -> bool:
    """A boolean as ``kstrtobool()`` reads it; EINVAL when it is none."""
    text = text.removesuffix("\n")
    if text[:1] in ("y", "Y", "t", "T", "1"):
        return True
    if text[:1] in ("n", "N", "f", "F", "0"):
        return False
    if text[:2].lower() == "on":
        return True
    if text[:2].lower() == "of":
        return False
    fail(errno.EINVAL, f"{text!r} is no boolean")


_INTEGER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")


def kstrtoint(text: str) -> int:
    """A 32-bit integer as ``kstrtoint(.., 0)`` reads it; EINVAL, or ERANGE when too large."""
    text = text.removesuffix("\n")
    match = _INTEGER.fullmatch(text)
    if match is None:
        fail(errno.EINVAL, f"{text!r} is no integer")
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    value = -value if sign == "-" else value
    if not -(1 << 31) <= value < 1 << 31:
        fail(errno.ERANGE, f"{text!r} does not fit 32 bits")
    return value


@dataclass(frozen=True, slots=True)
class Param:
    """A module parameter (``module_param_named()``, ``MODULE_PARM_DESC()``)."""

    name: str
    type: ParamType
    default: ParameterValue
    description: str
    mode: int = 0o444
    """Mode of its file in ``parameters/``; 0 for no file."""

    def parse(self, text: str | None) -> ParameterValue:
        """The value of *text*; None is a name without a value, true for a boolean."""
        match self.type:
            case ParamType.BOOL:
                return True if text is None else kstrtobool(text)
            case ParamType.INT:
                return kstrtoint(text or "")
            case ParamType.CHARP:
                if text is None:
                    fail(errno.EINVAL, f"{self.name} needs a value")
                return text

    def show(self, value: ParameterValue) -> str:
        """The value as its file reads (booleans Y or N), with a newline."""
        if isinstance(value, bool):
            return "Y\n" if value else "N\n"
        return f"{value}\n"


AUTOPROBE = Param(
    "autoprobe",
    ParamType.BOOL,
    True,
    "attach this module's drivers to devices without an explicit bind",
    mode=0o644,
)
"""Every module takes it; the default is ``module.modules_autoprobe``."""


class Init(Protocol[Kernel]):
    """A module's init function."""

    def __call__(self, kernel: Kernel, module: LoadedModule, /) -> None:
        """Start the module; what it registers with ``module.on_exit`` undoes it."""


@dataclass(frozen=True)
class Module(Generic[Kernel]):
    """A module as it lies on disk."""

    name: str
    init: Init[Kernel]
    description: str
    parameters: Sequence[Param] = ()
    depends: Sequence[str] = ()
    version: str | None = None

    def all_parameters(self) -> dict[str, Param]:
        """Its own parameters and those every module has."""
        return {p.name: p for p in (*self.parameters, AUTOPROBE)}


@dataclass(slots=True)
class LoadedModule:
    """A module in the kernel."""

    name: str
    params: dict[str, ParameterValue]
    definitions: Mapping[str, Param]
    depends: Sequence[str] = ()
    version: str | None = None
    refcnt: int = 0
    holders: list[str] = field(default_factory=list)
    state: str = "coming"
    """``initstate``: coming, live or going."""
    exports: object = None
    """What the module offers to those that depend on it (``EXPORT_SYMBOL``)."""
    _exit: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def autoprobe(self) -> bool:
        """Whether its drivers attach without an explicit bind."""
        return self.params["autoprobe"] is True

    def on_exit(self, undo: Callable[[], object]) -> None:
        """Call *undo* when the module goes, or when its init fails; last registered first."""
        self._exit.callback(undo)

    def get(self) -> None:
        """Take a reference: the module cannot be unloaded (``try_module_get()``)."""
        self.refcnt += 1

    def put(self) -> None:
        """Drop a reference (``module_put()``)."""
        self.refcnt -= 1

    def unwind(self) -> None:
        """Undo what init did."""
        self._exit.close()


class ModuleObserver(Protocol):
    """Who shows modules to user space."""

    def module_coming(self, module: LoadedModule) -> None:
        """*module* is about to be initialized."""

    def module_gone(self, module: LoadedModule) -> None:
        """*module* is out of the kernel, or its init failed."""


def parse_args(text: str) -> list[tuple[str, str | None]]:
    """``name=value ...`` as on insmod's command line; EINVAL on an open quote."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        fail(errno.EINVAL, str(error))
    return [
        (name, value if sep else None) for name, sep, value in (w.partition("=") for w in words)
    ]


def canonical(name: str) -> str:
    """A module's name with ``-`` read as ``_``, as modprobe does."""
    return name.replace("-", "_")


class ModuleTable(Generic[Kernel]):
    """The modules that can be loaded, and those that are.

    One load or unload at a time (``module_mutex``); readers take none of it.
    """

    def __init__(self, available: Iterable[Module[Kernel]], log: Log, kernel: Kernel) -> None:
        self.available = {m.name: m for m in available}
        self.loaded: dict[str, LoadedModule] = {}
        self.autoprobe_default = True
        """``modules_autoprobe``: what ``autoprobe`` is when it is not given."""
        self.observers: list[ModuleObserver] = []
        self._log = log
        self._kernel = kernel
        self._loading: list[str] = []
        self._mutex = Mutex("module_mutex")

    def modprobe(self, name: str, args: str = "") -> None:
        """Load *name* and, before it, what it depends on; nothing when it is loaded.

        ENOENT for an unknown module, EINVAL for a bad value, ELOOP for one that depends on
        itself, else what init raised. An unknown
        parameter is ignored with a line in the log, as in Linux.
        """
        name = canonical(name)
        with self._mutex.lock_interruptible():
            if name in self.loaded:
                return
            definition = self.available.get(name)
            if definition is None:
                fail(errno.ENOENT, f"module {name} not found")
            params = self._parse(definition, args)
            if name in self._loading:
                fail(errno.ELOOP, f"module {name} depends on itself")
            before = set(self.loaded)
            self._loading.append(name)
            try:
                for dependency in definition.depends:
                    self.modprobe(dependency)
                held = [self.loaded[dependency] for dependency in definition.depends]
                self._insert(definition, params, held)
            except BaseException:
                # modprobe itself leaves them; here a failed load leaves nothing behind.
                for fresh in reversed([n for n in self.loaded if n not in before]):
                    self.rmmod(fresh)
                raise
            finally:
                self._loading.remove(name)

    def _parse(self, definition: Module[Kernel], args: str) -> dict[str, ParameterValue]:
        known = definition.all_parameters()
        params = {p.name: p.default for p in known.values()}
        params["autoprobe"] = self.autoprobe_default
        for key, value in parse_args(args):
            param = known.get(canonical(key))
            if param is None:
                self._log.warn(f"{definition.name}: unknown parameter '{key}' ignored")
                continue
            try:
                params[param.name] = param.parse(value)
            except OSError:
                self._log.err(f"{definition.name}: `{value}' invalid for parameter `{param.name}'")
                raise
        return params

    def _insert(
        self,
        definition: Module[Kernel],
        params: dict[str, ParameterValue],
        dependencies: Sequence[LoadedModule],
    ) -> None:
        module = LoadedModule(
            definition.name,
            params,
            definition.all_parameters(),
            definition.depends,
            definition.version,
        )
        self.loaded[module.name] = module
        for dependency in dependencies:
            dependency.get()
            dependency.holders.append(module.name)
        module.get()
        try:
            for observer in self.observers:
                observer.module_coming(module)
            definition.init(self._kernel, module)
        except BaseException:
            module.state = "going"
            self._drop(module, dependencies)
            raise
        module.state = "live"
        module.put()

    def rmmod(self, name: str) -> None:
        """Unload *name*; ENOENT when it is not loaded, EAGAIN while something holds it."""
        name = canonical(name)
        with self._mutex.lock_interruptible():
            module = self.loaded.get(name)
            if module is None:
                fail(errno.ENOENT, f"module {name} is not loaded")
            if module.refcnt:
                fail(errno.EAGAIN, f"module {name} is in use")
            module.state = "going"
            depends = [self.loaded[d] for d in self.available[name].depends]
            self._drop(module, depends)

    def _drop(self, module: LoadedModule, dependencies: Sequence[LoadedModule]) -> None:
        try:
            module.unwind()
        finally:
            del self.loaded[module.name]
            for dependency in reversed(dependencies):
                dependency.holders.remove(module.name)
                dependency.put()
            for observer in reversed(self.observers):
                observer.module_gone(module)

    def unload_all(self) -> None:
        """Unload every module, those that depend on others first (the machine stops)."""
        with self._mutex.lock():
            while idle := [name for name, m in self.loaded.items() if not m.refcnt]:
                self.rmmod(idle[-1])
            for name in self.loaded:
                self._log.err(f"module {name} is still in use")

    def proc_modules(self) -> str:
        """The text of /proc/modules, newest first."""
        lines = []
        for module in reversed(list(self.loaded.values())):
            holders = "".join(f"{h}," for h in module.holders) or "-"
            state = {"live": "Live", "coming": "Loading", "going": "Unloading"}[module.state]
            lines.append(
                f"{module.name} {CORESIZE} {module.refcnt} {holders} {state} 0x0000000000000000\n"
            )
        return "".join(lines)

    def modinfo(self) -> str:
        """A line for each known module: name, description, depends, parameters, with tabs."""
        lines = []
        for module in sorted(self.available.values(), key=lambda m: m.name):
            params = ";".join(
                f"{p.name}:{p.type.value}:{p.description}" for p in module.all_parameters().values()
            )
            lines.append(
                f"{module.name}\t{module.description}\t{','.join(module.depends)}\t{params}\n"
            )
        return "".join(lines)


CORESIZE = 16384
"""Size that a module reports, bytes; an emulated one has none of its own."""
