"""TransKD as whole objectives: every module that trains learns, in batches of one too, and none of it is shipped."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import tiny_inputs, tiny_model, tiny_upernet
from tiny_images import tiny_image_recipe
from tiny_runs import SHORT
from transformers import AutoModelForImageClassification, SegformerConfig, SegformerForImageClassification

from potstill.errors import ShapeError
from potstill.knowledge import describe, observe
from potstill.objective import Objective, Scene
from potstill.pipeline import run
from potstill.plan import plan
from potstill.progress import Silent
from potstill.recipe import load_recipe
from potstill.tasks import ImageClassification
from potstill.training import Distiller
from potstill.training.checkpoints import _load, _save
from potstill.training.distiller import Member, detached

DOCS = Path(__file__).parents[1] / "docs" / "vision.md"
TASK = ImageClassification()
STAGES = {"num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2], "sr_ratios": [8, 4, 2, 1]}
STAGES |= {"num_attention_heads": [1, 1, 2, 2], "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2]}
SMALL = {**STAGES, "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16}
LARGE = {**STAGES, "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32}


def shown() -> dict[str, list[dict[str, Any]]]:
    """The lists of terms that the page on images shows, by the name in the comment above them."""
    blocks = re.findall(r"^```yaml\n# (\w+)\n(terms:.*?)^```", DOCS.read_text("utf-8"), re.M | re.S)
    return {name: yaml.safe_load(block)["terms"] for name, block in blocks}


METHODS = shown()


def segformer(sizes: dict[str, Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegformerForImageClassification(SegformerConfig(**sizes, num_labels=2)).eval()


def of_features(name: str) -> list[dict[str, Any]]:
    """What a method compares between stages; its labels and logits are the task's."""
    return [term for term in METHODS[name] if term["knowledge"] in ("features", "patches")]


def distiller(terms: list[dict[str, Any]], seed: int = 0) -> Distiller:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Distiller(segformer(SMALL, 1), Objective(terms), TASK, segformer(LARGE, 2)).train()


def batch(rows: int) -> dict[str, torch.Tensor]:
    pixels = torch.randn(rows, 3, 64, 96, generator=torch.Generator().manual_seed(rows))
    return {"pixel_values": pixels, "labels": torch.zeros(rows, dtype=torch.long)}


def test_the_page_shows_every_method() -> None:
    recipes = {"transkd_base", "transkd_gl", "transkd_ea", "knowledge_review", "segmentation_skd"}
    assert set(METHODS) >= recipes | {"cwd_of_features"}
    for name in recipes:
        assert (
            load_recipe(name).as_dict()["distill"][0]["terms"]
            == load_recipe(
                load_recipe(name).as_dict() | {"distill": [{"terms": METHODS[name], "train": {"epochs": 1}}]}
            ).as_dict()["distill"][0]["terms"]
        )


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["transkd_base", "transkd_gl", "transkd_ea", "knowledge_review"])
def test_everything_that_trains_learns(name: str, rows: int) -> None:
    made = distiller(of_features(name))
    parts = made(batch(rows))
    assert all(share.isfinite() and share > 0 for share in parts.terms.values())
    parts.total.backward()
    for name, parameter in made.projectors.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    reached = [p.grad is not None and bool(p.grad.any()) for p in made.student.segformer.stages.parameters()]
    assert sum(reached) > len(reached) / 2
    assert all(p.grad is None for p in made.teacher.parameters())


def test_an_assistant_asks_for_the_features_that_it_reads() -> None:
    terms = [{"knowledge": "patches", "project": "embedding_assistant"}]
    made = distiller(terms)
    assert made.objective.needs("student").features == {0, 1, 2}
    assert not made.objective.needs("teacher").features
    assert made(batch(2)).total > 0


@pytest.mark.parametrize("name", ["transkd_gl", "transkd_ea", "knowledge_review"])
def test_mixed_precision_gives_about_the_same(name: str) -> None:
    made = distiller(of_features(name))
    plain = made(batch(3)).terms
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made(batch(3)).terms
    for term, share in plain.items():
        assert mixed[term].dtype == torch.float32
        assert mixed[term].item() == pytest.approx(share.item(), rel=0.05)


def test_scalars_start_at_what_is_written() -> None:
    mixer = distiller(of_features("transkd_gl")).projectors["patches_gl_mixer"].mixer
    assert mixer.alpha.tolist() == mixer.beta.tolist() == [0.5]
    assistant = distiller(of_features("transkd_ea")).projectors["patches_embedding_assistant"]
    assert assistant.own.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert assistant.assisted.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8])


def test_what_trains_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    made, fresh = distiller(of_features("transkd_ea"), seed=1), distiller(of_features("transkd_ea"), seed=2)
    made(batch(3))  # moves the running statistics
    _save(made.projectors.state_dict(), tmp_path / "projectors.safetensors")
    assert not torch.equal(made.eval()(batch(2)).total, fresh.eval()(batch(2)).total)
    _load(fresh.projectors, tmp_path / "projectors.safetensors")
    assert torch.equal(made(batch(2)).total, fresh(batch(2)).total)


def test_a_batch_of_one_is_normalised_by_what_was_seen_before() -> None:
    made = distiller(of_features("transkd_base"))
    choice = made.projectors["features_csf"].fuse[0]
    seen = choice.norm.running_mean.clone()
    made(batch(1))
    assert torch.equal(choice.norm.running_mean, seen)
    made(batch(3))
    assert not torch.equal(choice.norm.running_mean, seen)


@pytest.mark.parametrize("name", ["transkd_base", "transkd_gl", "transkd_ea"])
def test_pvt_inside_upernet_is_taught_as_segformer_is(name: str) -> None:
    student, teacher = tiny_upernet("pvt_v2", seed=1), tiny_upernet("pvt_v2", seed=2)
    objective = Objective(of_features(name)).bind(describe(student), describe(teacher))
    made = Member(student, objective, rows=0)
    pixels = batch(2)["pixel_values"]
    known = [observe(model, {"pixel_values": pixels}, objective.needs("student")) for model in (student, teacher)]
    masks = {"outputs": torch.ones(2, dtype=torch.bool)}
    scene = Scene(None, masks, modules=dict(made.projectors.items()), pixels=pixels)
    found = objective(known[0], detached(known[1]), scene)
    found.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.projectors.parameters())
    assert sum(p.grad is not None and bool(p.grad.any()) for p in student.backbone.parameters()) > 20


def test_an_assistant_of_another_grid_is_refused() -> None:
    student, teacher = tiny_model("swin", layers=3), tiny_model("swin", layers=3, width=64, heads=8)
    student.config.patch_size = 4
    terms = [{"knowledge": "patches", "project": "embedding_assistant"}]
    assert Distiller(student, Objective(terms), TASK, teacher)(tiny_inputs("swin")).total > 0
    vit = tiny_model("vit", layers=2), tiny_model("vit", layers=2, width=64)
    with pytest.raises(ShapeError, match="stage 0: 24 patches of the student, 96 of it"):
        Distiller(vit[0], Objective(terms), TASK, vit[1])(tiny_inputs("vit"))


@pytest.mark.parametrize("name", ["transkd_gl", "transkd_ea", "knowledge_review"])
def test_the_shipped_student_has_the_plain_students_parameters(name: str, tmp_path: Path) -> None:
    made = tiny_image_recipe(tmp_path) | {
        "teacher": {"config": {"model_type": "segformer", **LARGE}, "train": dict(SHORT)},
        "student": {"config": {"model_type": "segformer", **SMALL}},
        "distill": [{"terms": [{"knowledge": "labels"}, *of_features(name)], "train": dict(SHORT)}],
    }
    made["data"]["image_size"] = [64, 96]
    planned = next(stage for stage in plan(made).stages if stage.title.startswith("student"))
    kind = "abf" if name == "knowledge_review" else "csf"
    assert planned.terms[1].projection == f"{kind} 8, 8, 16, 16 to 8, 16, 24, 32"
    assert planned.terms[1].shape == "[B,16,H,W] with [B,32,H,W]"
    outcome = run(made, tmp_path / "run", progress=Silent())
    plain = segformer(SMALL, 0)
    plain.save_pretrained(tmp_path / "plain")
    shapes = [
        {key: value.shape for key, value in load_file(folder / "model.safetensors").items()}
        for folder in (outcome.student, tmp_path / "plain")
    ]
    assert shapes[0] == shapes[1]
    _, info = AutoModelForImageClassification.from_pretrained(outcome.student, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found = next(model for model in outcome.results["models"] if model["key"] == "student")
    shares = found["curves"][-1]["points"][-1]["parts"]
    assert set(shares) == {"labels", *(term["knowledge"] for term in of_features(name))}
    assert describe(plain).patches == (8, 8, 16, 16)
