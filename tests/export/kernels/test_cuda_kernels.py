"""The roster's kernels as CUDA, on the emulated CUDA, its threads from the last to the first: nothing may depend on it.

The source is what a GPU's compiler would get; a processor's compiles it here, so neither nvcc nor a GPU is needed.
"""

from __future__ import annotations

import pytest

from compress import targets
from compress.export import cuda_module
from compress.integer import reference
from tests.export import emulated_cuda
from tests.export.kernels import laws, roster

NAMES = tuple(roster.CASES)
FEW = tuple(
    n for k, n in enumerate(NAMES) if k % 24 == 0 or ("conv" not in n and k % 10 == 0) or n.startswith("float_conv_g")
)
EVERY = [pytest.param(NAMES, id="every", marks=pytest.mark.slow), pytest.param(FEW, id="few")]


@pytest.mark.parametrize("names", EVERY)
@pytest.mark.slow
def test_kernels_equal_the_reference(names, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_module, "find_compiler", lambda: "nvcc")
    monkeypatch.setattr(cuda_module, "cubin", emulated_cuda.empty_cubin)
    target, modules, cases = targets.load("gpu"), {}, {}
    for name in names:
        program, inputs = roster.case(name, True)
        modules[name] = cuda_module.build(program, target, tmp_path / name)
        wanted = reference.run(modules[name].program, inputs)  # on float16 where tensor cores compute
        cases[name] = wanted, [inputs[each] for each in program.inputs]
    found = emulated_cuda.outputs(modules, {name: inputs for name, (_, inputs) in cases.items()}, tmp_path)
    wrong = []
    for name, (wanted, _) in cases.items():
        (value,) = wanted.values()
        try:
            laws.agree({"y": value}, {"y": found[name].reshape(value.shape)})
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
