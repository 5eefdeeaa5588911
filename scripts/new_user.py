"""What a new user does first, with the wheels in an environment of their own and no checkout beside it.

``scripts/wheels.sh`` runs this with the Python of that environment: ``core`` after ``pip install spatial-forcing``, and
``extras`` after the install lines of the README.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

#: Starting Python with torch takes seconds, so each stage has one script.
CORE = """
from sfkit import SpatialForcing
from sfkit.errors import SfkitError
from sfkit.testing.tiny import TinyAdapter, TinyPolicy

for teacher in ("geometry", "vggt", "da3-base", "dinov2"):
    policy = TinyPolicy()
    try:
        SpatialForcing.wrap(policy, teacher, adapter=TinyAdapter(policy))
    except SfkitError as error:
        print(teacher, error.remedy)
"""

EXTRAS = """
import lerobot_policy_spatial_forcing
from lerobot.configs import PreTrainedConfig
from sfkit_demo import RECORDING
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch

assert "sf_smolvla" in PreTrainedConfig.get_known_choices()
assert (RECORDING / "meta" / "info.json").is_file()
policy = TinyPolicy()
SpatialForcing.wrap(policy, ("da3-base", {"config": "tiny", "size": 56}), adapter=TinyAdapter(policy))
loss, logs = policy.train()(tiny_batch())
loss.backward()
assert logs["sf_loss"] > 0
"""


def run(*command: str, fails: bool = False) -> str:
    """Output and errors of a command, which must succeed, or fail, as expected."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = done.stdout + done.stderr
    assert bool(done.returncode) == fails, f"{command[:3]} ended with {done.returncode}\n{shown}"
    assert fails or "Traceback" not in shown, shown
    return shown


def sfkit(*arguments: str, fails: bool = False) -> str:
    return run(str(Path(sys.executable).parent / "sfkit"), *arguments, fails=fails)


def core() -> None:
    """The core alone works, and says what brings the rest."""
    assert importlib.metadata.version("spatial-forcing") in sfkit("--version")
    shown = run(sys.executable, "-c", CORE)
    assert "sfkit: loss = action + 0.5 × cosine(" in shown
    for name, extra in {"vggt": "vggt", "da3-base": "depth-anything", "dinov2": "transformers"}.items():
        assert f'{name} pip install "spatial-forcing[{extra}]"' in shown
    assert 'pip install "spatial-forcing[demo]"' in sfkit("demo", fails=True)


def extras() -> None:
    """What the README installs is there and whole, and its quickstart finds all that it imports."""
    assert "broken" not in sfkit("plugins").lower()
    assert "--steps" in sfkit("demo", "--help")
    page = importlib.metadata.metadata("spatial-forcing").get_payload()
    blocks = re.findall(r"^```python\n(.*?)^```", str(page), re.MULTILINE | re.DOTALL)
    imports = [line for block in blocks for line in block.splitlines() if re.match(r"(from|import) ", line)]
    assert imports, "the README has no quickstart"
    run(sys.executable, "-W", "ignore", "-c", "\n".join(imports) + EXTRAS)


if __name__ == "__main__":
    {"core": core, "extras": extras}[sys.argv[1]]()
    print(f"a new user, {sys.argv[1]}: ok")
