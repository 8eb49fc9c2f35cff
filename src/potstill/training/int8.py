"""int8 for the linear maps of a model that only answers: a teacher on a CPU.

Decided here: weights are int8 by output channel, w ~ s_o q, with s_o the largest |w| of the channel over 127;
activations are rounded by PyTorch's kernel to 7 bits of a range that it finds in each batch, since 8 bits overflow the
16-bit sums of processors without VNNI. Embeddings, norms, attention and everything between stay float32.

The kernels are FBGEMM's: with AVX2 a product takes half of float32's time, a small encoder's whole forward pass 0.8.
PyTorch 2.13 still has them, with a warning that quantised tensors will go; its successors for a CPU (oneDNN's,
`torch._int_mm`) are slower than float32 there. A PyTorch without them is refused in plain words.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError

LARGEST = 127


class Int8Linear(nn.Module):
    """y = x W' + b with W in int8; gives no gradient.

    Args:
        linear: a float32 map; what is kept is a copy.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
        zeros = torch.zeros(self.out_features, dtype=torch.int64)
        bias = None if linear.bias is None else linear.bias.detach().float()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
            rounded = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, given: Tensor) -> Tensor:
        """[...,in] -> [...,out], in the dtype of what is given."""
        found: Tensor = torch.ops.quantized.linear_dynamic(given.float().contiguous(), self.packed, True)
        return found.to(given.dtype)


def is_int8(model: nn.Module) -> bool:
    """Whether a model is one that `int8_copy` made."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def require_int8(model: PreTrainedModel) -> list[str]:
    """The names of a model's linear maps; refuses a model that can't run in int8 here.

    Raises:
        ModelError: there is an accelerator, which students train on; PyTorch has no int8 kernels for this processor; or
            nothing is a plain `nn.Linear` (GPT-2's layers aren't).
    """
    if torch.accelerator.is_available():
        raise ModelError(
            problem(
                "A teacher in int8 runs on a CPU only",
                given=f"accelerator {torch.accelerator.current_accelerator()}",
                do="Set teacher.precision=bfloat16",
            )
        )
    if torch.backends.quantized.engine == "none" or not hasattr(torch, "quantize_per_channel"):
        raise ModelError(
            problem("This build of PyTorch has no int8 kernels for this processor", do="Set teacher.precision=auto")
        )
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    if not names:
        raise ModelError(
            problem(
                f"{type(model).__name__} has no plain linear maps to run in int8", do="Set teacher.precision=float32"
            )
        )
    return names


def int8_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model whose linear maps run in int8; the model itself is not changed.

    Prefer bfloat16 where the processor multiplies it natively: it is more exact, and about as fast.

    Raises:
        ModelError: as `require_int8`.
    """
    names = require_int8(model)
    made = copy.deepcopy(model)
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(made.get_submodule(parent), own, Int8Linear(made.get_submodule(name)))  # type: ignore[arg-type]
    return made
