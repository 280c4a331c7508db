"""The laws of a conditioner."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from flowdiff.models.conditioners.base import Conditioner, Given, LabelledText
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing.compare import require, require_close


def check_conditioner(conditioner: Conditioner) -> None:
    """Hold a conditioner to every law of a conditioner.

    Conditions and null conditions have the widths that it declares; the null condition differs from every class; in
    training a fraction `drop` of the labels is replaced by it, chosen by the generator, and in eval mode none. The
    condition of a sample does not depend on the samples beside it. One without classes and captions returns None.

    Args:
        conditioner: the conditioner, which is not changed; one that reads captions has been fitted.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for law in LAWS:
        law(conditioner)


def conditions_have_the_declared_widths(conditioner: Conditioner) -> None:
    """vector (B, dim) and tokens (B, L, token_dim) with a mask (B, L) of bool, for labels and null conditions."""
    law = "conditions have the declared widths"
    for name, cond in (
        ("null(3)", conditioner.null(3)),
        ("condition", conditioner.condition(inputs_of(conditioner, 3))),
    ):
        if not conditioner.dim and not conditioner.token_dim:
            require(cond is None, law, f"{name} is not None, although dim and token_dim are 0")
            continue
        cond = _given(cond)
        vector = None if cond.vector is None else tuple(cond.vector.shape)
        right = (3, conditioner.dim) if conditioner.dim else None
        require(vector == right, law, f"the vector of {name} has the shape {vector} instead of {right}")
        tokens = None if cond.tokens is None else (len(cond.tokens), cond.tokens.shape[-1])
        right = (3, conditioner.token_dim) if conditioner.token_dim else None
        require(tokens == right, law, f"number and width of the tokens of {name} are {tokens} instead of {right}")
        if cond.tokens is not None and cond.mask is not None:
            detail = f"the mask of {name} is {cond.mask.dtype} {tuple(cond.mask.shape)}"
            require(cond.mask.dtype == torch.bool and cond.mask.shape == cond.tokens.shape[:2], law, detail)


def null_differs_from_every_class(conditioner: Conditioner) -> None:
    """No class has the null condition."""
    if conditioner.num_classes is None:
        return
    null = conditioner.null(1)
    for k in range(conditioner.num_classes):
        label = torch.tensor([k])
        same = _same(conditioner.condition(LabelledText(label, [None]) if conditioner.reads_text else label), null)
        require(not same, "the null condition differs from every class", f"it is the condition of class {k}")


def dropout_replaces_labels_by_the_null_condition(conditioner: Conditioner) -> None:
    """In training a fraction `drop` of the labels, chosen by the generator, has the null condition; in eval none."""
    if not reads(conditioner):
        return
    conditioner, labels = copy.deepcopy(conditioner), inputs_of(conditioner, 4000)
    rows = Conditioning.cat([_given(conditioner.condition(labels)), _given(conditioner.null(1))])  # equally long
    plain, null = rows[torch.arange(len(labels))].flat(), rows[torch.full((len(labels),), len(labels))].flat()
    conditioner.train()
    found = _given(conditioner(labels, torch.Generator().manual_seed(1)))
    again = _given(conditioner(labels, torch.Generator().manual_seed(1)))
    require_close(again.flat(), found.flat(), "the generator determines which labels are dropped")
    cond = Conditioning.cat([found, _given(conditioner.null(1))])[torch.arange(len(labels))].flat()
    is_null, is_plain = ((cond == other).all(1) for other in (null, plain))
    law = "a dropped label has the null condition"
    require((is_null | is_plain).all(), law, f"{int((~(is_null | is_plain)).sum())} conditions are neither of the two")
    share, drop = float(is_null.double().mean()), conditioner.drop
    allowed = 4 * (drop * (1 - drop) / len(labels)) ** 0.5  # 4 standard errors
    require(abs(share - drop) <= allowed, "a fraction `drop` of the labels is dropped", f"{share} instead of {drop} is")
    found = _given(conditioner.eval()(labels))
    require_close(found.flat(), _given(conditioner.condition(labels)).flat(), "no label is dropped in eval mode")


def a_label_dropped_for_sure_is_the_null_condition(conditioner: Conditioner) -> None:
    """With drop → 1 the condition is `null` itself."""
    if not reads(conditioner):
        return
    conditioner, labels = copy.deepcopy(conditioner).train(), inputs_of(conditioner, 4)
    conditioner.drop = 1 - 1e-9
    cond = conditioner(labels, torch.Generator().manual_seed(0))
    require(_same(cond, conditioner.null(4)), "a dropped label has the null condition", "they differ")
    kept = conditioner.eval()(labels)
    require(not _same(kept, cond), "no label is dropped in eval mode", "the condition is that of dropped labels")


def padding_changes_nothing(conditioner: Conditioner) -> None:
    """The condition of a sample is the same alone and beside others, which may have more tokens, in any order."""
    if not reads(conditioner):
        return
    conditioner, given = copy.deepcopy(conditioner).eval(), inputs_of(conditioner, 5)
    together = _given(conditioner(given))
    for i in range(5):
        alone = _given(conditioner(given[i : i + 1]))
        both = Conditioning.cat([alone, together])[torch.tensor([0, i + 1])].flat()
        require_close(both[0], both[1], "a condition does not depend on the samples beside it", atol=1e-5)  # rounding


def reads(conditioner: Conditioner) -> bool:
    """Whether a conditioner reads labels or captions at all."""
    return conditioner.num_classes is not None or conditioner.reads_text


def inputs_of(conditioner: Conditioner, n: int) -> Given:
    """n labels, or n captions of different lengths, or both."""
    labels = torch.arange(n) % (conditioner.num_classes or 1)
    if not conditioner.reads_text:
        return labels
    prompts = conditioner.examples()
    require(len(prompts) > 0, "a conditioner of captions is fitted before the laws", "it has no examples")
    texts = [prompts[i % len(prompts)] for i in range(n)]
    return texts if conditioner.num_classes is None else LabelledText(labels, texts)


def _given(cond: Conditioning | None) -> Conditioning:
    require(cond is not None, "a conditioner with dim or token_dim above 0 gives conditions", "it gives None")
    assert cond is not None
    return cond


def _same(one: Conditioning | None, other: Conditioning | None) -> bool:
    """Whether two conditions of equally many samples are the same, tokens that do not count aside."""
    both = Conditioning.cat([_given(one), _given(other)]).flat()
    return torch.equal(*both.chunk(2))


LAWS: tuple[Callable[[Conditioner], None], ...] = (
    conditions_have_the_declared_widths,
    null_differs_from_every_class,
    dropout_replaces_labels_by_the_null_condition,
    a_label_dropped_for_sure_is_the_null_condition,
    padding_changes_nothing,
)
