"""``anem models``: the models that come with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from anem.cli.options import Flag


@dataclass
class Models:
    """List the bundled models, or print the whole card of one."""

    name: Annotated[Positional[str], arg(metavar="[MODEL]", help_behavior_hint="")] = ""
    """a bundled model, a folder, or a Hugging Face repository"""
    json: Flag = False
    """print as JSON"""

    def run(self) -> int:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        from anem.hub import bundled_models, locate, read_card

        if self.name:
            card = read_card(locate(self.name))
            if self.json:
                print(json.dumps(card, indent=1, ensure_ascii=False))
            else:
                short = {k: v if isinstance(v, str) or len(str(v)) < 200 else "long, see --json" for k, v in card.items()}
                shown = (f"{key}: {value}" for key, value in short.items())
                Console(highlight=False, soft_wrap=True).print(self.summary(card), *shown, sep="\n", markup=False)
            return 0
        cards = {name: read_card(locate(name)) for name in bundled_models()}
        if self.json:
            print(json.dumps(cards, indent=1, ensure_ascii=False))
            return 0
        grid = Table(header_style="bold", box=SIMPLE_HEAD)
        for heading in ("model", "what it is", "limits"):
            grid.add_column(heading, ratio=None if heading == "model" else 1)
        for name, card in cards.items():
            grid.add_row(name, self.summary(card), str(card.get("known_limits", "")))
        Console(highlight=False).print(grid if cards else "no bundled models")
        return 0

    @staticmethod
    def summary(card: dict) -> str:
        """What a card says in a line."""
        shape, seen = card.get("statistics", {}), card.get("images_seen")
        known = {"channels", "height", "width"} <= set(shape)
        size = f"images {shape['channels']} x {shape['height']} x {shape['width']}" if known else ""
        trained = f"{seen:,} images seen in training" if seen else ""
        return "; ".join(part for part in (card.get("data", ""), size, trained) if part)
