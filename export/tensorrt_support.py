"""What TensorRT's ONNX parser documents: operators, types, opsets.

From ``docs/operators.md`` of onnx-tensorrt for TensorRT 10.15, whose operators are those of 10.3 and of 11.x but for the
few in :data:`NEWER`. What isn't listed isn't supported.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSIONS = ("10.3", "10.15", "11")
"""The releases that the rules know: JetPack 6's, the last line of 10.x, and 11.x."""
LARGEST_OPSET: Mapping[str, int] = {"10.3": 20, "10.15": 24, "11": 24}
SMALLEST_OPSET = 9

SUPPORTED = frozenset(
    """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
    DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If ImageScaler
    InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM
    LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression
    NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization RNN RoiAlign
    RotaryEmbedding Round STFT ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh
    Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile
    TopK Transpose Trilu Unsqueeze Upsample Where Xor""".split()
)
NEWER = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding", "Swish"})
"""Operators of opsets that 10.3 didn't know."""

INSTEAD: Mapping[str, str] = {
    "QLinearConv": "write it as DequantizeLinear, Conv, QuantizeLinear",
    "QLinearMatMul": "write it as DequantizeLinear, MatMul, QuantizeLinear",
    "ConvInteger": "write it as DequantizeLinear in front of a Conv",
    "MatMulInteger": "write it as DequantizeLinear in front of a MatMul",
    "DynamicQuantizeLinear": "give the tensor a fixed scale by QuantizeLinear",
}
"""What to write in place of an operator; for the others the sentence is :data:`OTHERWISE`."""
OTHERWISE = "rewrite it with supported operators, or give TensorRT a plugin of that name"

UNSUPPORTED_TYPES: Mapping[str, str] = {
    "DOUBLE": "TensorRT casts it down to float32: make it float32 in the file",
    "UINT16": "use int32",
    "INT16": "use int32, or int8 for quantized tensors",
    "UINT32": "use int64",
    "UINT64": "use int64",
    "STRING": "keep strings out of the network",
    "COMPLEX64": "split it into real and imaginary parts",
    "COMPLEX128": "split it into real and imaginary parts",
    "UINT4": "use INT4, symmetric",
    "INT2": "store the weights as INT8",
    "UINT2": "store the weights as INT8",
}
"""ONNX's types that TensorRT has no tensor of, and what to do."""
CASTS_FROM = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "UINT8", "BOOL", "DOUBLE"})
"""Types that Cast takes and gives; quantized ones come and go through QuantizeLinear and DequantizeLinear alone."""


def supported(operator: str, version: str) -> bool:
    """Whether a release's parser documents an operator of ONNX's own domain."""
    return operator in SUPPORTED and not (version == "10.3" and operator in NEWER)


__all__ = [
    "CASTS_FROM",
    "INSTEAD",
    "LARGEST_OPSET",
    "OTHERWISE",
    "SMALLEST_OPSET",
    "UNSUPPORTED_TYPES",
    "VERSIONS",
    "supported",
]
