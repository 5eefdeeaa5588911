"""What a new user reads: what is not installed, what is misspelled, and the one line of wrap."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from sfkit import SpatialForcing
from sfkit.config import Options
from sfkit.errors import AdapterError, ConfigError, UnknownNameError, ViewsError, log_info
from sfkit.factory import components
from sfkit.registry import builtin
from sfkit.registry.hookspecs import EXTRAS
from sfkit.registry.registry import CORE, BrokenPlugin, Entry, Kind, Registry, default_registry
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

Make = Callable[..., TinyPolicy]
#: The kinds that users name; no extra is known for the others.
NAMED: tuple[Kind, ...] = ("teacher", "policy", "command", "objective", "projector", "transform", "schedule", "preset")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The core without any plugin."""
    registry = Registry()
    registry.add_plugin(builtin, CORE)
    monkeypatch.setattr(components, "default_registry", lambda: registry)
    return registry


def own_plugins() -> Iterator[Entry]:
    for entry in default_registry().entries:
        try:
            summary = importlib.metadata.metadata(entry.distribution)["License-Expression"] is not None
        except importlib.metadata.PackageNotFoundError:
            continue
        if summary and entry.distribution.startswith("sfkit-") and entry.kind in NAMED and entry.target is not None:
            yield entry


def test_every_name_of_a_plugin_has_its_extra() -> None:
    for entry in own_plugins():
        assert f"sfkit-{EXTRAS[entry.kind][entry.name]}" == entry.distribution, entry.name
    installed = {entry.distribution for entry in own_plugins()}
    found = {(entry.kind, entry.name) for entry in own_plugins()}
    for kind, names in EXTRAS.items():
        for name, extra in names.items():
            assert f"sfkit-{extra}" not in installed or (kind, name) in found, f"{name} is registered by nobody"


@pytest.mark.parametrize(
    ("kind", "name", "says", "extra"),
    [
        ("teacher", "vggt", "Unknown teacher 'vggt'.", "vggt"),
        ("teacher", "da3-base", "Unknown teacher 'da3-base'.", "depth-anything"),
        ("teacher", "hf:facebook/dinov2-base", "Unknown teacher 'hf'.", "transformers"),
        ("teacher", "dinov2", "Did you mean 'hf:facebook/dinov2-base'?", "transformers"),
        ("teacher", "facebook/dinov2-base", "Did you mean 'hf:facebook/dinov2-base'?", "transformers"),
        ("policy", "smolvla", "Unknown policy 'smolvla'.", "lerobot"),
        ("command", "rank-layers", "Unknown command 'rank-layers'.", "tools"),
    ],
)
def test_a_missing_name_says_what_installs_it(alone: Registry, kind: Kind, name: str, says: str, extra: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        alone.get(kind, name)
    assert caught.value.message.endswith(says)
    assert caught.value.remedy.startswith(f'pip install "spatial-forcing[{extra}]"')


def test_a_misspelled_name_is_found_among_the_missing(alone: Registry) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vggt'"):
        alone.get("teacher", "vgt")


def test_a_broken_plugin_is_not_to_be_installed_again(alone: Registry) -> None:
    alone.broken.append(BrokenPlugin("sfkit-vggt", "vggt", ImportError("no torch")))
    with pytest.raises(UnknownNameError, match="no torch") as caught:
        alone.get("teacher", "vggt")
    assert "pip install" not in caught.value.remedy


def test_an_installed_hf_is_not_to_be_installed_again(alone: Registry) -> None:
    alone.entries.append(Entry("teacher", "hf", "math:pi", "sfkit-transformers", argument="model"))
    with pytest.raises(UnknownNameError, match="hf:facebook/dinov2-base") as caught:
        alone.get("teacher", "dinov2")
    assert "pip install" not in caught.value.remedy


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("lerobot.policies.smolvla.modeling_smolvla.SmolVLAPolicy", "lerobot"),
        ("openpi.models_pytorch.pi0_pytorch.PI0Pytorch", "openpi"),
        ("prismatic.extern.hf.modeling_prismatic.OpenVLAForActionPrediction", "openvla"),
        ("transformers_modules.openvla.1f2e.modeling_prismatic.OpenVLAForActionPrediction", "openvla"),
        ("my_project.policy.Policy", None),
    ],
)
def test_a_policy_of_a_missing_plugin_says_what_installs_it(path: str, extra: str | None) -> None:
    module, name = path.rsplit(".", 1)
    policy = type(name, (nn.Linear,), {"__module__": module})(2, 2)
    with pytest.raises(AdapterError) as caught:
        SpatialForcing.wrap(policy, "geometry")
    expected = "Pass adapter=" if extra is None else f'pip install "spatial-forcing[{extra}]"'
    assert caught.value.remedy.startswith(expected)
    installed = [entry for entry in own_plugins() if entry.distribution == f"sfkit-{extra}"]
    assert not installed or any(fnmatch.fnmatchcase(path, one) for entry in installed for one in entry.handles)


def test_wrap_prints_one_line_in_a_plain_script() -> None:
    code = (
        "from sfkit import SpatialForcing\n"
        "from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy\n"
        "for verbose in (True, False):\n"
        "    policy = TinyPolicy()\n"
        "    SpatialForcing.wrap(policy, PatchTeacher(), adapter=TinyAdapter(policy), verbose=verbose)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == (
        "sfkit: loss = action + 0.5 × cosine(tiny@2 → patch@3), projector 392 parameters, "
        "teacher license patch: Apache-2.0\n"
    )


@pytest.mark.parametrize(
    ("hidden", "size"), [(1, "73 parameters"), (1000, "29.0 k parameters"), (16_384, "475.2 k parameters")]
)
def test_the_projectors_size_has_a_unit_that_shows_it(wrapped: Make, hidden: int, size: str) -> None:
    policy = wrapped(projector=("mlp", {"hidden": hidden}))
    assert f"projector {size}, " in policy.spatial_forcing.describe()
    assert f"projector of {size} extra" in str(policy.spatial_forcing.status())


def test_a_log_line_bears_the_name_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sfkit"):
        log_info("loss = action")
    formatted = logging.Formatter(logging.BASIC_FORMAT).format(caplog.records[0])
    assert formatted == "INFO:sfkit:loss = action"
    assert caplog.records[0].filename == "test_messages.py", "the caller's place, and not that of the helper"


def test_before_the_first_forward_nothing_has_fired(wrapped: Make) -> None:
    policy = wrapped()
    assert "not yet run" in str(policy.spatial_forcing.status())
    policy(tiny_batch())
    assert "fired 1x in the last forward" in str(policy.spatial_forcing.status())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"health": {"evry": 5}}, "Bad options for health: unknown option 'evry'. Did you mean 'every'?"),
        ({"health": {"every": -1}}, "Bad options for health: every must be >= 0, got -1."),
        ({"weight": -1}, 'weight must be >= 0, or "balance:0.1", got -1.'),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5."),
        ({"pairs": [(1, PatchTeacher(), 1, -1)]}, "weight must be >= 0, got -1."),
        ({"teacher": ("geometry", {"frmae": "world"})}, "unknown option 'frmae'. Did you mean 'frame'?"),
        ({"teacher": ("geometry", {"frame": "wrold"})}, "frame must be 'camera' or 'world', got 'wrold'."),
        ({"projector": ("mlp", {"hidden": "wide"})}, "must be a"),
    ],
)
def test_bad_options_are_named_in_our_words(arguments: dict[str, Any], says: str) -> None:
    policy = TinyPolicy()
    with pytest.raises(ConfigError) as caught:
        SpatialForcing.wrap(
            policy,
            **{
                "adapter": TinyAdapter(policy),
                **({} if "pairs" in arguments else {"teacher": PatchTeacher()}),
                **arguments,
            },
        )
    assert says in caught.value.message
    for theirs in ("Input should", "Value error", "Extra inputs", "validation", "Field required"):
        assert theirs not in str(caught.value)


def test_a_missing_field_and_an_empty_list_are_named_in_our_words() -> None:
    class Needed(Options):
        size: int
        sides: tuple[int, ...]

    with pytest.raises(ConfigError, match=r"size is missing\. sides is missing\."):
        Needed.parse("it", {})


def test_depth_is_asked_for_where_depth_alone_is_missing(wrapped: Make) -> None:
    policy = wrapped("geometry")
    batch = tiny_batch()
    batch.pop("depth", None)
    with pytest.raises(ViewsError, match="Put depth maps into the batch, or choose a teacher that needs images alone"):
        policy(batch)
