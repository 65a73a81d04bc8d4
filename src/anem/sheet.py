"""Contact sheets: rows of labelled results as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anem.images import as_pil, to_integers

__all__ = ["Row", "contact_sheet", "viridis"]

_VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
_SPELLED = str.maketrans(
    {"σ": "sigma", "λ": "lambda", "Σ": "Sigma", "τ": "tau", "θ": "theta", "μ": "mu", "µ": "mu", "×": "x"}
    | {"−": "-", "–": "-", "—": "-", "∞": "inf", "≤": "<=", "≥": ">=", "²": "^2", "½": "1/2"}
)
"""Spellings of the characters that PIL's own font lacks."""
_PAPER, _INK, _GAP, _LABEL = (246, 246, 246), (0, 0, 0), 6, 150


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a contact sheet.

    Arguments:
        label: text at the left.
        images: (N, C, H, W), C = 1 or 3. Intensities in [0, 1], shown clipped; or, with ``maximum``, non-negative maps, shown as the
            root mean square over channels.
        maximum: value at the end of the colour scale of a map; stated beside a colour bar.
    """

    label: str
    images: Tensor
    maximum: float | None = None

    def pictures(self) -> list[Image.Image]:
        """The images as PIL images of their own size."""
        if self.images.ndim != 4:
            raise ValueError(f"row {self.label!r}: wanted images (N, C, H, W), got {tuple(self.images.shape)}")
        if self.maximum is not None and not self.maximum > 0:
            raise ValueError(f"row {self.label!r}: the maximum of a map must be > 0, got {self.maximum}")
        x = self.images.detach().cpu().float()
        if self.maximum is not None:
            x = viridis(x.square().mean(1).sqrt() / self.maximum)
        return [as_pil(image) for image in to_integers(x)]


def viridis(values: Tensor) -> Tensor:
    """Perceptually uniform colours of values in [0, 1], clipped: (N, H, W) to (N, 3, H, W) in [0, 1]."""
    colours = torch.tensor([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _VIRIDIS]) / 256
    position = values.clamp(0, 1) * (len(_VIRIDIS) - 1)
    index = position.long().clamp(max=len(_VIRIDIS) - 2)
    weight = (position - index)[..., None]
    return torch.lerp(colours[index], colours[index + 1], weight).movedim(-1, -3)


def contact_sheet(rows: Sequence[Row], captions: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Rows of labelled images as one picture, small images scaled up by repeating pixels, on light grey.

    Arguments:
        rows: the rows, of any lengths; images smaller than the largest are scaled up to it where a whole factor fits.
        captions: text over each column.
        scale: magnification of the largest images; None: to about 112 pixels.

    Raises:
        ValueError: no images, images of other than 1 or 3 channels, values that are not finite.
    """
    pictures = [row.pictures() for row in rows]
    if not any(pictures):
        raise ValueError("rows: got no images")
    width, height = (max(p.size[axis] for row in pictures for p in row) for axis in (0, 1))
    scale = max(1, round(112 / max(width, height))) if scale is None else scale
    width, height = width * scale, height * scale
    font = ImageFont.load_default(13)
    titles = [_wrap(text, width, font) for text in captions]
    labels = [_wrap(row.label, _LABEL, font) for row in rows]
    top = _GAP + max((_text_height(text, font) + _GAP for text in titles), default=0)
    columns = max(len(titles), *(len(row) for row in pictures))
    bars = [0 if row.maximum is None else 36 for row in rows]
    tall = [max(height, _text_height(text, font) + bar) + _GAP for text, bar in zip(labels, bars, strict=True)]
    sheet = Image.new("RGB", (2 * _GAP + _LABEL + columns * (width + _GAP), top + sum(tall)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = [2 * _GAP + _LABEL + j * (width + _GAP) for j in range(columns)]
    for x, text in zip(left, titles, strict=False):
        draw.multiline_text((x, _GAP), text, _INK, font)
    for row, label, images, step in zip(rows, labels, pictures, tall, strict=True):
        draw.multiline_text((_GAP, top), label, _INK, font)
        if row.maximum is not None:
            _colour_bar(sheet, (_GAP, top + _text_height(label, font) + 4), row.maximum, font)
        for x, image in zip(left, images, strict=False):
            factor = max(1, min(width // image.size[0], height // image.size[1]))
            big = image.resize((image.size[0] * factor, image.size[1] * factor), Image.Resampling.NEAREST)
            sheet.paste(big, (x + (width - big.size[0]) // 2, top + (height - big.size[1]) // 2))
        top += step
    return sheet


def _colour_bar(sheet: Image.Image, corner: tuple[int, int], maximum: float, font: Any) -> None:
    x, y = corner
    bar = to_integers(viridis(torch.linspace(0, 1, _LABEL - 30).expand(1, 10, -1)))[0]
    sheet.paste(as_pil(bar), (x, y))
    ImageDraw.Draw(sheet).text((x, y + 13), f"0 to {maximum:.3g}", _INK, font)


def _wrap(text: str, width: int, font: Any) -> str:
    """Lines no wider than ``width`` pixels where words allow, in letters the font has."""
    lines = [""]
    for word in text.translate(_SPELLED).split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return "\n".join(lines)


def _text_height(text: str, font: Any) -> int:
    return int(ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)[3]) + 2
