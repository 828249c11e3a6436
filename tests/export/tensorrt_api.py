"""What build_engine.py touches of TensorRT, read from its source, and the real bindings over a stub of nine
functions."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

SCRIPT = resources.files("compress.export") / "templates" / "build_engine.py"
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "timings": "ITimingCache",
    "layer": "ILayer",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
"""The script's names for TensorRT's objects."""
STUBS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
RELEASES = (
    ("tensorrt-cu12-bindings", "10.3.0"),
    ("tensorrt-cu12-bindings", "10.16.1.11"),
    ("tensorrt-cu13-bindings", "11.4.0.106"),
)
DUMP = """
import json, sys
import tensorrt_bindings as trt
found = {}
for dotted in json.load(sys.stdin):
    value = trt
    for name in dotted.split("."):
        value = getattr(value, name, None)
    found[dotted] = value is not None
print(json.dumps({"version": trt.__version__, "found": found}))
"""


def touched() -> dict[str, bool]:
    """Every class, member and method that the script touches, dotted; whether it asks with hasattr first."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    asked = {
        (ast.unparse(node.args[0]).rpartition(".")[2], node.args[1].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr" and isinstance(node.args[1], ast.Constant)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        dotted = ast.unparse(node)
        head, _, rest = dotted.partition(".")
        head, rest = (rest.partition(".")[0], rest.partition(".")[2]) if head == "self" else (head, rest)
        if (head == "trt" and rest.isidentifier()) or (
            head == "trt" and all(p.isidentifier() for p in rest.split("."))
        ):
            found[rest] = False
        elif head in CLASSES and rest.isidentifier():
            found[f"{CLASSES[head]}.{rest}"] = (head, rest) in asked
    return found


def stub(folder: Path, major: int) -> Path:
    """Empty libraries under the three names that the bindings load."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in STUBS), encoding="utf-8")
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        target = folder / f"lib{library}.so.{major}"
        done = subprocess.run([*command, "-shared", "-fPIC", "-o", target, source], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip("there is no C compiler for the stub libraries")
    return folder


def installed(package: str, version: str, folder: Path) -> Path:
    """The bindings alone, in a folder of their own."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(folder),
        f"{package}=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(
            f"pip can't install {package} {version} here: {(done.stderr.strip().splitlines() or ['?'])[-1][:120]}"
        )
    return folder


def asked_of(package: str, version: str, folder: Path, names: list[str]) -> dict:
    """Which of the dotted names a release of the bindings has."""
    (folder / "stub").mkdir()
    major = int(version.split(".")[0])
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed(package, version, folder / "bindings")),
        "LD_LIBRARY_PATH": str(stub(folder / "stub", major)),
    }
    done = subprocess.run(
        [sys.executable, "-c", DUMP], input=json.dumps(names), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
