"""What decoding holds at most, by first_stage.chunk_size and by the number of samples.

    python benchmarks/decoding.py [--side 128]

An untrained AutoencoderKL of Stable Diffusion's layout, a quarter as wide, decodes n latents to images of side×side.
MiB are the peak of the CPU allocator less the images themselves, which grow with n whatever one does.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings

import torch
from rich.console import Console
from rich.table import Table
from train_step import peak_memory

from flowdiff.registry import create

CHUNKS, SAMPLES = (1, 4, 16), (16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="of the images, a multiple of 8")
    side = parser.parse_args().side
    warnings.filterwarnings("ignore")
    table = Table(title=f"MiB that decoding to 3×{side}×{side} holds beyond the images", title_justify="left")
    table.add_column("chunk_size", justify="right")
    for n in SAMPLES:
        table.add_column(f"{n} samples", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        untrained().save_pretrained(folder)
        for chunk in CHUNKS:
            stage = create(
                "first_stage", "autoencoder_kl", shape=(3, side, side), load=None, model=folder, chunk_size=chunk
            )
            table.add_row(str(chunk), *(f"{held(stage, n):.1f}" for n in SAMPLES))
    Console().print(table)


def untrained() -> torch.nn.Module:
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


def held(stage: torch.nn.Module, n: int) -> float:
    z = torch.randn(n, *stage.latent_shape)
    images = []
    peak = peak_memory(lambda: images.append(stage.decode(z)))
    return peak - images[0].nbytes / 2**20


if __name__ == "__main__":
    main()
