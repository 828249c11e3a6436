"""How kernels become code: views, copies at the ends, halos, shared kernels and constants, memory in place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from compress.errors import BadInput
from compress.export.kernels import portable
from compress.export.kernels.code import Constant, Layout
from compress.export.kernels.emit import assemble
from compress.export.kernels.halos import halos
from compress.export.kernels.isa import RV32_BARE, X86_AVX2
from compress.integer import program as p
from compress.integer import reference
from tests.export.kernels import hosted, roster


def test_views_cost_nothing_and_like_kernels_are_one():
    program, _ = roster.case("chain")
    code = assemble(program, X86_AVX2)
    assert [call.op for call in code.calls] == ["first", "second", "join", "pool", "last"]
    assert code.calls[0].kernel is code.calls[1].kernel
    assert dict(code.aliases) == {"e": ("d", 0), "f": ("d", 0)}
    assert len(code.constants) == len({c.tobytes() + c.dtype.str.encode() for c in code.constants})


def test_an_operator_in_place_gives_the_same():
    program, inputs = roster.case("chain", False)
    code = assemble(program, X86_AVX2)
    (join,) = [call for call in code.calls if call.op == "join"]
    assert join.in_place == (("c", "b"),)  # the other operand is the caller's own memory
    shared = replace(code, aliases={**code.aliases, "c": ("b", 0)})
    want = reference.run(program, inputs)["y"]
    np.testing.assert_array_equal(hosted.in_process(shared, X86_AVX2, inputs)["y"], want)


ELEMENTWISE = [n for n in roster.CASES if n.startswith(("add_", "multiply_", "lookup")) and n != "lookup_floats"]


@pytest.mark.parametrize("name", [*ELEMENTWISE, "float_tanh", "float_add", "float_pow_constant"])
def test_what_may_run_in_place_does(name):
    program, inputs = roster.case(name, False)
    op = program.ops[0]
    for name_ in op.inputs:
        if program.tensors[name_].shape != program.tensors[op.output].shape or op.inputs.count(name_) > 1:
            continue
        # The operand goes through a copy first, so that it lies in memory of ours.
        source = program.tensors[name_]
        inner, result = replace(source, name="inner"), replace(program.tensors[op.output], name="result")
        flat = ((source.elements,), (1,), (1,))
        size = ((result.elements,), (1,), (1,))
        again = replace(
            program,
            tensors={**program.tensors, "inner": inner, "result": result},
            ops=(
                p.Copy("in", (name_,), "inner", *flat),
                replace(op, inputs=tuple("inner" if n == name_ else n for n in op.inputs)),
                p.Copy("out", (op.output,), "result", *size),
            ),
            outputs=("result",),
        )
        code = assemble(again, X86_AVX2)
        assert (op.output, "inner") in code.calls[1].in_place
        shared = replace(code, aliases={op.output: ("inner", 0)})
        want = reference.run(again, inputs)["result"]
        got = hosted.in_process(shared, X86_AVX2, inputs)["result"]
        np.testing.assert_allclose(got, want, rtol=2e-6 if want.dtype == np.float32 else 0)


def test_ends_are_copied_where_kernels_want_them_otherwise():
    program, _ = roster.case("conv_plain_w8")
    code = assemble(program, X86_AVX2, (), halos)
    assert [call.op for call in code.calls] == ["", "", "node"]
    assert code.calls[0].arguments == ("x", "x.inside")
    assert code.calls[2].arguments[:2] == ("x.inside", "y")
    assert code.buffers["x"].bytes == 8 * 8 * 16
    assert code.buffers["x.inside"].bytes == 10 * 10 * 16


def test_bare_metal_has_no_halos():
    program, _ = roster.case("conv_plain_w8")
    assert halos(program, RV32_BARE) == {}


def test_halos_are_as_wide_as_the_widest_window():
    program, _ = roster.case("conv_stride_2_even_w8")
    assert halos(program, X86_AVX2) == {"x": Layout(16, (0, 0, 1, 1))}


def test_kernels_that_read_behind_an_input_get_a_copy():
    program, _ = roster.case("conv_depthwise_odd_w8")
    code = assemble(program, X86_AVX2)
    assert code.calls[0].arguments == ("x", "x.inside")
    assert code.buffers["x.inside"].bytes > program.tensors["x"].bytes


def test_every_argument_is_a_buffer_or_a_constant():
    for name in ("chain", "softmax", "float_matmul", "average_pool_each"):
        code = assemble(roster.case(name)[0], X86_AVX2)
        for call in code.calls:
            for argument in call.arguments:
                known = argument.index < len(code.constants) if isinstance(argument, Constant) else None
                assert known if known is not None else argument in code.buffers
            assert set(call.reads) | set(call.writes) == {a for a in call.arguments if isinstance(a, str)}


@dataclass(frozen=True, eq=False, slots=True)
class Invented(p.Op):
    """An operator that no emitter knows."""


def test_an_operator_without_a_kernel_is_named():
    tensors = {n: p.Tensor(n, (4,), "uint8") for n in "xy"}
    program = p.Program(tensors, (Invented("strange", ("x",), "y"),), ("x",), ("y",))
    with pytest.raises(BadInput, match=r"Invented.*'strange'"):
        assemble(program, X86_AVX2)


def test_overrides_come_first():
    program, inputs = roster.case("chain", False)
    seen = []

    def override(op, placed, isa, symbol):
        seen.append(type(op).__name__)
        return portable.emit(op, placed, isa, symbol) if isinstance(op, p.Add) else None

    code = assemble(program, X86_AVX2, (override,))
    assert seen == ["Convolution", "Convolution", "Add", "Pool", "Convolution"]
    want = reference.run(program, inputs)["y"]
    np.testing.assert_array_equal(hosted.in_process(code, X86_AVX2, inputs)["y"], want)
