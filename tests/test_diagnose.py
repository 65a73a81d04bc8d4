"""Log-probabilities of restorations against closed forms, their flags, and ``anem diagnose``."""

import json
import math
from pathlib import Path

import pytest
import torch

from anem.cli import main
from anem.covariance import Covariance
from anem.gaussian import make_power_law_gaussian
from anem.images import save_image
from anem.likelihood import compare, score
from anem.operators import make_operator

SIZE = 8
PRIOR = make_power_law_gaussian(1, SIZE, SIZE)
SHAPE = (1, 1, SIZE, SIZE)


@pytest.mark.parametrize("task", ["denoise", "inpaint-half", "deblur", "sr2"])
def test_the_posterior_log_probability_is_the_exact_one(task, generator):
    """log N(x; mean, Cov) of the Gaussian posterior, at a noise that changes the prior by less than the tolerance."""
    operator, sigma = make_operator(task, SHAPE), 0.2
    x = PRIOR.sample(3, generator)
    m = operator.measure(x, sigma, generator)
    scores = score(PRIOR, x, m, operator, sigma, prior_sigma=1e-4, draws=200)
    basis = torch.eye(x[0].numel(), dtype=torch.float64).reshape(-1, *x.shape[1:])
    h = operator(basis).flatten(1).T
    prior = Covariance(PRIOR.variance.expand(SHAPE), "fourier")
    c = prior.apply(basis).flatten(1)
    mean = PRIOR.statistics.mean_image(x).expand(SHAPE).flatten()
    kept = operator.measured(SHAPE, x).expand(SHAPE).flatten() if task == "inpaint-half" else torch.ones(len(h), dtype=torch.bool)
    h, seen = h[kept], m.flatten(1)[:, kept]
    gain = c @ h.T @ torch.linalg.inv(h @ c @ h.T + sigma**2 * torch.eye(len(h), dtype=torch.float64))
    centre, spread = mean + (seen - mean @ h.T) @ gain.T, c - gain @ h @ c
    exact = torch.distributions.MultivariateNormal(centre, spread).log_prob(x.flatten(1))
    torch.testing.assert_close(scores.posterior, exact, rtol=0, atol=1.5)
    residual = (seen - x.flatten(1) @ h.T).square().sum(1) / sigma**2
    torch.testing.assert_close(scores.misfit, residual / len(h))


def test_restorations_meet_the_same_noise_in_every_set(generator):
    x = PRIOR.sample(4, generator)
    m, operator = x + 0.1, make_operator("denoise", SHAPE)
    together = score(PRIOR, x, m, operator, 0.1, seed=3)
    alone = score(PRIOR, x[2:3], m[2:3], operator, 0.1, seed=5)
    torch.testing.assert_close(together.prior[2:3], alone.prior, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.posterior[2:3], alone.posterior, rtol=1e-12, atol=0)


def test_smooth_restorations_are_too_probable_noisy_ones_too_improbable_samples_neither(generator):
    """On an exact Gaussian with half the image hidden: the posterior mean, the truth with pixel noise, and posterior samples."""
    operator, sigma = make_operator("inpaint-half", SHAPE), 0.1
    x = PRIOR.sample(40, generator)
    m = operator.measure(x, sigma, generator)
    seen = operator.observe(m, sigma, PRIOR.statistics, generator)
    posterior = PRIOR.posterior(seen.y, seen.cov)
    sets = {
        "mean": posterior.mean,
        "sample": posterior.sample(1, generator)[0],
        "noise": x + 0.1 * torch.randn(x.shape, generator=generator),
    }
    truth = score(PRIOR, x, m, operator, sigma).prior
    flags = {name: compare(score(PRIOR, v, m, operator, sigma).prior, truth[None], SIZE**2).flag for name, v in sets.items()}
    assert flags == {"mean": "over-smoothed", "sample": "", "noise": "off-distribution"}
    ours = torch.stack([score(PRIOR, s, m, operator, sigma).prior for s in posterior.sample(4, generator)])
    assert compare(score(PRIOR, sets["mean"], m, operator, sigma).prior, ours, SIZE**2).flag == "over-smoothed"


def test_a_flag_needs_both_a_large_and_a_certain_difference():
    reference = torch.linspace(-10, 10, 21, dtype=torch.float64)[None]
    spread = float(reference.std())
    assert compare(reference[0] + 1.1 * spread, reference, 1).flag == "over-smoothed"
    assert compare(reference[0] + 0.9 * spread, reference, 1).flag == ""
    assert compare(reference[0] - 1.1 * spread, reference, 1).flag == "off-distribution"
    scattered = 60.0 * torch.tensor([1.0, -1.0, 3.0] * 7, dtype=torch.float64)
    found = compare(reference[0] + scattered, reference, 1)
    assert found.difference > found.spread and found.flag == ("over-smoothed" if found.difference > 3 * found.standard_error else "")
    assert compare(torch.tensor([5.0]), torch.tensor([[0.0]]), 1).flag == ""
    assert compare(torch.tensor([5.0]), torch.tensor([[0.0], [1.0], [-1.0]]), 1).flag == "over-smoothed"
    halved = compare(reference[0] + 4.0, reference, 2)
    assert halved.difference == pytest.approx(2.0) and halved.spread == pytest.approx(spread / 2)


def test_unusable_arguments_are_refused(generator):
    x, operator = PRIOR.sample(2, generator), make_operator("denoise", SHAPE)
    with pytest.raises(ValueError, match="prior_sigma"):
        score(PRIOR, x, x, operator, 0.1, prior_sigma=0.0)
    with pytest.raises(ValueError, match="images"):
        score(PRIOR, x[..., :4], x, operator, 0.1)
    with pytest.raises(ValueError, match="finite"):
        score(PRIOR, x * math.nan, x, operator, 0.1)
    with pytest.raises(ValueError, match="reference"):
        compare(torch.zeros(2), torch.zeros(1, 3), 1)


# --- the command ---


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in beside: clean pictures, noisy copies, grey ones; an exact Gaussian for every model."""
    monkeypatch.setattr("anem.hub.load", lambda name, device="cpu": PRIOR)
    x = PRIOR.sample(6, torch.Generator().manual_seed(0)).clamp(0, 1)
    sets = {"clean": x, "noisy": x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), "grey": 0 * x + 0.5}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            save_image(image.float(), tmp_path / name / f"{i}.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def said(capsys, *arguments) -> dict:
    assert main(["diagnose", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_scores_every_set_beside_the_truth(folders, capsys):
    record = said(capsys, folders / "noisy", folders / "grey", folders / "clean", "--truth", folders / "clean", "--task", "inpaint-box")
    assert [s["name"] for s in record["sets"]] == ["truth", "noisy", "grey", "clean"]
    assert [s["flag"] for s in record["sets"]] == ["", "off-distribution", "over-smoothed", ""]
    assert record["sets"][3]["prior"] == record["sets"][0]["prior"]
    assert record["sets"][2]["misfit"][0] > 2 * record["sets"][0]["misfit"][0]
    assert {f.name for f in Path("diagnosis").iterdir()} == {"histograms.png", "result.json"}
    assert record["reference"] == "truth" and all(len(s["posterior"]) == 6 for s in record["sets"])


def test_without_a_truth_the_models_own_samples_are_the_reference(folders, capsys):
    task = ("--measurement", folders / "noisy" / "0.png", "--task", "denoise", "--sigma", 0.2, "--steps", 10)
    record = said(capsys, folders / "grey", folders / "noisy", *task)
    assert [s["name"] for s in record["sets"]] == ["posterior samples", "grey", "noisy"]
    assert [s["flag"] for s in record["sets"]][1:] == ["over-smoothed", "off-distribution"]


def test_a_result_of_restore_is_a_set_of_samples_and_one_of_means(folders, capsys):
    given = ("--task", "inpaint-box", "--seed", "3")
    assert main(["restore", str(folders / "clean"), *given, "--steps", "5", "--samples", "2", "--out", "mine"]) == 0
    capsys.readouterr()
    record = said(capsys, "mine", "--truth", folders / "clean", *given)
    assert [s["name"] for s in record["sets"]] == ["truth", "mine: sample", "mine: mean"]
    assert record["sets"][2]["prior_per_dim"] > record["sets"][1]["prior_per_dim"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "set"),
        (["../clean", "--truth", "../clean"], "--task"),
        (["../clean", "--task", "denoise", "--measured", "--truth", "../clean"], "--measurement"),
        (["../clean", "--mask", "../clean/0.png", "--sigma", "0.1", "--truth", "../clean"], "--measurement"),
        (["../clean", "--measurement", "../clean", "--task", "denoise"], "--sigma"),
        (["../missing", "--task", "denoise", "--truth", "../clean"], "missing"),
        (["../clean", "../clean/0.png", "--task", "denoise", "--truth", "../clean"], "sets"),
        (["../clean", "--task", "denoise", "--truth", "../clean", "--prior-sigma", "0"], "prior_sigma"),
        (["../clean", "--task", "denoise", "--truth", "../clean", "--samples", "1"], "--samples"),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(arguments, named, folders, capsys):
    assert main(["diagnose", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0]
    assert not any(Path().iterdir())
