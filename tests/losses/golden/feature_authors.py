"""The authors' published code on features, loaded from checkouts outside the repository. None of it is here.

It is imported from the checkouts, or cut out of a script there by what its lines start with, and executed.
"""

import ast
import importlib.util
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SOURCES = {
    "textbrewer": "airaria/TextBrewer src/textbrewer/losses.py @ 2c105fa664bbc10669cd2888bd846d2c9b8afca8",
    "ofa": "OFA-Sys/OFA-Compress train/ofa_losses.py @ a1ff4c38e922b10e509e3fe7b93a25d8a79a6126",
    "tinybert": "huawei-noah/Pretrained-Language-Model TinyBERT/task_distill.py @ "
    "0598f02d7fc4eaa7b4cbc1e9d7ab18bc875c24f9",
    "rkd": "lenscloth/RKD metric/loss.py @ 0a6c3c0c190722d428322bf71703c0ae86c25242",
    "zoo": "HobbitLong/RepDistiller distiller_zoo @ b84f547c5db6a35318d4671d7d5c4de74c822403",
    "crd": "HobbitLong/RepDistiller crd @ b84f547c5db6a35318d4671d7d5c4de74c822403",
    "mdistiller": "megvii-research/mdistiller mdistiller/distillers @ a08d46f10d6102bd6e3f258ca5ac880b020ea259",
    "mgskd": "LC97-pku/MGSKD src/loss.py (a copy of 2022-09-18, commit unknown)",
}


def module(path: Path, name: str) -> Any:
    """A file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def package(path: Path, name: str) -> None:
    """A folder as a package, without running its `__init__`."""
    found = types.ModuleType(name)
    found.__path__ = [str(path)]
    sys.modules[name] = found


def functions(path: Path, *names: str) -> Any:
    """These functions of a file that can't be imported alone, with torch at hand."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    space: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": functional}
    exec(compile(tree, str(path), "exec"), space)
    return types.SimpleNamespace(**{name: space[name] for name in names})


def lines(path: Path, first: str, after: str) -> str:
    """The lines of a script from the one that starts with `first` up to, and without, the one with `after`."""
    text = path.read_text().split("\n")
    start = next(i for i, line in enumerate(text) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(text) if i > start and line.strip().startswith(after))
    return textwrap.dedent("\n".join(text[start:end]))


class Authors:
    """The published code, loaded."""

    def __init__(self, folder: Path) -> None:
        package(folder / "airaria+TextBrewer/src/textbrewer", "textbrewer")
        self.textbrewer = importlib.import_module("textbrewer.losses")
        self.ofa = module(folder / "OFA-Sys+OFA-Compress/train/ofa_losses.py", "ofa_losses")
        self.tinybert = folder / "huawei-noah+Pretrained-Language-Model/TinyBERT/task_distill.py"
        package(folder / "lenscloth+RKD/metric", "metric")
        self.rkd = importlib.import_module("metric.loss")
        zoo = folder / "HobbitLong+RepDistiller/distiller_zoo"
        self.zoo = {
            name: module(zoo / f"{name}.py", f"zoo_{name}") for name in ("AT", "FitNet", "FSP", "NST", "RKD", "SP")
        }
        package(folder / "HobbitLong+RepDistiller/crd", "crd")
        self.crd = importlib.import_module("crd.criterion"), importlib.import_module("crd.memory")
        distillers = folder / "megvii-research+mdistiller/mdistiller/distillers"
        self.mdistiller = {
            "RKD": functions(distillers / "RKD.py", "_pdist", "rkd_loss"),
            "AT": functions(distillers / "AT.py", "single_stage_at_loss"),
            "SP": functions(distillers / "SP.py", "similarity_loss"),
            "NST": functions(distillers / "NST.py", "single_stage_nst_loss", "poly_kernel"),
        }
        self.mgskd = module(folder / "LC97-pku+MGSKD/src/loss.py", "mgskd_loss")

    def tinybert_losses(self, student: Tensor, teacher: Tensor, kind: str) -> Tensor:
        """The loop over attention scores, or over hidden states, of the training script."""
        space: dict[str, Any] = {"torch": torch, "device": "cpu", "loss_mse": torch.nn.MSELoss(), f"{kind}_loss": 0.0}
        if kind == "att":
            space |= {"student_atts": [student], "new_teacher_atts": [teacher]}
            code = lines(self.tinybert, "for student_att, teacher_att in", "new_teacher_reps =")
        else:
            space |= {"new_student_reps": [student], "new_teacher_reps": [teacher]}
            code = lines(self.tinybert, "for student_rep, teacher_rep in", "loss = rep_loss + att_loss")
        exec(code, space)
        found: Tensor = space[f"{kind}_loss"]
        return found

    def contrast(self, x: dict[str, Tensor], rows: int) -> Tensor:
        """Memory and criterion in both directions, with the constants set by this first batch."""
        criterion, memory = self.crd
        own, torch.Tensor.cuda = torch.Tensor.cuda, lambda tensor, *_: tensor  # type: ignore[method-assign,assignment]
        try:
            contrast = memory.ContrastMemory(x["student"].shape[1], rows, x["candidates"].shape[1] - 1)
        finally:
            torch.Tensor.cuda = own  # type: ignore[method-assign]
        contrast.double()
        contrast.memory_v1, contrast.memory_v2 = x["student_bank"].clone(), x["teacher_bank"].clone()
        unit = criterion.Normalize(2)
        out = contrast(unit(x["student"]), unit(x["teacher"]), x["candidates"][:, 0], x["candidates"])
        found: Tensor = sum(criterion.ContrastLoss(rows)(part) for part in out)  # type: ignore[assignment]
        return found
