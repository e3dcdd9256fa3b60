# SPDX-License-Identifier: MIT
"""Valid machines of every kind, for property-based tests."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tsmfs.description import (
    LINK_WIDTHS,
    Bar,
    BarKind,
    Cma,
    CmaFiles,
    CmaHash,
    CmaKey,
    CmaVersion,
    Doe,
    Function,
    HostBridge,
    Ide,
    Kind,
    Link,
    LinkSpeed,
    Machine,
    Measurement,
    MeasurementKind,
    ModuleLoad,
    Msix,
    Sriov,
    Tamper,
    assign_buses,
)

IDS = st.integers(0, 0xFFFF)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@st.composite
def bar_sets(draw: st.DrawFn, registers: int, least: int) -> tuple[Bar, ...]:
    """Memory BARs that fit in `registers` registers, of `least` bytes or more."""
    bars: list[Bar] = []
    index = draw(st.integers(0, registers))
    while index < registers:
        wide = index + 1 < registers and draw(st.booleans())
        kind = BarKind.MEM64 if wide else BarKind.MEM32
        size = 1 << draw(st.integers(least.bit_length() - 1, 40 if wide else 31))
        bars.append(Bar(index, size, kind, draw(st.booleans())))
        index += (2 if wide else 1) + draw(st.integers(0, 2))
    return tuple(bars)


@st.composite
def msix_in(draw: st.DrawFn, bars: tuple[Bar, ...]) -> Msix | None:
    """MSI-X in one of `bars` that has the room."""
    fitting = [bar for bar in bars if bar.size >= 4096]
    if not fitting or draw(st.booleans()):
        return None
    vectors = draw(st.integers(1, 120))
    return Msix(vectors, draw(st.sampled_from(fitting)).index, 8, 2048)


MEASURED = st.dictionaries(st.integers(1, 0xEF), TEXT.filter(bool), max_size=3).map(
    lambda found: tuple(
        Measurement(index, MeasurementKind.HARDWARE_CONFIG, value) for index, value in found.items()
    )
)
CMAS = st.builds(
    Cma,
    st.sampled_from(CmaKey),
    st.sampled_from(CmaHash),
    st.sampled_from([tuple(CmaVersion), (CmaVersion.V1_2,), (CmaVersion.V1_3,)]),
    st.lists(st.integers(0, 7), min_size=1, unique=True).map(tuple),
    st.none() | st.integers(0, 2**63 - 1),
    st.just(()),
    MEASURED,
    st.sampled_from([(), (Tamper.WRONG_RANGE,)]),
) | st.builds(
    Cma,
    hash=st.sampled_from(CmaHash),
    files=st.sampled_from(
        [(CmaFiles(0, "/a", "/b"),), (CmaFiles(1, "/a", "/k"), CmaFiles(7, "/c", "/k"))]
    ),
    measurements=MEASURED,
)


@st.composite
def function_of(draw: st.DrawFn, kind: Kind, slot: int, number: int, plugged: bool) -> Function:
    """A function of `kind` with no children."""
    flags = st.booleans()
    device = kind in (Kind.ENDPOINT, Kind.RC_ENDPOINT)
    bars = draw(bar_sets(2 if kind.is_port else 6, 128 if kind.is_pcie else 16))
    ides = st.builds(
        Ide,
        st.integers(0, 0 if kind is Kind.RC_ENDPOINT else 8),
        st.integers(1, 8),
        st.integers(0, 15),
        *[flags] * 7,
    )
    protocols = st.tuples(st.integers(2, 0xFFFF), st.integers(0, 0xFF))
    doe = st.lists(protocols, max_size=3, unique=True).map(lambda pairs: Doe(tuple(pairs)))
    cma = None
    if (device or kind is Kind.UPSTREAM_PORT) and number == 0 and draw(flags):
        cma = draw(CMAS)
        doe = st.just(Doe())
    sriov = None
    if device and number == 0 and draw(flags):
        vf_bars = draw(bar_sets(6, 4096))
        # Past every function of the device, and each VF at a number of its own.
        sriov = Sriov(
            draw(st.integers(1, 40)),
            draw(IDS),
            draw(flags),
            draw(st.integers(8 if kind is Kind.ENDPOINT else 256, 600)),
            draw(st.integers(1, 3)),
            vf_bars,
            draw(msix_in(vf_bars)),
        )
    pcie = kind.is_pcie
    linked = pcie and kind is not Kind.RC_ENDPOINT
    return Function(
        kind=kind,
        slot=slot,
        function=number,
        name=draw(TEXT),
        vendor=draw(st.integers(1, 0xFFFE)),
        device=draw(IDS),
        subsystem_vendor=draw(IDS),
        subsystem_device=draw(IDS),
        class_code=0x060400 if kind.is_port else draw(st.integers(0x070000, 0xFFFFFF)),
        revision=draw(st.integers(0, 255)),
        plugged=plugged,
        link=Link(draw(st.sampled_from(LinkSpeed)), draw(st.sampled_from(LINK_WIDTHS)))
        if linked
        else None,
        pm=draw(flags),
        msi=draw(st.sampled_from([0, 1, 2, 4, 8, 16, 32])),
        flr=device and draw(flags),
        tee_io=(device or kind is Kind.UPSTREAM_PORT) and draw(flags),
        aer=pcie and draw(flags),
        ari=linked and kind is not Kind.UPSTREAM_PORT,
        acs=pcie and draw(flags),
        serial=draw(st.none() | st.integers(0, 2**64 - 1)) if pcie else None,
        bars=bars,
        msix=draw(msix_in(bars)),
        doe=draw(doe if cma is not None else st.none() | doe) if pcie else None,
        cma=cma,
        ide=draw(st.none() | ides) if pcie else None,
        sriov=sriov,
    )


@st.composite
def below_link(draw: st.DrawFn, depth: int) -> tuple[Function, ...]:
    """What is at the end of a link: nothing, an endpoint's functions or a switch."""
    plugged = draw(st.booleans())
    if depth and draw(st.integers(0, 3)) == 0:
        upstream = draw(function_of(Kind.UPSTREAM_PORT, 0, 0, plugged))
        slots = draw(st.lists(st.integers(0, 31), min_size=1, max_size=2, unique=True))
        ports = tuple(
            replace(
                draw(function_of(Kind.DOWNSTREAM_PORT, slot, 0, True)),
                children=draw(below_link(depth - 1)),
            )
            for slot in sorted(slots)
        )
        return (replace(upstream, children=ports),)
    return tuple(
        draw(function_of(Kind.ENDPOINT, 0, number, plugged))
        for number in range(draw(st.integers(0, 2)))
    )


@st.composite
def host_bridges(draw: st.DrawFn, domain: int) -> HostBridge:
    """A host bridge in a domain of its own."""
    slots = draw(st.lists(st.integers(0, 31), max_size=2, unique=True))
    functions: list[Function] = []
    for slot in sorted(slots):
        kind = draw(st.sampled_from([Kind.ROOT_PORT, Kind.RC_ENDPOINT, Kind.CONVENTIONAL]))
        plugged = kind is not Kind.CONVENTIONAL or draw(st.booleans())
        function = draw(function_of(kind, slot, 0, plugged))
        # VFs on one root bus must differ: the first device alone has some.
        function = replace(function, sriov=None if functions else function.sriov)
        if kind is Kind.ROOT_PORT:
            function = replace(function, children=draw(below_link(2)))
        functions.append(function)
    bridge = HostBridge(
        domain,
        draw(st.integers(0, 3)),
        draw(TEXT),
        draw(st.integers(0, 255)),
        draw(st.none() | st.integers(1, 2048).map(lambda count: count << 20)),
        draw(st.none() | st.integers(1, 1 << 20).map(lambda count: count << 20)),
        draw(st.none() | st.integers(1, 16).map(lambda count: count << 12)),
        tuple(functions),
    )
    return with_explicit_buses(bridge) if draw(st.booleans()) else bridge


def with_explicit_buses(bridge: HostBridge) -> HostBridge:
    """`bridge` with the number that each port gets anyway written down."""
    ranges = assign_buses(bridge)

    def explicit(functions: tuple[Function, ...], path: tuple[int, ...]) -> tuple[Function, ...]:
        return tuple(
            replace(
                function,
                secondary_bus=ranges[(*path, function.devfn)].secondary,
                children=explicit(function.children, (*path, function.devfn)),
            )
            if function.kind.is_port
            else function
            for function in functions
        )

    return replace(bridge, functions=explicit(bridge.functions, ()))


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """A valid machine."""
    parameters = st.tuples(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.from_regex(r"[!-~]{0,8}", fullmatch=True)
    )
    names = draw(
        st.lists(st.from_regex(r"[a-z0-9_]{1,10}", fullmatch=True), max_size=3, unique=True)
    )
    return Machine(
        draw(NAMES),
        draw(TEXT),
        draw(st.integers(0, 2**63 - 1)),
        tuple(ModuleLoad(name, tuple(draw(st.lists(parameters, max_size=2)))) for name in names),
        tuple(draw(host_bridges(domain)) for domain in range(draw(st.integers(0, 2)))),
    )
