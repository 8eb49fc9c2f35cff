"""Every loss as one would write it in a training script: a boolean index for the padding, plain lines of torch.

Each takes (student, teacher, mask) and what else its loss needs, and gives the mean over the positions that count.
benchmarks/losses.py holds the losses of potstill against them, in value and gradient as well as in time and memory.
"""

import torch
from torch import Tensor
from torch.nn import functional

Log = functional.log_softmax


def _both(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    return Log(student[mask] / temperature, -1), Log(teacher[mask] / temperature, -1)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """The mean divergence of the second log-probabilities from the first."""
    return (first.exp() * (first - second)).sum(-1).mean()


# Labels.


def cross_entropy(student: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return functional.cross_entropy(student[mask], labels[mask])


def binary_cross_entropy(student: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(student[mask], labels[mask])


def squared_error(student: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return (student[mask].squeeze(-1) - labels[mask]).square().mean()


# Distributions.


def kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    return temperature**2 * functional.kl_div(ours, theirs.exp(), reduction="batchmean")


def reverse_kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    return temperature**2 * _kl(ours, theirs)


def symmetric_kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    return temperature**2 * (_kl(ours, theirs) + _kl(theirs, ours)) / 2


def jensen_shannon(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, beta: float) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    mixed = (beta * theirs.exp() + (1 - beta) * ours.exp()).log()
    return temperature**2 * (beta * _kl(theirs, mixed) + (1 - beta) * _kl(ours, mixed))


def skewed_kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, alpha: float) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    return temperature**2 * _kl(theirs, (alpha * theirs.exp() + (1 - alpha) * ours.exp()).log())


def skewed_reverse_kl_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, alpha: float
) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    return temperature**2 * _kl(ours, (alpha * ours.exp() + (1 - alpha) * theirs.exp()).log())


def total_variation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return 0.5 * (student[mask].softmax(-1) - teacher[mask].softmax(-1)).abs().sum(-1).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    ours, theirs = _both(student, teacher, mask, temperature)
    return temperature**2 * -(theirs.exp() * ours).sum(-1).mean()


def binary_kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    ours, theirs = student[mask] / temperature, teacher[mask] / temperature
    p, log = theirs.sigmoid(), functional.logsigmoid
    values = p * (log(theirs) - log(ours)) + (1 - p) * (log(-theirs) - log(-ours))
    return temperature**2 * values.sum(-1).mean()


def standardised_kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    def standard(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True)

    return kl_divergence(standard(student), standard(teacher), mask, temperature)


# Logits.


def logit_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return functional.mse_loss(student[mask], teacher[mask])


def decoupled_kl_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    student, teacher, labels = student[mask] / temperature, teacher[mask] / temperature, labels[mask]
    gold = functional.one_hot(labels, student.shape[-1]).bool()

    def binary(z: Tensor) -> Tensor:
        right = z.softmax(-1)[gold]
        return torch.stack([right, 1 - right], -1).log()

    target = _kl(binary(teacher), binary(student))
    others = _kl(Log(teacher.masked_fill(gold, -1e4), -1), Log(student.masked_fill(gold, -1e4), -1))
    return temperature**2 * (alpha * target + beta * others)


def dist(student: Tensor, teacher: Tensor, mask: Tensor, beta: float, gamma: float) -> Tensor:
    ours, theirs = student[mask].softmax(-1), teacher[mask].softmax(-1)

    def apart(first: Tensor, second: Tensor) -> Tensor:
        first, second = (x - x.mean(-1, keepdim=True) for x in (first, second))
        return 1 - functional.cosine_similarity(first, second, dim=-1).mean()

    return beta * apart(ours, theirs) + gamma * apart(ours.T, theirs.T)


def universal_logit_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    ours, theirs = (z[mask].softmax(-1).sort(-1, descending=True).values for z in (student, teacher))
    return (ours - theirs).abs().sum(-1).mean()


def pseudo_label_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return functional.cross_entropy(student[mask], teacher[mask].argmax(-1))


# Hidden states.


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return functional.mse_loss(student[mask], teacher[mask])


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(student[mask], teacher[mask], dim=-1).mean()


def hidden_normalised_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    ours, theirs = functional.normalize(student[mask], dim=-1), functional.normalize(teacher[mask], dim=-1)
    return (ours - theirs).square().sum(-1).mean()


def flow_mse(student: Tensor, teacher: Tensor, mask: Tensor, student_next: Tensor, teacher_next: Tensor) -> Tensor:
    values = []
    for row, valid in enumerate(mask):
        ours = student[row][valid].T @ student_next[row][valid] / valid.sum()
        theirs = teacher[row][valid].T @ teacher_next[row][valid] / valid.sum()
        values.append((ours - theirs).square().mean())
    return torch.stack(values).mean()


def gram_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return flow_mse(student, teacher, mask, student, teacher)


def similarity_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    values = []
    for ours, theirs, valid in zip(student, teacher, mask, strict=True):
        ours, theirs = ours[valid], theirs[valid]
        difference = ours @ ours.T / ours.shape[-1] - theirs @ theirs.T / theirs.shape[-1]
        values.append(difference.square().mean(-1))
    return torch.cat(values).mean()


def neuron_selectivity(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    values = []
    for ours, theirs, valid in zip(student, teacher, mask, strict=True):
        ours, theirs = functional.normalize(ours[valid].T, dim=-1), functional.normalize(theirs[valid].T, dim=-1)
        kernels = [(a @ b.T).square().mean() for a, b in ((ours, ours), (theirs, theirs), (ours, theirs))]
        values.append(kernels[0] + kernels[1] - 2 * kernels[2])
    return torch.stack(values).mean()


def attention_transfer(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    ours, theirs = (
        functional.normalize(x.square().mean(-1).masked_fill(~mask, 0.0), dim=-1) for x in (student, teacher)
    )
    return (ours - theirs).square().sum(-1).mean()


def hidden_cka(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    values = []
    for ours, theirs, valid in zip(student, teacher, mask, strict=True):
        first, second = (x[valid] - x[valid].mean(0) for x in (ours, theirs))
        values.append(1 - functional.cosine_similarity((first @ first.T).flatten(), (second @ second.T).flatten(), 0))
    return torch.stack(values).mean()


# Attention and relations.


def score_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    values = [
        (ours[:, valid][:, :, valid] - theirs[:, valid][:, :, valid]).square().mean(dim=(0, 2))
        for ours, theirs, valid in zip(student, teacher, mask, strict=True)
    ]
    return torch.cat(values).mean()


attention_mse = score_mse


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    values = []
    for ours, theirs, valid in zip(student, teacher, mask, strict=True):
        ours, theirs = ours[:, valid][:, :, valid], theirs[:, valid][:, :, valid]
        logs = theirs.clamp(min=1e-12).log() - ours.clamp(min=1e-12).log()
        values.append((theirs * logs).sum(-1).mean(0))
    return torch.cat(values).mean()


def _products(vectors: Tensor) -> Tensor:
    return vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    hidden = ~mask[:, None, None, :]
    ours, theirs = (_products(x).masked_fill(hidden, -1e9) for x in (student, teacher))
    values = (theirs.softmax(-1) * (Log(theirs, -1) - Log(ours, -1))).sum(-1)
    return values.mean(1)[mask].mean()


def relation_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    difference = (_products(student) - _products(teacher)).masked_fill(~mask[:, None, None, :], 0.0)
    values = difference.square().sum(-1).mean(1) / mask.sum(-1, keepdim=True)
    return values[mask].mean()


# Rows of the batch.


def rkd_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    ours, theirs = (
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") for x in (student[mask], teacher[mask])
    )
    return functional.smooth_l1_loss(ours / ours[ours > 0].mean(), theirs / theirs[theirs > 0].mean())


def _angles(vectors: Tensor) -> Tensor:
    towards = functional.normalize(vectors.unsqueeze(0) - vectors.unsqueeze(1), dim=-1)
    return towards @ towards.transpose(1, 2)


def rkd_angle(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return functional.smooth_l1_loss(_angles(student[mask]), _angles(teacher[mask]))


def similarity_preserving(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    ours, theirs = (functional.normalize(x @ x.T, dim=-1) for x in (student[mask], teacher[mask]))
    return (ours - theirs).square().sum() / len(ours) ** 2


def mgskd_samples(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    parts = zip(student[mask].chunk(heads, -1), teacher[mask].chunk(heads, -1), strict=True)
    return torch.stack([functional.smooth_l1_loss(_angles(a), _angles(b)) for a, b in parts]).mean()


def _structure(ours: Tensor, theirs: Tensor, heads: int, few: int) -> Tensor:
    """Products of pairs and angles of the triples that the teacher weighs most, of one sequence."""

    def products(vectors: Tensor) -> Tensor:
        return torch.stack([_products(part) for part in vectors.chunk(heads, -1)])

    pairs = (products(ours) - products(theirs)).square().mean(dim=(0, 2))
    weights = products(theirs).softmax(-1).sum(0)
    at = weights.sum(0).topk(min(few, len(ours))).indices
    weights = weights[at].masked_fill(at.unsqueeze(1) == torch.arange(len(ours)), -1.0)
    others = weights.topk(min(few, len(ours) - 1)).indices

    def angles(vectors: Tensor) -> Tensor:
        towards = functional.normalize(vectors[others] - vectors[at].unsqueeze(1), dim=-1)
        return towards @ towards.transpose(1, 2)

    apart = ~torch.eye(others.shape[1], dtype=torch.bool).expand(len(at), -1, -1)
    return pairs + functional.smooth_l1_loss(angles(ours)[apart], angles(theirs)[apart])


def mgskd_tokens(student: Tensor, teacher: Tensor, mask: Tensor, heads: int, vertices: int, neighbours: int) -> Tensor:
    assert vertices == neighbours
    rows = zip(student, teacher, mask, strict=True)
    return torch.cat([_structure(a[valid], b[valid], heads, vertices) for a, b, valid in rows]).mean()


def mgskd_spans(
    student: Tensor, teacher: Tensor, mask: Tensor, span: int, heads: int, vertices: int, neighbours: int
) -> Tensor:
    assert vertices == neighbours
    values = []
    for ours, theirs, valid in zip(student, teacher, mask, strict=True):
        first, second = ours[valid].split(span), theirs[valid].split(span)
        means = [torch.stack([part.mean(0) for part in parts]) for parts in (first, second)]
        lengths = torch.tensor([len(part) for part in first])
        values.append(_structure(means[0], means[1], heads, vertices).repeat_interleave(lengths))
    return torch.cat(values).mean()


# Contrastive.


def info_nce(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    ours, theirs = functional.normalize(student[mask], dim=-1), functional.normalize(teacher[mask], dim=-1)
    return functional.cross_entropy(ours @ theirs.T / temperature, torch.arange(len(ours)))


def crd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    candidates: Tensor,
    constants: Tensor,
    temperature: float,
) -> Tensor:
    chosen, total = candidates[mask], 0.0
    noise = (chosen.shape[1] - 1) / len(student_bank)
    for vectors, bank, constant in ((student, teacher_bank, constants[0]), (teacher, student_bank, constants[1])):
        anchors = functional.normalize(vectors[mask], dim=-1).unsqueeze(-1)
        found = (bank[chosen] @ anchors).squeeze(-1).div(temperature).exp() / constant
        right, wrong = found[:, 0], found[:, 1:]
        total = total - (right / (right + noise)).log().mean() - (noise / (wrong + noise)).log().sum(-1).mean()
    return total


# Dense.


def pixel_kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return kl_divergence(student.permute(0, 2, 3, 1), teacher.permute(0, 2, 3, 1), mask, temperature)


def channel_kl_divergence(student: Tensor, teacher: Tensor, mask: None, temperature: float) -> Tensor:
    ours, theirs = (Log(x.flatten(2) / temperature, -1) for x in (student, teacher))
    return temperature**2 * _kl(theirs, ours)


def pairwise_affinity_mse(student: Tensor, teacher: Tensor, mask: None, patch: int) -> Tensor:
    nodes = [
        functional.normalize(functional.avg_pool2d(x, patch).flatten(2), dim=1, eps=1e-12) for x in (student, teacher)
    ]
    ours, theirs = (x.transpose(1, 2) @ x for x in nodes)
    return functional.mse_loss(ours, theirs)
