"""TensorRT as build_engine.py sees it, recorded from the bindings' classes: engines run in ONNX Runtime, memory is
numpy's.

Only names that the script touches are here; ``test_tensorrt_bindings.py`` checks that the real bindings have each.
"""

from __future__ import annotations

import enum
import json
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime


class FakeCuda:
    """Memory by address; streams run at once; events count up."""

    device, capability = "Fake Orin", "8.7"

    def __init__(self, graphs: bool = True) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.graphs: dict[int, Any] = {}
        self.next, self.free, self.clock, self.with_graphs = 1, 8 << 30, 0.0, graphs

    def handle(self) -> int:
        self.next += 1
        return self.next

    stream = event = handle

    def allocate(self, size):
        address = self.handle()
        self.memory[address] = np.zeros(size, np.uint8)
        self.free -= size
        return address

    def upload(self, pointer, array, stream):
        self.memory[pointer][: array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, array, pointer, stream):
        array.reshape(-1).view(np.uint8)[:] = self.memory[pointer][: array.nbytes]

    def synchronize(self, stream):
        self.clock += 1e-3

    def record(self, event, stream):
        self.clock += 1e-3

    def milliseconds(self, start, end):
        return 0.25

    def capture(self, stream, enqueue):
        graph = self.handle()
        self.graphs[graph] = enqueue
        return graph

    def launch(self, graph, stream):
        self.graphs[graph]()

    def free_bytes(self):
        return self.free


def module(version: str, cuda: FakeCuda, **behaviour: Any) -> types.ModuleType:
    """A module ``tensorrt`` of a version.

    Args:
        version: as ``__version__``.
        cuda: the memory that engines compute in.
        behaviour: ``parse_error``: what the parser says; ``noise``: added to the outputs; ``builds``: False if the
            builder gives up; ``loads``: False if an engine is of another version; ``on_dla``: layers that a DLA takes.
    """
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = version
    log: list[str] = []
    trt.log = log

    class Logger:
        WARNING = 2

        def __init__(self, severity):
            pass

    class Flags(enum.IntEnum):
        VERSION_COMPATIBLE, GPU_FALLBACK = 5, 6

    class Tensor:
        name, shape = "input", (-1, 3, 8, 8)

    class Network:
        num_inputs = 1

        def __init__(self, flags):
            assert flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            self.model = None

        def get_input(self, index):
            tensor = Tensor()
            dims = self.model.graph.input[index].type.tensor_type.shape.dim
            tensor.shape = tuple(d.dim_value or -1 for d in dims)
            return tensor

        @property
        def num_layers(self):
            return len(self.model.graph.node)

        def get_layer(self, index):
            return types.SimpleNamespace(name=self.model.graph.node[index].name)

    class OnnxParser:
        def __init__(self, network, logger):
            self.network = network
            self.num_errors = 1 if behaviour.get("parse_error") else 0

        def parse(self, content):
            if behaviour.get("parse_error"):
                return False
            self.network.model = onnx.load_from_string(content)
            self.network.content = content
            return True

        def get_error(self, index):
            return types.SimpleNamespace(desc=lambda: behaviour["parse_error"])

    class Cache:
        def __init__(self, content):
            self.content = content

        def serialize(self):
            return b"timings of " + version.encode()

    class Config:
        def __init__(self):
            self.flags, self.shapes = set(), None
            self.profiling_verbosity = self.progress_monitor = self.default_device_type = self.DLA_core = None

        def set_memory_pool_limit(self, pool, size):
            log.append(f"workspace {size >> 20}")

        def set_flag(self, flag):
            self.flags.add(flag)
            log.append(flag.name)

        def add_optimization_profile(self, profile):
            self.shapes = profile.shapes

        def create_timing_cache(self, content):
            log.append(f"cache of {len(content)}")
            return Cache(content)

        def set_timing_cache(self, cache, ignore_mismatch):
            return cache.content in (b"", b"timings of " + version.encode())

        def can_run_on_DLA(self, layer):  # noqa: N802  # TensorRT's name
            return layer.name in behaviour.get("on_dla", ())

    class Profile:
        def set_shape(self, name, low, best, high):
            assert low == best == high
            self.shapes = {name: best}

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flags):
            return Network(flags)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            if not behaviour.get("builds", True):
                return None
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("Building", None, 1)
                assert config.progress_monitor.step_complete("Building", 0) is True
                config.progress_monitor.phase_finish("Building")
            log.append("built")
            return network.content

    class Profiler:
        def __init__(self):
            pass

    class Context:
        def __init__(self, engine):
            self.engine, self.addresses, self.profiler = engine, {}, None

        def set_input_shape(self, name, shape):
            self.shape = shape
            self.output_shape = engine_output(self.engine, np.zeros(shape, np.float32)).shape

        def get_tensor_shape(self, name):
            return self.output_shape

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def execute_async_v3(self, stream):
            count = int(np.prod(self.shape))
            x = cuda.memory[self.addresses["input"]][: 4 * count].view(np.float32).reshape(self.shape)
            y = engine_output(self.engine, x) + np.float32(behaviour.get("noise", 0.0))
            cuda.upload(self.addresses["output"], np.ascontiguousarray(y, np.float32), stream)
            log.append("ran" if self.profiler is None else "profiled")
            if self.profiler is not None:
                for name, ms in (("conv", 0.25), ("head", 0.125)):
                    self.profiler.report_layer_time(name, ms)
            return True

    class Engine:
        num_io_tensors, device_memory_size_v2 = 2, 4096

        def __init__(self, content):
            options = onnxruntime.SessionOptions()
            # ONNX Runtime's own fusions of float16 quantizers differ from the operators' definition.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            self.session = onnxruntime.InferenceSession(content, options)

        def get_tensor_name(self, index):
            return ("input", "output")[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name == "input" else trt.TensorIOMode.OUTPUT

        def create_execution_context(self):
            return Context(self)

        def create_engine_inspector(self):
            text = json.dumps({"Layers": [{"Name": "conv", "Precision": "INT8"}]})
            return types.SimpleNamespace(get_engine_information=lambda kind: text)

    def engine_output(engine, x):
        return engine.session.run(None, {"input": x})[0]

    class Runtime:
        engine_host_code_allowed, DLA_core = False, None

        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, content):
            return Engine(content) if behaviour.get("loads", True) else None

    class Monitor:
        def __init__(self):
            pass

    trt.IProfiler = Profiler
    trt.Logger, trt.Builder, trt.OnnxParser, trt.Runtime, trt.IProgressMonitor = (
        Logger,
        Builder,
        OnnxParser,
        Runtime,
        Monitor,
    )
    trt.BuilderFlag = Flags
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    trt.MemoryPoolType = enum.IntEnum("MemoryPoolType", {"WORKSPACE": 0})
    trt.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", {"DETAILED": 2})
    trt.DeviceType = enum.IntEnum("DeviceType", {"GPU": 0, "DLA": 1})
    trt.TensorIOMode = enum.IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
    trt.LayerInformationFormat = enum.IntEnum("LayerInformationFormat", {"ONELINE": 0, "JSON": 1})
    return trt
