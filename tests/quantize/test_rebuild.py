"""Rounding a whole network layer by layer: what it is near to, what it corrects, what its simulation computes."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.graph.interpret import BATCH, Steps
from compress.graph.moments import collect
from compress.graph.qdq import insert, integers, on_grid
from compress.graph.segments import other_operand, segments
from compress.graph.trace import Network, kind, trace
from compress.quantize.calibrate import activation_grids, folded
from compress.quantize.placement import Placement, place
from compress.quantize.rebuild import layers_of, matrix, nearest_layer, rebuild, rounded_layer
from compress.quantize.simulation import Simulation
from compress.types import Grid, LayerPlan, Plan, Precision, Quantization, State
from tests.graph.convolutional import Transposed
from tests.graph.networks import ROSTER, Attention, Depthwise, Grouped, Perceptron, Plain, Residual, UNet, build, images
from tests.rosters import crossed
from tests.support import context

networks = pytest.mark.parametrize("factory", [*ROSTER, Transposed], ids=lambda factory: factory.__name__)


class Context(nn.Module):
    """A block that adds one vector an image to a whole map: the addition is wider than its layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gather, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.gather(x.mean((2, 3), keepdim=True)) + x
        return self.head(F.relu(x).mean((2, 3)))


class OneForTwo(nn.Module):
    """A bias that two layers share, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.two.bias = self.one.bias
        self.head, self.tail = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tail.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.three(F.relu(self.two(F.relu(self.one(x))))))
        return self.tail(F.relu(self.head(x.mean((2, 3)))))


class ByWord(nn.Module):
    """Padding that is given as a word, which is no matrix product here."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(6, 4, 3, padding="valid")
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3)))


@functools.cache
def traced(factory) -> tuple[nn.Module, Network]:
    """The folded network and its trace; nobody changes them."""
    state, network = folded(State(build(factory)), images(4))
    return state.model, network


def prepared(factory, bits: int) -> tuple[nn.Module, Network, Steps, Placement]:
    """The folded network, its trace, its operators, and where grids go; nobody changes the first two."""
    return placed(*traced(factory), bits)


def placed(model: nn.Module, network: Network, bits: int) -> tuple[nn.Module, Network, Steps, Placement]:
    names = {name.removesuffix(".weight") for name in layers_of(Steps.of(network))}
    precision = Precision(bits, 8, "integer")
    placement = place(network, Plan().updated(*(LayerPlan(name, None, precision) for name in sorted(names))))
    return model, network, Steps.of(network), placement


def rebuilt(whole: Steps, bits: int, x: Tensor, grids: dict[str, Grid]) -> tuple[Simulation, dict[str, Grid]]:
    """A network whose layers are all rounded."""
    made = Simulation(replace(whole, parameters=dict(whole.parameters)), grids)
    found = rebuild(
        whole,
        made,
        dict.fromkeys(layers_of(whole), bits),
        x,
        batch=16,
        generator=torch.Generator().manual_seed(0),
        progress=lambda message: None,
    )
    return made, found


def output(made: Simulation, x: Tensor) -> Tensor:
    environment = made.start((x,))
    with torch.no_grad():
        made.run(environment, made.steps.nodes)
    return environment[made.steps.output]


def distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


EVERY = (Plain, Depthwise, Grouped, Perceptron, Transposed, Context, OneForTwo, ByWord)


@pytest.mark.parametrize("factory", EVERY, ids=lambda factory: factory.__name__)
def test_with_eight_bits_and_float_activations_it_is_nearly_the_float_network(factory):
    model, _, whole, _ = prepared(factory, 8)
    made, grids = rebuilt(whole, 8, images(32, 2), {})
    assert set(grids) == set(layers_of(whole))
    assert distance(output(made, images(16, 7)), model(images(16, 7))) < 0.02


@crossed(("factory", "bits"), EVERY, [1, 3])
def test_weights_lie_on_the_grids_and_the_float_network_is_as_it_was(factory, bits):
    _, _, whole, _ = prepared(factory, bits)
    before = {name: tensor.clone() for name, tensor in whole.parameters.items()}
    made, grids = rebuilt(whole, bits, images(32, 2), {})
    for name, grid in grids.items():
        weight = made.steps.parameters[name]
        assert torch.equal(on_grid(weight, grid), weight)
        assert grid.low <= int(integers(weight, grid).min()) <= int(integers(weight, grid).max()) <= grid.high
    assert all(torch.equal(whole.parameters[name], tensor) for name, tensor in before.items())
    assert torch.isfinite(output(made, images(4, 7))).all()


@pytest.mark.parametrize("factory", [Plain, Attention], ids=lambda factory: factory.__name__)
def test_later_layers_correct_what_earlier_ones_got_wrong(factory):
    """Against rounding each layer alone, by second order and to nearest, on inputs that nobody saw."""
    model, _, whole, _ = prepared(factory, 3)
    x, unseen = images(256, 2), images(64, 7)
    layers = layers_of(whole)
    readers = [layer.reader for layer in layers.values() if layer.reader is not None]
    grams = collect(whole, readers, x, 64, torch.Generator().manual_seed(0), lambda message: None)
    alone, plain = dict(whole.parameters), dict(whole.parameters)
    for name, layer in layers.items():
        assert layer.reader is not None
        gram = grams[layer.reader.node.name]
        alone[name], bias, _ = rounded_layer(whole, layer, matrix(whole, layer), gram, 3)
        if bias is not None:
            alone[layer.bias] = bias
        plain[name], _ = nearest_layer(whole, layer, 3)
    wanted = model(unseen)
    errors = [distance(output(Simulation(replace(whole, parameters=p), {}), unseen), wanted) for p in (alone, plain)]
    made, _ = rebuilt(whole, 3, x, {})
    assert distance(output(made, unseen), wanted) < min(errors)


def test_a_layer_makes_up_for_the_one_before_it():
    """The first layer puts out half of what it should, on a coarse grid; the second is doubled."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6)).eval()
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    whole = Steps.of(trace(model, (x[:2],)))
    (first, second) = layers_of(whole)
    made = Simulation(replace(whole, parameters=dict(whole.parameters)), {})
    made.steps.parameters[first] = whole.parameters[first] / 2
    generator = torch.Generator().manual_seed(0)
    rebuild(whole, made, {second: 8}, x, batch=64, generator=generator, progress=lambda message: None)
    unseen = torch.randn(256, 6, generator=generator)
    assert distance(output(made, unseen), model(unseen).detach()) < 0.01


def test_an_operand_that_is_spread_over_positions_is_not_made_up_for():
    """The vector that is added to a map comes out as in the float network, though the map is half as large."""
    model, _, whole, _ = prepared(Context, 8)
    made = Simulation(replace(whole, parameters=dict(whole.parameters)), {})
    for name in ("stem.weight", "stem.bias"):
        made.steps.parameters[name] = whole.parameters[name] / 2
    generator = torch.Generator().manual_seed(0)
    rebuild(whole, made, {"gather.weight": 8}, images(256, 2), batch=64, generator=generator, progress=lambda _: None)
    x = F.relu(model.stem(images(64, 7))).mean((2, 3), keepdim=True)
    with torch.no_grad():
        got = F.conv2d(x / 2, made.steps.parameters["gather.weight"], made.steps.parameters["gather.bias"])
        assert distance(got, model.gather(x)) < 0.05


@pytest.mark.parametrize("factory", [Residual, Grouped, UNet, Attention, Transposed], ids=lambda f: f.__name__)
def test_the_simulation_computes_what_the_inserted_graph_computes(factory):
    """But for biases, which the graph rounds to 32 bits: with the graph's biases it computes the same numbers."""
    model, network, whole, placement = placed(*traced.__wrapped__(factory), 4)
    activations = activation_grids(placement, network, images(32, 2), context())
    made, grids = rebuilt(whole, 4, images(32, 2), activations)
    with torch.no_grad():
        for layer in layers_of(whole).values():
            for name in (layer.weight, layer.bias):
                if name is not None:
                    model.get_parameter(name).copy_(made.steps.parameters[name])
    weights = {name: grids[name] for name in placement.weights}
    graph = insert(network, Quantization(weights, activations, placement.carried))
    kept = dict(graph.named_buffers())
    for name in {layer.bias for layer in layers_of(whole).values()} & {key.removesuffix("_quantized") for key in kept}:
        exact = made.steps.parameters[name]
        step = kept[f"{name}_scale"]
        made.steps.parameters[name] = kept[f"{name}_quantized"] * step
        assert ((made.steps.parameters[name] - exact).abs() <= 0.5001 * step + 1e-7).all()
    x = images(16, 7)
    with torch.no_grad():
        torch.testing.assert_close(output(made, x), graph(x), rtol=1e-4, atol=1e-5)


def test_the_simulation_rounds_the_input_and_each_named_tensor_once():
    _, _, whole, _ = prepared(Plain, 8)
    relu = next(node.name for node in whole.nodes if kind(node) == "relu")
    grids = {whole.inputs[0]: Grid((0.5,), 0, 4, True), relu: Grid((0.25,), 3, 4, False)}
    made = Simulation(whole, grids)
    environment = made.start((images(3),))
    made.run(environment, whole.nodes)
    expected = torch.clamp(torch.round(images(3) / 0.5), -8, 7) * 0.5
    assert torch.equal(environment[whole.inputs[0]], expected)
    steps = environment[relu] / 0.25
    assert torch.equal(steps, steps.round())
    assert -3 <= float(steps.min()) <= float(steps.max()) <= 12
    assert environment[BATCH] == 3


def test_the_same_seed_gives_the_same_weights():
    _, _, whole, _ = prepared(Residual, 3)
    one, two = (rebuilt(whole, 3, images(32, 2), {}) for _ in range(2))
    assert one[1] == two[1]
    assert all(torch.equal(tensor, two[0].steps.parameters[name]) for name, tensor in one[0].steps.parameters.items())


@networks
def test_segments_without_a_smaller_network_hold_every_operator_once(factory):
    _, _, whole, _ = prepared(factory, 8)
    cut = segments(whole)
    assert [at for part in cut for at in range(part.first, part.last + 1)] == list(range(len(whole.nodes)))
    assert cut[0].entry == whole.inputs[0]
    assert cut[-1].exit == whole.output
    assert all(a.exit == b.entry for a, b in itertools.pairwise(cut))
    for part in cut:
        inside = {node.name for node in whole.nodes[part.first : part.last + 1]} | {part.entry} | set(whole.constants)
        for node in whole.nodes[part.first : part.last + 1]:
            # Sizes of other tensors follow from the batch's.
            assert {each.name for each in node.all_input_nodes if isinstance(each.meta.get("val"), Tensor)} <= inside


def test_the_other_operand_of_a_residual_addition():
    _, _, whole, _ = prepared(Residual, 8)
    at = {name: whole.nodes.index(layer.reader.node) for name, layer in layers_of(whole).items()}
    relus = [node.name for node in whole.nodes if kind(node) == "relu"]
    convs = {name: whole.nodes[i].name for name, i in at.items()}
    assert other_operand(whole, at["b.0.weight"]) == relus[0]
    assert other_operand(whole, at["d.0.weight"]) == convs["project.0.weight"]
    assert other_operand(whole, at["project.0.weight"]) == convs["d.0.weight"]
    assert all(other_operand(whole, at[name]) is None for name in ("stem.0.weight", "a.0.weight", "head.weight"))


def test_a_layer_is_a_product_only_where_its_weight_and_bias_are_its_own():
    layers = layers_of(prepared(OneForTwo, 8)[2])
    products = {name for name, layer in layers.items() if layer.reader is not None}
    assert products == {"three.weight"}
    assert all((layer.bias is not None) == (name in products) for name, layer in layers.items())
    assert all(
        layer.reader is None for name, layer in layers_of(prepared(ByWord, 8)[2]).items() if name == "one.weight"
    )


class Recursion(nn.Module):
    """One convolution three times, one linear layer twice and with two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = x + F.relu(self.cell(x))
        return self.other(F.relu(self.head(x.mean((2, 3)))))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_with_several_uses_is_rounded_by_what_all_of_them_read(bits):
    """Its squared error there, summed use by use, is well below that of rounding to nearest."""
    _, _, whole, _ = prepared(Recursion, bits)
    x = images(64, 2)
    layers = layers_of(whole)
    shared = [name for name, layer in layers.items() if layer.shared]
    assert [(name.split(".")[0], len(layers[name].shared)) for name in shared] in (
        [("cell", 3), ("head", 2)],
        [("cell", 3), ("other", 2)],
    )
    made, grids = rebuilt(whole, bits, x, {})
    environment, read = whole.start((x,)), []
    for node in whole.nodes:
        name = next((name for name, each in layers.items() if any(r.node is node for r in each.shared)), None)
        if name is not None:
            read.append((name, node, environment[node.args[0].name]))
        whole.run(environment, [node])

    def errors(name: str, weight: Tensor) -> float:
        difference, total = (weight - whole.parameters[name]).detach(), 0.0
        for other, node, value in read:
            if other == name:
                each = F.linear(value, difference) if kind(node) == "linear" else F.conv2d(value, difference, padding=1)
                total += float(each.detach().double().square().sum())
        return total

    for name in shared:
        weight = made.steps.parameters[name]
        assert torch.equal(on_grid(weight, grids[name]), weight)
        assert errors(name, weight) < 0.8 * errors(name, nearest_layer(whole, layers[name], bits)[0])


def test_uses_that_are_no_products_leave_a_shared_weight_rounded_to_nearest():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 3, padding=1)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x)))

    _, _, whole, _ = prepared(Half, 3)
    (layer,) = layers_of(whole).values()
    assert layer.readers == ()
    made, grids = rebuilt(whole, 3, images(16), {})
    weight, grid = nearest_layer(whole, layer, 3)
    assert torch.equal(made.steps.parameters[layer.weight], weight)
    assert grids[layer.weight] == grid


class Plainly(nn.Module):
    """Layers that no reader is known for, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 6, 3, padding="same"), nn.ConvTranspose2d(6, 5, 2, 2)
        self.volume, self.head = nn.Conv3d(5, 4, (1, 3, 3)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume(F.relu(self.up(F.relu(self.conv(x))))[:, :, None])
        return self.head(F.relu(x).mean((2, 3, 4)))


def test_biases_of_layers_that_are_no_products_make_up_for_their_mean_error():
    """Channel by channel, what the float layer gives on average is what the rounded one gives."""
    _, _, whole, _ = prepared(Plainly, 2)
    x = images(64)
    made, _ = rebuilt(whole, 2, x, {})
    names = {layer.node: layer for layer in layers_of(whole).values() if layer.reader is None}
    assert len(names) == 3
    wanted, found = whole.start((x,)), made.start((x,))
    for node, twin in zip(whole.nodes, made.steps.nodes, strict=True):
        whole.run(wanted, [node])
        made.run(found, [twin])
        if node.name in names:
            assert not torch.equal(found[node.name], wanted[node.name])
            difference = (found[node.name] - wanted[node.name]).transpose(0, 1).flatten(1).mean(1)
            assert float(difference.abs().max()) < 1e-5


class Between(nn.Module):
    """What passes between its layers is ``size`` times as large as with a size of 1; what comes out is the same."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 24), nn.Linear(24, 6)
        with torch.no_grad():
            self.one.weight.mul_(size)
            self.one.bias.mul_(size)
            self.two.weight.div_(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x[:, :, ::4, ::4].flatten(1))))


@pytest.mark.parametrize("size", [2.0**-20, 2.0**-10, 2.0**10])
def test_what_earlier_layers_rounded_is_made_up_for_whatever_the_size_of_inputs(size):
    """Powers of two: the same integers come out if nothing is measured against the bias's input, which is 1."""
    made = []
    for each in (size, 1.0):
        torch.manual_seed(0)
        _, traced = folded(State(Between(each).eval()), images(4))
        simulation, grids = rebuilt(Steps.of(traced), 2, images(256), {})
        weight = simulation.steps.parameters["two.weight"]
        made.append((output(simulation, images(16, 7)), integers(weight, grids["two.weight"])))
    (found, integers_found), (wanted, integers_wanted) = made
    assert torch.equal(integers_found, integers_wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
