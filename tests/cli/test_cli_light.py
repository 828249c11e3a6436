"""Help and lists need neither torch nor a runtime; what is printed has no control codes in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import Call, command, environment

HEAVY = ("torch", "tvm", "onnxruntime", "onnx", "numpy", "matplotlib", "sklearn", "scipy", "PIL", "brevitas")


def loaded(*arguments: str) -> set[str]:
    """The top packages that a call of the command leaves in ``sys.modules``."""
    program = (
        "import atexit, sys\n"
        f"sys.argv = ['compress', *{list(arguments)!r}]\n"
        "names = lambda: {name.partition('.')[0] for name in sys.modules}\n"
        "atexit.register(lambda: sys.stderr.write('\\n' + ' '.join(names())))\n"
        "from compress.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), (), ("verify", "--help"), ("--version",), ("--modle", "x")])
def test_help_and_usage_errors_load_nothing_heavy_and_no_rich(arguments: tuple[str, ...]) -> None:
    assert loaded(*arguments).isdisjoint({*HEAVY, "rich"})


@pytest.mark.parametrize(
    "arguments", [("targets",), ("targets", "jetson"), ("--model", "resnet", "--target", "nosuch")]
)
def test_lists_of_targets_and_unknown_targets_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded(*arguments).isdisjoint(HEAVY)


def test_importing_compress_loads_nothing_heavy() -> None:
    program = "import sys, compress; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert {name.partition(".")[0] for name in done.stdout.split()}.isdisjoint({*HEAVY, "rich", "click"})


def test_help_names_every_option_of_the_main_job_and_every_command(compress: Call) -> None:
    ended = compress("--help")
    options = (
        "--model --target --data --weights --out --seed --max-drop --latency --ram --flash --macs --params "
        "--weight-bits --activation-bits --prune --quantize --epochs --samples --candidates --runtime --mean --std "
        "--protect-classes --resume --json -q -v --version targets models doctor verify profile explain report"
    )
    assert ended.status == 0
    assert ended.err == ""
    assert [word for word in options.split() if word not in ended.out.replace(",", " ").split()] == []
    assert compress().out == ended.out


def test_version_is_the_packages(compress: Call) -> None:
    from compress import __version__

    assert compress("--version").out == f"compress {__version__}\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command("targets"), stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=60)
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_a_terminal_that_knows_ascii_only_gets_ascii_only(compress: Call) -> None:
    ended = compress("targets", "jetson", PYTHONIOENCODING="ascii")
    assert ended.status == 0
    assert ended.out.isascii()
    assert "±" not in ended.out
    assert "+/-100%" in ended.out


def test_output_in_a_pipe_has_no_control_codes(compress: Call, tmp_path: Path) -> None:
    for arguments in (["targets"], ["targets", "cpu"], ["models"], ["--help"]):
        assert "\x1b" not in compress(*arguments).out
    assert list(tmp_path.iterdir()) == []
