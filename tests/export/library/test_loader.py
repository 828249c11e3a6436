"""A compiled library in this process, and files that aren't one."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from compress.errors import BadData, BadInput
from compress.export.kernels import isa
from compress.export.library import building, emulate, loader, toolchain
from compress.export.library.interface import End
from tests.export.library.codes import expected, expected_of_many, images, many_ended_code, small_code

pytestmark = pytest.mark.skipif(not toolchain.native(isa.X86_AVX2), reason="this machine isn't x86")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return building.build(small_code(), isa.X86_AVX2, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def path(built):
    assert built.linked_path is not None, built.reason
    return built.linked_path


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_a_batch_gives_what_numpy_gives(path, threads):
    x = images(5)
    with loader.Library(path, threads) as library:
        raw = library.interface.inputs[0].to_library(x)
        assert raw.min() == -128
        assert raw.max() == 127
        for _ in range(50):
            assert library.run(x).tolist() == expected(raw).tolist()
        assert library.run(x[:0]).shape == (0, 3)


def test_threads_sleep_and_wake(path):
    """Between runs the pool's threads fall asleep; more threads than cores take turns."""
    import time

    x = images(1)
    with loader.Library(path, 8) as library:
        want = expected(library.interface.inputs[0].to_library(x)).tolist()
        for pause in (0, 0.02, 0, 0.05, 0.001) * 3:
            time.sleep(pause)
            assert library.run(x).tolist() == want


def test_many_threads_may_use_one_library(path):
    library = loader.Library(path)
    inputs = [images(20, seed) for seed in range(6)]
    results: dict[int, list[bool]] = {}

    def work(index: int) -> None:
        want = expected(library.interface.inputs[0].to_library(inputs[index]))
        results[index] = [bool((library.run(inputs[index]) == want).all()) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(results) == list(range(6))
    assert all(all(done) for done in results.values())


def test_prepared_runs_the_network(path):
    with loader.Library(path) as library:
        raw = library.interface.inputs[0].to_library(images(1))
        outputs = np.zeros((1, 3), np.float32)
        once = library.prepared([raw[0]], [outputs[0]])
        once()
        once()
    assert outputs.tolist() == expected(raw).tolist()


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 128), ("int8", 0), ("int8", -77), ("uint8", 3)])
def test_quantizing_is_onnx_runtimes(dtype, zero):
    """Halves, their neighbours, and what lies beyond the grid, against QuantizeLinear and DequantizeLinear."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    scale = np.float32(0.0371)
    steps = np.arange(-300, 300, 0.5, np.float32) * scale
    values = np.concatenate([steps, np.nextafter(steps, np.float32(1e9)), np.nextafter(steps, np.float32(-1e9))])
    values = np.concatenate([values, np.float32([1e9, -1e9, np.inf, -np.inf, 1e-38, 0])])[: 60 * 60].reshape(
        1, 1, 6, -1
    )
    shape = values.shape[1:]
    end = End("x", "input", (shape[1], shape[2], shape[0]), shape, dtype, float(scale), zero)
    grid = [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(np.array(zero, dtype), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [
            helper.make_tensor_value_info("q", kind, values.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape),
        ],
        grid,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    integers, real = session.run(None, {"x": values})
    ours = end.to_library(values)
    assert np.array_equal(ours.transpose(0, 3, 1, 2), integers)
    assert np.array_equal(end.from_library(ours), real)


@pytest.mark.parametrize("threads", [1, 3])
def test_networks_of_several_ends(threads, tmp_path):
    built = building.build(many_ended_code(), isa.X86_AVX2, tmp_path)
    assert [end.identifier for end in built.interface.inputs] == ["input_x_0", "input_x_0_2"]
    first, second = images(3, 1), images(3, 2)
    with loader.Library(built.linked_path, threads) as library:
        raw = [end.to_library(x) for end, x in zip(built.interface.inputs, (first, second), strict=True)]
        found = library.run_named({"x:0": first, "x.0": second})
        with pytest.raises(BadInput, match="2 inputs and 3 outputs"):
            library.run(first)
    b, y, z = expected_of_many(*raw)
    assert found["b/1"].tolist() == (b * np.float32(0.125)).transpose(0, 3, 1, 2).tolist()
    assert found["y"].tolist() == y.tolist()
    assert found["z"].tolist() == z.tolist()
    emulated = emulate.run_raw(built, raw)
    assert [a.tolist() for a in emulated] == [b.tolist(), y.tolist(), z.tolist()]


def test_a_library_that_was_built_again_is_the_new_one(tmp_path):
    """The system's own loader would give the old one at the same path."""
    x = images(2)
    for seed in (0, 3, 0, 5):
        built = building.build(small_code(seed), isa.X86_AVX2, tmp_path)
        library = loader.Library(built.linked_path)
        raw = library.interface.inputs[0].to_library(x)
        assert library.run(x).tolist() == expected(raw, seed).tolist()


def test_batches_that_do_not_fit_are_refused(path):
    library = loader.Library(path)
    for bad in (np.zeros((3, 6, 5), np.float32), np.zeros((1, 6, 5, 3), np.float32), np.float32(1), [["a"]]):
        with pytest.raises(BadData, match="x"):
            library.run(bad)
    with pytest.raises(BadData, match="NaN"):
        library.run(np.full((1, 3, 6, 5), np.nan, np.float32))
    with pytest.raises(BadInput, match="'x' is missing"):
        library.run_named({"input": images(1)})
    with pytest.raises(BadInput, match="takes int8"):
        library.run_raw([np.zeros((1, 6, 5, 3), np.uint8)])


def test_a_library_describes_itself_without_running(path, built):
    assert loader.describe(path) == built.interface


def test_a_damaged_library_is_not_loaded(path, tmp_path):
    """Cut off anywhere, or with any of the first bytes or of its tables changed: a clear error or a whole file."""
    content = path.read_bytes()
    broken = tmp_path / "libmodel.so"
    for length in (0, 3, 16, 63, 64, 200, len(content) // 2, len(content) - 1):
        broken.write_bytes(content[:length])
        with pytest.raises(BadInput, match=r"damaged|no shared library"):
            loader.describe(broken)
    refused = []
    for at in [*range(64), *range(len(content) - 900, len(content))]:
        broken.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            loader.describe(broken)
        except BadInput as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("\n" not in said for said in refused)


def test_other_files_are_not_loaded(tmp_path, built):
    for content in (b"", b"MZ" + bytes(200), b"\x7fELF" + bytes(200), b"#!/bin/sh\n" * 50):
        (tmp_path / "x.so").write_bytes(content)
        with pytest.raises(BadInput, match="damaged"):
            loader.Library(tmp_path / "x.so")
    with pytest.raises(BadInput, match="No such file"):
        loader.Library(tmp_path / "nothing.so")
    with pytest.raises(BadInput, match="no shared library"):
        loader.Library(built.folder / "lib" / "model_kernels.o")


def test_a_library_for_another_machine_is_not_loaded(tmp_path):
    built = building.build(small_code(), isa.CORTEX_A72, tmp_path)
    if built.linked_path is None:
        pytest.skip(str(built.reason))
    with pytest.raises(BadInput, match=r"is for aarch64-linux-gnu.*emulator"):
        loader.Library(built.linked_path)
