"""What runs on a device for ``compress profile --device ssh://``: it looks, takes files, has them measured, cleans up.

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

MARK = "@compress "
HOME = os.path.join(os.path.expanduser("~"), ".cache", "compress-profile")
SPARE = 32 << 20
"""Bytes that stay free on the device's disk."""


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
    packages = {name: version(name) for name in ("numpy", "onnxruntime", "tensorrt", "apache-tvm")}
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
    # The program that measures (device_measuring.py) takes some of what stands here.
    sources = {"agent.py": AGENT, "measuring.py": request["program"]}  # noqa: F821  # the connection defines AGENT
    for name, source in sources.items():
        with open(os.path.join(folder(job), name), "w", encoding="utf-8") as file:
            file.write(source)
    with open(os.path.join(folder(job), "log"), "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-B", os.path.join(folder(job), "measuring.py"), job],
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
    return int(pid) if command == "" or ("measuring.py" in command and job in command) else None  # "" while it begins


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
    serve()
