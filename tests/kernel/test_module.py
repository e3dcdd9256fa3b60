# SPDX-License-Identifier: MIT
"""Modules: parameters, dependencies, reference counts, and an init that fails."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import errno_from, fails
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import (
    LoadedModule,
    Module,
    ModuleTable,
    Param,
    ParameterValue,
    ParamType,
    kstrtobool,
    kstrtoint,
    parse_args,
)
from tsmfs.kernel.printk import Log


@dataclass
class Kernel:
    """What the modules here are handed: a list of what happened."""

    events: list[str] = field(default_factory=list)


Init = Callable[[Kernel, LoadedModule], None]


def init(kernel: Kernel, module: LoadedModule) -> None:
    kernel.events.append(f"init {module.name}")
    module.on_exit(lambda: kernel.events.append(f"exit {module.name}"))


def failing(kernel: Kernel, module: LoadedModule) -> None:
    for step in (1, 2):
        module.on_exit(lambda step=step: kernel.events.append(f"undo {step}"))  # type: ignore[misc]
    fail(errno.ENODEV)


def module(
    name: str, *depends: str, run: Init = init, params: tuple[Param, ...] = ()
) -> Module[Kernel]:
    return Module(name, run, f"Test module {name}", params, depends)


PARAMS = (
    Param("flag", ParamType.BOOL, False, "a boolean", mode=0o644),
    Param("count", ParamType.INT, 7, "an integer"),
    Param("text_value", ParamType.CHARP, "none", "a text"),
)


@dataclass
class Fixture:
    """A table of modules, what they did, and the log."""

    table: ModuleTable[Kernel]
    events: list[str]
    log: Log

    def params(self, name: str) -> dict[str, ParameterValue]:
        return self.table.loaded[name].params

    def refcnt(self) -> dict[str, int]:
        return {name: m.refcnt for name, m in self.table.loaded.items()}


def table(*modules: Module[Kernel]) -> Fixture:
    kernel, log = Kernel(), Log()
    return Fixture(ModuleTable(modules, log, kernel), kernel.events, log)


@pytest.fixture
def chain() -> Fixture:
    """c depends on b depends on a; d depends on a."""
    return table(
        module("a"),
        module("b", "a"),
        module("c", "b"),
        module("d", "a"),
        module("p", params=PARAMS),
    )


# Values


@pytest.mark.parametrize(
    "text", ["1", "y", "Y", "t", "T", "on", "On", "oN", "ON", "yes", "true", "1\n", "12", "one"]
)
def test_kstrtobool_takes_these_for_true(text: str) -> None:
    assert kstrtobool(text) is True


@pytest.mark.parametrize(
    "text", ["0", "n", "N", "f", "F", "off", "Off", "oF", "OFF", "no", "false", "0\n", "01"]
)
def test_kstrtobool_takes_these_for_false(text: str) -> None:
    assert kstrtobool(text) is False


@pytest.mark.parametrize("text", ["", "\n", "2", "o", "O\n", "x", " 1", "\n1", "-1", "ja"])
def test_kstrtobool_refuses_the_rest(text: str) -> None:
    with fails(errno.EINVAL):
        kstrtobool(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("42\n", 42),
        ("+42", 42),
        ("-42", -42),
        ("0x2a", 42),
        ("0X2A", 42),
        ("-0x2a", -42),
        ("052", 42),
        ("-052", -42),
        ("00", 0),
        ("2147483647", (1 << 31) - 1),
        ("-2147483648", -(1 << 31)),
    ],
)
def test_kstrtoint_reads_c_notation(text: str, value: int) -> None:
    assert kstrtoint(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "+", "-", "x", "4x", " 4", "4 ", "4\n\n", "0x", "0xg", "08", "1_0", "+-4", "-+4",
        "--4", "0o17", "0b1", "0x0x5", "1.0", "1e3", "٣", "\0", "4\0",
    ],
)  # fmt: skip
def test_kstrtoint_refuses_what_is_no_integer(text: str) -> None:
    with fails(errno.EINVAL):
        kstrtoint(text)


@pytest.mark.parametrize("text", ["2147483648", "-2147483649", "0xffffffff", "9" * 30])
def test_kstrtoint_refuses_what_needs_more_than_32_bits(text: str) -> None:
    with fails(errno.ERANGE):
        kstrtoint(text)


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.sampled_from(("{:d}", "{:+d}", "{:#x}")))
def test_kstrtoint_reads_every_integer(value: int, notation: str) -> None:
    assert kstrtoint(notation.format(value)) == value


@given(st.text(max_size=8))
def test_any_text_is_an_integer_a_boolean_or_an_errno(text: str) -> None:
    assert errno_from(lambda: kstrtoint(text)) in (None, "EINVAL", "ERANGE")
    assert errno_from(lambda: kstrtobool(text)) in (None, "EINVAL")


# Parameters


def test_parameters_have_their_defaults(chain: Fixture) -> None:
    chain.table.modprobe("p")
    assert chain.params("p") == {
        "flag": False,
        "count": 7,
        "text_value": "none",
        "autoprobe": True,
    }


def test_parameters_are_given_as_name_and_value(chain: Fixture) -> None:
    chain.table.modprobe("p", 'flag=1 count=-0x10 text-value="a b" autoprobe=0')
    assert chain.params("p") == {
        "flag": True,
        "count": -16,
        "text_value": "a b",
        "autoprobe": False,
    }


def test_a_boolean_without_a_value_is_true(chain: Fixture) -> None:
    chain.table.modprobe("p", "flag")
    assert chain.params("p")["flag"] is True


def test_a_text_may_hold_more_equal_signs_and_be_empty(chain: Fixture) -> None:
    assert parse_args("a=b=c d= e") == [("a", "b=c"), ("d", ""), ("e", None)]


@pytest.mark.parametrize("args", ["count", "count=", "count=x", "flag=maybe", "text_value"])
def test_a_bad_value_is_refused_and_named_in_the_log(chain: Fixture, args: str) -> None:
    with fails(errno.EINVAL):
        chain.table.modprobe("p", args)
    assert "p" not in chain.table.loaded
    name = args.partition("=")[0]
    assert f"invalid for parameter `{name}'" in chain.log.text()


def test_a_value_out_of_range_is_refused(chain: Fixture) -> None:
    with fails(errno.ERANGE):
        chain.table.modprobe("p", "count=4294967296")


def test_an_open_quote_is_refused(chain: Fixture) -> None:
    with fails(errno.EINVAL):
        chain.table.modprobe("p", 'text_value="open')


def test_an_unknown_parameter_is_ignored_with_a_line_in_the_log(chain: Fixture) -> None:
    chain.table.modprobe("p", "colour=red flag=1")
    assert chain.params("p")["flag"] is True
    assert "p: unknown parameter 'colour' ignored" in chain.log.text()


def test_bad_values_are_found_before_any_dependency_is_loaded(chain: Fixture) -> None:
    with fails(errno.EINVAL):
        chain.table.modprobe("c", "autoprobe=2")
    assert chain.table.loaded == {}


def test_autoprobe_follows_the_default_unless_it_is_given(chain: Fixture) -> None:
    chain.table.autoprobe_default = False
    chain.table.modprobe("a")
    chain.table.modprobe("b", "autoprobe=1")
    assert not chain.table.loaded["a"].autoprobe
    assert chain.table.loaded["b"].autoprobe


@pytest.mark.parametrize(
    ("param", "value", "text"),
    [(PARAMS[0], True, "Y\n"), (PARAMS[0], False, "N\n"), (PARAMS[1], -3, "-3\n"),
     (PARAMS[2], "a b", "a b\n")],
)  # fmt: skip
def test_parameters_read_as_in_sysfs(param: Param, value: ParameterValue, text: str) -> None:
    assert param.show(value) == text


# Loading and unloading


def test_dependencies_are_loaded_first(chain: Fixture) -> None:
    chain.table.modprobe("c")
    assert chain.events == ["init a", "init b", "init c"]
    assert chain.refcnt() == {"a": 1, "b": 1, "c": 0}
    assert [m.holders for m in chain.table.loaded.values()] == [["b"], ["c"], []]


def test_a_loaded_dependency_is_shared(chain: Fixture) -> None:
    chain.table.modprobe("b")
    chain.table.modprobe("d")
    assert chain.events == ["init a", "init b", "init d"]
    assert chain.table.loaded["a"].holders == ["b", "d"]
    assert chain.refcnt()["a"] == 2


def test_loading_twice_does_nothing(chain: Fixture) -> None:
    chain.table.modprobe("p", "count=1")
    chain.table.modprobe("p", "count=2 flag=nonsense")
    assert chain.params("p")["count"] == 1


def test_dashes_and_underscores_are_the_same() -> None:
    both = table(module("pci_stub"))
    both.table.modprobe("pci-stub")
    assert "pci_stub" in both.table.loaded
    both.table.rmmod("pci-stub")
    assert both.table.loaded == {}


@pytest.mark.parametrize("name", ["e", "", "../a", "a b", "\0"])
def test_an_unknown_module_is_not_found(chain: Fixture, name: str) -> None:
    with fails(errno.ENOENT):
        chain.table.modprobe(name)
    with fails(errno.ENOENT):
        chain.table.rmmod(name)


def test_a_module_that_is_not_loaded_cannot_be_removed(chain: Fixture) -> None:
    with fails(errno.ENOENT):
        chain.table.rmmod("a")


def test_a_module_that_another_needs_stays(chain: Fixture) -> None:
    chain.table.modprobe("b")
    with fails(errno.EAGAIN):
        chain.table.rmmod("a")
    assert chain.events == ["init a", "init b"]
    chain.table.rmmod("b")
    chain.table.rmmod("a")
    assert chain.events[2:] == ["exit b", "exit a"]


def test_removing_leaves_the_dependencies_loaded(chain: Fixture) -> None:
    chain.table.modprobe("c")
    chain.table.rmmod("c")
    assert chain.refcnt() == {"a": 1, "b": 0}
    assert chain.table.loaded["b"].holders == []


def test_a_module_in_use_stays(chain: Fixture) -> None:
    chain.table.modprobe("a")
    chain.table.loaded["a"].get()
    with fails(errno.EAGAIN):
        chain.table.rmmod("a")
    chain.table.loaded["a"].put()
    chain.table.rmmod("a")


def test_exit_undoes_the_last_step_first() -> None:
    def steps(kernel: Kernel, loaded: LoadedModule) -> None:
        for step in (1, 2, 3):
            loaded.on_exit(lambda step=step: kernel.events.append(str(step)))  # type: ignore[misc]

    fixture = table(module("m", run=steps))
    fixture.table.modprobe("m")
    fixture.table.rmmod("m")
    assert fixture.events == ["3", "2", "1"]


def test_everything_is_unloaded_at_the_end_dependents_first(chain: Fixture) -> None:
    chain.table.modprobe("c")
    chain.table.modprobe("d")
    chain.table.unload_all()
    assert chain.table.loaded == {}
    ends = [event for event in chain.events if event.startswith("exit")]
    assert ends == ["exit d", "exit c", "exit b", "exit a"]


# An init that fails


def test_a_failing_init_is_undone_and_its_errno_kept() -> None:
    fixture = table(module("m", run=failing))
    with fails(errno.ENODEV):
        fixture.table.modprobe("m")
    assert fixture.events == ["undo 2", "undo 1"]
    assert fixture.table.loaded == {}


def test_a_failing_init_takes_the_dependencies_it_brought_with_it() -> None:
    fixture = table(module("a"), module("b", "a"), module("m", "a", "b", run=failing))
    fixture.table.modprobe("a")
    with fails(errno.ENODEV):
        fixture.table.modprobe("m")
    assert list(fixture.table.loaded) == ["a"]
    assert fixture.refcnt() == {"a": 0}
    assert fixture.table.loaded["a"].holders == []
    assert fixture.events == ["init a", "init b", "undo 2", "undo 1", "exit b"]


def test_a_dependency_that_fails_fails_the_module() -> None:
    fixture = table(module("a"), module("bad", run=failing), module("m", "a", "bad"))
    with fails(errno.ENODEV):
        fixture.table.modprobe("m")
    assert fixture.table.loaded == {}
    assert "init m" not in fixture.events
    assert fixture.events[-1] == "exit a"


def test_a_missing_dependency_is_not_found() -> None:
    fixture = table(module("m", "missing"))
    with fails(errno.ENOENT):
        fixture.table.modprobe("m")
    assert fixture.table.loaded == {}


def test_any_exception_of_an_init_is_undone() -> None:
    def crash(kernel: Kernel, loaded: LoadedModule) -> None:
        loaded.on_exit(lambda: kernel.events.append("undone"))
        raise ZeroDivisionError

    fixture = table(module("a"), module("m", "a", run=crash))
    with pytest.raises(ZeroDivisionError):
        fixture.table.modprobe("m")
    assert fixture.events == ["init a", "undone", "exit a"]
    assert fixture.table.loaded == {}


def test_a_failed_module_can_be_loaded_later() -> None:
    tries: list[int] = []

    def second_time(kernel: Kernel, loaded: LoadedModule) -> None:
        tries.append(1)
        if len(tries) == 1:
            fail(errno.EIO)

    fixture = table(module("m", run=second_time))
    with fails(errno.EIO):
        fixture.table.modprobe("m")
    fixture.table.modprobe("m")
    assert fixture.table.loaded["m"].state == "live"


def test_an_exit_that_raises_still_frees_the_dependencies() -> None:
    def bad_exit(kernel: Kernel, loaded: LoadedModule) -> None:
        loaded.on_exit(lambda: kernel.events.append("first step"))
        loaded.on_exit(lambda: fail(errno.EIO))

    fixture = table(module("a"), module("m", "a", run=bad_exit))
    fixture.table.modprobe("m")
    with fails(errno.EIO):
        fixture.table.rmmod("m")
    assert fixture.refcnt() == {"a": 0}
    assert fixture.events[-1] == "first step"


# What others see


@dataclass
class Observer:
    """Notes what it is told, and refuses the module called *refused*."""

    seen: list[str] = field(default_factory=list)
    refused: str = ""

    def module_coming(self, module: LoadedModule) -> None:
        self.seen.append(f"coming {module.name} {module.state} {module.refcnt}")
        if module.name == self.refused:
            fail(errno.EEXIST)

    def module_gone(self, module: LoadedModule) -> None:
        self.seen.append(f"gone {module.name} {module.state}")


def test_observers_are_told_before_init_and_after_exit(chain: Fixture) -> None:
    observer = Observer()
    chain.table.observers.append(observer)
    chain.table.modprobe("a")
    chain.table.rmmod("a")
    assert observer.seen == ["coming a coming 1", "gone a going"]


def test_an_observer_that_refuses_a_module_stops_it(chain: Fixture) -> None:
    observer = Observer(refused="b")
    chain.table.observers.append(observer)
    with fails(errno.EEXIST):
        chain.table.modprobe("b")
    assert chain.table.loaded == {}
    assert observer.seen == [
        "coming a coming 1",
        "coming b coming 1",
        "gone b going",
        "gone a going",
    ]


def test_the_list_of_modules_reads_as_proc_modules(chain: Fixture) -> None:
    chain.table.modprobe("c")
    chain.table.modprobe("d")
    assert chain.table.proc_modules() == (
        "d 16384 0 - Live 0x0000000000000000\n"
        "c 16384 0 - Live 0x0000000000000000\n"
        "b 16384 1 c, Live 0x0000000000000000\n"
        "a 16384 2 b,d, Live 0x0000000000000000\n"
    )


def test_a_module_is_listed_as_loading_while_it_initializes() -> None:
    lines: list[str] = []
    fixture = table(module("m", run=lambda *_: lines.append(fixture.table.proc_modules())))
    fixture.table.modprobe("m")
    assert lines == ["m 16384 1 - Loading 0x0000000000000000\n"]


def test_modinfo_has_a_line_for_each_module_known(chain: Fixture) -> None:
    autoprobe = "autoprobe:bool:attach this module's drivers to devices without an explicit bind"
    assert chain.table.modinfo().splitlines() == [
        f"a\tTest module a\t\t{autoprobe}",
        f"b\tTest module b\ta\t{autoprobe}",
        f"c\tTest module c\tb\t{autoprobe}",
        f"d\tTest module d\ta\t{autoprobe}",
        "p\tTest module p\t\tflag:bool:a boolean;count:int:an integer;"
        f"text_value:charp:a text;{autoprobe}",
    ]


def test_a_failed_load_takes_indirect_dependencies_along() -> None:
    def fails_to_start(kernel: object, module: LoadedModule) -> None:
        fail(errno.ENODEV)

    def starts(kernel: object, module: LoadedModule) -> None:
        pass

    table: ModuleTable[object] = ModuleTable(
        [
            Module("a", fails_to_start, "", depends=("b",)),
            Module("b", starts, "", depends=("c",)),
            Module("c", starts, ""),
        ],
        Log(),
        None,
    )
    with pytest.raises(OSError, match=r"\S") as caught:
        table.modprobe("a")
    assert caught.value.errno == errno.ENODEV
    assert table.loaded == {}


def test_a_module_that_depends_on_itself_is_eloop() -> None:
    def starts(kernel: object, module: LoadedModule) -> None:
        pass

    table: ModuleTable[object] = ModuleTable(
        [Module("a", starts, "", depends=("b",)), Module("b", starts, "", depends=("a",))],
        Log(),
        None,
    )
    with pytest.raises(OSError, match="depends on itself") as caught:
        table.modprobe("a")
    assert caught.value.errno == errno.ELOOP
    assert table.loaded == {}
