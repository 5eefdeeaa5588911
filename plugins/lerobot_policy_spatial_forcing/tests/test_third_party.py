"""Types ``sf_*`` of policies that come with another package, of policies without an adapter, and bad input."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sfkit.errors import AdapterError, ConfigError

FILES = {
    "lerobot_policy_acme/__init__.py": "from lerobot_policy_acme.configuration_acme import AcmeConfig",
    "lerobot_policy_acme/configuration_acme.py": """
from dataclasses import dataclass
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

@PreTrainedConfig.register_subclass("acme")
@dataclass
class AcmeConfig(ACTConfig):
    pass
""",
    "lerobot_policy_acme/modeling_acme.py": """
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot_policy_acme.configuration_acme import AcmeConfig

class AcmePolicy(ACTPolicy):
    config_class, name = AcmeConfig, "acme"
""",
    "lerobot_policy_acme/processor_acme.py": """
from lerobot.policies.act.processor_act import make_act_pre_post_processors as make_acme_pre_post_processors
""",
    "lerobot_policy_acme/alignment.py": """
import sfkit
from sfkit.policies.base import PolicyAdapter

SFKIT_API = 1

@sfkit.hookimpl
def register_policies(register):
    handles = ("lerobot_policy_acme.modeling_acme.AcmePolicy",)
    register("lerobot_policy_acme.adapter:AcmeAdapter", name="acme", handles=handles)
""",
    "lerobot_policy_acme/adapter.py": """
from sfkit_lerobot import ACTAdapter

class AcmeAdapter(ACTAdapter):
    name = "acme"
""",
    "lerobot_policy_acme-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: lerobot_policy_acme\nVersion: 1.0\n",
    "lerobot_policy_acme-1.0.dist-info/entry_points.txt": "[sfkit]\nacme = lerobot_policy_acme.alignment\n",
}
#: Both orders: what LeRobot imports first is what is first on the path.
PROGRAM = """
import importlib.metadata as metadata, sys
found = sorted(metadata.distributions(), key=lambda one: str(one.metadata["Name"]), reverse=sys.argv[1] == "last")
metadata.distributions = lambda: iter(found)
import lerobot.policies
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
names = [name for name in sys.modules if name in ("lerobot_policy_acme", "lerobot_policy_spatial_forcing")]
assert names == sorted(names, reverse=sys.argv[1] == "last"), names
assert "sf_acme" in PreTrainedConfig.get_known_choices()
print(PreTrainedConfig.get_choice_class("sf_acme").base.adapter().__name__)
"""
ACT = [
    "--policy.chunk_size=8", "--policy.n_action_steps=8", "--policy.pretrained_backbone_weights=null",
    "--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=64", "--policy.n_encoder_layers=3",
    "--policy.n_vae_encoder_layers=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acme")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As by pip: found by LeRobot, after this package, and by sfkit."""
    from lerobot.configs import PreTrainedConfig
    from lerobot_policy_spatial_forcing import CONFIGS

    from sfkit.registry.registry import default_registry

    monkeypatch.syspath_prepend(package)
    importlib.invalidate_caches()
    default_registry.cache_clear()
    yield
    default_registry.cache_clear()
    for kind in ("acme", "sf_acme"):
        PreTrainedConfig._choice_registry.pop(kind, None)
        CONFIGS.pop(kind, None)
    for name in [name for name in sys.modules if name.startswith("lerobot_policy_acme")]:
        del sys.modules[name]


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_package_is_found_in_either_order(order, package) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package)!r})\n{PROGRAM}", order],
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.stdout.split()[-1:] == ["AcmeAdapter"], done.stderr[-2000:]


def test_a_packages_policy_trains_and_resumes(installed, lerobot_train, common, resume, tmp_path) -> None:
    flags = ["--policy.type=sf_acme", *ACT, "--policy.sf.teacher=geometry", "--steps=2", "--save_freq=1"]
    run = lerobot_train(*common, *flags, f"--output_dir={tmp_path / 'run'}")
    assert run.policy.spatial_forcing.adapter.name == "acme"
    assert run.policy.spatial_forcing.status().reaches_policy is True
    assert run.teacher_runs == 2
    model = tmp_path / "run/checkpoints/000001/pretrained_model"
    assert json.loads((model / "config.json").read_text())["type"] == "acme"
    (after,) = resume(model.parent).curve
    assert after["loss"] == pytest.approx(run.curve[1]["loss"], rel=1e-5)
    assert after["sf_loss"] == pytest.approx(run.curve[1]["sf_loss"], rel=1e-5)


def _generic(**changed: object) -> str:
    """ACT as it looks to one who knows nothing of it: cells of two cameras behind latent and state, sequence first."""
    depth = ["batch.observation.images.corner2_depth", "batch.observation.images.wrist_depth"]
    options = {
        "name": "generic", "blocks": "model.encoder.layers", "norm": "", "dim": 32, "grid": [2, 3, 3],
        "tokens": {"start": 2, "length": 18}, "pixels": "imagenet", "loss": None,
        "images": [key.removesuffix("_depth") for key in depth], **changed,
    }  # fmt: skip
    return f"--policy.sf.adapter={json.dumps(options)}"


def test_a_generic_adapter_that_does_not_fit_is_refused(lerobot_train, common, tmp_path) -> None:
    flags = ["--policy.type=sf_act", *ACT, "--policy.sf.teacher=geometry", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="tokens hold 17 positions, but 2 views of 3x3 tokens are 18"):
        lerobot_train(*common, *flags, _generic(tokens={"start": 2, "length": 17}), "--steps=1")
    with pytest.raises(AdapterError, match=r"model\.encoder\.blocks"):
        lerobot_train(*common, *flags, _generic(blocks="model.encoder.blocks"), "--steps=1")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--policy.sf.teachr=geometry"], r"no --policy\.sf\.teachr.*'teacher'"),
        ([*ACT, "--policy.sf.teacher=geometry", "--policy.sf.adapter=akt"], "Unknown policy 'akt'.*'act'"),
    ],
)
def test_a_wrong_option_names_the_right_one(flags, said, lerobot_train, common, tmp_path) -> None:
    with pytest.raises(ConfigError, match=said):
        lerobot_train(*common, "--policy.type=sf_act", *flags, "--steps=1", f"--output_dir={tmp_path / 'run'}")


@pytest.mark.parametrize("kind", ["sf_tdmpc", "sf_act"])
def test_a_type_that_cannot_be_is_refused_before_the_dataset(kind, lerobot_train, common, plain, capfd) -> None:
    """LeRobot prints the error without a traceback, and ends."""
    started = [] if kind == "sf_tdmpc" else [f"--policy.pretrained_path={plain}"]
    with pytest.raises(SystemExit):
        lerobot_train(*common, f"--policy.type={kind}", "--policy.sf.teacher=geometry", *started)
    said = {
        "sf_tdmpc": "sf_tdmpc has no adapter: reinforcement learning on one vector for each picture.",
        "sf_act": "holds a policy of type 'smolvla', but the type asked for is 'sf_act'.",
    }
    printed = capfd.readouterr().err
    assert said[kind] in printed
    assert ("generic" if kind == "sf_tdmpc" else "sf_smolvla") in printed


def test_a_missing_extra_is_named(monkeypatch) -> None:
    from lerobot.policies import factory
    from lerobot_policy_spatial_forcing import CONFIGS

    def absent(name: str) -> None:
        raise ImportError("No module named 'torchdiffeq'")

    monkeypatch.setattr(factory, "get_policy_class", absent)
    for kind, extra in (("wall_x", "wallx"), ("pi0_fast", "pi"), ("vla_jepa", "vla-jepa"), ("smolvla", "smolvla")):
        with pytest.raises(
            ImportError, match=rf"sf_{kind} needs {kind}.*torchdiffeq.*pip install 'lerobot\[{extra}\]'"
        ):
            CONFIGS[f"sf_{kind}"](device="cpu")


def test_fault_10_the_projector_joins_parameters_by_name() -> None:
    from lerobot_policy_spatial_forcing.lora import with_projector

    one, projector = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.zeros(2))
    joined = with_projector({"model.one": one}, lambda: iter([projector]))  # X-VLA's form
    assert [joined[key] is value for key, value in zip(joined, (one, projector), strict=True)] == [True, True]
    assert with_projector(joined, lambda: iter([projector])) == joined
