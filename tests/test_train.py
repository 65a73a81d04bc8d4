"""Training: configuration, schedules, averages, the loop's promises, held-out figures."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn
from training_fakes import FAMILIES, Images, LearnedGaussian, Occasional, draw, loss, make_config, make_parts

from anem.data import DataConfig
from anem.headroom import Headroom, fit_headroom
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics
from anem.train import Callback, NonFiniteLoss, Snapshot, load_config, train
from anem.train.callbacks import Export, History, Progress, TensorBoard
from anem.train.checkpoint import CheckpointStore
from anem.train.config import (
    CheckpointConfig,
    EMAConfig,
    EvaluationConfig,
    LogConfig,
    ModelConfig,
    OptimiserConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from anem.train.ema import EMA, ema_decay
from anem.train.evaluate import HeldOut
from anem.train.parts import build_parts, fit_statistics, network_config

# Configuration


@pytest.fixture
def grey_file(tmp_path):
    """Eight grey images of 6 × 8 in a .npy file."""
    path = tmp_path / "grey.npy"
    numpy.save(path, numpy.random.default_rng(0).integers(0, 256, (8, 6, 8), dtype=numpy.uint8))
    return path


def test_toml_fills_nested_fields(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'images = 1000\nweight = 1\n[optimiser]\nbetas = [0.8, 0.9]\ndecay = "cosine"\n[model]\npreset = "tiny"\noverrides = {depth = 3}\n'
    )
    config = load_config(path)
    assert config.images == 1000 and config.weight == 1.0 and isinstance(config.weight, float)
    assert config.optimiser == OptimiserConfig(betas=(0.8, 0.9), decay="cosine")
    assert config.model == ModelConfig("tiny", {"depth": 3})
    assert config.ema == EMAConfig()


def test_config_survives_json():
    config = TrainConfig(optimiser=OptimiserConfig(betas=(0.5, 0.6)), model=ModelConfig("tiny", {"a": 1}))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_projects_own_configs_are_valid(path):
    config = load_config(path)
    network_config(config)
    assert config.held_out is not None and config.held_out != config.data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "unknown key 'batchsize': did you mean 'batch_size'"),
        ("[optimiser]\nlearning_rat = 1.0", "unknown key 'optimiser.learning_rat': did you mean 'learning_rate'"),
        ("[zzz]\na = 1", "unknown key 'zzz': wanted one of output"),
        ("projection = 0.03", r"unknown key 'projection': it goes into the table \[loss\]"),
        ("images = 'many'", "images: wanted int, got 'many'"),
        ("images = true", "images: wanted int, got True"),
        ("images = 1.5", "images: wanted int, got 1.5"),
        ("optimiser = 3", "optimiser: wanted OptimiserConfig, got 3"),
        ("[optimiser]\ndecay = 'step'", "optimiser.decay: wanted .*inverse_sqrt.*, got 'step'"),
        ("[optimiser]\nbetas = [0.9]", r"optimiser.betas: wanted .*, got \[0.9\]"),
        ("[optimiser]\nbetas = [0.9, 'a']", r"optimiser.betas\[1\]: wanted float, got 'a'"),
        ("batch_size = 6\naccumulation = 4", "accumulation: wanted a divisor of batch_size 6, got 4"),
        ("[checkpoint]\nkeep = 0", "checkpoint: wanted keep >= 1, .*got 0"),
        ("[checkpoint]\nminutes = -1", "checkpoint: wanted .*minutes >= 0, got 2, 0 and -1"),
        ("seed = -1", "seed: wanted >= 0, got -1"),
        ("[evaluation]\nbatch_size = 0", "evaluation: wanted .*batch_size >= 1"),
        ("[evaluation]\nimages = 0", "evaluation: wanted .*images >= 1"),
        ("[ema]\nhalf_life = -5", "ema: wanted half_life >= 1"),
        ("[ema]\nrelative_width = 0.5", "ema.relative_width: wanted a number between 0 and 0.288"),
        ("[optimiser]\nclip_norm = -1", "optimiser.clip_norm: wanted a finite number >= 0"),
        ("[optimiser]\nwarmup_images = -1", "optimiser: wanted warmup_images >= 0"),
        ("[optimiser]\nbetas = [0.9, 1.0]", "optimiser: wanted 0 <= betas < 1"),
        ("[noise.weights]\nwhite = -1", "noise.weights: wanted finite numbers >= 0"),
        ("[noise]\nonly = ['white']\n[noise.weights]\nwhite = 0", "noise: wanted a family of some weight, got none"),
        ("threads = -1", "threads: wanted a finite number >= 0, got -1"),
        ("weight = nan", "weight: wanted a finite number >= 0, got nan"),
        ("[log]\nsteps = 0", "log.steps: wanted >= 1, got 0"),
        ("[optimiser]\nlearning_rate = nan", "optimiser.learning_rate: wanted a finite number > 0, got nan"),
        ("[loss]\ncovariance_term = 'none'", "covariance_term: wanted"),
        ("images = ", "not a TOML file"),
    ],
)
def test_wrong_configs_are_named(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_captured_step_wants_the_same_shapes_every_time(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("capture = true")
    with pytest.raises(ValueError, match=r"capture: wanted noise\.stratified = true"):
        load_config(path)
    path.write_text("capture = true\n[noise]\nstratified = true")
    assert load_config(path).capture


def test_from_dict_changes_only_the_given_fields_of_a_base():
    base = EMAConfig(half_life=7, ramp_up=0.5)
    assert from_dict(EMAConfig, {"half_life": 9}, base) == EMAConfig(half_life=9, ramp_up=0.5)


@dataclasses.dataclass
class Needs:
    path: str


def test_network_overrides_are_checked_like_the_rest():
    assert network_config(TrainConfig(model=ModelConfig("tiny", {"dropout": 0.5, "channels": [8, 16]}))).channels == (8, 16)
    with pytest.raises(ValueError, match="unknown key 'model.overrides.drop': did you mean 'dropout'"):
        network_config(TrainConfig(model=ModelConfig("tiny", {"drop": 0.5})))
    with pytest.raises(ValueError, match="wanted one of tiny"):
        network_config(TrainConfig(model=ModelConfig("huge")))


def test_training_goes_on_from_a_model(tmp_path, grey_file):
    first = build_parts(TrainConfig(data=DataConfig(str(grey_file)), model=ModelConfig("tiny")))
    statistics = DataStatistics.fit(torch.rand(8, 1, 8, 8))
    saved = first.model(statistics)
    saved.offset.fill_(3.0)
    saved.headroom = Headroom((0.0,), (1e-6,))
    saved.save_pretrained(tmp_path / "first")
    config = TrainConfig(data=DataConfig(str(grey_file)), model=ModelConfig(start=str(tmp_path / "first")))
    parts = build_parts(config)
    found = fit_statistics(config, parts.data, None)  # the model's, not those of the data, which are another's
    model = parts.model(found)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(found.spectrum, statistics.spectrum) and found.spectrum.shape == (1, 8, 8)
    assert model.training and all(p.requires_grad for p in model.parameters()) and model.headroom is None


def test_a_model_to_go_on_from_must_exist_fit_the_images_and_stay_as_it_is(tmp_path, grey_file):
    grey = DataConfig(str(grey_file))
    config = TrainConfig(data=grey, model=ModelConfig(start=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="none"):
        fit_statistics(config, build_parts(config).data, None)
    EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(torch.rand(8, 3, 8, 8))).save_pretrained(tmp_path / "colour")
    config = TrainConfig(data=grey, model=ModelConfig(start=str(tmp_path / "colour")))
    with pytest.raises(ValueError, match=r"model\.start: .* wants images of 3 channels, got 1"):
        fit_statistics(config, build_parts(config).data, None)
    with pytest.raises(ValueError, match=r"model\.overrides: wanted none beside model\.start.*blocks"):
        ModelConfig(start="digits", overrides={"blocks": 3})


def test_missing_required_key():
    with pytest.raises(ValueError, match="Needs.*path"):
        from_dict(Needs, {})


# Schedules and averages


def test_rate_rises_stays_and_falls():
    config = OptimiserConfig(learning_rate=2.0, warmup_images=99, decay="cosine", decay_start=1000, decay_images=400, final_ratio=0.1)
    rates = {n: config.rate(n) for n in (0, 49, 99, 500, 1000, 1200, 1400, 9999)}
    wanted = {0: 0.02, 49: 1.0, 99: 2.0, 500: 2.0, 1000: 2.0, 1200: 2 * 0.55, 1400: 0.2, 9999: 0.2}
    assert rates == pytest.approx(wanted)
    slow = OptimiserConfig(learning_rate=2.0, warmup_images=0, decay="inverse_sqrt", decay_start=1000)
    assert [slow.rate(n) for n in (0, 1000, 4000)] == pytest.approx([2.0, 2.0, 1.0])
    assert OptimiserConfig(learning_rate=2.0, decay="constant").rate(10**9) == 2.0


@pytest.mark.parametrize("batch", [1, 8, 20])
def test_half_life_is_in_images(batch):
    config = EMAConfig(half_life=400, ramp_up=0.0)
    kept = math.prod(ema_decay(config, 1000 + n, batch) for n in range(batch, 400 + batch, batch))
    assert kept == pytest.approx(0.5)


def test_ramp_up_limits_the_half_life():
    config = EMAConfig(half_life=400, ramp_up=0.1)
    assert ema_decay(config, 1000, 100) == pytest.approx(0.5)
    assert ema_decay(config, 10**6, 400) == pytest.approx(0.5)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_profile_has_the_stated_width_at_every_time(width):
    config = EMAConfig(profile="power", relative_width=width)
    for steps in (2000, 4000):
        kept = torch.tensor([ema_decay(config, n, 1) for n in range(1, steps + 1)], dtype=torch.float64)
        weight = (1 - kept) * torch.cat([kept.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.float64)])
        time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        mean = (weight * time).sum()
        assert weight.sum().item() == pytest.approx(1)
        assert (weight * (time - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=0.01)


def test_power_profile_refuses_impossible_widths():
    with pytest.raises(ValueError, match="relative_width: wanted a number between 0 and 0.288, got 0.3"):
        ema_decay(EMAConfig(profile="power", relative_width=0.3), 100, 1)


def test_average_follows_the_recursion_and_copies_buffers():
    model = nn.BatchNorm1d(2).double()
    ema = EMA(model, EMAConfig(half_life=10, ramp_up=0.0))
    expected = model.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight.add_(torch.tensor([1.0, -2.0], dtype=torch.float64))
            model.running_mean.add_(1)
        ema.update(model, 10 * step, 10)
        expected = 0.5 * expected + 0.5 * model.weight.detach()
    assert torch.allclose(ema.model.weight, expected, rtol=0, atol=1e-15)
    assert torch.equal(ema.model.running_mean, model.running_mean)
    assert not ema.model.training and not ema.model.weight.requires_grad


# The loop


class Recorder(Callback):
    """Notes every call, and stops the run by a signal after a step if asked to."""

    def __init__(self, kill_at: int | None = None, number: int = signal.SIGTERM) -> None:
        self.calls, self.records, self.reports, self.kill_at, self.number = [], [], [], kill_at, number

    def on_start(self, state, config):
        self.calls.append("start")

    def on_step(self, state, record):
        self.calls.append(record.step)
        self.records.append(record)
        if record.step == self.kill_at:
            os.kill(os.getpid(), self.number)

    def on_evaluate(self, state, report):
        self.calls.append("evaluate")
        self.reports.append(report)

    def on_checkpoint(self, state, path):
        self.calls.append(path.name)

    def on_end(self, state):
        self.interrupted = state.interrupted
        self.calls.append("end")


def test_training_recovers_mean_and_variance(tmp_path):
    """Images: mean 0.5 + 1/512, std 0.2; 4096 of them, so that mean and log variance are known to about 1 %."""
    config = make_config(
        tmp_path,
        images=12_000,
        batch_size=40,
        accumulation=1,
        optimiser=OptimiserConfig(learning_rate=0.05, warmup_images=400, decay="cosine", decay_start=4000, decay_images=8000),
        evaluation=EvaluationConfig(steps=150, images=32),
        checkpoint=CheckpointConfig(steps=0, minutes=0),
        log=LogConfig(steps=100, progress=False, tensorboard=False),
    )
    recorder = Recorder()
    model = train(config, parts=make_parts(dropout=0.0, count=4096), callbacks=[recorder])
    assert model.mean.item() == pytest.approx(0.5 + 1 / 512, abs=0.02)
    assert model.log_variance.item() == pytest.approx(2 * math.log(0.2), abs=0.1)
    assert recorder.reports[-1].cell().energy < recorder.reports[0].cell().energy


def test_callbacks_are_called_in_order(tmp_path):
    recorder = Recorder()
    train(make_config(tmp_path, 32, checkpoint=CheckpointConfig(steps=3, minutes=0)), parts=make_parts(), callbacks=[recorder])
    name = "step-{:08d}.safetensors".format
    assert recorder.calls == ["start", 1, 2, "evaluate", 3, name(3), 4, "evaluate", name(4), "end"]
    assert all(r.images == 8 * r.step and r.images_per_second > 0 and r.grad_norm > 0 for r in recorder.records)
    assert recorder.records[-1].seconds_left == 0


def test_records_average_over_the_log_interval(tmp_path):
    each, both = Recorder(), Recorder()
    train(make_config(tmp_path / "a", 32), parts=make_parts(), callbacks=[each])
    log = dataclasses.replace(make_config(tmp_path).log, steps=2)
    train(make_config(tmp_path / "b", 32, log=log), parts=make_parts(), callbacks=[both])
    losses = [r.loss for r in each.records]
    assert [r.loss for r in both.records] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_writes_a_checkpoint_and_the_same_command_resumes(tmp_path, number):
    before = signal.getsignal(number)
    config = make_config(tmp_path / "run", 48, checkpoint=CheckpointConfig(steps=0, minutes=0))
    first, second = Recorder(2, number), Recorder()
    train(config, parts=make_parts(), callbacks=[first])
    # The signal arrives while step 2 is recorded; step 3 is the next to look, and saves.
    assert first.calls[-2:] == ["step-00000003.safetensors", "end"] and first.interrupted
    assert signal.getsignal(number) is before
    model = train(config, parts=make_parts(), callbacks=[second])
    assert [r.step for r in second.records] == [4, 5, 6] and not second.interrupted
    whole = train(make_config(tmp_path / "whole", 48), parts=make_parts(), callbacks=[])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))


def test_a_run_that_goes_on_with_another_batch_size_sees_the_images_that_come_next(tmp_path, monkeypatch):
    asked = []
    indices = Images.indices
    monkeypatch.setattr(
        Images, "indices", lambda self, first, count, seed: asked.append((first, count)) or indices(self, first, count, seed)
    )
    train(make_config(tmp_path, 24), parts=make_parts(), callbacks=[])
    train(make_config(tmp_path, 32, batch_size=4, accumulation=1), parts=make_parts(), callbacks=[])
    assert sorted(set(asked)) == [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4)]


def test_time_limit_stops_cleanly(tmp_path):
    recorder = Recorder()
    train(make_config(tmp_path, 10**9, max_minutes=1e-9), parts=make_parts(), callbacks=[recorder])
    assert recorder.calls == ["start", 1, "step-00000001.safetensors", "end"] and not recorder.interrupted


def test_a_finished_run_is_left_alone(tmp_path):
    a = train(make_config(tmp_path, 16), parts=make_parts(), callbacks=[])
    recorder = Recorder()
    b = train(make_config(tmp_path, 16), parts=make_parts(), callbacks=[recorder])
    assert recorder.calls == ["start", "end"] and torch.equal(a.mean, b.mean)


def test_training_does_not_disturb_the_callers_random_numbers(tmp_path):
    torch.manual_seed(3)
    train(make_config(tmp_path, 16), parts=make_parts(), callbacks=[])
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("before", [False, True])
def test_subnormal_numbers_are_zero_while_training_and_as_before_afterwards(tmp_path, before):
    seen = []

    class Watch(Callback):
        def on_step(self, state, record):
            seen.append(float(torch.full((), 1e-40) * 1))

    if not torch.set_flush_denormal(before):
        pytest.skip("this processor has no such mode")
    try:
        train(make_config(tmp_path, 8), parts=make_parts(), callbacks=[Watch()])
        assert seen and set(seen) == {0.0}
        assert (float(torch.full((), 1e-40) * 1) == 0) == before
    finally:
        torch.set_flush_denormal(False)


def bad_at(step: int, where: str):
    """The loss, with the first image of family ``high`` made NaN (or the gradient alone infinite) from ``step`` on."""
    calls = 0

    def function(model, x, cov, noise, weight):
        nonlocal calls
        calls += model.training
        terms = loss(model, x, cov, noise, weight)
        if not model.training or calls <= 2 * step:
            return terms
        if where == "gradient":  # plus zero, with an infinite derivative
            total = terms.total + (model.mean - model.mean.detach()).abs().sqrt().sum()
            return SimpleNamespace(total=total, a_dsm=terms.a_dsm, a_csm=terms.a_csm, energy=terms.energy)
        high = cov.values.flatten(1)[:, 0] >= 1e-2
        a_dsm = torch.where(high, math.nan, terms.a_dsm)
        return SimpleNamespace(total=a_dsm.mean(), a_dsm=a_dsm, a_csm=terms.a_csm, energy=terms.energy)

    return function


def test_non_finite_loss_names_step_family_and_level(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"at step 2: high at log10 variance -[01]\.\d\d.*step-00000002.safetensors") as error:
        train(make_config(tmp_path, 48), parts=make_parts(loss=bad_at(2, "image")), callbacks=[])
    assert "low" not in str(error.value)
    path = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig(), {}).latest()
    assert all(bool(torch.isfinite(t).all()) for t in Snapshot.read(path).tensors.values())
    train(make_config(tmp_path, 48), parts=make_parts(), callbacks=[])  # and it can be continued


def test_non_finite_gradient_stops_too_and_watchers_are_closed(tmp_path):
    recorder = Recorder()
    with pytest.raises(NonFiniteLoss, match=r"gradient norm (nan|inf)\) at step 0: no single image .* there is no checkpoint yet"):
        train(make_config(tmp_path, 48), parts=make_parts(loss=bad_at(0, "gradient")), callbacks=[recorder])
    assert recorder.calls == ["start", "end"]
    assert not (tmp_path / "checkpoints").exists()


def test_batch_must_divide(tmp_path):
    with pytest.raises(ValueError, match="accumulation: wanted a divisor"):
        make_config(tmp_path, batch_size=8, accumulation=3)


PROCESSES = """
import sys
import torch
sys.path[:0] = {paths!r}
from pathlib import Path
from training_fakes import Occasional, make_config, make_parts
from anem.train.loop import train
train(make_config(Path({output!r}), 64, accumulation={accumulation}), parts=make_parts(model=Occasional), callbacks=[])
torch.distributed.destroy_process_group()  # else one that ends first may take the other down with it
"""


def test_two_processes_of_two_pieces_equal_four_pieces(tmp_path):
    """Data parallel training gives the gradients of one process that accumulates, through the double backward (to rounding),

    also where a parameter has no part in one of the pieces.
    """
    train(make_config(tmp_path / "one", 64, accumulation=4), parts=make_parts(model=Occasional), callbacks=[])
    script = tmp_path / "script.py"
    script.write_text(PROCESSES.format(paths=sys.path, output=str(tmp_path / "two"), accumulation=2))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (Snapshot.read(tmp_path / name / "checkpoints/step-00000008.safetensors").tensors for name in ("one", "two"))
    assert one.keys() == two.keys() and "optimiser.exp_avg.tilt" in one
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6), name


# History, TensorBoard, progress, export


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_history_after_a_crash_has_every_step_once(tmp_path):
    path = tmp_path / "history.jsonl"
    checkpoint = CheckpointConfig(steps=2, minutes=0)
    with pytest.raises(NonFiniteLoss):  # steps 1, 2 (saved), 3; the fourth fails
        train(make_config(tmp_path, 48, checkpoint=checkpoint), parts=make_parts(loss=bad_at(3, "image")), callbacks=[History(path)])
    assert [h["step"] for h in lines(path) if h["kind"] == "step"] == [1, 2, 3]
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # a line cut off by a crash
    train(make_config(tmp_path, 48, checkpoint=checkpoint), parts=make_parts(), callbacks=[History(path)])
    history = lines(path)
    assert [h["step"] for h in history if h["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [h["step"] for h in history if h["kind"] == "start"] == [0, 2]
    assert {cell["family"] for h in history if h["kind"] == "evaluation" for cell in h["cells"]} == {"all", *FAMILIES}


def test_the_export_wants_a_model_that_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match="Export wants a model with save_pretrained, got LearnedGaussian"):
        train(make_config(tmp_path, 16), parts=make_parts())
    assert not list(tmp_path.iterdir())


def test_tensorboard_holds_losses_and_held_out_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_config(tmp_path, 32), parts=make_parts(), callbacks=[TensorBoard(tmp_path / "tensorboard")])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "a_dsm/all", "a_csm/high", "energy/low", "energy/all/1e-2"} <= set(tags)
    assert [e.step for e in events.Scalars("train/loss")] == [8, 16, 24, 32]


def test_progress_tells_loss_speed_and_time_left(tmp_path, capsys):
    train(make_config(tmp_path, 16), parts=make_parts(), callbacks=[Progress()])
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("step 1  8/16 images  loss ") and err[0].endswith("left") and "images/s" in err[0]
    assert any(line.startswith("held out at step 2: a_dsm") for line in err)
    assert not any("resume" in line for line in err)
    train(make_config(tmp_path, 10**9, max_minutes=1e-9), parts=make_parts(), callbacks=[Progress()])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped at 24 of 1000000000 images; to resume, run the same command again"


def test_export_writes_the_averaged_model_and_its_card(tmp_path, monkeypatch):
    saved = []
    save = lambda self, folder, card: saved.append((folder, card, self.mean.clone()))  # noqa: E731
    monkeypatch.setattr(LearnedGaussian, "save_pretrained", save, raising=False)
    model = train(make_config(tmp_path, 16), parts=make_parts(), callbacks=[Export(tmp_path / "model")])
    folder, card, mean = saved[-1]
    assert folder == tmp_path / "model" and torch.equal(mean, model.mean)
    assert card["images_seen"] == 16 and card["training"]["batch_size"] == 8 and card["held_out"][0]["family"] == "all"


def test_a_finished_training_bounds_its_energy_by_held_out_images(tmp_path, grey_file, monkeypatch):
    many = tmp_path / "many.npy"
    numpy.save(many, numpy.random.default_rng(0).integers(0, 256, (70, 6, 8), dtype=numpy.uint8))
    grey, out = DataConfig(str(many)), tmp_path / "run"
    config = TrainConfig(str(out), images=24, batch_size=8, data=grey, held_out=grey, model=ModelConfig("tiny"), device="cpu")
    train(dataclasses.replace(config, images=8))
    assert EnergyNetwork.from_pretrained(out / "model").headroom is not None
    train(dataclasses.replace(config, max_minutes=1e-9, images=1000))
    unfinished = EnergyNetwork.from_pretrained(out / "model")
    assert unfinished.headroom is None  # it would be that of other weights
    train(config)
    found = EnergyNetwork.from_pretrained(out / "model")
    images = build_parts(config).held_out.batch(torch.arange(70), torch.Generator().manual_seed(1))
    assert found.headroom == fit_headroom(found, images, config.noise)
    few = dataclasses.replace(config, output=str(tmp_path / "few"), images=8, held_out=DataConfig(str(grey_file)))
    train(few)  # eight images say too little
    assert EnergyNetwork.from_pretrained(tmp_path / "few" / "model").headroom is None
    monkeypatch.setattr("anem.train.callbacks.fit_headroom", no_headroom)
    train(dataclasses.replace(config, output=str(tmp_path / "bad"), images=8))
    card = json.loads((tmp_path / "bad" / "model" / "card.json").read_text())
    assert card["without headroom"] == "none to be had" and "headroom" not in card and card["images_seen"] == 8


def no_headroom(*arguments):
    raise ValueError("none to be had")


# Held-out evaluation


def make_held_out(count: int = 2000, std: float = 0.2) -> tuple[HeldOut, LearnedGaussian]:
    """Exact model and data: white Gaussian images of mean 0.5."""
    images = 0.5 + std * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    model = LearnedGaussian(DataStatistics(1, 4, 4)).eval()
    with torch.no_grad():
        model.mean.fill_(0.5)
        model.log_variance.fill_(2 * math.log(std))
    return HeldOut(images, draw, FAMILIES, batch_size=300, seed=3), model


def test_exact_model_reaches_the_floors():
    """A-DSM a and A-CSM ½a(2 − a) a coordinate, a = c/(c + λ), and the entropy ½ log 2πe(c + λ); 5 standard errors: 2e-6 false alarms."""
    held_out, model = make_held_out()
    report = held_out.evaluate(model, loss)
    cov = draw((300, 1, 4, 4), model.statistics, torch.Generator().manual_seed(3)).cov
    assert torch.allclose(report.log10_variance[:300], cov.values.log10().mean((1, 2, 3)))
    lam = 10 ** report.log10_variance.double()
    a = 0.04 / (0.04 + lam)
    for got, wanted in (
        (report.a_dsm, a),
        (report.a_csm, 0.5 * a * (2 - a)),
        (report.energy, 0.5 * (2 * math.pi * math.e * (0.04 + lam)).log()),
    ):
        difference = got.double() - wanted
        assert difference.mean().abs() < 5 * difference.std() / math.sqrt(len(difference))


def test_evaluation_is_repeatable_and_cells_add_up():
    held_out, model = make_held_out(500)
    first, second = held_out.evaluate(model, loss), held_out.evaluate(model, loss)
    assert first.to_dict() == second.to_dict()
    whole = first.cell()
    for group in ([first.cell(f) for f in FAMILIES], [c for c in first.cells() if c.family == "all" and c.level is not None]):
        assert sum(c.count for c in group) == whole.count == 500
        assert sum(c.count * c.energy for c in group) / 500 == pytest.approx(whole.energy)
    assert {c.level for c in first.cells() if c.family == "low"} == {None, -4, -3}
    assert {c.level for c in first.cells() if c.family == "high"} == {None, -2, -1}
