"""From a classifier to one ONNX file.

Decisions held here:

* The axes that vary are named, `batch` and, of texts, `sequence`, and every input shares them. Left to itself the
  exporter gives the attention mask a batch axis of its own, and a file that takes one batch size only can be the
  result. Images have the height and width that the model's images are read at; those of a segmentation may have any,
  so `height` and `width` vary too. A model that pools to a grid (UperNet) is traced with `GridPool`, since ONNX has no
  operator for that, and what PyTorch puts in its place is wrong at other sizes than the traced one.
* The weights are inside the file. Protocol buffers end at 2 GB, and a model above that is refused before the work.
* The graph holds standard ONNX operators only, so that every runtime can read it. onnxruntime's own fusions, made
  at export, were tried on a six-layer MiniLM with 2 threads: 5 to 10 % at batch 32, nothing at batch 1, nothing after
  int8. onnxruntime makes most of them itself when it loads the file.
* The inputs are `pixel_values`, or those of `input_ids`, `attention_mask` and `token_type_ids` that both the tokenizer
  makes and the model takes. RoBERTa takes `token_type_ids`, but its tokenizer never makes them: they are no input then.
* The traced model is a copy: float32, on the CPU, in eval mode, with sdpa attention where the family has it.
* Intermediate shapes and stack traces are left out of the file: onnxruntime infers the former itself, and the latter
  are paths on the machine that exported it.
"""

import contextlib
import copy
import importlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from potstill.checks import problem
from potstill.errors import ExportError
from potstill.export.runtime import INSTALL
from potstill.knowledge.architectures import CLASSIFIERS, longest_input

PIXELS = "pixel_values"
ANY_SIZE = "ForSemanticSegmentation"  # in the names of the classes that take images of any size
TRACED = (64, 96)  # height and width, where they vary
INPUTS = ("input_ids", "attention_mask", "token_type_ids", PIXELS)
OUTPUT = "logits"
# A serialised protocol buffer holds 2**31 - 1 bytes; the graph itself takes a few of them.
LARGEST_FILE = 2**31 - 2**24


class Reader(Protocol):
    """What is asked of a tokenizer or an image reader here: the names of what it makes; of the latter also its
    ``size``."""

    model_input_names: list[str]


def export_onnx(model: Any, inputs_from: Reader | Mapping[str, Any], path: Path | str) -> Path:
    """Write `model` as one ONNX file: int64 inputs [batch, sequence], or float32 ``pixel_values`` [batch, 3, H, W];
    float32 output ``logits`` [batch, V], of a segmentation [batch, V, h, w] for images of any size.

    Args:
        model: a transformers classifier of texts or images. It is copied, never changed.
        inputs_from: the tokenizer or image reader, or a batch that it made; the names of its inputs are used, and of
            images their height and width.
        path: the file to write. It is written beside and then renamed, so it is there whole or not at all.

    Returns: `path`.
    Raises `ExportError` when the ONNX packages are missing, when the weights don't fit into one file, and when the
    model can't be traced.

    The file is not compared with the model here; `verify` does that. For a file of a quarter of the size, see
    `quantize_onnx`.
    """
    path = Path(path)
    names = _input_names(model, inputs_from)
    _check_size(model)
    any_size = ANY_SIZE in type(model).__name__
    program = _program(_traceable(model), names, TRACED if any_size else _size(inputs_from), any_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as partial:
        partial.write_bytes(_serialised(program))
    return path


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` at the end, removed if anything is raised."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress prints, warnings or log lines below an error. What is raised passes through."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class GridPool(torch.nn.AdaptiveAvgPool2d):
    """Its base as two products with matrices that are made from the size of the map: [B,C,H,W] -> [B,C,h,w].

    Cell i of n is the mean of places floor(i·N/n) … ceil((i+1)·N/n) - 1 of N, along each axis; cells may overlap.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The mean of each cell."""
        grid: Any = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        rows, columns = (_means(cells, size) for cells, size in zip(grid, input.shape[-2:], strict=True))
        return rows @ input @ columns.T


def _means(cells: int | None, size: int) -> torch.Tensor:
    """[cells, size]: in each row equal weights of sum 1 where the cell is, else 0. None: a cell for each place."""
    cells = size if cells is None else cells
    cell, place = torch.arange(cells).unsqueeze(1), torch.arange(size).unsqueeze(0)
    inside = (place >= cell * size // cells) & (place < ((cell + 1) * size + cells - 1) // cells)
    weights = inside.to(torch.float32)
    return weights / weights.sum(1, keepdim=True)


def _input_names(model: Any, inputs_from: Reader | Mapping[str, Any]) -> list[str]:
    """The names of `INPUTS` that both sides know, in that order."""
    made = inputs_from.keys() if isinstance(inputs_from, Mapping) else inputs_from.model_input_names
    taken = inspect.signature(model.forward).parameters
    names = [name for name in INPUTS if name in made and name in taken]
    if not {"input_ids", PIXELS} & set(names):
        raise ExportError(
            problem(
                "A classifier is exported by its input_ids or its pixel_values",
                given=f"inputs {', '.join(made)}; forward takes {', '.join(taken)}",
                do="Hand in the tokenizer or image reader that the model was trained with",
            )
        )
    return names


def _size(inputs_from: Any) -> tuple[int, int]:
    """Height and width of the images that a reader or a batch has; of texts, which have none, zeros."""
    if isinstance(inputs_from, Mapping):
        return tuple(inputs_from[PIXELS].shape[-2:]) if PIXELS in inputs_from else (0, 0)
    return getattr(inputs_from, "size", (0, 0))


def _check_size(model: Any) -> None:
    """Refuse a model whose float32 weights don't fit into one file."""
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST_FILE:
        raise ExportError(
            problem(
                "The weights don't fit into one ONNX file, which ends at 2 GB",
                given=f"{size / 1e9:.1f} GB in float32",
                do="Ship the transformers folder, which has no such limit, or distil into a smaller student",
            )
        )


def _traceable(model: Any) -> Any:
    """A copy of the model as it is traced: float32, on the CPU, in eval mode, by sdpa where the family has it."""
    clone = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    if ANY_SIZE in type(clone).__name__:
        for module in clone.modules():
            if type(module) is torch.nn.AdaptiveAvgPool2d:
                module.__class__ = GridPool  # in place: UperNet holds its layers in a list too
    if getattr(clone, "_supports_sdpa", False):
        clone.set_attn_implementation("sdpa")
    # A classifier has no use for keys and values of the past; as outputs they would stand beside the logits.
    clone.config.use_cache = False
    clone.config.output_hidden_states = clone.config.output_attentions = False
    return clone


def _example(model: Any, names: list[str], longest: int | None, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Inputs of 3 rows to trace with: valid ids [3, S], the second row padded at its end, or pixels [3, 3, H, W]. No
    size in them is 1, which tracing would take for a constant."""
    batch, sequence = 3, min(11, longest or 11)
    if names == [PIXELS]:
        return {PIXELS: torch.linspace(-1, 1, batch * 3 * size[0] * size[1]).reshape(batch, 3, *size)}
    pad = getattr(model.config, "pad_token_id", None)
    ids = torch.arange(batch * sequence).reshape(batch, sequence) % model.get_input_embeddings().num_embeddings
    ids[ids == pad] = 1 if pad == 0 else 0
    mask = torch.ones_like(ids)
    mask[1, sequence // 2 :] = 0
    if pad is not None:
        ids = ids.masked_fill(mask == 0, pad)
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: example[name] for name in names}


def _program(model: Any, names: list[str], size: tuple[int, int], any_size: bool) -> Any:
    """The traced model, as transformers' exporter makes it."""
    # The exporter imports without its packages, and fails later by their names; ask for them first.
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        exporters: Any = importlib.import_module("transformers.exporters")
    except ImportError as error:
        raise ExportError(problem("ONNX can't be exported here", given=error, do=INSTALL)) from error
    longest = longest_input(model)
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if names != [PIXELS]:
        axes[1] = torch.export.Dim("sequence", max=longest)
    elif any_size:  # no named ones: those must hold down to a size of 1, at which the deeper stages vanish
        axes |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    config = exporters.OnnxConfig(dynamic=True, dynamic_shapes={name: axes for name in names})
    try:
        with quiet(), torch.no_grad():
            return exporters.OnnxExporter().export(model, _example(model, names, longest, size), config=config).program
    except Exception as error:  # tracing raises whatever the model's own code does
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            problem(
                f"{type(model).__name__} can't be traced for ONNX",
                given=first,
                do="The transformers folder of the student is complete without it: leave 'onnx' out of the formats",
            )
        ) from error


def _serialised(program: Any) -> bytes:
    """The file's bytes: axes named, one output, and nothing that only the exporting machine has a use for."""
    import onnx
    import onnx_ir

    proto: onnx.ModelProto = onnx_ir.to_proto(program)
    graph = proto.graph
    answer = [value for value in graph.output if value.name not in CLASSIFIERS.values()]  # DeiT's are in their mean
    del graph.output[:]
    graph.output.extend(answer)
    if [value.name for value in graph.output] != [OUTPUT]:
        raise ExportError(
            problem(
                "A classifier's graph has one output, 'logits'", given=", ".join(value.name for value in graph.output)
            )
        )
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        shape.dim[0].dim_param = "batch"
        if value.name not in (OUTPUT, PIXELS):
            shape.dim[1].dim_param = "sequence"
        elif len(shape.dim) == 4 and any(dim.dim_param for dim in shape.dim[2:]):
            of = "" if value.name == PIXELS else f"{OUTPUT}_"
            shape.dim[2].dim_param, shape.dim[3].dim_param = f"{of}height", f"{of}width"
    del graph.value_info[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    serialised: bytes = proto.SerializeToString()
    return serialised
