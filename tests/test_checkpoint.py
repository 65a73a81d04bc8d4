"""Checkpoints: bit-for-bit resumption, damage noticed, the old one survives a failed write."""

import dataclasses
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_fakes import make_config, make_parts

from anem.corruptions import NoiseConfig, draw_covariances
from anem.data import DataConfig
from anem.files import write_text
from anem.losses import LossConfig, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics
from anem.train.checkpoint import CheckpointStore, Snapshot, TrainState
from anem.train.config import CheckpointConfig, EMAConfig, OptimiserConfig, to_dict
from anem.train.ema import EMA
from anem.train.loop import train


def newest(output: Path) -> Path:
    path = CheckpointStore(output / "checkpoints", CheckpointConfig(), {}).latest()
    assert path is not None
    return path


def make_state(step: int = 1, width: int = 3) -> TrainState:
    model = nn.Conv2d(1, width, 3).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 1, 5, 5)).square().sum().backward()
    optimiser.step()
    return TrainState(model, EMA(model, EMAConfig()), optimiser, step, 8 * step)


def make_store(folder: Path, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(folder, CheckpointConfig(keep=keep), {"note": "test"})


@pytest.mark.parametrize("stops", [[3], [1, 2, 4], [5]])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stops):
    train(make_config(tmp_path / "whole", 48), parts=make_parts(), callbacks=[])
    for step in [*stops, 6]:
        train(make_config(tmp_path / "pieces", 8 * step), parts=make_parts(), callbacks=[])
    whole, pieces = Snapshot.read(newest(tmp_path / "whole")), Snapshot.read(newest(tmp_path / "pieces"))
    assert (whole.step, whole.images) == (pieces.step, pieces.images) == (6, 48)
    assert whole.tensors.keys() == pieces.tensors.keys()
    assert any(k.startswith("optimiser.exp_avg_sq.") for k in whole.tensors)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, pieces.tensors[name]), name


def test_another_seed_trains_differently(tmp_path):
    a = train(make_config(tmp_path / "a", 16), parts=make_parts(), callbacks=[])
    b = train(make_config(tmp_path / "b", 16, seed=1), parts=make_parts(), callbacks=[])
    assert not torch.equal(a.mean, b.mean)


def test_round_trip_restores_weights_average_moments_and_layout(tmp_path):
    state, other = make_state(7), make_state(1)
    make_store(tmp_path).save(state)
    other.load(Snapshot.read(make_store(tmp_path).latest()))
    assert (other.step, other.images) == (7, 56)
    for name, tensor in state.tensors().items():
        assert torch.equal(other.tensors()[name], tensor), name
    for parameter in other.model.parameters():
        assert other.optimiser.state[parameter]["exp_avg"].stride() == parameter.stride()


def test_stored_config_is_the_runs(tmp_path):
    config = make_config(tmp_path, 8)
    train(config, parts=make_parts(), callbacks=[])
    assert Snapshot.read(newest(tmp_path)).config == to_dict(config)


def test_only_the_newest_are_kept(tmp_path):
    store = make_store(tmp_path, keep=2)
    for step in (1, 2, 9, 10):
        store.save(make_state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000009.safetensors", "step-00000010.safetensors"]
    assert store.latest().name == "step-00000010.safetensors"
    assert store.latest().stat().st_mode == (tmp_path / "latest").stat().st_mode


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-20])
    elif how == "header cut":
        path.write_bytes(data[:30])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif how == "text":
        path.write_text("not a checkpoint at all")
    elif how == "foreign":
        save_file({"weight": torch.ones(3)}, path)
    elif how == "no counter":
        save_file(load_file(path), path, {"format": "anem-checkpoint-1"})


@pytest.mark.parametrize("how", ["truncated", "header cut", "empty", "one bit", "text", "foreign", "no counter"])
def test_damage_is_a_one_line_value_error(tmp_path, how):
    train(make_config(tmp_path, 8), parts=make_parts(), callbacks=[])
    damaged(newest(tmp_path), how)
    with pytest.raises(ValueError, match="checkpoint .*step-00000001") as error:
        train(make_config(tmp_path, 16), parts=make_parts(), callbacks=[])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 1}, "seed = 0, got 1"),
        ({"weight": 0.5}, "weight = 1.0, got 0.5"),
        ({"data": DataConfig(path="others.npz")}, 'data.path = ".*", got "others.npz"'),
        ({"data": DataConfig(stop=7)}, "data.stop = null, got 7"),
        ({"noise": NoiseConfig(lambda_max=9.0)}, "noise.lambda_max = null, got 9.0"),
        ({"statistics_images": 3}, "statistics_images = 55000, got 3"),
        ({"noise": NoiseConfig(lambda_min=1e-3)}, "noise.lambda_min = 1e-08, got 0.001"),
        ({"loss": LossConfig(projection=0.5)}, "loss.projection = 0.0, got 0.5"),
    ],
)
def test_a_run_does_not_go_on_as_another(settings, named, tmp_path):
    """It would train on the statistics, or the weights, of the first and say nothing."""
    train(make_config(tmp_path, 8), parts=make_parts(), callbacks=[])
    with pytest.raises(ValueError, match=f"of a run with {named}; give the run an output of its own") as error:
        train(make_config(tmp_path, 16, **settings), parts=make_parts(), callbacks=[])
    assert "\n" not in str(error.value)
    same = {
        "optimiser": OptimiserConfig(learning_rate=1e-4),
        "data": DataConfig(path=f"../{Path.cwd().name}/{DataConfig().path}", strict=True),
    }
    train(make_config(tmp_path, 16, **same), parts=make_parts(), callbacks=[])


def test_a_run_does_not_go_on_with_other_parts(tmp_path):
    first, second = (dataclasses.replace(make_parts(), settings={"conditional": {"task": task}}) for task in ("sr2", "sr4"))
    train(make_config(tmp_path, 8), parts=first, callbacks=[])
    with pytest.raises(ValueError, match='conditional.task = "sr2", got "sr4"'):
        train(make_config(tmp_path, 16), parts=second, callbacks=[])


def test_checkpoint_of_another_model(tmp_path):
    make_store(tmp_path).save(make_state(width=3))
    with pytest.raises(ValueError, match=r"of another model: bias: wanted \(4,\), got \(3,\) \(and 1 more\)"):
        make_state(width=4).load(Snapshot.read(make_store(tmp_path).latest()))


def test_missing_checkpoint_file_is_named(tmp_path):
    store = make_store(tmp_path)
    store.save(make_state()).unlink()
    with pytest.raises(ValueError, match="missing, though .*latest names it"):
        store.latest()


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_full_disk_leaves_the_old_checkpoint(tmp_path, limit):
    store = make_store(tmp_path, keep=1)
    state = make_state(1)
    good = store.save(state)
    before, latest = good.read_bytes(), (tmp_path / "latest").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # no file may grow beyond this: the write fails half-way
    try:
        with pytest.raises(OSError):
            store.save(make_state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", good.name]
    assert good.read_bytes() == before and (tmp_path / "latest").read_text() == latest
    make_state(5).load(Snapshot.read(store.latest()))


def test_killed_writer_leaves_rubbish_that_the_next_removes(tmp_path):
    store = make_store(tmp_path)
    store.save(make_state(1))
    (tmp_path / ".step-00000002.safetensors.123.tmp").write_bytes(b"half")
    assert store.latest().name == "step-00000001.safetensors"
    store.save(make_state(2))
    assert not list(tmp_path.glob("*.tmp"))


def test_failed_atomic_write_changes_nothing(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_network_resumes_bit_for_bit(tmp_path):
    """The learned network with the real noise families and loss, on 8×8 images."""
    config = make_config(tmp_path, noise=NoiseConfig(lambda_min=1e-6))
    network = NetworkConfig.preset("tiny").override(channels=(16, 16), dropout=0.2)
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = dataclasses.replace(
        make_parts(held_out=0),
        model=partial(EnergyNetwork, network),
        draw=lambda shape, statistics, generator: draw_covariances(shape, statistics, config.noise, generator),
        families=config.noise.family_names,
        loss=dual_score_loss,
    )
    parts.data.images = images
    results = {}
    for name, stops in (("whole", [4]), ("pieces", [2, 4])):
        for step in stops:
            train(dataclasses.replace(config, output=str(tmp_path / name), images=8 * step), parts=parts, callbacks=[])
        results[name] = Snapshot.read(newest(tmp_path / name)).tensors
    assert results["whole"].keys() == results["pieces"].keys()
    for name, tensor in results["whole"].items():
        assert torch.equal(tensor, results["pieces"][name]), name


def test_weights_under_another_card_are_refused(tmp_path):
    """As after a process that was killed between the two renames."""
    statistics = DataStatistics(1, 8, 8)
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        EnergyNetwork(NetworkConfig.preset("tiny"), statistics).save_pretrained(tmp_path / name)
    assert isinstance(EnergyNetwork.from_pretrained(tmp_path / "a"), EnergyNetwork)
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match="not a model of this package: its card is of other weights"):
        EnergyNetwork.from_pretrained(tmp_path / "b")
