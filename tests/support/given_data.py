"""A data set with given splits."""

from flowdiff.data.base import DataModule
from flowdiff.data.pixels import Pixels, Vectors


class GivenData(DataModule):
    """Images of `levels` grey levels (uint8), or continuous vectors if `levels` is None."""

    def __init__(self, name, train, test, levels, num_classes):
        values = Vectors() if levels is None else Pixels(levels, dequantize=True, flip=False)
        super().__init__(values, batch_size=4, num_workers=0)
        self.name, self.train, self.test, self.num_classes = name, train, test, num_classes
        self.shape = tuple(train.x.shape[1:])

    def load(self):
        return self.train, self.test
