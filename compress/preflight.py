"""Everything about a job that can be known to fail before a folder is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress.checkpoints import check_finite
from compress.errors import BadData, BadInput, UnknownName
from compress.graph import costs
from compress.graph.surgery import remove
from compress.graph.trace import Network
from compress.graph.traces import traced
from compress.job import Job
from compress.profiling import memory
from compress.prune import roster as pruning
from compress.prune.amounts import uniform
from compress.prune.counter import Counter
from compress.prune.goal import Goal
from compress.prune.norm import magnitudes
from compress.prune.prunable import prunable
from compress.prune.ranking import lowest
from compress.quantize import roster as quantizing
from compress.quantize.mixed import integer_precisions
from compress.search import Proposal


@dataclass(frozen=True)
class Checked:
    """What is known of a job that can be done.

    Attributes:
        ladder: what it proposes where it doesn't search.
        least: the smallest fractions of multiply-accumulates and parameters that pruning reaches.
    """

    ladder: tuple[Proposal, ...]
    least: tuple[float, float] = (1.0, 1.0)


def check(job: Job) -> Checked:
    """See that the job can be done.

    Raises:
        BadInput: it can't; the sentence says what to change.
        NoPrunableAxis: nothing in the network can be pruned, which was asked for.
    """
    if job.prune is not None and job.prune not in pruning.METHODS:
        raise UnknownName("pruning method", job.prune, [*pruning.METHODS, "none"])
    if job.quantize is not None and job.quantize not in quantizing.METHODS:
        raise UnknownName("quantization method", job.quantize, [*quantizing.METHODS, "none"])
    if job.runtime is not None and job.runtime not in job.target.runtimes:
        raise UnknownName("runtime", job.runtime, job.target.runtimes, f"{job.target.name} runs these")
    if job.tune is not None and not job.target.host:
        raise BadInput(f"--tune times kernels on this machine, and {job.target.name} isn't it; leave --tune out")
    _numbers(job)
    check_finite(job.model.state_dict(), job.name)
    _forward(job)
    network = traced(job.model, (job.example,), job.shared)
    if not any(operator.weights for operator in costs.operators(network)):
        raise BadInput("the network has no convolution or linear layer, so there is nothing to compress")
    if job.prune is None:
        proposals = job.proposals()
        _room(job, proposals[-1], network)
        return Checked(proposals)
    dependencies = prunable(job.model, network)
    counter = Counter.of(network, dependencies)
    uniform(counter, Goal(job.budget.macs, job.budget.params), job.target.channel_multiple)  # says what is out of reach
    least = counter.least()
    proposals = job.proposals(least)
    smallest = proposals[-1]
    kept = uniform(counter, Goal(smallest.macs, smallest.params), job.target.channel_multiple)
    scores = magnitudes(job.model, network, dependencies, job.context("", lambda message: None))
    model = remove(job.model, dependencies, lowest(dependencies, scores, kept))
    _room(job, smallest, traced(model, (job.example,), job.shared))
    return Checked(proposals, least)


def _numbers(job: Job) -> None:
    budget = job.budget
    for name, share in (("--macs", budget.macs), ("--params", budget.params)):
        if share is not None and not 0 < share <= 1:
            raise BadInput(f"{name} {share:g}: a fraction kept lies in (0, 1]; half is 0.5")
    if budget.weight_bits is not None and not 1 <= budget.weight_bits <= 32:
        raise BadInput(f"--weight-bits {budget.weight_bits:g}: bits lie between 1 and 32")
    if budget.activation_bits is not None and not 1 <= budget.activation_bits <= 32:
        raise BadInput(f"--activation-bits {budget.activation_bits}: bits lie between 1 and 32")
    for name, count, least_count in (
        ("--candidates", job.candidates, 1),
        ("--samples", job.samples, 1),
        ("--epochs", job.epochs, 0),
    ):
        if count < least_count:
            raise BadInput(f"{name} {count}: it must be at least {least_count}")
    for name, limit in (
        ("--latency", budget.latency_s),
        ("--ram", budget.ram_bytes),
        ("--flash", budget.flash_bytes),
        ("--bit-operations", budget.bit_operations),
    ):
        if limit is not None and limit <= 0:
            raise BadInput(f"{name} must be above 0")
    if job.tune is not None and not 0 <= job.tune < float("inf"):
        raise BadInput(f"--tune {job.tune:g}: seconds, 0 or more")
    if budget.max_accuracy_drop is not None and budget.max_accuracy_drop < 0:
        raise BadInput(f"--max-drop {budget.max_accuracy_drop:g}: it is the loss that you allow, 0 or more")


def _forward(job: Job) -> None:
    """Run two inputs through the network as it is."""
    x = job.example
    training = job.model.training
    try:
        with torch.no_grad():
            output = job.model.eval()(x)
    except Exception as error:  # the user's own code may raise anything
        lines = str(error).splitlines() or [""]
        raise BadData(
            job.data.name,
            f"images of {' x '.join(map(str, x.shape[1:]))} don't go through {job.name} "
            f"({type(error).__name__}: {lines[0][:160]})",
            "give images of the size and channels that the network takes",
        ) from error
    finally:
        job.model.train(training) if training else None
    if not isinstance(output, torch.Tensor):
        raise BadInput(
            f"{job.name} returns {type(output).__name__}, not one tensor; "
            f"wrap it in a module that returns the tensor to keep"
        )
    if not torch.isfinite(output).all():
        raise BadInput(f"{job.name} gives NaN or infinity on {job.data.name}; check its weights and --mean/--std")
    if job.data.task == "classification":
        classes = len(job.data.classes)
        if output.dim() != 2:
            raise BadInput(
                f"{job.name} returns {tuple(output.shape)}; for classification it must return (batch, classes)"
            )
        if output.shape[1] < classes:
            raise BadData(
                job.data.name,
                f"it has {classes} classes, {job.name} tells {output.shape[1]} apart",
                "give the data that the network was trained for",
            )
    elif output.shape[0] != x.shape[0] or output.dim() != 4:
        raise BadInput(
            f"{job.name} returns {tuple(output.shape)}; "
            f"for reconstruction it must return images (batch, channels, height, width)"
        )


def _room(job: Job, smallest: Proposal, network: Network) -> None:
    """See that the target's memory holds the smallest proposal, which ``network`` traces."""
    operators = costs.operators(network)
    # Where bits are chosen under the device's limits, nothing smaller than its narrowest kernels is possible.
    narrow = smallest.weight_bits is not None and job.quantize in quantizing.LIMITED
    bits = float(min(job.widths())) if narrow else smallest.weight_bits or 32.0
    weight_bytes = int(sum(operator.weights for operator in operators) * bits / 8)
    activation_bits = 32
    if smallest.weight_bits is not None:
        activation_bits = job.activation_bits
    if narrow:
        activation_bits = min(p.activation_bits for p in integer_precisions(job.target, job.activation_bits))
    names = [operator.name for operator in operators]
    inputs = {name: job.example[0].numel() for name in network.inputs}
    peak = memory.peak_ram(
        operators, dict.fromkeys([*names, *inputs], activation_bits), weight_bytes, job.target, inputs=inputs
    )
    if peak.bytes > job.target.ram_bytes:
        raise BadInput(
            f"{job.target.name} has {job.target.ram_bytes} bytes of RAM, and even the smallest candidate needs {peak}, "
            f"{peak.bytes - job.target.ram_bytes} too many; choose a larger target, a smaller network or smaller images"
        )
    if job.target.flash_bytes is not None and weight_bytes > job.target.flash_bytes:
        largest = sorted(operators, key=lambda operator: -operator.weights)[:3]
        named = ", ".join(f"{each.path} {int(each.weights * bits / 8)}" for each in largest)
        raise BadInput(
            f"{job.target.name} has {job.target.flash_bytes} bytes of flash, "
            f"and even the smallest candidate's weights take {weight_bytes}, {weight_bytes - job.target.flash_bytes} "
            f"too many (the largest: {named}); choose a larger target or a smaller network"
        )
