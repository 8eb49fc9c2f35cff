"""How to feed each loss on features, and what it should give: naive loops in plain Python over lists.

`tokens`: one value a token, [B, S]. `sequences`: one value a sequence, [B], of tokens [B, S]. `rows`: one value a row
of [N, D], whose rows look at each other. A naive loop gets one sequence (or all rows), and the positions that count.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill import losses

D, D_T, H = 6, 4, 2
Vector = list[float]
Draw = Callable[[torch.Generator, int, int], Tensor]


@dataclass(frozen=True)
class FeatureCase:
    """One loss with arguments, how to feed it, and its value by a naive loop."""

    name: str
    draw: Callable[[torch.Generator, int, int], tuple[Tensor, Tensor]]  # (student, teacher) in float64, for [B, S]
    naive: Callable[..., Any]  # (student, teacher, keys, **arguments) -> one number, or one for each key
    kind: str = "tokens"
    axes: tuple[int, ...] = (1,)  # the axes over which the positions run, in both
    arguments: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Tensor] | None = None  # where the loss takes more tensors than two
    zero_at_equality: bool = True

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])

    def loss(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        call = self.call or getattr(losses, self.name)
        values: Tensor = call(student, teacher, mask=mask, **self.arguments)
        return values


def states(width: int) -> Draw:
    """Hidden states [B, S, width]."""
    return lambda g, b, s: torch.randn(b, s, width, generator=g, dtype=torch.float64)


def rows(width: int) -> Draw:
    """One vector a row, [S, width]."""
    return lambda g, b, s: torch.randn(s, width, generator=g, dtype=torch.float64)


def heads(number: int, width: int | None = None) -> Draw:
    """Queries [B, number, S, width], or scores [B, number, S, S]."""
    return lambda g, b, s: torch.randn(b, number, s, width or s, generator=g, dtype=torch.float64)


def both(one: Draw, other: Draw | None = None) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda g, b, s: (one(g, b, s), (other or one)(g, b, s))


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: Vector, b: Vector) -> Vector:
    return [x - y for x, y in zip(a, b, strict=True)]


def unit(a: Vector) -> Vector:
    return [x / (math.hypot(*a) or 1.0) for x in a]


def mean(numbers: Any) -> float:
    found = list(numbers)
    return sum(found) / len(found)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def softmax(scores: Vector) -> Vector:
    exps = [math.exp(score - max(scores)) for score in scores]
    return [e / sum(exps) for e in exps]


def columns(vectors: list[Vector]) -> list[Vector]:
    return [list(column) for column in zip(*vectors, strict=True)]


def taken(vectors: list[Vector], keys: list[int]) -> list[Vector]:
    return [vectors[k] for k in keys]


def cut(vectors: list[Vector], number: int) -> list[list[Vector]]:
    width = len(vectors[0]) // number
    return [[vector[part * width : (part + 1) * width] for vector in vectors] for part in range(number)]


def naive_normalised(s: list[Vector], t: list[Vector], keys: list[int]) -> Vector:
    return [math.hypot(*minus(unit(s[k]), unit(t[k]))) ** 2 for k in keys]


def later(x: Any) -> Any:
    """A later layer, for losses that take two."""
    return 2 * x + 1


def naive_flow(s: list[Vector], t: list[Vector], keys: list[int], follow: Callable[[float], float]) -> float:
    def matrix(own: list[Vector]) -> list[Vector]:
        first = taken(own, keys)
        second = [[follow(x) for x in vector] for vector in first]
        return [[dot(a, b) / len(keys) for b in columns(second)] for a in columns(first)]

    pairs = zip(matrix(s), matrix(t), strict=True)
    return mean((a - b) ** 2 for one, other in pairs for a, b in zip(one, other, strict=True))


def naive_similarity(s: list[Vector], t: list[Vector], keys: list[int]) -> Vector:
    return [mean((dot(s[q], s[k]) / len(s[q]) - dot(t[q], t[k]) / len(t[q])) ** 2 for k in keys) for q in keys]


def naive_selectivity(s: list[Vector], t: list[Vector], keys: list[int]) -> float:
    def kernel(one: list[Vector], other: list[Vector]) -> float:
        return mean(dot(a, b) ** 2 for a in one for b in other)

    ours, theirs = ([unit(c) for c in columns(taken(x, keys))] for x in (s, t))
    return kernel(ours, ours) + kernel(theirs, theirs) - 2 * kernel(ours, theirs)


def naive_transfer(s: list[Vector], t: list[Vector], keys: list[int]) -> float:
    ours, theirs = (unit([mean(x * x for x in own[k]) for k in keys]) for own in (s, t))
    return sum(x * x for x in minus(ours, theirs))


def naive_cka(s: list[Vector], t: list[Vector], keys: list[int]) -> float:
    def centred(own: list[Vector]) -> list[Vector]:  # by dimension
        return [[x - mean(c) for x in c] for c in columns(taken(own, keys))]

    def size(one: list[Vector], other: list[Vector]) -> float:
        return math.hypot(*(dot(a, b) for a in one for b in other))

    ours, theirs = centred(s), centred(t)
    return 1 - size(ours, theirs) ** 2 / size(ours, ours) / size(theirs, theirs)


def naive_scores(s: list, t: list, keys: list[int], reduce_heads: str = "none") -> Vector:
    def reduced(own: list) -> list:
        if reduce_heads == "none":
            return own
        share = len(own) if reduce_heads == "mean" else 1
        return [[[sum(head[q][k] for head in own) / share for k in range(len(own[0]))] for q in range(len(own[0]))]]

    pairs = list(zip(reduced(s), reduced(t), strict=True))
    return [mean((a[q][k] - b[q][k]) ** 2 for a, b in pairs for k in keys) for q in keys]


def naive_products(s: list, t: list, keys: list[int], heads: int | None = None) -> Vector:
    def products(own: list) -> list[list[Vector]]:
        joined = [[x for head in own for x in head[position]] for position in range(len(own[0]))]
        parts = cut(joined, heads or len(own))
        return [[[dot(h[q], h[k]) / math.sqrt(len(h[q])) for k in keys] for q in keys] for h in parts]

    pairs = list(zip(products(s), products(t), strict=True))
    return [mean(x * x for a, b in pairs for x in minus(a[q], b[q])) for q in range(len(keys))]


def cosine_at(i: Vector, j: Vector, k: Vector) -> float:
    return dot(unit(minus(j, i)), unit(minus(k, i)))


def naive_tokens(
    s: list[Vector], t: list[Vector], keys: list[int], heads: int = 1, vertices: int = 20, neighbours: int = 20
) -> Vector:
    ours, theirs = taken(s, keys), taken(t, keys)
    places = range(len(keys))
    pairs = naive_products([h for h in cut(ours, heads)], [h for h in cut(theirs, heads)], list(places), heads)
    # What each gives to each, by the teacher, over heads.
    given = [
        [sum(w) for w in columns([softmax([dot(h[q], h[k]) / math.sqrt(len(h[q])) for k in places]) for h in parts])]
        for q in places
        for parts in [cut(theirs, heads)]
    ]
    at = sorted(places, key=lambda k: -sum(row[k] for row in given))[:vertices]
    triples = []
    for i in at:
        near = sorted((k for k in places if k != i), key=lambda k: -given[i][k])[:neighbours]
        triples += [
            huber(cosine_at(ours[i], ours[j], ours[k]) - cosine_at(theirs[i], theirs[j], theirs[k]))
            for j in near
            for k in near
            if j != k
        ]
    return [pair + (mean(triples) if triples else 0.0) for pair in pairs]


def naive_spans(s: list[Vector], t: list[Vector], keys: list[int], span: int = 3, **others: int) -> Vector:
    runs = [keys[start : start + span] for start in range(0, len(keys), span)]
    ours, theirs = ([[mean(c) for c in columns(taken(x, run))] for run in runs] for x in (s, t))
    values = naive_tokens(ours, theirs, list(range(len(runs))), **others)
    return [value for value, run in zip(values, runs, strict=True) for _ in run]


def naive_rkd_distance(s: list[Vector], t: list[Vector], keys: list[int]) -> Vector:
    def relative(own: list[Vector]) -> list[Vector]:
        distances = [[math.dist(own[i], own[j]) for j in keys] for i in keys]
        scale = mean(d for row in distances for d in row if d > 0)
        return [[d / scale for d in row] for row in distances]

    return [mean(huber(x) for x in minus(a, b)) for a, b in zip(relative(s), relative(t), strict=True)]


def naive_samples(s: list[Vector], t: list[Vector], keys: list[int], heads: int = 1) -> Vector:
    parts = list(zip(cut(s, heads), cut(t, heads), strict=True))
    return [
        mean(huber(cosine_at(a[i], a[j], a[k]) - cosine_at(b[i], b[j], b[k]))
             for a, b in parts for j in keys for k in keys)
        for i in keys
    ]  # fmt: skip


def naive_preserving(s: list[Vector], t: list[Vector], keys: list[int]) -> Vector:
    ours, theirs = ([unit([dot(x[i], x[j]) for j in keys]) for i in keys] for x in (s, t))
    return [mean(x * x for x in minus(a, b)) for a, b in zip(ours, theirs, strict=True)]


def naive_info_nce(s: list[Vector], t: list[Vector], keys: list[int], temperature: float = 0.07) -> Vector:
    scores = [[dot(unit(s[i]), unit(t[j])) / temperature for j in keys] for i in keys]
    return [-math.log(softmax(row)[place]) for place, row in enumerate(scores)]


BANKS = torch.nn.functional.normalize(
    torch.randn(2, 20, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64), dim=-1
)
CONSTANTS = torch.tensor([30.0, 50.0], dtype=torch.float64)


def with_banks(student: Tensor, teacher: Tensor, mask: Tensor | None = None, **arguments: Any) -> Tensor:
    """`crd` of rows 0, 1, 2, …, each with the next five rows of the data as its negatives."""
    candidates = (torch.arange(len(student)).unsqueeze(1) + torch.arange(6)) % 20
    return losses.crd(
        student, teacher, student_bank=BANKS[0], teacher_bank=BANKS[1], candidates=candidates, constants=CONSTANTS,
        mask=mask, **arguments,
    )  # fmt: skip


def naive_crd(s: list[Vector], t: list[Vector], keys: list[int], temperature: float = 0.07) -> Vector:
    noise, values = 5 / 20, []
    for i in keys:
        total = 0.0
        for vector, bank, constant in ((s[i], BANKS[1], CONSTANTS[0]), (t[i], BANKS[0], CONSTANTS[1])):
            p = [
                math.exp(dot(unit(vector), bank[(i + k) % 20].tolist()) / temperature) / constant.item()
                for k in range(6)
            ]
            total -= math.log(p[0] / (p[0] + noise)) + sum(math.log(noise / (x + noise)) for x in p[1:])
        values.append(total)
    return values


def with_later(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return losses.flow_mse(student, teacher, student_next=later(student), teacher_next=later(teacher), mask=mask)


QUERIES, SCORES, ROWS = (2,), (2, 3), (0,)
WIDTHS = both(states(D), states(D_T))

FEATURE_CASES = [
    FeatureCase("hidden_normalised_mse", both(states(D)), naive_normalised),
    FeatureCase("score_mse", both(heads(H)), naive_scores, axes=SCORES),
    FeatureCase("score_mse", both(heads(2), heads(4)), naive_scores, axes=SCORES, arguments={"reduce_heads": "mean"}),
    FeatureCase("score_mse", both(heads(2), heads(4)), naive_scores, axes=SCORES, arguments={"reduce_heads": "sum"}),
    FeatureCase("attention_mse", both(heads(2), heads(4)), naive_scores, axes=SCORES,
                arguments={"reduce_heads": "sum"}),
    FeatureCase("attention_mse", both(heads(2), heads(4)), naive_scores, axes=SCORES,
                arguments={"reduce_heads": "mean"}),
    FeatureCase("relation_mse", both(heads(H, 3), heads(H, 4)), naive_products, axes=QUERIES),
    FeatureCase("relation_mse", both(heads(3, 2), heads(4, 3)), naive_products, axes=QUERIES, arguments={"heads": 6}),
    FeatureCase("similarity_mse", WIDTHS, naive_similarity),
    FeatureCase("mgskd_tokens", WIDTHS, naive_tokens),
    FeatureCase("mgskd_tokens", WIDTHS, naive_tokens, arguments={"heads": 2, "vertices": 3, "neighbours": 2}),
    FeatureCase("mgskd_spans", WIDTHS, naive_spans, arguments={"span": 1}),
    FeatureCase("mgskd_spans", WIDTHS, naive_spans, arguments={"span": 2, "heads": 2, "vertices": 2}),
    FeatureCase("gram_mse", both(states(D)), lambda s, t, k: naive_flow(s, t, k, lambda x: x), "sequences"),
    FeatureCase("flow_mse", both(states(D)), lambda s, t, k: naive_flow(s, t, k, lambda x: 2 * x + 1),
                "sequences", call=with_later),
    FeatureCase("neuron_selectivity", WIDTHS, naive_selectivity, "sequences"),
    FeatureCase("attention_transfer", WIDTHS, naive_transfer, "sequences"),
    FeatureCase("hidden_cka", WIDTHS, naive_cka, "sequences"),
    FeatureCase("rkd_distance", both(rows(D), rows(D_T)), naive_rkd_distance, "rows", ROWS),
    FeatureCase("rkd_angle", both(rows(D), rows(D_T)), naive_samples, "rows", ROWS),
    FeatureCase("similarity_preserving", both(rows(D), rows(D_T)), naive_preserving, "rows", ROWS),
    FeatureCase("mgskd_samples", both(rows(D), rows(D_T)), naive_samples, "rows", ROWS, arguments={"heads": 2}),
    FeatureCase("info_nce", both(rows(D)), naive_info_nce, "rows", ROWS, zero_at_equality=False),
    FeatureCase("info_nce", both(rows(D)), naive_info_nce, "rows", ROWS, arguments={"temperature": 0.5},
                zero_at_equality=False),
    FeatureCase("crd", both(rows(D)), naive_crd, "rows", ROWS, call=with_banks, zero_at_equality=False),
    FeatureCase("crd", both(rows(D)), naive_crd, "rows", ROWS, arguments={"temperature": 0.5}, call=with_banks,
                zero_at_equality=False),
]  # fmt: skip
