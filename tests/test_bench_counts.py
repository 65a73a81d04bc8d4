"""Costs are counted right, and a training or sampling step costs what it did when its counts were committed."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from anem.bench import counts
from anem.bench.counts import count, differences, make_workload
from anem.network import NetworkConfig

COMMITTED = Path(__file__).parent / "step_counts.json"


def test_an_elementwise_operation_reads_two_and_writes_one():
    a, b = torch.ones(100), torch.ones(100)
    seen = count(lambda: a * b)
    assert (seen.operations, seen.allocations, seen.multiply_adds) == (1, 1, 0)
    assert (seen.bytes_moved, seen.peak_bytes, seen.saved_bytes) == (1200, 400, 0)


def test_views_are_free_and_changes_in_place_allocate_nothing():
    a, b = torch.ones(10, 10), torch.ones(10, 10)
    assert count(lambda: a.T[2:].reshape(-1, 8).shape).operations == 1  # the reshape has to copy
    assert count(lambda: a.view(100)[3:]).operations == 0
    seen = count(lambda: a.add_(b))
    assert (seen.operations, seen.allocations, seen.bytes_moved) == (1, 0, 1200)


def test_the_peak_is_of_what_is_alive_at_once():
    a = torch.ones(1000)

    def chain():
        x = a
        for _ in range(10):
            x = x + 1
        return x

    assert count(chain).peak_bytes == 8000
    assert count(lambda: [a + 1 for _ in range(10)]).peak_bytes == 40_000


def test_multiply_adds_of_convolution_forward_and_backward():
    x, w = torch.ones(2, 3, 8, 8, requires_grad=True), torch.ones(5, 3, 3, 3, requires_grad=True)
    each = 2 * 8 * 8 * 3 * 5 * 9
    assert count(lambda: torch.conv2d(x, w, padding=1).detach()).multiply_adds == each
    assert count(lambda: torch.conv2d(x, w, padding=1).sum().backward()).multiply_adds == 3 * each


def test_saved_tensors_count_once_and_parameters_not_at_all():
    x, p = torch.ones(100, requires_grad=True), torch.nn.Parameter(torch.ones(100))
    assert count(lambda: (x * x).sum()).saved_bytes == 400
    assert count(lambda: (x * p).sum()).saved_bytes == 400


def test_differences_are_told_in_words():
    now = {"training": counts.Counts(100, 50, 1000, 10, 10, 5)}
    committed = {"training": asdict(replace(now["training"], operations=90, multiply_adds=51, bytes_moved=1001))}
    assert differences(now, committed) == ["training: operations 90 → 100 (+11.1%)", "training: multiply_adds 51 → 50 (-2.0%)"]
    assert len(differences(now, {})) == 6
    assert differences(now, {"training": asdict(now["training"])}) == []


def test_steps_cost_what_they_did():
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    found = differences(counts.count_steps(), committed)
    assert not found, (
        "the cost of a step has changed:\n  " + "\n  ".join(found) + "\nIf that is meant, say in the commit what it buys, and write the "
        "new counts with\n  python -m anem.bench.counts tests/step_counts.json"
    )


def test_a_dearer_step_is_noticed():
    """Three more elementwise operations in every block are more than the tolerance."""
    workload = make_workload(NetworkConfig.preset("tiny"), batch=4, side=8)
    before = count(workload.train_step)
    for block in (m for m in workload.model.unet.modules() if type(m).__name__ == "Block"):
        block.register_forward_hook(lambda module, args, out: out * 1.0 * 1.0 * 1.0)
    after = {"training": count(workload.train_step)}
    found = differences(after, {"training": asdict(before)})
    assert any("bytes_moved" in line for line in found), found


@pytest.mark.parametrize("name", ["network call", "energy"])
def test_inference_keeps_no_graph(name):
    workload = make_workload(NetworkConfig.preset("tiny"), batch=2, side=8)
    result = counts.STEPS[name](workload)
    tensors = [result] if isinstance(result, torch.Tensor) else [result.energy, result.grad_y, result.grad_logvar, result.relative_variance]
    assert not any(t.requires_grad for t in tensors)
