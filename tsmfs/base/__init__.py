# SPDX-License-Identifier: MIT
"""The driver core: kobjects, devices, buses, drivers, classes, uevents (drivers/base)."""
