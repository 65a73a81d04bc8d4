"""Images of every kind come in as intensities and go back as what they were."""

import numpy as np
import pytest
import torch
from PIL import Image

from anem.files import replacing
from anem.images import from_integers, from_tensor, read_array, read_image, read_mask, save_image, to_integers, to_tensor
from anem.random import generators_for

BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_every_integer_survives_any_dequantisation(dtype):
    levels = {torch.uint8: 2**8, torch.uint16: 2**16}[dtype]
    v = torch.arange(levels).to(dtype).expand(40, -1)
    for source in (None, torch.Generator().manual_seed(0)):
        x = from_integers(v, source)
        assert x.dtype == torch.float32 and x.min() >= 0 and x.max() < 1
        assert torch.equal(to_integers(x, dtype), v)


def test_rounding_up_to_the_next_integer_is_prevented(monkeypatch):
    nearly_one = float(np.nextafter(np.float32(1), np.float32(0)))
    monkeypatch.setattr("anem.images.uniform", lambda shape, generators, like: torch.full(shape, nearly_one))
    v = torch.arange(256, dtype=torch.uint8)[None]
    assert (v.float() + nearly_one).eq(v.float() + 1).any()  # float32 does round up
    assert torch.equal(to_integers(from_integers(v, torch.Generator())), v)


def test_dequantisation_is_uniform_on_the_step():
    """Kolmogorov-Smirnov at a false-alarm rate of about 1e-6: sup |F_n − F| < √(ln(2e6)/2n)."""
    n = 100_000
    u = from_integers(torch.full((n, 1), 100, dtype=torch.uint8), torch.Generator().manual_seed(1)).double().flatten() * 256 - 100
    distance = (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < (np.log(2e6) / (2 * n)) ** 0.5
    assert torch.equal(from_integers(torch.tensor([[100]], dtype=torch.uint8)), torch.tensor([[100.5 / 256]]))


def test_one_generator_an_image_makes_batch_mates_irrelevant():
    v = torch.from_numpy(COLOUR.copy()).permute(2, 0, 1).expand(3, 3, 5, 7)
    together = from_integers(v, generators_for([5, 6, 7]))
    assert torch.equal(together[1:2], from_integers(v[1:2], generators_for([6])))


def test_writing_clips_and_refuses_what_is_not_finite():
    assert to_integers(torch.tensor([-0.2, 0.0, 1.0, 7.0])).tolist() == [0, 0, 255, 255]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            to_integers(torch.tensor([0.5, bad]))
    with pytest.raises(ValueError, match="uint8"):
        to_integers(torch.zeros(1), torch.int64)
    with pytest.raises(ValueError, match="uint8"):
        from_integers(torch.zeros(1, dtype=torch.int32))


KINDS = {
    "PIL grey": (1, Image.fromarray(BYTES)),
    "PIL colour": (3, Image.fromarray(COLOUR)),
    "PIL 16-bit": (1, Image.fromarray(BYTES.astype(np.uint16) * 257)),
    "list of PIL": (3, [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]),
    "array HW": (1, BYTES),
    "array HW1": (1, BYTES[..., None]),
    "array BHW": (1, np.stack([BYTES, BYTES.T, BYTES])),
    "array HWC": (3, COLOUR),
    "array BHWC": (3, COLOUR[None]),
    "array 16-bit": (1, BYTES.astype(np.uint16) * 257),
    "array big-endian": (1, (BYTES.astype(np.uint16) * 257).astype(">u2")),
    "array float64": (3, COLOUR / 255),
    "array float16": (1, (BYTES / 255).astype(np.float16)),
    "list of arrays": (1, [BYTES, BYTES.T]),
    "tensor HW": (1, torch.from_numpy(BYTES.copy())),
    "tensor CHW": (3, torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))),
    "tensor BCHW": (1, torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)),
    "tensor of four channels": (4, torch.full((2, 4, 3, 3), 7, dtype=torch.uint8)),
}


def same(a, b) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(same(i, j) for i, j in zip(a, b, strict=True))
    if isinstance(a, Image.Image):
        return a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return isinstance(b, np.ndarray) and a.dtype.newbyteorder("=") == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("name", KINDS)
def test_round_trip_returns_the_same_kind_and_values(name):
    channels, images = KINDS[name]
    x, kind = to_tensor(images, channels, torch.Generator().manual_seed(0))
    assert x.ndim == 4 and x.shape[1] == channels
    assert x.dtype == (torch.float64 if name == "tensor BCHW" else torch.float32)
    assert same(images, from_tensor(x, kind)) or name == "array float64"
    back = from_tensor(x, kind)
    if name == "array float64":  # the model works in float32
        assert back.dtype == np.float64 and np.allclose(back, images, atol=1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_samples_keep_their_axis(name):
    channels, images = KINDS[name]
    x, kind = to_tensor(images, channels)
    one, samples = from_tensor(x, kind), from_tensor(x.expand(2, *x.shape), kind)
    assert len(samples) == 2 and same(one, samples[0]) and same(one, samples[1])
    if not isinstance(samples, list):
        assert samples.shape == (2, *one.shape)


def test_layout_of_axes():
    assert to_tensor(COLOUR, 3)[0].shape == (1, 3, 5, 7)
    assert torch.equal(to_tensor(COLOUR, 3)[0][0, 1], from_integers(torch.from_numpy(COLOUR[None, :, :, 1].copy()))[0])
    assert to_tensor(np.zeros((2, 28, 28)), 1)[0].shape == (2, 1, 28, 28)
    assert to_tensor(Image.fromarray(COLOUR), 1)[0].shape == (1, 1, 5, 7)


@pytest.mark.parametrize(
    ("images", "channels", "message"),
    [
        (COLOUR, 1, r"wanted 1 channel.*\(5, 7, 3\)"),
        (BYTES, 3, r"wanted 3 channel"),
        (np.zeros((3, 8, 8), np.uint8), 3, r"wanted 3 channel"),
        (torch.zeros(3, 8, 8), 1, r"wanted 1 channel"),
        (np.zeros((1, 2, 8, 8, 1)), 1, r"2 to 4 axes"),
        (np.zeros((8, 8), np.int64), 1, r"got int64"),
        (np.zeros((8, 8), bool), 1, r"got bool"),
        (torch.zeros(8, 8, dtype=torch.int32), 1, r"got torch.int32"),
        (np.full((8, 8), np.nan), 1, r"NaN"),
        (torch.full((1, 8, 8), float("inf")), 1, r"infinity"),
        (BYTES.astype(float), 1, r"\[0, 1\], got 0 to 255"),
        (torch.full((1, 8, 8), -0.1), 1, r"\[0, 1\]"),
        ("digit.png", 1, r"got str"),
        ([], 1, r"empty"),
        ([BYTES, BYTES[:8]], 1, r"one kind and size"),
        ([BYTES, BYTES / 255.0], 1, r"one kind and size"),
        (np.zeros((0, 8, 8), np.uint8), 1, r"shape \(0, 8, 8\)"),
    ],
)
def test_wrong_images_are_named_in_one_line(images, channels, message):
    with pytest.raises(ValueError, match=message) as error:
        to_tensor(images, channels)
    assert "\n" not in str(error.value)


def test_measurements_need_not_be_bounded():
    m = np.array([[-0.4, 1.7]])
    x, kind = to_tensor(m, 1, bounded=False)
    assert np.allclose(from_tensor(x, kind), m)
    with pytest.raises(ValueError, match="finite"):
        to_tensor(np.array([[np.nan, 0.0]]), 1, bounded=False)


def test_a_batch_does_not_fit_the_kind_of_one_image():
    _, kind = to_tensor(BYTES, 1)
    with pytest.raises(ValueError, match=r"\(…, 1, C, H, W\), got \(2, 1, 4, 4\)"):
        from_tensor(torch.zeros(2, 1, 4, 4), kind)


def test_read_only_arrays_are_left_alone():
    frozen = (BYTES / 256).astype(np.float32)
    frozen.flags.writeable = False
    x, _ = to_tensor(frozen, 1)
    x.zero_()
    assert frozen[15, 15] > 0.9


# --- files ---


def test_file_modes(tmp_path):
    grey = Image.fromarray(BYTES)
    palette = Image.fromarray(COLOUR).quantize(16)
    cases = {
        "grey.png": (grey, None, BYTES[..., None]),
        "grey3.png": (grey, 3, np.repeat(BYTES[..., None], 3, 2)),
        "rgb.png": (Image.fromarray(COLOUR), None, COLOUR),
        "luminance.png": (Image.fromarray(COLOUR), 1, np.asarray(Image.fromarray(COLOUR).convert("L"))[..., None]),
        "palette.png": (palette, None, np.asarray(palette.convert("RGB"))),
        "bits.png": (Image.fromarray(BYTES > 100), None, np.where(BYTES > 100, 255, 0).astype(np.uint8)[..., None]),
        "deep.png": (Image.fromarray(BYTES.astype(np.uint16) * 257), None, (BYTES.astype(np.uint16) * 257)[..., None]),
        "deep.tif": (Image.fromarray(BYTES.astype(np.uint16) * 257), 3, np.repeat((BYTES.astype(np.uint16) * 257)[..., None], 3, 2)),
        "cmyk.tif": (Image.fromarray(COLOUR).convert("CMYK"), 3, COLOUR),
    }
    for name, (image, channels, wanted) in cases.items():
        image.save(tmp_path / name)
        got = read_array(tmp_path / name, channels)
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted), name
    x = read_image(tmp_path / "rgb.png")
    assert x.shape == (1, 3, 5, 7) and torch.equal(to_integers(x)[0].permute(1, 2, 0), torch.from_numpy(COLOUR.copy()))


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_alpha_is_composited_on_the_background(tmp_path, background):
    rgba = np.dstack([COLOUR, np.full((5, 7), 255, np.uint8)])
    rgba[0, :, 3], rgba[1, :, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = read_array(tmp_path / "a.png", background=background).astype(float)
    alpha = rgba[..., 3:] / 255
    assert np.abs(got - (alpha * COLOUR + (1 - alpha) * 255 * background)).max() <= 1
    la = Image.merge("LA", (Image.fromarray(BYTES), Image.new("L", (16, 16), 0)))
    la.save(tmp_path / "la.png")
    assert np.array_equal(read_array(tmp_path / "la.png", background=background), np.full((16, 16, 1), 255 * background, np.uint8))
    grey = Image.fromarray(BYTES)
    grey.save(tmp_path / "key.png", transparency=200)
    assert read_array(tmp_path / "key.png", background=background)[12, 8, 0] == 255 * background


def test_orientation_of_the_camera_is_applied(tmp_path):
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_array(tmp_path / "turned.png"), np.rot90(COLOUR, -1))


def test_unreadable_files_are_named_in_one_line(tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    bad = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": whole[: len(whole) // 2],
        "flipped.png": whole[:300] + b"\xff" * 40 + whole[340:],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a readable image") as error:
            read_array(tmp_path / name)
        assert "\n" not in str(error.value)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif.*no defined range"):
        read_array(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="missing.png: no such file"):
        read_array(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="not a readable image"):
        read_array(tmp_path)
    with pytest.raises(ValueError, match="wanted 1 or 3"):
        read_array(tmp_path / "whole.png", channels=2)


def test_masks(tmp_path):
    for dtype, half in ((np.uint8, 128), (np.uint16, 32768)):
        array = np.array([[0, half - 1], [half, np.iinfo(dtype).max]], dtype)
        Image.fromarray(array).save(tmp_path / "m.png")
        mask = read_mask(tmp_path / "m.png")
        assert mask.dtype == torch.bool and mask.tolist() == [[[[False, False], [True, True]]]]


def test_saved_images_read_back_and_failures_leave_nothing(tmp_path):
    x = from_integers(torch.from_numpy(COLOUR.copy()).permute(2, 0, 1)[None])
    save_image(x, tmp_path / "x.png")
    assert np.array_equal(read_array(tmp_path / "x.png"), COLOUR)
    save_image(x[0, :1], tmp_path / "deep.png", torch.uint16)
    assert read_array(tmp_path / "deep.png").dtype == np.uint16
    before = (tmp_path / "x.png").read_bytes()
    for bad in (torch.full((1, 4, 4), float("nan")), torch.zeros(2, 4, 4), torch.zeros(2, 3, 4, 4)):
        with pytest.raises(ValueError):
            save_image(bad, tmp_path / "x.png")
    with pytest.raises(RuntimeError), replacing(tmp_path / "x.png") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "x.png").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep.png", "x.png"]
