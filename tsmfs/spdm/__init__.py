# SPDX-License-Identifier: MIT
"""SPDM (DMTF DSP0274) and what travels in it, as state machines on bytes; knows nothing of PCI."""
