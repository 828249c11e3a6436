"""Why a file can't be compiled."""

from __future__ import annotations

from compress.errors import BadInput


class CannotLower(BadInput):
    """A file that can't become an integer program.

    Args:
        reason: what is wrong and what to do about it, one line.
        node: name of the node in the file, "" where it is the file as a whole.
        operator: its operator.
    """

    def __init__(self, reason: str, node: str = "", operator: str = "") -> None:
        self.node, self.operator, self.reason = node, operator, reason
        where = f"node {node!r} ({operator}): " if node or operator else ""
        super().__init__(f"{where}{reason}")
