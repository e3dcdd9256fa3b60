# SPDX-License-Identifier: MIT
"""Modules that can be loaded: one file each; only here is a vendor named."""
