"""The command line: what each command prints and leaves, one clean message for what is wrong, and being stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file
from tiny_runs import SHORT, merged, tiny_files, tiny_recipe, write_csv

from potstill.cli import main
from potstill.pipeline import run

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command as the shell would, in this process: (exit code, what it printed, what it said of errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potstill", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as done:
            code = done.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe file and its finished run."""
    folder = tmp_path_factory.mktemp("home")
    recipe = tiny_recipe(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    run(folder / "tiny.yaml", folder / "run")
    return folder


# ---- each command


def test_help_needs_nothing_heavy() -> None:
    """What makes a start slow; a time in an assertion would be of the machine."""
    heavy = ("torch", "transformers", "pydantic", "numpy", "datasets", "yaml", "rich.table")
    code = f"""
import sys
from potstill.cli import main
sys.argv = ["potstill", "--help"]
try:
    main()
except SystemExit as done:
    assert not done.code
print("loaded:", *[name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert not loaded & {"torch", "transformers", "pydantic", "numpy", "datasets"}
    for command in (
        "run",
        "plan",
        "predict",
        "evaluate",
        "export",
        "report",
        "recipes",
        "samples",
        "compare",
        "search",
    ):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "command", ["run", "plan", "predict", "evaluate", "export", "report", "recipes", "samples", "compare", "search"]
)
def test_help_of_each_command(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0 and "Usage" in out


def test_version(cli: Cli) -> None:
    assert cli("--version")[:2] == (0, "potstill 0.1.0\n")


def test_run_and_run_again(cli: Cli, home: Path) -> None:
    code, out, err = cli("run", home / "tiny.yaml", "--out", home / "run")
    assert (code, err) == (0, "")
    for said in ("Teacher", "Student", "accuracy %", str(home / "run" / "student"), str(home / "run" / "report.html")):
        assert said in out
    results = json.loads((home / "run" / "results.json").read_text())
    assert results["verdict"]["headline"] in out
    assert results["run"]["command"].startswith("potstill run ")


def test_run_of_another_recipe(cli: Cli, home: Path) -> None:
    code, _, err = cli("run", home / "tiny.yaml", "student.layers=1", "--out", home / "run")
    assert code == 1
    assert err.startswith("error: The folder ") and "student.layers: 2 -> 1" in err and "--update" in err


def test_default_run_folder(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("run", home / "tiny.yaml")[0] == 0
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_plan(cli: Cli, home: Path) -> None:
    code, out, err = cli("plan", home / "tiny.yaml", "distill.0.train.steps=5")
    assert (code, err) == (0, "")
    assert "student: distill: 5 steps" in out and "[B,V] with [B,V]" in out
    assert sorted(path.name for path in home.iterdir()) == sorted(
        ["tiny.yaml", "run", "model", "train.csv", "validation.csv", "test.csv"]
    )


def test_predict(cli: Cli, home: Path) -> None:
    code, out, err = cli("predict", home / "run" / "student", "a good film", "a bad plot " * 100)
    assert (code, err) == (0, "")
    for line, text in zip(out.splitlines(), ("a good film", "a bad plot"), strict=True):
        answers, said = line.split("\t")
        first, second = (part.split() for part in answers.split(", "))
        assert {first[0], second[0]} == {"bad", "good"} and float(first[1]) >= float(second[1])
        assert float(first[1]) + float(second[1]) == pytest.approx(1, abs=0.002)
        assert said.startswith(text)


def test_long_texts_are_cut_to_the_models_positions(cli: Cli, home: Path, tmp_path: Path) -> None:
    """Where the tokenizer knows no limit the model still has one."""
    shutil.copytree(home / "run" / "student", tmp_path / "student")
    config = tmp_path / "student" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 10**30}))
    code, out, err = cli("predict", tmp_path / "student", "a bad plot " * 100)
    assert (code, err) == (0, "") and "a bad plot" in out


def test_evaluate_says_what_the_run_said(cli: Cli, home: Path) -> None:
    results = json.loads((home / "run" / "results.json").read_text())
    accuracy = results["models"][-1]["metrics"]["accuracy"]["mean"]
    test = tiny_files(home)["test"]
    code, out, err = cli("evaluate", home / "run" / "student", "--data", test, "--teacher", home / "run" / "teacher")
    assert (code, err) == (0, "")
    for said in (
        "30 of test",
        f"{100 * accuracy:.2f} %",
        "Calibration error (ECE)",
        "less teacher",
        "Agreement with teacher",
        "KL to teacher",
    ):
        assert said in out, out


def test_evaluate_beside_a_teacher_of_another_tokenizer(cli: Cli, home: Path, tmp_path: Path) -> None:
    """Each model gets its own ids: the same model under a permuted vocabulary agrees with itself."""
    import torch
    from tiny import save_folder, tiny_tokenizer
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    model = AutoModelForSequenceClassification.from_pretrained(home / "run" / "student")
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    swapped = {**words, "good": words["bad"], "bad": words["good"]}
    state["model"]["vocab"] = swapped
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **{name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")},
        model_max_length=64,
    )
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[[words["good"], words["bad"]]] = table[[words["bad"], words["good"]]].clone()
    save_folder(model, tmp_path / "other", other)
    found = cli(
        "evaluate", home / "run" / "student", "--data", tiny_files(home)["test"], "--teacher", tmp_path / "other"
    )
    assert "100.00 %" in next(line for line in found[1].splitlines() if line.startswith("Agreement"))


def test_export(cli: Cli, home: Path, tmp_path: Path) -> None:
    code, out, err = cli("export", home / "run" / "student", "--out", tmp_path / "files", "--formats", "onnx")
    assert (code, err) == (0, "")
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["model.onnx"]
    assert "logits differ by at most" in out


def test_report_is_made_anew(cli: Cli, home: Path) -> None:
    (home / "run" / "report.html").unlink()
    code, out, err = cli("report", home / "run")
    assert (code, err) == (0, "")
    assert (home / "run" / "report.html").is_file() and str(home / "run" / "report.html") in out


def test_recipes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["recipes"], ["recipes", "list"]):
        code, out, _ = cli(*arguments)
        assert code == 0 and any(line.startswith("reviews  ") for line in out.splitlines())
    listed = dict(line.split("  ", 1) for line in cli("recipes", "list")[1].splitlines())
    assert all(text.endswith(".") for text in listed.values())
    assert listed["kd"].startswith("Knowledge distillation as Hinton et al. (2015) have it")  # whole, and no more
    assert "task: text_classification" in cli("recipes", "show", "reviews")[1]
    assert cli("recipes", "copy", "reviews")[:2] == (0, "reviews.yaml\n")
    assert yaml.safe_load((tmp_path / "reviews.yaml").read_text())["task"] == "text_classification"
    code, _, err = cli("recipes", "copy", "reviews")
    assert code == 1 and "reviews.yaml is there already" in err
    assert cli("recipes", "copy", "reviews", "mine.yaml")[0] == 0
    code, _, err = cli("recipes", "show", "review")
    assert code == 1 and "Did you mean 'reviews'?" in err


def test_samples(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
    code, out, _ = cli("samples")
    assert code == 0
    for name in ("minilm-l6", "mpnet-base", "reviews", "MB", str(tmp_path)):
        assert name in out


# ---- what is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "review"], "Did you mean 'reviews'?"),
        (["run", "reviews", "evaluat.seeds=3"], "Unknown key 'evaluat'. Did you mean 'evaluate'?"),
        (["plan", "reviews", "data.nam=3"], "Unknown key 'nam'. Did you mean 'name'?"),
        (["predict", "nowhere", "text"], "nowhere holds no model"),
        (["evaluate", "nowhere", "--data", "reviews"], "nowhere holds no model"),
        (["predict", "no/where", "text"], "'no/where' is neither a model's folder nor a hub id"),
        (["export", "nowhere"], "nowhere holds no model"),
        (["report", "nowhere"], "nowhere holds no finished run"),
    ],
)
def test_one_clean_message(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert said in err and "Traceback" not in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_every_problem_is_a_line(cli: Cli) -> None:
    err = cli("run", "reviews", "evaluat.seeds=3", "data.nam=3", "nokey")[2]
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize("arguments", [["nocommand"], ["run"], ["run", "reviews", "--nooption"]])
def test_wrong_use(cli: Cli, arguments: list[str]) -> None:
    code, _, err = cli(*arguments)
    assert code == 2 and "Usage" in err and "Traceback" not in err


def test_unknown_format_and_split(cli: Cli, home: Path) -> None:
    code, _, err = cli("export", home / "run" / "student", "--formats", "onnxx")
    assert code == 1 and "Unknown format 'onnxx'. Did you mean 'onnx'?" in err
    file = write_csv(home / "run" / "other.csv", {"text": ["a good film"], "label": ["so so"]})
    code, _, err = cli("evaluate", home / "run" / "student", "--data", file)
    assert code == 1 and "'so so'" in err and "Traceback" not in err


# ---- being stopped


def stoppable(folder: Path) -> Path:
    """A recipe whose student takes a while, with checkpoints on the way; its file."""
    train = {**SHORT, "steps": 60, "checkpoint_steps": 7, "batch_size": 4}
    terms = [{"knowledge": "logits"}, {"knowledge": "hidden", "project": "linear"}]
    recipe = tiny_recipe(folder, {"distill": [{"terms": terms, "train": train}], "refine": {"train": SHORT}})
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


# The command, with a pause after each step so that it can be met in the middle.
SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background would have it ignored
from transformers import TrainerCallback
from potstill.training import stages
whole = stages._Clock.on_step_end
def slow(self, args, state, control, **kwargs):
    whole(self, args, state, control, **kwargs)
    print("step", state.global_step, flush=True)
    time.sleep(PAUSE if state.max_steps > 10 else 0)
stages._Clock.on_step_end = slow
import torch; torch.set_num_threads(1)
from potstill.cli import main
main()
"""


def started(file: Path, out: Path, pause: float) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    code = SLOW.replace("PAUSE", str(pause))
    command = [sys.executable, "-c", code, "run", str(file), "--out", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def stopped(file: Path, out: Path, how: signal.Signals) -> tuple[int, str]:
    """Start the command and send it a signal after its second checkpoint; its exit code and error stream."""
    process = started(file, out, 0.2)
    try:
        limit = time.monotonic() + 120
        while not list(out.glob("work/seeds-0-student/*/0/checkpoint-14/complete")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(how)
        return process.wait(60), process.communicate()[1]
    finally:
        process.kill()


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of each model, times apart, and the student's weights."""
    results = json.loads((folder / "results.json").read_text())
    numbers = {model["key"]: merged(model, {"training": None}) for model in results["models"]}
    return numbers, load_file(folder / "student" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, and its run from start to end in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = started(stoppable(folder), folder / "whole", 0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "step 1\n" in out
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_ends_the_same(uninterrupted: Path, how: signal.Signals) -> None:
    folder = uninterrupted
    code, err = stopped(folder / "tiny.yaml", folder / how.name, how)
    if how == signal.SIGINT:
        assert code == 130
        assert "stopped. The same command goes on from the last checkpoint." in err and "Traceback" not in err
    assert not (folder / how.name / "results.json").exists()
    process = started(folder / "tiny.yaml", folder / how.name, 0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    steps = [int(line.split()[1]) for line in out.splitlines() if line.startswith("step")]
    assert steps[0] == 15, "it goes on from the checkpoint of step 14"
    numbers, weights = outcome(folder / how.name)
    expected, expected_weights = outcome(folder / "whole")
    assert weights.keys() == expected_weights.keys()
    assert all((weights[name] == expected_weights[name]).all() for name in weights)
    assert numbers == expected


# ---- comparisons and searches


def test_compare_prints_the_table_and_the_verdict(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    axis = "distill.0.terms.0.temperature=1,2"
    code, out, err = cli(
        "compare", recipe, "--vary", axis, "--seeds", 1, "--out", tmp_path / "out", "data.max_length=16"
    )
    assert code == 0, err
    for said in ("plain", "temperature 1", "temperature 2", "over plain", "No variant can be told", "comparison.html"):
        assert said in out
    page = tmp_path / "out" / "comparison.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    code, out, err = cli("report", tmp_path / "out")
    assert code == 0, err
    assert "No variant can be told" in out and page.read_text(encoding="utf-8") == before


def test_compare_without_anything_to_vary(cli: Cli, home: Path) -> None:
    code, _, err = cli("compare", home / "tiny.yaml")
    assert code == 1 and "Nothing is varied" in err


def test_search_prints_trials_and_the_command_for_the_best(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    space = "distill.0.terms.0.temperature=1..8:log"
    code, out, err = cli("search", recipe, "--space", space, "--budget", 2, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"potstill run {tmp_path / 'out' / 'best.yaml'}" in out.replace("\n", "")
    assert "The test rows were not looked at" in out
    assert json.loads((tmp_path / "out" / "search.json").read_text())["best"] in (0, 1)


def test_search_without_optuna_says_how_to_get_it(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = cli("search", home / "tiny.yaml", "--space", "distill.0.terms.0.temperature=1,2")
    assert code == 1 and "pip install optuna" in err
