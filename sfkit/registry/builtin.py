"""The components of the core, registered through the same hooks as a plugin's."""

from __future__ import annotations

from collections.abc import Callable

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1


def _in(module: str, register: Register) -> Callable[..., None]:
    """``add(class, name, summary, ...)`` registers a class of a module."""

    def add(target: str, name: str, summary: str, **metadata: str) -> None:
        register(f"sfkit.{module}:{target}", name=name, summary=summary, **metadata)

    return add


@hookimpl
def register_teachers(register: Register) -> None:
    _in("teachers.geometry", register)(
        "GeometryTeacher",
        "geometry",
        "3D points of each patch from metric depth and camera geometry; no weights, no download",
        license="Apache-2.0",
    )


@hookimpl
def register_policies(register: Register) -> None:
    _in("policies.generic", register)(
        "GenericAdapter",
        "generic",
        "any policy; options name its blocks, visual tokens and images",
        aligned="the tokens that the options name (`adapter=GenericAdapter(...)`)",
        trains="what the policy's own loop trains",
        verified="tiny PaliGemma, LLaVA, SmolVLM and Qwen2.5-VL of transformers with a regression head: "
        "spatial correspondence, gradients, training",
    )


@hookimpl
def register_objectives(register: Register) -> None:
    add = _in("objectives.distances", register)
    add("AngularScaleObjective", "angular-scale", "cosine, and the error of the feature's scale (Geometry Forcing)")
    add("CosineObjective", "cosine", "one minus the cosine similarity, averaged over the valid tokens of each sample")
    add("MSEObjective", "mse", "mean squared error between normalized features")
    add("SmoothL1Objective", "smooth-l1", "smooth L1 distance between normalized features")
    add = _in("objectives.pairwise", register)
    add("AttentionObjective", "attention", "attention maps of blocks, student's and teacher's (HASTE)")
    add("InfoNCEObjective", "info-nce", "each patch against the others of its view, sample, batch, or of all ranks")
    add("RelationalObjective", "relational", "difference of the Gram matrices of patches, within or across views")
    add = _in("objectives.weighted_sum", register)
    add("SumObjective", "sum", "several objectives, each with a weight")


@hookimpl
def register_projectors(register: Register) -> None:
    add = _in("projectors.standard", register)
    add("ConvProjector", "conv", "3 x 3 convolution over the grid of each view (iREPA)")
    add("IdentityProjector", "identity", "none: student and target have one width")
    add("LinearProjector", "linear", "one linear map, token by token")
    add("MLPProjector", "mlp", "LayerNorm, linear, GELU, linear, token by token (Spatial Forcing)")
    add("NestedProjector", "nested", "as mlp, on a share of the hidden units (ROCKET)")
    add("SiLUMLPProjector", "mlp-silu", "three linear layers with SiLU, token by token (REPA)")


@hookimpl
def register_transforms(register: Register) -> None:
    add = _in("transforms.standard", register)
    add("LayerNormTransform", "layer-norm", "each patch to mean 0 and variance 1 over its channels")
    add("PositionCode", "position-code", "add sines and cosines of each patch's position (Spatial Forcing)")
    add("ResampleTransform", "resample", "to the student's grid, at this position in the sequence of transforms")
    add("SpatialNorm", "spatial-norm", "each channel standardized over the patches of a view (iREPA)")
    add = _in("transforms.projection", register)
    add("PCATransform", "pca", "the first principal components")
    add("RandomProjection", "random-projection", "fewer channels, by a fixed random matrix")


@hookimpl
def register_schedules(register: Register) -> None:
    add = _in("schedules.standard", register)
    add("ConstantSchedule", "constant", "the same weight throughout (Spatial Forcing)")
    add("ConflictSchedule", "conflict", "ends when the alignment gradient has opposed the action gradient for a while")
    add("CosineSchedule", "cosine", "falls along half a cosine", argument="steps")
    add("EverySchedule", "every", "align at one step of n; the teacher rests in between", argument="n")
    add("LinearSchedule", "linear", "falls linearly", argument="steps")
    add("StopSchedule", "stop", "full weight until a step, then none (HASTE)", argument="at", placeholder="step")
    add("WarmUpSchedule", "warm-up", "rises linearly from the first step", argument="steps")


@hookimpl
def register_presets(register: Register) -> None:
    add = _in("presets.published", register)
    add("HASTE", "haste", "HASTE: REPA's term and one on attention, both switched off for good at a given step")
    add("IREPA", "irepa", "iREPA: a 3 x 3 convolution, and targets standardized over each view")
    add(
        "IREPA_LATENT",
        "irepa-latent",
        "iREPA as released for latent diffusion: a linear map instead of the convolution",
    )
    add("REPA", "repa", "REPA: cosine to DINOv2 after a three-layer SiLU MLP, layer 8")
    add("ROCKET", "rocket", "ten layers on one nested projector (ROCKET)")
    add(
        "SPATIAL_FORCING_OPENVLA",
        "spatial-forcing-openvla",
        "Spatial Forcing as released for OpenVLA-OFT, its token shift included",
    )
    add("SPATIAL_FORCING_PI0", "spatial-forcing-pi0", "Spatial Forcing as released for pi0")
    add("VEGA", "vega", "the vision tower's output before the language model (VEGA)")
