"""Networks: what loads, with which weights, and what is refused in one line."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from compress import checkpoints, data, models, training
from compress.errors import BadInput, BadWeights, MissingExtra, UnknownName
from compress.networks import NETWORKS
from compress.networks.cifar_resnet import CifarResNet, ZeroPadShortcut, resnet, resnet20

RESNET20 = "weights/cifar10-akamaster/resnet20-12fca82f.th"
RESNET56 = "weights/cifar10-akamaster/resnet56-4bfd9763.th"


def refusal(spec: str, **options) -> str:
    with pytest.raises(BadInput) as caught:
        models.load(spec, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Built-in networks


def test_resnet_brings_its_weights_and_is_right_on_more_than_98_5_percent_of_the_evaluation_digits() -> None:
    found = models.load("resnet")
    assert (found.builtin, found.default_data, found.input_shape, found.num_classes) == (
        True,
        "digits",
        (1, 32, 32),
        10,
    )
    digits = data.load("digits", mean=found.mean, std=found.std, input_shape=found.input_shape, num_classes=10)
    correct, n = training.evaluate(found.model, digits.evaluate)
    assert n == 500
    assert correct / n >= 0.985
    assert not found.model.training


def test_the_record_of_resnet_has_the_normalization_that_it_was_trained_with() -> None:
    from compress.data.digits import MEAN, STD, arrays

    images, _, chosen = arrays()
    train = torch.ones(len(images), dtype=torch.bool)
    train[torch.from_numpy(chosen)] = False
    pixels = torch.from_numpy(images)[train].double() / 255
    assert float(pixels.mean()) == pytest.approx(MEAN[0], abs=5e-4)
    assert float(pixels.std()) == pytest.approx(STD[0], abs=5e-4)
    record = next(info for info in NETWORKS if info.name == "resnet")
    assert (record.mean, record.std) == (MEAN, STD)


def test_shipped_weights_stay_small() -> None:
    for info in NETWORKS:
        if info.weights is not None:
            assert info.weights.stat().st_size < 1_000_000


@pytest.mark.parametrize("info", [info for info in NETWORKS if info.block is None], ids=lambda info: info.name)
def test_every_builtin_network_does_what_its_record_says(info) -> None:
    found = models.load(info.name, weights="random")
    assert found.name == info.name
    assert found.input_shape == info.input_shape
    assert len(info.mean) == len(info.std) == info.input_shape[0]
    assert found.num_classes == info.num_classes
    assert all(p.dtype == torch.float32 for p in found.model.parameters())
    assert not any(module.training for module in found.model.modules())


@pytest.mark.parametrize("info", [info for info in NETWORKS if info.input_shape[1] == 32], ids=lambda info: info.name)
def test_small_networks_export_with_a_batch_of_any_size(info) -> None:
    model = models.load(info.name, weights="random").model
    program = torch.export.export(
        model, (torch.zeros(2, *info.input_shape),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    images = torch.rand(5, *info.input_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize(
    ("name", "params"),
    # Published: He et al. 2016 table 6; torchvision's tables; MLPerf Tiny's model.
    [("resnet20", 269_722), ("resnet56", 853_018), ("mobilenetv2", 3_504_872), ("squeezenet1_1", 1_235_496)],
)
def test_parameter_counts_are_the_published_ones(name: str, params: int) -> None:
    assert sum(p.numel() for p in models.load(name, weights="random").model.parameters()) == params


def test_other_classes_and_channels() -> None:
    found = models.load("resnet20", weights="random", num_classes=7, in_channels=1)
    assert (found.num_classes, found.input_shape) == (7, (1, 32, 32))
    assert "--weights" in refusal("resnet", num_classes=7)


def test_random_weights_come_from_the_seed() -> None:
    first, again, other = (models.load("resnet8", weights="random", seed=seed).sha256 for seed in (1, 1, 2))
    assert first == again != other
    before = torch.get_rng_state()
    models.load("resnet8", weights="random")
    assert torch.equal(before, torch.get_rng_state())


def test_networks_without_weights_say_so() -> None:
    message = refusal("resnet20")
    assert "--weights FILE" in message
    assert "--weights random" in message


@pytest.mark.parametrize(
    ("name", "file", "percent"),
    [
        pytest.param("resnet20", RESNET20, 91.73, marks=pytest.mark.slow),
        pytest.param("resnet56", RESNET56, 93.39, marks=pytest.mark.slow),
    ],
)
def test_published_checkpoints_give_the_published_accuracy(
    shared_data: Path, cifar10_dir: Path, name: str, file: str, percent: float
) -> None:
    found = models.load(name, weights=str(shared_data / file))
    cifar = data.load(
        f"cifar10:{cifar10_dir}",
        mean=found.mean,
        std=found.std,
        input_shape=found.input_shape,
        num_classes=found.num_classes,
    )
    correct, n = training.evaluate(found.model, cifar.evaluate)
    assert n == 10_000
    assert 100 * correct / n == pytest.approx(percent, abs=0.02)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mobilenetv2-coral", "imagenet-mobilenet_v2/mobilenet_v2_1.0_224_quant_dequant.pth"),
        ("squeezenet1_1", "imagenet-squeezenet1_1/squeezenet1_1_caffe_fp16.pth"),
    ],
)
def test_published_imagenet_checkpoints_recognize_a_photograph(shared_data: Path, name: str, file: str) -> None:
    found = models.load(name, weights=str(shared_data / "weights" / file))
    folder = shared_data / "imagenet-sample" / "val256"
    # The index of a class is its place among the sorted names.
    photographs = sorted(folder.iterdir())[:20]
    assert found.mean is not None
    assert found.std is not None
    split = data.FolderSplit("sample", tuple(photographs), tuple(range(20)), (3, 224, 224), found.mean, found.std)
    correct, _ = training.evaluate(found.model, split, batch_size=20)
    assert correct >= 12


def test_the_shortcut_with_zeros_is_a_subsampled_image_between_zeros() -> None:
    x = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    out = ZeroPadShortcut(2, 1, 2)(x)
    expected = torch.zeros(2, 6, 3, 2)
    for channel in range(3):
        for row in range(3):
            for column in range(2):
                expected[:, 1 + channel, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(out, expected)


def test_depth_is_6n_plus_2() -> None:
    for blocks in (1, 3, 9):
        model = CifarResNet(blocks)
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(layers) == 6 * blocks + 2


# Checkpoints


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return resnet20().state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th", ".pkl"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module."])
def test_checkpoints_in_every_usual_form(tmp_path: Path, state, suffix: str, wrap: str) -> None:
    file = tmp_path / f"w{suffix}"
    content = {f"module.{k}": v for k, v in state.items()} if wrap == "module." else state
    if suffix == ".safetensors":
        safetensors.torch.save_file(content, file)
    else:
        torch.save(content if wrap in ("plain", "module.") else {wrap: content, "epoch": 3}, file)
    loaded = models.load("resnet20", weights=str(file)).model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_half_precision_checkpoints_become_float32(tmp_path: Path, state) -> None:
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pt")
    loaded = models.load("resnet20", weights=str(tmp_path / "w.pt")).model
    assert loaded.get_parameter("linear.weight").dtype == torch.float32


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, state) -> None:
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w.pt")
    assert models.load("resnet20", weights=str(tmp_path / "w.pt")).num_classes == 10


def test_missing_extra_and_wrongly_shaped_keys_are_named(tmp_path: Path, state) -> None:
    for key in ("bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.bias"):
        del state[key]
    state["head.scale"] = torch.zeros(1)
    state["linear.weight"] = torch.zeros(100, 64)
    torch.save(state, tmp_path / "w.pt")
    message = refusal("resnet20", weights=str(tmp_path / "w.pt"))
    assert "4 missing keys (bn1.weight, bn1.bias, layer1.0.conv1.weight, ...)" in message
    assert "1 extra key (head.scale)" in message
    assert "1 wrongly shaped key (linear.weight (100, 64) where the network has (10, 64))" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_named(tmp_path: Path, state, value: float) -> None:
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pt")
    message = refusal("resnet20", weights=str(tmp_path / "w.pt"))
    assert "NaN or infinity in 1 tensor (layer2.0.conv1.weight)" in message


class Touch:
    """Pickled, it would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4", "pickle 5"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    file, evil = tmp_path / "w.pth", {"state_dict": Touch(tmp_path / "ran")}
    if form in ("zip", "legacy"):
        torch.save(evil, file, _use_new_zipfile_serialization=form == "zip")
    else:
        file.write_bytes(pickle.dumps(evil, int(form[-1])))
    message = refusal("resnet20", weights=str(file))
    assert f"{os.system.__module__}.system" in message
    assert "for safety" in message
    assert "torch.save(model.state_dict(), FILE)" in message
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused_with_the_way_to_save_it_again(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    message = refusal("resnet20", weights=str(tmp_path / "w.pt"))
    assert "torch.nn.modules.linear.Linear" in message
    assert "state_dict" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_checkpoints(tmp_path: Path, state, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, whole)
    for content in (b"", b"no checkpoint", whole.read_bytes()[:5000]):
        (tmp_path / f"w{suffix}").write_bytes(content)
        assert "again" in (m := refusal("resnet20", weights=str(tmp_path / f"w{suffix}"))) or "give a file" in m


def test_files_without_parameters(tmp_path: Path) -> None:
    assert "no such file" in refusal("resnet20", weights=str(tmp_path / "w.pt"))
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    assert "holds no parameters (epoch)" in refusal("resnet20", weights=str(tmp_path / "w.pt"))
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    assert "holds a Tensor" in refusal("resnet20", weights=str(tmp_path / "w.pt"))


def test_the_digest_changes_with_any_value_and_with_nothing_else() -> None:
    torch.manual_seed(0)
    model = resnet()
    before = checkpoints.digest(model)
    assert checkpoints.digest(model) == before
    model.train()
    assert checkpoints.digest(model) == before
    with torch.no_grad():
        model.linear.bias[3] += 1e-3
    assert checkpoints.digest(model) != before


# Names


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        models.load("resnet21")
    assert "resnet20" in caught.value.nearest
    assert "timm:NAME" in str(caught.value)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18", "hf:microsoft/resnet-18"])
def test_packages_that_arent_installed_are_named(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as caught:
        models.load(spec)
    assert "pip install" in str(caught.value)


# Files


USER = """
import torch
from torch import nn

INPUT_SHAPE = (3, 16, 16)
MEAN = (0.5, 0.5, 0.5)

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

def sized(num_classes=5):
    model = plain()
    model[4] = nn.Linear(4, num_classes)
    return model

class Net(nn.Module):
    input_shape = (1, 8, 8)
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)
    def forward(self, x):
        return self.layer(x.flatten(1))

instance = Net()

def broken():
    raise RuntimeError("no such\\nsensor")

def nan():
    model = plain()
    model[0].weight.data[0] = float("nan")
    return model

def text():
    return "text"

class Pair(Net):
    def forward(self, x):
        return x, x

class Mismatched(Net):
    input_shape = (1, 9, 9)

class Denoiser(nn.Module):
    input_shape = (1, 8, 8)
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x):
        return self.conv(x)
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(USER)
    return str(tmp_path / "mine.py")


def test_a_users_function_class_or_module_is_a_network(user: str, tmp_path: Path) -> None:
    found = models.load(f"{user}:plain")
    assert (found.input_shape, found.mean, found.std, found.num_classes) == ((3, 16, 16), (0.5,) * 3, None, 5)
    assert (found.builtin, found.default_data) == (False, None)
    assert models.load(f"{user}:Net").input_shape == (1, 8, 8)
    assert models.load(f"{user}:instance").num_classes == 3
    assert models.load(f"{user}:sized", num_classes=9).num_classes == 9
    assert models.load(f"{user}:Denoiser").num_classes is None
    torch.save(found.model.state_dict(), tmp_path / "w.pt")
    again = models.load(f"{user}:plain", weights=str(tmp_path / "w.pt"), seed=1)
    assert again.sha256 == found.sha256


def test_without_a_word_about_it_the_input_shape_is_left_to_the_data(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("from torch import nn\ndef make():\n    return nn.Conv2d(3, 4, 3)\n")
    found = models.load(f"{tmp_path / 'bare.py'}:make")
    assert (found.input_shape, found.num_classes) == (None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("broken", "RuntimeError: no such sensor"),
        ("nan", "NaN or infinity in 1 tensor (0.weight)"),
        ("text", "it gives a str; return a torch.nn.Module"),
        ("plainn", "nearest: plain"),
        ("Pair", "returns a tuple; return one tensor"),
        ("Mismatched", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_user_code_that_cant_be_used_is_told_in_one_line(user: str, name: str, expected: str) -> None:
    assert expected in refusal(f"{user}:{name}")


def test_options_that_a_users_function_doesnt_take(user: str) -> None:
    assert "takes no num_classes" in refusal(f"{user}:plain", num_classes=3)


def test_an_exported_network_loads_and_computes_the_same(tmp_path: Path) -> None:
    model = models.load("resnet").model
    program = torch.export.export(model, (torch.zeros(2, 1, 32, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "m.pt2")
    found = models.load(str(tmp_path / "m.pt2"))
    assert (found.input_shape, found.num_classes, found.builtin) == ((1, 32, 32), 10, False)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.model(images), model(images))


def test_exported_networks_that_cant_be_used(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(str(tmp_path / "m.pt2"))
    (tmp_path / "m.pt2").write_bytes(b"no archive")
    assert "can't read it" in refusal(str(tmp_path / "m.pt2"))
    fixed = torch.export.export(models.load("resnet").model, (torch.zeros(2, 1, 32, 32),))
    torch.export.save(fixed, tmp_path / "m.pt2")
    assert "batch size is fixed at 2" in refusal(str(tmp_path / "m.pt2"))
    flat = torch.export.export(nn.Linear(4, 2), (torch.zeros(2, 4),))
    torch.export.save(flat, tmp_path / "m.pt2")
    assert "one input (N, C, H, W)" in refusal(str(tmp_path / "m.pt2"))


def test_refusals_of_checkpoints_are_of_their_own_type(tmp_path: Path) -> None:
    with pytest.raises(BadWeights) as caught:
        models.load("resnet20", weights=str(tmp_path / "w.pt"))
    assert caught.value.path == str(tmp_path / "w.pt")
