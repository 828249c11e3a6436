"""Photographs for reconstruction: patches to train on, whole images in tiles to evaluate on, sizes that differ."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress import data, quality, training
from compress.data.augment import Dihedral
from compress.data.image_files import decode
from compress.data.tiles import Pixels
from compress.errors import BadData, UnknownName

GREY = data.Sizes(1, 8)


def write(path: Path, size: tuple[int, int], seed: int = 0, color: bool = False) -> np.ndarray:
    """A random image of ``size`` (width, height) as a PNG; its pixels (H, W) or (H, W, 3)."""
    shape = (size[1], size[0], 3) if color else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def folders(root: Path, train: list[tuple[int, int]], test: list[tuple[int, int]]) -> list[np.ndarray]:
    """A folder with splits; the pixels of the images to evaluate on."""
    for i, size in enumerate(train):
        write(root / "train" / f"{i}.png", size, i)
    return [write(root / "test" / f"{i}.png", size, 100 + i) for i, size in enumerate(test)]


def load(root: Path, sizes: data.Sizes | None = GREY, **more: object) -> data.Data:
    return data.load(str(root), mean=(0,), std=(1,), sizes=sizes, **more)  # type: ignore[arg-type]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_whole_images_come_back_from_their_tiles(tmp_path: Path) -> None:
    images = folders(tmp_path, [(16, 16)] * 3, [(16, 16), (21, 35), (50, 9)])
    found = load(tmp_path, data.Sizes(1, 8, (16, 16)))
    # 1x1, 3x2 and 1x4 tiles of 16x16.
    assert found.evaluate.n == 1 + 3 * 2 + 1 * 4
    assert isinstance(found.evaluate, data.TileSplit)
    for batch in (1, 4, 100):
        whole = list(found.evaluate.whole(found.evaluate.batches(batch)))
        assert len(whole) == 3
        for (made, wanted), pixels in zip(whole, images, strict=True):
            assert torch.equal((made * 255).round().byte()[0, 0], torch.from_numpy(pixels))
            assert torch.equal(made, wanted)


def test_figures_are_those_of_whole_images(tmp_path: Path) -> None:
    images = folders(tmp_path, [(16, 16)] * 3, [(16, 16), (21, 35)])
    found = load(tmp_path, data.Sizes(1, 8, (16, 16)))

    def dark_left(x: torch.Tensor) -> torch.Tensor:
        """Reconstructs a tile with its left half black: tiles differ in error."""
        return torch.cat([torch.zeros_like(x[..., :8]), x[..., 8:]], -1)

    quality_ = training.evaluate_quality(dark_left, found.evaluate, batch_size=3)
    for value, similar, pixels in zip(quality_.psnr, quality_.ssim, images, strict=True):
        made = pixels.astype(float).copy()
        made[:, np.arange(made.shape[1]) % 16 < 8] = 0
        mse = ((made - pixels) ** 2).mean()
        assert value == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)
        wanted = quality.ssim(torch.tensor(made)[None, None], torch.tensor(pixels)[None, None].double())
        assert wanted is not None
        assert float(wanted) == pytest.approx(similar, abs=1e-4)


def test_the_size_is_chosen_by_the_images_in_multiples_of_the_block(tmp_path: Path) -> None:
    folders(tmp_path / "small", [(30, 40)] * 3, [(30, 40)])
    assert load(tmp_path / "small").train.shape == (1, 40, 24)
    folders(tmp_path / "large", [(300, 140)] * 3, [(300, 140)])
    assert load(tmp_path / "large").train.shape == (1, 128, 128)
    folders(tmp_path / "mixed", [(64, 64)] * 3 + [(16, 16)], [(12, 64)])
    mixed = load(tmp_path / "mixed")
    # The median's; the smallest can't be trained on, and the narrow one fills up a tile.
    assert mixed.train.shape == (1, 64, 64)
    assert (mixed.train.n, mixed.evaluate.n) == (3, 1)
    said = " ".join(note.why for note in mixed.notes)
    assert "1 of 4 are smaller than 64x64 and left out" in said
    assert "1 of the 1 images" in said
    assert load(tmp_path / "mixed", data.Sizes(3, 8, (16, 32))).evaluate.shape == (3, 16, 32)


def test_images_smaller_than_a_block_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, [(30, 7)] * 3, [(30, 7)])
    with pytest.raises(BadData, match="has 30x7 pixels, the network measures blocks of 8x8"):
        load(tmp_path)
    with pytest.raises(BadData, match="12x8 isn't a multiple of 8"):
        load(tmp_path, data.Sizes(1, 8, (8, 12)))
    with pytest.raises(BadData, match="no image to train on fills 16x16"):
        load(tmp_path, data.Sizes(1, 8, (16, 16)))


def test_patches_are_pieces_of_their_images_and_depend_on_the_generator(tmp_path: Path) -> None:
    pixels = [write(tmp_path / "train" / f"{i}.png", (40, 24), i) for i in range(3)]
    write(tmp_path / "test" / "0.png", (16, 16))
    found = load(tmp_path, data.Sizes(1, 8, (16, 16))).train
    assert found.n == 3 * (24 // 16) * (40 // 16)
    in_order = torch.cat([x for x, _ in found.batches(4)]) * 255
    for i, patch in enumerate(in_order):
        left = i % 2 * 16
        assert torch.equal(patch[0].round().byte(), torch.from_numpy(pixels[i // 2][:16, left : left + 16]))
    drawn, again, other = (torch.cat([x for x, _ in found.batches(4, seeded(s))]) for s in (0, 0, 1))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    windows = {
        pixels[i][top : top + 16, left : left + 16].tobytes()
        for i in range(3)
        for top in range(9)
        for left in range(25)
    }
    for patch in (drawn * 255).round().byte().numpy():
        assert patch[0].tobytes() in windows
    assert torch.equal(found.inputs(4, seeded()), found.inputs(4, seeded()))


def test_augmentation_turns_and_mirrors(tmp_path: Path) -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    eight = {tuple(t.flatten().tolist()) for k in range(4) for r in (image.rot90(k, (2, 3)),) for t in (r, r.flip(3))}
    seen = {tuple(Dihedral()(image, seeded(seed)).flatten().tolist()) for seed in range(100)}
    assert seen == eight
    oblong = torch.arange(6.0).view(1, 1, 2, 3)
    turned = {tuple(Dihedral()(oblong, seeded(seed)).flatten().tolist()) for seed in range(60)}
    assert len(turned) == 4
    folders(tmp_path, [(16, 16)] * 3, [(16, 16)])
    assert load(tmp_path).augment == Dihedral()


def test_grey_and_colour_files(tmp_path: Path) -> None:
    color = write(tmp_path / "color.png", (9, 8), color=True)
    gray = write(tmp_path / "gray.png", (9, 8))
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png")
    assert torch.equal(decode("d", tmp_path / "color.png", 3), torch.from_numpy(color).permute(2, 0, 1))
    assert torch.equal(decode("d", tmp_path / "color.png", 1)[0], torch.from_numpy(quality.luma(color)))
    for name in ("gray.png", "palette.png"):
        assert torch.equal(decode("d", tmp_path / name, 1)[0], torch.from_numpy(gray))
        assert torch.equal(decode("d", tmp_path / name, 3), torch.from_numpy(gray).expand(3, -1, -1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_of_sixteen_bits_the_upper_eight_are_taken(suffix: str, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (32, 32)).astype(np.uint16)
    wanted = torch.from_numpy((deep >> 8).astype(np.uint8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(deep).save(tmp_path / name / f"{i}.{suffix}")
    for channels in (1, 3):
        assert torch.equal(decode("d", tmp_path / "a" / f"0.{suffix}", channels), wanted.expand(channels, -1, -1))
    # Classes of images too.
    images, _ = next(load(tmp_path, None).train.batches(1))
    assert torch.equal((images[0] * 255).round().byte(), wanted[None])


def test_decoded_images_dont_travel(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (100, 100))
    pixels = Pixels("d", (tmp_path / "a.png",), 1)
    assert torch.equal(pixels[0], pixels[0])
    assert len(pickle.dumps(pixels)) < 2000
    assert torch.equal(pickle.loads(pickle.dumps(pixels))[0], pixels[0])


@pytest.fixture
def recon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "home" / "recon"
    for name, count, size in (("Set11", 2, (32, 32)), ("BSD400", 5, (24, 24)), ("T91", 3, (16, 40))):
        for i in range(count):
            write(root / name / f"{i}.png", size, i, color=name == "T91")
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path / "home"))
    return root


def test_set11_is_evaluated_whole_and_trains_on_the_others(recon: Path) -> None:
    found = data.load("set11", mean=(0,), std=(1,), sizes=data.Sizes(1, 8))
    assert found.task == "reconstruction"
    assert found.train.shape == (1, 24, 24)
    assert isinstance(found.evaluate, data.TileSplit)
    assert {file.parent.name for file in found.evaluate.pixels.files} == {"Set11"}
    assert found.evaluate.n == 2 * 4
    assert isinstance(found.train, data.PatchSplit)
    assert {file.parent.name for file in found.train.pixels.files} == {"BSD400"}  # T91's are too narrow here
    assert data.load(f"set11:{recon}", mean=(0,), std=(1,), sizes=data.Sizes(1, 8)).sha256 == found.sha256
    held_out = data.load("bsd400", mean=(0,), std=(1,), sizes=data.Sizes(1, 8))
    assert (held_out.train.n, held_out.evaluate.n) == (4, 1)


def test_a_set_that_isnt_there_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path))
    with pytest.raises(BadData, match=r"put the folders Set11 and BSD400 \(and T91\) into .*recon, or name its folder"):
        data.load("set11")
    with pytest.raises(UnknownName, match="set11"):
        data.load("set12")


def test_set11_of_the_literature(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(shared_data))
    found = data.load("set11", mean=(0,), std=(1,), sizes=data.Sizes(1, 32))
    assert found.train.shape == (1, 128, 128)
    assert found.evaluate.n == 9 * 4 + 2 * 16
    quality_ = training.evaluate_quality(lambda x: x.mean((2, 3), keepdim=True).expand_as(x), found.evaluate)
    assert len(quality_.psnr) == len(quality_.ssim) == 11
