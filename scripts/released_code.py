"""Measure how far the presets are from the released code that they repeat.

    .venv/bin/python scripts/released_code.py
    .venv/bin/python scripts/released_code.py --spatial-forcing DIR --rocket DIR --irepa DIR

The first line measures what needs nothing but sfkit: the precision of the released projectors, the constants of images,
and the start of a convolution. The second imports the released classes of checkouts as well, and compares loss and
gradients on the same random tensors (two samples, a grid of 16 x 16, the published widths). VGGT is never imported:
of Spatial Forcing's pooling it only needs the position code, for which sfkit's own stands in.

A figure is the largest difference among the loss, the gradient of the hidden states and that of each parameter: of a
tensor, the norm of the difference in parts of the norm.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sfkit.config import ComponentSpec
from sfkit.factory.components import build_objective, build_projector, build_transforms
from sfkit.presets.published import IREPA, IREPA_LATENT, ROCKET, SPATIAL_FORCING_OPENVLA
from sfkit.projectors.standard import nested_widths
from sfkit.transforms.standard import position_code
from sfkit.views.resample import IMAGENET_MEAN, IMAGENET_STD
from sfkit.views.types import FeatureMap

#: Width of OpenVLA's Llama, of pi0's Gemma, of VGGT's features, of DINOv2-B's, and of the policy that iREPA has.
LLAMA, GEMMA, VGGT, DINO, SIT = 4096, 2048, 2048, 768, 768
SIDE, SAMPLES = 16, 2

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One figure."""

    presets: str
    what: str
    figure: float
    unit: str = ""


def draw(*shape: int, seed: int) -> Tensor:
    """Normal numbers of their own generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(loss_of: Callable[[Tensor], Tensor], hidden: Tensor, parameters: dict[str, nn.Parameter]) -> Gradients:
    """The loss, and the gradients of hidden states and parameters."""
    hidden = hidden.detach().requires_grad_()
    for parameter in parameters.values():
        parameter.grad = None
    loss = loss_of(hidden)
    loss.backward()
    assert hidden.grad is not None
    own = {name: value.grad.clone() for name, value in parameters.items() if value.grad is not None}
    return {"loss": loss.detach(), "hidden": hidden.grad, **own}


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference among pairs of tensors, in parts of the second."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def compared(ours: Gradients, theirs: Gradients, shift: float = 0.0) -> float:
    """Over all that :func:`run` returns; ``shift`` is what our loss has on top of theirs."""
    theirs = {**theirs, "loss": theirs["loss"] + shift}
    assert len(ours) == len(theirs)
    return apart(list(ours.values()), list(theirs.values()))


def ours(projector: Any, target: Tensor, project: Callable[[Tensor], Tensor] | None = None) -> Callable[..., Tensor]:
    """The alignment loss of sfkit for tokens ``(b, n, d)`` and a target ``(b, n, d)``."""
    objective = build_objective("cosine")
    mask = torch.ones(len(target), 1, SIDE, SIDE, dtype=torch.bool)
    grid = target.reshape(len(target), 1, SIDE, SIDE, -1)

    def loss(hidden: Tensor) -> Tensor:
        tokens = hidden.reshape(len(hidden), 1, SIDE, SIDE, -1)
        projected = projector(tokens, mask) if project is None else project(tokens)
        return objective(projected.float(), grid, mask).mean()

    return loss


# ------------------------------------------------------------------------------------------------ without a checkout


def precision() -> Iterator[Row]:
    """The released projectors run under autocast; CPU kernels stand for CUDA's, and the loss is in float32."""
    for presets, widths, spec, dtype in (
        ("spatial-forcing-openvla", (LLAMA, VGGT), "mlp", torch.bfloat16),
        ("spatial-forcing-pi0", (GEMMA, VGGT), "mlp", torch.bfloat16),
        ("rocket", (LLAMA, VGGT), "nested", torch.bfloat16),
        ("irepa", (SIT, DINO), IREPA.arguments["projector"], torch.bfloat16),
        ("irepa-latent", (SIT, DINO), IREPA_LATENT.arguments["projector"], torch.float16),
    ):
        hidden, target = (draw(SAMPLES, SIDE**2, width, seed=seed) for seed, width in enumerate(widths))
        projector = build_projector(spec, *widths, 0)
        mask = torch.ones(SAMPLES, 1, SIDE, SIDE, dtype=torch.bool)

        def rounded(tokens: Tensor, projector: Any = projector, mask: Tensor = mask, dtype: Any = dtype) -> Tensor:
            with torch.autocast("cpu", dtype):
                found: Tensor = projector(tokens, mask)
            return found

        parameters = dict(projector.named_parameters())
        exact = run(ours(projector, target), hidden, parameters)
        cast = run(ours(projector, target, rounded), hidden, parameters)
        name = str(dtype).removeprefix("torch.")
        yield Row(presets, f"projector under {name} autocast: loss", apart([exact["loss"]], [cast["loss"]]))
        yield Row(presets, f"projector under {name} autocast: gradients", compared(exact, cast))


def constants() -> Iterator[Row]:
    """Images as they are recovered from what the processor normalized, and from what the loop has cast of it."""
    levels = (torch.arange(256) / 255).expand(3, 256)
    mean, std = (torch.tensor(each).bfloat16().float()[:, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (levels - mean) / std
    exact = pixels * torch.tensor(IMAGENET_STD)[:, None] + torch.tensor(IMAGENET_MEAN)[:, None]
    for what, images in (
        ("images of the dino half, by ImageNet's constants", exact),
        ("images of the dino half, by the processor's constants", pixels * std + mean),
        ("images of the dino half, cast to bfloat16 by the loop", pixels.bfloat16().float() * std + mean),
        (
            "images of the siglip half, cast to bfloat16 by the loop",
            ((levels - 0.5) / 0.5).bfloat16().float() / 2 + 0.5,
        ),
    ):
        yield Row("spatial-forcing-openvla", what, float((images - levels).abs().max()) * 255, " gray levels")


def start() -> Iterator[Row]:
    """Deviation of the first weights of iREPA's convolution, by Xavier and by torch."""
    for preset in (IREPA, IREPA_LATENT):
        conv = build_projector(preset.arguments["projector"], SIT, DINO, 0).conv
        torchs = float(conv.weight.detach().std())
        nn.init.xavier_uniform_(conv.weight)
        yield Row(
            preset.name, "first weights by Xavier, in parts of torch's", float(conv.weight.detach().std()) / torchs
        )


# --------------------------------------------------------------------------------------------------- with checkouts


def module(path: Path, name: str) -> Any:
    """A file of a checkout, imported by itself."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported: give the folder of the repository's checkout")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def copied(theirs: nn.Module, projector: Any, names: dict[str, str]) -> tuple[Gradients, Gradients]:
    """Their parameters and ours, of one value, under our names."""
    mine, other = dict(projector.named_parameters()), dict(theirs.named_parameters())
    found = {name: other[f"{names[name.partition('.')[0]]}{name[len(name.partition('.')[0]) :]}"] for name in mine}
    with torch.no_grad():
        for name, value in found.items():
            mine[name].copy_(value)
    return found, mine


_MLP = {"norm": "vlm_norm", "fc1": "fc1", "fc2": "fc2"}


def spatial_forcing(folder: Path) -> Iterator[Row]:
    """``AlignProjector`` of both families, in float32, and ``custom_pooling``."""
    gemma = ModuleType("openpi.models.gemma")
    for name, stand in (("openpi", ModuleType("openpi")), ("openpi.models", ModuleType("openpi.models"))):
        sys.modules.setdefault(name, stand)
    sys.modules.setdefault("openpi.models.gemma", gemma)
    vggt, heads, utils = (ModuleType(name) for name in ("vggt", "vggt.heads", "vggt.heads.utils"))
    utils.create_uv_grid = lambda w, h, **_: (h, w)  # type: ignore[attr-defined]
    utils.position_grid_to_embed = lambda grid, dim: position_code(*grid, dim)  # type: ignore[attr-defined]
    sys.modules.update({"vggt": vggt, "vggt.heads": heads, "vggt.heads.utils": utils})
    for presets, path, width in (
        ("spatial-forcing-openvla", "openvla-SF/prismatic/models/projectors.py", LLAMA),
        ("spatial-forcing-pi0", "openpi-SF/src/openpi/models_pytorch/projectors.py", GEMMA),
    ):
        released = module(folder / path, f"released_{width}").AlignProjector(width, VGGT // 2, use_vlm_norm=True)
        projector = build_projector("mlp", width, VGGT, 0)
        theirs, mine = copied(released, projector, _MLP)
        hidden, target = draw(SAMPLES, SIDE**2, width, seed=0), draw(SAMPLES, SIDE**2, VGGT, seed=1)
        masks = () if "openvla" in presets else (torch.ones(SAMPLES, SIDE**2, dtype=torch.bool),)

        def loss(tokens: Tensor, released: Any = released, more: Any = (target, *masks)) -> Tensor:
            found: Tensor = released(tokens, *more)
            return found

        figure = compared(run(ours(projector, target), hidden, mine), run(loss, hidden, theirs))
        yield Row(presets, "AlignProjector in float32: loss and gradients", figure)
    pooling = module(folder / "openvla-SF/prismatic/util/pooling_utils.py", "released_pooling")
    features = draw(SAMPLES, 2, 37 * 37, VGGT, seed=2)
    wanted = pooling.custom_pooling(features, (37, 37), (518, 518), torch.empty(1, 2 * SIDE**2, 1), "bilinear", True)
    found = FeatureMap(features.reshape(SAMPLES, 2, 37, 37, VGGT), torch.ones(SAMPLES, 2, 37, 37, dtype=torch.bool))
    size = torch.ones(SAMPLES, 2, SIDE, SIDE, dtype=torch.bool)
    for transform in build_transforms(SPATIAL_FORCING_OPENVLA.arguments["transforms"], VGGT):
        found = transform(found, size)
    yield Row("spatial-forcing-openvla", "custom_pooling: the target", apart([found.values.flatten(1, 3)], [wanted]))


def rocket(folder: Path) -> Iterator[Row]:
    """The shared projector of ten pairs, each with its own hidden units, in float32."""
    path, count = folder / "openvla-ROCKET/prismatic/models/projectors_rocket.py", 10
    classes = [one for one in vars(module(path, "released_rocket")).values() if hasattr(one, "_get_layer_hidden_dim")]
    released = classes[0](LLAMA, VGGT // 2, hidden_dim=2048, use_vlm_norm=True, num_layers=count)
    projector = build_projector(ROCKET.arguments["projector"], LLAMA, VGGT, 0)
    theirs, mine = copied(released, projector, _MLP)
    hidden = draw(count, SAMPLES, SIDE**2, LLAMA, seed=0)
    target = draw(count, SAMPLES, SIDE**2, VGGT, seed=1)
    assert nested_widths(count, 2048) == tuple(released.layer_hidden_dims)
    mask = torch.ones(SAMPLES, 1, SIDE, SIDE, dtype=torch.bool)

    def own(tokens: Tensor) -> Tensor:
        losses = [
            ours(projector, target[k], lambda x, k=k: projector.forward_shared(x, mask, k, count))(tokens[k])
            for k in range(count)
        ]
        return torch.stack(losses).mean()

    def loss(tokens: Tensor) -> Tensor:
        return torch.stack([released(tokens[k], target[k], layer_index=k) for k in range(count)]).mean()

    yield Row(
        "rocket",
        "ten pairs in float32: loss and gradients",
        compared(run(own, hidden, mine), run(loss, hidden, theirs)),
    )


def irepa(folder: Path) -> Iterator[Row]:
    """Convolution, spatial normalization and ``-cos`` of the pixel code, with the constants of both configurations."""
    jit = folder / "jit"
    projectors, spnorm, losses = (
        module(jit / f"{name}.py", f"released_{name}") for name in ("projectors", "spnorm", "projection_loss")
    )
    for preset in (IREPA, IREPA_LATENT):
        spec = ComponentSpec.of(preset.arguments["projector"])
        gamma = ComponentSpec.of(preset.arguments["transforms"][0]).options["gamma"]
        sizes = {"hidden_size": SIT, "z_dim": DINO, "proj_kwargs_kernel_size": spec.options["kernel"]}
        released = projectors.ProjectionLayer("conv", **sizes)
        projector = build_projector(spec, SIT, DINO, 0)
        theirs, mine = copied(released, projector, {"conv": "projection_layer"})
        hidden, features = draw(SAMPLES, SIDE**2, SIT, seed=0), draw(SAMPLES, SIDE**2, DINO, seed=1) + 1
        wanted = spnorm.SpatialNormalization("zscore")(feat=features, zscore_alpha=gamma)
        size = torch.ones(SAMPLES, 1, SIDE, SIDE, dtype=torch.bool)
        found = FeatureMap(features.reshape(SAMPLES, 1, SIDE, SIDE, -1), size)
        for transform in build_transforms(preset.arguments["transforms"], DINO):
            found = transform(found, size)
        cosine = losses.make_projection_loss("cosine")

        def loss(tokens: Tensor, released: Any = released, wanted: Tensor = wanted, cosine: Any = cosine) -> Tensor:
            result: Tensor = cosine(wanted, released(tokens))
            return result

        own = run(ours(projector, found.values.flatten(1, 3)), hidden, mine)
        figure = max(compared(own, run(loss, hidden, theirs), shift=1.0), apart([found.values.flatten(1, 3)], [wanted]))
        yield Row(preset.name, "convolution, target, loss and gradients in float32", figure)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    checkouts = {"--spatial-forcing": spatial_forcing, "--rocket": rocket, "--irepa": irepa}
    for flag in checkouts:
        parser.add_argument(flag, type=Path, metavar="DIR", help="a checkout of the released repository")
    given = vars(parser.parse_args())
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
    rows = [*precision(), *constants(), *start()]
    for flag, measure in checkouts.items():
        folder = given[flag[2:].replace("-", "_")]
        rows += [] if folder is None else measure(folder)
    sys.stdout.write("| preset | what | figure |\n| --- | --- | --- |\n")
    for row in rows:
        sys.stdout.write(f"| {row.presets} | {row.what} | {row.figure:.2g}{row.unit} |\n")


if __name__ == "__main__":
    main()
