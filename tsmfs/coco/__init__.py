# SPDX-License-Identifier: MIT
"""Confidential computing on the virtualization side (drivers/virt/coco)."""
