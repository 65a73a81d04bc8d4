"""Contact sheets show the pixels they are given."""

import numpy as np
import pytest
import torch

from anem.images import from_integers
from anem.sheet import Row, contact_sheet, viridis

GREY = from_integers(torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def find(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Corners at which a picture occurs in a sheet."""
    h, w = picture.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (h, w, 3))[:, :, 0]
    return [tuple(p) for p in np.argwhere((windows == picture).all((2, 3, 4)))]


def test_images_appear_enlarged_in_rows_and_columns():
    sheet = np.asarray(contact_sheet([Row("truth", GREY), Row("small", GREY[:2, :, :4, :4])], ["a", "b", "c"], scale=2))
    corners = []
    for x, factor in ((GREY, 2), (GREY[:2, :, :4, :4], 4)):
        for image in x:
            pixels = (image[0] * 256).floor().numpy().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
            corners.append(find(sheet, np.repeat(pixels[..., None], 3, 2)))
    assert [len(c) for c in corners] == [1] * 5
    rows, columns = [c[0][0] for c in corners], [c[0][1] for c in corners]
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert columns[0] == columns[3] < columns[1] == columns[4] < columns[2]


def test_a_map_states_its_maximum_in_colour():
    std = torch.tensor([0.0, 0.1, 0.3]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    with_map = contact_sheet([Row("std", std, maximum=0.2)], scale=4)
    pixels = np.asarray(with_map)
    for value in (0.0, 0.5, 1.0):
        colour = (viridis(torch.full((1, 32, 32), value)) * 256).floor().clamp(0, 255)[0].permute(1, 2, 0).numpy().astype(np.uint8)
        assert len(find(pixels, colour)) == 1
    other = np.asarray(contact_sheet([Row("std", std * 2, maximum=0.4)], scale=4))
    label = pixels[:, :150] != other[:, :150]
    assert label.any() and np.array_equal(pixels[:, 156:], other[:, 156:])  # only the stated maximum differs


def test_the_colour_map_gets_steadily_lighter():
    colours = viridis(torch.linspace(0, 1, 101).view(1, 1, -1))[0, :, 0]
    luminance = torch.tensor([0.2126, 0.7152, 0.0722]) @ colours.pow(2.2)
    assert luminance.diff().min() > 0 and luminance[0] < 0.03 and luminance[-1] > 0.7
    assert torch.equal(viridis(torch.tensor([[[-1.0, 2.0]]])), viridis(torch.tensor([[[0.0, 1.0]]])))


def test_long_labels_widen_nothing_and_hide_nothing():
    short, long = (contact_sheet([Row(label, GREY)], scale=2) for label in ("x", "posterior standard deviation " * 6))
    assert short.size[0] == long.size[0] and long.size[1] > short.size[1]


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="no images"):
        contact_sheet([])
    with pytest.raises(ValueError, match="'a'.*N, C, H, W"):
        contact_sheet([Row("a", GREY[0])])
    with pytest.raises(ValueError, match="finite"):
        contact_sheet([Row("a", GREY * float("nan"))])
    with pytest.raises(ValueError, match="1 or 3 channels"):
        contact_sheet([Row("a", torch.zeros(1, 2, 4, 4))])
    with pytest.raises(ValueError, match="must be > 0"):
        contact_sheet([Row("a", GREY, maximum=0.0)])
