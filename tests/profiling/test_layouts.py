"""Where images are reordered: what ONNX Runtime makes of the same networks is the reference."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path

import pytest

from compress.graph.operators import Operator
from compress.profiling import designs, layouts
from compress.profiling.drawing import Drawing, Drawn
from compress.profiling.fusion import groups
from compress.types import FLOAT32, Precision


def conv(name: str, reads: str, inner: int, outer: int, side: int = 8, group: int = 1, kernel: int = 3) -> Operator:
    weights = inner // group * outer * kernel**2
    return Operator(
        name, name, "conv2d", weights * side**2, weights, weights, (reads,), outer * side**2, inner, outer, group
    )


def found(*operators: Operator, block: int = 16, floats: bool = True) -> dict[str, list[int]]:
    inputs = {"x": 16 * 64}
    return layouts.reorderings(groups(operators, inputs), inputs, lambda _: floats, block)


def test_between_blocks_and_the_usual_order_stands_a_reordering() -> None:
    whole = [conv("a", "x", 16, 32), conv("b", "a", 32, 16), conv("c", "b", 16, 16)]
    assert found(*whole) == {"a": [16 * 64], "c": [16 * 64]}, "where the network begins and where it ends"
    assert found(*whole, floats=False) == {}

    few = [conv("a", "x", 3, 16), conv("b", "a", 16, 12), conv("c", "b", 12, 12)]
    assert found(*few) == {"c": [12 * 64, 12 * 64]}, (
        "fewer input channels than a block has: they come in the usual order"
    )
    assert found(*few, block=8) == {"c": [12 * 64]}

    odd = [conv("a", "x", 3, 18), conv("b", "a", 18, 16), conv("c", "b", 16, 16)]
    assert found(*odd) == {"b": [18 * 64], "c": [16 * 64, 16 * 64]}, "18 channels fill no whole steps of 4"


def test_a_tensor_is_reordered_once_for_all_that_read_it() -> None:
    one = conv("a", "x", 16, 16)
    assert found(one, conv("b", "a", 16, 16), conv("c", "a", 16, 16))["a"] == [16 * 64]
    two = found(conv("a", "x", 3, 18), conv("b", "a", 18, 18), conv("c", "a", 18, 18))
    assert two == {"b": [18 * 64]}


def test_depthwise_and_grouped_convolutions() -> None:
    assert found(conv("a", "x", 16, 16, group=16)) == {"a": [16 * 64, 16 * 64]}
    assert found(conv("a", "x", 18, 18, group=18)) == {}
    assert found(conv("a", "x", 64, 64, group=4)) == {"a": [16 * 64, 64 * 64]}
    assert found(conv("a", "x", 64, 64, group=8)) == {}
    assert found(conv("a", "x", 64, 64, group=8), block=8) == {"a": [16 * 64, 64 * 64]}


def test_additions_pools_and_views_pass_blocks_on() -> None:
    add = Operator("add", "", "add", 0, 0, 0, ("a", "b"), 16 * 64)
    pool = Operator("pool", "", "adaptive_avg_pool2d", 0, 0, 0, ("add",), 16)
    flat = Operator("flat", "", "flatten", 0, 0, 0, ("pool",), 16)
    linear = Operator("linear", "linear", "linear", 160, 160, 170, ("flat",), 10, 16, 10)
    both = [conv("a", "x", 16, 16), conv("b", "a", 16, 16)]
    assert found(*both, add, pool, flat, linear) == {"a": [16 * 64], "linear": [16]}
    pad = Operator("pad", "", "pad", 0, 0, 0, ("a",), 16 * 100)
    assert found(conv("a", "x", 16, 16), pad, conv("b", "pad", 16, 3)) == {"a": [16 * 64], "b": [3 * 64]}
    plain = Operator("plain", "", "softmax", 0, 0, 0, ("a",), 16 * 64)
    mixed = Operator("add", "", "add", 0, 0, 0, ("a", "plain"), 16 * 64)
    assert found(conv("a", "x", 16, 16), plain, mixed) == {"a": [16 * 64], "plain": [16 * 64]}


def block_of_this_machine() -> int | None:
    """As :mod:`onnxruntime` chooses it."""
    flags = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not flags.exists():
        return None
    words = set(flags.read_text().split())
    return 16 if "avx512f" in words else 8 if "avx2" in words else None


def reordered_by_onnxruntime(drawn: Drawn, tmp_path: Path) -> int:
    """The reorderings in the graph that ONNX Runtime runs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(drawn.file, options, providers=["CPUExecutionProvider"])
    kinds = Counter(
        node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    )
    return kinds["ReorderInput"] + kinds["ReorderOutput"]


def network(*channels: int) -> Drawn:
    """A residual network with these channels: of its first layer, within its block, of the next stage and its block."""
    stem, inner, wide, deep = channels
    d = Drawing("network", 3, 16, FLOAT32)
    x = d.conv(d.input, stem)
    x = d.add(d.conv(d.conv(x, inner), stem, activation=None), x)
    y = d.conv(d.conv(x, deep, 3, 2), wide, activation=None)
    x = d.add(y, d.conv(x, wide, 1, 2, activation=None))
    return d.done(d.linear(d.global_pool(d.conv(x, wide, 3, groups=wide)), 10))


NETWORKS = {
    "whole": network(16, 16, 32, 32),
    "of 8": network(8, 8, 24, 24),
    "of 4": network(20, 20, 36, 36),
    "any": network(17, 13, 35, 22),
    "odd inside": network(16, 18, 32, 34),
    "odd outside": network(18, 16, 34, 32),
    "narrow inside": network(16, 12, 32, 12),
    "narrow": network(12, 12, 12, 12),
    **{each.name: each for each in designs.networks(FLOAT32, 9, 1) + designs.chains(FLOAT32)},
}


@pytest.mark.skipif(block_of_this_machine() is None, reason="ONNX Runtime's blocks are known on x86 with AVX2 alone")
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_reorders_as_often(name, tmp_path) -> None:
    drawn, block = NETWORKS[name], block_of_this_machine()
    assert block is not None
    mine = layouts.reorderings(groups(drawn.operators, drawn.inputs), drawn.inputs, lambda _: True, block)
    assert sum(len(each) for each in mine.values()) == reordered_by_onnxruntime(drawn, tmp_path)


def test_integers_are_not_reordered() -> None:
    from compress.profiling.calibrating import terms_of

    for each in designs.networks(Precision(8, 8, "integer"), 3, 1):
        assert not [name for name in terms_of(each) if name.startswith("reorder")]
