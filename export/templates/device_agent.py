"""What runs on a device for ``compress profile --device ssh://``: it looks, takes files, measures, cleans up.

It comes in through the connection and needs python 3.8 or later alone. Requests are lines of JSON on stdin, a put's
bytes behind its line; answers are lines of JSON behind MARK, since a login may print something of its own.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

MARK = "@compress "
HOME = os.path.join(os.path.expanduser("~"), ".cache", "compress-profile")
SPARE = 32 << 20
"""Bytes that stay free on the device's disk."""
WARM_UP_S, STEADY = 0.5, 0.05


class Refused(Exception):
    """What the device can't do: a kind that the caller knows, and why."""

    def __init__(self, kind, why):
        Exception.__init__(self, why)
        self.kind = kind


def text(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().replace("\0", "").strip()
    except OSError:
        return None


def ask(command, seconds=20):
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def version(package):
    """Of a package, without importing it; None if it isn't there."""
    try:
        from importlib import metadata

        return metadata.version(package)
    except Exception:
        return None


def folder(job):
    if not re.match(r"^[0-9a-f]{16}$", job):
        raise Refused("request", "a job's name must be 16 hexadecimal digits")
    return os.path.join(HOME, job)


def inside(job, path):
    """A path of a job, which never leaves its folder."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise Refused("request", "the path %r leaves the folder" % path)
    return os.path.join(folder(job), *parts)


def digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()


# Looking


def probe(request):
    os.makedirs(HOME, exist_ok=True)
    cpuinfo = text("/proc/cpuinfo") or ""
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith(("model name", "Model"))]
    model = text("/proc/device-tree/model") or (names[0] if names else platform.machine())
    memory = text("/proc/meminfo") or ""
    packages = {name: version(name) for name in ("numpy", "onnxruntime", "tensorrt")}
    packages["onnxruntime"] = packages["onnxruntime"] or version("onnxruntime-gpu")
    trtexec = shutil.which("trtexec") or (
        "/usr/src/tensorrt/bin/trtexec" if os.access("/usr/src/tensorrt/bin/trtexec", os.X_OK) else None
    )
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "model": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": packages,
        "trtexec": trtexec,
        "jetpack": version_of_jetpack(),
        "l4t": (text("/etc/nv_tegra_release") or "").splitlines()[0] if text("/etc/nv_tegra_release") else None,
        "power_mode": ask(["nvpmodel", "-q"]),
        "ram_bytes": next(
            (1024 * int(line.split()[1]) for line in memory.splitlines() if line.startswith("MemTotal")), None
        ),
        "free_bytes": shutil.disk_usage(HOME).free,
        "clocks": clocks(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def version_of_jetpack():
    return ask(["dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"])


def clocks():
    """MHz of the processors, as the kernel tells them; the governor beside them."""
    found = {}
    base = "/sys/devices/system/cpu"
    if os.path.isdir(base):
        for name in sorted(os.listdir(base)):
            value = text("%s/%s/cpufreq/scaling_cur_freq" % (base, name)) if re.match(r"^cpu\d+$", name) else None
            if value and value.isdigit():
                found[name] = int(value) / 1e3
    base = "/sys/class/devfreq"
    if os.path.isdir(base):
        for name in sorted(os.listdir(base)):
            value = text("%s/%s/cur_freq" % (base, name))
            if value and value.isdigit():
                found[name] = int(value) / 1e6
    return found


def governor():
    return text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


# Taking files


def offer(request):
    """How many bytes of each file are there already; refuses what doesn't fit the disk."""
    job = request["job"]
    os.makedirs(folder(job), exist_ok=True)
    have, needed = {}, 0
    for entry in request["files"]:
        path = inside(job, entry["path"])
        if os.path.isfile(path) and os.path.getsize(path) == entry["bytes"] and digest(path) == entry["sha256"]:
            have[entry["path"]] = entry["bytes"]
            continue
        partial = path + ".partial"
        there = os.path.getsize(partial) if os.path.isfile(partial) else 0
        there = there if there < entry["bytes"] else 0
        have[entry["path"]] = there
        needed += entry["bytes"] - there
    free = shutil.disk_usage(HOME).free
    if needed + SPARE > free:
        raise Refused("full", "%d bytes are needed and %d are free" % (needed + SPARE, free))
    return {"have": have}


def put(request, stream):
    """One file from ``offset`` on; its hash is checked when it is whole."""
    path, left = inside(request["job"], request["path"]), request["bytes"] - request["offset"]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = path + ".partial"
    problem = None
    try:
        with open(partial, "r+b" if request["offset"] else "wb") as file:
            file.seek(request["offset"])
            file.truncate()
            while left:
                part = stream.read1(min(left, 1 << 16)) if hasattr(stream, "read1") else stream.read(min(left, 1 << 16))
                if not part:
                    sys.exit(3)  # the connection is gone; what came stays
                left -= len(part)
                if problem is None:
                    try:
                        file.write(part)
                        file.flush()
                    except OSError as error:
                        problem = error  # the rest is read, so that the next request is
    except OSError as error:
        problem = error
        while left:
            part = stream.read(min(left, 1 << 16))
            if not part:
                sys.exit(3)
            left -= len(part)
    if problem is not None:
        raise Refused("full" if problem.errno in (28, 122) else "disk", "%s: %s" % (request["path"], problem.strerror))
    if digest(partial) != request["sha256"]:
        os.remove(partial)
        raise Refused("damaged", "%s came damaged" % request["path"])
    if request.get("executable"):
        os.chmod(partial, 0o700)
    os.replace(partial, path)
    return {}


# Measuring, in a process of its own, so that a connection that is lost doesn't end it


def start(request):
    job = request["job"]
    spec = os.path.join(folder(job), "spec.json")
    result = os.path.join(folder(job), "result.json")
    if running(job):
        return {"started": False}
    if os.path.isfile(result):
        os.remove(result)
    with open(spec, "w", encoding="utf-8") as file:
        json.dump(request["spec"], file)
    script = os.path.join(folder(job), "agent.py")
    with open(script, "w", encoding="utf-8") as file:
        file.write(AGENT)  # noqa: F821  # its own source, which the connection's first line defines
    with open(os.path.join(folder(job), "log"), "wb") as log:
        child = subprocess.Popen(
            [sys.executable, script, "measure", job],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with open(os.path.join(folder(job), "pid"), "w", encoding="utf-8") as file:
        file.write("%d" % child.pid)
    return {"started": True}


def running(job):
    """Whether the job's process is alive; None if there is none."""
    pid = text(os.path.join(folder(job), "pid"))
    if not pid:
        return None
    command = text("/proc/%s/cmdline" % pid)
    if command is None or state(pid) in ("Z", "X"):
        return None
    return int(pid) if command == "" or ("agent.py" in command and job in command) else None  # "" while it begins


def state(pid):
    line = text("/proc/%s/stat" % pid) or ""
    return line.rpartition(")")[2].split()[0] if ")" in line else "?"


def status(request):
    job = request["job"]
    alive = running(job)  # asked first: a process that ends now has written its result
    result = text(os.path.join(folder(job), "result.json"))
    if result is not None:
        return {"result": json.loads(result)}
    log = (text(os.path.join(folder(job), "log")) or "").splitlines()[-5:]
    if alive is None:
        raise Refused("died", "the measurement ended without a result: %s" % (" / ".join(log) or "no message"))
    return {"log": log}


def clean(request):
    job = request["job"]
    pid = running(job)
    if pid:
        try:
            os.killpg(pid, signal.SIGTERM)
        except OSError:
            pass
    shutil.rmtree(folder(job), ignore_errors=True)
    if os.path.isdir(HOME) and set(os.listdir(HOME)) <= {"lock"}:
        shutil.rmtree(HOME, ignore_errors=True)
    return {}


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
    """A calibration's networks in ONNX Runtime, so many at a time in turns: the median of each."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.get("threads", 0)
    options.log_severity_level = 3
    random, seconds = np.random.default_rng(0), {}
    for first in range(0, len(spec["files"]), spec["together"]):
        runs = {}
        for path in spec["files"][first : first + spec["together"]]:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            given = session.get_inputs()[0]
            x = random.random(given.shape, np.float32)
            runs[path] = lambda session=session, name=given.name, x=x: session.run(None, {name: x})
        times = {path: [] for path in runs}
        for run in runs.values():
            timed(run, 0, spec["warm_up_s"])
        for _ in range(spec["rounds"]):
            for path, run in runs.items():
                run()
                end = time.perf_counter() + spec["slice_s"]
                count = 0
                while time.perf_counter() < end or count < 3:
                    begun = time.perf_counter()
                    run()
                    times[path].append(time.perf_counter() - begun)
                    count += 1
        for path in times:
            seconds[path] = of(times[path])["latency_s"]
        print("timed %d of %d" % (len(seconds), len(spec["files"])), flush=True)
    return {"seconds": seconds, "threads": spec.get("threads", 0), "onnxruntime": onnxruntime.__version__}


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


def with_tensorrt(spec):
    command = [sys.executable, "build_engine.py", "--quiet", "--seconds", "%g" % spec["seconds"]]
    if os.path.isfile("evaluation.npz"):
        command += ["--data", "evaluation.npz"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode not in (0, 4) or not os.path.isfile("measured.json"):
        wrong = [line[len("error: ") :] for line in lines if line.startswith("error: ")] or lines[-1:] or ["no message"]
        raise Refused("runtime", wrong[-1])
    with open("measured.json", encoding="utf-8") as file:
        return json.load(file)


def serve():
    actions = {"probe": probe, "offer": offer, "start": start, "status": status, "clean": clean}
    stream = sys.stdin.buffer
    while True:
        line = stream.readline()
        if not line:
            return
        request = json.loads(line)
        try:
            answer = put(request, stream) if request["do"] == "put" else actions[request["do"]](request)
            answer = dict(answer, ok=True)
        except Refused as problem:
            answer = {"ok": False, "kind": problem.kind, "error": str(problem)}
        except OSError as problem:
            kind = "full" if problem.errno in (28, 122) else "disk"
            answer = {"ok": False, "kind": kind, "error": str(problem)}
        sys.stdout.write("\n" + MARK + json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2])
    else:
        serve()
