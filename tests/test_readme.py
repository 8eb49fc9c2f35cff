"""What the README shows, run as it stands: its Python in order, its recipe, its commands.

Tiny models and rows stand in for the packaged samples.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict
from tiny import save_folder, tiny_causal, tiny_model, tiny_rows, tiny_texts, tiny_tokenizer
from typer.testing import CliRunner

from potstill import losses
from potstill.cli import app
from potstill.data import load, samples
from potstill.kinds import KINDS, family
from potstill.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"


# Nine trainings and twenty trials, of tiny models too, take longer than a test may: budgets are cut, nothing else.
QUICKER = {
    "compare": ("--seeds", "1", "distill.0.train.steps=2", "evaluate.cost=false"),
    "search": ("--budget", "2", "distill.0.train.steps=2"),
}


def blocks(language: str, page: str = README) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def sample_rows() -> DatasetDict:
    """A stand-in for the packaged reviews."""
    texts, labels = tiny_texts(96)
    names = [("negative", "positive")[label] for label in labels]
    cut = {"train": slice(0, 48), "validation": slice(48, 72), "test": slice(72, 96)}
    return DatasetDict({s: Dataset.from_dict({"text": texts[p], "label": names[p]}) for s, p in cut.items()})


@pytest.fixture
def new_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where the packaged samples are tiny."""
    model = save_folder(tiny_model(layers=6), tmp_path / "sample")
    monkeypatch.setattr(samples, "fetch_model", lambda name: model)
    monkeypatch.setattr(load, "load_sample_data", lambda name, options: sample_rows())
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.mark.filterwarnings("ignore:.*pin_memory")  # the default of TrainingArguments, without an accelerator
@pytest.mark.timeout(600)
def test_the_python_runs_in_order_as_shown(new_user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(tiny_model(layers=4), new_user / "my-teacher")
    names = {"dataset": tiny_rows(16)}
    shown = blocks("python")
    assert len(shown) == 3
    for block in shown:
        exec(compile(block, "README.md", "exec"), names)
    assert "istillation" in capsys.readouterr().out
    assert (new_user / "runs/reviews/report.html").is_file()
    assert (new_user / "my-student/model.safetensors").is_file()
    assert names["student"].config.num_hidden_layers == 2

    from transformers import TrainingArguments

    quiet = TrainingArguments("own", max_steps=1, report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True)
    rows = [{"input_ids": [2, 5, 3], "labels": 1}] * 4
    trainer = names["MyTrainer"](model=names["student"], args=quiet, train_dataset=rows)
    assert trainer.train().global_step == 1


def test_the_recipe_is_the_shipped_one() -> None:
    (shown,) = blocks("yaml")
    recipe = load_recipe(yaml.safe_load(shown)).as_dict()
    assert {**recipe, "name": "reviews"} == load_recipe("reviews").as_dict()


@pytest.mark.timeout(1200)  # whole runs of three seeds, one after the other
def test_the_commands_run_as_shown(new_user: Path) -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("potstill")]
    assert [words[0] for words in commands] == [
        *("plan", "run", "run", "recipes", "predict", "compare", "search", "cache", "cache"),
    ]
    for words in commands:
        words = [*words, *QUICKER.get(words[0], ())]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    assert (new_user / "runs/three/seeds/2/student").is_dir()
    assert (new_user / "mine.yaml").is_file()


def test_the_step_ratio_is_the_measured_one() -> None:
    measured = json.loads((Path(__file__).parents[1] / "benchmarks/results/step.json").read_text(encoding="utf-8"))
    assert f"takes {measured['ratio']['median']:.2f} of the time" in README
    assert f"median of {len(measured['ratio']['all'])} paired segments" in README


def test_every_picture_and_page_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_a_language_model_is_distilled_as_the_quickstart_shows(new_user: Path) -> None:
    for name, layers in (("my-teacher", 2), ("my-student", 1)):
        tiny_causal(layers=layers).save_pretrained(new_user / name)
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.save_pretrained(new_user / name)
    shown = next(
        block for block in blocks("python", (DOCS / "quickstart.md").read_text("utf-8")) if "CausalLM" in block
    )
    assert shown.count("max_steps=1000") == 1
    exec(shown.replace("max_steps=1000", "max_steps=2"), {"texts": tiny_texts(40)[0]})
    assert (new_user / "my-small-model/model.safetensors").exists()


def test_the_table_of_losses_names_what_each_knowledge_takes() -> None:
    page = (DOCS / "recipes.md").read_text("utf-8")
    section = page.partition("### Losses by knowledge")[2].partition("###")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    told = {kind: re.findall(r"`(\w+)`", losses_) for kinds, losses_ in rows for kind in re.findall(r"`(\w+)`", kinds)}
    spans = {"mgskd_tokens", "mgskd_spans"}  # written as those that are left out
    for kind in ("features", "patches"):
        told[kind] = ["hidden_mse", *(set(told["hidden"]) | set(told[kind])) - {"hidden_mse", *spans}]
    assert told.keys() - {"knowledge", "loss"} == KINDS.keys()
    for kind, takes in KINDS.items():
        fitting = {name for name in losses.__all__ if family(getattr(losses, name)) in takes.families}
        assert set(told[kind]) == fitting, kind
        assert takes.usual in (None, told[kind][0])
