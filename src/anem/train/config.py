"""What a training run is: dataclasses that a TOML file fills, every key checked."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from anem.corruptions import NoiseConfig
from anem.data import DataConfig
from anem.losses import LossConfig

__all__ = [
    "CheckpointConfig",
    "EMAConfig",
    "EvaluationConfig",
    "LogConfig",
    "ModelConfig",
    "OptimiserConfig",
    "TrainConfig",
    "from_dict",
    "load_config",
    "read_toml",
    "stricter",
    "to_dict",
]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The network: a preset by name and the fields that differ from it; or a trained model to go on from.

    Arguments:
        start: name or folder of a model (as :func:`anem.load` takes it) whose weights and data statistics training starts from, in
            place of ``preset`` and ``overrides``. The optimiser starts afresh.
    """

    preset: str = "small"
    overrides: dict[str, Any] = field(default_factory=dict)
    start: str = ""

    def __post_init__(self) -> None:
        if self.start and self.overrides:
            raise ValueError(f"model.overrides: wanted none beside model.start, got {sorted(self.overrides)}")


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam and its learning rate, a pure function of the images seen (so continued training only needs a new config).

    The rate rises linearly over ``warmup_images``, is constant until ``decay_start``, and then falls: ``inverse_sqrt`` as
    √(decay_start / images), ``cosine`` from 1 to ``final_ratio`` over ``decay_images`` and constant after, ``constant`` not at all.

    Arguments:
        clip_norm: largest Euclidean norm of the whole gradient; 0 for no clipping.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    warmup_images: int = 10_000
    decay: Literal["constant", "inverse_sqrt", "cosine"] = "inverse_sqrt"
    decay_start: int = 200_000
    decay_images: int = 1_000_000
    final_ratio: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"optimiser.learning_rate: wanted a finite number > 0, got {self.learning_rate}")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.epsilon < math.inf:
            raise ValueError(f"optimiser: wanted 0 <= betas < 1 and epsilon >= 0, got {self.betas} and {self.epsilon}")
        if not 0 <= self.clip_norm < math.inf:
            raise ValueError(f"optimiser.clip_norm: wanted a finite number >= 0 (0: no clipping), got {self.clip_norm}")
        if self.warmup_images < 0 or not 0 <= self.final_ratio <= 1:
            given = f"{self.warmup_images} and {self.final_ratio}"
            raise ValueError(f"optimiser: wanted warmup_images >= 0 and final_ratio between 0 and 1, got {given}")
        if self.decay == "inverse_sqrt" and self.decay_start <= 0:
            raise ValueError(f"optimiser.decay_start: inverse_sqrt wants > 0, got {self.decay_start}")
        if self.decay == "cosine" and self.decay_images <= 0:
            raise ValueError(f"optimiser.decay_images: cosine wants > 0, got {self.decay_images}")

    def rate(self, images: int) -> float:
        """The learning rate after ``images`` images, a function of nothing else."""
        rate = self.learning_rate * min(1.0, (images + 1) / (self.warmup_images + 1))
        late = images - self.decay_start
        if late <= 0 or self.decay == "constant":
            return rate
        if self.decay == "inverse_sqrt":
            return rate * math.sqrt(self.decay_start / images)
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, late / self.decay_images)))
        return rate * (self.final_ratio + (1 - self.final_ratio) * falling)


@dataclass(frozen=True)
class EMAConfig:
    """Averaging of the weights; lengths are in images, so they do not depend on the batch size.

    Arguments:
        profile: ``half_life`` (exponential), or ``power``, whose width stays a fixed share of the training so far.
        half_life: images after which an old weight counts half.
        ramp_up: the half-life never exceeds this share of the images seen; 0 for no ramp.
        relative_width: standard deviation of the power profile as a share of the training so far (below 0.28).
    """

    profile: Literal["half_life", "power"] = "half_life"
    half_life: int = 50_000
    ramp_up: float = 0.1
    relative_width: float = 0.05

    def __post_init__(self) -> None:
        if self.half_life < 1 or not 0 <= self.ramp_up < math.inf:
            raise ValueError(f"ema: wanted half_life >= 1 and ramp_up >= 0, got {self.half_life} and {self.ramp_up}")
        if not 0 < self.relative_width < math.sqrt(1 / 12):  # that of a constant profile
            raise ValueError(f"ema.relative_width: wanted a number between 0 and 0.288, got {self.relative_width}")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation on fixed images and fixed noise: every ``steps`` steps (0: only at the end) on ``images`` images."""

    steps: int = 1000
    images: int = 256
    batch_size: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0 or self.images < 1 or self.batch_size < 1 or self.seed < 0:
            given = f"{self.steps}, {self.images}, {self.batch_size} and {self.seed}"
            raise ValueError(f"evaluation: wanted steps >= 0, images >= 1, batch_size >= 1 and seed >= 0, got {given}")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to write a checkpoint (0 switches a rule off; one is always written at the end) and how many to keep."""

    steps: int = 0
    minutes: float = 10.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1 or self.steps < 0 or not 0 <= self.minutes < math.inf:
            given = f"{self.keep}, {self.steps} and {self.minutes}"
            raise ValueError(f"checkpoint: wanted keep >= 1, steps >= 0 and minutes >= 0, got {given}")


@dataclass(frozen=True)
class LogConfig:
    """How progress is shown and recorded; ``steps`` is the interval of history and TensorBoard."""

    steps: int = 50
    progress: bool = True
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"log.steps: wanted >= 1, got {self.steps}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Arguments:
        output: folder of checkpoints, history and the exported model; running again with the same folder resumes.
        seed: of initial weights, order of the images, and all noise.
        images: images to see in all, counted from the first step of the first run.
        batch_size: images an optimiser step, over all processes and accumulated parts.
        accumulation: parts a batch is cut into, one after the other, to save memory.
        weight: w of the covariance terms, see :func:`anem.losses.dual_score_loss`.
        loss: its other terms.
        statistics_images: images used to fit mean and variances.
        max_minutes: stop cleanly, with a checkpoint, after this wall time; 0 for no limit.
        threads: CPU threads of torch; 0 leaves torch's choice.
        precision: of the convolutions while training. ``bfloat16`` rounds their inputs and results to 8 bits; sums, weights, averages and
            everything else stay float32. Pays where the processor multiplies it natively (AMX, AVX-512 BF16).
        capture: on one CUDA device, run the step as a CUDA graph. Wants ``noise.stratified``, which keeps its shapes the same.
        compile: on one CPU process, compile the step to machine code: minutes once. Wants ``noise.stratified`` and a C++ compiler.
        device: ``auto`` takes an accelerator if there is one.
    """

    output: str = "runs/anem"
    seed: int = 0
    images: int = 1_500_000
    batch_size: int = 64
    accumulation: int = 1
    weight: float = 1.0
    statistics_images: int = 55_000
    max_minutes: float = 0.0
    threads: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    capture: bool = False
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    loss: LossConfig = field(default_factory=LossConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    held_out: DataConfig | None = None
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "accumulation", "statistics_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted >= 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: wanted >= 0, got {self.seed}")
        for name in ("weight", "max_minutes", "threads"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: wanted a finite number >= 0, got {getattr(self, name)}")
        if self.loss.covariance_term == "fokker_planck" and self.capture:
            raise ValueError("capture: wanted loss.covariance_term 'matching' or 'sliced', got 'fokker_planck'")
        for name in (name for name in ("capture", "compile") if getattr(self, name)):
            if not self.noise.stratified:
                raise ValueError(f"{name}: wanted noise.stratified = true, so that every step has the same shapes")
        if self.compile and (self.loss.covariance_term != "matching" or self.accumulation > 1):
            raise ValueError("compile: wanted loss.covariance_term 'matching' (no random numbers in the loss) and accumulation 1")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation: wanted a divisor of batch_size {self.batch_size}, got {self.accumulation}")


def load_config(path: str | Path, strict: bool = False) -> TrainConfig:
    """The training run described by a TOML file; ``strict``: as if it said so of all its data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, an unknown key, or a value of the wrong type or range.
    """
    config = from_dict(TrainConfig, read_toml(path))
    return stricter(config) if strict else config


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None


def stricter(config: TrainConfig) -> TrainConfig:
    """The same run, but that unreadable files are errors."""
    held_out = None if config.held_out is None else dataclasses.replace(config.held_out, strict=True)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, strict=True), held_out=held_out)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries of plain values, the inverse of :func:`from_dict`; keys that are None are left out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
            return {name: plain(v) for name, v in items if v is not None}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def from_dict(cls: type[T], mapping: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """A dataclass filled from nested dictionaries; keys left out keep the value of ``base`` or the default.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the message names the key by its whole path.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in mapping:
        if key not in names:
            tables = [n for n in names if dataclasses.is_dataclass(hints[n]) and key in (f.name for f in dataclasses.fields(hints[n]))]
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"wanted one of {', '.join(names)}"
            hint = f"it goes into the table [{where}{tables[0]}]" if len(tables) == 1 else hint
            raise ValueError(f"config: unknown key '{where}{key}': {hint}")
    values = {}
    for name in names:
        old = None if base is None else getattr(base, name)
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], f"{where}{name}", old)
        elif base is not None:
            values[name] = old
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"config: {where.rstrip('.') or cls.__name__}: {error}") from None


def _convert(hint: Any, value: Any, where: str, old: Any) -> Any:
    """``value`` as the type ``hint`` says, or ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, old if isinstance(old, hint) else None, f"{where}.")  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(option, value, where, old)
            except ValueError as error:
                if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                    raise error from None
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        variadic = origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis)
        if variadic or len(value) == len(arguments):
            items = [arguments[0]] * len(value) if variadic else arguments
            return origin(_convert(h, v, f"{where}[{i}]", None) for i, (h, v) in enumerate(zip(items, value, strict=True)))
    elif origin is dict and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, f"{where}.{k}", None) for k, v in value.items()}
    elif hint is Any or hint is type(None) and value is None:
        return value
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ValueError(f"config: {where}: wanted {wanted}, got {value!r}")
