"""Keys of the backbone in published files, and keys that it does not need."""

from __future__ import annotations

from pathlib import Path

from sfkit_backbones.files import open_tensors

from sfkit.errors import CheckpointError

#: Prefixes of the backbone's keys: in the official files, in the nested model (depth and metric network in one), in a
#: saved inner network, and in a file of the backbone alone.
PREFIXES = ("model.backbone.pretrained.", "model.da3.backbone.pretrained.", "backbone.pretrained.", "")

_HEADS = ("head", "cam_enc", "cam_dec", "gs_head", "gs_adapter")

#: Heads, the metric network of the nested model, and DINOv2's token for masked patches.
IGNORED = (
    *(f"{root}{head}.*" for root in ("model.", "model.da3.", "") for head in _HEADS),
    "model.da3_metric.*",
    *(f"{prefix}mask_token" for prefix in PREFIXES),
)

#: Only multi-view models have this key.
_LANDMARK = "camera_token"


def find_prefix(path: Path) -> str:
    """The prefix of the backbone's keys in this file.

    Raises:
        CheckpointError: None or several of the known prefixes match.
    """
    keys = open_tensors(path).shapes()
    fitting = [prefix for prefix in PREFIXES if prefix + _LANDMARK in keys]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"{path} holds several backbones of Depth Anything 3: {', '.join(map(repr, fitting))}.",
            "Give a file with one of them.",
        )
    looked_for = ", ".join(prefix + _LANDMARK for prefix in PREFIXES)
    raise CheckpointError(
        f"{path} holds no backbone of a multi-view Depth Anything 3: none of {looked_for}. It has {len(keys)} tensors"
        f"{', such as ' + ', '.join(sorted(keys)[:3]) if keys else ''}.",
        "Give model.safetensors of depth-anything/DA3-SMALL, -BASE, -LARGE-1.1 or -GIANT-1.1 (the mono and metric "
        "models see one view and are other networks).",
    )
