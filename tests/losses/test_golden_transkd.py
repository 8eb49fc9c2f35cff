"""Our projections of features and patches give what the code of TransKD gives; `golden/make_transkd.py` ran it.

Whole terms are compared, as a recipe writes them: the projected maps, the losses, and their gradients at everything
that comes from the student. The published weights are known by name and drawn from a seed.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.feature_inputs import drawn
from torch import Tensor

from potstill.knowledge import Knowledge, ModelShape
from potstill.objective import BoundObjective, Objective, Scene
from potstill.projectors import projector

ENTRIES = {
    entry["name"]: entry
    for entry in json.loads((Path(__file__).parent / "golden" / "transkd.json").read_text(encoding="utf-8"))
}
PEA = [0.1, 0.1, 0.5, 1.0]
SUM = [1, 1, 1, 1]
FEATURES = {"knowledge": "features", "loss": "hcl", "project": "csf", "stage_weights": SUM}
TERMS = {
    "linear": [FEATURES, {"knowledge": "patches", "project": "linear", "stage_weights": PEA}],
    "gl_mixer": [FEATURES, {"knowledge": "patches", "project": "gl_mixer", "stage_weights": PEA}],
    "embedding_assistant": [
        FEATURES,
        {"knowledge": "patches", "project": "embedding_assistant", "stage_weights": PEA},
    ],
    "review": [FEATURES | {"project": "abf"}],
}
RENAMED = (  # published name -> ours; stages are counted from the deepest there
    (r"(?:skfs|abfs)\.(\d)\.conv1\.", lambda m: f"enter.{3 - int(m[1])}."),
    (r"(?:skfs|abfs)\.(\d)\.conv2\.", lambda m: f"leave.{3 - int(m[1])}."),
    (r"skfs\.(\d)\.fc\.0\.", lambda m: f"fuse.{3 - int(m[1])}.squeeze."),
    (r"skfs\.(\d)\.fc\.1\.", lambda m: f"fuse.{3 - int(m[1])}.norm."),
    (r"skfs\.(\d)\.fcs\.", lambda m: f"fuse.{3 - int(m[1])}.choose."),
    (r"abfs\.(\d)\.att_conv\.0\.", lambda m: f"fuse.{3 - int(m[1])}.gates."),
    (r"embed(\d)_linearproject\.", lambda m: f"maps.{int(m[1]) - 1}."),
    (r"patch_embed(\d)\.proj\.", lambda m: f"assistants.{int(m[1]) - 1}.convolution."),
    (r"patch_embed(\d)\.norm\.", lambda m: f"assistants.{int(m[1]) - 1}.norm."),
    (r"attn4\.qkv\.", "mixer.attend."),
    (r"attn4\.proj\.", "mixer.merge."),
    (r"conv1\.", "mixer.local."),
    (r"conv2\.", "mixer.gate."),
    (r"atten_weight", "mixer.alpha"),
    (r"conv_weight", "mixer.beta"),
)
FOR_ONE_IMAGE = r"skfs\.\d\.fc1\."  # a second convolution of the code, for batches of one


def our_weights(entry: dict[str, Any]) -> dict[str, Tensor]:
    published = drawn(entry["weights"], entry["seed"] + 1)
    found = {}
    for name, value in published.items():
        renamed = name
        for pattern, ours in RENAMED:
            if re.match(pattern, name):
                renamed = re.sub(f"^{pattern}", ours, name)
                break
        found[renamed] = value
    scalars = [found.pop(f"fuse_weights.{i}") for i in range(8)] if "fuse_weights.0" in found else []
    if scalars:
        found |= {"own": torch.cat(scalars[:4]), "assisted": torch.cat(scalars[4:])}
    return {name: value for name, value in found.items() if not re.match(FOR_ONE_IMAGE, name)}


def fill(modules: dict[str, torch.nn.Module], weights: dict[str, Tensor]) -> None:
    """Every parameter of ours gets the published value of its name, and every published one is used."""
    left = dict(weights)
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            own = key if "_to_" not in name else f"maps.{name[-1]}.{key}"
            parameter.data = left.pop(own).reshape(parameter.shape)
    assert not left


def knowledge(side: str, x: dict[str, Tensor]) -> Knowledge:
    stages = {kind: {s: x[f"{side}_{kind}_{s}"] for s in range(4)} for kind in ("features", "patches")}
    return Knowledge(**stages)


def objective_of(name: str, x: dict[str, Tensor]) -> BoundObjective:
    shapes = []
    for side in ("student", "teacher"):
        widths = tuple(x[f"{side}_patches_{s}"].shape[-1] for s in range(4))
        shapes.append(ModelShape("segformer", 4, widths[-1], 1, None, channels=widths, patches=widths))
    return Objective(TERMS[name]).bind(*shapes)


@pytest.mark.parametrize("name", TERMS)
def test_agrees_with_published_code(name: str) -> None:
    entry = ENTRIES[name]
    x = drawn(entry["inputs"], entry["seed"])
    objective = objective_of(name, x)
    joint = objective.joint_projections()
    modules = {key: projector(*sizes) for key, sizes in objective.projections().items()}
    modules |= {key: one.build() for key, one in joint.items()}
    fill(modules, our_weights(entry))
    for module in modules.values():
        module.double().train()
    for key, tensor in x.items():
        tensor.requires_grad_(key.startswith("student"))
    student, teacher = knowledge("student", x), knowledge("teacher", x)
    rows = torch.ones(len(x["pixels"]), dtype=torch.bool)
    found = objective(student, teacher, Scene(None, {"outputs": rows}, modules=modules, pixels=x["pixels"]))
    shares = [share.item() for share in found.terms.values()]
    assert shares == pytest.approx([entry["hcl"], entry["pea"]][: len(shares)], rel=1e-9)
    found.total.backward()
    for kind, lengths in entry["gradients"].items():
        gradients = [x[f"student_{kind}_{s}"].grad for s in range(4)]
        assert [0.0 if g is None else g.norm().item() for g in gradients] == pytest.approx(lengths, rel=1e-6)
    for key in joint:
        published = entry["maps" if key.startswith("features") else "patches"]
        for stage, values in modules[key](student, x["pixels"]).items():
            assert values.flatten().tolist() == pytest.approx(published[stage], rel=1e-6, abs=1e-6)


def test_entries_say_where_they_come_from() -> None:
    assert set(ENTRIES) == set(TERMS)
    for entry in ENTRIES.values():
        assert entry["source"].startswith("RuipingL/TransKD train/")
        assert " @ " in entry["source"]
        assert entry["hcl"] > 1
