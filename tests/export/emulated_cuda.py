"""CUDA's driver and runtime on the processor: memory is malloc's, a kernel's threads run one after the other.

The kernels are the CUDA source that was compiled for the GPU, compiled for this machine; everything else is the module
itself: its code for the host, TVM's virtual machine, memory plan and constants. A module is loaded only if its image is
a cubin of the architecture that is emulated.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from compress.export import cuda_module
from compress.export.kernels import cuda_tensor

SHIM = r"""
#include <cstdint>
#include <cmath>
#include <algorithm>
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __restrict__
struct Index { int x, y, z; };
static thread_local Index blockIdx, threadIdx;
using std::max; using std::min;
static int __dp4a(int a, int b, int c) {
    for (int k = 0; k < 4; ++k) c += int(int8_t(a >> 8 * k)) * int(int8_t(b >> 8 * k));
    return c;
}
"""
WARPS = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <ucontext.h>
// A warp's lanes take turns, and meet where an instruction is the whole warp's.
struct Lane {
    ucontext_t here; std::vector<char> stack; Index place; bool half, waiting, done; void *d; int a[4], b[2];
};
static thread_local Lane lanes[32];
static thread_local ucontext_t outside;
static thread_local int active;
static thread_local void (*work)(void **);
static thread_local void **parameters;
static void lane() { work(parameters); lanes[active].done = true; }
static void meet(void *d, bool half, int a0, int a1, int a2, int a3, int b0, int b1) {
    Lane &me = lanes[active];
    me.d = d; me.half = half; me.waiting = true;
    me.a[0] = a0; me.a[1] = a1; me.a[2] = a2; me.a[3] = a3; me.b[0] = b0; me.b[1] = b1;
    swapcontext(&me.here, &outside);
}
static void compress_mma_s8(int *d, int a0, int a1, int a2, int a3, int b0, int b1) {
    meet(d, false, a0, a1, a2, a3, b0, b1);
}
static void compress_mma_f16(float *d, int a0, int a1, int a2, int a3, int b0, int b1) {
    meet(d, true, a0, a1, a2, a3, b0, b1);
}
static int compress_half2(float low, float high) {
    _Float16 both[2] = {_Float16(low), _Float16(high)};
    int word; memcpy(&word, both, 4); return word;
}
// mma.m16n8k16 with .f16 and sums in .f32, by the PTX ISA.
static void multiply_halves() {
    static thread_local float a[16][16], b[16][8];
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 4; ++r) for (int k = 0; k < 2; ++k) {
        _Float16 both[2]; memcpy(both, &lanes[l].a[r], 4);
        a[l / 4 + (r % 2 ? 8 : 0)][l % 4 * 2 + k + (r / 2 ? 8 : 0)] = both[k];
    }
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 2; ++r) for (int k = 0; k < 2; ++k) {
        _Float16 both[2]; memcpy(both, &lanes[l].b[r], 4);
        b[l % 4 * 2 + k + (r ? 8 : 0)][l / 4] = both[k];
    }
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 4; ++r) {
        int row = l / 4 + (r / 2 ? 8 : 0), column = l % 4 * 2 + r % 2;
        float *d = (float *)lanes[l].d;
        for (int k = 0; k < 16; ++k) d[r] += a[row][k] * b[k][column];
    }
}
// The numbers of the rows and columns that a lane's registers hold are the PTX ISA's for mma.m16n8k32 with .s8.
static void multiply() {
    static thread_local int a[16][32], b[32][8];
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 4; ++r) for (int k = 0; k < 4; ++k)
        a[l / 4 + (r % 2 ? 8 : 0)][l % 4 * 4 + k + (r / 2 ? 16 : 0)] = int8_t(lanes[l].a[r] >> 8 * k);
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 2; ++r) for (int k = 0; k < 4; ++k)
        b[l % 4 * 4 + k + (r ? 16 : 0)][l / 4] = int8_t(lanes[l].b[r] >> 8 * k);
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 4; ++r) {
        int row = l / 4 + (r / 2 ? 8 : 0), column = l % 4 * 2 + r % 2;
        int *d = (int *)lanes[l].d;
        unsigned sum = d[r];
        for (int k = 0; k < 32; ++k) sum += unsigned(a[row][k] * b[k][column]);
        d[r] = sum;
    }
}
static void warp(void (*f)(void **), void **p, int block, int y, int first) {
    work = f; parameters = p;
    for (int l = 0; l < 32; ++l) {
        Lane &one = lanes[l];
        one.stack.resize(1 << 16); one.waiting = one.done = false; one.place = {first + l, 0, 0};
        getcontext(&one.here);
        one.here.uc_stack.ss_sp = one.stack.data(); one.here.uc_stack.ss_size = one.stack.size();
        one.here.uc_link = &outside;
        makecontext(&one.here, lane, 0);
    }
    for (;;) {
        int waiting = 0, done = 0;
        for (int l = 32; l-- > 0;) if (!lanes[l].done) {
            active = l; blockIdx = {block, y, 0}; threadIdx = lanes[l].place; lanes[l].waiting = false;
            swapcontext(&outside, &lanes[l].here);
        }
        for (int l = 0; l < 32; ++l) { waiting += lanes[l].waiting && !lanes[l].done; done += lanes[l].done; }
        if (done == 32) return;
        if (waiting != 32) { fprintf(stderr, "a warp's instruction, but only %d of its lanes\n", waiting); abort(); }
        for (int l = 1; l < 32; ++l) if (lanes[l].half != lanes[0].half) abort();
        lanes[0].half ? multiply_halves() : multiply();
    }
}
"""
RUNTIME = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
extern "C" {
int cudaMalloc(void **p, size_t n) { *p = aligned_alloc(256, (n + 255) / 256 * 256); memset(*p, 0x55, n); return 0; }
int cudaFree(void *p) { free(p); return 0; }
int cudaMallocHost(void **p, size_t n) { return cudaMalloc(p, n); }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaMemcpyAsync(void *d, const void *s, size_t n, int, void *) { memcpy(d, s, n); return 0; }
int cudaMemcpyPeerAsync(void *d, int, const void *s, int, size_t n, void *) { memcpy(d, s, n); return 0; }
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaDeviceGetAttribute(int *v, int which, int) {
    *v = which == 75 ? GPU / 10 : which == 76 ? GPU % 10 : which == 10 ? 32 : 1024;
    return 0;
}
int cudaMemGetInfo(size_t *a, size_t *b) { *a = *b = size_t(1) << 32; return 0; }
const char *cudaGetErrorString(int) { return "emulated"; }
const char *cudaGetErrorName(int) { return "emulated"; }
int cuDeviceGetName(char *n, int size, int) { snprintf(n, size, "emulated"); return 0; }
int cuModuleLoadData(void **module, const void *image) {
    const unsigned char *e = (const unsigned char *)image;
    if (memcmp(e, "\177ELF", 4) != 0 || e[18] != 190 || e[49] != GPU) return 209;
    *module = dlopen(getenv("EMULATED_KERNELS"), RTLD_NOW);
    if (!*module) fprintf(stderr, "%s\n", dlerror());
    return *module ? 0 : 999;
}
int cuModuleGetFunction(void **f, void *module, const char *name) {
    *f = dlsym(module, (std::string("run_") + name).c_str());
    return *f ? 0 : 500;
}
int cuLaunchKernelEx(const unsigned *config, void *f, void **parameters, void **) {
    if (config[2] * config[4] * config[5] != 1) return 1;
    for (unsigned y = config[1]; y-- > 0;)
        ((void (*)(unsigned, unsigned, unsigned, void **))f)(config[0], y, config[3], parameters);
    return 0;
}
OTHERS
}
"""


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("needs a C++ compiler")
    return found


def compiled(source: str, target: Path, *options: str) -> None:
    path = target.with_suffix(".cpp")
    path.write_text(source, encoding="utf-8")
    done = subprocess.run(
        [compiler(), "-O1", "-w", "-shared", "-fPIC", *options, "-o", str(target), str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:3000]


def empty_cubin(source: str, gpu: str) -> bytes:
    """In place of nvcc's: the header of one, by which the emulated CUDA knows the architecture."""
    header = bytearray(64)
    header[:9] = b"\x7fELF\x02\x01\x01\x41\x08"
    header[18:20] = cuda_module.CUDA_MACHINE.to_bytes(2, "little")
    header[49] = int(gpu.removeprefix("sm_"))
    return bytes(header)


def kernels(source: str, target: Path) -> None:
    """The CUDA source for this machine, and a loop over all threads for each kernel, the last one first."""
    start = source.index('extern "C" __global__')
    bodies = {}
    for part in source.split('extern "C" __global__ void ')[1:]:
        named = re.match(r"(?:__launch_bounds__\(\d+\) )?(\w+)\(", part)
        assert named
        bodies[named[1]] = bodies.get(named[1], "") + part
    wrappers = []
    for name, parameters in re.findall(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{", source):
        kinds = [
            parameter.rpartition(" ")[0].replace("__restrict__", "").strip() for parameter in parameters.split(",")
        ]
        given = ", ".join(f"*({kind} *)p[{k}]" for k, kind in enumerate(kinds))
        if any(each in bodies[name] for each in (cuda_tensor.MMA, cuda_tensor.HALF_MMA)):
            wrappers.append(
                f"static void all_{name}(void **p) {{ {name}({given}); }}\n"
                f'extern "C" void run_{name}(unsigned grid, unsigned y, unsigned block, void **p) {{\n'
                'if (block % 32) { fprintf(stderr, "a block without whole warps\\n"); abort(); }\n'
                f"for (unsigned b = grid; b-- > 0;) for (unsigned t = block; t > 0; t -= 32) "
                f"warp(all_{name}, p, b, y, t - 32); }}\n"
            )
            continue
        wrappers.append(
            f'extern "C" void run_{name}(unsigned grid, unsigned y, unsigned block, void **p) {{\n'
            f"for (unsigned b = grid; b-- > 0;) for (unsigned t = block; t-- > 0;) {{ "
            f"blockIdx = {{int(b), int(y), 0}}; threadIdx = {{int(t), 0, 0}}; {name}({given}); }} }}\n"
        )
    assert wrappers
    compiled(SHIM + WARPS + source[start:] + "\n".join(wrappers), target)


def runtime(folder: Path, gpu: str) -> None:
    """libcuda and libcudart, in one library under both names."""
    import tvm

    library = (Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so").read_bytes()
    names = {name.decode() for name in re.findall(rb"(?<=\0)cu(?:da)?[A-Z][A-Za-z0-9_]*(?=\0)", library)}
    (soname,) = {match.decode() for match in re.findall(rb"libcudart\.so\.\d+", library)}
    others = "".join(
        f"int {name}(void) {{ return 0; }}\n"
        for name in sorted(names)
        if f" {name}(" not in RUNTIME and f"*{name}(" not in RUNTIME
    )
    script = folder / "map"
    script.write_text(f"{soname} {{ global: *; }};\n")
    source = RUNTIME.replace("OTHERS", others).replace("GPU", gpu.removeprefix("sm_"))
    compiled(source, folder / soname, f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}")
    script.write_text("{ global: *; };\n")
    compiled(source, folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1", f"-Wl,--version-script={script}")


def outputs(
    modules: Mapping[str, cuda_module.CudaModule], inputs: Mapping[str, list[np.ndarray]], folder: Path
) -> dict[str, np.ndarray]:
    """What modules of one GPU give for flat inputs, all in one process that finds the emulated CUDA."""
    (gpu,) = {module.gpu for module in modules.values()}
    emulated = folder / "emulated"
    emulated.mkdir()
    runtime(emulated, gpu)
    for name, module in modules.items():
        kernels(module.source, emulated / f"{name}.so")
        np.savez(emulated / f"{name}.npz", *inputs[name])
    code = (
        "import ctypes, os, pathlib, sys, numpy as np, tvm\n"
        "from tvm import relax\n"
        "library = pathlib.Path(tvm.__file__).parent / 'lib' / 'libtvm_runtime_cuda.so'\n"
        "ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)\n"
        "device, folder = tvm.cuda(0), pathlib.Path(sys.argv[1])\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    name, module = line.split('\\t')\n"
        "    os.environ['EMULATED_KERNELS'] = str(folder / f'{name}.so')\n"
        "    machine = relax.VirtualMachine(tvm.runtime.load_module(module), device)\n"
        "    held = np.load(folder / f'{name}.npz')\n"
        "    given = [tvm.runtime.tensor(held[each].reshape(-1), device) for each in held.files]\n"
        "    np.save(folder / f'{name}.npy', machine['main'](*given).numpy())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(emulated)],
        input="".join(f"{name}\t{module.path}\n" for name, module in modules.items()),
        env={**os.environ, "LD_LIBRARY_PATH": str(emulated)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name: np.load(emulated / f"{name}.npy") for name in modules}


def run(bundle: Path, source: str, gpu: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The bundle's own ``run_cuda.py`` in a process that finds the emulated CUDA."""
    folder.mkdir(exist_ok=True)
    runtime(folder, gpu)
    kernels(source, folder / "kernels.so")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "EMULATED_KERNELS": str(folder / "kernels.so")}
    script = resources.files("compress.export") / "templates" / "run_cuda.py"
    code = (
        "import ctypes, pathlib, runpy, sys, tvm\n"
        "import tvm.base\n"
        "library = pathlib.Path(tvm.__file__).parent / 'lib' / 'libtvm_runtime_cuda.so'\n"
        "ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)\n"
        f"found = runpy.run_path({str(bundle / script.name)!r}, run_name='run_cuda')\n"
        "main = found['main']; main.__globals__.update(WARM_UP_S=0.0, SECONDS=0.01)\n"
        "sys.exit(main())\n"
    )
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
