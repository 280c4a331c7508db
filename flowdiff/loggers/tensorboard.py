"""TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowdiff.loggers.base import StartedRun, Tracker
from flowdiff.registry import register

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, TensorBoardLogger


@register("logger", "tensorboard")
class TensorBoard(Tracker):
    """TensorBoard event files in `<run folder>/tensorboard`."""

    def __init__(self) -> None:
        self._logger: TensorBoardLogger | None = None

    def start(self, folder: Path, run: StartedRun) -> list[Logger]:
        from lightning.pytorch.loggers import TensorBoardLogger

        self._logger = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
        return [self._logger]

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        from matplotlib.image import imread

        if self._logger is not None:
            for key, path in paths.items():
                self._logger.experiment.add_image(key, imread(path)[..., :3], step, dataformats="HWC")

    def finish(self, exit_code: int = 0) -> None:
        if self._logger is not None:
            self._logger.experiment.close()
