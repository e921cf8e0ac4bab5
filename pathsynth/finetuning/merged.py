"""A UNet that computes with W + scaling * B A in one product, while A and B learn.

peft computes W x + scaling * B (A x), which reads and writes every layer's input and output several times. Where images are
small, the time goes there and not into the products, so that it is faster to add B A to W once a step and to let autograd
carry the gradient of the sum on to A and B: dA = scaling * B^T dW and dB = scaling * dW A^T, the same gradients in exact
arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pathsynth.diffusion.adapter import ADAPTER

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class MergedUNet(torch.nn.Module):
    """The UNet with its adapter added to the weights anew in every call; trains the UNet's own adapter.

    Not for dropout or DoRA, which need A x of each image, nor for gradient checkpointing, which calls layers again when the
    sums are gone.

    Args:
        unet: with an adapter from `pathsynth.diffusion.adapter.add_lora`.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        self._layers: dict[str, Any] = {
            name: layer for name, layer in unet.named_modules() if ADAPTER in getattr(layer, "lora_A", ())
        }

    def forward(self, *args, **kwargs):
        """What the UNet's own forward gives."""
        weights = {f"{name}.base_layer.weight": _merged(layer) for name, layer in self._layers.items()}
        for layer in self._layers.values():
            layer._disable_adapters = True
        try:
            return torch.func.functional_call(self.unet, weights, args, kwargs)
        finally:
            for layer in self._layers.values():
                layer._disable_adapters = False


def _merged(layer: Any) -> torch.Tensor:
    """The sum, float32 in the shape of the layer's weight; convolutions have B of 1 x 1 and A of the layer's own kernel."""
    weight = layer.base_layer.weight
    down, up = layer.lora_A[ADAPTER].weight.flatten(1), layer.lora_B[ADAPTER].weight.flatten(1)
    # a small step of the adapter would be lost in a bf16 product
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight.float().flatten(1), up, down, alpha=layer.scaling[ADAPTER]).view_as(weight)
