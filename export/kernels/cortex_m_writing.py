"""Writes the kernel of Cortex-M's convolutions as TensorIR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.export.kernels import cortex_m_dot, cortex_m_tiles
from compress.export.kernels.code import Kernel
from compress.export.kernels.cortex_m_assembly import imported
from compress.export.kernels.cortex_m_tables import ADDITION, ENTRY, GEOMETRY, Kind
from compress.export.kernels.cortex_m_weights import (
    FILL,
    LINE_ZEROS,
    OFFSET,
    OFFSET_PIXELS,
    SIGNS,
    WIDEN_PIXELS,
    in_registers,
    unpacked,
    widen,
)
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import Expr, cast, clamp, intrinsic, let, view

HUGE = 1 << 28
"""Elements of buffers whose size the kernel reads from its table."""


def kernel(kind: Kind, isa: Isa, symbol: str) -> Kernel:
    """``void symbol(x, [other,] y, weights, table, scratch)``."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_name(symbol)
            # The addition's other operand may lie where the output does.
            T.func_attr({"global_symbol": symbol, "tirx.noalias": not kind.add})
            names = [("x", "int8"), *([("other", "int8")] if kind.add else [])]
            names += [
                ("y", "float32" if kind.floats else "int8"),
                ("w", "int32"),
                ("table", "int32"),
                ("scratch", "int32"),
            ]
            data = {name: T.arg(name, T.ptr(dtype)) for name, dtype in names}
            buffers = {name: T.decl_buffer((HUGE,), dtype, data=data[name]) for name, dtype in names}
            functions = [FILL, WIDEN_PIXELS, *(widen(bits) for bits in sorted({8} if kind.line else {8, kind.bits}))]
            if kind.differences:
                functions = [FILL, OFFSET, OFFSET_PIXELS, SIGNS]
            if kind.tiles is not None:
                functions.append(cortex_m_tiles.function(kind.tiles))
            # The same memory as numbers of fewer bits; nothing writes it.
            for name, dtype in (("halves", "int16"), ("shifts", "int8")):
                buffers[name] = T.decl_buffer((HUGE,), dtype, data=data["table"])
            with imported(isa.triple, functions), cortex_m_dot.imported(isa.triple, kind.unroll):
                _Writer(kind, buffers).write()
        return Kernel(symbol, ib.get())


class _Writer:
    """Writes the statements of a kernel."""

    def __init__(self, kind: Kind, buffers: Mapping[str, Any]) -> None:
        self.kind, self.buffers = kind, buffers
        self.scratch, self.table = buffers["scratch"], buffers["table"]
        self.halves, self.shifts = buffers["halves"], buffers["shifts"]

    def geometry(self, name: str) -> Expr:
        """A number of the table."""
        if name in ADDITION:
            return self.table[self.kind.head + ADDITION.index(name)]
        index = GEOMETRY.index(name)
        return self.table[index] if self.kind.wide else cast(self.halves[index], "int32")

    def write(self) -> None:
        """All of the kernel."""
        from tvm import tirx
        from tvm.tirx.script import builder as T

        g = self.geometry
        if self.kind.line:
            self._widen_rows(tirx.const(0, "int32"), tirx.const(1, "int32"))
            FILL(T.address_of(self.scratch[g("row")]), tirx.const(0, "int32"), tirx.const(LINE_ZEROS, "int32"))
            with T.serial(g("pairs")) as pair:
                self._line(pair)
            return
        with T.serial(g("blocks")) as block:
            first = let(block * g("block"))
            rows = let(T.min(g("block"), g("out_rows") - first))
            self._widen_rows(first, rows)
            with T.serial(g("pairs")) as pair:
                self._unpack(pair)
                if self.kind.tiles is None:
                    self._pixels(first, rows, pair)
                else:
                    self._tiles(first, rows, pair)

    def _fill(self, at: Expr, count: Expr) -> None:
        from tvm.tirx.script import builder as T

        zero = self.geometry("zero")
        FILL(T.address_of(self.scratch[at]), (zero & 0xFFFF) | (zero << 16), count)

    def _widen_rows(self, first: Expr, rows: Expr) -> None:
        from tvm.tirx.script import builder as T

        g = self.geometry
        with T.serial((rows - 1) * g("stride") + g("span")) as r:
            y = let(first * g("stride") - g("top") + r)
            at = let(g("images") + r * g("row"))
            with T.If(T.And(y >= 0, y < g("in_rows"))):
                with T.Then():
                    write = self._offset_row if self.kind.differences else self._widen_row
                    write(at, y)
                with T.Else():
                    self._fill(at, g("row"))

    def _widen_row(self, at: Expr, y: Expr) -> None:
        from tvm.tirx.script import builder as T

        g, x = self.geometry, self.buffers["x"]
        self._fill(at, g("left"))
        start, source = let(at + g("left")), let(y * g("groups"))
        target = T.address_of(self.scratch[start])
        with T.If(g("channels") % 4 == 0):
            with T.Then():
                # Fours of channels, the inner two exchanged, as unpacked weights are.
                widen(8)(target, T.address_of(x[source * 4]), g("groups"))
            with T.Else():
                WIDEN_PIXELS(target, T.address_of(x[source * g("channels")]), g("groups"), g("channels"))
        self._fill(at + g("row") - g("right"), g("right"))

    def _offset_row(self, at: Expr, y: Expr) -> None:
        from tvm.tirx.script import builder as T

        g, x = self.geometry, self.buffers["x"]
        start, source = let(at + g("left")), let(y * g("groups"))
        target = T.address_of(self.scratch[start])
        with T.If(g("channels") % 8 == 0):
            with T.Then():
                self._fill(at, g("left"))
                OFFSET(target, T.address_of(x[source * 4]), g("groups"))
                self._fill(at + g("row") - g("right"), g("right"))
            with T.Else():
                # The zero point between pixels, whose weights count as 1: the channel's constant takes it out.
                self._fill(at, g("row"))
                OFFSET_PIXELS(target, T.address_of(x[source * g("channels")]), g("groups"), g("channels"))

    def _unpack(self, pair: Expr) -> None:
        from tvm.tirx.script import builder as T

        words = self.geometry("words")
        packed = T.address_of(self.buffers["w"][pair * words])
        unpack = SIGNS if self.kind.differences else widen(self.kind.bits)
        unpack(T.address_of(self.scratch[0]), packed, words)

    def _entry(self, pair: Expr) -> list[Expr]:
        """Two biases, two multipliers or scales, and two shifts."""
        start = let(self.kind.first_entry + pair * ENTRY)
        found = [let(self.table[start + i]) for i in range(ENTRY)]
        if self.kind.floats:
            return found
        behind = (self.kind.first_entry + self.geometry("pairs") * ENTRY) * 4 + pair * 2
        return found + [let(cast(self.shifts[behind + i], "int32")) for i in range(2)]

    def _halves(self, rows: Expr) -> tuple[Expr, Expr, Expr]:
        """Rows of pairs of pixels, and how far apart the two are in the inputs and in the outputs."""
        from tvm.tirx.script import builder as T

        g = self.geometry
        turns, split = let(rows >> g("split")), let(g("split") == 1)
        apart = let(T.Select(split, turns * g("down"), g("apart")))
        return turns, apart, let(T.Select(split, turns * g("out_row"), g("out_apart")))

    def _line(self, pair: Expr) -> None:
        """Two output channels of one pixel. A word of packed weights serves steps of both: fields 0, 2, ... are the
        first channel's, fields 1, 3, ... the second's; of 8 bits two words make a step."""
        from tvm.tirx.script import builder as T

        g, numbers, w, x = self.geometry, self._entry(pair), self.buffers["w"], self.scratch
        sums = T.alloc_buffer((2,), "int32", scope="local")
        for i in range(2):
            T.buffer_store(sums, numbers[i], [i])
        at = let(pair * g("words"))
        each = 2 if self.kind.bits == 8 else 1
        steps = max(4 // self.kind.bits, 1)
        with T.serial(g("words") >> (each - 1)) as i:
            fields = [field for k in range(each) for field in unpacked(let(w[at + i * each + k]), self.kind.bits)]
            for step in range(steps):
                inputs = [let(x[(i * steps + step) * 2 + half]) for half in range(2)]
                for channel in range(2):
                    for value, weight in zip(inputs, in_registers(fields[step * 2 + channel]), strict=True):
                        total = intrinsic("int32", "llvm.arm.smlad", value, weight, sums[channel])
                        T.buffer_store(sums, total, [channel])
        channel = let(T.min(pair * 2, g("last")))
        for i, place in enumerate((channel, channel + g("second"))):
            T.buffer_store(self.buffers["y"], self._scaled(sums[i], numbers, i), [place])

    def _tiles(self, first: Expr, rows: Expr, pair: Expr) -> None:
        from tvm import tirx
        from tvm.tirx.script import builder as T

        g, tiles = self.geometry, self.kind.tiles
        assert tiles is not None
        bias0, bias1, m0, m1, *shifts = self._entry(pair)
        shift = [let(each - 32) for each in shifts]
        one = tirx.const(1, "int32")
        half = [let((one << (each - 1)) + (g("out_zero") << each)) for each in shift]
        turns, apart, out_apart = self._halves(rows)
        columns, channel = g("columns"), T.min(pair * 2, g("last"))
        out = let(first * g("out_row") + channel)
        y = self.buffers["y"]
        values = {
            "x0": T.address_of(self.scratch[g("images")]), "x1": T.address_of(self.scratch[g("images") + apart]),
            "y0": T.address_of(y[out]), "y1": T.address_of(y[out + out_apart]),
            "bias0": bias0, "bias1": bias1, "turns": g("turns"), "weights": T.address_of(self.scratch[0]),
            "skip": g("skip"), "end": T.address_of(self.scratch[g("end")]), "step": g("step") * 4,
            "y_step": g("outputs"), "m0": m0, "half0": half[0], "shift0": shift[0], "m1": m1, "half1": half[1],
            "shift1": shift[1], "second": g("second"), "left": columns, "columns": columns, "rows": turns,
            "x_row": g("x_row"), "y_row": g("y_row"),
            "low": g("low"), "high": g("high"), "entry": g("entry"),
        }  # fmt: skip
        if tiles.addition is not None:
            values |= {
                "own": g("add_own"), "other": g("add_other"), "constant": g("add_constant"), "shift": g("add_shift"),
                "other0": T.address_of(self.buffers["other"][out]), "add_low": g("add_low"), "add_high": g("add_high"),
            }  # fmt: skip
        cortex_m_tiles.function(tiles)(*(values[name] for name in tiles.arguments))

    def _pixels(self, first: Expr, rows: Expr, pair: Expr) -> None:
        from tvm.tirx.script import builder as T

        g, numbers = self.geometry, self._entry(pair)
        turns, apart, out_apart = self._halves(rows)
        channel = let(T.min(pair * 2, g("last")))
        skip, loops, second = let(g("skip")), let(g("turns")), let(g("second"))
        start, stop = T.address_of(self.scratch[0]), T.address_of(self.scratch[g("end")])
        with T.serial(turns) as row, T.serial(g("columns")) as column:
            at = let(g("images") + row * g("down") + column * g("step"))
            out = let((first + row) * g("out_row") + column * g("outputs") + channel)
            sums = T.alloc_buffer((4,), "int32", scope="local")
            for i in range(4):
                T.buffer_store(sums, numbers[i % 2], [i])
            addresses = (T.address_of(self.scratch[at]), T.address_of(self.scratch[at + apart]))
            T.evaluate(cortex_m_dot.call(self.kind.unroll, sums.data, *addresses, start, skip, loops, stop))
            places = [out, out + second, out + out_apart, out + out_apart + second]
            for i, place in enumerate(places):
                T.buffer_store(self.buffers["y"], self._scaled(sums[i], numbers, i % 2), [place])

    def _scaled(self, acc: Expr, numbers: list[Expr], which: int) -> Expr:
        """Of the output's type, by the definition, in 64 bits."""
        from tvm import tirx
        from tvm.tirx.script import builder as T

        g = self.geometry
        if self.kind.floats:
            return T.cast(acc, "float32") * view(numbers[2 + which], "float32")
        shifts = T.cast(numbers[4 + which], "int64")
        one = tirx.const(1, "int64")
        product = T.cast(acc, "int64") * T.cast(numbers[2 + which], "int64")
        if self.kind.high:
            # As in cortex_m_tiles.
            shift = let(numbers[4 + which] - 32)
            half = (tirx.const(1, "int32") << (shift - 1)) + (g("out_zero") << shift)
            value = (T.cast(product >> tirx.const(32, "int64"), "int32") + half) >> shift
            return T.cast(clamp(value, g("low"), g("high")), "int8")
        value = ((product + (one << (shifts - one))) >> shifts) + T.cast(g("out_zero"), "int64")
        return T.cast(clamp(value, T.cast(g("low"), "int64"), T.cast(g("high"), "int64")), "int8")


__all__ = ["kernel"]
