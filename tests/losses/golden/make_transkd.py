"""Runs the published modules of TransKD on fixed tensors and weights and writes what they give to transkd.json.

    python tests/losses/golden/make_transkd.py --source FOLDER

FOLDER is a checkout of RuipingL/TransKD. Its modules wrap a student; here that is a stand-in which gives the fixed
tensors. What its files import for other purposes (models, timm's drop path) is stood in for as well. Only this script
needs them; the test reads the JSON alone.
"""

import argparse
import contextlib
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from feature_authors import module
from feature_inputs import drawn
from torch import Tensor, nn

OUTPUT = Path(__file__).with_name("transkd.json")
SOURCE = "RuipingL/TransKD train/{} @ 39ab795d37d32bf2638acf9a384754cd25f7fd98"
CHANNELS, CHANNELS_T, WIDTH = [4, 6, 8, 16], [6, 8, 10, 12], 64
GRIDS = [(4, 6), (2, 3), (1, 2), (1, 1)]
IMAGE = (16, 24)
WEIGHTS = (0.1, 0.1, 0.5, 1.0)
BATCH = 2


class Student(nn.Module):
    """A stand-in for the student that the published modules call."""

    def __init__(self, features: list[Tensor], patches: list[Tensor]) -> None:
        super().__init__()
        self.given = (features, None, patches)

    def forward(self, _image: Tensor, is_feat: bool = True) -> Any:
        return self.given


def described(channels: list[int], name: str) -> dict[str, dict[str, Any]]:
    """The tensors of one model: its maps and its patch embeddings, stage by stage."""
    stages = list(enumerate(zip(channels, GRIDS, strict=True)))
    maps = {f"{name}_features_{stage}": {"shape": [BATCH, width, *grid]} for stage, (width, grid) in stages}
    rows = {f"{name}_patches_{s}": {"shape": [BATCH, grid[0] * grid[1], width]} for s, (width, grid) in stages}
    return maps | rows


INPUTS = {
    **described(CHANNELS, "student"),
    **described(CHANNELS_T, "teacher"),
    "pixels": {"shape": [BATCH, 3, *IMAGE]},
}


def published(name: str, code: Any, build: Any, seed: int) -> dict[str, Any]:
    """One entry: what the module gives, its losses, and the length of their gradient at each tensor of the student."""
    x = drawn(INPUTS, seed)
    student = {kind: [x[f"student_{kind}_{s}"].requires_grad_() for s in range(4)] for kind in ("features", "patches")}
    teacher = {kind: [x[f"teacher_{kind}_{s}"] for s in range(4)] for kind in ("features", "patches")}
    made = build(Student(student["features"], student["patches"])).double().train()
    weights = {key: {"shape": list(value.shape)} for key, value in sorted(made.named_parameters())}
    values = drawn(weights, seed + 1)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.copy_(values[key])
    results = made(x["pixels"])
    maps, patches = results[0], results[2] if len(results) > 2 else []
    hcl = code.hcl(maps, teacher["features"])
    pairs = zip(WEIGHTS, patches, teacher["patches"], strict=False)
    pea = sum((weight * nn.functional.mse_loss(ours, theirs) for weight, ours, theirs in pairs), torch.zeros(()))
    (hcl + pea).backward()

    def numbers(tensors: list[Tensor]) -> list[Any]:
        return [[float(f"{value:.8g}") for value in tensor.flatten().tolist()] for tensor in tensors]

    def length(tensor: Tensor) -> float:
        return 0.0 if tensor.grad is None else tensor.grad.norm().item()

    return {
        "name": name,
        "source": SOURCE.format(Path(code.__file__).name),
        "seed": seed,
        "inputs": INPUTS,
        "weights": weights,
        "maps": numbers(maps),
        "patches": numbers(patches),
        "hcl": hcl.item(),
        "pea": pea.item() if patches else 0.0,
        "gradients": {kind: [length(tensor) for tensor in tensors] for kind, tensors in student.items()},
    }


def stand_in(name: str, **members: Any) -> None:
    found = types.ModuleType(name)
    found.__dict__.update(members)
    sys.modules[name] = found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, required=True)
    folder = parser.parse_args().source / "train"
    for name in ("models", "timm", "timm.models"):
        stand_in(name)
    for name in ("models.Segformer", "models.Segformer_rliu"):
        stand_in(name, mit_b0=None, mit_b1=None, mit_b2=None)
    stand_in(
        "timm.models.layers",
        DropPath=nn.Identity,
        to_2tuple=lambda size: (size, size),
        trunc_normal_=nn.init.trunc_normal_,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # two of the files print the Zen of Python
        code = {name: module(folder / f"{name}.py", name) for name in ("CSF", "CSF_GLMixer", "CSF_EA", "ReviewKD")}
    sizes = (CHANNELS, CHANNELS_T, WIDTH)
    mixer = code["CSF_GLMixer"]
    entries = [
        published("linear", code["CSF"], lambda student: code["CSF"].SKF(student, *sizes, 5), 1),
        published("gl_mixer", mixer, lambda student: mixer.SKF(student, *sizes, 5, False), 3),
        published("embedding_assistant", code["CSF_EA"], lambda student: code["CSF_EA"].SKF(student, *sizes, 5), 5),
        published("review", code["ReviewKD"], lambda student: code["ReviewKD"].ReviewKD(student, *sizes), 7),
    ]
    OUTPUT.write_text(json.dumps(entries, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
