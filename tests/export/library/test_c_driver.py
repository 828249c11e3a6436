"""The generated C: compiled without a warning by every compiler that is there, and run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from compress.errors import BadInput
from compress.export.kernels import isa
from compress.export.kernels.code import Code
from compress.export.library import building, c_driver, rendering, toolchain
from compress.export.library.golden import Golden
from compress.export.library.interface import End, ends
from compress.integer.program import Tensor
from tests.export.library.codes import expected, images, many_ended_code, small_code

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wno-sign-conversion", "-Wshadow")
DEVICES = {
    "x86": isa.X86_AVX2,
    "aarch64": isa.CORTEX_A72,
    "cortex-m4": isa.CORTEX_M4,
    "cortex-m7": isa.CORTEX_M7,
    "cortex-m33": isa.CORTEX_M33,
    "cortex-m55": isa.CORTEX_M55,
    "riscv64": isa.RV64_LINUX,
    "riscv32": isa.RV32_BARE,
}


def golden(count: int = 2) -> Golden:
    x = images(count)
    (end,), _ = ends(small_code())
    return Golden({"x": x}, {"y": expected(end.to_library(x))})


def tools(device: str, kind: str) -> toolchain.Toolchain:
    """The compiler of this kind, or a skip that says which is missing."""
    for candidate in toolchain.candidates(DEVICES[device]):
        if candidate.kind == kind and candidate.complete():
            return candidate
    pytest.skip(f"no {kind} for {device}: {toolchain.advice(DEVICES[device])}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small code's library, for a device by name."""
    made: dict[str, building.BuiltLibrary] = {}

    def of(device: str) -> building.BuiltLibrary:
        if device not in made:
            made[device] = building.build(
                small_code(), DEVICES[device], tmp_path_factory.mktemp(device), golden=golden()
            )
        return made[device]

    return of


@pytest.mark.parametrize("kind", ["gcc", "zig"])
@pytest.mark.parametrize("device", DEVICES)
def test_all_c_compiles_without_a_warning(device, kind, built, tmp_path):
    compiler, library = tools(device, kind), built(device)
    shutil.copytree(library.folder / "src", tmp_path, dirs_exist_ok=True)
    (tmp_path / "describe.c").write_bytes(rendering.description(library.interface))
    sources = [*tmp_path.glob("*.c")]
    if toolchain.hosted(library.isa):
        (tmp_path / "runner.c").write_bytes(rendering.runner(library.interface))
        shutil.copyfile(library.folder / "golden" / "main.c", tmp_path / "main.c")
        sources += [tmp_path / "runner.c", tmp_path / "main.c"]
    assert len(sources) >= 3
    for source in sources:
        compiler.compile(source, tmp_path / "out.o", STRICT)


@pytest.mark.parametrize("kind", ["gcc", "zig"])
@pytest.mark.parametrize("device", ["x86", "cortex-m4"])
def test_networks_of_several_ends_compile_without_a_warning(device, kind, tmp_path):
    compiler = tools(device, kind)
    x = images(1)
    found = Golden(
        {"x:0": x, "x.0": x},
        {"b/1": np.zeros((1, 3, 6, 5), np.float32), "y": np.zeros((1, 3)), "z": np.zeros((1, 3))},
    )
    library = building.build(many_ended_code(), DEVICES[device], tmp_path / "library", golden=found)
    shutil.copytree(library.folder / "src", tmp_path / "work")
    shutil.copyfile(library.folder / "golden" / "main.c", tmp_path / "work" / "main.c")
    (tmp_path / "work" / "runner.c").write_bytes(rendering.runner(library.interface))
    for source in (tmp_path / "work").glob("*.c"):
        if toolchain.hosted(library.isa) or source.name not in ("main.c", "runner.c"):
            compiler.compile(source, tmp_path / "out.o", STRICT)


@pytest.mark.parametrize("kind", ["gcc", "zig"])
@pytest.mark.parametrize("device", ["x86", "cortex-m4"])
def test_the_headers_and_the_arduino_sketch_are_cpp_too(device, kind, built, tmp_path):
    compiler, library = tools(device, kind), built("cortex-m4" if device == "cortex-m4" else "x86")
    sketch = built("cortex-m4").folder / "examples" / "golden" / "golden.ino"
    (tmp_path / "Arduino.h").write_text(
        "#include <stddef.h>\n"
        "struct Port { void begin(long); operator bool(); void print(const char *); void println(const char *);"
        " void println(float, int); };\nextern Port Serial;\nvoid setup();\nvoid loop();\n"
    )
    (tmp_path / "sketch.cpp").write_text('#include "Arduino.h"\n' + sketch.read_text())
    command = {"gcc": [compiler.command[0].replace("gcc", "g++")], "zig": [*compiler.command[:-1], "c++"]}[kind]
    flags = [*compiler.flags, "-std=c++11", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-ffreestanding"]
    includes = [f"-I{library.folder / 'src'}", f"-I{tmp_path}"]
    made = subprocess.run(
        [*command, *flags, *includes, "-c", str(tmp_path / "sketch.cpp"), "-o", str(tmp_path / "sketch.o")],
        capture_output=True,
        text=True,
        env=toolchain.environment(),
    )
    assert made.returncode == 0, made.stderr


def program(compiler: toolchain.Toolchain, folder: Path, main: str, libraries) -> Path:
    """A program of ``main`` and the libraries' sources."""
    objects = []
    for library in libraries:
        shutil.copytree(library.folder / "src", folder, dirs_exist_ok=True)
        for path in library.sources():
            if path.suffix != ".o":
                objects.append(folder / f"{path.stem}.o")
                compiler.compile(folder / path.name, objects[-1], STRICT)
            else:
                objects.append(path)
    (folder / "own_main.c").write_text(main)
    compiler.compile(folder / "own_main.c", folder / "own_main.o", STRICT)
    out = folder / "program"
    compiler.executable([folder / "own_main.o", *objects], out)
    return out


def run(path: Path) -> str:
    ran = subprocess.run([str(path)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("kind", ["gcc", pytest.param("zig", marks=pytest.mark.slow)])
def test_two_networks_link_into_one_program(kind, tmp_path):
    compiler = tools("x86", kind).for_programs()
    if not toolchain.native(isa.X86_AVX2):
        pytest.skip("this machine isn't x86")
    first = building.build(small_code(0), isa.X86_AVX2, tmp_path / "a", name="first")
    second = building.build(small_code(5), isa.X86_AVX2, tmp_path / "b", name="second")
    assert first.sources() != ()
    main = """
    #include "first.h"
    #include "second.h"
    #include <stdio.h>
    static union { unsigned char bytes[FIRST_ARENA_BYTES + SECOND_ARENA_BYTES + 128]; double aligned; } memory;
    int main(void)
    {
        unsigned char *const a = memory.bytes + (64 - (uintptr_t)memory.bytes % 64) % 64;
        unsigned char *const b = a + (FIRST_ARENA_BYTES + 63) / 64 * 64;
        first_input_t x[FIRST_INPUT_ELEMENTS];
        first_output_t y[FIRST_OUTPUT_ELEMENTS];
        second_output_t z[SECOND_OUTPUT_ELEMENTS];
        int i;
        for (i = 0; i < FIRST_INPUT_ELEMENTS; ++i) {
            x[i] = (first_input_t)(i - 45);
        }
        if (first_init(a, FIRST_ARENA_BYTES) != FIRST_OK || second_init(b, SECOND_ARENA_BYTES) != SECOND_OK) {
            return 1;
        }
        first_run(a, x, y);
        second_run(b, x, z);
        for (i = 0; i < 3; ++i) {
            printf("%.9g %.9g\\n", (double)y[i], (double)z[i]);
        }
        return 0;
    }
    """
    printed = np.array([line.split() for line in run(program(compiler, tmp_path, main, (first, second))).splitlines()])
    x = (np.arange(90) - 45).astype(np.int8).reshape(1, 6, 5, 3)
    assert printed.astype(np.float32).T.tolist() == [expected(x, 0)[0].tolist(), expected(x, 5)[0].tolist()]


def test_init_refuses_what_run_could_not_use(tmp_path):
    compiler = tools("x86", "gcc").for_programs()
    library = building.build(small_code(), isa.X86_AVX2, tmp_path / "library")
    main = """
    #include "model.h"
    #include <stdio.h>
    static union { unsigned char bytes[MODEL_ARENA_BYTES + 128]; double aligned; } memory;
    int main(void)
    {
        unsigned char *const a = memory.bytes + (64 - (uintptr_t)memory.bytes % 64) % 64;
        printf("%d %d %d %d %d", model_init(NULL, MODEL_ARENA_BYTES), model_init(a, model_arena_bytes() - 1),
               model_init(a + 1, MODEL_ARENA_BYTES), model_init(a, MODEL_ARENA_BYTES), MODEL_ARENA_BYTES);
        return 0;
    }
    """
    *codes, size = run(program(compiler, tmp_path, main, (library,))).split()
    assert codes == ["1", "1", "2", "0"]
    assert int(size) == library.arena_bytes


@pytest.mark.parametrize(("dtype", "scale", "zero"), [("int8", 0.05, -3), ("uint8", 0.0173, 128), ("int8", 3.0, 127)])
def test_the_headers_helper_rounds_as_the_loader_does(dtype, scale, zero, tmp_path):
    """Exact halves, values beyond the grid and the neighbours of both."""
    compiler = tools("x86", "gcc").for_programs()
    steps = np.arange(-400, 400, 0.5, np.float32) * np.float32(scale)
    values = np.concatenate([steps, np.nextafter(steps, np.float32(9e9)), np.nextafter(steps, np.float32(-9e9))])
    values = np.concatenate([values, np.float32([1e30, -1e30, np.inf, -np.inf, 0, 1e-30])])
    end = End("x", "input", (len(values),), (len(values),), dtype, float(np.float32(scale)), zero)
    interface = c_driver.interface_of("m", isa.X86_AVX2, _plan(), ((end,), (end_out(end),)), False)
    header = rendering.render("model.h", **rendering.words(interface), stack_bytes=0)
    (tmp_path / "m.h").write_bytes(header)
    (tmp_path / "values.h").write_text(
        "static const float values[] = {"
        + ",".join(f"{v.hex()}f" if np.isfinite(v) else f"{'-' if v < 0 else ''}INFINITY" for v in map(float, values))
        + "};\n"
    )
    (tmp_path / "main.c").write_text(
        '#include <math.h>\n#include <stdio.h>\n#include "m.h"\n#include "values.h"\nint main(void)\n{\n'
        "    static m_input_t n[M_INPUT_ELEMENTS];\n    static float back[M_INPUT_ELEMENTS];\n    int i;\n"
        "    m_quantize_input(values, n);\n    m_dequantize_output(n, back);\n"
        '    for (i = 0; i < M_INPUT_ELEMENTS; ++i) {\n        printf("%d %a\\n", n[i], (double)back[i]);\n    }\n'
        "    return 0;\n}\n"
    )
    compiler.compile(tmp_path / "main.c", tmp_path / "main.o", STRICT)
    compiler.executable([tmp_path / "main.o"], tmp_path / "main")
    lines = [line.split() for line in run(tmp_path / "main").splitlines()]
    integers = end.to_library(values[None])
    assert [int(n) for n, _ in lines] == integers[0].tolist()
    assert [float.fromhex(real) for _, real in lines] == end.from_library(integers)[0].tolist()


def end_out(end: End) -> End:
    return End("y", "output", end.shape, end.file_shape, end.dtype, end.scale, end.zero_point)


def _plan():
    from compress.export.library.memory_plan import MemoryPlan

    return MemoryPlan({}, 16, 16, 4)


def test_names_that_c_does_not_take_are_refused(tmp_path):
    for name in ("", "9lives", "a-b", "Model", "x" * 60, "../x"):
        with pytest.raises(BadInput, match="can't be named"):
            building.build(small_code(), isa.X86_AVX2, tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_ends_have_names_of_their_own_in_c():
    names = ("x", "X", "x.2", "2", "", "größe/a:0")
    tensors = {name: Tensor(name, (4,), "int8") for name in names}
    inputs, _ = ends(Code({}, (), (), names, (), tensors))
    found = [end.identifier for end in inputs]
    assert found == ["input_x", "input_x_2", "input_x_2_2", "input_2", "input_x_3", "input_gr_e_a_0"]


def test_constants_are_aligned_and_kept_once():
    same = np.arange(5, dtype=np.int8)
    made = c_driver.blob([same, np.arange(3, dtype=np.int32), same.copy()], 16)
    assert made.offsets == (0, 16, 0)
    assert made.content == bytes([0, 1, 2, 3, 4]) + bytes(11) + np.arange(3, dtype="<i4").tobytes() + bytes(4)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 0.05, 1e-30, 3.4e38, 2.0**24])
def test_floats_in_c_are_exact(value):
    text = rendering.cfloat(value)
    assert text.endswith("f")
    assert "." in text or "e" in text
    assert np.float32(text[:-1]) == np.float32(value)
