"""Runs the authors' published code on fixed tensors and writes what it gives to features.json.

    python tests/losses/golden/make_features.py --sources FOLDER

FOLDER holds a checkout of each repository named in `feature_authors.SOURCES`, under owner+name. Only this script needs
them; the test reads the JSON alone.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from feature_authors import SOURCES, Authors
from feature_inputs import drawn
from torch import Tensor
from torch.nn import functional

OUTPUT = Path(__file__).with_name("features.json")

Published = Callable[..., Any]


def image(states: Tensor) -> Tensor:
    """[B, D, S, 1], as convolutional code takes it, from [B, S, D]."""
    return states.transpose(1, 2).unsqueeze(-1).contiguous()


def tensors(*shapes: list[int], kind: str = "normal") -> dict[str, Any]:
    return {name: {"shape": shape, "kind": kind} for name, shape in zip(("student", "teacher"), shapes, strict=False)}


B, S, D, D_T, H = 3, 6, 8, 12, 4
STATES, MAPS, ROWS = tensors([B, S, D], [B, S, D]), [B, H, S, S], tensors([7, D], [7, D_T])
WIDTHS = tensors([B, S, D], [B, S, D_T])
LAYERS = {**STATES, "student_next": {"shape": [B, S, 10]}, "teacher_next": {"shape": [B, S, 10]}}
RAGGED = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
EVEN = [[1, 1, 1, 1, 0, 0]] * B
CANDIDATES = {"shape": [5, 9], "kind": "rows", "below": 40}
BANK = {"shape": [40, D], "kind": "unit"}


def entries(authors: Authors) -> list[dict[str, Any]]:
    """Every comparison: our loss, its inputs, the number that published code gives, and what makes ours that number."""
    found = []

    def add(loss: str, source: str, what: str, inputs: dict[str, Any], published: Published, **others: Any) -> None:
        seed = len(found) + 1
        x = drawn(inputs, seed)
        mask = others.get("mask")
        value = published(x) if mask is None else published(x, torch.tensor(mask, dtype=torch.float64))
        entry = {
            "loss": loss,
            "source": SOURCES[source],
            "function": what,
            "seed": seed,
            "inputs": inputs,
            "arguments": {},
            "mask": None,
            "prepare": None,
            "factor": 1.0,
            "note": "",
        }
        found.append(entry | others | {"published": float(value)})

    _textbrewer(add, authors.textbrewer)
    _tinybert_and_ofa(add, authors)
    _convolutional(add, authors)
    _rows(add, authors)
    _granular(add, authors.mgskd)
    return found


def _textbrewer(add: Published, code: Any) -> None:
    add(
        "hidden_mse",
        "textbrewer",
        "hid_mse_loss",
        STATES,
        lambda x, m: code.hid_mse_loss(x["student"], x["teacher"], m),
        mask=RAGGED,
    )
    add(
        "hidden_cosine",
        "textbrewer",
        "cos_loss",
        STATES,
        lambda x, m: code.cos_loss(x["student"], x["teacher"], m),
        mask=RAGGED,
    )
    add(
        "hidden_normalised_mse",
        "textbrewer",
        "pkd_loss",
        tensors([B, D], [B, D]),
        lambda x: code.pkd_loss(x["student"], x["teacher"]),
        note="a sum over D, as the publication has it; on all tokens it is the same with more positions",
    )
    add(
        "gram_mse",
        "textbrewer",
        "fsp_loss of a layer with itself (gram)",
        STATES,
        lambda x, m: code.fsp_loss([x["student"]] * 2, [x["teacher"]] * 2, m),
        mask=RAGGED,
    )
    add(
        "flow_mse",
        "textbrewer",
        "fsp_loss",
        LAYERS,
        lambda x, m: code.fsp_loss([x["student"], x["student_next"]], [x["teacher"], x["teacher_next"]], m),
        mask=RAGGED,
    )
    add(
        "similarity_mse",
        "textbrewer",
        "mmd_loss of a layer with itself (mmd, nst)",
        WIDTHS,
        lambda x: code.mmd_loss([x["student"]] * 2, [x["teacher"]] * 2),
    )
    add(
        "similarity_mse",
        "textbrewer",
        "mmd_loss of a layer with itself (mmd, nst)",
        WIDTHS,
        lambda x, m: code.mmd_loss([x["student"]] * 2, [x["teacher"]] * 2, m),
        mask=EVEN,
        note="sequences of one length: the code divides by the sum of squared lengths, which weighs a token of a long "
        "sequence more; ours is a mean over tokens of a mean over keys",
    )
    add(
        "attention_mse",
        "textbrewer",
        "att_mse_loss",
        tensors(MAPS, MAPS, kind="probabilities"),
        lambda x, m: code.att_mse_loss(x["student"], x["teacher"], m),
        mask=EVEN,
        note="sequences of one length, as for similarity_mse",
    )
    add(
        "attention_mse",
        "textbrewer",
        "att_mse_sum_loss",
        tensors([B, 2, S, S], MAPS, kind="probabilities"),
        lambda x, m: code.att_mse_sum_loss(x["student"], x["teacher"], m),
        mask=EVEN,
        arguments={"reduce_heads": "sum"},
        note="sequences of one length, as for similarity_mse",
    )
    for loss, options in (("att_mse_loss", {}), ("att_mse_sum_loss", {"reduce_heads": "sum"})):
        add(
            "score_mse",
            "textbrewer",
            loss,
            tensors(MAPS, MAPS, kind="positive"),
            lambda x, loss=loss: getattr(code, loss)(x["student"], x["teacher"]),
            arguments=options,
            note="positive scores: without a mask the code, like OFA-Compress, sets scores of at most -0.001 to 0, "
            "in student and teacher, and so drops half of the scores; ours keeps them, as TinyBERT does",
        )
    add(
        "attention_kl",
        "textbrewer",
        "att_ce_loss(S, T) - att_ce_loss(T, T)",
        tensors(MAPS, MAPS, kind="positive"),
        lambda x: code.att_ce_loss(x["student"], x["teacher"]) - code.att_ce_loss(x["teacher"], x["teacher"]),
        prepare="softmax",
        note="a cross-entropy of scores; minus the teacher's entropy it is the divergence. Positive "
        "scores, since the code sets probabilities of negative ones to 0",
    )
    add("attention_kl", "textbrewer", "att_ce_mean_loss(S, T) - att_ce_mean_loss(T, T)",
        tensors([B, 2, S, S], MAPS, kind="positive"),
        lambda x: code.att_ce_mean_loss(x["student"], x["teacher"]) - code.att_ce_mean_loss(x["teacher"], x["teacher"]),
        prepare="softmax_of_mean", note="the code takes the heads' mean before the softmax; reduce_heads: mean takes "
        "that of the probabilities, which are what the model attends with")  # fmt: skip


def _tinybert_and_ofa(add: Published, authors: Authors) -> None:
    add(
        "score_mse",
        "tinybert",
        "the loop over student_atts",
        tensors(MAPS, MAPS),
        lambda x: authors.tinybert_losses(x["student"], x["teacher"], "att"),
        note="without padding: the code sets scores of at most -100 to 0 and divides by all pairs, padding among them; "
        "ours leaves padding and pairs that the model rules out (at most -32752) out of sum and count",
    )
    add(
        "hidden_mse",
        "tinybert",
        "the loop over new_student_reps",
        STATES,
        lambda x: authors.tinybert_losses(x["student"], x["teacher"], "rep"),
        note="without padding: the code has no mask",
    )
    vectors = tensors([B, H, S, 3], [B, H, S, 5])
    for place, name in ((1, "key_relation_loss"), (2, "value_relation_loss")):

        def published(x: dict[str, Tensor], place: int = place, name: str = name) -> Tensor:
            sides = [[None] * place + [x[side]] + [None] * (2 - place) for side in ("student", "teacher")]
            found: Tensor = getattr(authors.ofa, name)(*sides)
            return found

        add("relation_kl", "ofa", name, vectors, published, factor=1 / S,
            note="the code averages over keys too, where a divergence is a sum (MiniLM); no mask. With other numbers "
            "of heads it divides the joined heads' products by the root of one head's width, ours by that of all. Its "
            "query_relation_loss takes the logarithm of a logarithm and gives NaN")  # fmt: skip


def _convolutional(add: Published, authors: Authors) -> None:
    zoo, own = authors.zoo, authors.mdistiller
    add("hidden_mse", "zoo", "FitNet.HintLoss", STATES, lambda x: zoo["FitNet"].HintLoss()(x["student"], x["teacher"]))
    transfer = {
        "factor": 1 / S,
        "note": "the code takes the mean over positions, ours their sum: of vectors of length 1, "
        "so that long sequences don't weigh less. The publication has the distance, code its square",
    }
    add(
        "attention_transfer",
        "zoo",
        "AT.Attention.at_loss",
        WIDTHS,
        lambda x: zoo["AT"].Attention().at_loss(image(x["student"]), image(x["teacher"])),
        **transfer,
    )
    add(
        "attention_transfer",
        "mdistiller",
        "AT.single_stage_at_loss",
        WIDTHS,
        lambda x: own["AT"].single_stage_at_loss(image(x["student"]), image(x["teacher"]), 2),
        **transfer,
    )
    add(
        "attention_transfer",
        "rkd",
        "AttentionTransfer",
        WIDTHS,
        lambda x: authors.rkd.AttentionTransfer()(image(x["student"]), image(x["teacher"])),
        **transfer,
    )
    add(
        "neuron_selectivity",
        "zoo",
        "NST.NSTLoss.nst_loss",
        WIDTHS,
        lambda x: zoo["NST"].NSTLoss().nst_loss(image(x["student"]), image(x["teacher"])),
    )
    add(
        "neuron_selectivity",
        "mdistiller",
        "NST.single_stage_nst_loss",
        WIDTHS,
        lambda x: own["NST"].single_stage_nst_loss(image(x["student"]), image(x["teacher"])),
    )

    def flow(x: dict[str, Tensor]) -> Any:
        fsp = zoo["FSP"].FSP
        sides = ([image(x[side]), image(x[f"{side}_next"])] for side in ("student", "teacher"))
        return fsp.compute_loss(*(fsp.compute_fsp(side)[0] for side in sides))

    add("flow_mse", "zoo", "FSP.compute_loss of FSP.compute_fsp", LAYERS, flow)  # fmt: skip


def _rows(add: Published, authors: Authors) -> None:
    zoo, own = authors.zoo, authors.mdistiller
    both = {"rkd_distance": (authors.rkd.RkdDistance, (1, 0)), "rkd_angle": (authors.rkd.RKdAngle, (0, 1))}
    for loss, (original, (distance, angle)) in both.items():
        add(loss, "rkd", original.__name__, ROWS, lambda x, original=original: original()(x["student"], x["teacher"]))
        add(
            loss,
            "zoo",
            f"RKD.RKDLoss({distance}, {angle})",
            ROWS,
            lambda x, w=(distance, angle): zoo["RKD"].RKDLoss(*w)(x["student"], x["teacher"]),
        )
        weights = {"distance_weight": 25 * distance, "angle_weight": 50 * angle}
        add(
            loss,
            "mdistiller",
            f"RKD.rkd_loss, {weights}",
            ROWS,
            lambda x, w=weights: own["RKD"].rkd_loss(x["student"], x["teacher"], **w),
            factor=25.0 * distance + 50 * angle,
            note="equal rows count as 1e-6 apart in the code's mean of distances, and as equal in ours",
        )
    add(
        "similarity_preserving",
        "zoo",
        "SP.Similarity.similarity_loss",
        ROWS,
        lambda x: zoo["SP"].Similarity().similarity_loss(x["student"], x["teacher"]),
    )
    add(
        "similarity_preserving",
        "mdistiller",
        "SP.similarity_loss",
        ROWS,
        lambda x: own["SP"].similarity_loss(x["student"], x["teacher"]),
    )
    add("crd", "crd", "memory.ContrastMemory and criterion.ContrastLoss",
        {**tensors([5, D], [5, D]), "student_bank": BANK, "teacher_bank": BANK, "candidates": CANDIDATES},
        lambda x: authors.contrast(x, rows=40),
        note="the constants are those of this batch. The code adds 1e-7 to denominators. mdistiller has the same. "
        "Which negatives are drawn differs: its memory may draw the row itself, its data sets other classes only; ours "
        "draws any other row")  # fmt: skip


def _granular(add: Published, code: Any) -> None:
    long = tensors([2, 8, D], [2, 8, D_T])

    def full(states: Tensor) -> Tensor:
        return torch.ones(states.shape[:2], dtype=torch.long)

    pairs_note = (
        "the publication's triplets and pairs, of its code; phrases come from a chunker there, here runs of tokens"
    )
    for options in ({"heads": 4}, {"heads": 2, "vertices": 4, "neighbours": 3}):
        chosen = {"vertices": 20, "neighbours": 20} | options
        add(
            "mgskd_tokens",
            "mgskd",
            f"TokenPhraseLoss({chosen})",
            long,
            lambda x, c=chosen: code.TokenPhraseLoss(c["heads"], c["vertices"], c["neighbours"])(
                x["student"], x["teacher"], full(x["student"])
            ),
            arguments=options,
            note="sequences of one length: the code averages pairs and triples over the batch",
        )

    def spans(x: dict[str, Tensor]) -> Any:
        runs, lengths = [[(0, 2), (2, 4), (4, 6), (6, 8)]] * 2, torch.tensor([8, 8])
        (student, mask), (teacher, _) = (
            code.get_phrase_reps(x[side], runs, lengths) for side in ("student", "teacher")
        )
        return code.TokenPhraseLoss(2, 20, 20)(student, teacher, mask)

    add(
        "mgskd_spans",
        "mgskd",
        "TokenPhraseLoss of get_phrase_reps",
        long,
        spans,
        arguments={"span": 2, "heads": 2},
        note=pairs_note,
    )
    add(
        "mgskd_samples",
        "mgskd",
        "SampleLoss",
        tensors([7, 4, D], [7, 4, D_T]),
        lambda x: code.SampleLoss(4)(x["student"].clone(), x["teacher"].clone(), full(x["student"])),
        prepare="mean_of_tokens",
        arguments={"heads": 4},
    )

    def products(x: dict[str, Tensor]) -> Tensor:
        ones = torch.ones(2, 4, 8, 8)
        cut = code.TokenPhraseLoss(4, 20, 20).cal_pairinteraction_multihead
        return functional.mse_loss(*(cut(x[side], ones, 4, 8, 8)[0] for side in ("student", "teacher")))

    add("relation_mse", "mgskd", "cal_pairinteraction_multihead, and mse_loss", long, products,
        prepare="one_head", arguments={"heads": 4}, note="its pairwise part, on hidden states as one head")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True)
    folder = parser.parse_args().sources
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old names of reductions, in the code of others
        found = entries(Authors(folder))
    OUTPUT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(found)} entries in {OUTPUT}")


if __name__ == "__main__":
    main()
