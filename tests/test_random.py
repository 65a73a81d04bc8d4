"""Sources of random numbers: seeds by purpose, and draws that do not depend on batch mates."""

import numpy as np
import pytest
import torch

from anem.random import generator_of, random_signs, seed_of, seeds_for


def test_seeds_differ_by_what_they_are_for():
    labels = [(0,), (1,), (0, "noise"), (0, "noise", 1), (1, "noise"), ("0", "noise"), (0, 1), (1, 0), ()]
    seeds = {seed_of(*label) for label in labels}
    assert len(seeds) == len(labels) and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(np.int64(5), "a") == seed_of(5, "a") != seed_of(True, "a")
    same, again, other = (torch.rand(3, generator=generator_of(*label)) for label in ((5, "a"), (5, "a"), (5, "b")))
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_signs_are_fair_and_independent_of_the_batch():
    like = torch.zeros((), dtype=torch.float64)
    drawn = random_signs((40, 50), None, like)
    assert drawn.dtype == torch.float64 and bool((drawn.abs() == 1).all()) and drawn.mean().abs() < 0.15
    several, alone = (random_signs((len(s), 7), [generator_of(i) for i in s], like) for s in ((1, 2, 3), (2,)))
    assert torch.equal(several[1], alone[0])


@pytest.mark.parametrize("seed", [5, np.int64(5), torch.tensor(5), [5, 6, 7], range(5, 8), np.arange(5, 8), torch.arange(5, 8)], ids=repr)
def test_seeds_are_one_number_or_one_an_image(seed):
    assert seeds_for(seed, 3) == [5, 6, 7]


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "whole numbers >= 0, got -1"),
        ([1, 2], "one an image, 3, got 2"),
        (0.5, "got 0.5"),
        ("many", "got 'many'"),
        ([1, 2, 0.5], "0.5"),
    ],
)
def test_other_seeds_are_refused(seed, message):
    with pytest.raises(ValueError, match=f"seed: wanted .*{message}"):
        seeds_for(seed, 3)
