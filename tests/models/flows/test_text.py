"""The laws of flows with the conditions of every conditioner of captions."""

import pytest
import torch
from flow_cases import make_flow, takes
from text_models import conditioner_settings

from flowdiff import config, registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.testing import flows as laws
from flowdiff.testing.conditioners import inputs_of
from flowdiff.testing.inputs import samples

EMBED_DIM, SHAPE = 8, (1, 4, 4)
CAPTIONS = ["a red three", "blue", "a green two left of a golden nine"]
OF_TEXT = [name for name in registry.names("conditioner") if registry.resolve("conditioner", name).reads_text]
OF_TEXT.remove("word_ids")  # its tokens are the numbers of words, which network=clip alone reads
ATTENDING = [name for name in registry.names("flow") if "inject" in config.defaults("flow", name)]
CASES = [(name, {"inject": "cross_attention"}) for name in ATTENDING]
CASES = [case for case in CASES if takes(case, SHAPE)]


@pytest.fixture(scope="module", params=OF_TEXT)
def conditioner(request, tmp_path_factory):
    torch.manual_seed(0)
    given = conditioner_settings(request.param, tmp_path_factory.mktemp("models"))
    made = registry.create("conditioner", num_classes=3, **given)
    made.fit(CAPTIONS)
    return made.double().eval()


@pytest.fixture(scope="module")
def condition(conditioner):
    """Conditions as a flow gets them, of the captions and of the null condition."""
    torch.manual_seed(1)
    embedding = ConditionEmbedding(EMBED_DIM, conditioner.dim, conditioner.token_dim).double()

    @torch.no_grad()
    def of(n):
        given = Conditioning.cat([conditioner.condition(inputs_of(conditioner, 3)), conditioner.null(1)])[
            torch.arange(n) % 4
        ]
        return embedding(torch.linspace(-1, 1, n).double(), given)

    return of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_flows_keep_their_laws(case, condition, conditioner):
    flow = make_flow(case, SHAPE, EMBED_DIM, far=True, token_dim=conditioner.token_dim)
    x = samples(4, SHAPE)
    laws.log_det_is_exact(flow, x, condition(4))
    laws.round_trip(flow, x, condition(4))
    laws.score_is_gradient(flow, x[:2], condition(2))
    laws.samples_of_a_batch_are_independent(flow, x, condition(4))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_padding_and_the_order_of_a_batch_change_no_density(case, condition, conditioner):
    flow = make_flow(case, SHAPE, EMBED_DIM, far=True, token_dim=conditioner.token_dim)
    x, cond = samples(4, SHAPE), condition(4)
    density = laws.log_density(flow, x, cond)
    assert cond.mask is not None
    assert not cond.mask.all()  # some captions are padded
    for i in range(4):
        n = int(cond.mask[i].sum())
        alone = Conditioning(cond.vector[i : i + 1], cond.tokens[i : i + 1, :n])
        torch.testing.assert_close(laws.log_density(flow, x[i : i + 1], alone), density[i : i + 1])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(laws.log_density(flow, x[order], cond[order]), density[order])
