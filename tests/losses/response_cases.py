"""How to feed each loss on labels, logits and maps, and what it should give: naive loops in plain Python over lists."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill import losses

V = 5
Draw = Callable[[torch.Generator, int, int], Tensor]


@dataclass(frozen=True)
class Case:
    """One loss with arguments, and how to feed it."""

    name: str
    draw: Callable[[torch.Generator, int, int], tuple[Tensor, Tensor]]  # (student, teacher), float64, for [B, S]
    # Of one position: (student, teacher, **arguments) from lists. Where positions look at each other, of one query:
    # (student, teacher, query, keys, **arguments) from the lists of one row, and of the whole batch `across_rows`:
    # (student, teacher, row, query, mask, **arguments).
    naive: Callable[..., float]
    axes: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (1,))  # sequence axes of student and teacher
    equal: Callable[[Tensor], Tensor] = field(default=lambda teacher: teacher)  # the student that is right
    arguments: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # arguments made of the teacher, [B, S]
    zero_at_equality: bool = True  # else only its gradient is
    values: str = "positions"  # or "rows": one value a row, [B]
    across_rows: bool = False
    maps: bool = False  # [B, V, 1, S]
    extreme: float = 1e4

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in self.arguments.items()]
        return "-".join([self.name, *options, *(f"{key}-one-a-position" for key in self.beside)])

    def loss(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.call(getattr(losses, self.name), student, teacher, mask)

    def call(self, loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        beside = {key: make(teacher) for key, make in self.beside.items()}
        if self.maps and mask is not None:
            mask = mask.unsqueeze(1)
        values = loss(student, teacher, mask=mask, **self.arguments, **beside)
        return values.squeeze(1) if self.maps and self.values == "positions" else values

    def counted(self, mask: Tensor) -> Tensor:
        """The mask of the values."""
        return mask.any(-1) if self.values == "rows" else mask


def normal(*shape: int) -> Draw:
    """Draws [B, S, *shape]."""
    return lambda generator, b, s: torch.randn(b, s, *shape, generator=generator, dtype=torch.float64)


def pair(one: Draw) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda generator, b, s: (one(generator, b, s), one(generator, b, s))


def images(generator: torch.Generator, b: int, s: int) -> Tensor:
    """Maps [B, V, 1, S]: the pixels stand in one line."""
    return torch.randn(b, V, 1, s, generator=generator, dtype=torch.float64)


def softmax(scores: list[float], temperature: float = 1.0) -> list[float]:
    exps = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [e / sum(exps) for e in exps]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def mixed(p: list[float], q: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def of_probabilities(value: Callable[..., float], power: int = 2) -> Callable[..., float]:
    """The naive loss of logits, from one of probabilities p (teacher) and q (student), times T^power."""

    def naive(student: list[float], teacher: list[float], temperature: float = 1.0, **arguments: Any) -> float:
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        return temperature**power * value(p, q, **arguments)

    return naive


def adaptive(naive: Callable[..., float]) -> Callable[..., float]:
    """The naive loss under `temperatures`."""

    def found(student: list[float], teacher: list[float], **arguments: Any) -> float:
        return naive(student, teacher, temperature=1 + 3 * sigmoid(teacher[0]), **arguments)

    return found


def temperatures(teacher: Tensor) -> Tensor:
    """One temperature a position, between 1 and 4."""
    return 1 + 3 * teacher[..., 0].sigmoid()


def second_least(teacher: Tensor) -> Tensor:
    """Labels: the class that the teacher likes least but one."""
    return teacher.argsort(-1)[..., 1]


def naive_binary_kl(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    p = [(sigmoid(s / temperature), sigmoid(t / temperature)) for s, t in zip(student, teacher, strict=True)]
    return temperature**2 * sum(kl([t, 1 - t], [s, 1 - s]) for s, t in p)


def standardised(logits: list[float]) -> list[float]:
    centre = mean(logits)
    deviation = math.sqrt(sum((z - centre) ** 2 for z in logits) / (len(logits) - 1) + 1e-6)
    return [(z - centre) / deviation for z in logits]


def naive_standardised(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    return of_probabilities(kl)(standardised(student), standardised(teacher), temperature)


def naive_mse(student: list[float], teacher: list[float], teacher_scale: float = 1.0) -> float:
    return mean([(s - teacher_scale * t) ** 2 for s, t in zip(student, teacher, strict=True)])


def naive_decoupled(
    student: list[float], teacher: list[float], temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> float:
    label = sorted(range(V), key=lambda c: teacher[c])[1]
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    right = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    others = [[x / (1 - own[label]) for c, x in enumerate(own) if c != label] for own in (p, q)]
    return temperature**2 * (alpha * right + beta * kl(*others))


def correlation(x: list[float], y: list[float]) -> float:
    x, y = [a - mean(x) for a in x], [b - mean(y) for b in y]
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def naive_dist(
    student: list, teacher: list, row: int, query: int, mask: list, temperature: float = 1.0, **weights: float
) -> float:
    q, p = ([[softmax(z, temperature) for z in line] for line in own] for own in (student, teacher))
    places = [(b, s) for b, line in enumerate(mask) for s, counts in enumerate(line) if counts]
    columns = [[[own[b][s][c] for b, s in places] for c in range(V)] for own in (q, p)]
    between = 1 - correlation(q[row][query], p[row][query])
    within = mean([1 - correlation(x, y) for x, y in zip(*columns, strict=True)])
    return weights.get("beta", 1.0) * between + weights.get("gamma", 1.0) * within


def naive_sorted(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    ranked = [sorted(softmax(z, temperature), reverse=True) for z in (student, teacher)]
    ranks = max(len(p) for p in ranked)
    q, p = (own + [0.0] * (ranks - len(own)) for own in ranked)
    return temperature * sum(abs(a - b) for a, b in zip(p, q, strict=True))


def naive_pseudo(student: list[float], teacher: list[float]) -> float:
    return -math.log(softmax(student)[teacher.index(max(teacher))])


def pixel(own: list, query: int) -> list[float]:
    return [channel[0][query] for channel in own]


def naive_pixel(student: list, teacher: list, query: int, keys: list[int], temperature: float = 1.0) -> float:
    return of_probabilities(kl)(pixel(student, query), pixel(teacher, query), temperature)


def naive_channel(student: list, teacher: list, query: int, keys: list[int], temperature: float = 1.0) -> float:
    channels = [([s[0][k] for k in keys], [t[0][k] for k in keys]) for s, t in zip(student, teacher, strict=True)]
    return mean([of_probabilities(kl)(s, t, temperature) for s, t in channels])


def naive_affinity(student: list, teacher: list, query: int, keys: list[int], patch: int = 2) -> float:
    def affinities(own: list) -> list[float]:
        parts = [[k for k in keys if k // patch == part] for part in range(len(own[0][0]) // patch + 1)]
        nodes = [[mean([channel[0][k] for k in part]) for channel in own] for part in parts if part]
        return [
            sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
            for a in nodes
            for b in nodes
        ]

    return mean([(s - t) ** 2 for s, t in zip(affinities(student), affinities(teacher), strict=True)])


def naive_flat_hcl(student: list, teacher: list, query: int, keys: list[int]) -> float:
    """Of maps of one row, which are not pooled any further."""
    return mean([(s[0][k] - t[0][k]) ** 2 for s, t in zip(student, teacher, strict=True) for k in keys])


def naive_bce(student: list[float], labels: list[float]) -> float:
    terms = [-math.log(sigmoid(z) if y else 1 - sigmoid(z)) for z, y in zip(student, labels, strict=True)]
    return mean(terms)


def classes(generator: torch.Generator, b: int, s: int) -> tuple[Tensor, Tensor]:
    return normal(V)(generator, b, s), torch.randint(0, V, (b, s), generator=generator)


def yes_or_no(generator: torch.Generator, b: int, s: int) -> tuple[Tensor, Tensor]:
    return normal(V)(generator, b, s), torch.randint(0, 2, (b, s, V), generator=generator).double()


def other_vocabulary(ours: int, theirs: int) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda generator, b, s: (normal(ours)(generator, b, s), normal(theirs)(generator, b, s))


NAIVE = {
    "kl_divergence": of_probabilities(kl),
    "reverse_kl_divergence": of_probabilities(lambda p, q: kl(q, p)),
    "symmetric_kl_divergence": of_probabilities(lambda p, q: (kl(p, q) + kl(q, p)) / 2),
    "standardised_kl_divergence": naive_standardised,
    "binary_kl_divergence": naive_binary_kl,
    "jensen_shannon": of_probabilities(
        lambda p, q, beta=0.5: beta * kl(p, mixed(p, q, beta)) + (1 - beta) * kl(q, mixed(p, q, beta))
    ),
    "skewed_kl_divergence": of_probabilities(lambda p, q, alpha=0.1: kl(p, mixed(p, q, alpha))),
    "skewed_reverse_kl_divergence": of_probabilities(lambda p, q, alpha=0.1: kl(q, mixed(q, p, alpha))),
    "total_variation": of_probabilities(
        lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2, power=1
    ),
    "soft_cross_entropy": of_probabilities(lambda p, q: -sum(a * math.log(b) for a, b in zip(p, q, strict=True))),
    "decoupled_kl_divergence": naive_decoupled,
    "universal_logit_distance": naive_sorted,
}  # fmt: skip
HUGE = 3e38


def softened(name: str, **settings: Any) -> list[Case]:
    """A loss of logits with a temperature: none, a number, and one a position."""
    naive, logits = NAIVE[name], pair(normal(V))
    beside = settings.pop("beside", {})
    return [
        Case(name, logits, naive, beside=beside, extreme=HUGE, **settings),
        Case(name, logits, naive, arguments={"temperature": 4}, beside=beside, extreme=HUGE, **settings),
        Case(name, logits, adaptive(naive), beside={"temperature": temperatures, **beside}, extreme=HUGE, **settings),
    ]


def varied(name: str, **arguments: Any) -> Case:
    """A loss of logits with other arguments."""
    return Case(name, pair(normal(V)), NAIVE[name], arguments=arguments, extreme=HUGE)


PIXELS = ((3,), (3,))
RESPONSE_CASES = [
    *softened("kl_divergence"),
    *softened("reverse_kl_divergence"),
    *softened("symmetric_kl_divergence"),
    *softened("standardised_kl_divergence"),
    *softened("binary_kl_divergence"),
    *softened("soft_cross_entropy", zero_at_equality=False),
    *softened("jensen_shannon"),
    varied("jensen_shannon", beta=0.9, temperature=2.0),
    varied("jensen_shannon", beta=0.1),
    *softened("skewed_kl_divergence"),
    varied("skewed_kl_divergence", alpha=0.5),
    *softened("skewed_reverse_kl_divergence"),
    varied("skewed_reverse_kl_divergence", alpha=0.5),
    *softened("total_variation"),
    *softened("decoupled_kl_divergence", beside={"labels": second_least}),
    *softened("universal_logit_distance"),
    Case("universal_logit_distance", other_vocabulary(V, 8), naive_sorted, equal=lambda t: t),
    Case("universal_logit_distance", other_vocabulary(8, V), naive_sorted, arguments={"temperature": 2.0}),
    Case("decoupled_kl_divergence", pair(normal(V)), naive_decoupled, beside={"labels": second_least},
         arguments={"alpha": 0.5, "beta": 2.0, "temperature": 2.0}),
    Case("logit_mse", pair(normal(V)), naive_mse),
    Case("logit_mse", pair(normal(V)), naive_mse, arguments={"teacher_scale": 0.25}, equal=lambda t: 0.25 * t),
    Case("pseudo_label_cross_entropy", pair(normal(V)), naive_pseudo, extreme=HUGE,
         equal=lambda t: 100.0 * torch.nn.functional.one_hot(t.argmax(-1), V).double()),
    Case("dist", pair(normal(V)), naive_dist, across_rows=True, extreme=HUGE),
    Case("dist", pair(normal(V)), naive_dist, across_rows=True, arguments={"temperature": 4, "beta": 2, "gamma": 0.5}),
    Case("pixel_kl_divergence", pair(images), naive_pixel, axes=PIXELS, maps=True, extreme=HUGE),
    Case("pixel_kl_divergence", pair(images), naive_pixel, axes=PIXELS, maps=True, arguments={"temperature": 4.0}),
    Case("channel_kl_divergence", pair(images), naive_channel, axes=PIXELS, maps=True, values="rows", extreme=HUGE),
    Case("channel_kl_divergence", pair(images), naive_channel, axes=PIXELS, maps=True, values="rows",
         arguments={"temperature": 4.0}),
    Case("pairwise_affinity_mse", pair(images), naive_affinity, axes=PIXELS, maps=True, values="rows",
         arguments={"patch": 1}),  # of larger parts, one row would have a single node, which is like itself
    Case("pairwise_affinity_mse", lambda g, b, s: (images(g, b, s), images(g, b, s)[:, :3]), naive_affinity,
         axes=PIXELS, maps=True, values="rows", arguments={"patch": 1}),
    Case("hcl", pair(images), naive_flat_hcl, axes=PIXELS, maps=True, values="rows"),
    Case("cross_entropy", classes, lambda z, y: -math.log(softmax(z)[y]),
         equal=lambda y: 100.0 * torch.nn.functional.one_hot(y, V).double()),
    Case("binary_cross_entropy", yes_or_no, naive_bce, equal=lambda y: 200.0 * y - 100.0),
    Case("squared_error", pair(normal()), lambda z, y: (z - y) ** 2),
    Case("squared_error", lambda g, b, s: (normal(1)(g, b, s), normal()(g, b, s)), lambda z, y: (z[0] - y) ** 2,
         equal=lambda y: y.unsqueeze(-1)),
]  # fmt: skip
