"""``compress doctor``: what is installed, what is missing and what that leaves out, and whether it works."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import __version__
from compress.cli import screen
from compress.errors import CheckFailed
from compress.serial import to_json

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Package:
    """A package that the toolkit uses.

    Attributes:
        name: as pip knows it.
        module: as Python imports it.
        purpose: what can't be done without it.
        extra: the extra that brings it; None for a required one.
    """

    name: str
    module: str
    purpose: str
    extra: str | None = None


PACKAGES = (
    Package("torch", "torch", "everything"),
    Package("numpy", "numpy", "everything"),
    Package("onnx", "onnx", "writing the interchange file"),
    Package("onnx-ir", "onnx_ir", "writing the interchange file"),
    Package("onnxscript", "onnxscript", "writing the interchange file"),
    Package("onnxruntime", "onnxruntime", "running and timing the files"),
    Package("apache-tvm", "tvm", "compiling with TVM"),
    Package("apache-tvm-ffi", "tvm_ffi", "compiling with TVM"),
    Package("brevitas", "brevitas", "quantization-aware fine-tuning"),
    Package("scipy", "scipy", "numerical methods"),
    Package("scikit-learn", "sklearn", "the digits"),
    Package("safetensors", "safetensors", "the weights of resnet"),
    Package("pillow", "PIL", "reading images"),
    Package("click", "click", "the command line"),
    Package("rich", "rich", "tables and progress"),
    Package("jinja2", "jinja2", "the report"),
    Package("matplotlib", "matplotlib", "the plot"),
    Package("loky", "loky", "--processes"),
    Package("cloudpickle", "cloudpickle", "--processes and --workers"),
    Package("tensorrt", "tensorrt", "TensorRT engines for NVIDIA GPUs", "tensorrt"),
    Package("timm", "timm", "--model timm:NAME", "zoo"),
    Package("torchvision", "torchvision", "--model torchvision:NAME, and downloads of mnist and cifar10", "zoo"),
    Package("transformers", "transformers", "--model hf:NAME", "zoo"),
    Package("ziglang", "ziglang", "cross-compiling for embedded devices", "embedded"),
    Package("distributed", "distributed", "--workers", "cluster"),
    Package("pytest", "pytest", "the project's own tests", "test"),
    Package("pytest-xdist", "xdist", "the project's own tests, on all cores", "test"),
    Package("jsonschema", "jsonschema", "the project's own tests", "test"),
    Package("mypy", "mypy", "the project's own checks", "test"),
    Package("ruff", "ruff", "the project's own checks", "test"),
    Package("ziglang", "ziglang", "the project's own tests, cross-compiling", "test"),
    Package("tornado", "tornado", "the tests of TVM's RPC tracker", "test"),
    Package("psutil", "psutil", "the tests of TVM's RPC tracker", "test"),
    Package("filelock", "filelock", "the project's own tests", "test"),
)


@dataclass(frozen=True, slots=True)
class Installed:
    """What was found of a package. ``problem`` is None where all is well; ``fix`` is what to type then."""

    name: str
    extra: str | None
    version: str | None
    purpose: str
    problem: str | None
    fix: str | None


def run(as_json: bool) -> int:
    """Look at everything and print it.

    Raises:
        CheckFailed: something that is required is missing or broken.
    """
    packages = tuple(map(_look, PACKAGES))
    machine = _guarded(_machine)
    data = _guarded(_data)
    check = _guarded(_self_check)
    failures = [f"{p.name}: {p.problem}: {p.fix}" for p in packages if p.problem and p.extra is None]
    failures += [f"{what}: {found['problem']}" for what, found in (("self-check", check),) if found.get("problem")]
    document = {
        "ok": not failures,
        "compress": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": to_json(packages),
        "machine": machine,
        "data": data,
        "self_check": check,
    }
    if as_json:
        screen.emit(document)
    else:
        _print(packages, document)
    if failures:
        raise CheckFailed("doctor", failures)
    return 0


def _look(package: Package) -> Installed:
    """Import a required package; of an optional one the version is enough, as importing some takes seconds."""
    version, problem = None, None
    try:
        version = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        problem = "missing"
    if version is not None and package.extra is None:
        problem = _import_problem(package.module)
    fix = f"pip install {package.name}" if problem is not None else None
    return Installed(package.name, package.extra, version, package.purpose, problem, fix)


def _import_problem(module: str) -> str | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        return f"can't be imported ({' '.join(f'{type(error).__name__}: {error}'.split())[:160]})"
    return None


def _guarded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``look`` finds, or under ``"problem"`` why it couldn't: a broken package must not end the check-up."""
    try:
        return look()
    except Exception as error:
        return {"problem": " ".join(f"{type(error).__name__}: {error}".split())[:200]}


def _machine() -> dict[str, Any]:
    import torch

    from compress.profiling import session

    cuda = torch.cuda.is_available()
    return {
        "processor": session.machine(),
        "threads": session.threads(),
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "cuda_means": "fine-tuning runs on it" if cuda else "fine-tuning runs on the processor",
    }


def _data() -> dict[str, Any]:
    from compress.data import files

    found: dict[str, Any] = {"COMPRESS_DATA_DIR": os.environ.get("COMPRESS_DATA_DIR"), "digits": "scikit-learn"}
    for name, find in (("mnist", files.find_mnist), ("cifar10", files.find_cifar10)):
        homes = files.homes(name, None)
        place = next((place for home in homes if (place := find(home)) is not None), None)
        found[name] = str(place) if place is not None else None
        found[f"{name}_sought_in"] = [str(home) for home in homes]
    return found


def _self_check() -> dict[str, Any]:
    from compress.profiling.selfcheck import self_check

    check = self_check()
    found: dict[str, Any] = {"steps": check.steps, "allowed": check.allowed}
    if not check.ok:
        found["problem"] = f"ONNX Runtime and the simulation differ by {check.steps:.1f} rounding steps"
    return found


def _print(packages: tuple[Installed, ...], document: dict[str, Any]) -> None:
    from compress.report.terminal import rows_table

    required = [
        (p.name, p.version or "missing", "ok" if p.problem is None else f"{p.problem}: {p.fix}")
        for p in packages
        if not p.extra
    ]
    optional = [
        (p.name, p.version or "missing", "ok" if p.problem is None else f"leaves out {p.purpose}: {p.fix}")
        for p in packages
        if p.extra
    ]
    blocks: list[RenderableType] = [
        rows_table(["", "", ""], required, title="Required"),
        rows_table(["", "", ""], optional, title="Optional"),
        rows_table(["", ""], _machine_rows(document), title="This machine"),
        rows_table(["", ""], _data_rows(document["data"]), title="Data"),
        f"Self-check: {_self_check_text(document['self_check'])}",
    ]
    screen.show(*blocks)


def _machine_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("compress", __version__), ("Python", document["python"]), ("system", document["platform"])]
    machine = document["machine"]
    if "problem" in machine:
        return [*rows, ("processor", machine["problem"])]
    return [
        *rows,
        ("processor", machine["processor"]),
        ("threads", str(machine["threads"])),
        ("CUDA", f"{machine['cuda'] or 'none'}; {machine['cuda_means']}"),
    ]


def _data_rows(data: dict[str, Any]) -> list[tuple[str, str]]:
    if "problem" in data:
        return [("", data["problem"])]
    rows = [("COMPRESS_DATA_DIR", data["COMPRESS_DATA_DIR"] or "not set"), ("digits", "ships with scikit-learn")]
    for name in ("mnist", "cifar10"):
        looked = ", ".join(str(Path(home)) for home in data[f"{name}_sought_in"])
        rows.append((name, data[name] or f"not found in {looked}; give --data {name}:DIR"))
    return rows


def _self_check_text(check: dict[str, Any]) -> str:
    if "problem" in check:
        return str(check["problem"])
    return (
        f"ok, a quantized network gives in ONNX Runtime what its simulation gives "
        f"({check['steps']:.2f} rounding steps apart, {check['allowed']} allowed)"
    )
