"""Data that can't be used: each case is refused in one line that names the fix, with exit code 2."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from compress import data
from compress.errors import BadData, BadInput, UnknownName

X = np.zeros((8, 3, 4, 4), np.uint8)
Y = np.arange(8) % 2


def refusal(given, **options) -> str:
    with pytest.raises(BadInput) as caught:
        data.load(given, **options) if isinstance(given, str) else data.from_python(given, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nan_in(x: np.ndarray, value: float) -> np.ndarray:
    x = x.astype(np.float32)
    x[3, 0, 0, 0] = value
    return x


ARRAYS = {
    "no images": ((X[:0], Y[:0]), {}, "empty", "at least one image"),
    "one class": ((X, np.zeros(8, int)), {}, "one class only", "two classes"),
    "label too high": ((X, Y + 9), {"num_classes": 10}, "label 10 isn't a class of the network (0 to 9)", "correct"),
    "label below 0": ((X, Y - 1), {}, "label -1", "correct the labels"),
    "label not whole": ((X, Y + 0.5), {}, "aren't whole numbers", "class indices"),
    "one-hot": ((X, np.eye(8)), {}, "shape (8, 8)", "argmax"),
    "too few labels": ((X, Y[:5]), {}, "8 images but 5 labels", "one label an image"),
    "NaN": ((nan_in(X, np.nan), Y), {}, "1 of 8 images hold NaN or infinity", "remove or repair"),
    "infinity": ((nan_in(X, np.inf), Y), {}, "NaN or infinity", "remove or repair"),
    "objects": ((np.array([[None] * 4] * 8, dtype=object), Y), {}, "array of object", "store numbers"),
    "text": ((np.array(["a"] * 8), Y), {}, "array of str", "store numbers"),
    "wrong size": ((X, Y), {"input_shape": (3, 32, 32)}, "4x4 pixels, the network takes 32x32", "resize"),
    "wrong channels": ((X, Y), {"input_shape": (1, 4, 4)}, "3 channels, the network takes 1", "convert"),
    "wrong axes": ((np.zeros((8, 2, 3, 4, 4), np.uint8), Y), {}, "shape (8, 2, 3, 4, 4)", "(N, C, H, W)"),
    "pixels above 255": ((X.astype(int) + 300, Y), {}, "300 to 300", "0 to 255"),
    "mean of 2 values": ((X, Y), {"mean": (0.5, 0.5)}, "2 values of mean for images of 3 channels", "--mean"),
    "std of 0": ((X, Y), {"std": (0.0,)}, "std is", "above 0"),
    "no batches": (iter(()), {}, "yields no batches", "DataLoader"),
    "batches of one thing each": (iter([3.0]), {}, "a batch is a float", "yield (images, labels)"),
    "a number": (7, {}, "it is a int", "DataLoader"),
    "wrong keys": ({"pictures": X, "labels": Y}, {}, "keys labels, pictures", "images and labels"),
    "evaluation of another size": (((X, Y), (X[:, :, :2], Y)), {}, "4x2 pixels, the network takes 4x4", "resize"),
    "evaluation of one class": (((X, Y), (X, Y * 0)), {}, "one class only", "two classes"),
    "evaluation without labels": (((X, Y), (X, None)), {}, "different kinds of labels", "the same"),
    "evaluation of floats": (((X, Y), (X.astype(np.float32), Y)), {}, "uint8, evaluation images float32", "both"),
    "one image to divide": ((X[:1], None), {}, "can't be divided", "more images"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case: str) -> None:
    given, options, problem, fix = ARRAYS[case]
    message = refusal(given, **options)
    assert problem in message
    assert fix in message


def test_loaders() -> None:
    def loader(x: np.ndarray, y: np.ndarray) -> DataLoader:
        return DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=4)

    assert "one class only" in refusal(loader(X, Y * 0))
    assert "NaN" in refusal(loader(nan_in(X, np.nan), Y), divisible=False)
    assert "3 channels, the network takes 1" in refusal(loader(X, Y), input_shape=(1, 4, 4))
    assert "label 3 isn't a class" in refusal(loader(X, Y + 2), num_classes=3)
    assert "empty" in refusal(loader(X[:0], Y[:0]))


def test_a_loader_that_raises_is_told_by_type_and_message() -> None:
    class Broken(Dataset):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int):
            raise KeyError("sensor 7")

    assert "KeyError: 'sensor 7'" in refusal(DataLoader(Broken(), batch_size=2))

    def stream():
        yield X, Y
        raise ValueError("line\nbreak")

    assert "ValueError: line break" in refusal(stream())


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        data.load("digit")
    assert caught.value.nearest == ("digits",)
    assert "there is no such file or folder" in refusal("./nothing-here.npz")


def test_missing_data_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path))
    # No torchvision, hence no download.
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    message = refusal("cifar10")
    assert "cifar-10-batches-bin" in message
    assert str(tmp_path / "cifar10") in message
    message = refusal("mnist")
    assert "train-images-idx3-ubyte.gz" in message
    assert str(tmp_path / "mnist") in message
    assert str(tmp_path / "elsewhere") in refusal(f"mnist:{tmp_path / 'elsewhere'}")
    assert not list(tmp_path.iterdir())


def test_digits_fit_only_networks_for_1x32x32() -> None:
    assert "1 channel, the network takes 3" in refusal("digits", input_shape=(3, 32, 32))
    assert "32x32 pixels, the network takes 224x224" in refusal("digits", input_shape=(1, 224, 224))
    assert "label 9 isn't a class of the network (0 to 4)" in refusal("digits", num_classes=5)


# Damaged files


@pytest.fixture
def mnist_copy(shared_data: Path, tmp_path: Path) -> Path:
    for file in (shared_data / "mnist" / "MNIST" / "raw").glob("*.gz"):
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def test_mnist_cut_short_inside_gzip(mnist_copy: Path) -> None:
    file = mnist_copy / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1000])
    message = refusal(f"mnist:{mnist_copy}")
    assert "can't be read" in message
    assert "fetch the file again" in message


def test_mnist_cut_short_plain(mnist_copy: Path) -> None:
    file = mnist_copy / "t10k-images-idx3-ubyte.gz"
    (mnist_copy / "t10k-images-idx3-ubyte").write_bytes(gzip.decompress(file.read_bytes())[:5000])
    assert "holds 4984 bytes, its header says (10000, 28, 28)" in refusal(f"mnist:{mnist_copy}")


def test_mnist_of_another_format_or_incomplete(mnist_copy: Path) -> None:
    (mnist_copy / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    assert "isn't an idx file" in refusal(f"mnist:{mnist_copy}")
    (mnist_copy / "train-labels-idx1-ubyte.gz").unlink()
    assert "neither train-labels-idx1-ubyte nor" in refusal(f"mnist:{mnist_copy}")


@pytest.fixture
def cifar_copy(cifar10_dir: Path, tmp_path: Path) -> Path:
    for kind in ("bin", "py"):
        folder = tmp_path / f"cifar-10-batches-{kind}"
        folder.mkdir()
        for file in (cifar10_dir / folder.name).iterdir():
            (folder / file.name).symlink_to(file)
    return tmp_path


def replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def test_cifar10_cut_short_or_incomplete(cifar_copy: Path) -> None:
    folder = cifar_copy / "cifar-10-batches-bin"
    replace(folder / "data_batch_2.bin", (folder / "data_batch_2.bin").read_bytes()[:-5])
    assert "data_batch_2.bin has 30729995 bytes" in refusal(f"cifar10:{folder}")
    (folder / "data_batch_2.bin").unlink()
    assert "has no data_batch_2.bin" in refusal(f"cifar10:{folder}")


class Touch:
    """Pickled, it would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(cifar_copy: Path, tmp_path: Path) -> None:
    folder = cifar_copy / "cifar-10-batches-py"
    for protocol in range(6):
        replace(folder / "data_batch_1", pickle.dumps({"data": Touch(tmp_path / "ran"), "labels": []}, protocol))
        message = refusal(f"cifar10:{folder}")
        assert f"{os.system.__module__}.system" in message
        assert "wasn't run" in message
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_refused(cifar_copy: Path) -> None:
    folder = cifar_copy / "cifar-10-batches-py"
    whole = (folder / "data_batch_1").read_bytes()
    replace(folder / "data_batch_1", whole[:1000])
    assert "fetch the" in refusal(f"cifar10:{folder}")
    replace(folder / "data_batch_1", pickle.dumps(["a", "list"]))
    assert "isn't a batch of CIFAR-10" in refusal(f"cifar10:{folder}")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_plain_arrays_are_read_whatever_their_protocol(cifar_copy: Path, protocol: int) -> None:
    folder = cifar_copy / "cifar-10-batches-py"
    x = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    for stem in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        replace(folder / stem, pickle.dumps({"data": x, "labels": [0, 1, 2, 3]}, protocol))
    found = data.load(f"cifar10:{folder}", mean=(0,), std=(1 / 255,))
    assert found.train.n == 20
    images, _ = next(iter(found.evaluate.batches(4)))
    np.testing.assert_allclose(images.reshape(4, -1).numpy(), x, atol=1e-3)


def test_npz_of_objects_isnt_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([Touch(tmp_path / "ran")], dtype=object), labels=np.array([0]))
    message = refusal(str(tmp_path / "d.npz"))
    assert "arrays of objects" in message
    assert not (tmp_path / "ran").exists()


def test_npz_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=X, labels=Y)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    assert "can't be read" in refusal(str(tmp_path / "d.npz"))
    (tmp_path / "d.npz").write_bytes(b"")
    assert "can't be read" in refusal(str(tmp_path / "d.npz"))
    np.savez(tmp_path / "d.npz", pictures=X)
    assert "keys pictures" in refusal(str(tmp_path / "d.npz"))


# Folders


def folder_of(root: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8)) -> str:
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (i, 0, 0)).save(root / name / f"{i}.png")
    return str(root)


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "there are no images" in refusal(str(tmp_path / "nothing"))
    assert "one class only" in refusal(folder_of(tmp_path / "one", {"a": 5}))
    two = folder_of(tmp_path / "two", {"a": 5, "b": 5})
    assert "2 class folders, the network has 10 outputs" in refusal(two, num_classes=10)
    assert "8x8 pixels, the network takes 224x224" in refusal(two, input_shape=(3, 224, 224))
    assert "takes 4 channels" in refusal(two, input_shape=(4, 8, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "two" / "loose.png")
    assert "both images and folders of images" in refusal(two)


def test_folders_whose_splits_differ(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 2, "b": 2})
    folder_of(tmp_path / "val", {"a": 2, "c": 2})
    message = refusal(str(tmp_path))
    assert "don't have the same class folders (b)" in message


def test_images_of_different_sizes_need_a_network_that_says_its_own(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 2})
    folder_of(tmp_path, {"b": 2}, (9, 9))
    assert "8x8" in refusal(str(tmp_path))
    assert data.load(str(tmp_path), input_shape=(3, 8, 8)).train.shape == (3, 8, 8)


def test_a_flat_folder_with_an_image_smaller_than_the_input(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("L", (48 if i == 2 else 64, 64)).save(tmp_path / f"{i}.png")
    assert "2.png has 48x64 pixels, the network takes 56x56" in refusal(str(tmp_path), input_shape=(1, 56, 56))


def test_files_that_arent_images(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    assert "0.png isn't an image" in refusal(str(tmp_path))


def test_an_image_that_is_cut_short_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    for i in range(6):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        file = tmp_path / "ab"[i % 2] / f"{i}.png"
        Image.fromarray(noise[i]).save(file)
        file.write_bytes(file.read_bytes()[:600])
    found = data.load(str(tmp_path))
    with pytest.raises(BadData, match="can't be decoded"):
        list(found.train.batches(2))


# User code


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def make():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("import no_such_package_here\n", "line 1: ModuleNotFoundError: No module named"),
        ("def make(:\n", "line 1: SyntaxError"),
        ("def make():\n    raise SystemExit(3)\n", "line 2: SystemExit: 3"),
        ("def other():\n    pass\n", "there are: other"),
        ("def make():\n    return 'text'\n", "it is a str"),
        ("def make(a):\n    pass\n", "TypeError"),
    ],
)
def test_user_code_that_fails_is_told_in_one_line(tmp_path: Path, source: str, expected: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    assert expected in refusal(f"{tmp_path / 'mine.py'}:make")


def test_user_code_that_isnt_there(tmp_path: Path) -> None:
    assert "there is no file" in refusal(f"{tmp_path / 'mine.py'}:make")
    (tmp_path / "mine.py").write_text("")
    assert "no function is named" in refusal(str(tmp_path / "mine.py"))
