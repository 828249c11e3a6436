"""The back end of x86.

==========  ==================  ====================================================  ==========================
``dot``     4 channels          a vector                                              instructions per MAC
==========  ==================  ====================================================  ==========================
vnni512     ``vpdpbusd`` zmm    16 output channels                                    0.024
vnni256     ``vpdpbusd`` ymm    8; 16 registers are enough, as AVX-VNNI has them      0.060
avx2        ``vpmaddubsw``      8; weights of 7, 6, 5, 4 or 2 bits                    0.13, 0.12, 0.11, 0.12
avx2        2 ``vpmaddwd``      8; even and odd bytes as 16-bit pairs                 0.20
avx2        ``vpsadbw``         4, of 8 channels; weights of one bit                  0.095
==========  ==================  ====================================================  ==========================

The last column counts the innermost loop of a 3x3 convolution from 64 channels to 64, loads included.
``vpmaddubsw`` adds two products in 16 bits, which saturate for weights beyond -64 to 64; of narrower ones several sums
are added there before they are widened. A pixel's 4 bytes are broadcast once for all columns of the kernel where
registers allow. Sums are rescaled by ``vpmuldq`` on even and odd lanes, packed with saturation four vectors at a
time, and stored as whole vectors where pixels lie densely.
"""

from compress.export.kernels.dot_program import assemble

__all__ = ["assemble"]
