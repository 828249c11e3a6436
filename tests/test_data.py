"""Data sets: what loads, and what the loaded splits promise."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from compress import data
from compress.data.digits import arrays, enlarge

RED, GREEN = (200, 10, 20), (5, 180, 40)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(split: data.Split) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(split.batches(7))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def picture(path: Path, color: tuple[int, int, int] | int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(color, int) else "RGB", size, color).save(path)


# Digits


def test_digits_are_1297_to_train_and_500_to_evaluate_stratified() -> None:
    digits = data.load("digits")
    assert (digits.train.n, digits.evaluate.n) == (1297, 500)
    assert digits.train.shape == digits.evaluate.shape == (1, 32, 32)
    assert digits.classes == tuple("0123456789")
    counts = np.bincount(everything(digits.evaluate)[1])
    # Each class holds a tenth of the whole, give or take two images.
    assert counts.min() >= 48
    assert counts.max() <= 52


def test_the_listed_evaluation_images_are_the_stratified_draw_that_the_docstring_names() -> None:
    from sklearn.model_selection import train_test_split

    _, labels, chosen = arrays()
    _, drawn = train_test_split(np.arange(1797), test_size=500, stratify=labels, random_state=0)
    assert sorted(drawn) == chosen.tolist()


def test_enlarging_is_bilinear_interpolation() -> None:
    small = np.random.default_rng(0).integers(0, 17, (20, 8, 8)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(small[:, None] * (255 / 16)), size=(32, 32), mode="bilinear", align_corners=False
    )
    # Rounding to whole pixels is all that differs.
    assert np.abs(enlarge(small) - expected[:, 0].numpy()).max() <= 0.5 + 1e-9


def test_the_digest_of_digits_never_changes() -> None:
    assert data.load("digits").sha256 == data.load("digits", mean=(0.1,), std=(0.5,)).sha256
    images, labels, chosen = arrays()
    head = repr(((500, 1, 32, 32), "torch.uint8", tuple("0123456789"))).encode()
    expected = hashlib.sha256(head + images[chosen].tobytes() + labels[chosen].tobytes()).hexdigest()
    assert data.load("digits").sha256 == expected


# What a split promises


def test_images_are_normalized_by_the_formula() -> None:
    digits = data.load("digits", mean=(0.25,), std=(0.5,))
    raw, labels, chosen = arrays()
    images, targets = everything(digits.evaluate)
    assert images.dtype == torch.float32
    assert targets.dtype == torch.int64
    expected = (raw[chosen].astype(np.float64) / 255 - 0.25) / 0.5
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert targets.tolist() == labels[chosen].tolist()


def test_imagenets_mean_and_std_are_the_default() -> None:
    rgb = data.from_python((np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 0, 1])), divisible=False)
    assert (rgb.mean, rgb.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    gray = data.load("digits")
    assert (gray.mean, gray.std) == ((0.449,), (0.226,))


def test_without_a_generator_the_order_is_fixed_and_with_one_it_is_a_permutation_of_the_same_images() -> None:
    split = data.load("digits").evaluate
    plain = torch.cat([x for x, _ in split.batches(64)])
    assert torch.equal(plain, torch.cat([x for x, _ in split.batches(33)]))
    first, again, other = (torch.cat([x for x, _ in split.batches(64, seeded(seed))]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    sums = first.sum((1, 2, 3)).sort().values
    torch.testing.assert_close(sums, plain.sum((1, 2, 3)).sort().values)


def test_the_last_batch_holds_what_is_left() -> None:
    assert [len(x) for x, _ in data.load("digits").evaluate.batches(192)] == [192, 192, 116]


def test_inputs_are_drawn_without_repetition_and_at_most_all() -> None:
    split = data.load("digits").evaluate
    drawn = split.inputs(100, seeded())
    assert drawn.shape == (100, 1, 32, 32)
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 100
    assert torch.equal(drawn, split.inputs(100, seeded()))
    assert split.inputs(10_000, seeded()).shape[0] == 500


@pytest.mark.parametrize("augment", [data.Affine(), data.CropFlip()])
def test_augmentation_is_reproducible_and_happens_only_with_a_generator(augment: object) -> None:
    split = data.load("digits").train
    changed, again = (next(iter(split.batches(16, seeded(), augment=augment)))[0] for _ in range(2))
    same_images = next(iter(split.batches(16, seeded())))[0]
    assert changed.shape == same_images.shape
    assert torch.equal(changed, again)
    assert not torch.equal(changed, same_images)
    assert torch.equal(next(iter(split.batches(16, augment=augment)))[0], next(iter(split.batches(16)))[0])


def test_crop_flip_is_a_shift_with_black_border_and_a_mirror() -> None:
    image = torch.arange(1.0, 26.0).view(1, 1, 5, 5)
    seen = set()
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    allowed = {
        tuple(crop.flatten().tolist())
        for top in range(3)
        for left in range(3)
        for piece in (padded[0, 0, top : top + 5, left : left + 5],)
        for crop in (piece, piece.flip(1))
    }
    for seed in range(200):
        seen.add(tuple(data.CropFlip(border=1)(image, seeded(seed)).flatten().tolist()))
    assert seen == allowed


def test_an_affine_change_of_nothing_is_the_identity() -> None:
    images = torch.rand(3, 1, 9, 9, generator=seeded())
    torch.testing.assert_close(data.Affine(0, 0, 0)(images, seeded()), images, atol=1e-5, rtol=0)


# MNIST and CIFAR-10


def test_mnist_loads_from_its_gzipped_files(shared_data: Path) -> None:
    mnist = data.load(f"mnist:{shared_data / 'mnist'}")
    assert (mnist.train.n, mnist.evaluate.n, mnist.train.shape) == (60_000, 10_000, (1, 28, 28))
    labels = torch.cat([y for _, y in mnist.evaluate.batches(1000)])
    # The published beginning of the test set.
    assert labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]


def test_mnist_gets_a_black_border_where_the_network_takes_32x32(shared_data: Path) -> None:
    small = data.load(f"mnist:{shared_data / 'mnist'}", mean=(0,), std=(1,))
    large = data.load(f"mnist:{shared_data / 'mnist'}", mean=(0,), std=(1,), input_shape=(1, 32, 32))
    a, b = next(iter(small.evaluate.batches(4)))[0], next(iter(large.evaluate.batches(4)))[0]
    assert torch.equal(torch.nn.functional.pad(a, (2, 2, 2, 2)), b)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_idx_files_are_read_plain_or_gzipped(tmp_path: Path, packed: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    labels = np.array([0, 1, 2, 3, 4, 5], np.uint8)
    for stem in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            name = f"{stem}-{kind}-ubyte" + (".gz" if packed else "")
            (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    mnist = data.load(f"mnist:{tmp_path}", mean=(0,), std=(1,))
    x, y = everything(mnist.evaluate)
    np.testing.assert_allclose(x[:, 0].numpy() * 255, images, atol=1e-3)
    assert y.tolist() == labels.tolist()


def test_both_layouts_of_cifar10_hold_the_same(cifar10_dir: Path) -> None:
    binary = data.load(f"cifar10:{cifar10_dir / 'cifar-10-batches-bin'}")
    pickled = data.load(f"cifar10:{cifar10_dir / 'cifar-10-batches-py'}")
    assert (binary.train.n, binary.evaluate.n, binary.train.shape) == (50_000, 10_000, (3, 32, 32))
    assert binary.sha256 == pickled.sha256
    assert isinstance(binary.train, data.ArraySplit)
    assert isinstance(pickled.train, data.ArraySplit)
    assert torch.equal(binary.train.images, pickled.train.images)
    assert binary.classes[3] == "cat"
    # The published first test image is a cat.
    assert next(iter(binary.evaluate.batches(1)))[1].tolist() == [3]


def test_cifar10_is_found_below_the_data_folder(cifar10_dir: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-batches-bin").symlink_to(cifar10_dir / "cifar-10-batches-bin")
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path))
    assert data.load("cifar10").evaluate.n == 10_000


# Folders


def test_class_folders_are_classification_in_the_order_of_their_names(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / "leaf" / f"{i}.png", GREEN)
        picture(tmp_path / "apple" / f"{i}.png", RED)
    found = data.load(str(tmp_path), mean=(0, 0, 0), std=(1, 1, 1))
    assert (found.task, found.classes) == ("classification", ("apple", "leaf"))
    assert (found.train.n, found.evaluate.n) == (16, 4)
    images, labels = everything(found.evaluate)
    assert labels.tolist() == [0, 0, 1, 1]
    for image, label in zip(images, labels, strict=True):
        assert (image[:, 0, 0] * 255).round().int().tolist() == list((RED, GREEN)[label])


def test_train_and_val_folders_are_the_splits(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for label, color in (("a", RED), ("b", GREEN)):
            for i in range(count):
                picture(tmp_path / part / label / f"{i}.png", color)
    found = data.load(str(tmp_path))
    assert (found.train.n, found.evaluate.n) == (6, 4)


def test_the_division_of_a_folder_is_always_the_same_and_leaves_no_image_in_both(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
    first, again = data.load(str(tmp_path)), data.load(str(tmp_path))
    assert isinstance(first.train, data.FolderSplit)
    assert isinstance(first.evaluate, data.FolderSplit)
    assert not set(first.train.files) & set(first.evaluate.files)
    assert first.train.n + first.evaluate.n == 30
    assert again.evaluate.files == first.evaluate.files
    assert again.sha256 == first.sha256


def test_the_digest_of_a_folder_is_of_its_contents(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "one" / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (data.load(str(tmp_path / name)).sha256 for name in ("one", "two"))
    assert one == two
    for file in (tmp_path / "two").rglob("*.png"):
        picture(file, (99, 0, 0))
    assert data.load(str(tmp_path / "two")).sha256 != one


def test_photographs_are_resized_and_cropped_to_the_networks_input(tmp_path: Path) -> None:
    for i in range(4):
        # Left half red, right half green; the crop is from the middle.
        image = Image.new("RGB", (120, 60), RED)
        image.paste(GREEN, (60, 0, 120, 60))
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        image.save(tmp_path / "ab"[i % 2] / f"{i}.png")
    found = data.load(str(tmp_path), mean=(0, 0, 0), std=(1, 1, 1), input_shape=(3, 28, 28))
    image = everything(found.train)[0][0] * 255
    assert image.shape == (3, 28, 28)
    torch.testing.assert_close(image[:, 14, 0], torch.tensor(RED).float(), atol=0.5, rtol=0)
    torch.testing.assert_close(image[:, 14, 27], torch.tensor(GREEN).float(), atol=0.5, rtol=0)


def test_color_files_become_luma_for_a_network_of_one_channel(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", RED)
    found = data.load(str(tmp_path), mean=(0,), std=(1,), input_shape=(1, 8, 8))
    luma = 0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2]
    assert float(everything(found.train)[0].mean()) * 255 == pytest.approx(luma, abs=1)


def test_a_flat_folder_is_reconstruction_with_the_images_as_their_own_targets(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png", 10 * i)
    found = data.load(str(tmp_path))
    assert (found.task, found.classes, found.train.n, found.evaluate.n) == ("reconstruction", (), 4, 1)
    assert found.train.shape == (1, 8, 8)
    images, targets = everything(found.train)
    assert torch.equal(images, targets)


def test_set11_loads_as_reconstruction(shared_data: Path) -> None:
    found = data.load(str(shared_data / "recon" / "Set11"), mean=(0,), std=(1,), input_shape=(1, 256, 256))
    assert found.task == "reconstruction"
    # Nine images of the network's size, two that are four of its tiles each.
    assert found.train.n + found.evaluate.n == 9 + 2 * 4


# npz, Python and user code


def test_npz_with_both_splits(tmp_path: Path) -> None:
    x = np.arange(6 * 3 * 4 * 4, dtype=np.uint8).reshape(6, 3, 4, 4)
    y = np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    found = data.load(str(tmp_path / "d.npz"), mean=(0,), std=(1 / 255,))
    assert (found.train.n, found.evaluate.n, found.classes) == (6, 3, ("0", "1", "2"))
    np.testing.assert_allclose(everything(found.evaluate)[0].numpy(), x[:3], atol=1e-4)


def test_npz_with_one_split_is_divided_by_class(tmp_path: Path) -> None:
    y = np.repeat([0, 1], 10)
    np.savez(tmp_path / "d.npz", images=np.zeros((20, 4, 4), np.uint8), labels=y)
    found = data.load(str(tmp_path / "d.npz"))
    assert (found.train.n, found.evaluate.n) == (16, 4)
    assert sorted(everything(found.evaluate)[1].tolist()) == [0, 0, 1, 1]


def test_a_relative_path_is_looked_for_below_the_data_folder_first(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "work").mkdir()
    y = np.array([0, 1] * 5)
    np.savez(tmp_path / "store" / "d.npz", images=np.zeros((10, 4, 4), np.uint8), labels=y)
    np.savez(tmp_path / "work" / "d.npz", images=np.zeros((10, 8, 8), np.uint8), labels=y)
    monkeypatch.chdir(tmp_path / "work")
    assert data.load("d.npz").train.shape == (1, 8, 8)
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path / "store"))
    assert data.load("d.npz").train.shape == (1, 4, 4)


X = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(5))
Y = torch.arange(20) % 4


def batches(size: int = 6):
    for start in range(0, 20, size):
        yield X[start : start + size], Y[start : start + size]


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda: (X, Y), id="tensors"),
        pytest.param(lambda: (X.numpy(), Y.numpy()), id="arrays"),
        pytest.param(lambda: (X.permute(0, 2, 3, 1).numpy(), Y.tolist()), id="channels last, list of labels"),
        pytest.param(lambda: {"images": X, "labels": Y}, id="dict"),
        pytest.param(lambda: batches(), id="generator of batches"),
        pytest.param(lambda: list(batches()), id="list of batches"),
        pytest.param(lambda: DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True), id="DataLoader"),
        pytest.param(lambda: DataLoader(Stream(), batch_size=3), id="DataLoader of a stream"),
    ],
)
def test_every_form_from_python_gives_the_same_images_in_the_same_order(given) -> None:
    found = data.from_python(given(), divisible=False)
    images, labels = everything(found.train)
    # Floating-point inputs are taken as normalized already.
    torch.testing.assert_close(images, X)
    assert labels.tolist() == Y.tolist()
    assert (found.task, len(found.classes)) == ("classification", 4)
    divided = data.from_python(given())
    assert divided.train.n + divided.evaluate.n == 20
    assert torch.equal(divided.train.inputs(4, seeded()), divided.train.inputs(4, seeded()))


def test_a_loader_over_images_in_the_order_of_their_classes_is_divided_by_class() -> None:
    y = torch.arange(4).repeat_interleave(5)
    found = data.from_python(DataLoader(TensorDataset(X, y), batch_size=3))
    assert everything(found.evaluate)[1].tolist() == [0, 1, 2, 3]


def test_a_pair_of_pairs_is_training_and_evaluation() -> None:
    found = data.from_python(((X[:12], Y[:12]), (X[12:], Y[12:])))
    torch.testing.assert_close(everything(found.train)[0], X[:12])
    torch.testing.assert_close(everything(found.evaluate)[0], X[12:])
    loaders = [DataLoader(TensorDataset(a, b), batch_size=5) for a, b in ((X[:12], Y[:12]), (X[12:], Y[12:]))]
    lazy = data.from_python(tuple(loaders))
    torch.testing.assert_close(everything(lazy.evaluate)[0], X[12:])
    assert everything(lazy.evaluate)[1].tolist() == Y[12:].tolist()


def test_images_without_labels_are_reconstruction() -> None:
    assert data.from_python(X).task == "reconstruction"
    assert data.from_python((X, None)).task == "reconstruction"
    found = data.from_python((X, 2 * X), divisible=False)
    assert found.task == "reconstruction"
    torch.testing.assert_close(everything(found.train)[1], 2 * X)


def test_data_that_is_loaded_already_passes_through() -> None:
    found = data.load("digits")
    assert data.from_python(found) is found


def test_a_users_function_gives_data(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("COUNT = 8\n")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from helper_of_mine import COUNT\n"
        "def make():\n"
        "    x = np.zeros((COUNT, 3, 4, 4), np.uint8)\n"
        "    return (x, np.arange(COUNT) % 2), (x[:4], np.arange(4) % 2)\n"
    )
    found = data.load(f"{tmp_path / 'mine.py'}:make")
    assert (found.train.n, found.evaluate.n) == (8, 4)
