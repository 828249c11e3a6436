"""The benchmarks, in the order of the docs. A new one is a file of its own and a line here."""

from __future__ import annotations

from benchmarks import (
    allocation_front,
    cifar10_ptq,
    compiled_agreement,
    compiled_cortex_m,
    compiled_x86,
    cpu_target,
    criteria,
    cuda_networks,
    default_job,
    front_search,
    hessian_trace,
    imagenet_ptq,
    latency_prediction,
    lenet_mnist,
    mixed_precision,
    oto,
    prune_cifar10,
    prune_finetune,
    prune_imagenet,
    prune_schedule,
    qat_cifar10,
    sensing,
    sensing_compiled,
    sensing_noise,
    sensing_recognition,
    ssh_overhead,
)
from benchmarks.common import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        default_job,
        cifar10_ptq,
        mixed_precision,
        imagenet_ptq,
        qat_cifar10,
        allocation_front,
        hessian_trace,
        compiled_x86,
        compiled_cortex_m,
        compiled_agreement,
        cpu_target,
        latency_prediction,
        front_search,
        cuda_networks,
        ssh_overhead,
        prune_cifar10,
        prune_finetune,
        prune_schedule,
        prune_imagenet,
        criteria,
        lenet_mnist,
        oto,
        sensing,
        sensing_compiled,
        sensing_noise,
        sensing_recognition,
    )
}
