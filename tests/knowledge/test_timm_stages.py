"""Stages of timm models, by the list that they carry: on stand-ins of the wrapper's form, and on timm's own where it is
installed (it needs torchvision, and is no dependency)."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import ModelError
from potstill.knowledge import Needs, describe, observe
from potstill.students import configuration
from potstill.tasks import ImageClassification

IMAGE = (32, 64)
MODELS = [
    ("resnet18", {}, (64, 128, 256, 512), [(8, 16), (4, 8), (2, 4), (1, 2)]),
    ("vit_tiny_patch16_224", {"img_size": IMAGE, "patch_size": 8, "embed_dim": 24, "depth": 2}, (24, 24), [(4, 8)] * 2),
    ("swin_tiny_patch4_window7_224", {"img_size": IMAGE, "window_size": 2, "embed_dim": 24}, (24, 48, 96, 192), None),
]


class Wrapped(PreTrainedModel):
    """What of the wrapper is read: a base model with a list of its stages, the first of which is too fine."""

    config_class = PreTrainedConfig
    base_model_prefix = "timm_model"

    def __init__(self, stages: nn.Module, **described: object) -> None:
        config = PreTrainedConfig(num_labels=2)
        config.model_type = "timm_wrapper"
        super().__init__(config)
        self.timm_model = stages
        for name, value in described.items():
            setattr(self.timm_model, name, value)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """The stages in a row, and the mean of the last as logits."""
        for stage in self.timm_model.children():
            pixel_values = stage(pixel_values)
        return SimpleNamespace(logits=pixel_values.flatten(2).mean(-1))


class Turned(nn.Module):
    """A convolution that holds channels last, in and out of place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.LazyConv2d(channels, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C,H,W] or [B,H,W,C] to [B,H,W,C]."""
        x = x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)
        return self.convolution(x).permute(0, 2, 3, 1)


class Patches(nn.Module):
    """Patches of 8 x 8 as tokens, with two others before them."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 5, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,3,H,W] to [B,2+N,5]."""
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros(len(x), 2, 5), tokens], 1)


def info(*stages: tuple[str, int, int]) -> list[dict[str, object]]:
    return [dict(zip(("module", "num_chs", "reduction"), stage, strict=True)) for stage in stages]


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, *IMAGE, generator=torch.Generator().manual_seed(0))}


def test_stages_are_those_of_the_models_own_list_from_a_quarter_on() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 6, 2, 2), nn.Conv2d(6, 7, 2, 2))
    model = Wrapped(layers, feature_info=info(("0", 5, 2), ("1", 6, 4), ("2", 7, 8))).eval()
    shape = describe(model)
    assert (shape.channels, shape.width, shape.layers, shape.heads) == ((6, 7), 7, 0, 0)
    seen = observe(model, pixels(), Needs(features=frozenset((0, 1)))).features
    assert torch.equal(seen[0], layers[1](layers[0](pixels()["pixel_values"])))
    assert seen[1].shape == (2, 7, 4, 8)


def test_maps_with_their_channels_last_are_turned() -> None:
    layers = nn.Sequential(Turned(8))
    model = Wrapped(layers, feature_info=info(("0", 8, 4)), output_fmt="NHWC").eval()
    seen = observe(model, pixels(), Needs(features=frozenset((0,)))).features[0]
    assert seen.shape == (2, 8, 8, 16)
    assert torch.equal(seen, layers[0](pixels()["pixel_values"]).permute(0, 3, 1, 2))


def test_tokens_become_maps_without_those_before_them() -> None:
    layers = nn.Sequential(OrderedDict(patch_embed=Patches(), block=nn.Identity()))
    model = Wrapped(layers, feature_info=info(("block", 5, 8)), num_prefix_tokens=2).eval()
    seen = observe(model, pixels(), Needs(features=frozenset((0,)))).features[0]
    assert torch.equal(seen, layers.patch_embed.proj(pixels()["pixel_values"]))


def test_a_model_without_a_list_has_no_features() -> None:
    model = Wrapped(nn.Sequential(nn.Conv2d(3, 5, 2, 2))).eval()
    assert describe(model).channels == ()
    assert observe(model, pixels(), Needs(logits=True)).logits.shape == (2, 5)
    with pytest.raises(ModelError, match="has no layer 0"):
        observe(model, pixels(), Needs(features=frozenset((0,))))


@pytest.mark.parametrize(("name", "arguments", "channels", "grids"), MODELS, ids=[model[0] for model in MODELS])
def test_models_of_timm(name: str, arguments: dict, channels: tuple[int, ...], grids: list | None) -> None:
    pytest.importorskip("timm")
    config = configuration({"model_type": "timm_wrapper", "architecture": name, "model_args": arguments})
    model = ImageClassification(names=("a", "b", "c")).load(config).model
    assert describe(model).channels == channels
    with torch.no_grad():
        seen = observe(model, pixels(), Needs(logits=True, features=frozenset(range(len(channels)))))
        assert torch.equal(seen.logits, model(**pixels()).logits)
    assert seen.logits.shape == (2, 3)
    sides = grids or [(8, 16), (4, 8), (2, 4), (1, 2)]
    assert [seen.features[stage].shape for stage in range(len(channels))] == [
        (2, width, *grid) for width, grid in zip(channels, sides, strict=True)
    ]


def test_without_timm_it_is_said_what_is_missing() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match="requires the timm library"):
            ImageClassification().load(configuration({"model_type": "timm_wrapper", "architecture": "resnet18"}))
