# SPDX-License-Identifier: MIT
"""In every state that writes can bring a machine into, it shows what the model of the ABI says."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from tests.model.rules import CrowdedStates, DevsecStates, ServerStates

# Together more than 2,000 steps; tests/soak.py takes as many as wanted.
_SETTINGS = settings(
    max_examples=25,
    stateful_step_count=50,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)

TestDevsecStates = DevsecStates.TestCase
TestDevsecStates.settings = _SETTINGS

TestServerStates = ServerStates.TestCase
TestServerStates.settings = _SETTINGS

TestCrowdedStates = CrowdedStates.TestCase
TestCrowdedStates.settings = _SETTINGS
