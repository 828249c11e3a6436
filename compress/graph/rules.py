"""The table that joins operators to the functions that say what they tie.

A rule gets the walk and a node, and returns the layout of the node's tensor (or a list, of several). An
operator that isn't in the table, and isn't marked by torch as acting on each element, fixes all that comes
in: a network with unknown operators is pruned around them.
"""

from __future__ import annotations

import torch
from torch import fx

from compress.graph import rules_attention as attention
from compress.graph import rules_layers as layers
from compress.graph import rules_shape as shapes
from compress.graph.layout import Layout
from compress.graph.trace import kind, shape
from compress.graph.walk import Rule, Walk, fixed

RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), layers.convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), layers.transposed_convolution),
    "linear": layers.linear,
    "embedding": layers.embedding,
    **dict.fromkeys(("batch_norm", "instance_norm"), layers.batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layers.layer_norm),
    "group_norm": layers.group_norm,
    "prelu": layers.prelu,
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), layers.weight_norm),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), layers.recurrent),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum", "rsub", "pow"), layers.elementwise),
    **dict.fromkeys(
        [
            *("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "to"),
            *("_to_copy", "type_as", "identity", "relu6", "hardswish", "hardsigmoid", "selu", "celu"),
            *("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like"),
        ],
        layers.same,
    ),
    **dict.fromkeys(
        [
            *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool2d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
            *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "grid_sampler"),
        ],
        layers.pool,
    ),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), lambda walk, node: [layers.pool(walk, node)] * 2),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "var", "std", "var_mean", "linalg_vector_norm", "norm", "max", "min"),
        layers.reduce,
    ),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        shapes.reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "mT", "adjoint", "movedim", "moveaxis"), shapes.permute),
    **dict.fromkeys(("cat", "concat", "concatenate"), shapes.concatenate),
    "stack": shapes.stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), shapes.pad),
    "slice": shapes.narrow,
    "select": shapes.select,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), shapes.chunk),
    "unbind": shapes.unbind,
    "getitem": shapes.getitem,
    "glu": shapes.glu,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), shapes.expand),
    **dict.fromkeys(("repeat", "tile"), shapes.repeat),
    "repeat_interleave": shapes.repeat_interleave,
    **dict.fromkeys(("roll", "flip"), shapes.roll),
    "index": shapes.index,
    "index_select": shapes.index_select,
    "pixel_shuffle": shapes.pixel_shuffle,
    "pixel_unshuffle": shapes.pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), shapes.channel_shuffle),
    **dict.fromkeys(("matmul", "bmm", "mm", "mv"), attention.matmul),
    **dict.fromkeys(("addmm", "baddbmm"), attention.added_product),
    "einsum": attention.einsum,
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), attention.softmax),
    "scaled_dot_product_attention": attention.attention,
}
"""Operator's plain name -> its rule."""

_SIZES_ONLY = frozenset(["sym_size", "new_zeros", "new_ones", "new_full", "new_empty", "_assert_tensor_metadata"])
"""Operators that read no values."""


def apply(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """What a node ties, and the layout of what it makes."""
    value = node.meta.get("val")
    if kind(node) in _SIZES_ONLY or not isinstance(value, (torch.Tensor, tuple, list)):
        return ()
    tags = getattr(node.target, "tags", ())
    rule = RULES.get(kind(node)) or (layers.elementwise if torch.Tag.pointwise in tags else _unknown)
    try:
        layout = rule(walk, node)
    except (IndexError, KeyError, TypeError, ValueError, AssertionError):
        # Leave alone what it touches rather than guess.
        return fixed(walk, node, f"an unusual form of {kind(node)}")
    if isinstance(value, torch.Tensor) and not _fits(layout, shape(node)):
        return fixed(walk, node, f"an unusual form of {kind(node)}")
    return layout


def _unknown(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    return fixed(walk, node, "this operator has no pruning rule")


def _fits(layout: Layout | list[Layout], sizes: tuple[int, ...]) -> bool:
    return isinstance(layout, tuple) and all(
        factor.axes[0] >= 0
        and factor.axes[-1] < len(sizes)
        and factor.labels.shape == tuple(sizes[axis] for axis in factor.axes)
        for factor in layout
    )


__all__ = ["RULES", "apply"]
