"""The ablation bench: one folder a variant, never one trained otherwise."""

import pytest
from training_fakes import make_config

from anem.bench import ablation
from anem.bench.variants import Variant


def test_ablation_refuses_a_model_of_other_settings(tmp_path):
    config = make_config(tmp_path / "default")
    assert ablation._claim(config, "first") == "first"
    assert ablation._claim(config, "second") == "first"
    with pytest.raises(ValueError, match="other settings"):
        ablation._claim(Variant("default", weight=0.0).config(make_config(tmp_path), 64), "second")
