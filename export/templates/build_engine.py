"""Build this bundle's TensorRT engine on this device, check it against the golden outputs and time it.

Needs python 3.8 or later, numpy and tensorrt (10 or 11) and nothing else; without tensorrt's Python bindings, trtexec.

python build_engine.py                     build, check, time; writes engine/model.engine and measured.json
python build_engine.py --data FILE.npz     the accuracy too, of arrays "inputs" (as golden.npz has them) and "labels"
python build_engine.py --dla 0             on a DLA (Jetson AGX Orin); lists the layers that fall back to the GPU

It is one file, and long, because it travels alone: the device has nothing of this project to import.

Exit status: 0 done, 2 something is missing, 4 the outputs differ from the golden ones.
"""

import argparse
import ctypes
import glob
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE / "engine"
WARM_UP_S, STEADY = 0.5, 0.05
"""Seconds of warm-up; the share by which a clock may move before that is reported."""
PROFILED = 20
"""Runs that each layer is timed in, apart from the others: a run with a profiler is slower."""


class Problem(Exception):
    """One line that says what to do; exit status 2."""


class Cuda:
    """The few functions of the CUDA driver that a run needs, through ctypes; the primary context, as TensorRT uses."""

    def __init__(self):
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise Problem(
                "there is no NVIDIA driver here (libcuda.so.1): run this on the device with the GPU"
            ) from None
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, 128, device)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self.device = name.value.decode()
        self.capability = "%d.%d" % (major.value, minor.value)

    def call(self, function, *arguments):
        status = getattr(self.lib, function)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(status, ctypes.byref(text))
            raise Problem("%s failed: %s" % (function, (text.value or b"?").decode()))

    def allocate(self, size):
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value

    def upload(self, pointer, array, stream):
        source = ctypes.c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(pointer),
            source,
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def download(self, array, pointer, stream):
        target = ctypes.c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyDtoHAsync_v2",
            target,
            ctypes.c_uint64(pointer),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def stream(self):
        handle = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(handle), 1)
        return handle.value

    def synchronize(self, stream):
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def event(self):
        handle = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(handle), 0)
        return handle.value

    def record(self, event, stream):
        self.call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def milliseconds(self, start, end):
        found = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(found), ctypes.c_void_p(start), ctypes.c_void_p(end))
        return found.value

    def capture(self, stream, enqueue):
        """What ``enqueue`` puts on the stream, as a graph that can be launched."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), 2)  # relaxed
        try:
            enqueue()
        finally:
            self.call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        return executable.value

    def launch(self, graph, stream):
        self.call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def free_bytes(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value


def main(arguments=None):
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--batch", type=int, default=1, help="inputs a run (default: 1)")
    given.add_argument("--workspace", type=int, default=1024, metavar="MIB", help="memory for tactics (default: 1024)")
    given.add_argument("--version-compatible", action="store_true", help="an engine that later releases can load")
    given.add_argument("--dla", type=int, metavar="CORE", help="build for this DLA core, with the GPU for the rest")
    given.add_argument("--data", metavar="FILE", help="an .npz with inputs and labels")
    given.add_argument("--seconds", type=float, default=2.0, help="of timing (default: 2)")
    given.add_argument("--rebuild", action="store_true", help="build even if there is an engine for this device")
    given.add_argument("--trtexec", action="store_true", help="use trtexec, not the Python bindings")
    given.add_argument("--quiet", action="store_true", help="show no progress")
    options = given.parse_args(arguments)
    try:
        return run(options)
    except Problem as problem:
        print("error: %s" % problem, file=sys.stderr)
    except OSError as problem:
        print("error: %s: %s" % (problem.filename or FOLDER, problem.strerror or problem), file=sys.stderr)
    return 2


def run(options):
    try:
        import numpy as np
    except ImportError:
        raise Problem("numpy is missing: pip install numpy") from None
    if options.batch < 1 or options.workspace < 1 or options.seconds <= 0:
        raise Problem("--batch, --workspace and --seconds must be above 0")
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    except ValueError:
        raise Problem("manifest.json has been changed: copy the bundle again") from None
    for entry in manifest["files"]:
        path = HERE / entry["path"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            print("error: %s has been changed: copy the bundle again" % entry["path"], file=sys.stderr)
            return 4
    source = FOLDER / ("model.onnx" if options.dla is None else "model.dla.onnx")
    if not source.is_file():
        raise Problem("there is no %s in this bundle: its target has no DLA; leave --dla out" % source.name)
    golden = np.load(str(HERE / "golden.npz"), allow_pickle=False)
    data = labelled(np, options, manifest)
    before = clocks()
    trt = None if options.trtexec else tensorrt()
    if trt is not None:
        measured = with_bindings(np, trt, options, manifest, source, golden, data)
    else:
        if data is not None:
            print("warning: trtexec runs one batch, so there will be no accuracy; for that %s" % how_to_get_it())
        measured = with_trtexec(np, options, manifest, source, golden)
    after = clocks()
    measured["conditions"].update({"clocks": before, "clocks_after": after, "moved": moved(before, after)})
    measured["conditions"].update(power_mode())
    (HERE / "measured.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    report(measured)
    return 0 if measured["golden_equal"] else 4


def tensorrt():
    """The bindings; None where there are none but trtexec is."""
    try:
        import tensorrt as trt
    except ImportError as error:
        if trtexec() is not None:
            return None
        raise Problem("tensorrt can't be imported (%s): %s" % (error, how_to_get_it())) from None
    major = int(trt.__version__.split(".")[0])
    if major < 10:
        raise Problem("this is TensorRT %s, and the file needs 10 or later: %s" % (trt.__version__, how_to_get_it()))
    return trt


def how_to_get_it():
    """What to type on this device."""
    if os.path.exists("/etc/nv_tegra_release"):
        return (
            "sudo apt install python3-libnvinfer-dev (it comes with JetPack 6), and run this with the system's python3"
        )
    if platform.machine() == "aarch64":
        return "on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack; elsewhere pip install tensorrt"
    return "pip install tensorrt"


# With the Python bindings


def with_bindings(np, trt, options, manifest, source, golden, data):
    cuda = Cuda()
    logger = trt.Logger(trt.Logger.WARNING)
    key = {
        "tensorrt": trt.__version__,
        "gpu": cuda.device,
        "capability": cuda.capability,
        "file": hashlib.sha256(source.read_bytes()).hexdigest(),
        "batch": options.batch,
        "dla": options.dla,
        "workspace_mib": options.workspace,
        "version_compatible": options.version_compatible,
    }
    free = cuda.free_bytes()
    content, built_s, fallback = kept(key, options), None, None
    if content is None:
        start = time.perf_counter()
        content, fallback = build(trt, logger, options, source)
        built_s = time.perf_counter() - start
        (FOLDER / "model.engine").write_bytes(content)
        (FOLDER / "engine.json").write_text(json.dumps(dict(key, fallback=fallback), indent=1) + "\n", encoding="utf-8")
    else:
        fallback = json.loads((FOLDER / "engine.json").read_text(encoding="utf-8")).get("fallback")
    runtime = trt.Runtime(logger)
    if options.version_compatible:
        runtime.engine_host_code_allowed = True
    if options.dla is not None:
        runtime.DLA_core = options.dla
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise Problem("the engine can't be loaded: it was built for another TensorRT or GPU; give --rebuild")
    runner = Runner(np, trt, cuda, engine, manifest, options.batch)
    measured = {
        "device": "%s (compute capability %s)" % (cuda.device, cuda.capability),
        "runtime": "tensorrt",
        "golden": compare(np, runner.all(golden["inputs"]), golden["outputs"], manifest),
        "accuracy": accuracy(runner, data),
        "engine_bytes": len(content),
        "build_s": built_s,
        "dla_fallback": fallback,
        "layers": layers(trt, engine),
        "conditions": {
            "runtime": "tensorrt %s" % trt.__version__,
            "batch": options.batch,
            "host": "%s, %s" % (platform.node(), platform.platform()),
        },
    }
    measured["golden_equal"] = measured["golden"]["equal"]
    measured.update(runner.timed(options.seconds, golden["inputs"]))
    measured["arena_bytes"] = int(engine.device_memory_size_v2) if hasattr(engine, "device_memory_size_v2") else None
    measured["peak_device_bytes"] = max(0, free - cuda.free_bytes())
    measured["peak_host_bytes"] = peak_host_bytes()
    measured["layer_times"] = runner.layer_times(trt)
    return measured


def kept(key, options):
    """An engine of an earlier call that was built here, from this file, with these options; None if there is none."""
    plan, record = FOLDER / "model.engine", FOLDER / "engine.json"
    if options.rebuild or not plan.is_file() or not record.is_file():
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return None
    changed = [name for name, value in key.items() if found.get(name) != value]
    if changed:
        name = changed[0]
        print("the engine there was built with %s %s, not %s: building again" % (name, found.get(name), key[name]))
        return None
    return plan.read_bytes()


def build(trt, logger, options, source):
    """The serialized engine, and the layers that a DLA doesn't take."""
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        said = "; ".join(parser.get_error(i).desc() for i in range(min(3, parser.num_errors)))
        raise Problem("TensorRT %s can't read %s: %s" % (trt.__version__, source.name, said))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(options.batch if size < 0 else size for size in tensor.shape)
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    cache = FOLDER / "timing.cache"
    timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    if not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")  # of another release or device
        config.set_timing_cache(timings, False)
    if not options.quiet:
        config.progress_monitor = monitor(trt)
    fallback = None
    if options.dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        fallback = []
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if not config.can_run_on_DLA(layer):
                fallback.append(layer.name)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise Problem("TensorRT %s could not build the engine; its messages are above" % trt.__version__)
    cache.write_bytes(bytes(timings.serialize()))
    return bytes(content), fallback


def monitor(trt):
    """What the builder is doing, on one line of the error stream."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.phases = {}

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.phases[phase_name] = num_steps

        def step_complete(self, phase_name, step):
            if sys.stderr.isatty():
                sys.stderr.write("\r%-60.60s %d of %d " % (phase_name, step + 1, self.phases.get(phase_name, 0)))
                sys.stderr.flush()
            return True

        def phase_finish(self, phase_name):
            if self.phases.pop(phase_name, None) is not None and not self.phases and sys.stderr.isatty():
                sys.stderr.write("\r%79s\r" % "")

    return Monitor()


class Runner:
    """An engine with its buffers: ``run`` takes and gives float32 arrays of the batch that it was built for."""

    def __init__(self, np, trt, cuda, engine, manifest, batch):
        self.np, self.cuda, self.engine, self.batch = np, cuda, engine, batch
        self.context = engine.create_execution_context()
        if self.context is None:
            raise Problem("there isn't enough memory to run the engine")
        self.stream = cuda.stream()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise Problem(
                "the engine has %d inputs and %d outputs: this program runs one of each" % (len(inputs), len(outputs))
            )
        shape = (batch,) + tuple(manifest["input"]["shape"][1:])
        self.context.set_input_shape(inputs[0], shape)
        self.input = np.zeros(shape, np.float32)
        self.output = np.zeros(tuple(self.context.get_tensor_shape(outputs[0])), np.float32)
        self.addresses = [cuda.allocate(self.input.nbytes), cuda.allocate(self.output.nbytes)]
        for name, address in zip(inputs + outputs, self.addresses):
            self.context.set_tensor_address(name, address)

    def enqueue(self):
        if not self.context.execute_async_v3(self.stream):
            raise Problem("the engine didn't run; TensorRT's messages are above")

    def run(self, x):
        self.np.copyto(self.input, x)
        self.cuda.upload(self.addresses[0], self.input, self.stream)
        self.enqueue()
        self.cuda.download(self.output, self.addresses[1], self.stream)
        self.cuda.synchronize(self.stream)
        return self.output.copy()

    def all(self, inputs):
        """Outputs of any number of inputs, the last batch filled up with its first input."""
        np, found = self.np, []
        for start in range(0, len(inputs), self.batch):
            part = inputs[start : start + self.batch]
            whole = np.concatenate([part] + [part[:1]] * (self.batch - len(part)))
            found.append(self.run(whole)[: len(part)])
        return np.concatenate(found)

    def timed(self, seconds, inputs):
        """Latency of a run: on the GPU alone, and from an array to an array; with a CUDA graph where one can be
        made."""
        np, cuda = self.np, self.cuda
        self.run(np.concatenate([inputs[:1]] * self.batch))
        try:
            graph = cuda.capture(self.stream, self.enqueue)
        except Problem:
            graph = None

        def work():
            if graph is not None:
                cuda.launch(graph, self.stream)
            else:
                self.enqueue()

        def whole():
            cuda.upload(self.addresses[0], self.input, self.stream)
            work()
            cuda.download(self.output, self.addresses[1], self.stream)
            cuda.synchronize(self.stream)

        end = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < end:
            whole()
        start, stop = cuda.event(), cuda.event()
        gpu, total = [], []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(total) < 10:
            cuda.record(start, self.stream)
            work()
            cuda.record(stop, self.stream)
            cuda.synchronize(self.stream)
            gpu.append(cuda.milliseconds(start, stop) / 1e3)
            began = time.perf_counter()
            whole()
            total.append(time.perf_counter() - began)
        found = percentiles(np, total, "latency")
        found.update(percentiles(np, gpu, "gpu"))
        found.update({"runs": len(total), "cuda_graph": graph is not None})
        return found

    def layer_times(self, trt):
        """Each layer's mean milliseconds, in the order in which they run. The profiler stays, so this comes last."""
        times = {}

        class Profiler(trt.IProfiler):
            def __init__(self):
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name, ms):
                times[layer_name] = times.get(layer_name, 0.0) + ms

        self.profiler = self.context.profiler = Profiler()  # kept here too: TensorRT holds no reference
        for _ in range(PROFILED):
            self.enqueue()
            self.cuda.synchronize(self.stream)
        return [{"name": name, "ms": total / PROFILED} for name, total in times.items()]


def layers(trt, engine):
    """What the inspector says of each layer."""
    inspector = engine.create_engine_inspector()
    try:
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return json.loads(text).get("Layers")
    except ValueError:
        return None


# With trtexec


def trtexec():
    """Its path; None if it isn't installed."""
    return shutil.which("trtexec") or next(
        (p for p in ("/usr/src/tensorrt/bin/trtexec",) if os.access(p, os.X_OK)), None
    )


def with_trtexec(np, options, manifest, source, golden):
    """Build and time with trtexec. It runs one batch of golden inputs."""
    program = trtexec()
    if program is None:
        raise Problem("trtexec isn't installed: %s" % how_to_get_it())
    name = manifest["input"]["name"]
    inputs = golden["inputs"]
    x = np.concatenate([inputs] * (1 + options.batch // len(inputs)))[: options.batch].astype(np.float32)
    np.ascontiguousarray(x).tofile(str(FOLDER / "input.bin"))
    shape = "x".join(map(str, x.shape))
    command = [
        program,
        "--onnx=%s" % source,
        "--saveEngine=%s" % (FOLDER / "model.engine"),
        "--timingCacheFile=%s" % (FOLDER / "timing.cache"),
        "--memPoolSize=workspace:%d" % options.workspace,
        "--shapes=%s:%s" % (name, shape),
        "--loadInputs=%s:%s" % (name, FOLDER / "input.bin"),
        "--exportOutput=%s" % (FOLDER / "output.json"),
        "--exportTimes=%s" % (FOLDER / "times.json"),
        "--exportLayerInfo=%s" % (FOLDER / "layers.json"),
        "--profilingVerbosity=detailed",
        "--useCudaGraph",
        "--warmUp=%d" % int(1e3 * WARM_UP_S),
        "--duration=%d" % max(1, round(options.seconds)),
    ]
    version = trtexec_version(program)
    if version is None or version < 11:
        command.append("--stronglyTyped")
    if options.version_compatible:
        command.append("--versionCompatible")
    if options.dla is not None:
        command += ["--useDLACore=%d" % options.dla, "--allowGPUFallback"]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    (FOLDER / "trtexec.log").write_text(done.stdout, encoding="utf-8")
    if done.returncode != 0:
        wrong = [line for line in done.stdout.splitlines() if "[E]" in line] or ["see engine/trtexec.log"]
        raise Problem("trtexec failed: %s" % wrong[0])
    outputs = json.loads((FOLDER / "output.json").read_text(encoding="utf-8"))
    values = np.array(outputs[0]["values"], np.float32).reshape(
        (options.batch,) + tuple(manifest["output"]["shape"][1:])
    )
    n = min(options.batch, len(inputs))
    times = json.loads((FOLDER / "times.json").read_text(encoding="utf-8"))
    found = compare(np, values[:n], golden["outputs"][:n], manifest)
    measured = {
        "device": gpu_name(),
        "runtime": "tensorrt",
        "golden": found,
        "golden_equal": found["equal"],
        "accuracy": None,
        "engine_bytes": (FOLDER / "model.engine").stat().st_size,
        "build_s": time.perf_counter() - start - options.seconds,
        "dla_fallback": None,
        "layers": json.loads((FOLDER / "layers.json").read_text(encoding="utf-8")).get("Layers"),
        "layer_times": None,
        "runs": len(times),
        "cuda_graph": True,
        "arena_bytes": None,
        "peak_device_bytes": None,
        "peak_host_bytes": None,
        "conditions": {
            "runtime": "trtexec of TensorRT %s" % (version or "?"),
            "batch": options.batch,
            "host": platform.platform(),
        },
    }
    measured.update(percentiles(np, [each["latencyMs"] / 1e3 for each in times], "latency"))
    measured.update(percentiles(np, [each["computeMs"] / 1e3 for each in times], "gpu"))
    return measured


def trtexec_version(program):
    """The major version that its first line names, such as "TensorRT v100300"; None if it can't be told."""
    said = subprocess.run(
        [program, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    for word in said.stdout.replace("]", " ").split():
        if word.startswith("v") and word[1:].isdigit() and len(word) >= 5:
            return int(word[1:]) // 10000 if len(word) >= 7 else int(word[1:]) // 1000
    return None


# Checks, clocks, words


def compare(np, found, wanted, manifest):
    """The largest difference, relative to the largest golden output. Kernels in float16 round more than float32
    ones."""
    scale = float(np.abs(wanted).max()) or 1.0
    difference = float(np.abs(found - wanted).max()) / scale
    tolerance = max(manifest["tolerance"], 2e-2)
    same = None
    if manifest["task"] == "classification":
        same = int((found.argmax(1) == wanted.argmax(1)).sum())
    return {
        "difference": difference,
        "tolerance": tolerance,
        "equal": bool(difference <= tolerance),
        "classes_equal": same,
        "n": len(found),
    }


def labelled(np, options, manifest):
    """Inputs and labels of --data; None without it. Looked at before anything is built, which may take minutes."""
    if not options.data:
        return None
    if manifest["task"] != "classification":
        raise Problem("--data is for classes, and this network's task is %s: leave it out" % manifest["task"])
    try:
        with np.load(options.data, allow_pickle=False) as data:
            inputs, labels = data["inputs"].astype(np.float32), data["labels"]
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise Problem("%s must be an .npz with the arrays inputs and labels" % options.data) from None
    wanted = tuple(manifest["input"]["shape"][1:])
    if inputs.shape[1:] != wanted:
        raise Problem("%s holds inputs of %s, the network takes %s" % (options.data, inputs.shape[1:], wanted))
    if labels.shape != inputs.shape[:1] or not len(labels):
        raise Problem("%s holds labels of %s for %d inputs: give each one" % (options.data, labels.shape, len(inputs)))
    return inputs, labels


def accuracy(runner, data):
    if data is None:
        return None
    inputs, labels = data
    right = int((runner.all(inputs).argmax(1) == labels).sum())
    return {"value": 100.0 * right / len(labels), "n": len(labels), "metric": "top1_percent"}


def percentiles(np, seconds, name):
    median, p90, p99 = (float(np.percentile(seconds, q)) for q in (50, 90, 99))
    return {name + "_s": median, name + "_p90_s": p90, name + "_p99_s": p99}


def text(path):
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def clocks():
    """Frequencies in MHz and temperatures as the kernel or nvidia-smi tells them; what isn't told isn't there."""
    found = {}
    for path in glob.glob("/sys/class/devfreq/*/cur_freq"):
        name, value = path.split("/")[-2], text(path)
        if value and value.isdigit() and any(word in name for word in ("gpu", "gv11b", "ga10b", "emc", "dla")):
            found[name] = int(value) / 1e6
    fastest = [text(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")]
    fastest = [int(value) for value in fastest if value and value.isdigit()]
    if fastest:
        found["cpu"] = max(fastest) / 1e3
    for zone in glob.glob("/sys/class/thermal/thermal_zone*"):
        kind, value = text(zone + "/type"), text(zone + "/temp")
        if (
            kind
            and value
            and value.lstrip("-").isdigit()
            and any(word in kind.lower() for word in ("gpu", "cpu", "tj"))
        ):
            found["celsius " + kind] = int(value) / 1e3
    said = ask(["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu", "--format=csv,noheader,nounits"])
    if said:
        for name, value in zip(("gpu", "memory", "celsius gpu"), said.splitlines()[0].split(",")):
            if value.strip().replace(".", "").isdigit():
                found[name] = float(value)
    return found


def moved(before, after):
    """The clocks that changed by more than a twentieth while this ran: the latency is of neither of them."""
    steady = [name for name in before if not name.startswith("celsius") and name in after]
    return [name for name in steady if abs(after[name] - before[name]) > STEADY * max(before[name], after[name])]


def power_mode():
    found = {}
    said = ask(["nvpmodel", "-q"])
    if said:
        found["power_mode"] = next(
            (line.split(":", 1)[1].strip() for line in said.splitlines() if "Mode" in line and ":" in line), said
        )
    release = text("/etc/nv_tegra_release")
    if release:
        found["l4t"] = release.splitlines()[0]
    return found


def ask(command):
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def gpu_name():
    said = ask(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return said.splitlines()[0] if said else text("/proc/device-tree/model") or platform.machine()


def peak_host_bytes():
    status = text("/proc/self/status") or ""
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), None)


def report(measured):
    golden = measured["golden"]
    print(
        "golden inputs: largest relative difference %.2g of %.2g allowed" % (golden["difference"], golden["tolerance"])
    )
    if measured["accuracy"]:
        print("accuracy: %.2f%% of %d inputs" % (measured["accuracy"]["value"], measured["accuracy"]["n"]))
    print(
        "latency: median %.3f ms, p90 %.3f ms, p99 %.3f ms; on the GPU alone %.3f ms; %d runs"
        % (
            tuple(1e3 * measured[key] for key in ("latency_s", "latency_p90_s", "latency_p99_s", "gpu_s"))
            + (measured["runs"],)
        )
    )
    for layer in measured["dla_fallback"] or ():
        print("not on the DLA: %s" % layer)
    for name in measured["conditions"]["moved"]:
        print("warning: the clock %s moved while this ran: fix it with sudo jetson_clocks and run again" % name)
    print(
        "ok" if measured["golden_equal"] else "error: the outputs differ from the golden ones by more than is allowed"
    )


if __name__ == "__main__":
    sys.exit(main())
