"""The folder of a library: its files, its sizes, the same bytes every time, and what happens without a compiler."""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import BadInput, CheckFailed
from compress.export.compiled import compile_file
from compress.export.kernels import compiling, isa
from compress.export.library import building, c_driver, elf, loader, sizes, stripping, toolchain
from compress.export.library.golden import Golden
from compress.export.library.interface import ends
from tests.export.library.codes import expected, images, small_code
from tests.export.lowering.small import Net
from tests.rosters import some

HOST = pytest.mark.skipif(not toolchain.native(isa.X86_AVX2), reason="this machine isn't x86")
PER_ISA = {"x86": isa.X86_AVX2, "aarch64": isa.CORTEX_A72, "cortex-m7": isa.CORTEX_M7, "riscv64": isa.RV64_LINUX}


def golden(count: int = 3, off: float = 0.0, tolerance: float = 0.0) -> Golden:
    x = images(count)
    (end,), _ = ends(small_code())
    return Golden({"x": x}, {"y": expected(end.to_library(x)) + np.float32(off)}, tolerance)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("device", PER_ISA)
def test_the_folder_holds_what_the_library_says(device, tmp_path):
    built = building.build(small_code(), PER_ISA[device], tmp_path, golden=golden())
    assert sorted(files(tmp_path)) == list(built.files)
    assert building.load(tmp_path) == built
    assert built.linked is None or built.linked in built.files
    assert built.arena_bytes >= built.lower_bound_bytes > 0
    assert built.ram_bytes == built.arena_bytes + built.stack_bytes + 90 + 12


@some("device", PER_ISA, quick=("x86", "cortex-m7"))
@pytest.mark.slow
def test_the_same_code_gives_the_same_bytes(device, tmp_path):
    """In another process with other hashes, another working folder and another output folder."""
    building.build(small_code(), PER_ISA[device], tmp_path / "here", golden=golden())
    name = next(key for key, value in vars(isa).items() if value is PER_ISA[device])
    script = (
        "import pathlib\nfrom compress.export.kernels import isa\nfrom compress.export.library import building\n"
        "from tests.export.library.test_building import golden, small_code\n"
        f"building.build(small_code(), isa.{name}, pathlib.Path({str(tmp_path / 'a' / 'there')!r}), golden=golden())"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment, capture_output=True)
    here, there = files(tmp_path / "here"), files(tmp_path / "a" / "there")
    assert {name for name in {*here, *there} if here.get(name) != there.get(name)} == set()
    for name, content in here.items():
        for path in (str(tmp_path), root, str(Path.home()) + "/", "/tmp/"):
            assert path.encode() not in content, f"{name} names {path}"


def measured(command: str, objects: list[Path]) -> tuple[int, int, int]:
    """text, data and bss of objects as binutils counts them."""
    said = subprocess.run([command, "-B", *map(str, objects)], check=True, capture_output=True, text=True).stdout
    table = np.array([[int(n) for n in line.split()[:3]] for line in said.splitlines()[1:]])
    return tuple(table.sum(0).tolist())


@pytest.mark.parametrize(("device", "command"), [("x86", "size"), ("cortex-m7", "arm-none-eabi-size")])
def test_sizes_are_those_of_binutils(device, command, tmp_path):
    if shutil.which(command) is None:
        pytest.skip(f"no {command}")
    built = building.build(small_code(), PER_ISA[device], tmp_path / "library")
    tools = toolchain.find(PER_ISA[device])
    shutil.copytree(built.folder / "src", tmp_path / "src")
    objects = [built.folder / "lib" / "model_kernels.o"]
    for name in ("model", "model_weights"):
        objects.append(tmp_path / "src" / f"{name}.o")
        tools.compile(tmp_path / "src" / f"{name}.c", objects[-1])
    ours = sizes.of(path.read_bytes() for path in objects)
    text, data, bss = measured(command, objects)
    assert (ours.code + ours.read_only, ours.data, ours.zero) == (text, data, bss)
    assert built.flash_bytes == ours.flash
    assert built.weight_bytes == len(c_driver.blob(small_code().constants, 64 if device == "x86" else 16).content)


@pytest.mark.parametrize("device", PER_ISA)
def test_object_and_listing_are_what_each_is_by_itself(device):
    kernels = c_driver.kernels(small_code())
    both = compiling.object_and_assembly(kernels, PER_ISA[device])
    assert both == (compiling.object_file(kernels, PER_ISA[device]), compiling.assembly(kernels, PER_ISA[device]))


@pytest.mark.parametrize("device", PER_ISA)
def test_objects_hold_the_same_code_without_what_nobody_needs(device, tmp_path):
    code = c_driver.renamed(small_code(), "model")
    whole = compiling.object_file(c_driver.kernels(code), PER_ISA[device])
    made = stripping.stripped(whole)
    before, after = elf.read(whole), elf.read(made)
    names = [section.name for section in after.sections]
    assert stripping.UNUSED in [section.name for section in before.sections]
    assert not any(name.startswith((".debug", ".rela.debug", ".rel.debug", stripping.UNUSED)) for name in names)
    for section in before.sections:
        if section.loaded and not section.name.endswith(stripping.UNUSED):
            assert after.bytes_of(section.name) == before.bytes_of(section.name)
    kernels = [f"model_kernel{i}_{word}" for i, word in ((1, "weighted"), (2, "doubled"), (3, "summed"))]
    assert sorted(name for name in after.symbols() if name.startswith("model")) == kernels
    assert stripping.stripped(made) == made
    if shutil.which("readelf"):
        (tmp_path / "o.o").write_bytes(made)
        said = subprocess.run(["readelf", "-aW", str(tmp_path / "o.o")], capture_output=True, text=True)
        assert (said.returncode, said.stderr) == (0, "")


def test_nothing_in_the_library_is_writable(tmp_path):
    built = building.build(small_code(), isa.CORTEX_M7, tmp_path)
    shutil.copytree(built.folder / "src", tmp_path / "work")
    tools = toolchain.find(isa.CORTEX_M7)
    contents = [(built.folder / "lib" / "model_kernels.o").read_bytes()]
    for name in ("model", "model_weights"):
        tools.compile(tmp_path / "work" / f"{name}.c", tmp_path / "o.o")
        contents.append((tmp_path / "o.o").read_bytes())
    found = sizes.of(contents)
    assert (found.data, found.zero) == (0, 0)
    assert found.read_only >= built.weight_bytes


@pytest.mark.parametrize(
    ("listing", "stack"),
    [
        ("kernel:\n\tpushq\t%rbp\n\tpushq\t%rbx\n\tsubq\t$4008, %rsp\n", 4024),
        ("a:\n\tsub\tsp, sp, #64\nb:\n\tsub\tsp, sp, #32\n", 64),
        ("a:\n\tstp\tx29, x30, [sp, #-96]!\n\tsub\tsp, sp, #1, lsl #12\n\tsub\tsp, sp, #16\n", 4208),
        ("a:\n\tpush.w\t{r4, r5, r6-r8, lr}\n\tvpush\t{d8, d9}\n\tsub.w\tsp, sp, #1040\n", 24 + 16 + 1040),
        ("a:\n\taddi\tsp, sp, -2032\n\tlui\ta0, 2\n\taddi\ta0, a0, -16\n\tsub\tsp, sp, a0\n", 2032 + 8192 - 16),
        ("a:\n\tret\n", 0),
    ],
)
def test_the_stack_is_read_off_the_prologue(listing, stack):
    assert sizes.stack_bytes(listing) == stack


def test_without_a_compiler_the_objects_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "candidates", lambda isa: [])
    built = building.build(small_code(), isa.CORTEX_M7, tmp_path, golden=golden())
    assert built.linked is None
    assert built.compiler is None
    for word in ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "pip install ziglang", "'embedded'"):
        assert word in str(built.reason)
    assert {"src/model.h", "src/model.c", "src/model_weights.c", "lib/model_kernels.o"} <= set(built.files)
    assert built.flash_bytes > built.weight_bytes + built.code_bytes > built.weight_bytes
    assert building.load(tmp_path) == built


def test_a_compiler_that_fails_says_why(tmp_path):
    tools = toolchain.find(isa.CORTEX_M7)
    (tmp_path / "x.c").write_text("int f(void) { return undeclared; }\n")
    with pytest.raises(BadInput, match=r"failed for thumbv7em-none-eabi: .*undeclared"):
        tools.compile(tmp_path / "x.c", tmp_path / "x.o")


def test_a_triple_that_no_compiler_is_known_for(tmp_path):
    other = isa.Isa("riscv", "sparc-sun-solaris", "v9", (), "none", True)
    with pytest.raises(BadInput, match="no compiler is known for sparc-sun-solaris"):
        toolchain.find(other)


@HOST
@pytest.mark.parametrize("kind", ["gcc", pytest.param("zig", marks=pytest.mark.slow)])
def test_large_constants_come_as_a_binary_file(kind, tmp_path, monkeypatch):
    more = [np.random.default_rng(3).integers(-128, 128, c_driver.LARGE + 5).astype(np.int8)]
    chosen = [c for c in toolchain.candidates(isa.X86_AVX2) if c.kind == kind]
    if not chosen:
        pytest.skip(f"no {kind}")
    monkeypatch.setattr(toolchain, "candidates", lambda isa: chosen)
    built = building.build(small_code(more=more), isa.X86_AVX2, tmp_path, golden=golden())
    assert "src/model_weights.c" not in built.files
    assert {"src/model_weights.S", "src/model_weights.bin", "src/model_weights_embed.c"} <= set(built.files)
    assert (tmp_path / "src/model_weights.bin").stat().st_size == built.weight_bytes > c_driver.LARGE
    x = images(2)
    with loader.Library(built.linked_path) as library:
        assert library.run(x).tolist() == expected(library.interface.inputs[0].to_library(x)).tolist()
    cmake(tmp_path, tmp_path / "build")


def test_constants_may_be_embedded_by_the_c_compiler(tmp_path):
    chosen = [c for c in toolchain.candidates(isa.CORTEX_M7) if c.kind == "zig"]
    if not chosen:
        pytest.skip("no compiler with #embed: pip install ziglang")
    more = [np.arange(c_driver.LARGE // 8 + 1, dtype=np.int64)]
    built = building.build(small_code(more=more), isa.CORTEX_M7, tmp_path)
    chosen[0].compile(tmp_path / "src" / "model_weights_embed.c", tmp_path / "o.o", ("-std=c2x", "-Wno-pedantic"))
    found = elf.read((tmp_path / "o.o").read_bytes())
    assert (tmp_path / "src" / "model_weights.bin").read_bytes() in found.content
    assert "model_weights" in found.symbols()
    assert sizes.of([found.content]).read_only == built.weight_bytes


def cmake(source: Path, build: Path, *options: str) -> str:
    """Configure, build and test a library with CMake; what its tests said."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake: apt install cmake")
    for command in (["cmake", "-S", str(source), "-B", str(build), *options], ["cmake", "--build", str(build)]):
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    ran = subprocess.run(["ctest", "--test-dir", str(build), "-V"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@HOST
def test_cmake_builds_and_runs_the_golden_inputs(tmp_path):
    building.build(small_code(), isa.X86_AVX2, tmp_path / "library", name="tiny", golden=golden())
    assert "ok: max difference 0 on 3 inputs" in cmake(tmp_path / "library", tmp_path / "build")


@HOST
@pytest.mark.parametrize(
    ("off", "tolerance", "factor", "status"),
    [(0.0, 0.0, 1, "ok"), (0.5, 0.0, 1, "error"), (0.5, 0.01, 1, "ok"), (0.0, 1.0, np.nan, "error")],
)
def test_the_golden_program_sees_a_difference(off, tolerance, factor, status, tmp_path):
    code = small_code()
    code = dataclasses.replace(code, constants=(code.constants[0], code.constants[1] * np.float32(factor)))
    built = building.build(code, isa.X86_AVX2, tmp_path, golden=golden(2, off, tolerance))
    tools = toolchain.find(isa.X86_AVX2).for_programs()
    objects = []
    shutil.copytree(tmp_path / "src", tmp_path / "work")
    shutil.copyfile(tmp_path / "golden" / "main.c", tmp_path / "work" / "main.c")
    for name in ("model", "model_weights", "main"):
        objects.append(tmp_path / f"{name}.o")
        tools.compile(tmp_path / "work" / f"{name}.c", objects[-1])
    tools.executable([*objects, built.folder / "lib" / "model_kernels.o"], tmp_path / "program")
    ran = subprocess.run([tmp_path / "program"], capture_output=True, text=True)
    assert ran.stdout.startswith(f"{status}: max difference")
    assert ran.returncode == (0 if status == "ok" else 1)


def test_the_arduino_layout(tmp_path):
    """As the Arduino library specification wants it (version 2.x)."""
    built = building.build(small_code(), isa.CORTEX_M4, tmp_path, name="tiny", golden=golden())
    text = (tmp_path / "library.properties").read_text()
    parser = configparser.ConfigParser()
    parser.read_string("[library]\n" + text)
    properties = parser["library"]
    for key in ("name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"):
        assert key in properties
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"])
    assert properties["precompiled"] == "true"
    assert (tmp_path / "src" / properties["includes"]).is_file()
    library = tmp_path / "src" / "cortex-m4" / f"lib{properties['ldflags'].removeprefix('-l')}.a"
    assert library.is_file()
    assert {"examples/golden/golden.ino", "src/tiny.c", "src/tiny_weights.c"} <= set(built.files)
    mains = [path for path in (tmp_path / "src").rglob("*.c") if "int main" in path.read_text()]
    assert mains == [], "Arduino compiles all of src/ into every sketch"


def test_the_zephyr_layout(tmp_path):
    built = building.build(small_code(), isa.CORTEX_M33, tmp_path, name="tiny", golden=golden())
    module = (tmp_path / "zephyr" / "module.yml").read_text()
    assert module == "name: tiny\nbuild:\n  cmake: zephyr\n  kconfig: zephyr/Kconfig\n"
    option = re.search(r"^config (\w+)$", (tmp_path / "zephyr" / "Kconfig").read_text(), re.MULTILINE)
    assert option is not None
    lists = (tmp_path / "zephyr" / "CMakeLists.txt").read_text()
    assert f"if(CONFIG_{option[1]})" in lists
    assert f"CONFIG_{option[1]}=y" in (tmp_path / "zephyr" / "golden" / "prj.conf").read_text().splitlines()
    for path in re.findall(r"\.\./(?:src|golden)/[\w./-]+", lists):
        assert (tmp_path / "zephyr" / path).resolve().is_file(), path
    sample = (tmp_path / "zephyr" / "golden" / "CMakeLists.txt").read_text()
    for path in re.findall(r"(?:\.\./)+golden/\w+\.c", sample):
        assert (tmp_path / "zephyr" / "golden" / path).resolve().is_file(), path
    assert "zephyr/module.yml" in built.files


def test_scalar_kernels_come_in_c_too(tmp_path):
    """Compiled for this machine, they compute the same."""
    if not toolchain.native(isa.X86_AVX2):
        pytest.skip("this machine isn't x86")
    built = building.build(small_code(), isa.RV32_BARE, tmp_path, golden=golden())
    assert "lib/model_kernels.c" in built.files
    shutil.copytree(tmp_path / "src", tmp_path / "work")
    shutil.copyfile(tmp_path / "golden" / "main.c", tmp_path / "work" / "main.c")
    shutil.copyfile(tmp_path / "lib" / "model_kernels.c", tmp_path / "work" / "kernels.c")
    tools, objects = toolchain.find(isa.X86_AVX2).for_programs(), []
    for name in ("model", "model_weights", "main", "kernels"):
        objects.append(tmp_path / "work" / f"{name}.o")
        tools.compile(
            tmp_path / "work" / f"{name}.c", objects[-1], ("-Wall", "-Wextra", "-Werror", "-pedantic", "-fwrapv")
        )
    tools.executable(objects, tmp_path / "program")
    ran = subprocess.run([tmp_path / "program"], capture_output=True, text=True)
    assert ran.stdout == "ok: max difference 0 on 3 inputs\n"


@pytest.mark.parametrize("command", ["ar", "arm-none-eabi-ar"])
def test_archives_are_those_of_ar(command, tmp_path):
    if shutil.which(command) is None:
        pytest.skip(f"no {command}")
    device = isa.X86_AVX2 if command == "ar" else isa.CORTEX_M7
    built = building.build(small_code(), device, tmp_path / "library")
    kernels = (built.folder / "lib" / "model_kernels.o").read_bytes()
    (tmp_path / "ours.a").write_bytes(elf.archive([("kernels.o", kernels), ("again.o", kernels + b"\0")]))
    for name, content in (("kernels.o", kernels), ("again.o", kernels + b"\0")):
        (tmp_path / name).write_bytes(content)
    subprocess.run([command, "rcsD", "theirs.a", "kernels.o", "again.o"], cwd=tmp_path, check=True)
    assert (tmp_path / "ours.a").read_bytes() == (tmp_path / "theirs.a").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"arena_bytes": ', '"arena_bytes": "x', 1),
        lambda text: text.replace("src/model.c", "../../etc/passwd", 1),
        lambda text: text.replace('"name": "model"', '"name": "../x"', 1),
        lambda text: text.replace("{", '{"folder": "/", ', 1),
        lambda text: "[" * 100000,
    ],
)
def test_a_damaged_description_is_refused(change, tmp_path):
    building.build(small_code(), isa.CORTEX_M7, tmp_path)
    path = tmp_path / building.DESCRIPTION
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckFailed, match=r"library\.json can't be used"):
        building.load(tmp_path)


def test_a_library_that_was_never_built():
    with pytest.raises(CheckFailed, match=r"library\.json"):
        building.load(Path("nowhere"))


def test_the_header_names_ends_as_the_file_does(tmp_path):
    """The output lies behind a rearrangement and a change of shape; two outputs make identifiers of their names."""
    net = Net(1, 3, 6, 5)
    y = net.quantized(net.conv(net.quantized("x"), 4, 3, 3, 3), 0.05)
    net.nodes.append(onnx.helper.make_node("Flatten", [y], ["class/scores:0"]))
    (tmp_path / "one.onnx").write_bytes(net.file("class/scores:0"))
    (tmp_path / "two.onnx").write_bytes(net.file("class/scores:0", y))
    one = compile_file(tmp_path / "one.onnx", isa.CORTEX_M7, tmp_path / "one").library
    (given,), (result,) = one.interface.inputs, one.interface.outputs
    assert (given.name, given.identifier) == ("x", "input")
    assert (result.name, result.identifier) == ("class/scores:0", "output")
    header = (tmp_path / "one" / "src" / "model.h").read_text()
    assert '/* Input "x": int8, 6 x 5 x 3 ' in header
    assert '/* Output "class/scores:0": float32, 48. */' in header
    two = compile_file(tmp_path / "two.onnx", isa.CORTEX_M7, tmp_path / "two").library
    assert [end.identifier for end in two.interface.outputs] == ["output_class_scores_0", f"output_{y}"]
