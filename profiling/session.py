"""ONNX Runtime sessions on this machine's processor, and what is known of that machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import BadInput

Array = npt.NDArray[Any]
SPIN_S = 0.002
"""How long a session's threads wait for its next run; less than what a timer lets pass between two sessions."""
SPIN_IS_SET_FROM = (1, 26)
"""The first version of ONNX Runtime in which that can be set."""


def threads() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_data() -> Path:
    """Where what was measured on devices is kept: ``$XDG_DATA_HOME/compress``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "compress"


def thread_condition() -> int | str:
    """What to say of the threads of :func:`open_session`'s sessions beside a latency."""
    return f"the runtime's default on {threads()} processors" if _whole_machine() else threads()


def conditions() -> dict[str, Any]:
    """What a latency of :func:`open_session`'s sessions, one input at a time, was measured under."""
    return {"threads": thread_condition(), "batch": 1, "runtime": f"onnxruntime {metadata.version('onnxruntime')}"}


def _whole_machine() -> bool:
    return threads() == os.cpu_count()


def _soon_asleep(options: Any) -> None:
    """Lets a session's threads wait for its next run no longer than :data:`SPIN_S`.

    They wait by spinning, by default for some 50 ms on a quick core and a second on a slow one, and whatever runs
    meanwhile has as many cores fewer: networks that are timed in turns come out up to twice as slow as each is alone.
    Between the runs of one turn they still spin, so that its times are those of a network that runs on and on.
    """
    import onnxruntime

    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= SPIN_IS_SET_FROM:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(round(1e6 * SPIN_S)))
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")


def machine() -> str:
    """This machine in words: processor and how many cores of it are ours."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = found[0] if found else name
    return f"{name}, {threads()} cores, {platform.system()}"


def open_session(
    path: Path, intra_op_threads: int | None = None, profile: Path | None = None, *, exact: bool = False
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the processor.

    Args:
        path: the ONNX file.
        intra_op_threads: how many threads; None for every processor that this process may use. Where
            that is the whole machine, the number is left to the runtime, which then also pins its
            threads: with a number given it doesn't, and single runs take several times the median.
        profile: a folder where the runtime writes its own times, node by node; None for no such times.
        exact: for outputs, and not for times, of a file that is for another processor: what the file says, also where
            this machine's fast kernels would let sums saturate (x86 without VNNI).

    Raises:
        BadInput: the file is no ONNX file that this runtime can run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads or (0 if _whole_machine() else threads())
    options.inter_op_num_threads = 1
    _soon_asleep(options)
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile / "nodes")
    try:
        file = _exact(path) if exact else str(path)
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        lines = str(error).splitlines() or [type(error).__name__]
        raise BadInput(f"{path.name}: ONNX Runtime can't load it: {lines[0][:200]}; make it again") from error


def _exact(path: Path) -> str | bytes:
    """The file, or the same numbers in a form that this machine's kernels are exact on."""
    from compress.export.kernels import backends
    from compress.export.onnx import stored

    host = backends.host()
    return stored(path.read_bytes(), "unsigned") if host is not None and host.dot == "avx2" else str(path)


def runner(session: Any) -> Callable[[Array], Array]:
    """A function from one input array to the first output."""
    name = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        result: Array = session.run(None, {name: x})[0]
        return result

    return run


def batch_limit(session: Any) -> int | None:
    """The batch size that the file fixes, None if it takes any."""
    size = session.get_inputs()[0].shape[0]
    return size if isinstance(size, int) else None


def as_input(x: Any) -> Array:
    """A contiguous float32 array of a tensor or array."""
    return np.ascontiguousarray(np.asarray(x, dtype=np.float32))
