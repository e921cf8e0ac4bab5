"""A UNet that computes with W + scaling * B A in one product while A and B are trained.

peft computes W x + scaling * B (A x), which reads and writes every layer's input and output several times. For small images
this memory traffic dominates, so it is faster to add B A to W once per step. Autograd then gives dA = scaling * B^T dW and
dB = scaling * dW A^T, the same gradients in exact arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pathsynth.diffusion.adapter import ADAPTER

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class MergedUNet(torch.nn.Module):
    """A UNet whose adapter is added to the weights in every call, and trained.

    Does not support dropout or DoRA, which need A x of each image, nor gradient checkpointing, which calls layers again after
    the merged weights are freed.

    Args:
        unet: a UNet with an adapter from `pathsynth.diffusion.adapter.add_lora`.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        self._layers: dict[str, Any] = {
            name: layer for name, layer in unet.named_modules() if ADAPTER in getattr(layer, "lora_A", ())
        }

    def forward(self, *args, **kwargs):
        """Same as the UNet's forward."""
        weights = {f"{name}.base_layer.weight": _merge_weight(layer) for name, layer in self._layers.items()}
        for layer in self._layers.values():
            layer._disable_adapters = True
        try:
            return torch.func.functional_call(self.unet, weights, args, kwargs)
        finally:
            for layer in self._layers.values():
                layer._disable_adapters = False


def _merge_weight(layer: Any) -> torch.Tensor:
    """W + scaling * B A, float32 in the shape of W; a convolution's B is 1 x 1 and its A has the kernel of the layer."""
    weight = layer.base_layer.weight
    down, up = layer.lora_A[ADAPTER].weight.flatten(1), layer.lora_B[ADAPTER].weight.flatten(1)
    # a bf16 product would lose small steps of the adapter
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight.float().flatten(1), up, down, alpha=layer.scaling[ADAPTER]).view_as(weight)
