"""The streams of indices, the splits, and the contract of every registered data set."""

import itertools

import pytest
import torch
from given_data import GivenData
from lightning.pytorch import LightningModule, Trainer
from prepared_data import prepared

from flowdiff import registry
from flowdiff.data.base import Batch, EndlessBatches, OrderedBatches, TensorSplit, held_out
from flowdiff.errors import ConfigurationError, DataError


def take(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 10), (7, 25), (12, 3), (1, 1)])
def test_stream_has_no_end_and_is_one_permutation_after_another(n, size):
    epochs = 6
    batches = take(EndlessBatches(n, size, seed=3), -(-n * epochs // size))
    assert all(len(batch) == size for batch in batches)
    stream = torch.cat(batches)[: n * epochs].reshape(epochs, n)
    assert torch.equal(stream.sort(1).values, torch.arange(n).expand(epochs, n))
    with pytest.raises(TypeError):
        len(EndlessBatches(n, size, 0))
    orders = [tuple(EndlessBatches(50, 5, seed).epoch_order(e).tolist()) for seed in range(3) for e in range(3)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("world_size", [1, 3])
def test_any_step_can_be_started_from(world_size):
    for rank in range(world_size):
        whole = EndlessBatches(10, 4, 0, rank, world_size)
        resumed = EndlessBatches(10, 4, 0, rank, world_size, start_step=7)
        expected = take(whole, 20)
        assert all(torch.equal(a, b) for a, b in zip(expected[7:], take(resumed, 13), strict=True))
        assert all(torch.equal(batch, whole.batch(k)) for k, batch in enumerate(expected))


@pytest.mark.parametrize(("n", "size"), [(10, 3), (5, 8)])
def test_ranks_share_the_global_batch(n, size):
    ranks = [take(EndlessBatches(n, size, 1, rank, 4), 9) for rank in range(4)]
    alone = take(EndlessBatches(n, 4 * size, 1), 9)
    assert all(torch.equal(torch.cat(parts), batch) for *parts, batch in zip(*ranks, alone, strict=True))


@pytest.mark.parametrize(("n", "size", "world_size"), [(10, 4, 1), (12, 4, 1), (11, 2, 3), (3, 8, 2), (1, 1, 2)])
def test_ordered_batches_cover_every_sample_once(n, size, world_size):
    ranks = [OrderedBatches(n, size, rank, world_size) for rank in range(world_size)]
    for ordered in ranks:
        batches = list(ordered)
        assert len(batches) == len(ordered)
        assert all(len(batch) == size for batch in batches[:-1])
    everything = torch.cat([torch.cat([*ordered, torch.zeros(0, dtype=torch.int64)]) for ordered in ranks])
    assert torch.equal(everything, torch.arange(n))


def test_held_out_splits_without_overlap_and_repeats():
    train, test = held_out(100, 30)
    assert (len(train), len(test)) == (70, 30)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(100))
    assert torch.equal(test, held_out(100, 30)[1])
    assert not torch.equal(test, torch.arange(30))


def test_split_takes_tensors_lists_slices_and_integers():
    x = torch.arange(12, dtype=torch.uint8).reshape(6, 2)
    split = TensorSplit(x, torch.arange(6))
    for indices in (torch.tensor([4, 1, 1]), [4, 1, 1]):
        batch = split[indices]
        assert isinstance(batch, Batch)
        assert torch.equal(batch.x, x[[4, 1, 1]])
        assert batch.label.tolist() == [4, 1, 1]
    assert torch.equal(split[1:3].x, x[1:3])
    assert torch.equal(split[:].x, x)
    assert split[3].x.shape == (1, 2)
    assert len(split[[]].label) == 0
    unlabelled = TensorSplit(torch.ones(3, 2))[:]
    assert unlabelled.label.dtype == torch.int64
    assert unlabelled.label.tolist() == [0, 0, 0]
    for outside in ([6], [-1]):
        with pytest.raises(IndexError, match="outside"):
            split[outside]


def given(train, test):
    return GivenData("given", train, test, 256, 3)


def images(n, label=0, side=2):
    return TensorSplit(torch.zeros(n, 1, side, side, dtype=torch.uint8), torch.full((n,), label))


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (images(0), images(2), "no training samples"),
        (images(2), images(0), "no test samples"),
        (images(2), images(2, side=3), r"test samples .* shape \(1, 3, 3\) where \(1, 2, 2\)"),
        (images(2, label=3), images(2), r"training labels .* 3…3 where 0…2"),
        (images(2), images(2, label=-1), r"test labels .* -1…-1 where 0…2"),
    ],
)
def test_setup_refuses_splits_that_do_not_fit(train, test, sentence):
    with pytest.raises(DataError, match=sentence):
        given(train, test).setup()


def test_setup_loads_once_and_loaders_do_not_advance_the_global_generator(monkeypatch):
    data = given(images(9), images(5))
    data.setup()
    monkeypatch.setattr(data, "load", lambda: pytest.fail("loaded again"))
    data.setup()
    before = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    assert [len(batch.x) for batch in data.test_dataloader()] == [4, 1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", registry.names("dataset"))
def test_the_attributes_are_known_before_setup(name):
    data = registry.create("dataset", name)
    assert data.name == name
    assert len(data.shape) in (1, 3)
    assert data.num_classes is None or data.num_classes > 1
    assert (data.levels is None) == (len(data.shape) == 1)
    assert data.batch_size > 0
    assert (data.seed, data.start_step) == (0, 0)
    raw = torch.zeros(2, *data.shape, dtype=torch.float32 if data.levels is None else torch.uint8)
    assert data.to_model(raw).shape == raw.shape


@pytest.mark.parametrize("name", registry.names("dataset"))
@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("batch_size", -4), ("num_workers", -1)])
def test_numbers_out_of_range_are_refused(name, key, value):
    with pytest.raises(ConfigurationError, match=rf"dataset\.{key}={value}"):
        registry.create("dataset", name, **{key: value})


class Recorder(LightningModule):
    """Records the samples of its batches."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen, self.validated = [], 0

    def training_step(self, batch, index):
        self.seen.append(batch.x.clone())
        return self.layer(batch.x).square().mean()

    def validation_step(self, batch, index):
        self.validated += len(batch.x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # inside lightning, under newer torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")  # the data lie in memory
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_trainer_gets_the_same_batches(num_workers):
    def train(start_step, steps):
        data = prepared("two_moons", num_train=100, num_test=30, batch_size=16, num_workers=num_workers)
        data.seed, data.start_step = 5, start_step
        off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
        settings = {"max_steps": steps, "val_check_interval": 4, "check_val_every_n_epoch": None, "logger": False}
        trainer = Trainer(accelerator="cpu", num_sanity_val_steps=0, **settings, **dict.fromkeys(off, False))
        recorder = Recorder()
        trainer.fit(recorder, data.train_dataloader(), data.test_dataloader())
        return recorder

    whole, rest = train(0, 12), train(8, 4)
    assert len(whole.seen) == 12  # more than the epoch of 100 samples has batches
    assert torch.equal(torch.stack(whole.seen[8:]), torch.stack(rest.seen))
    assert whole.validated == 3 * 30
