"""Every operator against its dense matrix: forward, adjoint, response, pseudo-inverse, observation, gradients; and what is refused."""

import math

import pytest
import torch
from PIL import Image

from anem.covariance import Covariance
from anem.operators import (
    TASKS,
    Blur,
    GaussianBlur,
    Identity,
    Inpainting,
    KernelBlur,
    MotionBlur,
    SuperResolution,
    inside_box,
    make_operator,
)
from anem.random import generators_for
from anem.statistics import VARIANCE_FLOOR, DataStatistics

SHAPE = (3, 8, 12)
RANDOM = torch.Generator().manual_seed(1)


def rand(*shape):
    return torch.rand(shape, generator=RANDOM, dtype=torch.float64)


def mosaic():
    """A Bayer pattern: one colour a pixel."""
    mask = torch.zeros(3, 8, 12, dtype=torch.bool)
    mask[0, ::2, ::2] = mask[1, ::2, 1::2] = mask[1, 1::2, ::2] = mask[2, 1::2, 1::2] = True
    return mask


OPERATORS = {
    "identity": Identity(),
    "centre box": Inpainting.centre_box(SHAPE, 5),
    "box anywhere": Inpainting.box(SHAPE, 1, 7, 4, 3),
    "horizontal": Inpainting.horizontal(SHAPE, 3),
    "half": Inpainting.half(SHAPE, "left"),
    "random": Inpainting.random(SHAPE, 0.7, seed=3),
    "mosaic": Inpainting(mosaic()),
    "vignette": Inpainting(0.2 + 0.8 * rand(8, 12)),
    "noisy hidden pixels": Inpainting.box(SHAPE, 2, 2, 3, 3, hidden_measured=True),
    "two boxes": Inpainting.box(SHAPE, torch.tensor([0, 3]), torch.tensor([2, 5]), torch.tensor([4, 1]), 6),
    "paper's blur": GaussianBlur(),
    "odd blur": GaussianBlur(5, 1.3),
    "wide blur": GaussianBlur((8, 11), 2.5),
    "three blurs": GaussianBlur(6, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
    "motion": MotionBlur(4.5, 30.0),
    "two motions": MotionBlur(torch.tensor([2.0, 5.0], dtype=torch.float64), torch.tensor([10.0, 100.0], dtype=torch.float64)),
    "even kernel": KernelBlur(rand(4, 6)),
    "kernel a channel": KernelBlur(rand(3, 3, 5) / 8),
    "cascade": MotionBlur(3.0, 70.0) @ GaussianBlur(4, 0.7),
    "blocks of 2": SuperResolution(2),
    "blocks of 4": SuperResolution(4),
    "box filter 2": SuperResolution(2, form="fourier"),
    "box filter 4": SuperResolution(4, form="fourier"),
}


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS.keys())
def operator(request):
    return request.param


def count(operator):
    """P, the number of parameter settings that an operator holds."""
    return len(operator.response(SHAPE))


def matrix(function, shape):
    """A linear function of images (1, C, H, W) as matrices (P, outputs, inputs)."""
    d = math.prod(shape)
    columns = [function(e.reshape(1, *shape)).flatten(1) for e in torch.eye(d, dtype=torch.float64)]
    return torch.stack(columns, 2)


def reference(operator, x):
    """H x written out: products, shifted copies, means of blocks."""
    if isinstance(operator, Identity):
        return x
    if isinstance(operator, Inpainting):
        return operator.mask.to(x) * x
    if isinstance(operator, Blur):
        k = operator.kernel().to(x)
        kh, kw = k.shape[-2:]
        shifts = [(i, j) for i in range(kh) for j in range(kw)]
        return sum(k[..., i, j, None, None] * x.roll((i - kh // 2, j - kw // 2), (-2, -1)) for i, j in shifts)
    if operator.name.endswith("(block)"):
        f = operator.factor
        return torch.stack([x[..., i::f, j::f] for i in range(f) for j in range(f)]).mean(0)
    return reference(operator.outer, reference(operator.inner, x))


def unit_statistics(channels=3, height=8, width=12):
    """Mean ½, variance 1 in every basis, λ_max = 3e4."""
    statistics = DataStatistics(channels, height, width).double()
    statistics.mean.fill_(0.5)
    statistics.largest_eigenvalue.fill_(1000.0)
    return statistics


def test_forward_is_the_matrix(operator):
    x = rand(count(operator), *SHAPE)
    torch.testing.assert_close(operator(x), reference(operator, x), rtol=0, atol=1e-13)


def test_shapes(operator):
    m = operator(rand(2 if count(operator) == 1 else count(operator), *SHAPE))
    assert tuple(m.shape[1:]) == operator.measurement_shape(SHAPE)
    assert operator.image_shape(m.shape[1:]) == SHAPE
    assert operator.visualise(m).shape[1:] == SHAPE
    assert operator.adjoint(m).shape[1:] == SHAPE


def test_adjoint_and_dense_spectral_form(operator):
    """⟨Hx, m⟩ = ⟨x, Hᵀm⟩ for every pair of unit vectors, and HᵀH = Bᵀ diag(|h|²) B."""
    forward = matrix(operator, SHAPE)
    backward = matrix(operator.adjoint, operator.measurement_shape(SHAPE))
    torch.testing.assert_close(backward, forward.mT, rtol=0, atol=1e-14)
    basis = matrix(operator.basis.forward, SHAPE)
    gain2 = operator.response(SHAPE, basis).abs().square().expand(-1, *SHAPE).flatten(1)
    torch.testing.assert_close(forward.mT @ forward, basis.mT @ (gain2[:, :, None] * basis), rtol=0, atol=1e-13)


def test_polar_form(operator):
    """RᵀH = diag(|h|) B with RᵀR the projection on the measured coordinates: z_k = |h_k| (Bx)_k + σ ε_k with ε white."""
    forward = matrix(operator, SHAPE)
    rotation = matrix(operator.coordinates, operator.measurement_shape(SHAPE))
    basis = matrix(operator.basis.forward, SHAPE)
    gain = operator.response(SHAPE, basis).abs().expand(-1, *SHAPE).flatten(1)
    torch.testing.assert_close(rotation @ forward, gain[:, :, None] * basis, rtol=0, atol=1e-13)
    kept = operator.measured(SHAPE, basis).expand(len(rotation), *SHAPE).flatten(1).to(basis)
    torch.testing.assert_close(rotation @ rotation.mT, torch.diag_embed(kept), rtol=0, atol=1e-13)


def test_response_diagonalises_in_complex_frequencies():
    """F H x = h F x with the complex response, even kernels included."""
    x = rand(1, *SHAPE)
    for operator in (GaussianBlur(), OPERATORS["even kernel"], SuperResolution(4, form="fourier"), OPERATORS["cascade"]):
        torch.testing.assert_close(torch.fft.fft2(operator(x)), operator.response(SHAPE, x) * torch.fft.fft2(x), rtol=0, atol=1e-11)


def test_pseudo_inverse(operator):
    """H⁺ against the dense pseudo-inverse; the tolerance grows with the condition number."""
    forward = matrix(operator, SHAPE)
    m = operator(rand(count(operator), *SHAPE))
    wanted = torch.linalg.pinv(forward, rtol=1e-13) @ m.flatten(1)[:, :, None]
    gain = operator.response(SHAPE, m).abs()
    condition = float(1 / gain[gain > 1e-12].min())
    torch.testing.assert_close(operator.pseudo_inverse(m).flatten(1), wanted[..., 0], rtol=0, atol=1e-13 * max(1.0, condition))


def test_regularised_inverse_is_the_papers():
    """g = h*/(|h|² + ε): y = g m, λ = σ²|g|² and a Jacobian of Σ log |g|, where observed."""
    m, operator, epsilon, sigma = rand(1, *SHAPE), GaussianBlur(), 1e-6, 0.1
    h = operator.response(SHAPE, m)
    g = h.conj() / (h.abs().square() + epsilon)
    wanted = torch.fft.ifft2(torch.fft.fft2(m) * g).real
    torch.testing.assert_close(operator.pseudo_inverse(m, regularised=epsilon), wanted, rtol=0, atol=1e-10)
    plain, biased = (operator.observe(m, sigma, unit_statistics(), RANDOM.manual_seed(1), regularised=r) for r in (0.0, epsilon))
    seen = biased.observed
    difference = (operator.basis.forward(biased.y) - operator.basis.forward(wanted))[seen]
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-10)
    torch.testing.assert_close(biased.cov.values[seen], (sigma**2 * g.abs().square()).expand_as(wanted)[seen])
    jacobian = (g * h).abs().log().expand_as(wanted)[seen].sum()
    torch.testing.assert_close(biased.log_evidence_terms - plain.log_evidence_terms, jacobian[None], rtol=0, atol=1e-9)


def test_observation_is_the_image_plus_its_noise(operator):
    """With known v: B(y − x)/√λ on the observed coordinates is the rotated v itself, and λ = σ²/|h|²."""
    x, sigma = rand(count(operator), *SHAPE), 0.02
    clean = operator(x)
    v = torch.randn(clean.shape, dtype=torch.float64)
    seen = operator.observe(clean + sigma * v, sigma, unit_statistics())
    noise = operator.basis.forward(seen.y - x) / seen.cov.values.sqrt()
    torch.testing.assert_close(noise[seen.observed], operator.coordinates(v).expand_as(noise)[seen.observed], rtol=1e-7, atol=1e-7)
    gain = operator.response(SHAPE, x).abs().expand_as(seen.y)
    assert torch.equal(seen.observed, (gain > 0) & (sigma**2 <= 3e4 * gain**2))
    torch.testing.assert_close(seen.cov.values[seen.observed], sigma**2 / gain[seen.observed] ** 2)
    assert bool((seen.cov.values[~seen.observed] == 3e4).all())
    Covariance(seen.cov.values, seen.cov.basis)  # finite, positive, even
    assert bool(torch.isfinite(seen.log_evidence_terms).all()) and seen.log_evidence_terms.shape == (count(operator),)


@pytest.mark.parametrize("operator", [Inpainting.random((1, 32, 32), 0.9), SuperResolution(4)], ids=["mask", "blocks"])
def test_unobserved_coordinates_are_draws_of_prior_and_noise(operator):
    """(y_k − μ_k)/√(c_k + λ_max) standard normal: mean and variance within 4.5 standard errors (false alarm 1e-5)."""
    statistics = unit_statistics(1, 32, 32)
    m = operator(rand(8, 1, 32, 32))
    seen = operator.observe(m, 0.01, statistics, torch.Generator().manual_seed(0))
    mean = operator.basis.forward(torch.full((1, 1, 32, 32), 0.5, dtype=torch.float64))
    z = ((operator.basis.forward(seen.y) - mean) / math.sqrt(1 + 3e4))[~seen.observed]
    assert abs(float(z.mean())) < 4.5 / math.sqrt(len(z))
    assert abs(float(z.square().mean()) - 1) < 4.5 * math.sqrt(2 / len(z))


def test_random_numbers_of_an_image_do_not_depend_on_its_batch_mates():
    operator, statistics, m = Inpainting.centre_box(SHAPE, 4), unit_statistics(), rand(3, *SHAPE)
    together = operator.observe(m, 0.1, statistics, generators_for([5, 6, 7]))
    alone = operator.observe(m[1:2], 0.1, statistics, generators_for([6]))
    assert torch.equal(together[1:2].y, alone.y)
    assert torch.equal(together[1:2].cov.values, alone.cov.values)


def test_one_measurement_against_many_parameters():
    """P settings against one measurement are the P single answers, with the same random numbers in each."""
    stds, m, statistics = torch.tensor([0.4, 1.1, 3.0], dtype=torch.float64), rand(1, *SHAPE), unit_statistics()
    many = GaussianBlur(7, stds).observe(m, 0.05, statistics, torch.Generator().manual_seed(2))
    sigmas = Identity().observe(m, torch.tensor([0.1, 0.2]), statistics)
    assert many.y.shape == (3, *SHAPE) and sigmas.cov.shape == (2, *SHAPE)
    for i, std in enumerate(stds):
        one = GaussianBlur(7, std).observe(m, 0.05, statistics, torch.Generator().manual_seed(2))
        torch.testing.assert_close(many.y[i : i + 1], one.y)
        torch.testing.assert_close(many.log_evidence_terms[i : i + 1], one.log_evidence_terms)


def test_noise_map():
    """σ by pixel: λ = σ² for the identity, and a hidden pixel where σ² > λ_max; by block in block super-resolution."""
    statistics, x = unit_statistics(), rand(2, *SHAPE)
    sigma = torch.where(inside_box(SHAPE, 2, 3, 4, 5), 1e3, 0.1).double()
    seen = Identity().observe(x, sigma, statistics)
    assert torch.equal(seen.observed, (sigma < 1).expand(2, *SHAPE))
    torch.testing.assert_close(seen.cov.values[seen.observed], torch.full_like(seen.cov.values[seen.observed], 0.01))
    plain = Identity().observe(x, sigma[0, 0], statistics)
    assert sigma[0, 0].shape == SHAPE[1:] and torch.equal(plain.cov.values, seen.cov.values)
    blocks, sigma = SuperResolution(2), 0.01 + rand(2, 1, 4, 6)
    seen = blocks.observe(blocks(x), sigma, statistics)
    torch.testing.assert_close(seen.cov.values[..., ::2, ::2], (4 * sigma.square()).expand(2, 3, 4, 6))


def test_measure_adds_noise_of_the_stated_deviation():
    """Standard deviations within 4.5 standard errors (false alarm 1e-5); none at σ = 0 and none where nothing was measured."""
    x, operator = rand(4, 1, 64, 64), GaussianBlur()
    sigma = torch.tensor([0.0, 0.1, 0.2, 3.0])
    noise = operator.measure(x, sigma, torch.Generator().manual_seed(0)) - operator(x)
    assert bool((noise[0] == 0).all())
    ratio = noise[1:].flatten(1).std(1) / sigma[1:]
    assert bool(((ratio - 1).abs() < 4.5 / math.sqrt(2 * 64 * 64)).all())
    hidden = Inpainting.centre_box((64, 64), 20)
    assert bool((hidden.measure(x, 0.1)[..., 30, 30] == 0).all())
    measured = Inpainting(hidden.mask, hidden_measured=True)
    assert bool((measured.measure(x, 0.1)[..., 30, 30] != 0).all())


def test_sigma_zero_is_eight_bit_noise(operator):
    """σ = 0 is answered as σ² = 1/(12·256²), or as the floor asked for."""
    m = operator(rand(count(operator), *SHAPE))
    zero, least = (operator.observe(m, s, unit_statistics(), torch.Generator().manual_seed(0)) for s in (0.0, math.sqrt(VARIANCE_FLOOR)))
    torch.testing.assert_close(zero.cov.values, least.cov.values)
    torch.testing.assert_close(zero.log_evidence_terms, least.log_evidence_terms)
    tight = operator.observe(m, 0.0, unit_statistics(), floor=1e-10)
    assert float(tight.cov.values.min()) < 1e-8


def test_observation_gradients_match_finite_differences():
    """y, λ and the evidence terms are differentiable in the blur's width, σ, length and angle; unobserved coordinates give no NaN."""
    m, statistics = rand(1, *SHAPE), unit_statistics()
    statistics.largest_eigenvalue.fill_(1.0)
    weights = rand(2, *SHAPE)

    def blur(std, sigma):
        seen = GaussianBlur(7, std).observe(m, sigma, statistics, torch.Generator().manual_seed(0))
        assert bool((~seen.observed).any())
        return (weights * torch.cat([seen.y, seen.cov.values])).sum() + seen.log_evidence_terms.sum()

    def motion(length, angle):
        seen = MotionBlur(length, angle).observe(m, 0.5, statistics, torch.Generator().manual_seed(0))
        assert bool((~seen.observed).any())
        return (weights * torch.cat([seen.y, seen.cov.values])).sum() + seen.log_evidence_terms.sum()

    for function, arguments in ((blur, (1.37, 0.21)), (motion, (4.37, 33.0))):
        leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arguments]
        assert torch.autograd.gradcheck(function, leaves, eps=1e-7, rtol=1e-4, atol=1e-4)


def test_gradients_are_finite_where_the_response_vanishes(operator):
    """At zeros of h and at σ = 0 the gradients with respect to m and σ exist."""
    m = operator(rand(count(operator), *SHAPE)).requires_grad_()
    for value in (0.0, 0.1):
        sigma = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        seen = operator.observe(m, sigma, unit_statistics())
        total = seen.y.square().sum() + seen.cov.values.log().sum() + seen.log_evidence_terms.sum()
        for gradient in torch.autograd.grad(total, (m, sigma)):
            assert bool(torch.isfinite(gradient).all())


def test_float32_resolves_the_noise(operator):
    """In single precision y stays within a hundredth of the noise of its float64 value."""
    m = operator.measure(rand(count(operator), *SHAPE), 0.01)
    double = operator.observe(m, 0.01, unit_statistics())
    single = operator.observe(m.float(), 0.01, unit_statistics().float())
    assert single.y.dtype == torch.float32
    error = operator.basis.forward(single.y.double() - double.y) / double.cov.values.sqrt()
    both = single.observed & double.observed
    assert float(error[both].abs().max()) < 0.01


def test_kernels():
    """Normalised, non-negative, symmetric about their centre; the limits are no blur at all, or a shift by half a pixel."""
    for blur in (GaussianBlur(8, 0.8), GaussianBlur(5, 1e-4), MotionBlur(6.3, 25.0)):
        k = blur.kernel()
        torch.testing.assert_close(k.sum((-2, -1)), torch.ones(1, 1, dtype=k.dtype))
        torch.testing.assert_close(k, k.flip(-2, -1))
        assert bool((k >= 0).all())
    x = rand(1, *SHAPE)
    torch.testing.assert_close(GaussianBlur(5, 1e-4)(x), x)
    torch.testing.assert_close(MotionBlur(0.0, 12.0)(x), x)
    assert MotionBlur(4.0, 90.0).kernel().shape == (1, 1, 5, 1) and MotionBlur(4.0, 180.0).kernel().shape == (1, 1, 1, 5)
    rising = MotionBlur(4.0, 45.0).kernel()[0, 0]
    assert float(rising[0, -1] + rising[1, -2]) > 0.1 and float(rising[0, 0]) == 0.0  # rows count downwards: right is up


def test_a_motion_kernel_is_the_exact_average_whatever_its_batch():
    """Against a fine sum over time; the same alone and beside longer motions, to rounding; both derivatives exact."""
    lengths, angles = (torch.tensor(v, dtype=torch.float64) for v in ([2.0, 5.0, 9.7], [10.0, 100.0, 37.0]))
    batch = MotionBlur(lengths, angles).kernel()
    time = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 20_000 - 1
    for i, (length, angle) in enumerate(zip(lengths.tolist(), angles.tolist(), strict=True)):
        alone = MotionBlur(length, angle).kernel()
        grow = [(a - b) // 2 for a, b in zip(batch.shape[-2:], alone.shape[-2:], strict=True)]
        padded = torch.nn.functional.pad(alone[0, 0], (grow[1], grow[1], grow[0], grow[0]))
        torch.testing.assert_close(padded, batch[i, 0], rtol=0, atol=1e-15)  # sines of a batch differ by the last bit on some processors
        ends = (-0.5 * length * math.sin(math.radians(angle)), 0.5 * length * math.cos(math.radians(angle)))
        places = [torch.arange(-(n // 2), n // 2 + 1)[:, None] for n in alone.shape[-2:]]
        rows, columns = ((1 - (at - end * time).abs()).clamp_min(0) for at, end in zip(places, ends, strict=True))
        torch.testing.assert_close(alone[0, 0], rows @ columns.T / len(time), rtol=0, atol=1e-8)
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (4.37, 33.0)]
    weights = rand(5, 5)
    assert torch.autograd.gradgradcheck(lambda length, angle: (weights * MotionBlur(length, angle).kernel()).sum(), leaves)


def test_gaussian_kernel_is_the_sampled_gaussian():
    i = torch.arange(8, dtype=torch.float64) - 3.5
    k = torch.exp(-(i[:, None].square() + i[None, :].square()) / (2 * 0.8**2))
    torch.testing.assert_close(GaussianBlur().kernel()[0, 0], k / k.sum())


def test_masks():
    seen = Inpainting.random((28, 28), missing=1 - 40 / 784, seed=[1, 2])
    assert seen.mask.flatten(1).sum(1).tolist() == [40, 40] and not torch.equal(seen.mask[0], seen.mask[1])
    assert torch.equal(seen.mask[1:], Inpainting.random((28, 28), missing=1 - 40 / 784, seed=2).mask)
    for side in ("left", "right", "top", "bottom"):
        assert int((~Inpainting.half((6, 9), side).mask).sum()) == {"left": 24, "right": 24, "top": 27, "bottom": 27}[side]
    assert not Inpainting.half((6, 9), "top").mask[0, 0, :3].any()
    hidden = ~Inpainting.horizontal((9, 4), 3).mask[0, 0]
    assert hidden.all(1).tolist() == [False] * 3 + [True] * 3 + [False] * 3
    picture = Inpainting.centre_box(SHAPE, 4).visualise(torch.zeros(1, *SHAPE))
    assert int((picture == 0.5).sum()) == 3 * 16


def test_products_that_stay_diagonal():
    x = rand(1, *SHAPE)
    mask, blur = Inpainting.centre_box(SHAPE, 4), GaussianBlur(4, 0.7)
    half = Inpainting.half(SHAPE)
    assert torch.equal((mask @ half)(x), mask(half(x)))
    assert blur @ Identity() is blur and Identity() @ mask is mask
    for outer, inner in ((mask, blur), (blur, mask), (SuperResolution(2), blur), (SuperResolution(2), SuperResolution(2))):
        with pytest.raises(ValueError, match="one basis makes diagonal"):
            outer @ inner


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24)], ids=str)
def test_every_task_restores_an_image_shape(task, shape):
    operator, x = make_operator(task, shape), rand(2, *shape)
    seen = operator.observe(operator.measure(x, 0.05), 0.05, unit_statistics(*shape))
    assert seen.y.shape == x.shape and bool(torch.isfinite(seen.y).all())


def test_task_settings():
    assert int((~make_operator("inpaint-box", (28, 28), box=8).mask).sum()) == 64
    assert int(make_operator("inpaint-random", (10, 10), missing=0.9, seed=4).mask.sum()) == 10
    assert make_operator("deblur", (28, 28), kernel_size=5, std=2.0).size == (5, 5)
    with pytest.raises(ValueError, match="missing: goes with inpaint-random, not inpaint-box"):
        make_operator("inpaint-box", (28, 28), missing=0.9)
    with pytest.raises(ValueError, match="task: wanted one of denoise, .* got 'unblur'"):
        make_operator("unblur", (28, 28))
    with pytest.raises(ValueError, match="multiples of 4"):
        make_operator("sr4", (30, 28))


STATISTICS = unit_statistics()
IMAGE = torch.zeros(2, *SHAPE)
REFUSED = {
    "kernel wider than the image": (lambda: GaussianBlur(9)(IMAGE), "no larger than the image, 8 x 12, got 9 x 9"),
    "mask of another size": (lambda: Inpainting(torch.ones(8, 8))(IMAGE), "image's size 8 x 12, got a mask of 8 x 8"),
    "mask of another depth": (lambda: Inpainting(torch.ones(2, 8, 12))(IMAGE), "wanted 2 channels, the operator's, got 3"),
    "negative mask": (lambda: Inpainting(-torch.ones(8, 12)), r"mask: wanted values from 0 \(hidden\) to 1 \(seen\), got -1 to -1"),
    "mask of bytes": (lambda: Inpainting(torch.full((8, 12), 255, dtype=torch.uint8)), r"mask: wanted values from 0 .* got 255 to 255"),
    "mask of NaN": (lambda: Inpainting(torch.full((8, 12), torch.nan)), "mask: wanted values from 0"),
    "mask of PIL": (lambda: Inpainting(Image.new("L", (12, 8))), "mask: wanted a tensor or an array, got Image"),
    "no batch": (lambda: Identity()(IMAGE[0]), r"x: wanted shape \(B, C, H, W\), got \(3, 8, 12\)"),
    "measurement without batch": (lambda: Identity().observe(IMAGE[0], 0.1, STATISTICS), r"measurement: wanted shape \(B, C, H, W\)"),
    "measurement of another size": (lambda: make_operator("inpaint-box", SHAPE).observe(IMAGE[..., 1:], 0.1, STATISTICS), "got a mask"),
    "NaN": (lambda: Identity().observe(IMAGE * torch.nan, 0.1, STATISTICS), "measurement: wanted finite"),
    "channels of the statistics": (lambda: Identity().observe(IMAGE[:, :1], 0.1, STATISTICS), r"statistics: wanted 1 channel\(s\).*got 3"),
    "sides not multiples": (lambda: SuperResolution(3)(IMAGE), "multiples of 3, got 8 x 12"),
    "factor": (lambda: SuperResolution(1), "factor: wanted an integer >= 2, got 1"),
    "form": (lambda: SuperResolution(2, form="dct"), "form: wanted 'block' or 'fourier', got 'dct'"),
    "negative sigma": (
        lambda: Identity().observe(IMAGE, -0.1, STATISTICS),
        "sigma: wanted finite standard deviations >= 0, got values from -0.1",
    ),
    "NaN sigma": (lambda: GaussianBlur().measure(IMAGE, float("nan")), "sigma: wanted finite"),
    "noise map with blur": (lambda: GaussianBlur().observe(IMAGE, torch.ones(1, 1, 8, 12), STATISTICS), "no basis makes both diagonal"),
    "map of another size": (lambda: Identity().observe(IMAGE, torch.ones(1, 1, 8, 8), STATISTICS), "sigma: wanted .* got shape"),
    "sigma batch": (lambda: Identity().measure(IMAGE, torch.ones(3)), r"one batch size \(or 1\).*got \[2, 3\]"),
    "operator batch": (lambda: GaussianBlur(3, torch.ones(3))(IMAGE), "wanted a batch of 3 .* got 2"),
    "std": (lambda: GaussianBlur(3, 0.0), "std: wanted a finite number > 0"),
    "length": (lambda: MotionBlur(-1.0, 0.0), "length: wanted a distance >= 0 in pixels, got -1.0"),
    "kernel": (lambda: KernelBlur(torch.tensor([[1.0, torch.inf]])), "kernel: wanted finite"),
    "kernel shape": (lambda: KernelBlur(torch.ones(3)), "kernel: wanted shape"),
    "box outside": (lambda: Inpainting.centre_box(SHAPE, 9), "box: wanted a rectangle inside 8 x 12"),
    "half": (lambda: Inpainting.half(SHAPE, "up"), "side: wanted one of left, right, top, bottom, got 'up'"),
    "fraction": (lambda: Inpainting.random(SHAPE, 80), "missing: wanted a fraction between 0 and 1, got 80"),
    "map (H, W) of another size": (lambda: Identity().measure(IMAGE, torch.ones(8, 8)), "sigma: wanted .* got shape"),
    "map (H, W) with blur": (lambda: GaussianBlur().measure(IMAGE, torch.ones(8, 12)), "no basis makes both diagonal"),
    "no sigma": (lambda: Identity().measure(IMAGE, torch.ones(0)), r"sigma: wanted at least one number, got an empty tensor"),
    "no image": (lambda: Identity()(IMAGE[:0]), r"x: wanted at least one image .* got shape \(0, 3, 8, 12\)"),
    "no measurement": (lambda: Identity().observe(IMAGE[..., :0], 0.1, STATISTICS), "measurement: wanted at least one image"),
    "half a kernel side": (lambda: GaussianBlur(2.5), "size: wanted a whole kernel side >= 1 or two of them, got 2.5"),
    "three sides": (lambda: GaussianBlur((3, 3, 3)), r"size: wanted .* got \(3, 3, 3\)"),
    "floor": (lambda: Identity().observe(IMAGE, 0.1, STATISTICS, floor=0.0), "wanted floor > 0"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("operator", [Identity(), GaussianBlur(3, 0.8), SuperResolution(2)], ids=lambda o: o.name)
def test_integers_are_no_intensities(operator):
    with pytest.raises(ValueError, match="x: wanted a tensor of floats, got torch.uint8"):
        operator.measure(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0.1)


def test_a_kernel_of_nothing_is_refused():
    with pytest.raises(ValueError, match="kernel: wanted finite floating-point values, at least one"):
        KernelBlur(torch.ones(0, 3))
