"""Which classes the adapter is chosen for, and that wrappers do not hide them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prismatic_loop import prismatic_batch
from tiny_prismatic import REMOTE_CODE, REPOSITORY

from sfkit.errors import AdapterError
from sfkit.registry.registry import default_registry


@pytest.mark.parametrize(
    "module",
    [
        REMOTE_CODE,
        REPOSITORY,
        "transformers_modules.my_checkpoint.modeling_prismatic",
        "transformers_modules.modeling_prismatic",
    ],
)
@pytest.mark.parametrize("make", ["tiny_openvla", "tiny_oft"])
def test_the_class_is_recognized_wherever_its_code_lies(module, make, standins, wrap) -> None:
    policy = wrap(getattr(standins, make)(module=module))
    assert policy.spatial_forcing.adapter.name == "openvla"
    assert policy.spatial_forcing.adapter.is_oft is (make == "tiny_oft")


@pytest.mark.parametrize("module", ["prismatic.models.vlms.prismatic", "my.modeling_prismatic"])
def test_others_are_not(module, standins, wrap) -> None:
    with pytest.raises(AdapterError, match="No adapter handles"):
        wrap(standins.tiny_openvla(module=module))


def test_the_plugin_imports_neither_torch_nor_transformers() -> None:
    code = "import sfkit_openvla, sys; assert not {'torch', 'transformers', 'timm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_the_registry_entry_describes_the_adapter() -> None:
    entry = default_registry().get("policy", "openvla")
    assert entry.distribution == "sfkit-openvla"
    assert entry.aligned
    assert entry.verified


@pytest.mark.parametrize("images", [1, 2])
def test_film_may_replace_the_backbone_before_or_after_the_wrap(images, script, wrap) -> None:
    oft = script("oft-l1", images=images)
    policy = wrap(oft.policy())
    oft.add_film(policy)
    oft.film = True
    oft.loss(policy, oft.batch())
    assert policy.spatial_forcing.adapter.num_views == images
    assert policy.spatial_forcing.steps == 1


def test_the_number_of_images_may_be_set_after_the_wrap(wrap, standins) -> None:
    policy = wrap(standins.tiny_oft(images=1)).train()
    policy.vision_backbone.set_num_images_in_input(3)
    batch = prismatic_batch(policy.config, images=3)
    policy(**{key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "labels")})
    assert len(policy.spatial_forcing.adapter._names(policy.spatial_forcing.adapter.num_views)) == 3
