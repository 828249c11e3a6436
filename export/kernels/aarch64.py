"""The back end of 64-bit Arm.

==========  ======================================================  =====================
``dot``     the inner loop                                          instructions per MAC
==========  ======================================================  =====================
sdot        ``sdot`` by lane, 6 pixels x 16 channels                0.075
neon        ``smull``, ``smlal``, ``sadalp``                        0.26
neon        ``smlal``, ``smlal2`` by lane, if a weight is -128      0.31
neon        ``uabd``, ``uaddlp``, ``uadalp``; weights of one bit    0.29
==========  ======================================================  =====================

The last column counts the innermost loop of a 3x3 convolution from 64 channels to 64, loads included. Of plain NEON's
two forms of products the first has half the multiplications, which is what a Cortex-A72 waits for; weights of one bit
would take it 0.41.
"""

from compress.export.kernels.dot_program import assemble

__all__ = ["assemble"]
