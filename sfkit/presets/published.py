"""The presets of the core. Each names its source; the pages of the documentation say more."""

from __future__ import annotations

from typing import Any, Final

from sfkit.presets import Preset

_SF = "arXiv 2510.12276; repository OpenHelix-Team/Spatial-Forcing"

#: The target of Spatial Forcing's released code, before and after it is resampled to the student's grid.
_SF_TARGET: Final = (
    ("position-code", {"ratio": 0.1, "scale": "absolute"}),
    ("resample", {"align_corners": True, "scale_factor": True}),
)
#: VGGT at 518 pixels, enlarged by torch's own bicubic kernel, and run under CUDA's autocast.
_SF_TEACHER: Final = ("vggt", {"size": 518, "antialias": False, "round_rope_angles": True})

_SF_COMMON: Final[dict[str, Any]] = {
    "teacher": _SF_TEACHER,
    "teacher_layer": 24,
    "objective": "cosine",
    "projector": "mlp",
    "transforms": _SF_TARGET,
    "weight": 0.5,
}
_SF_RELEASED = (
    "1 - cos is averaged over the valid tokens of each sample, then over samples",
    "LayerNorm before the projector's MLP, whose hidden width is the teacher's",
    "position code of amplitude 0.1 on the teacher's own grid, in the units of VGGT's features",
    "target resampled bilinearly with align_corners=True: up to 0.28 of a patch off at the borders",
    "target size from one ratio, int(37 * r): it fails for student grids of 6, 12, 13, 15, 24, 26, 30 and 33",
    "VGGT's rotary angles rounded to bfloat16, as CUDA's autocast does",
    "raw residual stream of VGGT's last block, frame and global half side by side, without a final norm",
    "weight 0.5 from the first step to the last",
)
_SF_PAPER = (
    "the paper says batch norm before the projector; the code has LayerNorm",
    "equation 3 has -cos; the code has 1 - cos, with the same gradient",
)
_FLOAT32 = "the released projector runs under bfloat16 autocast; here in float32"
_SF_MISSING = (
    _FLOAT32,
    "the teacher's images exceed [0, 1] after bicubic enlarging; here they are clipped, as 8-bit images are",
    "the projector learns at the policy's own rate; that is up to the optimizer",
)

SPATIAL_FORCING_OPENVLA = Preset(
    name="spatial-forcing-openvla",
    source=_SF,
    arguments={**_SF_COMMON, "student_layer": 24, "adapter": {"token_shift": 1}},
    released=(
        *_SF_RELEASED,
        "layer 24 of 32 (the command line's own default is -1, after the final norm)",
        "visual tokens are cut one place too late (gain_feat_1move): each teacher feature meets the patch to the right",
    ),
    paper=_SF_PAPER,
    missing=(*_SF_MISSING, "letterbox padding is aligned in the released code; here the adapter masks it"),
    same_scale=("vggt-commercial",),
)

SPATIAL_FORCING_PI0 = Preset(
    name="spatial-forcing-pi0",
    source=_SF,
    arguments={**_SF_COMMON, "student_layer": 12},
    released=(
        *_SF_RELEASED,
        "layer 12 of 18",
        "tokens of padding and of absent cameras are left out; no token shift",
        "padding is white for VGGT, the teacher's own fill",
    ),
    paper=_SF_PAPER,
    missing=(
        *_SF_MISSING,
        "the teacher sees the image before the color jitter; here it sees what the student sees",
        "geometric augmentation is off for the student as well; that is up to the data pipeline",
        "a patch is padding if its upper left pixel is; here, if any of its pixels is",
        "an absent camera is a blank view for VGGT; here the teacher does not see it",
        "the projector is neither clipped nor saved; here it is both",
    ),
    same_scale=("vggt-commercial",),
)

ROCKET = Preset(
    name="rocket",
    source="arXiv 2602.17951; repository CASE-Lab-UMD/ROCKET-VLA",
    arguments={
        "teacher": _SF_TEACHER,
        "objective": "cosine",
        "projector": ("nested", {"hidden": 2048, "smallest": 0.2}),
        "shared_projector": True,
        "pair_reduction": "mean",
        "transforms": _SF_TARGET,
        "weight": 0.5,
    },
    # The released lists count VGGT's layers from 0: 2 is what the third block leaves.
    by_blocks={
        32: {
            "pairs": (
                *({"student_layer": d, "teacher_layer": d + 1} for d in range(2, 19, 2)),
                {"student_layer": 31, "teacher_layer": 24},
            ),
            "adapter": {"token_shift": 1},
        },
        18: {
            "pairs": (
                *({"student_layer": d, "teacher_layer": 2 * d - 1} for d in range(2, 11)),
                {"student_layer": 18, "teacher_layer": 24},
            ),
        },
    },
    released=(
        "OpenVLA: layers 2, 4, ..., 18 and 31 with VGGT's layers 3, 5, ..., 19 and 24; its -1 means layer 31 of 32",
        "pi0, pi0.5: layers 2, 3, ..., 10 and the last with the same layers",
        "one LayerNorm and one MLP for all pairs; pair i uses the first 409, 591, ..., 2048 of 2048 hidden units",
        "the mean over pairs, all of weight 1; position code and resampling as in Spatial Forcing",
        "OpenVLA: visual tokens are cut one place too late, as in Spatial Forcing",
    ),
    paper=(
        "the paper rounds the widths up, the code down",
        "layers chosen by similarity or CKA: the shipped lists are fixed even numbers",
    ),
    missing=(
        _FLOAT32,
        "a single pair has one fifth of the hidden units in the released code; here it has all of them",
        "the released projectors are not synchronized between ranks; here they are",
        "pi0, pi0.5: the released torch code reads its last layer after the final norm; its JAX code before, as here",
        "the JAX runs (RoboTwin, real robot) have weight 0.125, and the teacher's images are in [-1, 1]",
    ),
    same_scale=("vggt-commercial",),
)

VEGA = Preset(
    name="vega",
    source="arXiv 2605.10485",
    arguments={"student_layer": "encoder", "objective": "cosine", "projector": "mlp", "weight": 0.1},
    teacher_hint=(
        "VEGA's is DINOv2 fine-tuned by FiT3D, last layer: convert it to a folder that transformers can read and give "
        'teacher="hf:<folder>". With plain DINOv2, teacher="hf:facebook/dinov2-large", it is another method.'
    ),
    released=("there is no public code: the preset follows the paper", "LayerNorm and a two-layer MLP with GELU"),
    missing=(
        "VEGA taps the penultimate layer of OpenVLA's DINOv2 tower before FiLM; here it is the tower's output",
        "on OpenVLA the channels of SigLIP are aligned beside DINOv2's, as the tower puts both side by side",
    ),
)

_DINO: Final = "hf:facebook/dinov2-base"
_COSINE = "-cos in the code; here 1 - cos, with the same gradient"
_GENERATION = "made for image generation: these layers are untested for a policy; give student_layer= or pairs="

REPA = Preset(
    name="repa",
    source="arXiv 2410.06940; repository sihyun-yu/REPA",
    arguments={
        "teacher": _DINO,
        "student_layer": 8,
        "objective": "cosine",
        "projector": ("mlp-silu", {"hidden": 2048}),
        "weight": 0.5,
    },
    released=("block 8 of 28 of a diffusion transformer, with DINOv2-B's patch tokens after its final norm", _COSINE),
    missing=(_GENERATION,),
)

_IREPA_COMMON: Final[dict[str, Any]] = {"teacher": _DINO, "student_layer": 8, "objective": "cosine"}
_IREPA_RELEASED = (
    "mean and deviation of each channel over the patches of one image, 1e-6 added to the deviation",
    "the convolution keeps torch's own initialization",
    _COSINE,
)
_PIXELS = {"projector": ("conv", {"kernel": 3}), "transforms": (("spatial-norm", {"gamma": 0.8}),), "weight": 0.5}
_LATENTS = {"projector": ("conv", {"kernel": 1}), "transforms": (("spatial-norm", {"gamma": 0.6}),), "weight": 1.0}

IREPA = Preset(
    name="irepa",
    source="arXiv 2512.10794; repository End2End-Diffusion/iREPA",
    arguments={**_IREPA_COMMON, **_PIXELS},
    released=("the pixel experiments: jit/main_jit.py with jit/configs/irepa.yaml", *_IREPA_RELEASED),
    paper=("the latent experiments have kernel 1, gamma 0.6 and weight 1: preset irepa-latent",),
    missing=("mean and deviation here leave masked tokens out; the released code has none", _GENERATION),
)
IREPA_LATENT = Preset(
    name="irepa-latent",
    source=IREPA.source,
    arguments={**_IREPA_COMMON, **_LATENTS},
    released=("the latent experiments: ldm/train.py with ldm/configs/irepa.yaml", *_IREPA_RELEASED),
    paper=("a 3 x 3 kernel, as in the README; ldm/train.py's default is 1, with which no patch sees another",),
    missing=IREPA.missing,
)

HASTE = Preset(
    name="haste",
    source="arXiv 2505.16792",
    arguments={
        "teacher": _DINO,
        "pairs": (
            {"student_layer": 8, "teacher_layer": 12},
            # Blocks 4 to 7 and 8 to 11 of the released code, which counts from 0; the mean of the four.
            *(
                {"student_layer": d, "teacher_layer": d + 4, "objective": "attention", "weight": 0.25}
                for d in range(5, 9)
            ),
        ),
        "objective": "cosine",
        "projector": ("mlp-silu", {"hidden": 2048}),
        "weight": 0.5,
        "schedule": ("stop", {"at": 250_000}),
    },
    released=(
        "the feature term is REPA's, weight 0.5",
        "attention of blocks 5 to 8 (its 4 to 7) and DINOv2-B's 9 to 12 (its 8 to 11), twelve heads, mean, weight 0.5",
        "cross-entropy in the code; here minus the teacher's own entropy, with the same gradient",
        "both terms stop at step 250,000 (XL; 100,000 for B) of runs of 500,000 and more: give schedule=",
    ),
    missing=(
        "policies with fewer than twelve heads: as many as they have",
        "attention over the patches of each view, whatever else the policy attends to",
        _GENERATION,
    ),
)
