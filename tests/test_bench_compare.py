"""The comparison: the table of methods, and all of the bench at a tiny size on made-up digits without metric weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anem.baselines import DAPS, DPS, Composition, ConditionalConfig, ConditionalNetwork, Counted, PaperSampler, REDDiff
from anem.bench import compare, harness
from anem.bench.compare import Size
from anem.bench.compare_data import Images
from anem.bench.compare_judge import Judge
from anem.bench.compare_methods import METHODS, OURS, PRIORS, Method, find_prior
from anem.bench.compare_problem import TASKS, Problem, restore
from anem.bench.compare_table import markdown, overview
from anem.bench.harness import Context, Settings, run_bench
from anem.bench.report import Figure, Report
from anem.bench.revision import weights_digest
from anem.data import MNIST_SPLITS
from anem.energy import EnergyModel
from anem.gaussian import make_mixture
from anem.images import from_integers
from anem.metrics import mean_statistic
from anem.network import EnergyNetwork, NetworkConfig
from anem.operators import Inpainting, make_operator
from anem.random import generators_for
from anem.restorer import EnergyRestorer
from anem.sample.chain import Diverged
from anem.statistics import DataStatistics


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.prior != "conditional"])
@pytest.mark.parametrize("calls", [10, 41])
def test_no_setting_costs_more_calls_than_allowed_and_none_much_less(name, calls):
    prior = make_mixture(2, 1, 4, 4)
    operator = Inpainting.half((4, 4))
    m = operator.measure(prior.sample(3, torch.Generator().manual_seed(0)), 0.1)
    for setting, make in METHODS[name].settings.items():
        counted = Counted(prior)
        restorer = make(counted, calls)
        assert isinstance(restorer, EnergyRestorer | DPS | DAPS | REDDiff | Composition | PaperSampler)
        try:
            restorer(m, operator, 0.1, generators_for([1, 2, 3]))
        except Diverged:
            continue
        steps = setting.split()[0]
        if METHODS[name].settings == METHODS[OURS].settings:
            assert counted.rows == 3 * min(calls, 1 + int(steps) if steps.isdigit() else calls), setting
            continue
        used = {"DPS": calls, "RED-Diff": calls}.get(name)
        assert counted.rows % 3 == 0
        assert (0.65 * calls if used is None else used) <= counted.rows / 3 <= calls, setting


def test_the_settings_of_ours_differ():
    made = [make(make_mixture(2, 1, 4, 4), 41) for make in METHODS[OURS].settings.values()]
    assert [(r.sampler.schedule.steps, r.sampler.schedule.power) for r in made] == [(40, 1.0), (4, 1.0), (9, 1.0), (4, 0.5)]


def test_at_most_four_settings():
    with pytest.raises(ValueError, match="1 to 4"):
        Method("given", {str(i): METHODS[OURS].settings["all steps"] for i in range(5)})


def test_a_missing_prior_says_how_to_train_it(tmp_path):
    assert find_prior("ours, bundled", "box", tmp_path, "digits") == "digits"
    configs = {
        "DPS": "isotropic-digits",
        OURS: "comparison-tasks-digits",
        "ours, all noise": "comparison-digits",
        "InDI": "baselines/indi-box",
    }
    for name, config in configs.items():
        assert (Path(__file__).parent.parent / "configs" / f"{config}.toml").is_file()
        with pytest.raises(ValueError, match=rf"anem train configs/{config}\.toml"):
            find_prior(name, "box", tmp_path, "digits")
    folder = tmp_path / PRIORS["isotropic"] / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    card = folder / "card.json"
    card.write_text('{"images_seen": 96, "training": {"images": 100}}', encoding="utf-8")
    with pytest.raises(ValueError, match="wanted a model trained to its end, got one of 96 of 100 images"):
        find_prior("DPS", "box", tmp_path, "digits")
    for complete in ('{"images_seen": 128, "training": {"images": 100}}', "{}"):
        card.write_text(complete, encoding="utf-8")
        assert find_prior("DPS", "box", tmp_path, "digits") == str(folder)


def test_every_task_is_one_for_digits():
    for task in TASKS.values():
        assert make_operator(task.name, (1, 1, 28, 28), **task.settings)(torch.zeros(1, 1, 28, 28)).shape[1] == 1


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The bench on a tiny untrained network, made-up digits and two methods; called, it runs and returns the report."""
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-14:14, -14:14]) < rng.uniform(4, 12, (12, 1, 1))
    x = (disc * rng.integers(150, 256, disc.shape)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=np.zeros(12), x_test=x, y_test=np.zeros(12))
    for name, split in {"validation": ("train", 0, 12), "comparison": ("test", 0, 4), "tuning": ("test", 4, 12)}.items():
        monkeypatch.setitem(MNIST_SPLITS, name, split)
    statistics = DataStatistics.fit(from_integers(torch.from_numpy(x)[:, None]))
    EnergyNetwork(NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=2, embedding=4), statistics).save_pretrained(tmp_path / "model")
    tiny = Size(restored={6: 3}, tasks=("blur",), settings=2, tuning={6: 2}, reference=12, diverse=2, shown=2)
    monkeypatch.setattr(Size, "quick", lambda: tiny)
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")

    def start(json_file=tmp_path / "c.json", fresh=False, workers=1, **changes):
        settings = Settings(
            out=tmp_path / "out",
            model=str(tmp_path / "model"),
            data=tmp_path,
            quick=True,
            trained=tmp_path,
            methods=(OURS, "RED-Diff"),
        )
        settings = replace(settings, **changes)
        return run_bench(compare.run, "compare", settings, command="c", json_file=json_file, fresh=fresh, workers=workers)

    return start


def test_every_figure_is_made_once_and_an_interrupted_run_continues(bench, tmp_path, monkeypatch):
    figures = bench().figures
    methods = {key.split("/")[1] for key in figures if key.startswith("blur, 6 calls/")}
    expected = {OURS, "RED-Diff", "truth"}
    assert expected | {f"DISTS, {OURS} over the best Bayesian baseline"} >= methods >= expected
    assert figures["prior/isotropic"].value == f"{tmp_path / 'model'} ({weights_digest(str(tmp_path / 'model'))}, unknown images)"
    assert "LPIPS" in figures["left out"].value and "make data" in figures["left out"].value
    trials = {key.split(": ")[1]: f.value for key, f in figures.items() if "RED-Diff/tuning:" in key}
    assert len(trials) == 2
    assert figures["blur, 6 calls/RED-Diff/setting"].value == min(trials, key=trials.get)
    assert figures["blur, 6 calls/RED-Diff/calls"].value == 6
    difference = figures["blur, 6 calls/RED-Diff/PSNR, ours minus it"].value
    assert difference == pytest.approx(figures[f"blur, 6 calls/{OURS}/PSNR"].value - figures["blur, 6 calls/RED-Diff/PSNR"].value, abs=1e-6)
    assert Image.open(tmp_path / "out" / "blur-6-calls.png").width > 4 * 28
    table = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert table.partition("## blur, 6 calls")[2].count("| RED-Diff |") == 1 and "* RED-Diff: PSNR" in table
    monkeypatch.setattr(compare, "restore", None)  # whatever calls it fails
    assert bench().figures == figures


def test_what_a_worker_restored_is_taken_over(bench, tmp_path, monkeypatch):
    alone = bench(out=tmp_path / "alone", json_file=tmp_path / "alone.json").figures
    restore = compare.restore

    def work(run, report, settings, workers):  # in this process, which has the tiny sizes
        run(Context(Report(report.name, "", report.seed, ""), worker=True, **vars(settings)))
        monkeypatch.setattr(compare, "restore", None)  # whatever calls it fails

    monkeypatch.setattr(harness, "_work", work)
    shared = bench(workers=2).figures
    assert {k for k in shared if "seconds" not in k} == {k for k in alone if "seconds" not in k}
    assert all(shared[k] == alone[k] for k in alone if "seconds an image" not in k)
    # Without its files a method is restored again, and counted once.
    monkeypatch.setattr(compare, "restore", restore)
    (tmp_path / "c.json").unlink()
    shutil.rmtree(tmp_path / "out" / "restored")
    assert bench().figures["blur, 6 calls/RED-Diff/LPIPS" if "blur, 6 calls/RED-Diff/LPIPS" in alone else "blur, 6 calls/RED-Diff/PSNR"]


def test_another_prior_in_the_place_of_the_first_does_not_continue_its_report(bench, tmp_path):
    shutil.copytree(tmp_path / "model", tmp_path / PRIORS["isotropic"] / "model")
    bench(methods=("RED-Diff",))
    network = EnergyNetwork.from_pretrained(tmp_path / "model")
    network.unet.enter.weight.data.mul_(2)
    network.save_pretrained(tmp_path / PRIORS["isotropic"] / "model")
    with pytest.raises(ValueError, match=r"prior/isotropic: now .* but the figures so far were made by .*; --fresh starts over"):
        bench(methods=("RED-Diff",))


def test_at_more_calls_only_the_best_settings_are_tried_again(bench, monkeypatch):
    sizes = Size(restored={6: 3, 8: 2}, tasks=("blur",), settings=3, tuning={6: 2, 8: 2}, again=1, reference=12, diverse=2, shown=2)
    monkeypatch.setattr(Size, "quick", lambda: sizes)
    figures = bench(methods=("RED-Diff",)).figures
    first, second = (
        {k.split(": ")[1]: f.value for k, f in figures.items() if k.startswith(f"blur, {n} calls/RED-Diff/tuning:")} for n in (6, 8)
    )
    assert len(first) == 3 and list(second) == [min(first, key=first.get)]
    assert "blur, 6 calls/RED-Diff/diversity" in figures and "blur, 8 calls/RED-Diff/diversity" not in figures


def test_a_measure_that_came_later_is_added_to_kept_restorations(bench, monkeypatch):
    figures = bench(methods=("RED-Diff",)).figures
    monkeypatch.setattr(compare, "restore", None)
    scores = Judge.scores
    monkeypatch.setattr(Judge, "scores", lambda self, x, problem: {**scores(self, x, problem), "new": x.mean((1, 2, 3))})
    again = bench(methods=("RED-Diff",)).figures
    assert set(again) - set(figures) == {"blur, 6 calls/RED-Diff/new"}


def test_a_network_for_the_task_is_compared_where_there_is_one(bench, tmp_path):
    """Its operator must be that of the task, its calls are counted, and without it the method is left out of a quick run."""
    figures = bench(methods=("InDI",), tasks=("x4",)).figures
    assert [f.value for key, f in figures.items() if key == "prior/InDI x4"] == ["missing, left out"]
    statistics = DataStatistics.fit(torch.rand(20, 1, 28, 28))
    small = NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=2, embedding=4)
    ConditionalNetwork(small, ConditionalConfig("indi", "sr4"), statistics).save_pretrained(tmp_path / "indi-x4" / "model")
    figures = bench(methods=("InDI",), tasks=("x4",), fresh=True).figures
    settings = {"100% of the calls": 6, "40% of the calls": 2}
    assert figures["x4, 6 calls/InDI/calls"].value == settings[figures["x4, 6 calls/InDI/setting"].value]
    assert "x4, 6 calls/InDI/PSNR" in figures


def test_models_that_are_missing_are_named_in_one_line(bench, tmp_path):
    line = bench().figures["missing models"].value
    assert len(line.splitlines()) == 1 and line.count("anem train configs/") == 2
    with pytest.raises(ValueError, match=r"comparison-tasks-digits.*; .*isotropic-digits"):
        bench(quick=False, json_file=tmp_path / "full.json")


def test_other_images_are_divided_by_their_order(tmp_path):
    x = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=x)
    for split, judged in (("tuning", [3, 4]), ("report", [20, 21])):
        images = Images.of(str(tmp_path / "mine.npz"), tmp_path, split, 3, 2, 100)
        found = [(256 * part[:, 0, 0, 0]).int().tolist() for part in (images.tuning, images.judged, images.reference)]
        assert found == [[0, 1, 2], judged, list(range(10, 20))]
    skipped = [Images.of(str(tmp_path / "mine.npz"), tmp_path, split, 3, 2, 100, skip=4).judged for split in ("tuning", "report")]
    assert [(256 * part[:, 0, 0, 0]).int().tolist() for part in skipped] == [[7, 8], [24, 25]]
    with pytest.raises(ValueError, match="wanted 9 images for tuning after 3, there are 7"):
        Images.of(str(tmp_path / "mine.npz"), tmp_path, "tuning", 3, 9, 5)
    with pytest.raises(ValueError, match=r"comparison-tasks-mine.*configs/comparison-tasks-mine"):
        find_prior(OURS, "box", tmp_path, "digits", str(tmp_path / "mine.npz"))


def test_a_comparison_on_other_images_runs(bench, tmp_path):
    """20 × 20 pixels: boxes shrink with the image, and KID, whose features are of digits or need weights, is left out by name."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "mine.npz", x_train=rng.integers(0, 256, (40, 20, 20)).astype(np.uint8))
    figures = bench(dataset=str(tmp_path / "mine.npz"), tasks=("box",)).figures
    assert "box, 6 calls/RED-Diff/PSNR" in figures and "KID" in figures["left out"].value
    assert not any(key.endswith("/KID") for key in figures)


def test_only_known_names_are_compared(bench):
    with pytest.raises(ValueError, match="--methods: wanted some of ours"):
        bench(methods=("magic",))
    with pytest.raises(ValueError, match="--tasks: wanted some of box"):
        bench(tasks=("magic",))


def test_a_method_that_breaks_down_is_a_row_without_figures(bench, monkeypatch):
    def broken(method, setting, model, problem, calls):
        return None if "lr" in setting else restore(method, setting, model, problem, calls)

    monkeypatch.setattr(compare, "restore", broken)
    figures = bench().figures
    assert figures["blur, 6 calls/RED-Diff/setting"].value == "diverged"
    assert "blur, 6 calls/RED-Diff/PSNR" not in figures and f"blur, 6 calls/{OURS}/PSNR" in figures


def test_a_setting_that_breaks_down_on_judged_images_gives_way_to_the_next_best(bench, monkeypatch):
    best = {}

    def broken(method, setting, model, problem, calls):
        if "lr" in setting and problem.seeds[0] < compare.AGAIN and setting == best.get("RED-Diff"):
            return None
        return restore(method, setting, model, problem, calls)

    trials = {k.split(": ")[1]: f.value for k, f in bench().figures.items() if "RED-Diff/tuning:" in k}
    best["RED-Diff"], second = sorted(trials, key=trials.get)
    monkeypatch.setattr(compare, "restore", broken)
    figures = bench(fresh=True).figures
    assert figures["blur, 6 calls/RED-Diff/diverged"].value == best["RED-Diff"]
    assert figures["blur, 6 calls/RED-Diff/setting"].value == second and "blur, 6 calls/RED-Diff/PSNR" in figures


class MeanSquare:
    """Every measure is the mean square error, KID the mean of that."""

    def __init__(self, truth):
        self.truth = truth

    def scores(self, x, problem):
        return {name: (x - problem.x).square().mean((1, 2, 3)) for name in ("PSNR", "LPIPS", "DISTS", "distance to m (σ)")}

    def kernel(self, x):
        return mean_statistic((x - self.truth).square().mean((1, 2, 3)))


@pytest.mark.parametrize(("errors", "broken", "holds"), [((0.1, 0.3), (), True), ((0.3, 0.1), (), False), ((None, 0.1), (OURS,), False)])
def test_aims_are_judged_by_who_is_nearer_to_the_truth(tmp_path, errors, broken, holds):
    """Ours better, worse, or broken down, when no aim holds; DISTS must be half of the rival's, and who broke down is no rival."""
    problem = Problem.of(TASKS["blur"], torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)), 0)
    restored = {name: problem.x + e for name, e in zip((OURS, "RED-Diff"), errors, strict=True) if e is not None}
    context = Context(Report("compare", "c0ffee", 0, "c"), quick=False, out=tmp_path)
    compare._differences(context, MeanSquare(problem.x), "blur, 6 calls", restored, problem, (*broken, "DPS"))
    judged = {key: f.holds for key, f in context.report.figures.items() if f.aim}
    assert judged == {
        "blur, 6 calls/RED-Diff/LPIPS, ours minus it, settled": holds,
        "blur, 6 calls/RED-Diff/KID, ours minus it, settled": holds,
        "blur, 6 calls/DISTS, ours over the best Bayesian baseline": holds,
    }


def test_energies_are_compared_under_noise_of_their_own():
    """Not that of the measurement, which would punish who keeps it; and an image less probable than the truth is above 0."""

    class Model(EnergyModel):
        def __init__(self):
            super().__init__()
            self.seen, self.statistics = [], DataStatistics(1, 28, 28)

        def energy(self, y, cov):
            self.seen.append(y)
            return y.square().flatten(1).sum(1)

    problem = Problem.of(TASKS["box"], torch.full((4, 1, 28, 28), 0.5), 7)
    judge = Judge.__new__(Judge)
    judge.model, judge.distances, judge.features = Model(), {}, None
    above = judge.scores(torch.full((4, 1, 28, 28), 0.9), problem)["energy above the truth's (nats/dim)"]
    assert float(above.min()) > 0.5
    noise = (judge.model.seen[1] - problem.x)[:, :, :4].flatten()
    measured = (problem.measurement - problem.x)[:, :, :4].flatten()
    assert abs(float(torch.corrcoef(torch.stack([noise, measured]))[0, 1])) < 0.25  # 448 numbers: five standard errors


def test_the_table_is_made_from_figures_alone():
    report = Report("compare", "c0ffee", 0, "anem bench compare")
    for key, value in {"t/a/PSNR": 20.0, "t/a/tuning: x": 0.5, "t/b/PSNR": 10.0}.items():
        report.figures[key] = Figure(value)
    for suffix, value in {"": -1.0, ", 95 % from": "nan", ", 95 % to": -0.5}.items():
        report.figures[f"t/b/LPIPS, ours minus it{suffix}"] = Figure(value)
    text = markdown(report)
    assert "* b: LPIPS -1 (nan to -0.5)" in text and "* a: x: 0.5" in text and "| a |  |  | 20 |" in text


def test_the_overview_has_a_column_a_task_and_marks_the_best_of_equal_training():
    report = Report("compare", "c0ffee", 0, "anem bench compare")
    for task, values in {"box": (0.3, 0.1, 0.2), "x4": (0.2, 0.1, 0.4)}.items():
        for method, value in zip((OURS, "ours, bundled", "DPS"), values, strict=True):
            report.figures[f"{task}, 250 calls/{method}/LPIPS"] = Figure(value)
            report.figures[f"{task}, 250 calls/{method}/PSNR"] = Figure(100 * value)
    report.figures["box, 250 calls/truth/KID"] = Figure(0.0)
    report.figures["box, 250 calls/DPS/KID"] = Figure(0.0)
    report.figures[f"box, 250 calls/{OURS}/KID"] = Figure(0.25)
    report.figures["box, 250 calls/DPS/calls"] = Figure(250.0)
    for suffix, value in {"": 0.1, ", 95 % from": -0.02, ", 95 % to": 0.22}.items():
        report.figures[f"box, 250 calls/DPS/LPIPS, ours minus it{suffix}"] = Figure(value)
    lines = overview(report).splitlines()
    assert "## 250 calls" in lines and lines.count("|---|---|---|") == 5
    for row in (
        "| LPIPS | box | x4 |",
        "| ours | 0.3 | **0.2** |",
        "| ours, bundled | 0.1 | 0.1 |",
        "| DPS | **0.2** | 0.4 |",
        "| ours | **30** | 20 |",
        "| truth | 0 |  |",
        "| DPS | **0** |  |",
        "| ours | 0.25 |  |",
        "| DPS | 250 |  |",
        "| DPS | 0.1 (-0.02 to 0.22) |  |",
    ):
        assert row in lines, row
    assert "DISTS" not in overview(report)


def test_a_set_of_one_image_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="--images: wanted at least 2, as sets are compared, got 1"):
        compare.run(Context(Report("compare", "", 0, ""), quick=True, out=tmp_path / "out", images=1))
    assert not (tmp_path / "out").exists()
