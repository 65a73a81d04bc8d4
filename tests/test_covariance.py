"""Covariances against dense matrices in float64: every basis, every operation."""

import math

import pytest
import torch
from torch import Tensor

from anem.bases import Basis, BlockDCT, Fourier, Mixed, Pixel, as_basis
from anem.covariance import Covariance
from anem.random import generators_for

SIZES = [(4, 4), (4, 8), (8, 12)]
BASES = [Pixel(), Fourier(), BlockDCT(2), BlockDCT(4)]
NAMES = [basis.name for basis in BASES]
MIXED = Mixed(BASES, torch.tensor([1, 0, 3, 1, 2]))
ODD_SIZES = [(1, 1), (1, 6), (5, 1), (5, 7), (6, 5)]


def dense(basis: Basis, height: int, width: int) -> Tensor:
    """B as a matrix (H·W, H·W), column by column."""
    d = height * width
    columns = basis.forward(torch.eye(d, dtype=torch.float64).reshape(d, 1, height, width))
    return columns.reshape(d, d).T


def dft(height: int, width: int) -> Tensor:
    """The unitary 2-D DFT as a complex matrix (H·W, H·W), from its definition."""
    row, column = (torch.arange(n, dtype=torch.float64) for n in (height, width))
    fy = torch.exp(-2j * math.pi * row[:, None] * row / height) / math.sqrt(height)
    fx = torch.exp(-2j * math.pi * column[:, None] * column / width) / math.sqrt(width)
    return torch.kron(fy, fx)


def spread_covariance(basis: Basis, batch: int, height: int, width: int, generator: torch.Generator, channels: int = 2) -> Covariance:
    """Random variances over six decades, even where the basis asks for it."""
    exponent = 6 * torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64) - 3
    return Covariance(basis.symmetrise(10**exponent), basis)


def dense_covariance(cov: Covariance, image: int, channel: int) -> Tensor:
    """Σ of one image and channel as a matrix (H·W, H·W)."""
    single = cov[torch.tensor([image])]
    b = dense(single.basis, *cov.shape[-2:])
    return b.T @ torch.diag(single.values[0, channel].flatten()) @ b


def frozen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- bases ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("basis", BASES, ids=NAMES)
def test_a_basis_is_an_orthogonal_matrix(basis, size):
    b = dense(basis, *size)
    eye = torch.eye(len(b), dtype=torch.float64)
    torch.testing.assert_close(b @ b.T, eye, atol=1e-13, rtol=0)
    torch.testing.assert_close(b.T @ b, eye, atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("basis", BASES, ids=NAMES)
def test_the_inverse_is_the_transpose(basis, size, generator):
    z = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64)
    b = dense(basis, *size)
    torch.testing.assert_close(basis.inverse(z).flatten(2), z.flatten(2) @ b, atol=1e-12, rtol=0)
    torch.testing.assert_close(basis.forward(basis.inverse(z)), z, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_the_hartley_transform_is_orthogonal_symmetric_and_its_own_inverse_at_any_size(size):
    b = dense(Fourier(), *size)
    torch.testing.assert_close(b, b.T, atol=1e-13, rtol=0)
    torch.testing.assert_close(b @ b, torch.eye(len(b), dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", SIZES + ODD_SIZES)
def test_an_even_spectrum_gives_the_covariance_of_the_unitary_dft(size):
    """Hᵀ diag(λ) H = Fᴴ diag(λ) F: the statement the whole Fourier description rests on."""
    cov = spread_covariance(Fourier(), 1, *size, frozen(), channels=1)
    f = dft(*size)
    truth = f.conj().T @ torch.diag(cov.values.flatten().to(f)) @ f
    assert truth.imag.abs().max() < 1e-10
    torch.testing.assert_close(dense_covariance(cov, 0, 0), truth.real, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", SIZES + ODD_SIZES)
def test_fourier_power_is_the_squared_modulus_of_the_dft(size, generator):
    x = torch.randn(2, 1, *size, generator=generator, dtype=torch.float64)
    spectrum = x.flatten(2).to(torch.complex128) @ dft(*size).T
    torch.testing.assert_close(Fourier().power(x).flatten(2), spectrum.abs().square(), atol=1e-12, rtol=0)


def test_fourier_frequencies_say_where_a_wave_has_its_power():
    height, width = 6, 10
    f = Fourier().frequencies(height, width)
    for ky, kx in [(0, 0), (1, 0), (0, 3), (2, 4), (5, 9)]:
        row, column = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
        wave = torch.cos(2 * math.pi * (f[0, ky, kx] * row + f[1, ky, kx] * column))
        power = Fourier().power(wave[None, None])[0, 0]
        where = {tuple(k) for k in torch.nonzero(power > 1e-9).tolist()}
        assert where == {(ky, kx), (-ky % height, -kx % width)}


def test_fourier_symmetrise_averages_k_and_minus_k(generator):
    v = torch.randn(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    s = Fourier().symmetrise(v)
    for ky in range(5):
        for kx in range(6):
            torch.testing.assert_close(s[0, 0, ky, kx], 0.5 * (v[0, 0, ky, kx] + v[0, 0, -ky % 5, -kx % 6]))
    torch.testing.assert_close(Fourier().symmetrise(s), s)


@pytest.mark.parametrize("f", [2, 3, 4])
def test_the_block_dct_is_the_dct_of_every_block(f, generator):
    """Against the DCT-II written out, with the coefficient (u, v) of a block at the block's pixel (u, v)."""
    x = torch.randn(1, 1, 2 * f, 3 * f, generator=generator, dtype=torch.float64)
    i = torch.arange(f, dtype=torch.float64)
    z = BlockDCT(f).forward(x)
    for by in range(2):
        for bx in range(3):
            block = x[0, 0, by * f : (by + 1) * f, bx * f : (bx + 1) * f]
            for u in range(f):
                for v in range(f):
                    scale = math.sqrt((1 if u == 0 else 2) * (1 if v == 0 else 2)) / f
                    wave = torch.cos(math.pi * u * (2 * i + 1) / (2 * f))[:, None] * torch.cos(math.pi * v * (2 * i + 1) / (2 * f))
                    torch.testing.assert_close(z[0, 0, by * f + u, bx * f + v], scale * (wave * block).sum())


@pytest.mark.parametrize("f", [2, 4])
def test_average_pooling_keeps_the_first_coefficient_of_every_block(f, generator):
    x = torch.randn(2, 3, 8, 12, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(BlockDCT(f).forward(x)[..., ::f, ::f] / f, torch.nn.functional.avg_pool2d(x, f))


def test_block_dct_frequencies_follow_the_coefficients():
    fy, fx = BlockDCT(4).frequencies(8, 4)
    assert fy[:, 0].tolist() == [0, 0.125, 0.25, 0.375] * 2
    assert fx[0].tolist() == [0, 0.125, 0.25, 0.375]


@pytest.mark.parametrize("method", ["forward", "inverse", "symmetrise", "power"])
def test_a_mixed_basis_treats_every_image_by_its_own_basis(method, generator):
    x = torch.randn(5, 2, 8, 4, generator=generator, dtype=torch.float64)
    together = getattr(MIXED, method)(x)
    for b, which in enumerate(MIXED.index.tolist()):
        torch.testing.assert_close(together[b], getattr(BASES[which], method)(x[b : b + 1])[0])


@pytest.mark.parametrize("batch", [1, 4, 10])
def test_a_mixed_basis_refuses_another_batch(batch):
    with pytest.raises(ValueError, match=f"wanted a batch of 5.*got {batch}"):
        MIXED.forward(torch.ones(batch, 1, 4, 4))


def test_rows_of_a_mixed_basis():
    assert MIXED.rows(torch.tensor([0, 3])) == Fourier()
    assert MIXED.rows(torch.tensor([2])) == BlockDCT(4)
    assert MIXED.rows(torch.tensor([4, 0])) == Mixed([Fourier(), BlockDCT(2)], torch.tensor([1, 0]))
    assert MIXED.rows(torch.tensor([True, False, False, False, True])) == MIXED.rows(torch.tensor([0, 4]))


def test_bases_are_known_by_name():
    assert [as_basis(name) for name in NAMES] == BASES
    assert as_basis(BASES[1]) is BASES[1]
    assert len({Fourier(), Fourier(), BlockDCT(2), BlockDCT(4), Pixel()}) == 4
    assert BlockDCT(2) != BlockDCT(4)
    assert repr(BlockDCT(4)) == "Basis('dct4')"


@pytest.mark.parametrize("name", ["wavelet", "dct", "dctx", "", "Fourier"])
def test_an_unknown_basis_is_named(name):
    with pytest.raises(ValueError, match=f"unknown basis {name!r}.*'pixel', 'fourier' or 'dctF'"):
        as_basis(name)


def test_a_block_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        as_basis("dct1")


@pytest.mark.parametrize("basis", [BlockDCT(4), Mixed([Pixel(), BlockDCT(4)], torch.tensor([0, 1]))], ids=["dct4", "mixed"])
def test_sides_that_are_no_multiple_of_the_block_are_refused(basis):
    with pytest.raises(ValueError, match="multiples of 4, got 8 x 6"):
        Covariance(torch.ones(2, 1, 8, 6), basis)
    with pytest.raises(ValueError, match="multiples of 4, got 8 x 6"):
        basis.forward(torch.ones(2, 1, 8, 6))


# --- derivatives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 4), (5, 2)])
@pytest.mark.parametrize("method", ["forward", "inverse", "power"])
def test_the_hartley_transform_has_exact_first_and_second_derivatives(method, size, generator):
    x = torch.randn(1, 1, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    function = getattr(Fourier(), method)
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,))


def test_the_hartley_transform_works_inside_function_transforms(generator):
    x = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 4, generator=generator, dtype=torch.float64)

    def energy(image: Tensor) -> Tensor:
        return (weight * Fourier().power(image[None])).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(energy(image) for image in leaf), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(energy))(x), expected)


@pytest.mark.parametrize("basis", BASES[:3], ids=NAMES[:3])
def test_a_quadratic_energy_has_exact_second_derivatives_in_the_image_and_the_variances(basis, generator):
    y = torch.randn(2, 1, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(2, 1, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def energy(y: Tensor, logvar: Tensor) -> Tensor:
        cov = Covariance(basis.symmetrise(logvar).exp(), basis, check=False)
        return 0.5 * (cov.norm2(y) + cov.logdet())

    assert torch.autograd.gradcheck(energy, (y, logvar))
    assert torch.autograd.gradgradcheck(energy, (y, logvar))


# --- covariances against dense matrices ------------------------------------------------------------------------------------


@pytest.fixture(params=[*BASES, MIXED], ids=[*NAMES, "mixed"])
def cov(request, generator) -> Covariance:
    return spread_covariance(request.param, 5, 4, 8, generator)


def each(cov: Covariance):
    """Index pairs (image, channel)."""
    return [(b, c) for b in range(cov.shape[0]) for c in range(cov.shape[1])]


def matrix_power(sigma: Tensor, p: float) -> Tensor:
    values, vectors = torch.linalg.eigh(sigma)
    return vectors @ torch.diag(values**p) @ vectors.T


@pytest.mark.parametrize("p", [1, 2, 0.5, -0.5, -1])
def test_powers(cov, p, generator):
    x = torch.randn(cov.shape, generator=generator, dtype=torch.float64)
    applied = cov.apply(x, p)
    torch.testing.assert_close(cov.power(p).apply(x), applied)
    scale = cov.values.pow(p).max()
    for b, c in each(cov):
        expected = matrix_power(dense_covariance(cov, b, c), p) @ x[b, c].flatten()
        torch.testing.assert_close(applied[b, c].flatten(), expected, atol=1e-9 * float(scale), rtol=1e-6)


def test_powers_compose(cov, generator):
    x = torch.randn(cov.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(cov.power(0.5).apply(cov.power(0.5).apply(x)), cov.apply(x))
    torch.testing.assert_close(cov.apply(cov.apply(x), -1), x)


def test_logdet(cov):
    expected = torch.zeros(5, dtype=torch.float64)
    for b, c in each(cov):
        expected[b] += torch.linalg.slogdet(dense_covariance(cov, b, c)).logabsdet
    torch.testing.assert_close(cov.logdet(), expected)


@pytest.mark.parametrize("p", [-1, 1, 0.5])
def test_norms(cov, p, generator):
    x = torch.randn(cov.shape, generator=generator, dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    for b, c in each(cov):
        row = x[b, c].flatten()
        expected[b] += row @ matrix_power(dense_covariance(cov, b, c), p) @ row
    torch.testing.assert_close(cov.norm2(x, p), expected)


def test_the_variance_in_each_pixel_is_the_diagonal(cov):
    diagonal = cov.basis.pixel_variance(cov.values)
    for b, c in each(cov):
        torch.testing.assert_close(diagonal[b, c].flatten(), dense_covariance(cov, b, c).diagonal())


def test_color_is_a_square_root(cov):
    """The matrix A of ``color`` satisfies A Aᵀ = Σ exactly, so white noise gets covariance Σ."""
    h, w = cov.shape[-2:]
    units = torch.eye(h * w, dtype=torch.float64).reshape(-1, 1, 1, h, w)
    columns = torch.stack([cov.color(unit.expand(cov.shape)) for unit in units])  # (d, B, C, H, W)
    for b, c in each(cov):
        a = columns[:, b, c].flatten(1).T
        sigma = dense_covariance(cov, b, c)
        torch.testing.assert_close(a @ a.T, sigma, atol=1e-10 * float(sigma.max()), rtol=1e-9)


@pytest.mark.parametrize("basis", BASES[1:3], ids=NAMES[1:3])
def test_the_samples_have_the_covariance(basis):
    """Every entry of the whitened second moment within a normal bound: with d = 16, 136 distinct entries and the 16 means, each
    approximately normal at n = 20,000, the two-sided threshold of 5.2 standard errors gives a false-alarm rate below 1e-4."""
    n, cov = 20_000, spread_covariance(basis, 1, 4, 4, frozen(), channels=1)
    draws = cov.expand(n).sample(frozen(1)).flatten(1)
    white = draws @ matrix_power(dense_covariance(cov, 0, 0), -0.5)
    eye = torch.eye(16, dtype=torch.float64)
    second = (white.T @ white / n - eye) / ((1 + eye) / n).sqrt()
    mean = white.mean(0) * math.sqrt(n)
    assert second.abs().max() < 5.2
    assert mean.abs().max() < 5.2


def test_samples_are_reproducible_and_do_not_depend_on_batch_mates(cov):
    seeds = [3, 1, 4, 1, 5]
    together = cov.sample(generators_for(seeds))
    torch.testing.assert_close(together, cov.sample(generators_for(seeds)), atol=0, rtol=0)
    for b, seed in enumerate(seeds):
        alone = cov[b : b + 1].sample(generators_for([seed]))
        torch.testing.assert_close(together[b], alone[0])


# --- validity, batches, change of basis ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("basis", NAMES)
def test_a_variance_that_is_not_finite_and_positive_is_refused(basis, bad):
    values = torch.ones(2, 1, 4, 4)
    values[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="finite and > 0"):
        Covariance(values, basis)


def test_a_spectrum_that_is_not_even_is_refused():
    values = torch.ones(1, 1, 4, 6)
    values[0, 0, 1, 2] = 1.01
    with pytest.raises(ValueError, match="even"):
        Covariance(values, "fourier")
    with pytest.raises(ValueError, match="even"):
        Covariance(values.expand(2, -1, -1, -1), Mixed([Pixel(), Fourier()], torch.tensor([0, 1])))
    values[0, 0, 3, 4] = 1.01
    assert Covariance(values, "fourier").shape == (1, 1, 4, 6)
    assert Covariance(torch.rand(1, 1, 4, 6) + 0.1, "pixel").shape == (1, 1, 4, 6)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_evenness_survives_float32_rounding(size):
    """A spectrum computed in float32 over nine decades passes: the check is relative."""
    f = Fourier().frequencies(*size)
    values = torch.exp(-200 * f.square().sum(0)).clamp_min(1e-9)[None, None]
    assert Covariance(values, "fourier").shape == (1, 1, *size)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 1, 1, 4, 4)])
def test_values_need_four_dimensions(shape):
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \("):
        Covariance(torch.ones(shape))


def test_a_batch_is_indexed_by_slices_numbers_and_masks(cov, generator):
    x = torch.randn(cov.shape, generator=generator, dtype=torch.float64)
    full = cov.apply(x)
    mask = torch.tensor([False, True, True, False, True])
    for index in [slice(1, 4), slice(None, None, 2), torch.tensor([4, 0, 0]), mask]:
        part = cov[index]
        torch.testing.assert_close(part.values, cov.values[index])
        torch.testing.assert_close(part.apply(x[index]), full[index])
        torch.testing.assert_close(part.logdet(), cov.logdet()[index])


def test_one_covariance_is_expanded_to_a_batch(generator):
    for basis in [*BASES, MIXED]:
        one = spread_covariance(basis, 5, 4, 8, generator)[:1]
        x = torch.randn(3, 2, 4, 8, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(one.expand(3).apply(x), torch.cat([one.apply(row[None]) for row in x]))
        assert one.expand(1) is one
    with pytest.raises(ValueError, match="batch of 1 or 4, got 2"):
        Covariance(torch.ones(2, 1, 4, 4)).expand(4)


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_white_noise_is_the_same_in_every_basis(source, target):
    white = Covariance.white(torch.tensor([0.5, 2.0], dtype=torch.float64), (2, 1, 4, 8), source)
    moved = white.to_basis(target)
    assert moved.basis.name == target
    for b, variance in enumerate([0.5, 2.0]):
        expected = variance * torch.eye(32, dtype=torch.float64)
        torch.testing.assert_close(dense_covariance(moved, b, 0), expected, atol=1e-12, rtol=0)


def test_white_takes_dtype_and_device_from_like():
    cov = Covariance.white(0.25, (2, 3, 4, 4), like=torch.zeros(1, dtype=torch.float64))
    assert cov.values.dtype == torch.float64
    assert cov.is_white()
    assert cov.values.unique().tolist() == [0.25]
    assert Covariance.white(1, (1, 1, 4, 4)).sample(frozen()).dtype == torch.float32


def test_only_white_noise_changes_basis(generator):
    cov = spread_covariance(Fourier(), 1, 4, 4, generator)
    assert not cov.is_white()
    assert cov.to_basis("fourier") is cov
    with pytest.raises(ValueError, match="only white noise is diagonal in both 'fourier' and 'pixel'"):
        cov.to_basis("pixel")


def test_whiteness_is_judged_image_by_image():
    assert Covariance(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)).is_white()
    values = torch.ones(2, 2, 4, 4)
    values[1, 1] = 2
    assert not Covariance(values).is_white()


def test_casting_keeps_the_basis(cov):
    single = cov.to(torch.float32)
    assert single.values.dtype == torch.float32
    assert single.basis is cov.basis
    torch.testing.assert_close(single.values, cov.values.float())


def test_float32_agrees_with_float64(cov, generator):
    x = torch.randn(cov.shape, generator=generator, dtype=torch.float64)
    exact, single = cov.norm2(x), cov.to(torch.float32).norm2(x.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("values", [torch.ones(1, 1, 4, 4, dtype=torch.long), torch.ones(1, 1, 4, 4).numpy()], ids=["integers", "array"])
def test_variances_that_are_no_floats_are_refused(values):
    with pytest.raises(ValueError, match="wanted a tensor of floats, got (torch.int64|ndarray)"):
        Covariance(values)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 1, 0, 4), (1, 1, 4.5, 4)])
def test_white_noise_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape: wanted \(B, C, H, W\) of whole numbers >= 1, got"):
        Covariance.white(0.1, shape)


@pytest.mark.parametrize("variance", [torch.ones(2), torch.ones(3, 1, 4, 4)])
def test_variances_of_white_noise_are_one_an_image(variance):
    with pytest.raises(ValueError, match=r"variance: wanted a number or one an image, \(3,\), got shape"):
        Covariance.white(variance, (3, 1, 4, 4))


def test_no_variance_at_all_is_refused():
    with pytest.raises(ValueError, match="wanted at least one variance, got an empty tensor"):
        Covariance(torch.ones(0, 1, 4, 4))
