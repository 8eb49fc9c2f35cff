"""Results as the pipeline writes them, made up but plausible: the report's tests and screenshots use these."""

import base64
import io
import json
import math
import random
from typing import Any

from PIL import Image

RECIPE = """task: text_classification
data: {name: reviews}
teacher: {model: minilm-l6, train: {epochs: 2}}
student: {from: teacher, layers: 3}
distill:
  - terms:
      - {knowledge: labels, weight: 0.5}
      - {knowledge: logits, loss: kl_divergence, temperature: 2.0, weight: 0.5}
      - {knowledge: hidden, loss: hidden_mse, layers: uniform}
    train: {epochs: 3, learning_rate: 1.0e-4}
refine: {epochs: 1}
evaluate: {baseline: true, seeds: 3}
export: {formats: [onnx, onnx-int8]}
"""
HOW = {
    "Quality": "Computed on the test split, which nothing was trained or chosen on; the interval is a 95% bootstrap.",
    "Retained": "The student's accuracy as a share of the teacher's, on the same rows.",
    "Difference": "Paired bootstrap over the test rows with 10,000 resamples, seeds averaged within each resample.",
    "Agreement": "The share of test rows on which a model gives the same answer as the teacher.",
    "KL to the teacher": "KL(teacher || model) of the softmax in float32, averaged over the test rows.",
    "Calibration error": "Expected calibration error with ten bins of equal width.",
    "Size on disk": "Bytes of the weight file as saved.",
    "Multiply-adds": "Counted in one forward pass over one row of mean length, attention products included.",
    "Latency": "50 batches of real rows after 5 to warm up, in float32 on the processor; median and 95th percentile.",
    "Peak memory": "The largest resident size of a fresh process that loads the model and predicts one batch of 32.",
}
SPEC = {
    "teacher": ("Teacher", "minilm-l6, 6 layers, trained here", 0.886, 22_713_216, 90_900_000, 6.41, 1.0),
    "pretrained_baseline": (
        "Pretrained, cut",
        "3 of the 6 pretrained layers, labels only",
        0.859,
        17_389_824,
        69_600_000,
        3.33,
        1.9,
    ),
    "baseline": ("Baseline", "3 of the teacher's 6 layers, labels only", 0.863, 17_389_824, 69_600_000, 3.31, 1.9),
    "student": ("Student", "3 of the teacher's 6 layers, distilled", 0.8715, 17_389_824, 69_600_000, 3.32, 1.9),
}


def _stat(values: list[float], half: float) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else None
    return {"mean": mean, "std": spread, "per_seed": values, "interval": [mean - half, mean + half]}


def _few(values: list[float]) -> dict[str, Any]:
    return {"mean": sum(values) / len(values), "per_seed": values}


def _curve(draw: random.Random, confident: float) -> list[dict[str, Any]]:
    bins = []
    for index in range(10):
        low, high = index / 10, (index + 1) / 10
        count = 0 if index < 5 else [61, 83, 132, 241, 1483][index - 5]
        middle = (low + high) / 2
        bins.append(
            {
                "low": low,
                "high": high,
                "confidence": middle if count else None,
                "accuracy": min(1.0, middle - confident + draw.uniform(-0.02, 0.02)) if count else None,
                "count": count,
            }
        )
    return bins


def _curves(draw: random.Random, seeds: list[int]) -> list[dict[str, Any]]:
    curves = []
    for seed in seeds:
        for stage, parts, steps in (("distill 1", ("labels", "logits", "hidden"), 600), ("refine", ("labels",), 200)):
            points = []
            for step in range(10, steps + 1, 10):
                values = {
                    part: (0.25 + 0.5 / (index + 1)) * math.exp(-step / (120 * (index + 1)))
                    + 0.12 / (index + 1)
                    + draw.uniform(0, 0.03)
                    for index, part in enumerate(parts)
                }
                points.append(
                    {
                        "step": step,
                        "loss": sum(values.values()),
                        "parts": values,
                        "learning_rate": 1e-4 * (1 - step / steps),
                    }
                )
            evaluations = [
                {"step": step, "value": 0.88 - 0.1 * math.exp(-step / 150) + draw.uniform(-0.004, 0.004)}
                for step in range(100, steps + 1, 100)
            ]
            curves.append({"seed": seed, "stage": stage, "points": points, "evaluations": evaluations})
    return curves


def _confusion(draw: random.Random, classes: list[str], rows: int, right: float) -> list[list[int]]:
    each = rows // len(classes)
    table = []
    for truth in range(len(classes)):
        hits = round(each * min(1.0, right + draw.uniform(-0.02, 0.02)))
        line = [0] * len(classes)
        line[truth] = hits
        for _ in range(each - hits):
            line[(truth + draw.choice([1, 1, 2, len(classes) - 1])) % len(classes)] += 1
        table.append(line)
    return table


def _model(
    key: str, classes: list[str], seeds: list[int], metrics: tuple[str, ...], draw: random.Random
) -> dict[str, Any]:
    title, description, level, parameters, size, latency, faster = SPEC[key]
    own = [0] if key == "teacher" else seeds
    scores = {}
    for name in metrics:
        lower = 0.0 if name == metrics[0] else 0.003
        offsets = [draw.uniform(-0.005, 0.005) for _ in own]
        middle = sum(offsets) / len(offsets)
        values = [level - lower + offset - middle for offset in offsets]
        scores[name] = _stat(values, 0.0138)
    labelled = bool(classes)
    return {
        "key": key,
        "title": title,
        "description": description,
        "seeds": own,
        "metrics": scores,
        "retained": None
        if key == "teacher"
        else {"mean": level / 0.886, "interval": [level / 0.886 - 0.009, level / 0.886 + 0.009]},
        "agreement": None
        if key == "teacher" or not labelled
        else _few([level + 0.05 + draw.uniform(-0.004, 0.004) for _ in own]),
        "kl": None if key == "teacher" or not labelled else _few([0.9 - level + draw.uniform(0, 0.01) for _ in own]),
        "calibration": {"ece": _few([0.031 + draw.uniform(0, 0.03) for _ in own]), "curve": _curve(draw, 0.9 - level)}
        if labelled
        else None,
        "per_class": [
            {
                "class": name,
                "precision": level,
                "recall": level - 0.01,
                "f1": level - 0.005,
                "support": 2000 // len(classes),
            }
            for name in classes
        ],
        "confusion": _confusion(draw, classes, 2000, level) if labelled else None,
        "overfit": {"metric": metrics[0], "train": level + 0.061, "validation": level + 0.004, "gap": 0.057},
        "cost": {
            "parameters": parameters,
            "bytes": size,
            "macs": round(553_000_000 / faster),
            "macs_at": "1 x 26 tokens",
            "latency": {
                "1": {"p50_ms": latency, "p95_ms": latency * 1.37},
                "32": {"p50_ms": latency * 18.2, "p95_ms": latency * 22.6},
            },
            "throughput_per_s": 275.0 * faster,
            "peak_memory_bytes": 612_000_000 - parameters,
        },
        "training": {
            "seconds": 199.4 if key == "teacher" else 231.0 + draw.uniform(-20, 20),
            "steps": 844 if key == "teacher" else 800,
            "rows_seen": 26_978 if key == "teacher" else 40_467,
        },
        "curves": _curves(draw, own),
    }


def _comparison(results: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    first, second = (
        next(model for model in results["models"] if model["key"] == key)["metrics"][results["primary"]]
        for key in (a, b)
    )
    gap = first["mean"] - second["mean"]
    pairs = zip(first["per_seed"], second["per_seed"] * len(first["per_seed"]), strict=False)
    return {
        "a": a,
        "b": b,
        "metric": results["primary"],
        "difference": gap,
        "interval": [gap - 0.0082, gap + 0.0082],
        "standard_error": 0.0042,
        "per_seed": [x - y for x, y in pairs],
        "resamples": 10_000,
    }


def _export(
    key: str, title: str, file: str, size: int, gap: float, agreement: float, score: dict[str, float], latency: float
) -> dict[str, Any]:
    return {
        "key": key,
        "title": title,
        "file": file,
        "bytes": size,
        "max_logit_difference": gap,
        "agreement": agreement,
        "metrics": score,
        "latency": {
            "1": {"p50_ms": latency, "p95_ms": latency * 1.2},
            "32": {"p50_ms": latency * 21, "p95_ms": latency * 24},
        },
        "throughput_per_s": 1520.0 / latency,
        "peak_memory_bytes": 240_000_000,
    }


def _examples() -> dict[str, Any]:
    def answer(prediction: str, probability: float) -> dict[str, Any]:
        return {"prediction": prediction, "probability": probability}

    return {
        "teacher_right": [
            {
                "text": "It is not that the battery is bad, it is that nothing else about the camera makes up for it.",
                "text_pair": None,
                "label": "negative",
                "teacher": answer("negative", 0.91),
                "student": answer("positive", 0.58),
            },
            {
                "text": "A film that could have been dull and is anything but.",
                "text_pair": None,
                "label": "positive",
                "teacher": answer("positive", 0.97),
                "student": answer("negative", 0.66),
            },
            {
                "text": "I wanted to like it more than I did.",
                "text_pair": None,
                "label": "negative",
                "teacher": answer("negative", 0.78),
                "student": answer("positive", 0.51),
            },
        ],
        "student_right": [
            {
                "text": "The zoom works, mostly, and for the price I will not complain.",
                "text_pair": None,
                "label": "positive",
                "teacher": answer("negative", 0.55),
                "student": answer("positive", 0.63),
            },
            {
                "text": "Two hours of setting up for one joke.",
                "text_pair": None,
                "label": "negative",
                "teacher": answer("positive", 0.61),
                "student": answer("negative", 0.72),
            },
        ],
        "counts": {"both_right": 1692, "teacher_only": 80, "student_only": 51, "both_wrong": 177},
    }


def full(classes: tuple[str, ...] = ("negative", "positive"), seeds: int = 3) -> dict[str, Any]:
    """Single label, with every part of the report."""
    draw = random.Random(7)
    own, names = list(range(seeds)), list(classes)
    results: dict[str, Any] = {
        "schema": 1,
        "run": {
            "name": "reviews",
            "title": "Film and product reviews, three layers of six",
            "task": "text_classification",
            "problem": "single_label",
            "created": "2026-11-20T14:05:00+00:00",
            "seconds": 1312.4,
            "stages": [
                {"name": "teacher", "seconds": 199.4, "reused": True},
                {"name": "student", "seconds": 1.2, "reused": False},
                {"name": "distill", "seconds": 640.0, "reused": False},
                {"name": "refine", "seconds": 211.5, "reused": False},
                {"name": "evaluate", "seconds": 188.3, "reused": False},
                {"name": "export", "seconds": 72.0, "reused": False},
            ],
            "versions": {"potstill": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
            "hardware": {
                "processor": "x86_64 with AMX",
                "cores": 2,
                "accelerator": None,
                "memory_bytes": 16_000_000_000,
            },
            "precision": {"training": "bfloat16", "why": "the processor multiplies bfloat16 matrices in hardware"},
            "command": "potstill run reviews evaluate.seeds=3",
            "recipe": RECIPE,
            "convention": "A KL is a true KL (0 when both are equal); T² is inside the loss; softmax in float32.",
            "seeds": own,
        },
        "data": {
            "name": "reviews",
            "description": "Sentences from film and product reviews, rated by twenty people each; near zero left out.",
            "licence": "MIT",
            "splits": {"train": 13_489, "validation": 1_000, "test": 2_000, "unlabelled": 9_100},
            "evaluated_on": "test",
            "classes": names,
            "max_length": 128,
            "tokens": {"mean": 25.8, "p95": 52, "max": 128},
        },
        "metrics": {
            "accuracy": {"name": "Accuracy", "percent": True, "higher_is_better": True},
            "macro_f1": {"name": "Macro F1", "percent": True, "higher_is_better": True},
            "matthews": {"name": "Matthews correlation", "percent": False, "higher_is_better": True},
        },
        "primary": "accuracy",
        "highlights": [
            {"label": "of the teacher's accuracy kept", "value": "98.4%", "note": "87.2% beside 88.6%"},
            {"label": "the teacher's size", "value": "0.77×", "note": "69.6 MB beside 90.9 MB"},
            {"label": "as fast, batch 1", "value": "1.93×", "note": "3.32 ms beside 6.41 ms"},
            {"label": "as fast, as ONNX int8", "value": "5.7×", "note": "17.5 MB, 1.12 ms"},
        ],
        "verdict": {
            "outcome": "helped",
            "headline": "The student is 0.85 points more accurate than the same network trained without a teacher.",
            "sentences": [
                "Over three seeds the difference is +0.85 points, with a 95% interval of +0.03 to +1.67.",
                "The student keeps 98.4% of the teacher's accuracy at half of its multiply-adds.",
            ],
        },
        "exports": [
            _export(
                "onnx",
                "ONNX",
                "export/model.onnx",
                69_800_000,
                2.1e-6,
                1.0,
                {"accuracy": 0.8715, "macro_f1": 0.868},
                1.93,
            ),
            _export(
                "onnx-int8",
                "ONNX int8",
                "export/model-int8.onnx",
                17_500_000,
                0.214,
                0.9925,
                {"accuracy": 0.8695, "macro_f1": 0.866},
                1.12,
            ),
        ],
        "examples": _examples(),
        "how": [{"number": number, "made": made} for number, made in HOW.items()],
    }
    results["models"] = [_model(key, names, own, ("accuracy", "macro_f1", "matthews"), draw) for key in SPEC]
    results["comparisons"] = [
        _comparison(results, "student", other) for other in ("baseline", "pretrained_baseline", "teacher")
    ]
    results["per_class_change"] = []
    for name in names:
        before, change = 0.86 + draw.uniform(-0.05, 0.03), draw.uniform(-0.012, 0.03)
        results["per_class_change"].append(
            {"class": name, "teacher": before + 0.02, "baseline": before, "student": before + change, "change": change}
        )
    return results


def regression() -> dict[str, Any]:
    """Regression over pairs, one seed: no classes, no calibration, no deviation, no exports."""
    results = full(seeds=1)
    draw = random.Random(3)
    results["run"].update(problem="regression", title="Sentence similarity", seeds=[0])
    results["metrics"] = {
        "pearson": {"name": "Pearson", "percent": False, "higher_is_better": True},
        "spearman": {"name": "Spearman", "percent": False, "higher_is_better": True},
        "mse": {"name": "Mean squared error", "percent": False, "higher_is_better": False},
    }
    results["primary"] = "pearson"
    results["data"]["classes"] = []
    results["models"] = [_model(key, [], [0], ("pearson", "spearman", "mse"), draw) for key in SPEC]
    results["comparisons"] = [_comparison(results, "student", "baseline")]
    results["verdict"] = {
        "outcome": "no_difference",
        "headline": "No difference that can be told between the student and the baseline.",
        "sentences": [
            "The difference in Pearson is +0.0085, with an interval of +0.0003 to +0.0167. One seed was run."
        ],
    }
    results["examples"] = {
        "teacher_right": [
            {
                "text": "A man plays a guitar.",
                "text_pair": "A man is playing music.",
                "label": 3.6,
                "teacher": {"prediction": 3.512, "probability": None},
                "student": {"prediction": 2.1, "probability": None},
            }
        ],
        "student_right": [],
        "counts": {},
    }
    results["exports"] = []
    for key in ("per_class_change", "highlights"):
        del results[key]
    return results


def multi_label() -> dict[str, Any]:
    """Several labels a row: predictions are lists, there is no confusion matrix, and the student did worse."""
    results = full(classes=("battery", "screen", "price", "sound"), seeds=2)
    results["run"].update(problem="multi_label", title="Topics of product reviews", seeds=[0, 1])
    results["metrics"] = {"accuracy": {"name": "Micro F1", "percent": True, "higher_is_better": True}}
    for model in results["models"]:
        model["metrics"] = {"accuracy": model["metrics"]["accuracy"]}
        model["confusion"] = None
    results["examples"]["teacher_right"] = [
        {
            "text": "Loud, cheap, and dead by noon.",
            "text_pair": None,
            "label": ["battery", "price", "sound"],
            "teacher": {"prediction": ["battery", "price", "sound"], "probability": None},
            "student": {"prediction": [], "probability": None},
        }
    ]
    results["verdict"] = {
        "outcome": "harm",
        "headline": "Distillation did harm: the student is 1.4 points below the baseline.",
        "sentences": [],
    }
    return results


def many_classes() -> dict[str, Any]:
    """77 classes with long names."""
    return full(
        classes=tuple(
            f"{verb}_{thing}_request"
            for verb in ("cancel", "change", "find", "open", "report", "verify", "top_up")
            for thing in (
                "card",
                "transfer",
                "pin",
                "fee",
                "balance",
                "statement",
                "refund",
                "identity",
                "currency",
                "limit",
                "address",
            )
        ),
        seeds=3,
    )


def minimal() -> dict[str, Any]:
    """The least that the report accepts: one model with one number, and no comparison."""
    metrics = {"accuracy": {"mean": 0.5, "std": None, "per_seed": [0.5], "interval": None}}
    return {
        "schema": 1,
        "run": {"name": "tiny", "title": "Tiny", "task": "text_classification", "problem": "single_label"},
        "data": {},
        "metrics": {"accuracy": {"name": "Accuracy", "percent": True, "higher_is_better": True}},
        "primary": "accuracy",
        "models": [
            {
                "key": "student",
                "title": "Student",
                "description": "",
                "seeds": [0],
                "metrics": metrics,
                "retained": None,
                "agreement": None,
                "kl": None,
                "calibration": None,
                "per_class": [],
                "confusion": None,
                "overfit": None,
                "cost": None,
                "training": None,
                "curves": [],
            }
        ],
        "comparisons": [],
        "verdict": {
            "outcome": "not_compared",
            "headline": "The student was not compared with a baseline.",
            "sentences": [],
        },
        "exports": [],
        "examples": {"teacher_right": [], "student_right": [], "counts": {}},
        "how": [],
    }


def images() -> dict[str, Any]:
    """Rows of images: each disagreement with a small picture, as the run keeps it."""
    results = full(seeds=1)
    results["run"]["task"] = "image_classification"
    for key, level in (("teacher_right", 40), ("student_right", 200)):
        for number, item in enumerate(results["examples"][key]):
            content = io.BytesIO()
            Image.new("RGB", (12, 8), (level, 20 * number, 90)).save(content, "PNG")
            address = base64.b64encode(content.getvalue()).decode()
            item.update(text=f"picture {number}.png", text_pair=None, image=f"data:image/png;base64,{address}")
    return results


VARIANTS = {
    "full": full,
    "images": images,
    "regression": regression,
    "multi_label": multi_label,
    "many_classes": many_classes,
    "minimal": minimal,
}


def hostile(text: str) -> dict[str, Any]:
    """The full results with one text everywhere where a user's own text can stand."""
    results = full(classes=(text, f"{text} 2", f"$x^2$ {text}"))
    results["run"].update(name=text, title=text, command=text, recipe=text, convention=text)
    results["data"].update(name=text, description=text, licence=text)
    results["verdict"].update(headline=text, sentences=[text])
    results["highlights"] = [{"label": text, "value": text, "note": text}]
    results["how"] = [{"number": text, "made": text}]
    results["run"]["stages"][0]["name"] = text
    results["run"]["versions"][text] = text
    results["metrics"]["accuracy"]["name"] = text
    for model in results["models"]:
        model["title"] = model["description"] = text
        for curve in model["curves"]:
            curve["stage"] = text
            for point in curve["points"]:
                point["parts"] = {text: 1.0, **point["parts"]}
    for export in results["exports"]:
        export["title"] = export["file"] = text
    for item in results["examples"]["teacher_right"]:
        item.update(text=text, text_pair=text, label=text, teacher={"prediction": text, "probability": 0.5})
    for item in results["examples"]["student_right"]:
        item.update(text=text, image=f'https://127.0.0.1:9/x.png" onerror="{text}')
    results["examples"]["student_right"][0]["image"] = f"data:image/png;base64,{text}"
    return json.loads(json.dumps(results))  # type: ignore[no-any-return]
