"""``anem train``: train a model as a TOML file says."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from anem.cli.options import Flag


@dataclass
class Train:
    """Train a model as a TOML file says, such as configs/digits.toml.

    Interrupted or stopped, it continues when the same command is run again. The model, averaged over the training,
    is in OUTPUT/model and loads with --model or anem.load.
    """

    config: Annotated[Positional[Path], arg(metavar="CONFIG")]
    """TOML file: data, network, noise and optimiser"""
    output: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: as the file says)")] = None
    """folder of the run"""
    images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as the file says)")] = None
    """images to see in all"""
    minutes: Annotated[float | None, arg(metavar="MINUTES", help_behavior_hint="(default: as the file says)")] = None
    """stop after this time, to be continued"""
    strict: Flag = False
    """stop at a file that is no readable image, in place of skipping it"""

    def run(self) -> int:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: print(f"anem: warning: {message}", file=sys.stderr)
            return self._train()

    def _train(self) -> int:
        from torch import distributed

        from anem.baselines import load_conditional
        from anem.train import Callback, NonFiniteLoss, TrainConfig, TrainState, default_callbacks, load_config, train

        class Seen(Callback):
            """Where the run began, if it continues, and how it ended."""

            images, interrupted = 0, False

            def on_start(self, state: TrainState, config: TrainConfig) -> None:
                if state.step:
                    print(f"anem: continues {config.output} at image {state.images}", file=sys.stderr)

            def on_end(self, state: TrainState) -> None:
                self.images, self.interrupted = state.images, state.interrupted

        if self.minutes is not None and not 0 <= self.minutes < float("inf"):
            raise ValueError(f"--minutes: wanted a time >= 0 (0: no limit), got {self.minutes}")
        config, parts = load_conditional(self.config, self.strict) or (load_config(self.config, self.strict), None)
        config = replace(
            config,
            output=config.output if self.output is None else str(self.output),
            images=config.images if self.images is None else self.images,
            max_minutes=config.max_minutes if self.minutes is None else self.minutes,
        )
        seen = Seen()
        try:
            train(config, parts=parts, callbacks=[*default_callbacks(config), seen])
        except NonFiniteLoss as error:
            print(f"anem: error: {error}", file=sys.stderr)
            return 2
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()  # else one that ends first may take the others down with it
        print(f"{seen.images} of {config.images} images seen; the model is in {Path(config.output) / 'model'}")
        return 130 if seen.interrupted else 0
