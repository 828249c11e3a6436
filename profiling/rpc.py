"""A bundle on a board of a pool that TVM's RPC tracker shares: the compiled library, behind one function of TVM's kind.

Which boards there are, who may use one and for how long is the tracker's business (``python -m tvm.exec.rpc_tracker``
and ``rpc_server``). TVM's protocol has no keys and no encryption: for networks that one trusts.
"""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import BadInput, CheckFailed, DeviceUnreachable
from compress.export import bundle as bundles
from compress.export import checked
from compress.export.library import rendering, toolchain
from compress.export.library.building import BuiltLibrary
from compress.export.manifest import MODEL, read_manifest
from compress.profiling import local
from compress.profiling.device_address import RpcDevice
from compress.profiling.rebuilt import rebuild
from compress.profiling.remote import Remote

TIMEOUT_S = 120
"""How long a board is held."""
REPEATS, MIN_MS = 20, 20
CONNECT_S = 10


def profile(bundle: Path, device: RpcDevice, tell: Callable[[str], None] = lambda message: None) -> Remote:
    """Measure a bundle's compiled library on a board of a tracker.

    Raises:
        DeviceUnreachable: the tracker doesn't answer, or has no board of that key.
        BadInput: there is no library, no compiler for the board, or its processor is another.
        CheckFailed: the bundle is damaged, or the outputs differ from the reference.
    """
    bundle = local.existing(bundle)
    manifest = read_manifest(bundle)
    wrong = bundles.damage(bundle, manifest) or [w for w in [checked.self_contained(bundle)] if w is not None]
    if wrong:
        raise CheckFailed(str(bundle), wrong)
    inputs, _ = checked.golden(bundle)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        compiled, how = rebuild(bundle, folder / "library")
        built = compiled.library
        if not toolchain.hosted(built.isa):
            raise BadInput(f"--device {device}: the library is for {built.isa.triple}, which has no operating system")
        tell("compile the library for the board")
        module = folder / "network.so"
        _link(built, module)
        tell("ask the tracker for a board")
        session = _board(device)
        measured, outputs = _run(device, session, built, module, inputs)
        from compress.export.compiled import FLOAT_TOLERANCE, outputs_of

        (name,), (result,) = compiled.program.inputs, compiled.program.outputs
        wanted = np.stack([outputs_of(compiled.program, {name: x})[result] for x in inputs])
        allowed = FLOAT_TOLERANCE * float(np.abs(wanted).max()) if compiled.in_float else 0.0
        equal = bool(np.abs(outputs - wanted).max() <= allowed)
        found = local.Profile(
            device=f"a board of {device} ({built.isa.cpu})",
            runtime="tvm",
            golden_equal=equal,
            latency_s=measured["latency_s"],
            latency_p90_s=measured["latency_p90_s"],
            instructions=None,
            macs=local.macs(bundle / MODEL),
            arena_bytes=built.arena_bytes,
            flash_bytes=built.flash_bytes,
            conditions={"runtime": "compiled by tvm", "threads": 1, "batch": 1, "library": how, "address": str(device)},
        )
        return Remote(found, device, {}, measured, 0)


def _board(device: RpcDevice) -> Any:
    from tvm import rpc

    try:
        with socket.create_connection((device.host, device.port), CONNECT_S):
            pass  # TVM itself would try for a minute
        with contextlib.redirect_stdout(io.StringIO()):
            tracker = rpc.connect_tracker(device.host, device.port)
    except Exception as error:  # TVM raises whatever its sockets do
        fix = "start it: python -m tvm.exec.rpc_tracker --port PORT"
        raise DeviceUnreachable(str(device), f"no tracker answers there ({_short(error)})", fix) from None
    try:
        keys = {server["key"].removeprefix("server:") for server in tracker.summary()["server_info"]}
        if device.key not in keys:
            known = ", ".join(sorted(keys)) or "none"
            fix = (
                f"register one: python -m tvm.exec.rpc_server --tracker {device.host}:{device.port} --key {device.key}"
            )
            raise DeviceUnreachable(
                str(device), f"the tracker has no board of the key {device.key!r} (it has: {known})", fix
            )
        return tracker.request(device.key, session_timeout=TIMEOUT_S)
    except (RuntimeError, TimeoutError, OSError) as error:
        fix = "look at what holds them: python -m tvm.exec.query_rpc_tracker"
        raise DeviceUnreachable(str(device), f"no board was free ({_short(error)})", fix) from None


def _run(device: RpcDevice, session: Any, built: BuiltLibrary, module: Path, inputs: Any) -> tuple[dict[str, Any], Any]:
    import tvm

    (given,), (result,) = built.interface.inputs, built.interface.outputs
    try:
        session.upload(str(module), module.name)
        run = session.load_module(module.name)
        board = session.cpu(0)
        y = tvm.runtime.empty((result.elements,), result.dtype, board)
        rows = []
        for x in given.to_library(inputs):
            tensor = tvm.runtime.tensor(np.ascontiguousarray(x).reshape(-1), board)
            run["network"](tensor, y)
            rows.append(y.numpy().reshape(result.shape))
        timer = run.time_evaluator("network", board, number=1, repeat=REPEATS, min_repeat_ms=MIN_MS)
        times = timer(tensor, y).results
    except Exception as error:  # what the board's runtime raises comes through as anything
        said, whole = _short(error), str(error)
        if "wrong ELF" in whole or "cannot open shared object" in whole or "invalid ELF" in whole:
            raise BadInput(
                f"--device {device}: the board's processor isn't {built.isa.triple}; make the bundle for it"
            ) from None
        raise CheckFailed(str(device), [f"the board failed: {said}"]) from None
    finally:
        with contextlib.suppress(Exception):  # the board may be gone
            session.remove(module.name)
    outputs = result.from_library(np.stack(rows))
    median, p90 = (float(np.percentile(times, q)) for q in (50, 90))
    return {"latency_s": median, "latency_p90_s": p90, "runs": len(times)}, outputs


def _link(built: BuiltLibrary, out: Path) -> None:
    """The library and its function of TVM's kind as one shared object, which needs none of TVM's libraries."""
    tools = toolchain.find(built.isa)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for path in (built.folder / "src").iterdir():
            if path.is_file():
                (work / path.name).write_bytes(path.read_bytes())
        (work / "packed.c").write_bytes(rendering.packed(built.interface))
        objects = []
        for name in ("packed.c", *(p.name for p in built.sources() if p.suffix != ".o")):
            objects.append(work / f"{Path(name).stem}.o")
            tools.compile(work / name, objects[-1])
        tools.shared([*objects, *(p for p in built.sources() if p.suffix == ".o")], out)


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


__all__ = ["profile"]
