"""What is found in each architecture: the groups with their numbers of units, what follows, and what stays and why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.graph.attention import PrunedMultiheadAttention
from compress.graph.groups import Dependencies, Group, find
from compress.graph.surgery import proven, remove
from compress.graph.trace import trace
from tests.graph import convolutional, networks, transformers
from tests.graph.networks import build
from tests.graph.traced import groups_of


def dependencies_of(factory: type[nn.Module]) -> Dependencies:
    return groups_of(factory)[1]


def group_of(factory: type[nn.Module], name: str) -> Group:
    (group,) = (group for group in dependencies_of(factory).groups if group.name == name)
    return group


UNITS = {
    networks.Plain: {"conv1": 8, "conv2": 12, "linear1": 16},
    networks.Residual: {"stem.0+b.0": 8, "a.0": 8, "c.0": 16, "d.0+project.0": 16},
    networks.Depthwise: {"stem+project": 8, "expand+depth": 24},
    networks.Grouped: {"one": 2, "two": 3, "three": 6},
    networks.Dense: {"one": 6, "two": 4, "wide": 6, "narrow": 5},
    networks.Squeeze: {"conv+up": 8, "out": 6, "down": 2},
    networks.PaddedShortcut: {"stem+two": 8, "one": 16},
    networks.UNet: {"down1": 6, "down2": 10, "up": 7, "merge": 6},
    networks.Perceptron: {"embed+two": 12, "one": 20},
    networks.Attention: {"embed+out+two": 8, "one": 16},
    convolutional.PreActivationResNet: {
        "stem+blocks.first.conv2+blocks.second.conv2": 8,
        "blocks.first.conv1": 8,
        "blocks.second.conv1": 8,
    },
    convolutional.DenseNet: {"stem": 8, "convs.0": 4, "convs.1": 4, "convs.2": 4, "transition": 10},
    # Two convolution groups, and one column of the shuffle's grid (2, 4) a unit, tied over the next groups.
    convolutional.ShuffleNet: {"stem.0+two.0": 6, "one.0+depth": 2},
    convolutional.ShuffleNetV2: {
        "stem.0+branches.0.2.0+branches.1.2.0": 4,
        "branches.0.0.0+branches.0.1": 8,
        "branches.1.0.0+branches.1.1": 8,
    },
    convolutional.ConvNeXt: {
        "stem+blocks.0.depth+blocks.0.two+blocks.1.depth+blocks.1.two": 8,
        "blocks.0.one": 32,
        "blocks.1.one": 32,
    },
    convolutional.SuperResolution: {"one": 6, "up": 4, "two": 5, "three": 6},
    convolutional.GroupNormNet: {"one": 4, "two": 8, "three": 6},
    convolutional.MobileNetV3: {
        "stem.0+blocks.0.project+blocks.1.project": 8,
        "blocks.0.expand+blocks.0.depth+blocks.0.excite": 16,
        "blocks.0.squeeze": 4,
        "blocks.1.expand+blocks.1.depth+blocks.1.excite": 24,
        "blocks.1.squeeze": 6,
        "head.0": 12,
    },
    convolutional.Transposed: {"kernel": 8, "up+each": 6, "mix": 7},
    transformers.HandWrittenTransformer: {
        "embed+block.attention.out+block.mlp.2": 12,
        "block.attention.q+block.attention.k+block.attention.v": 3,
        "block.mlp.0": 24,
    },
    transformers.TorchTransformer: {
        "embed+attention.out_proj+layer.self_attn.out_proj+layer.linear2": 12,
        "attention.in_proj_weight": 4,
        "layer.self_attn.in_proj_weight": 3,
        "layer.linear1": 20,
    },
    transformers.Mixer: {"embed+channels.2": 12, "tokens.0": 10, "channels.0": 20},
    transformers.Gated: {"embed+down": 12, "glu": 10, "chunk": 8, "gate+up": 14},
    transformers.Text: {"words+positions+out+shared": 12, "qkv": 3},
    transformers.Recurrent: {"conv1": 8, "one": 12},
}


@pytest.mark.parametrize("factory", UNITS, ids=lambda factory: factory.__name__)
def test_groups_are_those_of_the_architecture(factory):
    found = {frozenset(group.name.split("+")): len(group.units) for group in dependencies_of(factory).groups}
    assert found == {frozenset(name.split("+")): units for name, units in UNITS[factory].items()}


def test_a_unit_of_fused_qkv_is_a_head_in_query_key_and_value():
    group = group_of(transformers.ViT, "blocks.0.attention.qkv")
    # 4 heads of 5: head 1 is at 5..9 of the query, and 20 and 40 further on of the key and the value.
    assert group.units[1].members["blocks.0.attention.qkv.weight", 0] == (*range(5, 10), *range(25, 30), *range(45, 50))
    assert group.units[1].members["blocks.0.attention.out.weight", 1] == tuple(range(5, 10))
    assert not group.renormalizes


def test_fused_qkv_by_chunk_ties_the_same_heads():
    group = group_of(transformers.Text, "qkv")
    assert group.units[2].members["qkv.weight", 0] == (*range(8, 12), *range(20, 24), *range(32, 36))


def test_a_head_takes_its_column_of_the_position_bias_along():
    group = group_of(transformers.Swin, "blocks.1.attention.qkv")
    assert group.units[2].members["blocks.1.attention.table", 1] == (2,)
    assert not any(name.endswith("index") for name, _ in group.slots)


@pytest.mark.parametrize(
    ("factory", "group", "attributes"),
    [
        (transformers.ViT, "blocks.1.attention.qkv", {("heads", None, 1), ("inner", None, 5)}),
        (transformers.Swin, "blocks.0.attention.qkv", {("num_heads", None, 1)}),
        (transformers.Text, "qkv", {("heads", None, 1)}),
    ],
)
def test_the_integers_that_follow_are_found(factory, group, attributes):
    rewrites = group_of(factory, group).rewrites
    assert {(rewrite.attribute, rewrite.item, rewrite.step) for rewrite in rewrites} == attributes


def test_items_of_tuples_follow_each_its_group():
    dependencies = dependencies_of(transformers.TwoInputs)
    items = {len(group.units): [(r.attribute, r.item) for r in group.rewrites] for group in dependencies.groups}
    assert items == {6: [("parts", 0)], 10: [("parts", 1)], 9: []}
    units = [unit for group in dependencies.groups for unit in group.units[:2]]
    assert remove(build(transformers.TwoInputs), dependencies, units).parts == (4, 8)


def test_heads_of_torchs_attention_keep_their_dimension():
    dependencies = dependencies_of(transformers.TorchTransformer)
    model = build(transformers.TorchTransformer)
    heads = group_of(transformers.TorchTransformer, "layer.self_attn.in_proj_weight")
    smaller = remove(model, dependencies, heads.units[:2])
    attention = smaller.layer.self_attn
    assert isinstance(attention, PrunedMultiheadAttention)
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (1, 4, 12)
    assert type(smaller.attention) is nn.MultiheadAttention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("averaged", [True, False])
def test_pruned_attention_computes_what_torchs_does_with_all_heads(batch_first, boolean, averaged):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, kdim=7, vdim=5, batch_first=batch_first).eval()
    pruned = nn.MultiheadAttention(12, 3, kdim=7, vdim=5, batch_first=batch_first).eval()
    pruned.load_state_dict(module.state_dict())
    pruned.__class__ = PrunedMultiheadAttention
    q, k, v = (torch.randn(2, 4, n) for n in (12, 7, 5))
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    mask = torch.ones(4, 4).triu(1).bool()
    padding = torch.tensor([[False] * 4, [False, False, False, True]])
    masks = (mask, padding) if boolean else tuple(torch.zeros(m.shape).masked_fill(m, -1e4) for m in (mask, padding))
    for weights in (True, False):
        options = {"attn_mask": masks[0], "key_padding_mask": masks[1], "need_weights": weights}
        theirs = module(q, k, v, average_attn_weights=averaged, **options)
        ours = pruned(q, k, v, average_attn_weights=averaged, **options)
        torch.testing.assert_close(ours[0], theirs[0])
        assert (ours[1] is None) == (theirs[1] is None)
        if weights:
            torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("batch_first", [True, False])
def test_pruned_attention_to_itself_is_one_product_of_the_packed_weights(batch_first):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    pruned = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    pruned.load_state_dict(module.state_dict())
    pruned.__class__ = PrunedMultiheadAttention
    x = torch.randn(2, 4, 12)
    torch.testing.assert_close(pruned(x, x, x), module(x, x, x))
    kinds = [str(node.target) for node in trace(nn.Sequential(Itself(pruned)), (x,)).nodes]
    assert kinds.count("aten.linear.default") == 2


class Itself(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


def test_whole_groups_of_group_norm_go():
    unit = group_of(convolutional.GroupNormNet, "one").units[2]
    assert unit.members["norm1.weight", 0] == (6, 7, 8)
    dependencies = dependencies_of(convolutional.GroupNormNet)
    smaller = remove(build(convolutional.GroupNormNet), dependencies, [unit])
    assert (smaller.norm1.num_groups, smaller.norm1.num_channels) == (3, 9)


def test_halves_of_a_gate_stay_equal():
    assert group_of(transformers.Gated, "glu").units[3].members["glu.weight", 0] == (3, 13)
    assert group_of(transformers.Gated, "chunk").units[3].members["chunk.weight", 0] == (3, 11)


def test_channels_in_front_of_a_pixel_shuffle_go_by_output_channel():
    assert group_of(convolutional.SuperResolution, "up").units[1].members["up.weight", 0] == (4, 5, 6, 7)


def test_patch_merging_reads_each_channel_four_times():
    group = next(group for group in dependencies_of(transformers.Swin).groups if group.name.startswith("embed"))
    assert group.units[5].members["merge.weight", 1] == (5, 17, 29, 41)
    assert group.renormalizes


@pytest.mark.parametrize(
    ("factory", "layers"),
    [
        (convolutional.ConvNeXt, {"stem"}),
        (convolutional.GroupNormNet, {"three"}),
        (transformers.Gated, {"embed"}),
        (transformers.Mixer, {"embed"}),
    ],
)
def test_groups_that_a_norm_averages_over_are_marked(factory, layers):
    marked = {group.name.split("+")[0] for group in dependencies_of(factory).groups if group.renormalizes}
    assert marked == layers


@pytest.mark.parametrize(
    ("factory", "where", "why"),
    [
        (networks.Plain, "linear2", "it is the network's output"),
        (networks.PaddedShortcut, "two", "a padding of fixed width makes it"),
        (networks.Attention, "qkv", "the network's code fixes their number"),
        (transformers.Recurrent, "conv2", "recurrent layers keep their sizes"),
        (transformers.Mixer, "tokens.2", "its other operand isn't prunable"),
    ],
)
def test_what_stays_is_reported_with_the_reason(factory, where, why):
    notes = [note for note in dependencies_of(factory).left_alone if note.where == where]
    assert any(note.why.startswith(why) for note in notes)


BLOCKS = {
    networks.Residual: set(),
    convolutional.BottleneckResNet: {"blocks.1"},
    convolutional.PreActivationResNet: {"blocks.first", "blocks.second"},
    convolutional.ShuffleNet: set(),
    convolutional.ConvNeXt: {"blocks.0", "blocks.1"},
    convolutional.MobileNetV3: {"blocks.0", "blocks.1"},
    transformers.ViT: {"blocks.0", "blocks.1"},
    transformers.TorchTransformer: set(),
    transformers.Swin: {"blocks.0", "blocks.1"},
}


@pytest.mark.parametrize("factory", BLOCKS, ids=lambda factory: factory.__name__)
def test_residual_blocks_are_found(factory):
    assert {block.path for block in dependencies_of(factory).blocks} == BLOCKS[factory]


def find_in(model: nn.Module, *inputs: torch.Tensor) -> tuple[nn.Module, Dependencies]:
    model = model.eval()
    return model, proven(model, find(trace(model, inputs)))


class Tied(nn.Module):
    """The output layer shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.one, self.two = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.words(x)
        return self.out(x + self.two(F.relu(self.one(x))))


def test_a_shared_weight_stays_shared():
    model, dependencies = find_in(Tied(), torch.randint(0, 11, (2, 7)))
    stream = next(group for group in dependencies.groups if "two" in group.name)
    smaller = remove(model, dependencies, stream.units[:3])
    assert smaller.out.weight is smaller.words.weight
    assert smaller.out.weight.shape == (11, 5)


class FewerThanItsHeads(nn.Module):
    """The head dimension is computed from the width of the stream, so neither can change."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.embed = 4, nn.Linear(7, 12)
        self.qkv, self.out, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.embed(x))
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return self.head(F.relu(self.out(y)))


def test_heads_whose_dimension_the_code_computes_are_left_alone():
    _, dependencies = find_in(FewerThanItsHeads(), torch.randn(2, 6, 7))
    assert {group.name for group in dependencies.groups} == {"out"}
    reasons = {note.where: note.why for note in dependencies.left_alone}
    assert reasons["qkv"].startswith("the network's code fixes their number: ")
    assert reasons["embed"].startswith("the network's code fixes their number: ")


class CoincidentInteger(nn.Module):
    """``depth`` equals the number of heads but has nothing to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.heads = 3, 3
        self.embed, self.head = nn.Linear(7, 12), nn.Linear(12, 5)
        self.attention = nn.Linear(12, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = self.attention(x).view(*x.shape[:2], 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for _ in range(self.depth):
            y = torch.tanh(y)
        return self.head(y)


def test_an_integer_that_only_happens_to_be_equal_is_not_touched():
    model, dependencies = find_in(CoincidentInteger(), torch.randn(2, 6, 7))
    group = next(group for group in dependencies.groups if group.name == "attention")
    smaller = remove(model, dependencies, group.units[:2])
    assert (smaller.depth, smaller.heads) == (3, 1)


class Unusual(nn.Module):
    """A diagonal in einsum, and an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(7, 4), nn.Linear(7, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("bii->bi", self.one(x))
        return self.head(torch.cumsum(self.two(x), -1)).mean(1) + y.mean(1, keepdim=True)


def test_an_unusual_form_and_an_unknown_operator_are_named():
    _, dependencies = find_in(Unusual(), torch.randn(2, 4, 7))
    reasons = {(note.where, note.what.split()[0]): note.why for note in dependencies.left_alone}
    assert reasons["one", "einsum"] == "an unusual form of einsum"
    assert reasons["two", "cumsum"] == "this operator has no pruning rule"
