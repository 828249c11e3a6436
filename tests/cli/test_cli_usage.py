"""What is typed wrongly: exit 2, one line that names the nearest right thing, nothing on standard output."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import Call

JOB = ("--model", "resnet", "--target", "cpu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--modle", "resnet"], "no such option '--modle'; nearest: --model"),
        (["--target"], "--target needs a value: --target TARGET"),
        (["--latency"], "--latency needs a value: --latency 5ms"),
        (["targets", "--jsno"], "no such option '--jsno'; nearest: --json"),
        (["verfy", "b"], "no such command 'verfy'; nearest: verify"),
        (["resnet"], "no such command 'resnet'"),
        (["verify"], "missing BUNDLE; usage: compress verify [OPTIONS] BUNDLE"),
        (["report"], "missing RUN; usage: compress report [OPTIONS] RUN"),
        (["targets", "a", "b"], "unexpected extra argument"),
        (["--macs", "0.5", "targets"], "--macs belongs to the main job, it doesn't go with the command targets"),
        (["--epochs", "0", "models"], "--epochs belongs to the main job"),
        (["--target", "cpu"], "--model is missing"),
        (["--model", "resnet"], "--target is missing"),
        (["--resume"], "--resume doesn't say which run; add --out DIR, or --model and --target"),
        ([*JOB, "--resume"], "no unfinished run of resnet for cpu"),
        (["--resume", "--out", "nowhere"], "run.json"),
        (["profile", "b", "--device", "ssh://x"], "there is no such folder"),
        (["profile", "b", "--device", "telnet://x"], "give local, qemu, ssh://"),
        (["profile", "b", "--queue", "q"], "--queue is for devices"),
        (["profile", "--queue", "nowhere"], "it can't be read"),
        (["doctor", "--onnx", "nowhere", "--target", "jetson"], "there is no such file"),
        (["doctor", "--onnx", "nowhere", "--target", "cpu"], "only TensorRT's rules are known"),
        (["verify", "nowhere"], "there is no such folder"),
        (["profile", "nowhere"], "there is no such folder"),
        (["report", "nowhere"], "run.json"),
        (["targets", "jetsn"], "unknown target 'jetsn'; nearest: jetson"),
    ],
)
def test_wrong_arguments_are_named_with_the_nearest_right_ones(
    inside: Call, tmp_path: Path, arguments: list[str], says: str
) -> None:
    ended = inside(*arguments)
    assert ended.status == 2
    assert says in ended.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        (
            "--latency",
            "5 parsecs",
            "--latency '5 parsecs': unknown unit 'parsecs'; give a number with one of s, ms, us, ns",
        ),
        ("--latency", "5", "it has no unit; give a number with one of s, ms, us, ns, such as 5ms"),
        ("--latency", "fast", "not a quantity"),
        ("--latency", "-1ms", "it must be above 0"),
        ("--latency", "0s", "it must be above 0"),
        ("--latency", "1e999s", "it must be above 0"),
        ("--ram", "256", "it has no unit; give a number with one of B, KiB, MiB, GiB, KB, MB, GB, such as 256KiB"),
        ("--flash", "3 acres", "unknown unit 'acres'"),
        ("--flash", "0.2B", "it must be above 0"),
        ("--seed", "x", "--seed 'x': not a whole number"),
        ("--seed", "-1", "it must be 0 or more"),
        ("--epochs", "1.5", "not a whole number"),
        ("--macs", "half", "--macs 'half': not a number"),
        ("--max-drop", "nan", "--max-drop 'nan': not a number"),
        ("--mean", "a,b,c", "--mean 'a,b,c': not numbers"),
        ("--macs", "1.5", "a fraction kept lies in (0, 1]"),
        ("--params", "0", "a fraction kept lies in (0, 1]"),
        ("--weight-bits", "64", "bits lie between 1 and 32"),
        ("--activation-bits", "0", "bits lie between 1 and 32"),
        ("--activation-bits", "4", "no integer kernels with 4-bit activations; it has 8"),
        ("--bit-operations", "0", "--bit-operations must be above 0"),
        ("--bit-operations", "1.5", "not a whole number"),
        ("--max-drop", "-1", "0 or more"),
        ("--candidates", "0", "it must be at least 1"),
        ("--samples", "0", "it must be at least 1"),
        ("--prune", "nrom", "unknown pruning method 'nrom'; nearest: norm"),
        ("--quantize", "unifrom", "unknown quantization method 'unifrom'; nearest: uniform"),
        ("--protect-classes", "3,,7", "--protect-classes '3,,7': a name is missing; give names such as 3,7"),
        ("--protect-classes", "3,77", "--protect-classes: there is no class 77; digits has classes 0 to 9"),
        ("--protect-classes", "three", "unknown class 'three'; there are: 0, 1, 2"),
        ("--runtime", "tvn", "unknown runtime 'tvn'; nearest: tvm"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(
    inside: Call, tmp_path: Path, option: str, value: str, says: str
) -> None:
    ended = inside(*JOB, "-q", option, value)
    assert ended.status == 2
    assert says in ended.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("5ms", 5e-3), ("1.5 s", 1.5), ("250us", 250e-6), ("250 µs", 250e-6), ("3e2NS", 3e-7)]
)
def test_latencies_are_read_in_seconds(text: str, seconds: float) -> None:
    from compress.cli.values import LATENCY

    assert LATENCY.convert(text, None, None) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "count"),
    [("256KiB", 262144), ("1 MiB", 1048576), ("1kb", 1000), ("2GB", 2 * 10**9), ("7B", 7), (".5KiB", 512)],
)
def test_sizes_are_read_in_bytes(text: str, count: int) -> None:
    from compress.cli.values import SIZE

    assert SIZE.convert(text, None, None) == count


def test_a_bug_is_one_line_without_v_and_a_traceback_with_it(inside: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a\nbug")

    monkeypatch.setattr("compress.cli.lists.devices.names", broken)
    short, long = inside("targets"), inside("targets", "-v")
    assert (short.status, long.status) == (1, 1)
    assert short.error == "internal: ZeroDivisionError: a bug; please report this: run again with -v for the traceback"
    assert long.err.startswith(
        "error: internal: ZeroDivisionError: a bug; please report this with the traceback below\n"
    )
    assert "Traceback (most recent call last)" in long.err
    assert "in broken" in long.err
