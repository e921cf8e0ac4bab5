"""Counts what Stable Diffusion 1.5 takes of a card's memory, without a card: `python -m benchmarks.memory`.

The models run on torch's meta device, where tensors have storages but no bytes, by the operators that a GPU would run: forward,
backward and recomputation, in the formats of CUDA's autocast and with fused attention. After every operator the storages that
are alive are added up, so a peak is that of the real order of operators. Weights, gradients and optimizer states follow from
the numbers of parameters. What no count sees is an allowance, see `CONTEXT` and `Timeline.peak`. Sizes are GiB (2^30 bytes).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import click
import numpy as np

from benchmarks.random_base import MAX_TOKENS, PARAMS, SHAPES, build_parts, prompt_tokenizer
from pathsynth.cli.options import FILE, reports_errors
from pathsynth.core.devices import dtype
from pathsynth.core.io import write_json
from pathsynth.core.params import read_yaml
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.settings import AdapterSettings

if TYPE_CHECKING:
    import torch

GIB = 2**30
# A context with the kernels of CUDA, cuBLAS and cuDNN takes 0.5 to 0.8 GiB; the rest is for what the allocator cannot use.
CONTEXT = 1.0 * GIB
FREE_SHARE = 0.1
CARDS = (8, 16, 24, 80)
SIZES = (224, 512)
BATCHES = (1, 4, 8, 16, 24)
GENERATED = (1, 10, 50)
ENCODED = (16, 64)
# The paper's images per optimiser step, shared out between batch and accumulation.
SHARES = tuple(n for n in range(1, 97) if 96 % n == 0)
MOST_COUNTED = 512
VAE_FACTOR = 8
# The smallest and the largest of params.yaml.
ADAPTERS = ("paper_v9", "sd_r64_wide")


class Format(NamedTuple):
    """Number formats, in the words of params.yaml: of frozen weights, and of autocast."""

    weight_dtype: str
    mixed_precision: str

    def __str__(self) -> str:
        return f"{self.weight_dtype}/{self.mixed_precision}"


FORMATS = (Format("fp32", "no"), Format("fp32", "bf16"), Format("bf16", "bf16"))
CHECKPOINTING = ("all_kept", "checkpointing")


@click.command()
@click.option("--out", type=FILE, default="benchmarks/results/memory.json", show_default=True)
@reports_errors
def main(out):
    """Counts training, encoding and generation, and what fits on cards of several sizes."""
    training = {case: training_need(*case) for case in itertools.product(ADAPTERS, FORMATS, CHECKPOINTING, SIZES)}
    generation = {case: generation_need(*case) for case in itertools.product(FORMATS, SIZES)}
    encoding = {(size,): encoding_need(size) for size in SIZES}
    lora = {f"lora_{name}": numbers(adapted_unet(name, FORMATS[0])[1]) for name in ADAPTERS}
    data = {
        "unit": "GiB",
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
        "allowance": {"context": CONTEXT / GIB, "workspace": "the largest tensor once more", "free_share": FREE_SHARE},
        "parameters": {name: numbers(part.parameters()) for name, part in base("fp32").items()} | lora,
        "training": nested({case: row(need, BATCHES) for case, need in training.items()}),
        "encoding": nested({case: row(need, ENCODED) for case, need in encoding.items()}),
        "generation": nested({case: row(need, GENERATED) for case, need in generation.items()}),
    }
    write_json(out, data)
    click.echo("\n\n".join([training_table(training), generation_table(generation), encoding_table(encoding)]))


@dataclass(frozen=True)
class Need:
    """Bytes that a job takes: frozen weights, the adapter with its gradients and AdamW states, and what comes and goes."""

    weights: int
    adapter: int
    activations: Callable[[int], int]

    def total(self, batch: int) -> float:
        """Bytes at a batch size, with the allowance for the context."""
        return self.weights + self.adapter + self.activations(batch) + CONTEXT

    def most(self, card: int, batches: Iterable[int]) -> int:
        """The largest of `batches` that fits on a card of so many GiB, or 0."""
        return max((n for n in batches if self.total(n) <= (1 - FREE_SHARE) * card * GIB), default=0)


@dataclass(frozen=True)
class Timeline:
    """Bytes after every operator, int64 (operators, 2): alive, and made by it; at batch n they are `base + n * slope`."""

    base: np.ndarray
    slope: np.ndarray

    def peak(self, batch: int) -> int:
        """Most bytes alive at a time, and the largest tensor once more: for workspaces and copies inside of kernels."""
        alive, made = (self.base + batch * self.slope).max(axis=0)
        return int(alive + made)


def training_need(adapter: str, form: Format, checkpointing: str, size: int) -> Need:
    """One backward pass of accumulated gradients; VAE and text encoder have gone to the CPU by then."""
    unet, trained = adapted_unet(adapter, form)
    switch = unet.enable_gradient_checkpointing if checkpointing == "checkpointing" else unet.disable_gradient_checkpointing
    switch()
    known = [*unet.parameters(), *(p.grad for p in trained)]
    timeline = trace(partial(training_step, unet, size), known, form.mixed_precision == "bf16")
    lora = sum(p.nbytes for p in trained)
    frozen = sum(p.nbytes for p in unet.parameters() if not p.requires_grad)
    # weights, gradients and two moments; the optimizer's own temporaries come when the activations are gone
    return Need(frozen, 4 * lora, lambda batch: max(timeline.peak(batch), 2 * lora))


def generation_need(form: Format, size: int) -> Need:
    """Denoising with guidance, then decoding; the adapter is merged into the weights."""
    parts, autocast, latent = base(form.weight_dtype), form.mixed_precision == "bf16", size // VAE_FACTOR
    known = [p for part in parts.values() for p in part.parameters()]
    unet = trace(partial(denoise, parts["unet"], latent), known, autocast)
    decoder = trace(partial(decode, parts["vae"], latent), known, autocast)
    return Need(sum(p.nbytes for p in known), 0, lambda batch: max(unet.peak(2 * batch), decoder.peak(batch)))


def encoding_need(size: int) -> Need:
    """Encoding the training images in fp32, with all parts on the card, before training."""
    parts = base("fp32")
    known = [p for part in parts.values() for p in part.parameters()]
    return Need(sum(p.nbytes for p in known), 0, trace(partial(encode, parts["vae"], size), known, False).peak)


def training_step(unet, size: int, batch: int) -> None:
    """The objective's forward and backward pass."""
    noisy, timesteps, hidden = unet_inputs(unet, size // VAE_FACTOR, batch)
    predicted = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
    (predicted.float() - noisy).square().mean().backward()


def denoise(unet, latent: int, batch: int) -> None:
    """One step of the UNet without gradients, in the format of its weights."""
    import torch

    with torch.no_grad():
        noisy, timesteps, hidden = unet_inputs(unet, latent, batch)
        unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=hidden.to(unet.dtype))


def unet_inputs(unet, latent: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (batch, 4, latent, latent), timesteps (batch,) and text embeddings (batch, tokens, width)."""
    import torch

    noisy = torch.randn(batch, 4, latent, latent, device=unet.device).to(memory_format=torch.channels_last)
    hidden = torch.randn(batch, MAX_TOKENS, unet.config.cross_attention_dim, device=unet.device)
    return noisy, torch.zeros(batch, dtype=torch.long, device=unet.device), hidden


def decode(vae, latent: int, batch: int) -> None:
    """Latents to images."""
    import torch

    with torch.no_grad():
        vae.decode(torch.randn(batch, 4, latent, latent, dtype=vae.dtype, device=vae.device))


def encode(vae, size: int, batch: int) -> None:
    """Images to the posterior of their latents."""
    import torch

    with torch.no_grad():
        posterior = vae.encode(torch.randn(batch, 3, size, size, device=vae.device)).latent_dist
        posterior.mean.half()


@cache
def base(weight_dtype: str) -> dict[str, Any]:
    """The parts of Stable Diffusion 1.5 on the meta device, in the memory layout that `load_base` gives them."""
    import torch

    with torch.device("meta"):
        parts = build_parts("sd15", prompt_tokenizer())
    for name in ("unet", "vae"):
        parts[name].to(memory_format=torch.channels_last)
    return {name: parts[name].to(dtype(weight_dtype)) for name in ("unet", "vae", "text_encoder")}


@cache
def adapted_unet(adapter: str, form: Format) -> tuple[Any, list[torch.nn.Parameter]]:
    """A UNet that trains, and its trainable parameters with gradients, as in the second batch of an accumulation."""
    import diffusers
    import torch

    settings = read_yaml(PARAMS)["loras"][adapter]["adapter"]
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SHAPES["sd15"]["unet"]).to(memory_format=torch.channels_last)
        trained = add_lora(unet, AdapterSettings.model_validate(settings))
    for parameter in unet.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype(form.weight_dtype))
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    return unet.train(), trained


def numbers(parameters: Iterable[torch.nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(p.numel() for p in parameters)


def trace(run: Callable[[int], None], known: list[torch.Tensor], autocast: bool) -> Timeline:
    """Runs twice: every size is a straight line over the batch, so two batches tell of all.

    Args:
        run: the work, for a batch size.
        known: tensors that are there before, and are not counted.
        autocast: whether in bf16.
    """
    rows = []
    for batch in (2, 3):
        with watched(known) as steps, cuda_rules(autocast):
            run(batch)
        rows.append(np.array(steps, np.int64))
    two, three = rows
    return Timeline(base=3 * two - 2 * three, slope=three - two)


@contextmanager
def watched(known: Iterable[torch.Tensor]) -> Iterator[list[tuple[int, int]]]:
    """Yields a list that gets a row per operator: bytes of storages alive after it, and of those that it made."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    steps: list[tuple[int, int]] = []
    alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def hold(storage: torch.UntypedStorage) -> int:
        if storage._cdata in alive:
            return 0
        alive[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, alive.pop, storage._cdata).atexit = False
        return storage.nbytes()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made = [hold(leaf.untyped_storage()) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            steps.append((sum(alive.values()), max(made, default=0)))
            return result

    with Watch():
        yield steps


@contextmanager
def cuda_rules(autocast: bool) -> Iterator[None]:
    """Does to functions what CUDA does and the meta device does not.

    Autocast to bf16 (torch's lists in ATen/autocast_mode.h), fused attention, which keeps no matrix of weights, group norm on
    copies in NCHW, and convolutions that answer in the layout of their weights.
    """
    import torch
    import torch.nn.functional as F
    from torch.utils._pytree import tree_map_only

    conv2d, norm = F.conv2d, F.group_norm

    def attention(query, key, value, attn_mask=None, **kwargs):
        assert attn_mask is None
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, torch.is_grad_enabled())[0]

    def convolution(pixels, weight, *rest):
        result = conv2d(pixels, weight, *rest)
        layout = torch.channels_last
        return result.contiguous(memory_format=layout) if weight.is_contiguous(memory_format=layout) else result

    def group_norm(pixels, *rest):
        return norm(pixels.contiguous(), *rest)

    def cast(function: Callable, to_format: torch.dtype) -> Callable:
        def call(*args, **kwargs):
            to = partial(tree_map_only, torch.Tensor, lambda t: t.to(to_format) if t.is_floating_point() else t)
            return function(*to(args), **to(kwargs))

        return call if autocast else function

    lower: dict[str, Callable] = {"linear": F.linear, "conv2d": convolution, "scaled_dot_product_attention": attention}
    full: dict[str, Callable] = {"group_norm": group_norm, "layer_norm": F.layer_norm, "interpolate": F.interpolate}
    rules: dict[str, Any] = {name: cast(function, torch.bfloat16) for name, function in lower.items()}
    rules |= {name: cast(function, torch.float32) for name, function in full.items()}
    # not a TorchFunctionMode, which backward() switches off, and recomputation with it
    with patch.multiple(F, **rules):
        yield


def row(need: Need, batches: Iterable[int]) -> dict[str, float]:
    """A job's total at several batch sizes, in GiB."""
    parts = {"weights": need.weights, "adapter": need.adapter}
    return {name: round(size / GIB, 2) for name, size in (parts | {f"batch_{n}": need.total(n) for n in batches}).items()}


def nested(rows: Mapping[tuple, dict]) -> dict:
    """Dicts in dicts, a level for every part of a case's name."""
    tree: dict = {}
    for case, values in rows.items():
        place = tree
        for name in case:
            place = place.setdefault(f"{name}px" if isinstance(name, int) else str(name), {})
        place.update(values)
    return tree


def training_table(needs: Mapping[tuple, Need]) -> str:
    """The largest train_batch_size on one card whose product with gradient_accumulation_steps is 96, or 0."""
    settings = list(itertools.product(FORMATS, CHECKPOINTING))
    head = ["card", "size", "LoRA", *(f"{form} {how.replace('_', ' ')}" for form, how in settings)]
    rows = [
        [f"{card} GB", f"{size} px", adapter, *(needs[adapter, *how, size].most(card, SHARES) for how in settings)]
        for card, size, adapter in itertools.product(CARDS, SIZES, ADAPTERS)
    ]
    return table(head, rows)


def generation_table(needs: Mapping[tuple, Need]) -> str:
    """The largest generation batch on one card, or 0."""
    head = ["card", "size", *(str(form) for form in FORMATS)]
    rows = [
        [f"{card} GB", f"{size} px", *(needs[form, size].most(card, range(1, MOST_COUNTED + 1)) for form in FORMATS)]
        for card, size in itertools.product(CARDS, SIZES)
    ]
    return table(head, rows)


def encoding_table(needs: Mapping[tuple, Need]) -> str:
    """GiB of encoding by batch, and the largest batch on every card, or 0."""
    rows = []
    for (size,), need in needs.items():
        most = (need.most(card, range(1, MOST_COUNTED + 1)) for card in CARDS)
        rows.append([f"{size} px", *(f"{need.total(n) / GIB:.1f} GiB" for n in ENCODED), *most])
    return table(["encoding in fp32", *(f"{n} images" for n in ENCODED), *(f"most on {card} GB" for card in CARDS)], rows)


def table(head: list, rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


if __name__ == "__main__":
    main()
