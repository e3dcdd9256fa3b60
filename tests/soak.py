# SPDX-License-Identifier: MIT
"""The rules of the state machine tests for as many steps as wanted: ``python tests/soak.py``.

All property tests take fresh examples by ``python -m pytest --hypothesis-profile=fresh``.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.rules import MACHINES, STATISTICS

STEPS_PER_MACHINE = 100
MACHINES_PER_BATCH = 25


def run(steps: int, first_seed: int) -> None:
    """Take at least *steps* steps, in batches with their own seeds, on each machine in turn.

    Raises what the first step does that goes wrong, with the shortest way there.
    """
    batches = zip(itertools.count(first_seed), itertools.cycle(MACHINES), strict=False)
    for number, states in batches:
        left = steps - STATISTICS.steps
        if left <= 0:
            return
        batch = settings(
            max_examples=min(MACHINES_PER_BATCH, -(-left // STEPS_PER_MACHINE)),
            stateful_step_count=STEPS_PER_MACHINE,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        print(f"{states.__name__} --seed {number}", file=sys.stderr)
        run_state_machine_as_test(seed(number)(states), settings=batch)


def report(seconds: float) -> None:
    """Print what was done."""
    steps = STATISTICS.steps
    print(f"{steps} steps on {STATISTICS.machines} machines")
    print(f"{seconds:.0f} s, {steps / seconds:.0f} steps/s")
    print("\nrule")
    for name, count in STATISTICS.rules.most_common():
        print(f"{name:24}{count:8}")
    print("\nfile written, with what came of it")
    outcomes: dict[str, Counter[str]] = {}
    for (name, outcome), count in STATISTICS.outcomes.items():
        outcomes.setdefault(name, Counter())[outcome] += count
    for name, counts in sorted(outcomes.items()):
        print(_line(name, counts))
    print(_line("all", sum(outcomes.values(), Counter())))


def _line(name: str, counts: Counter[str]) -> str:
    rest = ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common())
    return f"{name:24}{counts.total():8}  {rest}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, help="repeat a run; the first batch has this seed")
    arguments = parser.parse_args()
    first_seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    start = time.monotonic()
    try:
        run(arguments.steps, first_seed)
    finally:
        report(time.monotonic() - start)


if __name__ == "__main__":
    main()
