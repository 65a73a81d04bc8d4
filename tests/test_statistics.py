"""Data statistics: what is fitted, in every basis and at other sizes, against direct computation."""

import math

import pytest
import torch
from torch import Tensor

from anem.bases import BlockDCT, Fourier, Mixed, Pixel
from anem.covariance import Covariance
from anem.statistics import VARIANCE_FLOOR, DataStatistics

F64 = torch.zeros((), dtype=torch.float64)


def images(n: int = 40, channels: int = 2, height: int = 8, width: int = 12, seed: int = 0) -> Tensor:
    """Correlated images in [0, 1] with another mean and another spectrum in every channel, (N, C, H, W) float32."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=g, dtype=torch.float64)
    f = Fourier().frequencies(height, width).double().square().sum(0)
    for c in range(channels):
        x[:, c] = 0.4 + 0.1 * c + 0.02 * Fourier().inverse(Fourier().forward(x[:, c : c + 1]) / (0.02 * (1 + c) + f)).squeeze(1)
    return x.clamp(0, 1).float()


def stationary(seed: int = 0) -> Tensor:
    """All cyclic shifts of a few images: a data set whose second moment about a constant is exactly circulant, (N, 1, 4, 6)."""
    base = images(3, 1, 4, 6, seed)
    return torch.cat([base.roll((dy, dx), (-2, -1)) for dy in range(4) for dx in range(6)])


@pytest.fixture
def fitted() -> DataStatistics:
    return DataStatistics.fit(images())


def test_the_mean_is_one_number_a_channel(fitted):
    torch.testing.assert_close(fitted.mean.double(), images().double().mean((0, 2, 3)), atol=1e-7, rtol=0)
    assert fitted.mean_image(F64).shape == (1, 2, 1, 1)
    assert fitted.mean_image(F64).dtype == torch.float64


@pytest.mark.parametrize("basis", [Fourier(), BlockDCT(2), BlockDCT(4), Pixel()], ids=lambda b: b.name)
def test_the_variance_is_the_mean_square_of_the_residual(fitted, basis):
    """Per frequency in Fourier; shared by the blocks in a block DCT; shared by the pixels in the pixel basis."""
    x = images().double()
    residual = fitted.residual(x, basis)
    torch.testing.assert_close(residual, basis.forward(x - fitted.mean.double()[:, None, None]), atol=1e-12, rtol=0)
    square = basis.symmetrise(residual.square()).mean(0)
    if basis.name == "pixel":
        square = square.mean((1, 2), keepdim=True).expand_as(square)
    elif basis.name.startswith("dct"):
        f = basis.size
        square = square.reshape(2, 8 // f, f, 12 // f, f).mean((1, 3)).repeat(1, 8 // f, 12 // f)
    c = fitted.variance_in(basis, 8, 12, F64)
    assert c.shape == (1, 2, 8, 12)
    torch.testing.assert_close(c[0], square.clamp_min(VARIANCE_FLOOR), rtol=2e-6, atol=0)


def test_the_density_of_a_pixel_value_is_that_of_all_columns():
    """Images enough that only some pixels are looked at: their columns must not be those of one remainder."""
    x = torch.full((1100, 1, 28, 28), 0.75)
    x[..., 0] = 0.0
    fitted = DataStatistics.fit(x)
    weight = (fitted.marginal.weights * (fitted.marginal.means > 0.5)).sum()
    assert float(weight) == pytest.approx(27 / 28, abs=0.01)


def test_the_total_variance_is_the_same_in_every_basis(fitted):
    """A trace does not depend on the basis."""
    total = [float(fitted.variance_in(name, 8, 12, F64).sum()) for name in ("pixel", "fourier", "dct2", "dct4")]
    assert total == pytest.approx([total[0]] * 4, rel=1e-5)


def test_fitting_does_not_depend_on_the_chunk_length():
    """More images than one chunk of the accumulation: repeated images leave every moment as it was."""
    few = images(32, 1, 4, 4)
    once, often = DataStatistics.fit(few), DataStatistics.fit(few.repeat(160, 1, 1, 1))
    for name, value in once.named_buffers(recurse=False):
        torch.testing.assert_close(often.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_the_mixture_of_pixel_values_has_their_mean_and_variance(fitted):
    """Every step of expectation-maximisation keeps both exactly."""
    mixture, x = fitted.marginal, images().double().transpose(0, 1).flatten(1)
    weights, means, variances = mixture.weights.double(), mixture.means.double(), mixture.variances.double()
    mean = (weights * means).sum(1)
    variance = (weights * (variances + means.square())).sum(1) - mean.square()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(mean, x.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(variance, x.var(1, correction=0), atol=1e-6, rtol=1e-5)


def test_constant_data_have_the_variance_of_a_grey_level():
    flat = DataStatistics.fit(torch.full((5, 1, 8, 8), 0.25))
    for basis in ("pixel", "fourier", "dct2"):
        c = flat.variance_in(basis, 8, 8, F64)
        torch.testing.assert_close(c, torch.full_like(c, 1 / 12 / 256**2), rtol=1e-6, atol=0)
    assert flat.lambda_max == pytest.approx(30 / 12 / 256**2, rel=1e-6)


def test_the_spectrum_is_a_valid_covariance(fitted):
    for basis in ("pixel", "fourier", "dct2", "dct4"):
        Covariance(fitted.variance_in(basis, 8, 12, F64), basis)
    for size in [(8, 8), (16, 24), (7, 9), (28, 28)]:
        Covariance(fitted.variance_in("fourier", *size, F64), "fourier")


def test_the_largest_eigenvalue_is_exact_for_stationary_data():
    x = stationary()
    stats = DataStatistics.fit(x)
    r = (x.double() - stats.mean.double()[:, None, None]).flatten(1)
    exact = float(torch.linalg.eigvalsh(r.T @ r / len(r))[-1])
    assert float(stats.largest_eigenvalue) == pytest.approx(exact, rel=1e-5)
    assert stats.lambda_max == pytest.approx(30 * exact, rel=1e-5)


def test_correlated_channels_add_up_in_the_largest_eigenvalue():
    """Three equal channels: the eigenvalue of the joint covariance is three times that of one."""
    x = stationary()
    grey, colour = DataStatistics.fit(x), DataStatistics.fit(x.expand(-1, 3, -1, -1))
    assert float(colour.largest_eigenvalue) == pytest.approx(3 * float(grey.largest_eigenvalue), rel=1e-5)


# --- other sizes, other blocks ---------------------------------------------------------------------------------------------


def test_a_finer_grid_keeps_the_fitted_frequencies(fitted):
    """Twice the sides: every second frequency of the new grid is a frequency of the old one, where interpolation is exact."""
    fine = fitted.variance_in("fourier", 16, 24, F64)
    torch.testing.assert_close(fine[..., ::2, ::2], fitted.variance_in("fourier", 8, 12, F64), rtol=1e-6, atol=0)


def test_between_frequencies_the_spectrum_is_bilinear(fitted):
    fine = fitted.variance_in("fourier", 16, 12, F64)
    fitted_grid = fitted.variance_in("fourier", 8, 12, F64)
    torch.testing.assert_close(fine[..., 1::2, :], 0.5 * (fitted_grid + fitted_grid.roll(-1, -2)), rtol=1e-6, atol=0)


def test_a_flat_spectrum_is_flat_at_every_size():
    stats = DataStatistics(2, 8, 8)
    for basis in ("pixel", "fourier", "dct2", "dct4"):
        for size in [(8, 8), (4, 12), (20, 8)]:
            c = stats.variance_in(basis, *size, F64)
            torch.testing.assert_close(c, torch.ones(1, 2, *size, dtype=torch.float64))


def test_a_block_without_statistics_of_its_own_reads_the_spectrum():
    """Coefficient u of a block of 4 has the frequency u/8, which is number u of a grid of 8."""
    stats = DataStatistics.fit(images(width=8), dct=(2,))
    assert stats.dct == (2,)
    block = stats.variance_in("dct4", 4, 4, F64)
    torch.testing.assert_close(block, stats.variance_in("fourier", 8, 8, F64)[..., :4, :4], rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.variance_in("dct4", 8, 12, F64), block.repeat(1, 1, 2, 3), rtol=0, atol=0)


def test_blocks_that_do_not_divide_the_sides_have_no_statistics():
    stats = DataStatistics.fit(images(10, 1, 6, 8), dct=(2, 4))
    assert stats.dct == (2,)
    with pytest.raises(ValueError, match="multiples of 4"):
        stats.variance_in("dct4", 6, 8, F64)


def test_a_mixed_basis_reads_every_image_in_its_own(fitted):
    bases = [Pixel(), Fourier(), BlockDCT(4)]
    mixed = Mixed(bases, torch.tensor([2, 0, 1, 2]))
    c = fitted.variance_in(mixed, 8, 12, F64)
    assert c.shape == (4, 2, 8, 12)
    for row, which in zip(c, mixed.index.tolist(), strict=True):
        torch.testing.assert_close(row, fitted.variance_in(bases[which], 8, 12, F64)[0])


# --- a module among modules ------------------------------------------------------------------------------------------------


def test_a_state_dict_gives_the_same_statistics(fitted):
    other = DataStatistics(2, 8, 12)
    before = other.variance_in("fourier", 8, 12, F64)  # now in the cache, which loading must empty
    other.load_state_dict(fitted.state_dict())
    for basis in ("pixel", "fourier", "dct2", "dct4"):
        torch.testing.assert_close(other.variance_in(basis, 8, 12, F64), fitted.variance_in(basis, 8, 12, F64), rtol=0, atol=0)
    assert not torch.equal(before, other.variance_in("fourier", 8, 12, F64))
    assert other.lambda_max == fitted.lambda_max


def test_statistics_inside_a_model_are_loaded_with_it(fitted):
    outer, loaded = torch.nn.ModuleDict({"statistics": fitted}), torch.nn.ModuleDict({"statistics": DataStatistics(2, 8, 12)})
    loaded["statistics"].variance_in("pixel", 8, 12, F64)
    loaded.load_state_dict(outer.state_dict())
    torch.testing.assert_close(loaded["statistics"].variance_in("pixel", 8, 12, F64), fitted.variance_in("pixel", 8, 12, F64))


def test_dtype_follows_like(fitted):
    assert fitted.variance_in("fourier", 8, 12, torch.zeros(1)).dtype == torch.float32
    assert fitted.variance_in("fourier", 8, 12, F64).dtype == torch.float64
    assert fitted.residual(images(), "fourier").dtype == torch.float32


def test_statistics_are_no_parameters(fitted):
    assert list(fitted.parameters()) == []
    assert not fitted.variance_in("fourier", 8, 12, F64).requires_grad
    assert all(math.isfinite(float(v.sum())) for v in fitted.buffers())
