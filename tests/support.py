"""What several tests build on: a data set of random images, a context for stages."""

from __future__ import annotations

import functools

import onnx
import onnxruntime
import torch

from compress import data as datasets
from compress import targets
from compress.export.onnx import serialize, stored
from compress.export.onnxruntime import weight_storage
from compress.quantize import quantize
from compress.types import Budget, Context
from tests.graph.networks import build, images


def random_data(n: int = 64, classes: int = 5, seed: int = 3):
    """Random images with labels 0, 1, ... in turn, as a data set."""
    return datasets.from_python((images(n, seed), torch.arange(n) % classes), divisible=False)


def context(target: str = "cpu", seed: int = 0, data=None, **more) -> Context:
    """A context for stages on random images."""
    return Context(targets.load(target), Budget(), data or random_data(), torch.Generator().manual_seed(seed), **more)


@functools.cache
def quantized(factory, bits: float = 8, method: str | None = None):
    """A network of the roster, quantized on random images; made once, as nobody changes it."""
    return quantize(build(factory), images(64), weight_bits=bits, method=method)


@functools.cache
def file_of(factory, bits: float = 8) -> bytes:
    """The ONNX file of :func:`quantized`."""
    return serialize(quantized(factory, bits).state, images(2))


def exact_here(content: bytes) -> bytes:
    """A file with its weights as ONNX Runtime is exact on them on this machine."""
    return stored(content, weight_storage(targets.load("cpu")))


def optimized_operators(path) -> list[str]:
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
