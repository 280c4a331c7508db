"""A run of network=clip: trained, measured by retrieval, and read by other runs."""

import pytest
import torch
from runs import TINY_CAPTIONED, settings, train

import flowdiff
from flowdiff.errors import ConfigurationError
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import assemble_run
from flowdiff.training.engine import Engine

CLIP = [
    *(*TINY_CAPTIONED, "network=clip", "loss=contrastive", "conditioner=word_ids"),
    *("network.patch=8", "network.width=16", "network.layers=1", "network.heads=2", "network.dim=8"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "clip"
    train(folder, *CLIP)
    return folder


def test_a_run_reports_retrieval_both_ways_and_draws_no_samples(run):
    metrics = RunFolder(run).result()["metrics"]
    recalls = {f"recall_{k}_{way}" for k in (1, 5) for way in ("image_to_text", "text_to_image")}
    assert set(metrics) == {"test_loss", "test_loss_se", "num_candidates", *recalls}
    assert metrics["num_candidates"] == 16
    assert all(metrics[key.replace("_1_", "_5_")] >= metrics[key] for key in recalls)
    assert not (run / "samples.png").exists()
    with pytest.raises(ConfigurationError, match="does not denoise and cannot be sampled: take another run"):
        flowdiff.sample(flowdiff.load(run), 2)


def test_another_run_reads_its_text_encoder_and_measures_by_it(run, tmp_path):
    flow = ["flow=realnvp", "flow.n_flows=1", "flow.hidden=8", f"conditioner.cache_dir={tmp_path}"]
    score = f"+metrics.compare.clip_score={{num_samples:100,model:{run}}}"
    given = [*TINY_CAPTIONED, "conditioner=clip", f"conditioner.model={run}", "metrics.frechet=true", score, *flow]
    assemble_run(settings(*given))
    engine = Engine.of(settings(*given))
    engine.measure()
    clip = flowdiff.load(run)
    captions = list(engine.conditioner.examples()[:4])
    with torch.no_grad():
        pooled = engine.conditioner.condition(captions).vector
        embedded = clip.network.embed_texts(clip.cond_of(captions))
    torch.testing.assert_close(pooled / pooled.norm(dim=1, keepdim=True), embedded, rtol=1e-2, atol=1e-3)  # float16


def test_samples_are_refused_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="draws samples, and network=clip cannot be sampled"):
        assemble_run(settings(*CLIP, "metrics.frechet=true"))
