"""Windows of convolutions and pools: ONNX's attributes as strides, paddings and dilations over (rows, columns)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.export.lowering.graph import Node


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window; one spatial axis counts as one row."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilations: tuple[int, int]

    def output(self, size: tuple[int, int], *, ceil: bool = False) -> tuple[int, int]:
        """(rows, columns) of the result for an image of ``size``."""
        found = []
        for axis in (0, 1):
            span = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            room = size[axis] + self.padding[axis] + self.padding[axis + 2] - span
            count = (-(-room // self.strides[axis]) if ceil else room // self.strides[axis]) + 1
            if ceil and (count - 1) * self.strides[axis] >= size[axis] + self.padding[axis]:
                count -= 1  # a window must begin inside the image or its left padding
            if count < 1:
                raise ValueError(f"the window of {span} doesn't fit into {size[axis]} pixels")
            found.append(count)
        return found[0], found[1]


def window(node: Node, kernel: tuple[int, ...], size: tuple[int, int]) -> Window:
    """The window of a node over an image of ``size`` (rows, columns).

    Args:
        node: a convolution or pool.
        kernel: its spatial sizes, one or two.
        size: of the image.

    Raises:
        ValueError: it has more than two spatial axes, or pads below 0.
    """
    rank = len(kernel)
    if rank not in (1, 2):
        raise ValueError(f"{rank} spatial axes; one and two are supported")

    def pair(values: Any, default: int) -> tuple[int, int]:
        each = [int(v) for v in values] if values is not None else [default] * rank
        return (each[0], each[1]) if rank == 2 else (default, each[0])

    strides = pair(node.attributes.get("strides"), 1)
    dilations = pair(node.attributes.get("dilations"), 1)
    both = pair(kernel, 1)
    auto = node.attributes.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for axis in (0, 1):
            span = (both[axis] - 1) * dilations[axis] + 1
            total = max(0, (-(-size[axis] // strides[axis]) - 1) * strides[axis] + span - size[axis])
            less, more = total // 2, total - total // 2
            before.append(less if auto == "SAME_UPPER" else more)
            after.append(more if auto == "SAME_UPPER" else less)
        padding = (before[0], before[1], after[0], after[1])
    else:
        pads = [int(v) for v in node.attributes.get("pads", [0] * (2 * rank))]
        padding = (pads[0], pads[1], pads[2], pads[3]) if rank == 2 else (0, pads[0], 0, pads[1])
    if min(padding) < 0:
        raise ValueError("padding below 0")
    return Window(both, strides, padding, dilations)
