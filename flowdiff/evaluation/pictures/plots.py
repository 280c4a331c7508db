"""Pictures of a run: sample grid, scatter plot beside the data, denoising trajectory, loss curve, health of the score.

matplotlib is imported when a picture is drawn. Only its Figure objects are used, without windows or global state. Every
function writes one file; the suffix of its path is the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flowdiff.runs.health import WORSE, Curve, Denoising, Health

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150  # dots per inch
INK, FAINT, ACCENT, SECOND = "#1b1f24", "#8b949e", "#1f6feb", "#d1570b"

Step = tuple[float, Tensor, Tensor]  # σ, x (N, …), D (N, …)


def sample_grid(
    images: Tensor,
    path: str | Path,
    *,
    columns: int,
    title: str = "",
    row_labels: Sequence[str] | None = None,
    prompts: Sequence[str] = (),
) -> None:
    """Images uint8 (N, C, H, W), C 1 or 3, in rows of `columns`, with an optional label at the left of each row.

    Pixels are enlarged by a whole factor without smoothing, so that they stay visible. The file keeps the prompts that
    the images were drawn for in its metadata, under Description, one in each line.
    """
    rows = math.ceil(len(images) / columns)
    gap = max(1, images.shape[-1] // 14)  # pixels between images
    canvas = _mosaic(images, columns, gap)
    height, width = canvas.shape[:2]
    scale = max(1, round(900 / width))  # screen dots per pixel
    left = 0.25 + 0.09 * max(map(len, row_labels)) if row_labels else 0.1  # inches, as the next two
    bottom, top = 0.1, (0.38 if title else 0.1)
    inner = (width * scale / DPI, height * scale / DPI)
    size = (left + inner[0] + 0.1, bottom + inner[1] + top)
    figure = _figure(size)
    axes = figure.add_axes((left / size[0], bottom / size[1], inner[0] / size[0], inner[1] / size[1]))
    axes.imshow(canvas.numpy(), interpolation="nearest")
    axes.set_axis_off()
    for row, label in enumerate(row_labels or ()):
        y = 1 - ((row + 0.5) * (height - gap) / rows + gap / 2) / height
        axes.text(-0.08 / inner[0], y, label, transform=axes.transAxes, ha="right", va="center", color=INK, fontsize=10)
    if title:
        figure.text(left / size[0], 1 - 0.12 / size[1], title, ha="left", va="top", color=INK, fontsize=11)
    _save(figure, path, prompts)


def columns(named: Sequence[tuple[str, Tensor]], path: str | Path, *, title: str = "") -> None:
    """Columns of images uint8 (N, C, H, W) with a name above each, C 1 or 3; row i holds image i of every column."""
    rows = torch.stack([images.expand(-1, 3, -1, -1) for _, images in named], 1)  # (N, columns, 3, H, W)
    gap = max(1, rows.shape[-1] // 14)  # pixels between images
    canvas = _mosaic(rows.flatten(0, 1), len(named), gap)
    height, width = canvas.shape[:2]
    scale = max(1, round(150 * len(named) / width))  # screen dots per pixel: a column is an inch wide, as its name
    margin, top = 0.1, (0.62 if title else 0.32)  # inches, as the next
    inner = (width * scale / DPI, height * scale / DPI)
    size = (inner[0] + 2 * margin, inner[1] + margin + top)
    figure = _figure(size)
    axes = figure.add_axes((margin / size[0], margin / size[1], inner[0] / size[0], inner[1] / size[1]))
    axes.imshow(canvas.numpy(), interpolation="nearest")
    axes.set_axis_off()
    for i, (name, _) in enumerate(named):
        x = (margin + (i + 0.5) * inner[0] / len(named)) / size[0]
        figure.text(x, 1 - (top - 0.05) / size[1], name, ha="center", va="bottom", color=INK, fontsize=9)
    if title:
        figure.text(margin / size[0], 1 - 0.1 / size[1], title, ha="left", va="top", color=INK, fontsize=10)
    _save(figure, path)


def coloured(levels: Tensor) -> Tensor:
    """Grey images uint8 (N, 1, H, W) as colours from black over red to white, uint8 (N, 3, H, W)."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["inferno"](np.arange(256), bytes=True)[:, :3].copy())
    return colours[levels[:, 0].long()].permute(0, 3, 1, 2)


def scatter(samples: Tensor, data: Tensor, path: str | Path, *, title: str = "") -> None:
    """Samples (N, D) beside data (M, D) on the same axes, D ≥ 2; only the first two dimensions are drawn."""
    width, height, side = 8.6, 5.0, 3.75  # inches
    figure = _figure((width, height))
    limits = _limits(data)
    panels = ((0.7, samples, "samples", ACCENT), (4.65, data, "data points", INK))
    for left, points, name, colour in panels:
        axes = figure.add_axes((left / width, 0.6 / height, side / width, side / height))
        _dots(axes, points, limits, colour)
        axes.set_title(f"{len(points):,} {name}", fontsize=10, color=INK)
        axes.set_xlabel("$x_1$ (data units)", color=INK)
    figure.axes[0].set_ylabel("$x_2$ (data units)", color=INK)
    figure.axes[1].set_yticklabels([])
    _headline(figure, title)
    _save(figure, path)


def paths(curves: Tensor, data: Tensor, path: str | Path) -> None:
    """Curves (P, T, D) of T points with marked ends, over data points (M, D ≥ 2); two dimensions are drawn."""
    figure = _figure((5.0, 5.0))
    axes = figure.add_axes((0.14, 0.12, 0.82, 0.82))
    _dots(axes, data, _limits(data), FAINT, size=2.0)
    for curve in curves.detach().cpu().float():
        axes.plot(curve[:, 0], curve[:, 1], color=ACCENT, linewidth=1.2, alpha=0.8)
        axes.scatter(curve[[0, -1], 0], curve[[0, -1], 1], s=14, color=SECOND, zorder=3)
    axes.set_xlabel("$x_1$ (data units)", color=INK)
    axes.set_ylabel("$x_2$ (data units)", color=INK)
    axes.set_title("between data points, in z", fontsize=10, color=INK)
    _save(figure, path)


def side_by_side(
    panels: Sequence[tuple[str, Tensor]],
    path: str | Path,
    *,
    columns: int,
    data: Tensor | None,
    prompts: Sequence[str] = (),
) -> None:
    """Titled panels of samples: images uint8 (N, C, H, W) in rows of `columns`, or points (N, D ≥ 2) on data's axes.

    The file keeps the prompts in its metadata, as `sample_grid` does.
    """
    side, top = 3.6, 0.55  # inches: the width of a panel, and the height of its title of two lines
    mosaics = [_mosaic(x, columns, max(1, x.shape[-1] // 14)) for _, x in panels] if data is None else []
    ratio = mosaics[0].shape[0] / mosaics[0].shape[1] if mosaics else 1.0
    figure = _figure((side * len(panels), side * ratio + top))
    height = figure.get_figheight()
    for i, (title, samples) in enumerate(panels):
        axes = figure.add_axes(((i + 0.02) / len(panels), 0.0, 0.96 / len(panels), (height - top) / height))
        if data is None:
            axes.imshow(mosaics[i].numpy(), interpolation="nearest")
        else:
            _dots(axes, samples, _limits(data), ACCENT, size=2.0)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10, color=INK)
    _save(figure, path, prompts)


def trajectory(
    steps: Sequence[Step], path: str | Path, *, columns: int = 9, num_samples: int = 3, title: str = ""
) -> None:
    """The steps of a sampler: x_σ above, D(x_σ, σ) below, from the largest σ at the left to the smallest.

    Images x_σ are drawn as x_σ/√(1 + σ²), which keeps the noise in the range of grey levels.

    Args:
        steps: (σ, x, D) of every step in model space, images (N, C, H, W) or vectors (N, D ≥ 2).
        path: the file.
        columns: at most so many steps are drawn, including the first and the last.
        num_samples: so many of the images are drawn.
        title: title of the picture.
    """
    chosen = sorted({round(i * (len(steps) - 1) / max(columns - 1, 1)) for i in range(columns)})
    kept = [steps[i] for i in chosen]
    draw = _trajectory_of_images if kept[0][1].ndim == 4 else _trajectory_of_points
    figure = draw(kept, num_samples)
    _headline(figure, title)
    _save(figure, path)


def loss_curve(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> None:
    """Training loss (raw and smoothed), validation loss, and on the right axis the Fréchet distance with its floor.

    Args:
        rows: the rows of metrics.csv, with `step` and any of train_loss, val_loss, fd_<extractor>,
            fd_<extractor>_floor; empty cells ('' or None) are skipped.
        path: the file.
        title: title of the picture.
    """
    figure = _figure((7.6, 4.2))
    axes = figure.subplots()
    steps, losses = _column(rows, "train_loss")
    if steps:
        axes.plot(steps, losses, color=ACCENT, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smoothed(losses), color=ACCENT, linewidth=1.6, label="training loss (smoothed)")
    val_steps, val = _column(rows, "val_loss")
    if val_steps:
        axes.plot(val_steps, val, color=INK, marker="o", markersize=3.5, linewidth=1.3, label="validation loss")
    _focus(axes, losses + val)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.set_xlabel("training step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    _bare(axes)
    handles, labels = axes.get_legend_handles_labels()
    distances = sorted({k for row in rows for k in row if k.startswith("fd_") and not k.endswith(("_sd", "_floor"))})
    if any(_column(rows, name)[0] for name in distances):
        right = axes.twinx()
        for name in distances:
            fd_steps, fd = _column(rows, name)
            right.plot(fd_steps, fd, color=SECOND, marker="s", markersize=3.5, linewidth=1.3, label=name)
            floor = _column(rows, f"{name}_floor")[1]
            if floor:
                right.axhline(floor[-1], color=SECOND, linestyle=":", linewidth=1.2, label="its floor (test split)")
        right.set_yscale("log")
        right.set_ylabel("Fréchet distance (feature units², log)", color=SECOND)
        right.tick_params(colors=SECOND)
        _bare(right, keep_right=True)
        more_handles, more_labels = right.get_legend_handles_labels()
        handles, labels = handles + more_handles, labels + more_labels
    if handles:
        axes.legend(handles, labels, frameon=False, fontsize=9, loc="upper right")
    figure.set_layout_engine("constrained")
    _save(figure, path)


def health(found: Health, path: str | Path) -> None:
    """The curves of a score's health over σ, below each other: error of D, smallest eigenvalue, Fokker–Planck residual.

    What was not measured has no panel. Values that are not finite are left out.
    """
    drawn = [("error", found.denoising), ("eigenvalue", found.eigenvalues), ("residual", found.fokker_planck)]
    heights = {"error": 3.2, "eigenvalue": 1.5, "residual": 1.5}  # inches
    shown = [name for name, curve in drawn if curve is not None]
    figure = _figure((6.8, 0.9 + sum(heights[name] for name in shown)))
    ratios = [heights[name] for name in shown]
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    panels = dict(zip(shown, rows, strict=True))
    if found.denoising is not None:
        _denoising(panels["error"], found.denoising)
    if found.eigenvalues is not None:
        axes = panels["eigenvalue"]
        _curve(axes, found.eigenvalues)
        axes.axhline(0, color=INK, linewidth=1.0)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title("smallest eigenvalue of ∂D/∂x on the sampler's trajectories", fontsize=9, color=INK, loc="left")
    if found.fokker_planck is not None:
        axes = panels["residual"]
        _curve(axes, found.fokker_planck)
        axes.set_ylim(-0.05, 1.45)  # it is at most √2
        axes.set_title("residual of the Fokker–Planck equation", fontsize=9, color=INK, loc="left")
    for axes in rows:
        axes.set_xscale("log")
        _bare(axes)
    rows[-1].set_xlabel("σ", color=INK)
    figure.set_layout_engine("constrained")
    _save(figure, path)


def _denoising(axes: Axes, errors: Denoising) -> None:
    """The error of D beside what needs no network; a ring around levels that are visited and worse than the means."""
    name = "class means" if errors.of_classes else "the data's mean"
    axes.axhline(errors.variance, color=FAINT, linestyle=":", linewidth=1.2, label="variance of the data")
    axes.axhline(errors.means, color=INK, linestyle="--", linewidth=1.2, label=name)
    if errors.wiener is not None:
        axes.plot(errors.sigma, errors.wiener, color=SECOND, linewidth=1.2, label="Wiener filter")
    axes.plot(errors.sigma, errors.model, color=ACCENT, marker="o", markersize=3.5, linewidth=1.6, label="D")
    levels = zip(errors.sigma, errors.model, errors.visited, strict=True)
    if worse := [(s, e) for s, e, seen in levels if seen and math.isfinite(e) and e > WORSE * errors.means]:
        label = f"worse than {name}"
        axes.plot(*zip(*worse, strict=True), "o", color="#cf222e", markersize=8, fillstyle="none", label=label)
    if any(0 < error < math.inf for error in (errors.means, errors.variance, *errors.model)):
        axes.set_yscale("log")
    axes.set_title("mean squared error of D on test data, per dimension", fontsize=9, color=INK, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _curve(axes: Axes, curve: Curve) -> None:
    axes.plot(curve.sigma, curve.value, color=ACCENT, marker="o", markersize=3.5, linewidth=1.6)


def _trajectory_of_images(steps: Sequence[Step], num_samples: int) -> Figure:
    num_samples = min(num_samples, len(steps[0][1]))
    figure = _figure((1.0 * len(steps) + 0.6, 1.0 * 2 * num_samples + 0.75))
    panels = figure.subplots(2 * num_samples, len(steps), squeeze=False)
    for column, (sigma, x, denoised) in enumerate(steps):
        for index in range(num_samples):
            for offset, image in ((0, x[index] / math.sqrt(1 + sigma**2)), (1, denoised[index])):
                axes = panels[2 * index + offset, column]
                axes.imshow(_picture(image), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if column == 0:
                    label = (r"$x_\sigma$", "$D$")[offset]
                    axes.set_ylabel(label, color=INK, rotation=0, ha="right", va="center", fontsize=11)
        panels[0, column].set_title(rf"$\sigma$ = {float(sigma):.3g}", fontsize=9, color=INK)
    note = r"$x_\sigma$ drawn as $x_\sigma/\sqrt{1+\sigma^2}$"
    figure.text(0.99, 1 - 0.12 / figure.get_figheight(), note, ha="right", va="top", color=FAINT, fontsize=9)
    figure.subplots_adjust(
        left=0.5 / figure.get_figwidth(),
        right=0.99,
        bottom=0.02,
        top=1 - 0.65 / figure.get_figheight(),
        wspace=0.04,
        hspace=0.04,
    )
    return figure


def _trajectory_of_points(steps: Sequence[Step], num_samples: int) -> Figure:
    width, height = 1.45 * len(steps) + 0.5, 3.75
    figure = _figure((width, height))
    panels = figure.subplots(2, len(steps), squeeze=False)
    final = _limits(steps[-1][2])
    for column, (sigma, x, denoised) in enumerate(steps):
        # x spreads with σ, so its window grows with σ; the window of D is that of the data.
        _dots(panels[0, column], x, [(low - 3 * sigma, high + 3 * sigma) for low, high in final], ACCENT, size=1.2)
        _dots(panels[1, column], denoised, final, SECOND, size=1.2)
        panels[0, column].set_title(rf"$\sigma$ = {float(sigma):.3g}", fontsize=9, color=INK)
        for axes in panels[:, column]:
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set(visible=True, color="#d0d7de", linewidth=0.8)
    panels[0, 0].set_ylabel(r"$x_\sigma$ (± 3$\sigma$)", color=INK)
    panels[1, 0].set_ylabel("$D$", color=INK)
    figure.subplots_adjust(
        left=0.35 / width, right=1 - 0.1 / width, bottom=0.05, top=1 - 0.65 / height, wspace=0.06, hspace=0.06
    )
    return figure


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=DPI, facecolor="white")


def _headline(figure: Figure, title: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.12 / width, 1 - 0.12 / height, title, ha="left", va="top", color=INK, fontsize=11)


def _save(figure: Figure, path: str | Path, prompts: Sequence[str] = ()) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Description": "\n".join(prompts)} if prompts else None)


def _mosaic(images: Tensor, columns: int, gap: int) -> Tensor:
    """Images uint8 (N, C, H, W) on a white canvas (H', W', 3), `gap` pixels apart; grey ones become RGB."""
    _, _, height, width = images.shape
    rows = math.ceil(len(images) / columns)
    canvas = torch.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=torch.uint8)
    for index, image in enumerate(images.cpu()):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return canvas


def _picture(image: Tensor) -> np.ndarray:
    """A model-space image (C, H, W) as an RGB array (H, W, 3) in [0, 1]."""
    return ((image.detach().cpu().float() + 1) / 2).clamp(0, 1).nan_to_num().expand(3, -1, -1).permute(1, 2, 0).numpy()


def _limits(points: Tensor) -> list[tuple[float, float]]:
    """Square window of the first two coordinates with a margin: [(low, high), (low, high)]."""
    points = points[:, :2].detach().cpu().float().nan_to_num()
    low, high = points.amin(0), points.amax(0)
    centre, half = (low + high) / 2, 0.58 * (high - low).max().clamp(min=1e-3)
    return [((c - half).item(), (c + half).item()) for c in centre]


def _dots(axes: Axes, points: Tensor, limits: Sequence[tuple[float, float]], colour: str, size: float = 4.0) -> None:
    points = points.detach().cpu().float()
    axes.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.5, linewidths=0)
    axes.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    _bare(axes)


def _bare(axes: Axes, keep_right: bool = False) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(keep_right)
    if not keep_right:
        axes.grid(color="#eaeef2", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=FAINT, labelcolor=INK)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric."""
    pairs = [(float(r["step"]), float(r[name])) for r in rows if r.get(name) not in (None, "")]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of a twentieth of the curve, shorter at its ends."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _focus(axes: Axes, values: Sequence[float]) -> None:
    """Limit the axis to nearly all values: the few very large losses of the first steps may lie outside."""
    if values:
        ordered = sorted(values)
        low, high = ordered[0], ordered[math.ceil(0.98 * (len(ordered) - 1))]
        margin = 0.12 * max(high - low, 1e-3 * abs(high), 1e-9)
        axes.set_ylim(low - margin, high + 2 * margin)
