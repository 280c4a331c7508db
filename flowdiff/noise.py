"""Random numbers that belong to samples: sample i of seed s is the same for every batch size and on every worker.

A `BrownianPath` is also independent of the steps: W(t) is the same however the time axis is divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def generators(seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per sample index i, seeded by (seed, i) alone."""
    return [torch.Generator(device).manual_seed(_mix(seed, index)) for index in indices]


def step_generator(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one training step, seeded by (seed, step, rank, …): a resumed run draws the same numbers."""
    for counter in counters:
        seed = _mix(seed, counter)
    return torch.Generator(device).manual_seed(seed)


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal numbers of `shape` (B, …); with a sequence of B generators, each sample is drawn by its own."""
    shape = tuple(shape)
    if generator is None or isinstance(generator, torch.Generator):
        source = generator.device if generator is not None else device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators were given for a batch of {shape[0]}: give one per sample.")
    drawn = torch.empty(shape, device=generator[0].device if generator else device, dtype=dtype)
    for row, own in zip(drawn.unbind(), generator, strict=True):
        row.normal_(generator=own)  # the numbers of torch.randn, without a copy of them
    return drawn.to(device)


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of x (B, …)."""
    return randn(x.shape, generator, device=x.device, dtype=x.dtype)


class BrownianPath:
    """Brownian motions W(t), t > 0, one for every number of a batch: Var[W(t') − W(t)] = |t' − t|.

    At the first increment a path draws one integer per sample, its key. From then on W is a function of the key and t:
    increments add up exactly, and a sampler with other steps sees the same noise.

    Each octave [2^e, 2^(e+1)] is a virtual Brownian tree: the midpoint of an interval of length l between known ends is
    their mean + √(l/4)·z, where z is a hash of (key, e, node of the tree), so that nothing is stored. An octave has
    2^16 intervals; t is rounded to their ends, which changes it by a factor of at most 1 ± 8e-6.

    Args:
        like: (B, …), a tensor with the shape, dtype and device of the increments.
        generator: as in `randn`.

    Source: Li, Wong, Chen, Duvenaud, Scalable gradients for stochastic differential equations, 2020.
    """

    DEPTH = 16

    def __init__(self, like: Tensor, generator: Generators = None):
        self._like = like
        self._generator = generator
        self._latest: tuple[tuple[int, int], Tensor] | None = None

    def increment(self, start: float, end: float) -> Tensor:
        """W(end) − W(start) for 0 < start ≤ end: (B, …)."""
        (first, u), (last, v) = self._place(start), self._place(end)
        found = self._within(last, v) - self._within(first, u)
        for octave in range(first, last):
            found = found + self._total(octave)
        return found.reshape(self._like.shape).to(self._like.dtype)

    def _place(self, t: float) -> tuple[int, int]:
        """t = 2^e·(1 + u/2^DEPTH), rounded: (e, u)."""
        mantissa, exponent = math.frexp(t)
        carry, u = divmod(round((2 * mantissa - 1) * 2**self.DEPTH), 2**self.DEPTH)
        return exponent - 1 + carry, u

    def _total(self, octave: int) -> Tensor:
        """W(2^(e+1)) − W(2^e): (B, numbers per sample), float64."""
        return 2.0 ** (octave / 2) * self._normal(octave, [0])[0]

    def _within(self, octave: int, u: int) -> Tensor:
        """W(2^e·(1 + u/2^DEPTH)) − W(2^e), like `_total`."""
        if self._latest is None or self._latest[0] != (octave, u):  # the next step asks for the same point again
            nodes, weights = _descent(u, self.DEPTH)
            z = self._normal(octave, nodes)
            found = 2.0 ** (octave / 2) * torch.tensordot(z.new_tensor(weights), z, 1)
            self._latest = (octave, u), found
        return self._latest[1]

    @cached_property
    def _keys(self) -> Tensor:
        """One integer per sample: (B, 1) int64."""
        n, given = len(self._like), self._generator
        sources = given if isinstance(given, Sequence) else [given]
        each = 1 if isinstance(given, Sequence) else n
        drawn = [torch.randint(2**62, (each,), generator=g, device=None if g is None else g.device) for g in sources]
        return torch.cat(drawn)[:, None].to(self._like.device)

    @cached_property
    def _counters(self) -> Tensor:
        """The offset in the hash of every number of a sample: (1, numbers per sample)."""
        count = self._like[:1].numel()
        return torch.arange(1, count + 1, device=self._like.device)[None] * _signed(0x9E3779B97F4A7C15)

    def _normal(self, octave: int, nodes: Sequence[int]) -> Tensor:
        """Standard normal numbers of K nodes by the Box–Muller method: (K, B, numbers per sample) float64."""
        places = torch.tensor([_mix(octave, node) for node in nodes], device=self._like.device)[:, None, None]
        bits = _mixed(_mixed(self._keys + places) + self._counters)
        # in float32, whose logarithm is ten times faster: z has a relative accuracy of 1e-7, and |z| ≤ 6.7
        radius = (bits >> 32 & 0xFFFFFFFF).float().add_(0.5).div_(2**32).log_().mul_(-2).sqrt_()
        return radius.mul_((bits & 0xFFFFFFFF).float().mul_(2 * math.pi / 2**32).cos_()).double()


def _descent(u: int, depth: int) -> tuple[list[int], list[float]]:
    """The nodes of a Brownian tree on [0, 1] that determine W(u/2^depth), and the weights of their z in it.

    Node 0 is the end, W(1) = z. Node 1 is the midpoint of [0, 1]; nodes 2n and 2n + 1 are the midpoints of the halves
    of the interval whose midpoint is node n.
    """
    low, high, node = 0, 2**depth, 1
    nodes, at_low, at_high = [0], [0.0], [1.0]
    while low < u:  # and u < high
        middle = (low + high) // 2
        at_middle = [(a + b) / 2 for a, b in zip(at_low, at_high, strict=True)]
        at_middle.append(math.sqrt((high - low) / 2 ** (depth + 2)))
        nodes.append(node)
        if u < middle:
            high, at_low, at_high, node = middle, [*at_low, 0.0], at_middle, 2 * node
        else:
            low, at_low, at_high, node = middle, at_middle, [*at_high, 0.0], 2 * node + 1
    return nodes, at_low


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of `_mix` on int64, whose products wrap around; >> copies the sign bit, which the mask removes."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return z ^ (z >> 31 & (1 << 33) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - 2**64 if word >= 2**63 else word


def _mix(seed: int, counter: int) -> int:
    """Hash two integers to a well-distributed 63-bit seed (the splitmix64 finaliser, Steele et al., 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + counter * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
