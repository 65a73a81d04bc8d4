"""Metrics against closed forms, brute force, independent implementations and the values of the official ones."""

import importlib.util
import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from anem.data import load_dataset, mnist
from anem.images import from_integers, read_image
from anem.metrics import (
    DISTS,
    LPIPS,
    DigitClassifier,
    Inception,
    bootstrap,
    consistency,
    diversity,
    frechet_distance,
    kernel_distance,
    kernel_statistic,
    mean_statistic,
    psnr,
    ssim,
)
from anem.operators import GaussianBlur, Identity, Inpainting, SuperResolution

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("ANEM_DATA", ROOT / "data"))


def needs(*names: str):
    """Skip, visibly, where files that can be fetched are absent."""
    missing = [name for name in names if not (DATA / name).is_file()]
    fetch = "python tools/fetch_data.py data cifar10 metrics" if "cifar10.npz" in missing else "make data"
    return pytest.mark.skipif(bool(missing), reason=f"not in {DATA.name}/ ({fetch}, or set ANEM_DATA): {', '.join(missing)}")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- pixels ---


def test_psnr_of_known_errors():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(psnr(x + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), x), torch.tensor([20.0, 40.0]).double(), atol=1e-4)
    assert psnr(x, x).tolist() == [float("inf")] * 2
    samples = x + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1, 1)
    assert psnr(samples, x).shape == (3, 2)


def test_psnr_inside_a_mask_sees_nothing_else():
    x, mask = torch.zeros(1, 3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    y = x + torch.where(mask, 0.1, 0.9)
    assert psnr(y, x, mask).item() == pytest.approx(20, abs=1e-4)
    assert psnr(y, x, ~mask).item() == pytest.approx(-20 * np.log10(0.9), abs=1e-4)
    with pytest.raises(ValueError, match="at least one pixel"):
        psnr(y, x, torch.zeros_like(mask))
    with pytest.raises(ValueError, match=r"wanted the reference's shape"):
        psnr(y, torch.zeros(1, 1, 8, 8))


def test_ssim_is_its_definition():
    """On 11 × 11 pixels one window fits: the formula at the centre, with Gaussian weights."""
    a, b = (torch.rand(1, 1, 11, 11, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w = np.outer(taps, taps) / taps.sum() ** 2
    x, y = a[0, 0].double().numpy(), b[0, 0].double().numpy()
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, cov = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
    wanted = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert ssim(a, b).item() == pytest.approx(wanted, rel=1e-6)


def test_ssim_agrees_with_torchmetrics_away_from_the_border():
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    x = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * normal(2, 3, 20, 24).float()).clamp(0, 1)
    _, full = torchmetrics.structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
    assert torch.allclose(ssim(x, y).float(), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-5)


def test_ssim_is_per_image():
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = x + 0.1 * normal(3, 1, 16, 16).float()
    together = ssim(x, y)
    assert together.shape == (3,) and torch.allclose(together[1:2], ssim(x[1:2], y[1:2]), atol=1e-6)
    assert torch.allclose(ssim(x, x), torch.ones(3).double())
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(x[..., :8, :8], y[..., :8, :8])


OPERATORS = {
    "identity": Identity(),
    "inpainting": Inpainting.box((16, 16), 4, 4, 8, 8),
    "hidden pixels measured": Inpainting.box((16, 16), 4, 4, 8, 8, hidden_measured=True),
    "blur": GaussianBlur(5, 1.0),
    "super-resolution": SuperResolution(2),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_truth_is_consistent_with_its_measurement(name):
    """n times the square is χ² with n degrees of freedom: false alarms 1e-6 each for 4 images."""
    operator, x = OPERATORS[name], torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m = operator.measure(x, 0.05, torch.Generator().manual_seed(1))
    n = {"inpainting": 192, "super-resolution": 64}.get(name, 256)
    square = consistency(x, m, operator, 0.05).square() * n
    low, high = scipy.stats.chi2.ppf([5e-7, 1 - 5e-7], n)
    assert ((square > low) & (square < high)).all()
    assert torch.allclose(consistency(x, operator(x) + 0.15, operator, 0.05), torch.full((4,), 3.0, dtype=torch.float64))


def test_consistency_with_a_noise_map():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    sigma = torch.linspace(0.1, 0.4, 16, dtype=torch.float64).view(1, 1, 4, 4)
    assert consistency(x, 2 * sigma, Identity(), sigma).item() == pytest.approx(2)
    with pytest.raises(ValueError, match="> 0, got 0"):
        consistency(x, x, Identity(), 0.0)


def test_diversity_is_the_mean_over_pairs():
    samples = normal(4, 3, 1, 5, 5)
    pairs = [(a - b).square().flatten(1).mean(1).sqrt() for a, b in combinations(samples, 2)]
    assert len(pairs) == 6 and torch.allclose(diversity(samples), torch.stack(pairs).mean(0))
    assert torch.equal(diversity(samples[:1].expand(3, -1, -1, -1, -1)), torch.zeros(3, dtype=torch.float64))
    most = diversity(samples, lambda a, b: (a - b).abs().amax((1, 2, 3)))
    assert most.shape == (3,) and (most > diversity(samples)).all()
    with pytest.raises(ValueError, match="S >= 2"):
        diversity(samples[:1])


# --- sets of images ---


@pytest.mark.parametrize(("n", "m", "f"), [(50, 70, 5), (8, 70, 20), (8, 6, 20)])
def test_frechet_distance_is_its_definition(n, m, f):
    x, r = normal(n, f), normal(m, f, seed=1) @ torch.diag(torch.linspace(0.5, 2, f, dtype=torch.float64)) + 0.3
    c, d = (np.atleast_2d(np.cov(z.numpy().T)) for z in (x, r))
    root = scipy.linalg.sqrtm(scipy.linalg.sqrtm(c) @ d @ scipy.linalg.sqrtm(c)).real
    wanted = float((x.mean(0) - r.mean(0)).square().sum()) + np.trace(c + d - 2 * root)
    assert frechet_distance(x, r) == pytest.approx(wanted, rel=1e-5)


def test_frechet_distance_of_moved_and_scaled_sets():
    x = normal(40, 6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25)
    spread = x - x.mean(0)
    assert frechet_distance(spread, 3 * spread) == pytest.approx(4 * float(x.var(0).sum()))
    with pytest.raises(ValueError, match=r"\(N, F\) and \(M, F\)"):
        frechet_distance(x, x[:, :3])


def test_distances_agree_with_torchmetrics():
    fid_module, kid_module = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    pictures = [torch.randint(0, 256, (30, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    pictures[1] = (pictures[1] // 2).to(torch.uint8)

    class Pixels(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).double() / 64

    fid = fid_module.FrechetInceptionDistance(feature=Pixels(), input_img_size=(3, 2, 2))
    kid = kid_module.KernelInceptionDistance(feature=Pixels(), subsets=1, subset_size=30)
    for metric in (fid, kid):
        metric.update(pictures[0], real=True)
        metric.update(pictures[1], real=False)
    reference, features = (Pixels()(p) for p in pictures)
    assert frechet_distance(features, reference) == pytest.approx(float(fid.compute()), rel=1e-4)
    assert kernel_distance(features, reference) == pytest.approx(float(kid.compute()[0]), rel=1e-4)


def test_kernel_distance_is_unbiased():
    """Zero on average between samples of one law, where the Fréchet distance is not: 5 standard errors, about 6e-7."""
    values = torch.tensor([kernel_distance(normal(10, 4, seed=2 * i), normal(12, 4, seed=2 * i + 1)) for i in range(400)])
    assert values.mean().abs() < 5 * values.std() / 20
    assert values.min() < 0


def test_weighted_kernel_distance_skips_pairs_of_an_image_with_itself():
    x, r = normal(5, 3), normal(4, 3, seed=1) + 0.5
    weights = torch.tensor([[1, 1, 1, 1, 1], [0, 2, 0, 3, 1]], dtype=torch.float64)

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    wanted = []
    for w in weights.long().tolist():
        drawn = [i for i in range(5) for _ in range(w[i])]
        pairs = [k(x[i], x[j]) for i in drawn for j in drawn if i != j]
        others = [k(r[i], r[j]) for i in range(4) for j in range(4) if i != j]
        wanted.append(np.mean(pairs) + np.mean(others) - 2 * np.mean([k(x[i], b) for i in drawn for b in r]))
    assert kernel_statistic(x, r)(weights).tolist() == pytest.approx(wanted)
    with pytest.raises(ValueError, match="N, M >= 2"):
        kernel_statistic(x[:1], r)


# --- intervals ---


def test_interval_of_a_mean_is_the_normal_one():
    scores = normal(400)
    interval = bootstrap(mean_statistic(scores), 400, generator=torch.Generator().manual_seed(0), draws=5000)
    half = 1.96 * float(scores.std()) / 20
    assert interval.value == pytest.approx(float(scores.mean()))
    assert interval.low == pytest.approx(interval.value - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.value + half, abs=0.1 * half)


def test_coverage_of_intervals():
    """Of 400 intervals at 90 % for 50 scores, inside the binomial range with false alarms 1e-6; percentile intervals run 1 % short."""
    hits = 0
    for seed in range(400):
        interval = bootstrap(mean_statistic(normal(50, seed=seed)), 50, generator=torch.Generator().manual_seed(seed), draws=400, level=0.9)
        hits += interval.low <= 0 <= interval.high
    low, high = scipy.stats.binom.ppf([5e-7, 1 - 5e-7], 400, 0.89)
    assert low <= hits <= high


def test_pairing_removes_what_methods_share():
    shared, small = 10 * normal(100), 0.1 * normal(100, seed=1) + 0.1
    first, second = mean_statistic(shared + small), mean_statistic(shared)
    paired = bootstrap(first, 100, second, generator=torch.Generator().manual_seed(0))
    assert paired.excludes_zero and paired.value == pytest.approx(float(small.mean()))
    assert (
        paired.high - paired.low < 0.1 < 1 < (alone := bootstrap(first, 100, generator=torch.Generator().manual_seed(0))).high - alone.low
    )
    swapped = bootstrap(second, 100, first, generator=torch.Generator().manual_seed(0))
    assert (swapped.low, swapped.high) == (pytest.approx(-paired.high), pytest.approx(-paired.low))


def test_a_difference_of_kernel_distances():
    reference, near = normal(200, 3, seed=5), normal(80, 3)
    statistics = kernel_statistic(near + 1.0, reference), kernel_statistic(near, reference)
    interval = bootstrap(statistics[0], 80, statistics[1], generator=torch.Generator().manual_seed(0))
    assert interval.low > 0 and interval.value == pytest.approx(kernel_distance(near + 1, reference) - kernel_distance(near, reference))


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="finite scores"):
        mean_statistic(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap(mean_statistic(torch.ones(1)), 1, generator=torch.Generator())


# --- perceptual networks, with small random weights ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Files of the right form with a few channels a layer, and an Inception that averages over pixels."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    sides = {"alexnet": [11, 5, 3, 3, 3], "vgg16": [3] * 13}
    channels = {"alexnet": [3, 4, 5, 6, 7, 8], "vgg16": [3, 4, 4, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8]}
    for net, kernel in sides.items():
        arrays = {}
        for i, side in enumerate(kernel):
            into, out = channels[net][i : i + 2]
            arrays[f"conv{i}_w"] = (rng.standard_normal((out, into, side, side)) / side).astype(np.float32)
            arrays[f"conv{i}_b"] = (0.1 * rng.standard_normal(out)).astype(np.float32)
        np.savez(folder / f"{net}.npz", **arrays)
    np.savez(folder / "lpips_alex.npz", **{f"lin{i}": rng.random((1, 4 + i, 1, 1), dtype=np.float32) for i in range(5)})
    np.savez(folder / "lpips_vgg.npz", **{f"lin{i}": rng.random((1, 4 + i, 1, 1), dtype=np.float32) for i in range(5)})
    np.savez(folder / "dists.npz", **{k: rng.random((1, 33, 1, 1), dtype=np.float32) for k in ("alpha", "beta")})

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    torch.jit.trace(Mean(), torch.zeros(1, 3, 299, 299)).save(str(folder / "inception.pt"))
    return folder


METRICS = {"lpips alex": lambda d: LPIPS(d), "lpips vgg": lambda d: LPIPS(d, "vgg"), "dists": DISTS}


@pytest.mark.parametrize("name", METRICS)
def test_perceptual_distances_are_distances(name, weights):
    metric = METRICS[name](weights)
    x, y = (torch.rand(3, 3, 40, 33, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.allclose(metric(x, x), torch.zeros(3), atol=1e-6)
    d = metric(x, y)
    assert d.shape == (3,) and (d > 0.01).all() and torch.allclose(d, metric(y, x), atol=1e-6)
    assert torch.allclose(d[2:], metric(x[2:], y[2:]), atol=1e-6)
    assert not any(p.requires_grad for p in metric.parameters())
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(metric(x, leaf).sum(), leaf)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("name", METRICS)
def test_grey_digits_are_repeated_and_padded_with_black(name, weights):
    metric = METRICS[name](weights)
    x, y = (torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    padded = [torch.nn.functional.pad(z.repeat(1, 3, 1, 1), (2, 2, 2, 2)) for z in (x, y)]
    assert torch.equal(metric(x, y), metric(*padded))
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\)"):
        metric(x.expand(-1, 2, -1, -1), y.expand(-1, 2, -1, -1))
    for other in (y.repeat(2, 1, 1, 1), y[..., :20]):
        with pytest.raises(ValueError, match="wanted the reference's shape"):
            metric(x, other)


def test_missing_weights_are_named(tmp_path, weights):
    for make, name in ((LPIPS, "lpips_alex.npz"), (DISTS, "dists.npz"), (Inception, "inception.pt")):
        with pytest.raises(ValueError, match=rf"{name}: metric weights are missing; `make data` puts {name} into data/"):
            make(tmp_path)
    (tmp_path / "dists.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match="dists.npz: not a readable weight file"):
        DISTS(tmp_path)
    (tmp_path / "inception.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match="inception.pt: not a readable weight file"):
        Inception(tmp_path)
    with pytest.raises(ValueError, match="wanted 'alex' or 'vgg', got 'resnet'"):
        LPIPS(weights, "resnet")


def test_inception_sees_eight_bit_images_about_zero(weights):
    network = Inception(weights)
    x = torch.tensor([0.0, 0.5, 0.9999, 1.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    assert torch.allclose(network(x, batch_size=3), torch.tensor([-1, 0, 127 / 128, 127 / 128])[:, None].expand(4, 3), atol=1e-5)


# --- the official values ---


def checker():
    """The module tools/check_metrics.py."""
    spec = importlib.util.spec_from_file_location("check_metrics", ROOT / "tools" / "check_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs("cifar10.npz", "alexnet.npz", "vgg16.npz", "lpips_alex.npz", "lpips_vgg.npz", "dists.npz")
def test_lpips_and_dists_reproduce_the_official_values():
    check = checker()
    figures = check.compared(check.perceptual(DATA))
    assert len(figures) == 6 and {k: f["value"] for k, f in figures.items() if not f["holds"]} == {}


def test_the_committed_check_is_of_these_golden_values():
    figures = json.loads((ROOT / "results" / "golden_metrics.json").read_text(encoding="utf-8"))["figures"]
    again = checker().compared({key: figure["values"] for key, figure in figures.items()})
    assert len(figures) == 8
    for key, figure in figures.items():
        assert again[key]["golden"] == figure["golden"] and again[key]["holds"] and figure["holds"]


# --- digits ---


def test_the_bundled_classifier_reads_the_bundled_digits():
    files = sorted((ROOT / "src" / "anem" / "weights" / "digits" / "examples").glob("*digit*.png"))
    classifier = DigitClassifier.load()
    logits = classifier(torch.cat([read_image(file, channels=1) for file in files]))
    assert len(files) >= 8 and logits.argmax(1).tolist() == [int(file.stem[-1]) for file in files]


def test_the_card_of_the_classifier():
    folder = ROOT / "src" / "anem" / "weights"
    card = json.loads((folder / "digit_classifier.json").read_text(encoding="utf-8"))
    assert card["accuracy"]["tuning"] >= 0.99 and card["trained_on"] == "MNIST training images 0 to 54999"
    assert (folder / "digit_classifier.safetensors").stat().st_size <= 300_000


@needs("mnist.npz")
def test_the_accuracy_on_the_card_is_true():
    card = json.loads((ROOT / "src" / "anem" / "weights" / "digit_classifier.json").read_text(encoding="utf-8"))
    data = load_dataset(mnist("tuning", str(DATA / "mnist.npz")))
    right = DigitClassifier.load()(data.batch(torch.arange(len(data)))).argmax(1) == data.labels
    assert right.double().mean().item() == pytest.approx(card["accuracy"]["tuning"], abs=1e-3)


def test_features_and_errors_of_the_classifier(tmp_path):
    classifier = DigitClassifier().eval()
    x = from_integers(torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    features = classifier.features(x)
    assert features.shape == (2, 64) and torch.equal(classifier.head(features), classifier(x))
    with pytest.raises(ValueError, match=r"wanted digits \(B, 1, 28, 28\), got \(2, 1, 32, 32\)"):
        classifier(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="absent.safetensors: not the weights"):
        DigitClassifier.load(tmp_path / "absent.safetensors")
