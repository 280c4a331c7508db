"""The result table: a row for every metric that was measured, and no other."""

from pathlib import Path

from flowdiff.runs.result_table import rows_of, show
from flowdiff.runs.undefined import Undefined

NUMBERS = {
    **{"test_loss": 0.424, "test_loss_se": 0.005, "fd_digits_cnn": 3.736, "fd_digits_cnn_floor": 2.017},
    **{"num_samples": 1500, "num_test": 297, "extractor_accuracy": 0.997, "samples_per_second": 1833.4},
    **{"bpd": 2.487, "bpd_se": 0.018, "class_accuracy": 0.966, "class_accuracy_se": 0.01, "class_ece": 0.03},
    **{"num_classified": 297, "auroc_permuted": 1.0, "auroc_mnist": 0.978},
    **{"interpolation_bpd": 2.49, "interpolation_bpd_se": 0.025, "interpolation_straight": 2.25},
}


def test_every_metric_has_its_row():
    rows = {metric: (value, about) for metric, value, about in rows_of(NUMBERS)}
    assert list(rows) == [
        *("denoising test loss", "fd_digits_cnn", "fd_digits_cnn floor", "bits/dim"),
        *("class accuracy", "calibration error", "AUROC permuted", "AUROC mnist", "interpolation, bits/dim"),
        "sampling speed",
    ]
    about = "on paths between test samples through z; 2.2500 on straight lines in x"
    assert rows["interpolation, bits/dim"] == ("2.4900 ± 0.0250", about)
    assert rows["class accuracy"] == ("0.9660 ± 0.0100", "exact posterior p(c | x), 297 test samples")
    assert rows["AUROC mnist"] == ("0.9780", "test split against mnist, ranked by density")
    assert rows["sampling speed"][0] == "1,833 /s"


def test_the_choice_of_a_caption_says_among_how_many():
    found = rows_of(
        {"bpd": 5.0, "caption_accuracy": 0.9, "caption_ece": 0.1, "num_classified": 200, "num_captions": 100}
    )
    about = "exact posterior p(c | x), 200 test samples, among the captions of 100"
    assert found[1] == ("caption accuracy", "0.9000", about)
    assert found[2][0] == "calibration error"


def test_sample_metrics_have_their_floors_beside_them():
    numbers = {
        **{"fid": 12.345, "fid_sd": 0.21, "fid_floor": 3.1, "kid": 0.0123, "kid_sd": 0.001, "kid_floor": 0.0002},
        **{"precision": 0.75, "precision_floor": 0.73, "precision_n": 5_000, "is_digits_cnn": 9.1},
        **{"is_digits_cnn_floor": 9.5, "num_samples": 50_000, "num_test": 10_000},
        **{"bpd": 3.1, "bpd_se": 0.01, "bpd_ode": 3.2, "bpd_ode_se": 0.02},
        **{"bpd_sigma_0.1": 2.5, "bpd_sigma_0.1_se": 0.01},
    }
    training = "samples compared with the training split"
    inception = "Inception score: higher for confident and diverse class predictions"
    real = "share of samples in the neighbourhood of a real sample"
    ode = "probability-flow ODE; trace by Hutchinson's estimator, or exact if configured"
    assert rows_of(numbers) == [
        ("fid", "12.35 ± 0.21", f"50,000 {training}"),
        ("fid floor", "3.1", "the same distance of 10,000 real test samples"),
        ("kid", "0.0123 ± 0.001", f"{training} (n = 50,000); floor 0.0002 (n = 10,000)"),
        ("precision", "0.75", f"{real} (n = 5,000); floor 0.73 (n = 5,000)"),
        ("is digits cnn", "9.1", f"{inception} (n = 50,000); floor 9.5 (n = 10,000)"),
        ("bits/dim", "3.1000 ± 0.0100", "exact density, uniform dequantisation"),
        ("bits/dim, ODE", "3.2000 ± 0.0200", ode),
        ("bits/dim at σ = 0.1", "2.5000 ± 0.0100", "exact density at this noise level"),
    ]


HEALTH = {
    **{"denoising_worst": 0.1561, "denoising_worst_sigma": 80.0, "denoising_worst_ratio": 1.02},
    **{"class_means_error": 0.153, "levels_visited": 14, "levels_worse_than_means": 0},
    **{"min_eigenvalue": -1.3287, "min_eigenvalue_sigma": 0.296, "fokker_planck": 0.2746},
}


def test_the_health_of_a_score_has_a_line_for_each_measure():
    about = "of ∂D/∂x on the sampler's trajectories; of any distribution's denoiser 0 or more"
    meaning = "mean over σ, 0 if the densities are those of one diffusion, about 1 if they are unrelated"
    assert rows_of(HEALTH) == [
        ("denoising error, worst σ", "0.156 at σ = 80", "1.02 × that of class means (0.153); see denoising.png"),
        ("smallest eigenvalue", "-1.33 at σ = 0.296", about),
        ("Fokker–Planck residual", "0.275", meaning),
    ]


def test_a_denoiser_worse_than_the_means_at_a_visited_level_is_said_in_a_sentence():
    worse = {"denoising_worst": 346.0, "denoising_worst_ratio": 2261.4, "levels_worse_than_means": 5}
    mean = {key: value for key, value in HEALTH.items() if key != "class_means_error"} | {"data_mean_error": 0.26}
    first, second, *_ = rows_of({**mean, **worse})
    assert first[1:] == ("346 at σ = 80", "2,261 × that of the data's mean (0.26); see denoising.png")
    assert second == (
        "denoising, worse levels",
        "5 of 14",
        "D is worse than the data's mean by more than 10 % at noise levels that the sampler visits, so its samples "
        "start from errors that the test loss hardly shows.",
    )


def test_health_without_a_number_has_its_reason():
    reason = Undefined("D is not finite at σ = 80")
    once = Undefined("autograd can differentiate this network only once")
    numbers = {**HEALTH, "denoising_worst": reason, "denoising_worst_ratio": reason, "min_eigenvalue": once}
    del numbers["min_eigenvalue_sigma"]
    rows = rows_of(numbers)
    assert rows[0][1:] == ("– at σ = 80", "– that of class means (0.153); see denoising.png")
    assert rows[1][:2] == ("smallest eigenvalue", "–")
    assert rows[-2:] == [
        ("no number", "–", "denoising_worst, denoising_worst_ratio: D is not finite at σ = 80"),
        ("no number", "–", "min_eigenvalue: autograd can differentiate this network only once"),
    ]


def test_metrics_that_were_not_measured_have_no_row():
    assert rows_of({}) == []
    few = {"test_loss": 0.4, "class_accuracy": 0.9, "interpolation_nats_per_dim": 0.1}
    assert [row[0] for row in rows_of(few)] == ["denoising test loss", "class accuracy", "interpolation, nats/dim"]


def test_the_result_of_an_older_version_shows_the_rows_that_it_has(capsys):
    show({"metrics": {"test_loss": 0.4}, "parameters": 12_345}, Path("outputs/old"))
    printed = capsys.readouterr().out
    assert "old  (?)" in printed
    assert "12,345" in printed
    assert "training time" not in printed
