"""From a program to one :class:`Code`: each operator's kernel, the calls, the constants, the ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import BadInput
from compress.export.kernels import portable
from compress.export.kernels.code import Argument, Buffer, Call, Code, Constant, Kernel, Layout, Placed
from compress.export.kernels.emitted import ALIGNMENT, Emitted, Emitter, Layouts, flat
from compress.export.kernels.isa import Isa
from compress.integer.program import Op, Program, View


def assemble(
    program: Program,
    isa: Isa,
    overrides: Sequence[Emitter] = (),
    layouts: Layouts | None = None,
    prefix: str = "kernel",
) -> Code:
    """The program as kernels and calls: of each operator the first emitter's that has one, else the portable one.

    Inputs and outputs that the kernels want otherwise than as dense memory of the caller are copied in and out. Halos
    are filled behind their producers. Views cost nothing where both sides lie densely.

    Raises:
        BadInput: no emitter has a kernel for an operator.
    """
    return _Assembly(program, isa, tuple(overrides), layouts(program, isa) if layouts else {}, prefix).code()


class _Assembly:
    def __init__(
        self, program: Program, isa: Isa, overrides: tuple[Emitter, ...], layouts: Mapping[str, Layout], prefix: str
    ) -> None:
        self.program, self.isa, self.overrides, self.prefix = program, isa, overrides, prefix
        self.placed = {name: Placed(tensor, layouts.get(name)) for name, tensor in program.tensors.items()}
        self.constants: list[NDArray[Any]] = []
        self.constant_keys: dict[tuple[Any, ...], int] = {}
        self.kernels: dict[tuple[int, int | None], list[tuple[Any, Kernel]]] = {}
        self.symbols = 0
        self.calls: list[Call] = []
        self.scratch: list[Buffer] = []
        self.aliases: dict[str, tuple[str, int]] = {}
        self.extra: dict[str, int] = {}

    def code(self) -> Code:
        for op in self.program.ops:
            if isinstance(op, View) and op.output not in self.program.outputs and self._alias(op):
                continue
            self._call(op, self._emit(op))
        return self._with_ends()

    def _symbol(self, kind: str) -> str:
        self.symbols += 1
        return f"{self.prefix}{self.symbols}_{kind.lower()}"

    def _emit(self, op: Op) -> Emitted:
        symbol = self._symbol(type(op).__name__)
        for emitter in (*self.overrides, portable.emit):
            found = emitter(op, self.placed, self.isa, symbol)
            if found is not None:
                return found
        raise BadInput(
            f"no kernel for the operator {type(op).__name__} ({op.name!r}) on {self.isa.triple}; keep the ONNX file "
            "(--artifact onnx), or leave the operator out of the network."
        )

    def _alias(self, op: View) -> bool:
        """Whether the view's output lies in its input's memory; noted if so."""
        source, target = self.placed[op.inputs[0]], self.placed[op.output]
        if not (flat(source) and flat(target) and target.origin == 0 and target.elements == target.tensor.elements):
            return False
        root, offset = self.aliases.get(op.inputs[0], (op.inputs[0], 0))
        self.aliases[op.output] = root, offset + source.origin * np.dtype(source.tensor.dtype).itemsize
        return True

    def _call(self, op: Op, emitted: Emitted) -> None:
        for name in op.inputs:
            root, _ = self.aliases.get(name, (name, 0))
            self.extra[root] = max(self.extra.get(root, 0), emitted.extra_read)
        here = self.placed[op.output]
        shared = []
        roots = [self.aliases.get(name, (name, 0))[0] for name in op.inputs]
        for index in emitted.in_place:
            there = self.placed[op.inputs[index]]
            # Memory that is an input twice is read in two ways, and one of them may not be done with it.
            if roots.count(roots[index]) == 1 and there.bytes == here.bytes and there.layout == here.layout:
                shared.append((op.output, op.inputs[index]))
        self._add(op.inputs, op.output, emitted, tuple(shared), op.name)
        if here.layout is not None and any(here.layout.halo) and not emitted.fills_halo:
            self._add((), op.output, portable.fill_halo(here, self._symbol("halo")), (), op.name)

    def _add(
        self,
        inputs: tuple[str, ...],
        output: str,
        emitted: Emitted,
        in_place: tuple[tuple[str, str], ...] = (),
        op: str = "",
    ) -> None:
        arguments: list[Argument] = [*inputs, output, *(self._constant(values) for values in emitted.constants)]
        writes = [output]
        if emitted.scratch:
            name = f"{op}.scratch"
            self.scratch.append(Buffer(name, emitted.scratch, ALIGNMENT[self.isa.family]))
            arguments.append(name)
            writes.append(name)
        reads = tuple(dict.fromkeys(inputs))
        kernel = self._shared(emitted.kernel)
        self.calls.append(Call(kernel, tuple(arguments), reads, tuple(writes), in_place, op))

    def _constant(self, values: NDArray[Any]) -> Constant:
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self.constant_keys:
            self.constant_keys[key] = len(self.constants)
            self.constants.append(values)
        return Constant(self.constant_keys[key])

    def _shared(self, kernel: Kernel) -> Kernel:
        """The kernel, or an earlier one that does the same."""
        from tvm_ffi import structural_equal, structural_hash

        bare = kernel.function.with_attr("global_symbol", "kernel")
        key = (structural_hash(bare), kernel.rows)
        for other, known in self.kernels.setdefault(key, []):
            if structural_equal(other, bare):
                return known
        self.kernels[key].append((bare, kernel))
        return kernel

    def _with_ends(self) -> Code:
        """The code, with inputs and outputs copied where the caller's memory won't do."""
        inside: dict[str, str] = {}
        outer = (*self.program.inputs, *self.program.outputs)
        for name in outer:
            place = self.placed[name]
            if self.extra.get(name, 0) or not (flat(place) and place.elements == place.tensor.elements):
                inside[name] = f"{name}.inside"
        calls, self.calls = [_renamed(call, inside) for call in self.calls], []
        before, after = [], []
        for name, inner in inside.items():
            dense, place = Placed(self.placed[name].tensor), self.placed[name]
            if name in self.program.inputs:
                before += self._move(name, dense, inner, place)
            else:
                after += self._move(inner, place, name, dense)
        align = ALIGNMENT[self.isa.family]
        buffers = {buffer.name: buffer for buffer in self.scratch}
        for name in dict.fromkeys((*outer, *(n for op in self.program.ops for n in (*op.inputs, op.output)))):
            place = self.placed[name]
            size = place.bytes + self.extra.get(name, 0)
            if name in outer:
                itemsize = np.dtype(place.tensor.dtype).itemsize
                buffers[name] = Buffer(name, place.tensor.bytes, itemsize)
            if name not in outer or name in inside:
                buffers[inside.get(name, name)] = Buffer(inside.get(name, name), size, align)
        ends = {name: self.placed[name].tensor for name in outer}
        aliases = {name: (inside.get(root, root), offset) for name, (root, offset) in self.aliases.items()}
        everything = (*before, *calls, *after)
        own = set(outer)
        everything = tuple(
            replace(call, in_place=tuple((a, b) for a, b in call.in_place if a not in own and b not in own))
            for call in everything
        )
        program = self.program
        return Code(buffers, everything, tuple(self.constants), program.inputs, program.outputs, ends, aliases)

    def _move(self, source: str, here: Placed, target: str, there: Placed) -> list[Call]:
        self.calls = []
        self._add((source,), target, portable.move(here, there, self._symbol("move")), (), "")
        if there.layout is not None and any(there.layout.halo):
            self._add((), target, portable.fill_halo(there, self._symbol("halo")), (), "")
        return self.calls


def _renamed(call: Call, names: Mapping[str, str]) -> Call:
    def new(name: str) -> str:
        return names.get(name, name)

    return replace(
        call,
        arguments=tuple(new(a) if isinstance(a, str) else a for a in call.arguments),
        reads=tuple(map(new, call.reads)),
        writes=tuple(map(new, call.writes)),
        in_place=tuple((new(a), new(b)) for a, b in call.in_place),
    )


__all__ = ["ALIGNMENT", "Emitted", "Emitter", "Layouts", "assemble", "flat"]
