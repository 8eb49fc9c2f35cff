"""Every loss: a pure function of tensors, `f(student, teacher, *, mask=None, ...)`, one value a position.

Decisions:
- This namespace is the registry: a term's `loss: hidden_mse` is the function of that name in `__all__`. One file is one
  family, and says what knowledge the loss compares; logits have three (`divergence`, `bounded`, `logits`).
- Nothing is reduced here; that is `potstill.reduce.masked_mean`, with the same mask.
- A KL is a true KL (0 when both are equal), T^2 is inside the loss, softmax and divergence are in float32 (in float64
  when the inputs are), under autocast too.
- `mask` [*] is true (or not 0) where a position counts. Masked positions come back as 0 and get a gradient of exactly
  0, whatever stands in them, NaN too; where positions look at each other (attention, relations), they are no keys.
- Shapes are never broadcast. B batch, S sequence, V vocabulary or classes, D width, H heads. `_t` marks the teacher's
  own letter: that it equals the student's is checked in the body, so that a user gets a `ShapeError` that names both.
- The teacher is not detached here: who observes it does that once (no gradient is kept for it).
"""

from potstill.losses.attention import attention_kl, attention_mse
from potstill.losses.bounded import jensen_shannon, skewed_kl_divergence, skewed_reverse_kl_divergence, total_variation
from potstill.losses.contrastive import crd, info_nce
from potstill.losses.dense import channel_kl_divergence, pairwise_affinity_mse, pixel_kl_divergence
from potstill.losses.divergence import (
    binary_kl_divergence,
    kl_divergence,
    reverse_kl_divergence,
    soft_cross_entropy,
    standardised_kl_divergence,
    symmetric_kl_divergence,
)
from potstill.losses.granularity import mgskd_spans, mgskd_tokens
from potstill.losses.hidden import hidden_cosine, hidden_mse, hidden_normalised_mse
from potstill.losses.hierarchical import hcl
from potstill.losses.labels import binary_cross_entropy, cross_entropy, squared_error
from potstill.losses.logits import (
    decoupled_kl_divergence,
    dist,
    logit_mse,
    pseudo_label_cross_entropy,
    universal_logit_distance,
)
from potstill.losses.relation import relation_kl, relation_mse
from potstill.losses.samples import mgskd_samples, rkd_angle, rkd_distance, similarity_preserving
from potstill.losses.scores import score_mse
from potstill.losses.structure import (
    attention_transfer,
    flow_mse,
    gram_mse,
    hidden_cka,
    neuron_selectivity,
    similarity_mse,
)

__all__ = [
    "attention_kl",
    "attention_mse",
    "attention_transfer",
    "binary_cross_entropy",
    "binary_kl_divergence",
    "channel_kl_divergence",
    "crd",
    "cross_entropy",
    "decoupled_kl_divergence",
    "dist",
    "flow_mse",
    "gram_mse",
    "hcl",
    "hidden_cka",
    "hidden_cosine",
    "hidden_mse",
    "hidden_normalised_mse",
    "info_nce",
    "jensen_shannon",
    "kl_divergence",
    "logit_mse",
    "mgskd_samples",
    "mgskd_spans",
    "mgskd_tokens",
    "neuron_selectivity",
    "pairwise_affinity_mse",
    "pixel_kl_divergence",
    "pseudo_label_cross_entropy",
    "relation_kl",
    "relation_mse",
    "reverse_kl_divergence",
    "rkd_angle",
    "rkd_distance",
    "score_mse",
    "similarity_mse",
    "similarity_preserving",
    "skewed_kl_divergence",
    "skewed_reverse_kl_divergence",
    "soft_cross_entropy",
    "squared_error",
    "standardised_kl_divergence",
    "symmetric_kl_divergence",
    "total_variation",
    "universal_logit_distance",
]
