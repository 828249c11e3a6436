"""The layers: every module imports downwards only, and there is no cycle. Reads the imports; imports nothing."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROWS: tuple[tuple[str, ...], ...] = (
    (
        "compress.errors",
        "compress.serial",
        "compress.calibration",
        "compress.types",
        "compress.metric",
        "compress.explanation",
        "compress.figures",
        "compress.results",
        "compress.watch",
        "compress.runfolder",
        "compress.cache",
        "compress.making_options",
        "compress.allocator",
        "compress",
    ),
    (
        "compress.graph",
        "compress.integer",
        "compress.profiling.fusion",
        "compress.profiling.layouts",
        "compress.profiling.features",
        "compress.profiling.memory",
        "compress.profiling.latency",
        "compress.profiling.roofline",
        "compress.targets",
        "compress.usercode",
        "compress.checkpoints",
        "compress.quality",
        "compress.data",
        "compress.lending",
        "compress.lessons",
        "compress.training",
        "compress.quantize.pattern_constraints",
        "compress.quantize.binary",
        "compress.quantize.detector",
        "compress.quantize.sensing_geometry",
        "compress.quantize.sensing_patterns",
        "compress.quantize.sensing",
        "compress.quantize.sensing_search",
        "compress.quantize.sensing_start",
        "compress.quantize.sensed",
        "compress.networks",
        "compress.zoo",
        "compress.models",
    ),
    ("compress.prune", "compress.quantize", "compress.attaching"),
    ("compress.export",),
    ("compress.profiling",),
    ("compress.pipeline", "compress.search", "compress.surrogate"),
    (
        "compress.report",
        "compress.finished",
        "compress.job",
        "compress.explaining",
        "compress.preflight",
        "compress.optics",
        "compress.forecast",
        "compress.eight_bits",
        "compress.building",
        "compress.identity",
        "compress.kept_networks",
        "compress.work",
        "compress.workers",
        "compress.making",
        "compress.front_search",
        "compress.execution",
        "compress.api",
        "compress.cli",
        "compress.__main__",
    ),
)
"""Lowest row first; within a row a module imports from what stands left of it."""

NOT = {
    ("compress.prune", "compress.quantize"),
    ("compress.quantize", "compress.prune"),
    ("compress.quantize", "compress.profiling"),
}
"""Imports that the order alone would allow or that matter most."""


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "compress").rglob("*.py"):
        if "templates" not in path.parts:
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for folder in ("prune", "quantize", "export", "targets", "profiling"):
        for path in (ROOT / folder).rglob("*.py"):
            if "templates" not in path.parts:
                parts = ("compress", *path.relative_to(ROOT).with_suffix("").parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import")
    return {name for name in found if name.split(".")[0] == "compress"}


def place(module: str) -> tuple[int, int, str]:
    """Row, position in it, and the entry of the longest prefix."""
    entries = [(len(entry), row, i, entry) for row, names in enumerate(ROWS) for i, entry in enumerate(names)]
    fitting = [e for e in entries if module == e[3] or (module.startswith(e[3] + ".") and e[3] != "compress")]
    assert fitting, f"{module} stands in no layer"
    _, row, i, entry = max(fitting)
    return row, i, entry


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards_only(module):
    row, position, entry = place(module)
    for name in imports(MODULES[module]):
        if name == "compress":
            continue  # its lazy names and version
        other_row, other_position, other = place(name)
        allowed = other == entry or other_row < row or (other_row == row and other_position < position)
        assert allowed, f"{module} imports {name}, which stands above it"
        assert (entry, other) not in NOT, f"{module} imports {name}"


def test_there_is_no_cycle():
    graph = {name: {n for n in imports(path) if n in MODULES and n != name} for name, path in MODULES.items()}
    # A package that hands out its own modules' names is imported with them: that isn't a cycle of ours.
    graph = {name: {n for n in targets if not name.startswith(n + ".")} for name, targets in graph.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"cycle: {' -> '.join((*way, name))}"
        if name not in done:
            for following in sorted(graph[name]):
                visit(following, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_import_compress_loads_no_heavy_package():
    heavy = ("torch", "tvm", "onnx", "onnxruntime", "matplotlib", "sklearn", "numpy")
    code = f"import sys, compress; compress.Budget; print(sorted(set({heavy}) & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_no_branch_on_a_targets_name():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith(("target.name", "device.name")):
                raise AssertionError(f"{name}:{node.lineno} compares a target's name")
