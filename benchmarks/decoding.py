"""Peak memory of decoding, by first_stage.chunk_size and by the number of samples.

    python benchmarks/decoding.py [--side 128]

An untrained AutoencoderKL decodes n latents to images of side×side pixels. It has the layout of Stable Diffusion's
autoencoder at a quarter of its width. The table shows the peak of the CPU allocator in MiB without the images
themselves, which grow with n at any chunk size.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings

import torch
from measuring import peak_memory
from rich.console import Console
from rich.table import Table

from flowdiff.models.first_stage.base import FirstStage
from flowdiff.registry import create

CHUNKS, SAMPLES = (1, 4, 16), (16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="pixels per side of an image, a multiple of 8")
    side = parser.parse_args().side
    warnings.filterwarnings("ignore")
    table = Table(title=f"peak MiB of decoding to 3×{side}×{side}, without the images", title_justify="left")
    table.add_column("chunk_size", justify="right")
    for n in SAMPLES:
        table.add_column(f"{n} samples", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        untrained_autoencoder().save_pretrained(folder)
        for chunk in CHUNKS:
            stage = create(
                "first_stage", "autoencoder_kl", shape=(3, side, side), load=None, model=folder, chunk_size=chunk
            )
            table.add_row(str(chunk), *(f"{peak_beyond_images(stage, n):.1f}" for n in SAMPLES))
    Console().print(table)


def untrained_autoencoder() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    )


def peak_beyond_images(stage: FirstStage, n: int) -> float:
    """The most MiB that decoding n latents holds, less the images that it returns."""
    z = torch.randn(n, *stage.latent_shape)
    images = []
    peak = peak_memory(lambda: images.append(stage.decode(z)))
    return peak - images[0].nbytes / 2**20


if __name__ == "__main__":
    main()
