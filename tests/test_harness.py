"""The frame of the benches: aims, quick runs, resuming, and the JSON file."""

import json
import math
import multiprocessing
import os
import shutil
import subprocess
import time

import pytest
import torch
from rich.console import Console

import anem
from anem.bench import BENCHES, harness
from anem.bench.harness import Context, Settings, load_bench, run_bench
from anem.bench.report import Report, judge, table, write_json
from anem.bench.revision import weights_digest


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run a bench in ``tmp_path`` at a fixed commit, anything else as told."""
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    monkeypatch.setattr(harness, "code", lambda: "beef")

    def start(run, command="anem bench b", seed=0, quick=False, fresh=False, workers=1):
        told = {"seed": seed, "fresh": fresh, "workers": workers}
        settings = Settings(quick=quick, out=tmp_path / "out")
        return run_bench(run, "b", settings, command=command, json_file=tmp_path / "b.json", **told)

    return start


def context(quick=False, seed=0) -> Context:
    return Context(Report("b", "c0ffee", seed, "anem bench b"), quick=quick, out=None)


@pytest.mark.parametrize(
    ("aim", "inside", "outside"),
    [
        ("≤ 0.02", [0.02, -5, 0], [0.0201, float("inf")]),
        ("<= 1e-3", [1e-3], [2e-3]),
        ("≥ 1.8", [1.8, 2, float("inf")], [1.79]),
        (">= -2", [-2], [-3]),
        ("< 1", [0.5], [1]),
        ("> 0", [1e-9], [0]),
        ("0.9–1.2", [0.9, 1.2, 1], [0.89, 1.21]),
        ("-1 to 1", [0, -1], [-1.1, 2]),
    ],
)
def test_aims_are_judged_by_their_own_words(aim, inside, outside):
    assert all(judge(v, aim) for v in inside)
    assert not any(judge(v, aim) for v in [*outside, float("nan"), "1", None])


@pytest.mark.parametrize("aim", ["about 1", "≤", "≤ x", "1", ""])
def test_an_aim_without_a_test_is_refused(aim):
    with pytest.raises(ValueError, match="aim: wanted"):
        judge(1.0, aim)


def test_figures_keep_value_aim_and_verdict():
    c = context()
    c.figure("a", torch.tensor(0.5), aim="≤ 1")
    c.figure("b", 2, aim="≤ 1")
    c.figure("c", "text")
    c.figure("d", 3.0, aim="digits are digits", holds=True)
    verdicts = {key: f.verdict for key, f in c.report.figures.items()}
    assert verdicts == {"a": "yes", "b": "NO", "c": "", "d": "yes"}
    assert c.report.missed == ["b"]
    assert type(c.report.figures["a"].value) is float


def test_a_quick_run_judges_only_what_means_something_there():
    c = context(quick=True)
    c.figure("hard", 2, aim="≤ 1", quick=False)
    c.figure("easy", 2, aim="≤ 1")
    assert c.report.figures["hard"].verdict == "not judged"
    assert c.report.missed == ["easy"]


def test_figures_that_cannot_be_meant_are_refused():
    c = context()
    c.figure("a", 1)
    with pytest.raises(ValueError, match="twice"):
        c.figure("a", 1)
    with pytest.raises(ValueError, match="without an aim"):
        c.figure("b", 1, holds=True)


def test_the_json_file_has_the_promised_form_and_no_nan(start, tmp_path):
    def run(c):
        c.figure("good", 1.0, aim="≤ 2")
        c.figure("undefined", float("nan"), aim="≤ 2")

    report = start(run)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "b.json").read_text(), parse_constant=refuse)
    assert set(data) == {"name", "commit", "code", "weights", "seed", "wall_s", "command", "figures"}
    assert data["figures"]["good"] == {"value": 1.0, "aim": "≤ 2", "holds": True}
    assert data["figures"]["undefined"] == {"value": "nan", "aim": "≤ 2", "holds": False}
    assert report.missed == ["undefined"]
    assert Report.read(tmp_path / "b.json").as_dict() == report.as_dict()


def test_the_file_is_whole_after_every_figure(start, tmp_path):
    seen = []

    def run(c):
        for i in range(3):
            c.figure(f"f{i}", i)
            seen.append(list(json.loads((tmp_path / "b.json").read_text())["figures"]))

    start(run)
    assert seen == [["f0"], ["f0", "f1"], ["f0", "f1", "f2"]]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["b.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError):
        write_json(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def bench(made, stop=False):
    """A bench of three random figures that may be interrupted before the third, and notes what it computes."""

    def run(c):
        for i in range(3):
            if stop and i == 2:
                raise KeyboardInterrupt
            if not c.done(f"f{i}"):
                made.append(i)
                c.figure(f"f{i}", float(torch.randn((), generator=c.generator("f", i))))

    return run


def test_an_interrupted_bench_continues_and_ends_as_if_it_had_not_been(start):
    made = []
    with pytest.raises(KeyboardInterrupt):
        start(bench(made, stop=True))
    assert made == [0, 1]
    resumed = start(bench(made))
    assert made == [0, 1, 2]
    assert resumed.figures == start(bench([]), fresh=True).figures


@pytest.mark.parametrize("change", [{"command": "anem bench b --quick"}, {"seed": 1}, {"fresh": True}])
def test_another_command_or_seed_starts_over(start, change):
    made = []
    start(bench(made))
    start(bench(made), **change)
    assert made == [0, 1, 2, 0, 1, 2]


def test_other_code_starts_over_but_another_commit_of_the_same_code_continues(start, monkeypatch):
    made = []
    start(bench(made))
    monkeypatch.setattr(harness, "commit", lambda: "decaf")
    assert start(bench(made)).commit == "c0ffee"
    assert made == [0, 1, 2]
    monkeypatch.setattr(harness, "code", lambda: "other")
    assert start(bench(made)).commit == "decaf"
    assert made == [0, 1, 2, 0, 1, 2]


def test_an_earlier_report_stays_until_there_is_a_figure_and_beside_it_after(start, tmp_path):
    """A run that fails at once, by a wrong option, costs no result."""
    start(bench([]))
    file = tmp_path / "b.json"
    before = file.read_text(encoding="utf-8")

    def fails(c):
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        start(fails, command="another")
    assert file.read_text(encoding="utf-8") == before
    start(bench([]), command="another")
    kept = file.with_name(f"{file.name}.bak")
    assert kept.read_text(encoding="utf-8") == before and '"another"' in file.read_text(encoding="utf-8")


def test_other_weights_start_over(start, monkeypatch):
    made = []
    monkeypatch.setattr("anem.bench.harness.weights_digest", lambda model: "one")
    start(bench(made))
    count = len(made)
    start(bench(made))
    assert len(made) == count
    monkeypatch.setattr("anem.bench.harness.weights_digest", lambda model: "two")
    assert start(bench(made)).weights == "two" and len(made) == 2 * count


def test_the_digest_of_weights_is_of_the_file(tmp_path):
    assert weights_digest(str(tmp_path)) == "" == weights_digest(str(tmp_path / "nowhere"))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = weights_digest(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert len(first) == 12 and weights_digest(str(tmp_path)) != first


def test_time_adds_up_over_interruptions(start, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 100.0, 105.0, 107.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))

    def run(c, stop):
        if not c.done("a"):
            c.figure("a", 1)
            c.figure("b", 1)
        if stop:
            raise KeyboardInterrupt
        c.figure("c", 1)

    with pytest.raises(KeyboardInterrupt):
        start(lambda c: run(c, True))
    assert start(lambda c: run(c, False)).wall_s == 20 + 7


def test_a_file_that_is_no_report_is_not_overwritten(start, tmp_path):
    (tmp_path / "b.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="not a bench report"):
        start(bench([]))
    assert (tmp_path / "b.json").read_text() == '{"mine": 1}'


def test_generators_depend_on_seed_and_labels_only():
    def draw(c, *labels):
        return float(torch.rand((), generator=c.generator(*labels)))

    same = {draw(context(), "a", 1), draw(context(), "a", 1)}
    different = {draw(context(), "a", 1), draw(context(), "a", 2), draw(context(), "b", 1), draw(context(seed=1), "a", 1)}
    assert len(same) == 1
    assert len(different) == 4


def test_the_table_says_what_holds_and_what_is_not_judged():
    c = context(quick=True)
    c.figure("one", 0.123456, aim="≤ 1")
    c.figure("two", 2.0, aim="≤ 1")
    c.figure("three", 2.0, aim="≤ 1", quick=False)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(table(c.report))
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.split()}
    assert "0.1235" in lines["one"] and "yes" in lines["one"]
    assert "NO" in lines["two"]
    assert "not judged" in lines["three"]


def test_every_listed_bench_is_there():
    for name in BENCHES:
        module = load_bench(name, BENCHES)
        assert module.__doc__ and callable(module.run)
    with pytest.raises(ValueError, match="no bench 'nonsense'"):
        load_bench("nonsense", BENCHES)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_the_code_change_with_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "__init__.py"
    file.write_text("")
    monkeypatch.setattr(anem, "__file__", str(file))
    git("init")
    assert harness.commit() == f"anem {anem.__version__}"
    git("add", ".")
    git("commit", "-m", "one")
    clean = harness.commit()
    assert len(clean) == 40
    file.write_text("a = 1")
    first = harness.commit()
    file.write_text("a = 2")
    second = harness.commit()
    (tmp_path / "new.py").write_text("")
    assert len({clean, first, second, harness.commit()}) == 4
    assert first.startswith(clean + "+")


def count_pieces(context: Context) -> None:
    """A bench of four pieces that say in which process they were made."""
    made = context.pieces("numbers", [(i, context.out / "log") for i in range(4)], make_piece)
    if made is not None:
        context.figure("sum", sum(float(piece["value"].sum()) for piece in made))
        context.figure("processes", len({piece["process"] for piece in made}))


def make_piece(item: tuple) -> dict:
    """Logged; the first waits until another process has begun one, if there is one within ten seconds."""
    i, log = item
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + 10
    while i == 0 and multiprocessing.parent_process() and len(set(log.read_text().split())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"value": torch.full((2,), float(i)), "process": os.getpid()}


def test_pieces_are_shared_by_workers_and_read_back(start, tmp_path):
    report = start(count_pieces, workers=2)
    assert report.figures["sum"].value == 12 and report.figures["processes"].value == 2 and report.workers == 2
    log = tmp_path / "out" / "log"
    assert len(log.read_text().split()) == 4 and str(os.getpid()) not in log.read_text()  # once each, and none of them here
    files = sorted((tmp_path / "out" / "pieces").glob("*.pt"))
    assert len(files) == 4
    (tmp_path / "b.json").unlink()
    files[0].unlink()
    again = start(count_pieces)  # what is left is read back
    assert again.figures["sum"].value == 12 and log.read_text().split()[4:] == [str(os.getpid())]
    for k, other in enumerate(({"seed": 1}, {"fresh": True, "seed": 1})):
        start(count_pieces, **other)
        assert len(log.read_text().split()) == 5 + 4 * (k + 1)


def test_a_fresh_run_goes_on_with_what_it_has_made(start, tmp_path):
    start(count_pieces)

    def cut(context):
        context.pieces("numbers", [(i, context.out / "log") for i in range(2)], make_piece)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(cut, fresh=True)
    assert not (tmp_path / "b.json").exists() and (tmp_path / "b.json.bak").exists()
    assert start(count_pieces).figures["sum"].value == 12
    assert len((tmp_path / "out" / "log").read_text().split()) == 4 + 2 + 2


def sections(context: Context) -> None:
    """A bench of two sections, and a figure of both."""
    for name, value in (("a", 1.0), ("b", math.inf)):
        context.section(name, lambda name=name, value=value: context.figure(name, value, aim="≤ 2"))
    if not context.worker:
        context.figure("worked", len({f for f in context.out.glob("pieces/*.json") if f.name != "of.json"}))


def test_sections_of_workers_are_taken_over(start, tmp_path):
    assert start(sections).figures["worked"].value == 0
    (tmp_path / "b.json").unlink()
    report = start(sections, workers=2)
    assert report.figures == Report.read(tmp_path / "b.json").figures
    assert report.figures["worked"].value == 2
    (tmp_path / "b.json").unlink()
    assert start(lambda context: context.section("a", lambda: None)).figures.keys() == {"a"}
    a, b = report.figures["a"], report.figures["b"]
    assert (a.value, a.aim, a.holds) == (1.0, "≤ 2", True) and (b.value, b.holds) == ("inf", False)


def test_a_worker_that_fails_leaves_its_pieces_and_the_run_says_why(start):
    with pytest.raises(ValueError, match="piece 1: wanted"):
        start(fail, workers=2)
    with pytest.raises(ValueError, match="workers: wanted at least 1, got 0"):
        start(fail, workers=0)


def fail(context: Context) -> None:
    context.pieces("numbers", [1], make_none)


def make_none(i: int) -> dict:
    raise ValueError(f"piece {i}: wanted something")


def test_claims_of_workers_that_are_gone_are_forgotten(start, tmp_path):
    start(count_pieces)
    folder = tmp_path / "out" / "pieces"
    for file in folder.glob("*.pt"):
        file.with_suffix(".claim").touch()
        file.unlink()
    (tmp_path / "b.json").unlink()
    assert start(count_pieces, workers=2).figures["sum"].value == 12
    assert (tmp_path / "out" / "log").read_text().split().count(str(os.getpid())) == 4  # none but the first four
