# SPDX-License-Identifier: MIT
"""Kernel services that know nothing of devices: locks, log, faults, resources, modules."""
