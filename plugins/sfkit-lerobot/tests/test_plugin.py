"""The plugin as sfkit's registry sees it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sfkit_lerobot

from sfkit.errors import AdapterError
from sfkit.registry.registry import Registry


def test_import_is_light() -> None:
    code = "import sys, sfkit_lerobot; print({'torch', 'lerobot', 'transformers', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_registers_the_policies() -> None:
    registry = Registry()
    registry.add_plugin(sfkit_lerobot, "sfkit-lerobot")
    assert {"pi0", "pi05", "pi0_fast", "smolvla"} <= {entry.name for entry in registry.of_kind("policy")}


def test_the_patterns_name_the_real_classes() -> None:
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy
    from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPolicy
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    registry = Registry()
    registry.add_plugin(sfkit_lerobot, "sfkit-lerobot")
    assert [entry.load() for entry in registry.adapters_for(SmolVLAPolicy)] == [sfkit_lerobot.SmolVLAAdapter]
    assert [entry.load() for entry in registry.adapters_for(PI0Policy)] == [sfkit_lerobot.PI0Adapter]
    assert [entry.load() for entry in registry.adapters_for(PI0FastPolicy)] == [sfkit_lerobot.PI0FastAdapter]
    assert [entry.load() for entry in registry.adapters_for(PI05Policy)] == [sfkit_lerobot.PI05Adapter]


def test_every_policy_of_lerobot_has_an_adapter_or_a_reason() -> None:
    import lerobot.policies

    registry = Registry()
    registry.add_plugin(sfkit_lerobot, "sfkit-lerobot")
    entries = {entry.name: entry for entry in [*registry.of_kind("policy"), *registry.unsupported()]}
    (folder,) = lerobot.policies.__path__
    for source in Path(folder).glob("*/modeling_*.py"):
        kind = source.parent.name
        classes = re.findall(r"^class (\w+Policy)\(\s*PreTrainedPolicy", source.read_text(), re.MULTILINE)
        for name in classes:
            assert entries[kind].handles == (f"lerobot.policies.{kind}.modeling_{kind}.{name}",)


def test_every_public_name_resolves() -> None:
    for name in sfkit_lerobot.__all__:
        assert getattr(sfkit_lerobot, name) is not None
    assert set(sfkit_lerobot.__all__) <= set(dir(sfkit_lerobot))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sfkit_lerobot.nonsense


def test_a_policy_without_pictures_is_refused(build, adapter_of) -> None:
    policy = build("pi0")
    policy.config.input_features = {"observation.state": policy.config.input_features["observation.state"]}
    with pytest.raises(AdapterError, match="no images"):
        adapter_of(policy)


@pytest.mark.parametrize("pi", ["pi0", "pi05"])
def test_building_a_tiny_policy_restores_patched_names(pi, build) -> None:
    module = importlib.import_module(f"lerobot.policies.{pi}.modeling_{pi}")
    before = module.get_gemma_config
    build(pi)
    assert module.get_gemma_config is before
    assert module.get_gemma_config("gemma_2b").width == 2048
