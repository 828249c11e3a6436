"""A bundle on a device: what the device has, the files it needs, the measurement, and home again."""

from __future__ import annotations

import hashlib
import io
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import BadInput, CheckFailed, CompressError
from compress.export import bundle as bundles
from compress.export import checked
from compress.export.manifest import GOLDEN, MANIFEST, MODEL, FileEntry, Manifest, read_manifest
from compress.profiling import device_cuda, device_program, local
from compress.profiling.device_address import RpcDevice, SshDevice
from compress.profiling.ssh import Sent, Session

ONNXRUNTIME, TVM, TENSORRT = "onnxruntime", "tvm", "tensorrt"
TYPED = "engine"
SECONDS = 2.0
POLL_S, LONGEST_S = 0.5, 3600.0
MACHINES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}
"""Other names of architectures."""
MOST_EVALUATION_BYTES = 512 << 20


@dataclass(frozen=True)
class Remote:
    """What came home: the profile, what the device is, and its own words."""

    profile: local.Profile
    device: SshDevice | RpcDevice
    probe: Mapping[str, Any]
    measured: Mapping[str, Any]
    reconnections: int


def profile(
    bundle: Path,
    device: SshDevice,
    runtime: str | None = None,
    tell: Callable[[str], None] = lambda message: None,
    seconds: float = SECONDS,
    stop: threading.Event | None = None,
) -> Remote:
    """Measure a bundle on one device.

    Args:
        bundle: its folder; what is in it is checked first.
        device: where.
        runtime: ``onnxruntime``, ``tvm`` or ``tensorrt``; None for the first
            of tensorrt, tvm, onnxruntime that both have.
        tell: told what is happening.
        seconds: of timing.
        stop: once it is set, the measurement is given up and the device cleaned up.

    Raises:
        KeyboardInterrupt: ``stop`` is set.
        BadInput: the device can't be reached or lacks something; the sentence says what to do.
        CheckFailed: the bundle is damaged, or the measurement failed on the device.
    """
    bundle = local.existing(bundle)
    manifest = read_manifest(bundle)
    wrong = bundles.damage(bundle, manifest) or [w for w in [checked.self_contained(bundle)] if w is not None]
    if wrong:
        raise CheckFailed(str(bundle), wrong)
    # The same command finds its job again; another one, another machine's too, has a job of its own there.
    asker = repr((runtime, device, seconds, platform.node()))
    job = hashlib.sha256((bundle / MANIFEST).read_bytes() + asker.encode()).hexdigest()[:16]
    with Session(device, job, tell) as session, tempfile.TemporaryDirectory() as temporary:
        tell("look at the device")
        probe = session.ask({"do": "probe"})
        chosen = choose(bundle, manifest, device, probe, runtime)
        tell(f"prepare the files for {chosen}")
        files, spec, program = _prepared(bundle, manifest, device, probe, chosen, Path(temporary), seconds)
        tell(f"copy {len(files)} files")
        session.send(files)
        session.start(spec)
        measured = awaited(session, tell, stop or threading.Event())
        found = _profile(bundle, manifest, device, probe, chosen, measured, program)
        return Remote(found, device, probe, measured, session.reconnections)


def several(
    bundle: Path, devices: Sequence[SshDevice], runtime: str | None, tell: Callable[[str], None]
) -> list[tuple[SshDevice, Remote | CompressError]]:
    """A bundle on several devices at once; what went wrong on one doesn't touch the others."""

    stop = threading.Event()

    def one(device: SshDevice) -> Remote | CompressError:
        try:
            return profile(bundle, device, runtime, lambda message: tell(f"{device}: {message}"), stop=stop)
        except CompressError as error:
            return error

    with ThreadPoolExecutor(max(1, len(devices))) as pool:
        try:
            return list(zip(devices, pool.map(one, devices), strict=True))
        except KeyboardInterrupt:
            stop.set()  # or leaving the pool would wait for every measurement to end
            raise


def choose(bundle: Path, manifest: Manifest, device: SshDevice, probe: Mapping[str, Any], wanted: str | None) -> str:
    """The runtime to measure.

    Raises:
        BadInput: the device or the bundle lacks it.
    """
    reasons = {
        TENSORRT: _no_tensorrt(bundle, probe),
        TVM: _no_library(bundle, manifest, device, probe),
        ONNXRUNTIME: _no_onnxruntime(device, probe),
    }
    where = f"--device {device}"
    if wanted is not None:
        if wanted not in reasons:
            raise BadInput(f"--runtime {wanted}: give {', '.join(reasons)}")
        if (reason := reasons[wanted]) is not None:
            raise BadInput(f"{where}: {reason}")
        return wanted
    found = next((name for name, reason in reasons.items() if reason is None), None)
    if found is None:
        said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise BadInput(f"{where}: the device has no runtime for this bundle ({said})")
    return found


def _no_tensorrt(bundle: Path, probe: Mapping[str, Any]) -> str | None:
    if not (bundle / TYPED / MODEL).is_file():
        return "the bundle holds no file for TensorRT"
    if probe["packages"].get("tensorrt") is None and probe["trtexec"] is None:
        return "TensorRT isn't installed there: on a Jetson sudo apt install python3-libnvinfer-dev"
    if probe["packages"].get("numpy") is None:
        return "numpy isn't installed there: pip install numpy"
    return None


def _no_library(bundle: Path, manifest: Manifest, device: SshDevice, probe: Mapping[str, Any]) -> str | None:
    from compress.export.library import building, toolchain
    from compress.profiling.rebuilt import FOLDER

    if TVM in manifest.runtimes and device_cuda.there(bundle):
        return device_cuda.missing(bundle, device.python, probe)
    if TVM not in manifest.runtimes or not (bundle / FOLDER).is_dir():
        return "the bundle holds no compiled library for it"
    isa = building.load(bundle / FOLDER).isa
    if not toolchain.hosted(isa):
        return f"the library is for {isa.triple}, which has no operating system"
    machine = MACHINES.get(probe["machine"].lower(), probe["machine"].lower())
    if machine != toolchain.architecture(isa) and not device.launcher:
        return (
            f"the library is for {toolchain.architecture(isa)}, the device is "
            f"{machine}: make the bundle for it, with --target"
        )
    return None


def _no_onnxruntime(device: SshDevice, probe: Mapping[str, Any]) -> str | None:
    missing = [name for name in ("numpy", "onnxruntime") if probe["packages"].get(name) is None]
    if missing:
        return (
            f"{' and '.join(missing)} missing for {device.python} there: "
            f"{device.python} -m pip install {' '.join(missing)}"
        )
    return None


def _prepared(
    bundle: Path,
    manifest: Manifest,
    device: SshDevice,
    probe: Mapping[str, Any],
    runtime: str,
    folder: Path,
    seconds: float,
) -> tuple[list[Sent], dict[str, Any], device_program.DeviceProgram | None]:
    """The files, what the device is told, and the program if it is one."""
    spec: dict[str, Any] = {"runtime": runtime, "seconds": seconds, "tolerance": manifest.tolerance, "threads": 0}
    if runtime == ONNXRUNTIME:
        return [Sent(MODEL, bundle / MODEL), Sent(GOLDEN, bundle / GOLDEN)], spec, None
    if runtime == TENSORRT:
        return [*_engine_files(bundle), *_evaluation(manifest)], spec, None
    if device_cuda.there(bundle):
        return device_cuda.files(bundle, folder), spec | {"runtime": "cuda"}, None
    inputs, _ = checked.golden(bundle)
    made = device_program.make(bundle, inputs, folder)
    built = made.compiled.library
    threads = min(int(probe["cores"] or 1), 32) if built.interface.threads else 1
    spec |= {
        "inputs": len(inputs),
        "threads": threads,
        "triple": built.isa.triple,
        "cpu": built.isa.cpu,
        "launcher": list(device.launcher),
    }
    return [Sent("program", made.path, executable=True), Sent("inputs.bin", made.inputs)], spec, made


def _engine_files(bundle: Path) -> list[Sent]:
    """The typed files with the builder of this version: no program of a bundle is run, on the device either."""
    script = resources.files("compress.export").joinpath("templates", "build_engine.py").read_bytes()
    files = [
        Sent(MODEL, bundle / MODEL),
        Sent(GOLDEN, bundle / GOLDEN),
        Sent(f"{TYPED}/{MODEL}", bundle / TYPED / MODEL),
    ]
    entries = []
    for each in files:
        digest, size = each.digest()
        entries.append(FileEntry(each.path, digest, size))
    return [*files, Sent("build_engine.py", script), Sent(MANIFEST, _manifest_of(bundle, entries))]


def _manifest_of(bundle: Path, entries: Sequence[FileEntry]) -> bytes:
    import json

    from compress.serial import to_json

    return json.dumps(to_json(replace(read_manifest(bundle), files=tuple(entries)))).encode()


def _evaluation(manifest: Manifest) -> list[Sent]:
    """The evaluation data as an .npz, where it is on this machine, is classification, and isn't too large."""
    from compress.profiling import verify

    if manifest.task != "classification" or manifest.accuracy is None:
        return []
    data = verify.data_of(manifest)
    if data is None:
        return []
    inputs, labels = [], []
    for x, y in data.evaluate.batches(256):
        inputs.append(np.asarray(x, np.float32))
        labels.append(np.asarray(y))
        if sum(a.nbytes for a in inputs) > MOST_EVALUATION_BYTES:
            return []
    content = io.BytesIO()
    np.savez(content, inputs=np.concatenate(inputs), labels=np.concatenate(labels))
    return [Sent("evaluation.npz", content.getvalue())]


def awaited(session: Session, tell: Callable[[str], None], stop: threading.Event | None = None) -> dict[str, Any]:
    """The result of the job that was started; ``tell`` hears the device's own words.

    Raises:
        KeyboardInterrupt: ``stop`` is set.
        BadInput: the device lacks something.
        CheckFailed: the measurement failed there, or takes too long.
    """
    stop = stop or threading.Event()
    last, end = "", time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        answer = session.ask({"do": "status"})
        if "result" in answer:
            result = answer["result"]
            if "ok" in result:
                found: dict[str, Any] = result["ok"]
                return found
            from compress.profiling.ssh import refuse

            refuse(session.device, result["kind"], result["error"])
        message = (answer["log"] or [""])[-1][:120]
        if message and message != last:
            tell(f"the device says: {message}")
            last = message
        if stop.wait(POLL_S):
            raise KeyboardInterrupt
    raise CheckFailed(str(session.device), [f"the measurement took more than {LONGEST_S / 60:.0f} minutes"])


def _profile(
    bundle: Path,
    manifest: Manifest,
    device: SshDevice,
    probe: Mapping[str, Any],
    runtime: str,
    measured: dict[str, Any],
    program: device_program.DeviceProgram | None,
) -> local.Profile:
    conditions = {**measured.get("conditions", {}), "runs": measured["runs"], "address": str(device)}
    if program is not None:
        measured["golden_equal"] = program.agrees(bytes.fromhex(measured.pop("outputs")))
        conditions["library"] = program.how
    for name in ("jetpack", "l4t", "power_mode"):
        if probe.get(name):
            conditions.setdefault(name, probe[name])
    if probe.get("load") is not None and probe["load"] > 1.0:
        conditions["load"] = probe["load"]
    emulated = bool(device.launcher) and Path(device.launcher[0]).name.startswith("qemu")
    if emulated:
        conditions["latency"] = "none: an emulator's time is no device's"
    built = program.compiled.library if program is not None else None
    sizes = {ONNXRUNTIME: (bundle / MODEL).stat().st_size, TENSORRT: measured.get("engine_bytes")}
    if runtime == TVM and built is None:
        conditions["library"] = device_cuda.HOW
        sizes[TVM] = (bundle / manifest.runtimes[TVM]).stat().st_size
    flash = built.flash_bytes if built is not None else sizes[runtime]
    return local.Profile(
        device=measured.get("device") or f"{probe['model']}, {probe['cores']} cores, {probe['machine']}",
        runtime=runtime,
        golden_equal=bool(measured["golden_equal"]),
        latency_s=None if emulated else measured["latency_s"],
        latency_p90_s=None if emulated else measured["latency_p90_s"],
        instructions=None,
        macs=local.macs(bundle / MODEL),
        arena_bytes=built.arena_bytes if built is not None else measured.get("arena_bytes"),
        flash_bytes=int(flash or 0),
        conditions=conditions,
    )


__all__ = ["Remote", "awaited", "choose", "profile", "several"]
