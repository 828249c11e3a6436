"""TVM's MetaSchedule over the register blocks of our kernels.

MetaSchedule brings the search, its records and their database; what it searches is the one choice that a dot-product
kernel has. Its workload is one output row of a convolution as it is defined; a schedule is that with a block sampled
and written down; our back end builds the kernel with it, and the runner times it beside the model's own choice.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from compress.errors import BadInput
from compress.export.kernels import backends, dot_blocks
from compress.export.kernels.dot_blocks import Block, Shape
from compress.export.kernels.isa import Isa
from compress.export.library import building
from compress.export.library.loader import Library
from compress.integer import program as p
from compress.profiling import timer
from compress.types import Progress

TRIALS = 64
"""Blocks that are sampled for a shape at most, with repetition; each is built and timed once."""
MARK = "compress.block"
"""The annotation that holds a block's place among the candidates."""
ROUNDS, SLICE_S = 6, 0.004


class Records:
    """MetaSchedule's database of one machine.

    Args:
        folder: made if need be; a damaged one counts as empty and is begun anew.
        isa: what it is for.
        progress: told of a damaged one.
    """

    def __init__(self, folder: Path, isa: Isa, progress: Progress) -> None:
        from tvm.s_tir.meta_schedule.database import JSONDatabase

        self.isa = isa
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.database = JSONDatabase(work_dir=str(folder))
        except Exception:  # whatever TVM raises on files that it didn't write
            progress(f"the tuning database in {folder} is damaged and begun anew")
            for path in folder.glob("database_*.json"):
                path.unlink()
            self.database = JSONDatabase(work_dir=str(folder))

    def seconds(self, shape: Shape, candidates: Sequence[Block]) -> dict[Block, float]:
        """The best time of each block that was timed for a shape."""
        module = workload(shape, candidates)
        if not self.database.has_workload(module):
            return {}
        found: dict[Block, float] = {}
        for record in self.database.get_top_k(self.database.commit_workload(module), TRIALS):
            block = candidates[_place(record.trace)]
            seconds = float(np.mean([float(each) for each in record.run_secs]))
            found[block] = min(seconds, found.get(block, seconds))
        return found

    def search(
        self, program: p.Program, shape: Shape, candidates: Sequence[Block], left: Callable[[], float], seed: int
    ) -> None:
        """Sample, build and time blocks for a shape until all are timed, or there is no time left.

        Those that the database has aren't timed again, so a search that ran out of time goes on where it was.

        Args:
            program: of one operator, whose kernel has the shape.
            shape: see above.
            candidates: what is sampled from, the model's choice first: it is timed in any case, before all others.
            left: seconds that are left.
            seed: of the sampling.
        """
        from tvm.s_tir import Schedule
        from tvm.s_tir.meta_schedule import TuneContext
        from tvm.s_tir.meta_schedule.runner import RunnerResult
        from tvm.s_tir.meta_schedule.space_generator import ScheduleFn

        module = workload(shape, candidates)
        with _no_intrinsics():
            context = TuneContext(
                module,
                target=self.isa.tvm_target(),
                space_generator=ScheduleFn(partial(_schedule, len(candidates)), [], [], {}),
                search_strategy="replay-trace",
                rand_state=seed + 1,  # 0 isn't a seed there
                num_threads=1,
            )
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            bench = _Bench(program, self.isa, shape, candidates, Path(folder), stack)
            for block, seconds in self.seconds(shape, candidates).items():
                bench.timed[candidates.index(block)] = seconds
            if 0 not in bench.timed:
                model = Schedule(module)
                _schedule(len(candidates), model, 0)
                self._keep(module, model, bench.seconds(0))
            context.pre_tuning(TRIALS, num_trials_per_iter=1)
            while len(bench.timed) < len(candidates) and left() > 0:
                sampled = context.generate_measure_candidates()
                if not sampled:
                    break
                schedule = sampled[0].sch
                place = _place(schedule.trace)
                if place not in bench.timed:
                    self._keep(module, schedule, bench.seconds(place))
                context.notify_runner_results(sampled, [RunnerResult([bench.timed[place]], None)])
            context.post_tuning()

    def _keep(self, module: Any, schedule: Any, seconds: float) -> None:
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo
        from tvm.s_tir.meta_schedule.database import TuningRecord

        known, target = self.database.commit_workload(module), self.isa.tvm_target()
        arguments = ArgInfo.from_prim_func(module["main"])
        self.database.commit_tuning_record(TuningRecord(schedule.trace, known, [seconds], target, arguments))


@contextmanager
def _no_intrinsics() -> Iterator[None]:
    """Keep TuneContext from parsing TVM's hundreds of tensor intrinsics, which takes it most of a minute.

    It imports them for schedules that name one; ours name none.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def workload(shape: Shape, candidates: Sequence[Block]) -> Any:
    """One output row of a convolution: ``out[x, v] = sum_{s, k} in[s, x * stride + k * dilation] * w[s, k, v]``.

    Its attributes hold the blocks that are sampled from, since records know them by their place alone.
    """
    import tvm
    from tvm import te

    width = (shape.width - 1) * shape.stride + (shape.kernel - 1) * shape.dilation + 1
    x = te.placeholder((shape.steps, width), "int32", "x")
    w = te.placeholder((shape.steps, shape.kernel, shape.vectors), "int32", "w")
    s, k = te.reduce_axis((0, shape.steps), "s"), te.reduce_axis((0, shape.kernel), "k")
    out = te.compute(
        (shape.width, shape.vectors),
        lambda i, v: te.sum(x[s, i * shape.stride + k * shape.dilation] * w[s, k, v], axis=[s, k]),
        "row",
    )
    named = {"global_symbol": "main", "compress.dot": shape.dot, "compress.blocks": repr(list(candidates))}
    row = te.create_prim_func([x, w, out]).with_attrs(named)
    return tvm.IRModule({"main": row})


def _schedule(count: int, schedule: Any, place: int | None = None) -> None:
    """Mark a workload with one of ``count`` blocks, all equally likely, or the given one."""
    (row,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    sampled = schedule.sample_categorical(list(range(count)), [1.0 / count] * count, decision=place)
    schedule.annotate(row, MARK, sampled)


def _place(trace: Any) -> int:
    """The place that was sampled in a trace."""
    (place,) = trace.decisions.values()
    return int(place)


class _Bench:
    """Builds kernels of one operator with a block, each once, and times them beside the model's choice."""

    def __init__(
        self,
        program: p.Program,
        isa: Isa,
        shape: Shape,
        candidates: Sequence[Block],
        folder: Path,
        stack: ExitStack,
    ) -> None:
        self.program, self.isa, self.shape, self.candidates = program, isa, shape, candidates
        self.folder, self.stack = folder, stack
        self.jobs: dict[int, Callable[[], None]] = {}
        self.timed: dict[int, float] = {}

    def seconds(self, place: int) -> float:
        """Seconds of one run, as if the machine were as fast as when the model's choice was timed."""
        for each in {0, place} - set(self.jobs):
            self.jobs[each] = self._job(each)
        jobs = {str(each): self.jobs[each] for each in sorted({0, place})}
        found = timer.interleaved(jobs, "", {}, rounds=ROUNDS, slice_s=SLICE_S)
        model_s = self.timed.setdefault(0, found["0"].latency_s)
        self.timed[place] = found[str(place)].latency_s * model_s / found["0"].latency_s
        return self.timed[place]

    def _job(self, place: int) -> Callable[[], None]:
        with dot_blocks.fixed({self.shape: self.candidates[place]}):
            code = backends.assemble(self.program, self.isa)
        built = building.build(code, self.isa, self.folder / str(place), file_shapes=self.program.file_shapes)
        if built.linked_path is None:
            raise BadInput(f"--tune: the kernels couldn't be linked: {built.reason}")
        library = self.stack.enter_context(Library(built.linked_path))
        return library.prepared([np.full(end.shape, 1, end.dtype) for end in library.interface.inputs])


__all__ = ["TRIALS", "Records", "workload"]
