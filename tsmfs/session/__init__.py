# SPDX-License-Identifier: MIT
"""A session: unmodified programs inside an emulated machine, in namespaces of their own."""


class SessionError(Exception):
    """A session cannot be started or entered; the text is one line that says why."""
