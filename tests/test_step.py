"""Recorded steps and rounded convolutions against the ordinary step."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import anem.nn.recorded
import anem.train.step
from anem.corruptions import NoiseConfig, draw_covariances
from anem.losses import LossConfig, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.nn.recorded import cpp_compiler
from anem.random import normal
from anem.statistics import DataStatistics
from anem.train import TrainConfig, train
from anem.train.config import CheckpointConfig, EvaluationConfig, LogConfig, ModelConfig
from anem.train.parts import Parts, loss_function, network_config
from anem.train.step import CompiledStep, LossModule, fast_step

SHAPE = (6, 1, 8, 8)
NOISE = NoiseConfig(stratified=True, only=("white", "white-dct2"))


def images(seed: int) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)).square()


def loss(model, x, cov, noise, weight):
    return dual_score_loss(model, x, cov, noise, weight, LossConfig())


def module(dtype: torch.dtype = torch.float64, **changes) -> LossModule:
    """A small network with every weight in use."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=(4, 8), blocks=(1, 1), stem=1, embedding=4, rounds=1, **changes)
    network = EnergyNetwork(config, DataStatistics.fit(images(0))).to(dtype)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return LossModule(network.train(), loss, 1.0)


def batch(seed: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = images(seed)
    cov = draw_covariances(SHAPE, DataStatistics.fit(images(0)), NOISE, generator).cov
    return x.to(dtype), cov.to(dtype), normal(SHAPE, generator, x).to(dtype)


def eager(graph, inputs):
    """In place of a compiler: the recorded graph as it stands."""
    return graph


@pytest.mark.parametrize("form", ["anchored", "inner"])
def test_a_recorded_step_is_the_step_for_other_weights_and_other_data(form):
    a = module(form=form)
    step = CompiledStep(a, eager)
    step(*batch(1))
    assert len(step.trained) < len(dict(a.named_parameters())) or form == "anchored"
    with torch.no_grad():
        for p in a.parameters():
            p.mul_(1.1)
    got = step(*batch(2))
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in a.named_parameters()}
    a.zero_grad(set_to_none=True)
    want = a(*batch(2))
    want[0].backward()
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-12, atol=1e-12)
        assert not x.requires_grad
    for name, p in a.named_parameters():
        assert (p.grad is None) == (gradients[name] is None), name
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-12)
    # Another mixture of bases than the recorded one runs as usual.
    x, cov, noise = (part[:3] for part in batch(2))
    a.zero_grad(set_to_none=True)
    got = step(x, cov, noise)[0].detach()
    gradient = a.model.unet.leave.weight.grad.clone()
    a.zero_grad(set_to_none=True)
    want = a(x, cov, noise)[0]
    want.backward()
    torch.testing.assert_close(got, want.detach())
    torch.testing.assert_close(gradient, a.model.unet.leave.weight.grad)


def test_a_compiled_step_wants_a_compiler_and_no_dropout(monkeypatch):
    config, cpu = TrainConfig(compile=True, noise=NOISE), torch.device("cpu")
    monkeypatch.setattr(anem.nn.recorded.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile: wanted a C\+\+ compiler, got no '.*' on the path"):
        fast_step(config, module(), cpu)
    monkeypatch.setattr(anem.nn.recorded.shutil, "which", lambda name: "/bin/" + name)
    assert isinstance(fast_step(config, module(), cpu), CompiledStep)
    with pytest.raises(ValueError, match="compile: wanted a network without dropout"):
        fast_step(config, nn.Sequential(nn.Dropout(0.1)), cpu)
    assert fast_step(replace(config, compile=False), module(), cpu) is None


@pytest.mark.skipif(shutil.which(cpp_compiler()) is None, reason="wants a C++ compiler, which a bare machine has not")
def test_machine_code_computes_the_step():
    """Elementwise operations of a small part of the step: compiling a whole step takes minutes."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))

        def forward(self, x, cov, noise):
            leaf = (x + cov.values.sqrt() * noise).detach().requires_grad_()
            energy = torch.nn.functional.silu(self.weight * leaf).square().sum()
            (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
            total = (gradient - noise).square().mean((1, 2, 3))
            return total.mean(), total.detach(), total.detach()

    part = Part()
    x, cov, noise = batch(1, torch.float32)
    step = CompiledStep(part)
    for seed in (1, 2):
        x, cov, noise = batch(seed, torch.float32)
        got = [*step(x, cov, noise), part.weight.grad.clone()]
        part.zero_grad()
        want = part(x, cov, noise)
        want[0].backward()
        for a, b in zip(got, [*want, part.weight.grad], strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def run(tmp_path, data, total, **changes):
    config = TrainConfig(
        output=str(tmp_path),
        images=total,
        batch_size=6,
        statistics_images=6,
        device="cpu",
        noise=NOISE,
        model=ModelConfig("tiny", {"channels": [4, 8], "embedding": 4, "rounds": 1}),
        evaluation=EvaluationConfig(steps=0),
        checkpoint=CheckpointConfig(minutes=0),
        log=LogConfig(steps=1, progress=False, tensorboard=False),
        **changes,
    )
    parts = Parts(
        model=lambda statistics: EnergyNetwork(network_config(config), statistics),
        data=data,
        held_out=None,
        draw=lambda shape, statistics, generator: draw_covariances(shape, statistics, config.noise, generator),
        families=config.noise.family_names,
        loss=loss_function(config),
    )
    return train(config, parts=parts, callbacks=[])


class _Data:
    def __len__(self):
        return 6

    def indices(self, first, count, seed):
        return torch.arange(6)

    def batch(self, indices, generator):
        return images(3)


def test_a_training_in_compiled_steps_resumes_bit_for_bit_and_equals_the_ordinary_one(tmp_path, monkeypatch):
    monkeypatch.setattr(anem.train.step, "machine_code", eager)
    monkeypatch.setattr(anem.nn.recorded.shutil, "which", lambda name: "/bin/" + name)
    whole = run(tmp_path / "whole", _Data(), 24, compile=True)
    run(tmp_path / "parts", _Data(), 12, compile=True)
    resumed = run(tmp_path / "parts", _Data(), 24, compile=True)
    ordinary = run(tmp_path / "ordinary", _Data(), 24)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        torch.testing.assert_close(value, ordinary.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_rounded_convolutions_are_the_convolutions_to_eight_bits_in_every_derivative():
    exact, rounded = module(torch.float32), module(torch.float32)
    rounded.model.unet.scope.precision = torch.bfloat16
    losses, off = [], []
    for m in (exact, rounded):
        losses.append(m(*batch(1, torch.float32)))
        losses[-1][0].backward()
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.002)
    assert float((losses[0][0] - losses[1][0]).detach().abs()) > 0  # something was rounded
    for p, q in zip(exact.parameters(), rounded.parameters(), strict=True):
        off.append(torch.stack([(p.grad - q.grad).norm(), p.grad.norm()]))
        assert q.grad.dtype == torch.float32
    total = torch.stack(off).square().sum(0).sqrt()
    assert 1e-6 < float(total[0] / total[1]) < 0.03


def test_only_the_trained_network_is_rounded(tmp_path):
    rounded, exact = run(tmp_path / "rounded", _Data(), 12, precision="bfloat16"), run(tmp_path / "exact", _Data(), 12)
    assert rounded.unet.scope.precision is None
    assert not torch.equal(rounded.unet.leave.weight, exact.unet.leave.weight)
    torch.testing.assert_close(rounded.unet.leave.weight, exact.unet.leave.weight, rtol=0.05, atol=1e-4)


def test_rounding_wants_the_network_of_this_package(tmp_path):
    from training_fakes import LearnedGaussian

    with pytest.raises(ValueError, match="precision: 'bfloat16' wants an EnergyNetwork, got LearnedGaussian"):
        train(
            TrainConfig(output=str(tmp_path), precision="bfloat16", device="cpu"),
            parts=Parts(LearnedGaussian, _Data(), None, None, (), None),
            callbacks=[],
        )
