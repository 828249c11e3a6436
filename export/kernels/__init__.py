"""Kernels of the compiled library: one function of C's calling convention an operator, emitted as TVM's TensorIR."""
