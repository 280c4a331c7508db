"""recall@k of images and captions whose ranks are known."""

import torch

from flowdiff.evaluation.retrieval import ranks_of


def test_ranks_count_what_is_nearer_than_the_own_one():
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.5, 0.6], [0.7, 0.2, 0.7]])
    of_rows, of_columns = ranks_of(similarity)
    assert of_rows.tolist() == [0, 2, 0]  # equal ones, such as the same caption twice, are not nearer
    assert of_columns.tolist() == [0, 0, 0]
    assert ranks_of(similarity.T)[1].tolist() == [0, 2, 0]
