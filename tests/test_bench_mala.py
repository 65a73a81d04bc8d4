"""The bench of MALA and ULA: its exact laws against closed forms, and all of it at a tiny size."""

import math

import pytest
import torch
from bench_digits import made_up_digits, run_quick

from anem.bench import harness, mala
from anem.bench.mala import OPERATORS, OracleCase, Size, corrected
from anem.gaussian import GaussianMixture, basis_matrix, make_skewed
from anem.sample import MALA, ULA


def gaussian(seed: int = 0) -> GaussianMixture:
    """One Gaussian of 4 × 4 pixels, diagonal in no basis."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(16, 16, generator=g, dtype=torch.float64) / 8
    mean = 0.5 + 0.1 * torch.randn(1, 1, 4, 4, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), mean, (factor @ factor.T)[None])


@pytest.mark.parametrize("name", OPERATORS)
def test_the_exact_law_is_the_conditional_gaussian(name, generator):
    """x_t and the observed y_k are jointly Gaussian: Cov(x_t) = C + Λ_t, Cov(x_t, y) = C + Λ_t, Cov(y) = C + Λ_T, in the basis."""
    prior = gaussian()
    case = OracleCase.draw(prior, mala._operator(prior, name), generator)
    seen, basis = case.observation, case.level.basis
    b = basis_matrix(basis, (1, 4, 4))[0]
    c, m = b @ prior.covariances[0] @ b.T, b @ prior.means[0].flatten()
    lam_t, lam_start, k = case.level.values.flatten(), seen.cov.values.flatten(), seen.observed.flatten()
    assert int(k.sum()) > 0
    cross = (c + torch.diag(lam_t))[:, k]
    gain = cross @ torch.linalg.inv((c + torch.diag(lam_start))[k][:, k])
    mean = b.T @ (m + gain @ (basis.forward(seen.y).flatten() - m)[k])
    covariance = b.T @ (c + torch.diag(lam_t) - gain @ cross.T) @ b
    n = 20_000
    x, got_mean, got_covariance = case.exact(n, generator)
    torch.testing.assert_close(got_mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(got_covariance, covariance, rtol=0, atol=1e-6)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (x.flatten(1) - mean).T, upper=False)
    assert float(whitened.mean(1).abs().max()) < 5 / n**0.5  # 5 standard errors: false-alarm rate 1e-5
    assert float((whitened @ whitened.T / n - torch.eye(16)).abs().max()) < 5 * (2 / n) ** 0.5


def test_ula_spreads_too_far_where_mala_does_not(generator):
    """Variance of the first coordinate over the exact one, 5 standard errors apart: ULA's excess is of the order of ε/2."""
    case = OracleCase.draw(make_skewed(1, 4, 4), mala._operator(make_skewed(1, 4, 4), "inpainting"), generator)
    start, mean, covariance = case.exact(3000, generator)
    factor = torch.linalg.cholesky(covariance)
    size = {}
    for name, corrector in (("ULA", ULA(60, 0.5)), ("MALA", MALA(60, 0.5, adaptation=0.0))):
        x, acceptance = corrected(case, start, corrector, generator)
        assert 0 < acceptance < 1
        size[name] = float(torch.linalg.solve_triangular(factor, (x.flatten(1) - mean).T, upper=False).square().mean())
    assert abs(size["MALA"] - 1) < 0.05 and size["ULA"] > 1.08


def test_every_figure_is_made_once_and_an_interrupted_run_continues(tmp_path, monkeypatch):
    made_up_digits(tmp_path, monkeypatch)
    cases = {"skewed": ("blur",)}
    tiny = Size(cases, chains=60, steps=3, permutations=99, levels=4, sweep=(0.1, 0.8), images=6, path=2, reference=12, draws=50, shown=2)
    monkeypatch.setattr(Size, "quick", lambda: tiny)
    monkeypatch.setattr(mala, "LPIPS", lambda directory: lambda a, b: (a - b).abs().mean((1, 2, 3)))
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    figures = run_quick(mala.run, tmp_path).figures
    assert all(math.isfinite(float(f.value)) for f in figures.values())
    assert {f.aim for k, f in figures.items() if "p of invariance" in k} == {"> 0.001", "< 0.001"}
    for steps in ("1 step", "5 steps", "8 steps"):
        calls = [figures[f"digits/{steps}/{name}, network calls"].value for name in ("ULA", "MALA")]
        assert calls == [1 + 2 * (1 + int(steps.split()[0]))] * 2
        for metric in ("LPIPS", "KID", "PSNR (dB)"):
            values = [float(figures[f"digits/{steps}/{metric}, {name}"].value) for name in ("MALA", "ULA")]
            difference = float(figures[f"digits/{steps}/{metric}, MALA − ULA"].value)
            assert difference == pytest.approx(values[0] - values[1], abs=1e-9)
            low, high = (float(figures[f"digits/{steps}/{metric}, MALA − ULA, 95 % {end}"].value) for end in ("from", "to"))
            assert low <= high
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"digits.png", "step-sizes.png", "pieces"}
    for part in ("sample_posterior", "corrected", "permutation_p_values"):
        monkeypatch.setattr(mala, part, None)  # whatever calls it fails
    assert run_quick(mala.run, tmp_path).figures == figures
