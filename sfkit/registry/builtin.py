"""What the core itself offers, registered through the same door as any plugin."""

from __future__ import annotations

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1


@hookimpl
def register_teachers(register: Register) -> None:
    register(
        "sfkit.teachers.geometry:GeometryTeacher",
        name="geometry",
        summary="3D points of each patch from metric depth and camera geometry; no weights, no download",
        license="Apache-2.0",
    )


@hookimpl
def register_policies(register: Register) -> None:
    register(
        "sfkit.policies.generic:GenericAdapter",
        name="generic",
        summary="any policy, told where its blocks, visual tokens and pictures are",
        aligned="the tokens that it is told of (`adapter=GenericAdapter(...)`)",
        trains="what the policy's own loop trains",
        verified="tiny PaliGemma, LLaVA, SmolVLM and Qwen2.5-VL of transformers with a regression head: "
        "spatial correspondence, gradients, training",
    )


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "sfkit.objectives.distances:AngularScaleObjective",
        name="angular-scale",
        summary="cosine, and the error in the feature regressed from the normalized projection (Geometry Forcing)",
    )
    register(
        "sfkit.objectives.pairwise:AttentionObjective",
        name="attention",
        summary="attention maps of blocks, student's and teacher's (HASTE)",
    )
    register(
        "sfkit.objectives.distances:CosineObjective",
        name="cosine",
        summary="one minus the cosine similarity, averaged over the valid tokens of each sample",
    )
    register(
        "sfkit.objectives.pairwise:InfoNCEObjective",
        name="info-nce",
        summary="each patch told from the others of its view, sample, batch, or of all ranks",
    )
    register(
        "sfkit.objectives.distances:MSEObjective",
        name="mse",
        summary="mean squared error between normalized features",
    )
    register(
        "sfkit.objectives.pairwise:RelationalObjective",
        name="relational",
        summary="difference of the Gram matrices of patch similarities, within views or across them",
    )
    register(
        "sfkit.objectives.distances:SmoothL1Objective",
        name="smooth-l1",
        summary="smooth L1 distance between normalized features",
    )
    register(
        "sfkit.objectives.weighted_sum:SumObjective",
        name="sum",
        summary="several objectives, each with a weight",
    )


@hookimpl
def register_projectors(register: Register) -> None:
    register(
        "sfkit.projectors.standard:ConvProjector",
        name="conv",
        summary="3 x 3 convolution over the grid of each view (iREPA)",
    )
    register(
        "sfkit.projectors.standard:IdentityProjector",
        name="identity",
        summary="none: student and target have one width",
    )
    register(
        "sfkit.projectors.standard:LinearProjector",
        name="linear",
        summary="one linear map, token by token",
    )
    register(
        "sfkit.projectors.standard:MLPProjector",
        name="mlp",
        summary="LayerNorm, linear, GELU, linear, token by token (Spatial Forcing)",
    )
    register(
        "sfkit.projectors.standard:SiLUMLPProjector",
        name="mlp-silu",
        summary="three linear layers with SiLU, token by token (REPA)",
    )
    register(
        "sfkit.projectors.standard:NestedProjector",
        name="nested",
        summary="as mlp, on a share of the hidden units (ROCKET)",
    )


@hookimpl
def register_transforms(register: Register) -> None:
    register(
        "sfkit.transforms.standard:LayerNormTransform",
        name="layer-norm",
        summary="each patch to mean 0 and variance 1 over its channels",
    )
    register(
        "sfkit.transforms.projection:PCATransform",
        name="pca",
        summary="the first principal components",
    )
    register(
        "sfkit.transforms.standard:PositionCode",
        name="position-code",
        summary="add sines and cosines of each patch's place (Spatial Forcing)",
    )
    register(
        "sfkit.transforms.projection:RandomProjection",
        name="random-projection",
        summary="fewer channels, by a fixed random matrix",
    )
    register(
        "sfkit.transforms.standard:ResampleTransform",
        name="resample",
        summary="to the student's grid, where in the sequence it stands",
    )
    register(
        "sfkit.transforms.standard:SpatialNorm",
        name="spatial-norm",
        summary="each channel standardized over the patches of a view (iREPA)",
    )


@hookimpl
def register_schedules(register: Register) -> None:
    register(
        "sfkit.schedules.standard:ConstantSchedule",
        name="constant",
        summary="the same weight throughout (Spatial Forcing)",
    )
    register(
        "sfkit.schedules.standard:ConflictSchedule",
        name="conflict",
        summary="ends when the alignment gradient has opposed the action gradient for a while",
    )
    register(
        "sfkit.schedules.standard:CosineSchedule",
        name="cosine",
        summary="falls along half a cosine",
        argument="steps",
    )
    register(
        "sfkit.schedules.standard:EverySchedule",
        name="every",
        summary="align at one step of n; the teacher rests in between",
        argument="n",
    )
    register(
        "sfkit.schedules.standard:LinearSchedule",
        name="linear",
        summary="falls linearly",
        argument="steps",
    )
    register(
        "sfkit.schedules.standard:StopSchedule",
        name="stop",
        summary="full weight until a step, none from there on (HASTE)",
        argument="at",
        placeholder="step",
    )
    register(
        "sfkit.schedules.standard:WarmUpSchedule",
        name="warm-up",
        summary="rises linearly from the first step",
        argument="steps",
    )


@hookimpl
def register_presets(register: Register) -> None:
    register(
        "sfkit.presets.published:HASTE",
        name="haste",
        summary="HASTE: REPA's term and one on attention, both switched off for good at a given step",
    )
    register(
        "sfkit.presets.published:IREPA",
        name="irepa",
        summary="iREPA: a 3 x 3 convolution, and targets standardized over each view",
    )
    register(
        "sfkit.presets.published:REPA",
        name="repa",
        summary="REPA: cosine to DINOv2 after a three-layer SiLU MLP, layer 8",
    )
    register(
        "sfkit.presets.published:ROCKET",
        name="rocket",
        summary="ten layers on one nested projector (ROCKET)",
    )
    register(
        "sfkit.presets.published:SPATIAL_FORCING_OPENVLA",
        name="spatial-forcing-openvla",
        summary="Spatial Forcing as released for OpenVLA-OFT, its token shift included",
    )
    register(
        "sfkit.presets.published:SPATIAL_FORCING_PI0",
        name="spatial-forcing-pi0",
        summary="Spatial Forcing as released for pi0",
    )
    register(
        "sfkit.presets.published:VEGA",
        name="vega",
        summary="the vision tower's output before the language model (VEGA)",
    )
