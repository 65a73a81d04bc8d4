"""Data sets: every source gives the same integers, batches are dequantised afresh, the order is a function of the step."""

import gzip
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anem.data import MNIST_SPLITS, DataConfig, ImageData, StreamedData, load_dataset, mnist
from anem.data.readers import read_idx
from anem.images import from_integers, to_integers
from anem.random import generators_for

GREY = np.random.default_rng(0).integers(0, 256, (7, 6, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(7, dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_folder(folder, images) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")


@pytest.fixture(params=["npz", "npy", "idx", "idx folder", "folder"])
def grey_source(request, tmp_path) -> str:
    if request.param == "npz":
        np.savez_compressed(tmp_path / "a.npz", x_train=GREY, y_train=LABELS, x_test=GREY[:2])
        return str(tmp_path / "a.npz")
    if request.param == "npy":
        np.save(tmp_path / "a.npy", GREY)
        return str(tmp_path / "a.npy")
    if request.param.startswith("idx"):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(GREY)))
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS)))
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(GREY[:2]))
        return str(tmp_path if request.param == "idx folder" else tmp_path / "train-images-idx3-ubyte.gz")
    write_folder(tmp_path / "f" / "deeper", GREY)
    (tmp_path / "f" / "notes.txt").write_text("not an image")
    return str(tmp_path / "f")


def test_every_source_gives_the_same_images(grey_source):
    data = load_dataset(DataConfig(grey_source))
    assert len(data) == 7 and data.shape == (1, 6, 5) and data.images.dtype == torch.uint8
    assert np.array_equal(data.images[:, 0].numpy(), GREY)
    if data.labels is not None:
        assert data.labels.tolist() == LABELS.tolist()
    some = load_dataset(DataConfig(grey_source, start=2, stop=5))
    assert np.array_equal(some.images[:, 0].numpy(), GREY[2:5])
    assert some.labels is None or some.labels.tolist() == [2, 3, 4]


@pytest.mark.parametrize("stop", [8, 100])
def test_a_range_beyond_the_end_is_refused(grey_source, stop):
    with pytest.raises(ValueError, match=f"wanted images 0 to {stop}, there are 7"):
        load_dataset(DataConfig(grey_source, stop=stop))
    with pytest.raises(ValueError, match="there are 7"):
        load_dataset(DataConfig(grey_source, start=7))


def test_labels_travel_with_npz_and_idx(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GREY, y_train=LABELS, other=COLOUR)
    assert load_dataset(DataConfig(str(tmp_path / "a.npz"))).labels.tolist() == LABELS.tolist()
    other = load_dataset(DataConfig(str(tmp_path / "a.npz"), part="other"))
    assert other.labels is None and other.shape == (3, 6, 5)
    with pytest.raises(ValueError, match="wanted an array x_test or test, got x_train, y_train, other"):
        load_dataset(DataConfig(str(tmp_path / "a.npz"), part="test"))
    (tmp_path / "i-images-idx3-ubyte").write_bytes(idx_bytes(GREY))
    (tmp_path / "i-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    assert load_dataset(DataConfig(str(tmp_path / "i-images-idx3-ubyte"))).labels.tolist() == LABELS.tolist()
    (tmp_path / "images").mkdir()  # a folder of that name is not the name of the labels
    for name in ("i-images-idx3-ubyte", "i-labels-idx1-ubyte"):
        (tmp_path / name).rename(tmp_path / "images" / name)
    assert load_dataset(DataConfig(str(tmp_path / "images" / "i-images-idx3-ubyte"))).labels.tolist() == LABELS.tolist()
    (tmp_path / "images" / "i-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:2]))
    with pytest.raises(ValueError, match=f"i-labels-idx1-ubyte: wanted a label for each of {len(LABELS)} images, got 2"):
        load_dataset(DataConfig(str(tmp_path / "images" / "i-images-idx3-ubyte")))


def test_parts_of_mnist(tmp_path):
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(GREY[:2]))
    assert len(load_dataset(DataConfig(str(tmp_path), part="test"))) == 2
    with pytest.raises(ValueError, match="no IDX images of the part 'train'"):
        load_dataset(DataConfig(str(tmp_path), kind="idx"))
    train, validation, report, tuning, comparison = (MNIST_SPLITS[k] for k in ("train", "validation", "report", "tuning", "comparison"))
    assert (train, validation) == (("train", 0, 55_000), ("train", 55_000, 60_000))
    assert (report, tuning, comparison) == (("test", 0, 1000), ("test", 1000, 2000), ("test", 2000, 10_000))
    assert mnist("tuning", "x.npz") == DataConfig("x.npz", part="test", start=1000, stop=2000)
    with pytest.raises(ValueError, match="wanted one of train, .*got 'all'"):
        mnist("all")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_colour_arrays_in_both_layouts(tmp_path, layout):
    array = np.repeat(np.repeat(COLOUR, 2, 1), 2, 2)
    np.save(tmp_path / "c.npy", array if layout == "NHWC" else array.transpose(0, 3, 1, 2))
    data = load_dataset(DataConfig(str(tmp_path / "c.npy"), channels=3))
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), array)
    with pytest.raises(ValueError, match=r"wanted 1 channel\(s\), got 3"):
        load_dataset(DataConfig(str(tmp_path / "c.npy"), channels=1))


def test_memory_mapped_arrays_are_not_written(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    data = load_dataset(DataConfig(str(tmp_path / "a.npy")))
    data.images[0] = 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), GREY)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", "<f8"])
def test_sixteen_bits_and_floats(tmp_path, dtype):
    array = GREY.astype(dtype) * 257 if "u" in dtype else (GREY / 255).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load_dataset(DataConfig(str(tmp_path / "a.npy")))
    x = data.batch(torch.arange(7), torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    if "u" in dtype:
        assert np.array_equal(to_integers(x, torch.uint16)[:, 0].numpy(), array.astype(np.uint16))
    else:
        assert np.allclose(x[:, 0].numpy(), array, atol=1e-7)


# --- batches and their order ---


def test_batches_are_dequantised_afresh_and_reproducibly():
    data = ImageData(torch.from_numpy(GREY[:, None].copy()))
    indices = torch.tensor([5, 0, 0])
    generator = torch.Generator().manual_seed(3)
    first, second = data.batch(indices, generator), data.batch(indices, generator)
    assert first.shape == (3, 1, 6, 5) and not torch.equal(first, second) and not torch.equal(first[1], first[2])
    assert torch.equal(first, data.batch(indices, torch.Generator().manual_seed(3)))
    for x in (first, second, data.batch(indices)):
        assert torch.equal(to_integers(x), data.images[indices])
    assert torch.equal(data.batch(indices), from_integers(data.images[indices]))
    each = data.batch(indices, generators_for([1, 2, 3]))
    assert torch.equal(each[2:], data.batch(indices[2:], generators_for([3])))


@pytest.mark.parametrize(("count", "size"), [(7, 3), (7, 7), (5, 12), (1, 2)])
def test_steps_cut_up_a_row_of_permutations(count, size):
    data = ImageData(torch.zeros(count, 1, 2, 2, dtype=torch.uint8))
    steps = torch.cat([data.indices(s * size, size, seed=4) for s in range(6 * count)])
    epochs = steps.view(-1, count)
    assert torch.equal(epochs.sort(1).values, torch.arange(count).expand(len(epochs), -1))
    fresh = ImageData(torch.zeros(count, 1, 2, 2, dtype=torch.uint8))
    for s in (2 * count, 0, 5):  # any step alone, in any order
        assert torch.equal(fresh.indices(s * size, size, seed=4), steps[s * size : (s + 1) * size])


def test_epochs_and_seeds_differ():
    data = ImageData(torch.zeros(1000, 1, 2, 2, dtype=torch.uint8))
    orders = [data.indices(first, 1000, seed) for first, seed in ((0, 0), (1000, 0), (0, 1), (1000, 1))]
    assert all((a != b).float().mean() > 0.9 for i, a in enumerate(orders) for b in orders[:i])


# --- folders ---


def test_corrupt_files_are_named_counted_and_skipped(tmp_path):
    write_folder(tmp_path, GREY)
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:60])
    (tmp_path / "004.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"skipped 2 of 7 files as unreadable: 001.png, 004.png"):
        data = load_dataset(DataConfig(str(tmp_path)))
    assert np.array_equal(data.images[:, 0].numpy(), GREY[[0, 2, 3, 5, 6]])
    assert [name for name, _ in data.skipped] == ["001.png", "004.png"] and "not a readable image" in data.skipped[0][1]
    with pytest.warns(UserWarning, match="skipped 1 of 2"):
        assert np.array_equal(load_dataset(DataConfig(str(tmp_path), start=4, stop=6)).images[:, 0].numpy(), GREY[5:6])
    with pytest.raises(ValueError, match="001.png: not a readable image"):
        load_dataset(DataConfig(str(tmp_path), strict=True))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of 1 image"):
        load_dataset(DataConfig(str(tmp_path), start=1, stop=2))


def test_files_that_do_not_agree_are_named(tmp_path):
    write_folder(tmp_path, [*GREY[:2], GREY[2, :4]])
    with pytest.raises(ValueError, match=r"002.png: \(\(1, 4, 5\).*differs from \(\(1, 6, 5\)"):
        load_dataset(DataConfig(str(tmp_path)))
    write_folder(tmp_path, [*GREY[:2], COLOUR[0]])
    with pytest.raises(ValueError, match="002.png"):
        load_dataset(DataConfig(str(tmp_path)))
    assert load_dataset(DataConfig(str(tmp_path), channels=1)).shape == (1, 6, 5)
    assert load_dataset(DataConfig(str(tmp_path), channels=3)).shape == (3, 6, 5)


def test_crop_takes_the_centre_and_exact_refuses(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    path = str(tmp_path / "a.npy")
    assert np.array_equal(load_dataset(DataConfig(path, size=(4, 3), fit="crop")).images[:, 0].numpy(), GREY[:, 1:5, 1:4])
    with pytest.raises(ValueError, match="wanted 4 x 3 pixels, got 6 x 5; set fit"):
        load_dataset(DataConfig(path, size=(4, 3)))
    with pytest.raises(ValueError, match="6 x 5 pixels are too few to crop 8 x 3"):
        load_dataset(DataConfig(path, size=(8, 3), fit="crop"))


def test_resize_covers_and_keeps_what_is_linear(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, None], (60, 90))
    np.save(tmp_path / "a.npy", np.stack([ramp, np.full((60, 90), 77, np.uint8)]))
    data = load_dataset(DataConfig(str(tmp_path / "a.npy"), size=(20, 20), fit="resize"))
    assert data.images.shape == (2, 1, 20, 20) and data.images.dtype == torch.uint8
    assert (data.images[1] == 77).all()
    assert (data.images[0, 0, 2:-2, 3].int() - torch.arange(4, 240, 12)[2:-2]).abs().max() <= 1
    grown = load_dataset(DataConfig(str(tmp_path / "a.npy"), size=(90, 90), fit="resize"))
    assert grown.shape == (1, 90, 90)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": -1}, "start"),
        ({"start": 3, "stop": 3}, "start < stop, got start 3, stop 3"),
        ({"size": (0, 4), "fit": "crop"}, "positive"),
        ({"channels": 2}, "wanted 1, 3 or none, got 2"),
        ({"fit": "crop"}, "needs a size"),
        ({"path": "absent"}, "no such file or folder: absent"),
    ],
)
def test_configurations_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(DataConfig(**changes))


def test_files_that_are_not_what_they_seem(tmp_path):
    whole = idx_bytes(GREY)
    cases = {
        "a.npz": b"PK\3\4 not a zip",
        "b.npy": b"hello",
        "c-images-idx3-ubyte": whole[:-3],
        "d-images-idx3-ubyte": b"\0\0\x0d\x03" + whole[4:],
        "e-images-idx3-ubyte.gz": gzip.compress(whole)[:-30],
        "f.mat": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            load_dataset(DataConfig(str(tmp_path / name)))
        assert "\n" not in str(error.value)
    for name, array in {"g.npy": GREY.astype(int), "h.npy": GREY[0], "i.npy": GREY / 3.0, "j.npy": np.full((2, 9, 9), np.nan)}.items():
        np.save(tmp_path / name, array)
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            load_dataset(DataConfig(str(tmp_path / name)))
    np.savez(tmp_path / "k.npz", x_train=np.array([None]))
    with pytest.raises(ValueError, match="k.npz"):
        load_dataset(DataConfig(str(tmp_path / "k.npz")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there are 0"):
        load_dataset(DataConfig(str(tmp_path / "empty")))


def test_idx_files_of_any_rank(tmp_path):
    for array in (LABELS, GREY, COLOUR):
        (tmp_path / "x").write_bytes(idx_bytes(array))
        assert np.array_equal(read_idx(tmp_path / "x"), array)


# --- streams ---


class FakeStream:
    """What is used of an iterable Hugging Face data set, counting the rows it gave."""

    def __init__(self, rows, counter):
        self.rows, self.counter = rows, counter

    def skip(self, n):
        return FakeStream(self.rows[n:], self.counter)

    def take(self, n):
        return FakeStream(self.rows[:n], self.counter)

    def __iter__(self):
        for row in self.rows:
            self.counter.append(1)
            yield row


@pytest.fixture
def hub(monkeypatch):
    """A ``datasets`` package that knows one data set; gives the list that counts its rows."""
    counter: list[int] = []
    rows = [{"image": Image.fromarray(image), "label": i} for i, image in enumerate(GREY)]

    def load(path, split, streaming):
        assert (path, split, streaming) == ("someone/digits", "train", True)
        return FakeStream(rows, counter)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    return counter


def hub_config(**changes) -> DataConfig:
    return DataConfig("someone/digits", kind="huggingface", **changes)


def test_a_stream_is_read_forwards_once_an_epoch(hub):
    data = load_dataset(hub_config(start=1, stop=6))
    assert isinstance(data, StreamedData) and len(data) == 5
    for step in range(5):  # 15 images, three epochs
        indices = data.indices(3 * step, 3, seed=0)
        assert np.array_equal(to_integers(data.batch(indices, torch.Generator()))[:, 0].numpy(), GREY[1 + indices.numpy()])
    assert len(hub) == 15
    again = load_dataset(hub_config(start=1, stop=6))
    assert torch.equal(again.batch(again.indices(12, 3, seed=0)), data.batch(data.indices(12, 3, seed=0)))


def test_a_stream_serves_any_indices(hub):
    data = load_dataset(hub_config(stop=7))
    indices = torch.tensor([2, 2, 6, 0, 3])
    assert np.array_equal(to_integers(data.batch(indices))[:, 0].numpy(), GREY[indices.numpy()])
    assert len(hub) == 7 + 4


def test_a_stream_kept_in_memory(hub):
    data = load_dataset(hub_config(in_memory=True, channels=3, size=(4, 4), fit="crop"))
    assert isinstance(data, ImageData) and data.images.shape == (7, 3, 4, 4) and len(hub) == 7


def test_what_a_stream_cannot_give(hub, monkeypatch):
    with pytest.raises(ValueError, match="data.stop"):
        load_dataset(hub_config())
    with pytest.raises(ValueError, match="wanted images 0 to 9, the stream gave 7"):
        load_dataset(hub_config(stop=9, in_memory=True))
    with pytest.raises(ValueError, match="wanted 9 images, it ended after 7"):
        load_dataset(hub_config(stop=9)).batch(torch.tensor([8]))
    with pytest.raises(ValueError, match="column 'picture', got the columns image, label"):
        load_dataset(hub_config(stop=2, column="picture")).batch(torch.tensor([0]))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'anem\[hub\]'"):
        load_dataset(hub_config(stop=2))


def test_a_real_stream(tmp_path, monkeypatch):
    """The installed datasets package on local files: the fake above behaves as it does."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))  # read when the package is imported
    pytest.importorskip("datasets", reason="the extra anem[hub] is not installed")
    write_folder(tmp_path / "pictures" / "train", GREY)
    config = DataConfig(str(tmp_path / "pictures"), kind="huggingface", start=1, stop=6, channels=1)
    data = load_dataset(config)
    indices = torch.tensor([0, 1, 3, 4, 0])
    assert np.array_equal(to_integers(data.batch(indices))[:, 0].numpy(), GREY[1 + indices.numpy()])
