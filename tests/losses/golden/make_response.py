"""Makes response.json: what the authors' published code says of fixed inputs, for losses on logits and maps.

    python tests/losses/golden/make_response.py --sources FOLDER

FOLDER holds git checkouts, named `owner+name` after their repositories on GitHub. Only the functions named below are
taken out of their files and run: the packages around them need not be importable. None of that code is in this
repository; the numbers are.

The relation of each entry: published = factor * mean over what counts of (ours * T^power) + entropy * (the teacher's
mean entropy at that temperature).
"""

import __future__

import argparse
import ast
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from response_inputs import Inputs, drawn
from torch import Tensor, nn
from torch.nn import functional

MDISTILLER = "megvii-research/mdistiller"
TEXTBREWER = "airaria/TextBrewer"
OFA = "OFA-Sys/OFA-Compress"
DIST = "hunto/DIST_KD"
DISTILLM = "jongwooko/distillm"
TRANSKD = "RuipingL/TransKD"
TRL = "huggingface/trl"
STANDARD = "sunshangquan/logit-standardization-KD"

NO_T2 = "The code has no T^2: its temperature is a weight too. Ours keeps T^2 inside."
CROSS_ENTROPY = "Called a KL there, it is a cross-entropy: the teacher's entropy is left in. Ours is 0 at equality."


@dataclass(frozen=True)
class Entry:
    """One value to be computed by published code, and how ours has to equal it."""

    loss: str
    source: str
    path: str
    functions: tuple[str, ...]
    call: Callable[[dict[str, Any], Inputs], Any]  # (the functions by name, the inputs) -> the published value
    arguments: dict[str, Any] = field(default_factory=dict)  # ours
    takes: tuple[str, ...] = ()  # what else of the inputs ours is given: labels, mask, temperatures, shifted
    student: tuple[int, ...] = (6, 10)
    teacher: tuple[int, ...] | None = None
    scale: float = 2.0
    factor: float = 1.0
    power: int = 0
    entropy: float = 0.0
    note: str = ""


def published(file: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The functions and classes of those names in a file, methods among them, run without the rest of the file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in names]
    if missing := set(names) - {node.name for node in found}:
        raise SystemExit(f"{file} has no {', '.join(sorted(missing))}.")
    for node in found:
        node.decorator_list = []
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional}
    module = ast.Module(body=list(found), type_ignores=[])
    # Annotations are not looked up: they name classes that are not here.
    exec(compile(module, str(file), "exec", flags=__future__.annotations.compiler_flag), space)
    return space


def batch(inputs: Inputs) -> dict[str, Tensor]:
    """Labels as the codes for language models take them: -100 where a position doesn't count."""
    return {"label": inputs.labels.masked_fill(~inputs.mask, -100)}


def distillm(name: str, **settings: Any) -> Callable[[dict[str, Any], Inputs], Any]:
    return lambda f, x: f[name](x.student, x.teacher, batch(x), **settings)


def jensen_shannon(beta: float, temperature: float) -> Callable[[dict[str, Any], Inputs], Any]:
    return lambda f, x: f["generalized_jsd_loss"](
        x.student, x.teacher, labels=batch(x)["label"], beta=beta, temperature=temperature
    )


def universal(temperature: float) -> Callable[[dict[str, Any], Inputs], Any]:
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=temperature,
        uld_teacher_temperature=temperature,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=False,
        uld_token_merge_strategy="product",
    )

    def call(functions: dict[str, Any], x: Inputs) -> Any:
        ids = x.labels
        return functions["ULDLoss"](config)._compute_distillation_loss(x.student, x.teacher, ids, ids, ids, ids)

    return call


def channelwise(norm: str, temperature: float) -> Callable[[dict[str, Any], Inputs], Any]:
    return lambda f, x: f["CriterionCWD"](norm, "kl", temperature)(x.student, x.teacher)


KD = "mdistiller/distillers/KD.py"
TB = "src/textbrewer/losses.py"
LM = {"source": DISTILLM, "path": "distillm/losses.py", "takes": ("mask",), "student": (2, 6, 9)}
JSD = {"source": TRL, "path": "trl/experimental/gkd/gkd_trainer.py", "functions": ("generalized_jsd_loss",),
       "takes": ("mask",), "student": (2, 6, 9)}  # fmt: skip
CWD = {"source": TRANSKD, "path": "train/CWD.py", "functions": ("CriterionCWD", "ChannelNorm"), "student": (2, 5, 3, 4)}
DISTS = {"source": DIST, "path": "segmentation/losses/dist_kd.py",
         "functions": ("DIST", "cosine_similarity", "pearson_correlation", "inter_class_relation",
                       "intra_class_relation")}  # fmt: skip
NO_CLIP = "Its 1000 in place of infinity is far enough for these logits."
DKD_PARTS = ("dkd_loss", "_get_gt_mask", "_get_other_mask", "cat_mask")

ENTRIES = [
    *(Entry("kl_divergence", MDISTILLER, KD, ("kd_loss",), lambda f, x, t=t: f["kd_loss"](x.student, x.teacher, t),
            {"temperature": t}) for t in (1.0, 4.0)),
    *(Entry("decoupled_kl_divergence", MDISTILLER, "mdistiller/distillers/DKD.py", DKD_PARTS,
            lambda f, x, a=a, b=b, t=t: f["dkd_loss"](x.student, x.teacher, x.labels, a, b, t),
            {"alpha": a, "beta": b, "temperature": t}, ("labels",), note=NO_CLIP)
      for a, b, t in ((1.0, 8.0, 4.0), (0.5, 2.0, 1.0))),
    *(Entry("standardised_kl_divergence", STANDARD, KD, ("kd_loss", "normalize"),
            lambda f, x, t=t: f["kd_loss"](x.student, x.teacher, t, True), {"temperature": t},
            note="The standard deviation has V - 1 below, as torch takes it; we follow the code.") for t in (1.0, 2.0)),
    *(Entry("dist", call=lambda f, x, b=b, g=g: f["DIST"](b, g)(x.student, x.teacher), student=shape,
            arguments={"beta": b, "gamma": g}, **DISTS,
            note="No temperature in this code. Constant vectors count 1 there, and 0 here where the teacher's are.")
      for b, g, shape in ((1.0, 1.0, (16, 10)), (2.0, 0.5, (16, 10)), (1.0, 1.0, (2, 6, 3, 4)))),
    *(Entry("logit_mse", TEXTBREWER, TB, ("kd_mse_loss",), lambda f, x, t=t: f["kd_mse_loss"](x.student, x.teacher, t),
            factor=t**-2, note="Ours takes no temperature, which is only a weight here: 1/T^2.") for t in (1.0, 2.0)),
    *(Entry("soft_cross_entropy", repository, path, ("kd_ce_loss",),
            lambda f, x, t=t: f["kd_ce_loss"](x.student, x.teacher, t), {"temperature": t}, power=-2, note=NO_T2)
      for repository, path in ((TEXTBREWER, TB), (OFA, "textbrewer/losses.py")) for t in (1.0, 3.0)),
    Entry("soft_cross_entropy", TEXTBREWER, TB, ("kd_ce_loss",),
          lambda f, x: f["kd_ce_loss"](x.student, x.teacher, x.temperatures), {}, ("temperatures",), power=-2,
          note=NO_T2),
    Entry("kl_divergence", TEXTBREWER, TB, ("kd_ce_loss",),
          lambda f, x: f["kd_ce_loss"](x.student, x.teacher, 2.0), {"temperature": 2.0}, power=-2, entropy=1.0,
          note=NO_T2),
    Entry("soft_cross_entropy", OFA, "train/ofa_losses.py", ("kd_ce_loss_with_mask",),
          lambda f, x: f["kd_ce_loss_with_mask"](x.student, x.teacher, batch(x)["label"], -100, 2.0),
          {"temperature": 2.0}, ("mask",), student=(2, 6, 9), factor=1 / 9, power=-2,
          note=f"{NO_T2} The code divides by the vocabulary too; ours by the positions that count."),
    Entry("logit_mse", OFA, "textbrewer/losses.py", ("kd_mse_loss",),
          lambda f, x: f["kd_mse_loss"](x.student, x.teacher, 4.0), factor=1 / 16),
    Entry("soft_cross_entropy", TEXTBREWER, "src/textbrewer/distiller_utils.py", ("probability_shift_",),
          lambda f, x: functional.cross_entropy(x.student, f["probability_shift_"](x.teacher, x.labels).softmax(-1)),
          {}, ("shifted",), note="Cross-entropy under the teacher's logits that the published code has shifted."),
    Entry("soft_cross_entropy", functions=("forward_kl",), call=distillm("forward_kl"), note=CROSS_ENTROPY, **LM),
    Entry("kl_divergence", functions=("forward_kl",), call=distillm("forward_kl"), entropy=1.0, note=CROSS_ENTROPY,
          **LM),
    Entry("reverse_kl_divergence", functions=("reverse_kl",), call=distillm("reverse_kl"), **LM),
    Entry("symmetric_kl_divergence", functions=("symmetric_kl", "forward_kl", "reverse_kl"),
          call=distillm("symmetric_kl", lam=0.5), entropy=0.5, **LM,
          note="The code's own weights are 0.1 forward and 0.9 reverse; ours are equal. " + CROSS_ENTROPY),
    *(Entry("jensen_shannon", functions=("js_distance",), call=distillm("js_distance", lam=lam),
            arguments={"beta": 1 - lam}, note="lam there is the student's share; beta here is the teacher's.", **LM)
      for lam in (0.5, 0.9)),
    Entry("total_variation", functions=("tv_distance",), call=distillm("tv_distance"), **LM),
    *(Entry("skewed_kl_divergence", functions=("skewed_forward_kl",), call=distillm("skewed_forward_kl", lam=a),
            arguments={"alpha": a}, entropy=1.0, note=CROSS_ENTROPY, **LM) for a in (0.1, 0.4)),
    *(Entry("skewed_reverse_kl_divergence", functions=("skewed_reverse_kl",),
            call=distillm("skewed_reverse_kl", lam=a), arguments={"alpha": a}, **LM) for a in (0.1, 0.4)),
    *(Entry("jensen_shannon", call=jensen_shannon(b, t), arguments={"beta": b, "temperature": t}, power=-2,
            note=NO_T2, **JSD) for b, t in ((0.5, 1.0), (0.1, 2.0))),
    Entry("kl_divergence", call=jensen_shannon(0, 2.0), arguments={"temperature": 2.0}, power=-2, **JSD,
          note=f"At beta = 0 the code jumps to the KL, from near 0. Ours refuses beta = 0. {NO_T2}"),
    Entry("reverse_kl_divergence", call=jensen_shannon(1, 2.0), arguments={"temperature": 2.0}, power=-2, **JSD,
          note=f"At beta = 1 the code jumps to the reverse KL, from near 0. Ours refuses beta = 1. {NO_T2}"),
    *(Entry("universal_logit_distance", TRL, "trl/experimental/gold/gold_trainer.py", ("ULDLoss",), universal(t),
            {"temperature": t}, student=(2, 6, 9), teacher=(2, 6, 13), power=-1,
            note="No factor T in the code. Ours has T inside.") for t in (1.0, 2.0)),
    *(Entry("channel_kl_divergence", call=channelwise("channel", t), arguments={"temperature": t}, **CWD)
      for t in (1.0, 4.0)),
    *(Entry("pixel_kl_divergence", call=channelwise("spatial", t), arguments={"temperature": t}, **CWD)
      for t in (1.0, 4.0)),
]  # fmt: skip


def computed(entry: Entry, sources: Path, seed: int) -> dict[str, Any]:
    """The entry as it stands in the file."""
    folder = sources / entry.source.replace("/", "+")
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    described: dict[str, Any] = {
        "loss": entry.loss,
        "arguments": entry.arguments,
        "takes": list(entry.takes),
        "seed": seed,
        "student": list(entry.student),
        "teacher": list(entry.teacher or entry.student),
        "scale": entry.scale,
    }
    inputs = drawn(described)
    functions = published(folder / entry.path, entry.functions)
    described |= {
        "first": inputs.student.flatten()[0].item(),
        "source": f"{entry.source} {entry.path} @ {commit.stdout.strip()}",
        "function": entry.functions[0],
        "published": float(entry.call(functions, inputs)),
        "relation": {"factor": entry.factor, "power": entry.power, "entropy": entry.entropy},
        "note": entry.note,
    }
    return described


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder of checkouts named owner+name")
    sources = parser.parse_args().sources
    entries = [computed(entry, sources, seed) for seed, entry in enumerate(ENTRIES)]
    target = Path(__file__).with_name("response.json")
    target.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"{len(entries)} values in {target}")


if __name__ == "__main__":
    main()
