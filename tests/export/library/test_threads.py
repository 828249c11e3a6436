"""The pool of threads in C: under the thread sanitizer, with more threads than cores, and when threads can't be had."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from compress.export.kernels import isa
from compress.export.library import building, toolchain
from tests.export.library.codes import small_code

KERNELS = """
#include <stdint.h>
void model_kernel1_weighted(const void *x, void *y, const void *w, int32_t first, int32_t last)
{
    for (int i = first * 15; i < last * 15; i++)
        ((int32_t *)y)[i] = ((const int8_t *)x)[i] * ((const int32_t *)w)[i] + 5;
}
void model_kernel2_doubled(const void *x, void *y, int32_t first, int32_t last)
{
    for (int i = first * 15; i < last * 15; i++)
        ((int32_t *)y)[i] = ((const int32_t *)x)[i] * 2;
}
void model_kernel3_summed(const void *x, void *y, const void *scale, void *scratch)
{
    int32_t *sum = scratch;
    (void)scale;
    for (int c = 0; c < 3; c++)
        sum[c] = 0;
    for (int i = 0; i < 90; i++)
        sum[i % 3] += ((const int32_t *)x)[i];
    for (int c = 0; c < 3; c++)
        ((float *)y)[c] = (float)sum[c];
}
"""
"""What the kernels compute, in C, so that the sanitizer sees every access."""

MAIN = """
#include "model_threads.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Alignas(64) unsigned char arena[MODEL_ARENA_BYTES], own[MODEL_ARENA_BYTES];
static int left = 1000;

int create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    return left-- > 0 ? pthread_create(thread, attributes, start, argument) : 11;
}

int main(void)
{
    static model_pool pool;
    int8_t x[90];
    float y[3], z[3];
    unsigned int state = 1;
    for (int threads = 1; threads <= 9; threads += 2) {
        if (model_pool_start(&pool, threads) != 0)
            return 1;
        for (int run = 0; run < 1500; run++) {
            for (int i = 0; i < 90; i++)
                x[i] = (int8_t)((state = state * 1664525u + 1013904223u) >> 24);
            if (run % 300 == 0)
                usleep(4000);
            model_run_threads(&pool, arena, x, y);
            model_run(own, x, z);
            if (memcmp(y, z, sizeof(y)) != 0)
                return printf("%d threads, run %d: wrong\\n", threads, run);
        }
        model_pool_stop(&pool);
    }
    for (int some = 0; some < 4; some++) {
        left = some;
        if (model_pool_start(&pool, 6) != 11)
            return printf("started with %d threads\\n", some);
    }
    puts("right");
    return 0;
}
"""


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_pool_has_no_races(sanitizer, tmp_path):
    if shutil.which("gcc") is None or not toolchain.native(isa.X86_AVX2):
        pytest.skip("needs gcc on x86")
    built = building.build(small_code(), isa.X86_AVX2, tmp_path / "library")
    shutil.copytree(built.folder / "src", tmp_path / "work")
    (tmp_path / "work" / "kernels.c").write_text(KERNELS)
    (tmp_path / "work" / "main.c").write_text(MAIN)
    flags = ["-g", "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread"]

    def gcc(*arguments: str) -> None:
        made = subprocess.run(["gcc", *flags, *arguments], cwd=tmp_path / "work", capture_output=True, text=True)
        if "cannot find" in made.stderr:
            pytest.skip(f"gcc has no {sanitizer} sanitizer here")
        assert made.returncode == 0, made.stderr

    gcc("-Dpthread_create=create", "-c", "model_threads.c", "-o", "threads.o")
    gcc("main.c", "kernels.c", "model.c", "model_weights.c", "threads.o", "-o", "program")
    options = {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    ran = subprocess.run([tmp_path / "work" / "program"], capture_output=True, text=True, timeout=300, env=options)
    assert (ran.returncode, ran.stdout) == (0, "right\n"), ran.stdout + ran.stderr
