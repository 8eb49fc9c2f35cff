"""Attention masks without waiting for the device.

transformers asks of every batch whether any token is padding, to leave the mask out where none is. The answer goes from
the device to Python, so that each forward pass of teacher and student waits until everything before it is computed.
Batches of like length nearly always have some padding, and then nothing is gained. On an accelerator the mask is
therefore made in any case where the batch has one; on a CPU the question costs nothing, and is asked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

LOOKS = (sdpa_mask, eager_mask)  # those that ask


def _unasked(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def made(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return make(*args, attention_mask=attention_mask, **kwargs)

    return made


@contextmanager
def masks_without_waiting(device: torch.device) -> Iterator[None]:
    """Let no model look into a mask on an accelerator inside the context; on a CPU nothing is changed."""
    registered = {} if device.type == "cpu" else dict(AttentionMaskInterface())  # type: ignore[no-untyped-call]
    looking = {name: make for name, make in registered.items() if make in LOOKS}
    for name, make in looking.items():
        AttentionMaskInterface.register(name, _unasked(make))
    try:
        yield
    finally:
        for name, make in looking.items():
            AttentionMaskInterface.register(name, make)
