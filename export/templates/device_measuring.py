"""What measures on a device, in a process of its own: a lost connection doesn't end it.

``device_agent.py`` starts it in the job's folder, where it stands as ``agent.py`` beside this file.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time

from agent import HOME, Refused, clocks, folder, governor

WARM_UP_S = 0.5
STEADY = 0.05
"""How much a clock may change before it counts as moved, relative."""


def measure(job):
    """The child process: one measurement at a time on a device, whoever asked for it."""
    import fcntl

    with open(os.path.join(folder(job), "spec.json"), encoding="utf-8") as file:
        spec = json.load(file)
    os.chdir(folder(job))
    lock = open(os.path.join(HOME, "lock"), "w")  # held until the process ends
    print("waiting for another measurement to end", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("measuring", flush=True)
    try:
        before = clocks()
        ways = {
            "onnxruntime": with_onnxruntime,
            "tvm": with_program,
            "tensorrt": with_tensorrt,
            "cuda": with_cuda,
            "designs": with_designs,
        }
        found = ways[spec["runtime"]](spec)
        after = clocks()
        found.setdefault("conditions", {})
        moved = [name for name in before if abs(after.get(name, 0) - before[name]) > STEADY * max(before[name], 1)]
        found["conditions"].setdefault("moved", moved)
        found["conditions"].setdefault("clocks", after)
        if governor():
            found["conditions"]["governor"] = governor()
        answer = {"ok": found}
    except Refused as problem:
        answer = {"kind": problem.kind, "error": str(problem)}
    except Exception as problem:
        answer = {"kind": "failed", "error": " ".join(("%s: %s" % (type(problem).__name__, problem)).split())[:300]}
    with open("result.partial", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace("result.partial", "result.json")


def with_onnxruntime(spec):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.get("threads", 0)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    golden = np.load("golden.npz", allow_pickle=False)
    outputs = np.concatenate([session.run(None, {name: x[None]})[0] for x in golden["inputs"]])
    scale = float(np.abs(golden["outputs"]).max()) or 1.0
    difference = float(np.abs(outputs - golden["outputs"]).max()) / scale
    x = golden["inputs"][:1]
    found = timed(lambda: session.run(None, {name: x}), spec["seconds"])
    found["golden_equal"] = difference <= spec["tolerance"]
    found["conditions"] = {
        "runtime": "onnxruntime %s" % onnxruntime.__version__,
        "threads": spec.get("threads", 0) or "the runtime's default",
        "batch": 1,
        "difference": difference,
    }
    return found


def with_designs(spec):
    """A calibration's networks in ONNX Runtime, so many at a time in turns beside references: seconds by group."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.get("threads", 0)
    options.log_severity_level = 3
    # Threads wait for their session's next run by spinning, for up to a second: they would slow down the next session.
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= tuple(spec["spin_is_set_from"]):
        options.add_session_config_entry("session.intra_op.spin_duration_us", "%d" % (1e6 * spec["spin_s"]))
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    random, groups, done = np.random.default_rng(0), [], 0
    for first in range(0, len(spec["files"]), spec["together"]):
        runs = {}
        part = spec["files"][first : first + spec["together"]]
        for path in spec["beside"] + part:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            given = session.get_inputs()[0]
            x = random.random(given.shape, np.float32)
            runs[path] = lambda session=session, name=given.name, x=x: session.run(None, {name: x})
        turns = {path: [] for path in runs}
        for run in runs.values():
            timed(run, 0, spec["warm_up_s"])
        for _ in range(spec["rounds"]):
            for path, run in runs.items():
                settled = time.perf_counter() + spec["settle_s"]
                while time.perf_counter() < settled:
                    run()
                end = time.perf_counter() + spec["slice_s"]
                times = []
                while time.perf_counter() < end or len(times) < 3:
                    begun = time.perf_counter()
                    run()
                    times.append(time.perf_counter() - begun)
                turns[path].append(times)
        groups.append(in_step(turns, spec["beside"], spec["pace"]))
        done += len(part)
        print("timed %d of %d" % (done, len(spec["files"])), flush=True)
    return {"groups": groups, "threads": spec.get("threads", 0), "onnxruntime": onnxruntime.__version__}


def in_step(turns, beside, pace):
    """Seconds by path at one pace, and under the name ``pace`` that pace, the geometric mean of the references.

    The median over rounds of a file's time over the references' mean in the same round, times the pace.
    """
    medians = {path: [statistics.median(times) for times in rounds] for path, rounds in turns.items()}
    means = [math.exp(sum(map(math.log, both)) / len(both)) for both in zip(*[medians[path] for path in beside])]
    found = {pace: statistics.median(means)}
    for path, rounds in medians.items():
        if path not in beside:
            found[path] = found[pace] * statistics.median([mine / mean for mine, mean in zip(rounds, means)])
    return found


def timed(run, seconds, warm_up_s=WARM_UP_S):
    """Median and 90th percentile over about ``seconds``, after a warm-up."""
    end = time.perf_counter() + warm_up_s
    while time.perf_counter() < end:
        run()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return of(times)


def of(times):
    times = sorted(times)

    def at(share):
        place = share * (len(times) - 1)
        low = int(place)
        high = min(low + 1, len(times) - 1)
        return times[low] + (place - low) * (times[high] - times[low])

    return {"latency_s": at(0.5), "latency_p90_s": at(0.9), "latency_p99_s": at(0.99), "runs": len(times)}


def with_program(spec):
    """The compiled network in a program of its own: golden inputs in, outputs out, then the times, in nanoseconds."""
    command = spec.get("launcher", []) + [
        "./program",
        "%g" % spec["seconds"],
        "%d" % spec["inputs"],
        "%d" % spec["threads"],
    ]
    try:
        with open("inputs.bin", "rb") as given, open("outputs.bin", "wb") as out:
            done = subprocess.run(command, stdin=given, stdout=out, stderr=subprocess.PIPE)
    except OSError as error:
        if error.errno == 8:
            raise Refused(
                "architecture", "the program is for %s, this is %s" % (spec["triple"], platform.machine())
            ) from None
        raise
    said = done.stderr.decode(errors="replace")
    if done.returncode == 2:
        raise Refused("architecture", "the processor lacks instructions of %s" % spec["cpu"])
    if done.returncode != 0:
        raise Refused("failed", "the program ended with %d: %s" % (done.returncode, " ".join(said.split())[:200]))
    times = [int(line) / 1e9 for line in said.split()]
    found = of(times)
    with open("outputs.bin", "rb") as file:
        outputs = file.read()
    found["outputs"] = outputs.hex()
    found["conditions"] = {"runtime": "compiled by tvm", "threads": spec["threads"], "batch": 1}
    if spec.get("launcher"):
        found["conditions"]["launcher"] = " ".join(spec["launcher"])
    return found


def of_bundle(command):
    """Run a program that a bundle has too: its exit status, and the last of what it says is wrong."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    wrong = [line[len("error: ") :] for line in lines if line.startswith("error: ")] or lines[-1:] or ["no message"]
    return done.returncode, wrong[-1]


def with_cuda(spec):
    """The CUDA module, in a process of its own: a GPU's driver that crashes takes that one along."""
    command = [sys.executable, "run_cuda.py", "--seconds", "%g" % spec["seconds"], "--json", "measured.json"]
    status, wrong = of_bundle(command)
    if status == 2:
        raise Refused("runtime", wrong)
    if status != 0:
        raise Refused("failed", "the CUDA module ended with %d: %s" % (status, wrong[:200]))
    with open("measured.json", encoding="utf-8") as file:
        return json.load(file)


def with_tensorrt(spec):
    command = [sys.executable, "build_engine.py", "--quiet", "--seconds", "%g" % spec["seconds"]]
    if os.path.isfile("evaluation.npz"):
        command += ["--data", "evaluation.npz"]
    status, wrong = of_bundle(command)
    if status not in (0, 4) or not os.path.isfile("measured.json"):
        raise Refused("runtime", wrong)
    with open("measured.json", encoding="utf-8") as file:
        return json.load(file)


if __name__ == "__main__":
    measure(sys.argv[1])
