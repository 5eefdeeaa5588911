"""How LeRobot finds the package, and what it says when something is missing or out of the ordinary."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib
import torch
from accelerate.state import AcceleratorState
from lerobot_policy_spatial_forcing import compat

from sfkit.errors import SfkitWarning, WrapError

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PAGE = Path(__file__).parents[3] / "docs" / "lerobot-train.md"


def test_the_distribution_has_the_name_that_lerobot_looks_for() -> None:
    name = tomllib.loads(PROJECT.read_text())["project"]["name"]
    assert name.startswith("lerobot_policy_")
    assert distribution(name).metadata["Name"] == name  # what LeRobot reads, not the normalized one
    assert (PROJECT.parent / "src" / name / "__init__.py").is_file()


def test_fault_41_lerobot_registers_the_types_by_itself() -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    types = {"sf_smolvla": "SmolVLAPolicy", "sf_pi0": "PI0Policy", "sf_pi05": "PI05Policy"}
    assert set(types) <= set(PreTrainedConfig.get_known_choices())
    for kind, base in types.items():
        policy = get_policy_class(kind)
        assert policy.__name__ == f"SF{base}"
        assert policy.name == kind
        assert base in [cls.__name__ for cls in policy.__mro__]
    assert callable(make_pre_post_processors)


def test_without_extras_the_one_to_install_is_named() -> None:
    program = (
        "import sys; sys.modules['transformers'] = sys.modules['peft'] = None\n"
        "from lerobot.utils.import_utils import register_third_party_plugins\n"
        "register_third_party_plugins()\n"
        "from lerobot.policies.factory import get_policy_class, make_policy_config\n"
        "get_policy_class('sf_smolvla')(make_policy_config('sf_smolvla', device='cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=1200)
    assert "lerobot[smolvla]" in done.stderr.splitlines()[-1]
    assert "Could not import third-party plugin" not in done.stderr


def test_lerobot_refuses_a_path_and_a_type_as_documented(lerobot_train, common, plain, capfd) -> None:
    with pytest.raises((SystemExit, argparse.ArgumentError)) as caught:
        lerobot_train(*common, "--policy.type=sf_smolvla", f"--policy.path={plain}")
    printed = f"{caught.value} {capfd.readouterr().err}"
    assert "Cannot specify both --policy.path and --policy.type" in printed
    if PAGE.is_file():
        assert "Cannot specify both --policy.path and --policy.type" in PAGE.read_text()


@pytest.fixture
def launched(monkeypatch):
    """Started by a command: the one of this process's parent."""

    class Parent:
        def cmdline(self) -> list[str]:
            return self.command

    parent = Parent()
    monkeypatch.setattr("psutil.Process.parent", lambda self: parent)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    compat.warn_of_single_process.cache_clear()

    def by(*command: str) -> None:
        parent.command = list(command)

    yield by
    compat.warn_of_single_process.cache_clear()


@pytest.mark.parametrize("flag", [["--num_processes=2"], ["--num_processes", "2"], ["--num-processes=2"]])
def test_fault_42_one_process_where_two_were_asked_for_is_said(flag, launched) -> None:
    launched("/env/bin/python", "/env/bin/accelerate", "launch", "--cpu", *flag, "lerobot-train", "--batch_size=2")
    with pytest.warns(SfkitWarning, match=r"asked for 2 processes and has started one.*torchrun --nproc-per-node=2"):
        compat.warn_of_single_process()
    compat.warn_of_single_process()  # once


def test_fault_42_nothing_is_said_where_all_is_well(launched, monkeypatch) -> None:
    for command in (["bash"], ["python", "-m", "accelerate.commands.launch", "--num_processes=1", "x"]):
        launched(*command)
        compat.warn_of_single_process()
        compat.warn_of_single_process.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    launched("accelerate", "launch", "--num_processes=2", "lerobot-train")
    compat.warn_of_single_process()


def test_fully_sharded_training_is_refused_with_the_reason(make, plain, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert compat.trainer_calls_forward()  # LeRobot 0.6.1
    with pytest.raises(WrapError, match=r"calls policy\.forward\(batch\), past the hooks"):
        make("sf_smolvla", pretrained_path=plain)
    monkeypatch.setattr(compat, "trainer_calls_forward", lambda: False)
    compat.refuse_fsdp()
    half = SimpleNamespace(fsdp_version=2, mixed_precision_policy=SimpleNamespace(param_dtype=torch.bfloat16))
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", half)  # as the trainer makes it
    with pytest.raises(WrapError, match="makes bfloat16 of the batch's depth"):
        compat.refuse_fsdp()
    half.mixed_precision_policy = None
    compat.refuse_fsdp()
    half.fsdp_version = 1
    with pytest.raises(WrapError, match="FSDP 1"):
        compat.refuse_fsdp()
    monkeypatch.delitem(AcceleratorState._shared_state, "fsdp_plugin")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(WrapError, match="FSDP 1"):
        compat.refuse_fsdp()


def test_a_newer_lerobot_is_used_with_one_warning(monkeypatch) -> None:
    compat.warn_of_unknown_version.cache_clear()
    monkeypatch.setattr(compat, "version", lambda name: "0.7.0.dev1")
    with pytest.warns(SfkitWarning, match=r"LeRobot 0\.7\.0\.dev1 is newer"):
        compat.warn_of_unknown_version()
    compat.warn_of_unknown_version()
    for known in ("0.6.1", "0.6.0"):
        compat.warn_of_unknown_version.cache_clear()
        monkeypatch.setattr(compat, "version", lambda name, known=known: known)
        compat.warn_of_unknown_version()
    compat.warn_of_unknown_version.cache_clear()


@pytest.mark.parametrize("version", compat.TESTED)
def test_the_version_installed_is_one_that_is_said_to_be_tested(version) -> None:
    from importlib.metadata import version as installed

    assert installed("lerobot") in compat.TESTED
    assert compat._ordered(version) == tuple(int(part) for part in version.split("."))
