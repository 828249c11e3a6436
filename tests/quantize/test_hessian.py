"""Second-order sensitivity against the dense Hessians of small networks in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import UnknownName
from compress.graph.costs import layer_operators
from compress.quantize.hessian import top_eigenvalues, traces
from tests.graph import networks
from tests.graph.traced import traced
from tests.quantize.curved import NETWORKS, ConvNet, Gated, Shared, Tokens, agrees, build, data, dense, own, seeded
from tests.rosters import crossed, some

# --- traces by weights -----------------------------------------------------------------------------------------------


@crossed(("name", "factory"), ["cross-entropy", "own predictions", "squared error"], NETWORKS)
def test_a_trace_is_the_dense_hessians(factory, name):
    model, (x, y) = build(factory), data()
    loss, target, slow = {
        "cross-entropy": (F.cross_entropy, y, F.cross_entropy),
        "own predictions": (None, None, own),
        "squared error": (F.mse_loss, torch.eye(4).double()[y], F.mse_loss),
    }[name]
    found = traces(model, [(x, target)], loss, generator=seeded(), tolerance=0.05, settled=False, most=64)
    assert set(found) == {layer for layer in ("one", *dict(model.named_children())) if layer in found}
    for layer, estimate in found.items():
        wanted = dense(model, [f"{layer}.weight"], x, target, slow).trace().item()
        assert agrees(estimate, wanted), layer
        if layer in NETWORKS[factory] or loss is None:
            assert estimate.method == "gauss-newton"
            assert estimate.standard_error == 0
        else:
            assert estimate.method == "gauss-newton + hutchinson"


@some("factory", networks.ARCHITECTURES, quick=networks.ROSTER[::3])
def test_every_layer_of_every_architecture_has_traces(factory):
    model, inputs = networks.build(factory), networks.inputs_of(factory, 3)
    batch = (inputs if len(inputs) > 1 else inputs[0], torch.zeros_like(model(*inputs)))
    wanted = {operator.path for operator in layer_operators(traced(factory)[1])}
    found = traces(model, [batch], F.mse_loss, generator=seeded(), most=2)
    assert set(found) >= wanted
    read = traces(model, [batch], F.mse_loss, of="activations", generator=seeded(), most=2)
    assert set(read) <= set(found)
    assert all(e.value >= 0 for e in found.values() if e.method == "gauss-newton")


def test_a_jobs_traced_network_gives_the_same(monkeypatch):
    model, (x, y) = build(ConvNet), data()
    shared = {}
    for function in (traces, top_eigenvalues):
        alone = function(model, [(x, y)], F.cross_entropy, generator=seeded())
        assert function(model, [(x, y)], F.cross_entropy, generator=seeded(), shared=shared) == alone
        # Now it is there, and nothing is traced.
        monkeypatch.setattr("compress.graph.traces.trace", None)
        assert function(model, [(x, y)], F.cross_entropy, generator=seeded(), shared=shared) == alone
        monkeypatch.undo()


@crossed(("factory", "method"), [ConvNet, Shared, Gated, Tokens], ["hutchinson", "hutch++"])
def test_hessian_vector_products_give_the_same_traces(factory, method):
    model, (x, y) = build(factory), data()
    found = traces(
        model, [(x, y)], F.cross_entropy, generator=seeded(), method=method, tolerance=0.05, settled=False, most=300
    )
    for layer, estimate in found.items():
        assert agrees(estimate, dense(model, [f"{layer}.weight"], x, y, F.cross_entropy).trace().item()), layer
        assert 0 < estimate.probes <= 304


@pytest.mark.parametrize("method", ["auto", "gauss-newton", "hutchinson", "hutch++"])
def test_the_trace_of_a_quadratic_is_its_trace(method):
    """Squared error of a linear layer with D outputs: the Hessian is 2/(N D) sum_n x x^T for each of its D rows."""
    model = nn.Sequential(nn.Linear(6, 3, bias=False)).double()
    x = torch.randn(10, 6, generator=seeded(1)).double()
    found = traces(
        model, [(x, torch.zeros(10, 3))], F.mse_loss, generator=seeded(), method=method, tolerance=0.01, settled=False
    )["0"]
    assert agrees(found, 2 * x.square().sum().item() / 10)
    if method in ("auto", "gauss-newton"):
        assert found.standard_error == 0


def test_gauss_newton_alone_leaves_the_rest_of_the_hessian_out():
    model, (x, y) = build(Tokens), data()
    found = traces(model, [(x, y)], F.cross_entropy, generator=seeded(), method="gauss-newton")["one"]
    jacobian = torch.stack([_gradient(model, "one.weight", x[i : i + 1], c) for i in range(5) for c in range(4)])
    p = model(x).softmax(1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wanted = torch.einsum("ncp,ncd,ndp->", jacobian.view(5, 4, -1), blocks, jacobian.view(5, 4, -1)) / 5
    assert found.value == pytest.approx(wanted.item())


def _gradient(model, name, x, output):
    (slope,) = torch.autograd.grad(model(x)[0, output], model.get_parameter(name))
    return slope.reshape(-1)


@pytest.mark.parametrize("factory", NETWORKS)
def test_the_empirical_fisher_is_the_mean_square_of_single_gradients(factory):
    model, (x, y) = build(factory), data()
    found = traces(model, [(x, y)], F.cross_entropy, generator=seeded(), method="fisher")
    for layer, estimate in found.items():
        weight = model.get_parameter(f"{layer}.weight")
        squares = [
            torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), weight)[0].square().sum()
            for i in range(len(x))
        ]
        assert estimate.value == pytest.approx(torch.stack(squares).mean().item())


@pytest.mark.parametrize("classes", [100, 8])
def test_many_classes(classes):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, classes)).double()
    nn.init.normal_(model[2].weight, std=2.0, generator=seeded(2))
    x, y = torch.randn(6, 4, generator=seeded(1)).double(), torch.arange(6)
    found = traces(model, [(x, y)], F.cross_entropy, generator=seeded(), tolerance=0.02, settled=False)["0"]
    assert agrees(found, dense(model, ["0.weight"], x, y, F.cross_entropy).trace().item())
    assert found.standard_error <= 0.02 * found.value


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.ConvTranspose2d(3, 5, 2, 2)

    def forward(self, x):
        return self.two(F.relu(self.one(x)))


@pytest.mark.parametrize("name", ["squared error", "cross-entropy of each pixel"])
def test_outputs_too_many_for_a_matrix(name):
    """Images of 5 channels and 64 pixels come out: random signs at the outputs."""
    model, (x, _) = build(Upscale), data(3)
    target = torch.zeros(3, 5, 8, 8)
    loss = F.mse_loss
    if name != "squared error":
        target, loss = torch.arange(192).reshape(3, 8, 8) % 5, F.cross_entropy
    found = traces(model, [(x, target)], loss, generator=seeded(), tolerance=0.05, settled=False)
    for layer, estimate in found.items():
        assert 0 < estimate.standard_error <= 0.05 * estimate.value
        assert agrees(estimate, dense(model, [f"{layer}.weight"], x, target, loss).trace().item())


def test_batches_give_what_one_batch_gives():
    model, (x, y) = build(Tokens), data(7)
    whole = traces(model, [(x, y)], F.cross_entropy, generator=seeded(), method="gauss-newton")
    parts = traces(model, [(x[:2], y[:2]), (x[2:], y[2:])], F.cross_entropy, generator=seeded(), method="gauss-newton")
    assert [e.value for e in parts.values()] == pytest.approx([e.value for e in whole.values()])
    products = [traces(model, b, F.cross_entropy, generator=seeded(3), method="hutchinson", most=8)
                for b in ([(x, y)], [(x[:2], y[:2]), (x[2:], y[2:])])]  # fmt: skip
    assert [e.value for e in products[0].values()] == pytest.approx([e.value for e in products[1].values()])


def test_an_activation_that_torch_differentiates_only_once():
    class Hard(Gated):
        def forward(self, x):
            x = self.conv(x)
            return self.head((x * F.hardsigmoid(self.gate(x))).mean((2, 3)))

    (x, y), asked = data(), {"method": "hutchinson", "most": 8}
    found, wanted = (traces(build(f), [(x, y)], F.cross_entropy, generator=seeded(), **asked) for f in (Hard, Gated))
    assert [e.value for e in found.values()] == pytest.approx([e.value for e in wanted.values()])


# --- by activations --------------------------------------------------------------------------------------------------


class Exposed(nn.Module):
    """Two layers and a curved function, each of whose tensors can be shifted."""

    def __init__(self, smooth: bool) -> None:
        super().__init__()
        self.one, self.two, self.smooth = nn.Linear(3, 4), nn.Linear(4, 4), smooth

    def forward(self, x):
        return self.two(self.hidden(x))

    def hidden(self, x):
        return F.gelu(self.one(x)) if self.smooth else F.relu(self.one(x))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++"])
def test_activations_traces_are_the_mean_of_each_samples_own(smooth, method):
    model = build(lambda: Exposed(smooth))
    x, y = torch.randn(6, 3, generator=seeded(1)).double(), torch.arange(6) % 4
    found = traces(
        model, [(x[:4], y[:4]), (x[4:], y[4:])], F.cross_entropy, of="activations", generator=seeded(), method=method,
        tolerance=0.05, settled=False,
    )  # fmt: skip

    def mean(function, values):
        blocks = [
            torch.autograd.functional.hessian(lambda a, i=i: F.cross_entropy(function(a), y[i]), values[i]).trace()
            for i in range(6)
        ]
        return torch.stack(blocks).mean().item()

    assert agrees(found["one"], mean(model, x))
    assert agrees(found["two"], mean(model.two, model.hidden(x).detach()))
    exact = {name for name, estimate in found.items() if estimate.standard_error == 0}
    assert exact == (set() if method != "auto" else {"two"} if smooth else {"one", "two"})


def test_named_tensors_in_the_place_of_layers_inputs():
    model, (x, y) = build(ConvNet), data()
    inputs = traces(model, [(x, y)], F.cross_entropy, of="activations", generator=seeded())
    named = traces(model, [(x, y)], F.cross_entropy, of="activations", generator=seeded(), tensors=["x", "mean"])
    assert named["x"].value == pytest.approx(inputs["conv"].value)
    assert named["mean"].value == pytest.approx(inputs["head"].value)
    with pytest.raises(UnknownName, match="unknown traced node 'mena'; nearest: mean"):
        traces(model, [(x, y)], of="activations", generator=seeded(), tensors=["mena"])


# --- eigenvalues -----------------------------------------------------------------------------------------------------


@crossed(("factory", "method"), NETWORKS, ["auto", "lanczos"])
def test_top_eigenvalues_are_the_dense_ones(factory, method):
    model, (x, y) = build(factory), data()
    found = top_eigenvalues(model, [(x, y)], F.cross_entropy, generator=seeded(), method=method, tolerance=1e-4)
    for layer, estimate in found.items():
        wanted = torch.linalg.eigvalsh(dense(model, [f"{layer}.weight"], x, y, F.cross_entropy))
        assert abs(estimate.value) == pytest.approx(wanted.abs().max().item(), rel=1e-3)
        assert (wanted - estimate.value).abs().min() <= estimate.residual + 1e-9
        assert estimate.residual <= 1e-4 * abs(estimate.value) + 1e-9
        first_order = method == "auto" and layer in NETWORKS[factory]
        assert estimate.method == ("gauss-newton" if first_order else "lanczos")


def test_blocks_of_layers_together():
    model, (x, y) = build(ConvNet), data()
    blocks = {"first": ["conv"], "rest": ["inner", "head"]}
    parts = [(x[:2], y[:2]), (x[2:], y[2:])]
    found = top_eigenvalues(model, parts, F.cross_entropy, generator=seeded(), blocks=blocks, tolerance=1e-4)
    for block, members in blocks.items():
        wanted = torch.linalg.eigvalsh(dense(model, [f"{name}.weight" for name in members], x, y, F.cross_entropy))
        assert found[block].value == pytest.approx(wanted[wanted.abs().argmax()].item(), rel=1e-3)
    with pytest.raises(UnknownName, match="unknown layer 'norm'"):
        top_eigenvalues(model, parts, F.cross_entropy, generator=seeded(), blocks={"a": ["norm"]})


@pytest.mark.parametrize("factory", [ConvNet, Tokens, Shared])
def test_blocks_without_labels_need_no_second_derivative(factory):
    model, (x, y) = build(factory), data()
    names = [name for name, module in model.named_children() if isinstance(module, (nn.Conv2d, nn.Linear))]
    found = top_eigenvalues(model, [x], generator=seeded(), blocks={"all": names}, tolerance=1e-3)["all"]
    wanted = torch.linalg.eigvalsh(dense(model, [f"{name}.weight" for name in names], x, y, own))
    assert found.method == "gauss-newton"
    assert found.value == pytest.approx(wanted[-1].item(), rel=1e-3)
