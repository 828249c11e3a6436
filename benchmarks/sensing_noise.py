"""Reconstruction from noisy measurements: learnt patterns against Hadamard's and random binary ones, at 10%.

Light is in photo-electrons of a white pixel in one exposure. The linear estimates know the noise; the networks are
trained with one noise, patterns learnt with it or random and fixed, and meet all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import common, reconstruction

RATIO = 0.1
NOISES: tuple[tuple[float | None, float], ...] = (
    (None, 0.0),
    (1000, 0),
    (100, 0),
    (10, 0),
    (1, 0),
    (10, 10),
    (10, 100),
)
"""Electrons of a white pixel, and of the read noise."""

TRAINED_WITH = (10, 10)
LINEAR = ("searched", "hadamard", "random")
TRAINED = ("learnt", "random")
STEPS = 3000


def noise_of(photons: float | None, read: float) -> Any:
    from compress.quantize.sensing import Noise

    return None if photons is None else Noise(float(photons), float(read), 12)


def case_names() -> list[str]:
    return [*(f"linear {patterns}" for patterns in LINEAR), *(f"recursive {patterns}" for patterns in TRAINED)]


def recovered(network: Any, noise: Any) -> Any:
    """What recovers an image from noisy measurements of it."""
    import torch

    generator = torch.Generator().manual_seed(reconstruction.SEED)

    def recover(image: Any) -> Any:
        return network.from_measurements(network.sensing.measure(image, noise=noise, generator=generator))

    return recover


def made(case: str) -> list[common.Row]:
    """One row a noise."""
    import torch

    from compress.networks.sensing import LinearReconstruction, sensing
    from compress.quantize.sensing import SensingLayer
    from compress.quantize.sensing_start import fit, start

    kind, _, patterns = case.partition(" ")
    training, test = reconstruction.training_images(), reconstruction.test_images()
    generator = torch.Generator().manual_seed(reconstruction.SEED)
    if kind == "linear":
        network: Any = LinearReconstruction(SensingLayer(RATIO)).eval()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(reconstruction.SEED)
            network = sensing(ratio=RATIO)
    layer = network.sensing
    layer.noise = noise_of(*TRAINED_WITH)
    found = start(layer, training, patterns="searched" if patterns == "learnt" else patterns, generator=generator)
    if kind == "recursive":
        rate = {} if patterns == "learnt" else {"pattern_rate": 0.0}
        reconstruction.trained(network, f"noise {case}", "recursive", training, found, steps=STEPS, **rate)
    rows: list[common.Row] = []
    for photons, read in NOISES:
        noise = noise_of(photons, read)
        if kind == "linear":
            layer.noise = noise
            fit(layer, found, training)
        score = reconstruction.score(recovered(network, noise), test)
        rows.append(
            {
                "patterns": patterns,
                "network": kind,
                "ratio": RATIO,
                "white_pixel_electrons": photons,
                "read_electrons": float(read),
                "psnr_db": round(score[0], 2),
                "ssim": round(score[1], 4),
            }
        )
    return rows


def measure() -> list[common.Row]:
    """One row a way of choosing patterns, network and noise."""
    return reconstruction.each_case("sensing_noise", case_names(), made)


def section(document: Mapping[str, Any]) -> str:
    """PSNR, a line a noise, a column a way."""
    rows = document["rows"]
    ways = list(dict.fromkeys((row["network"], row["patterns"]) for row in rows))
    by = {(r["network"], r["patterns"], r["white_pixel_electrons"], r["read_electrons"]): r["psnr_db"] for r in rows}
    noises = list(dict.fromkeys((row["white_pixel_electrons"], row["read_electrons"]) for row in rows))
    lines = []
    for photons, read in noises:
        cells = [common.shown(by.get((*way, photons, read)), 2) for way in ways]
        lines.append(["none" if photons is None else f"{photons:g}", f"{read:g}", *cells])
    return (
        f"Set11 at {100 * RATIO:g}%, PSNR in dB against the electrons that a white pixel gives in one exposure and the "
        "read noise in electrons, with an ADC of 12 bits. A mask of +1 and -1 whose halves are collected at once. "
        f"Linear estimates know the noise; the networks were trained with {TRAINED_WITH[0]} and {TRAINED_WITH[1]} "
        f"electrons for {STEPS:,} steps.\n\n"
    ) + common.markdown_table(
        ["white pixel", "read noise", *(f"{network}, {patterns}" for network, patterns in ways)], lines, text_columns=2
    )


BENCHMARK = common.Benchmark(
    name="sensing_noise",
    title="Reconstruction from noisy measurements: learnt patterns against random ones",
    needs=(common.data("recon", "Set11, BSD400 and T91"),),
    packages=("torch", "numpy", "scipy"),
    measure=measure,
    section=section,
    minutes=25,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
