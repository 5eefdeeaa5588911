"""What a checkpoint says about itself: what resuming its training needs, and that running it needs nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit.saving import hub

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_NOTE = """\
## Resuming with lerobot-train

This policy was trained with an alignment loss (spatial forcing, arXiv 2510.12276). Running, evaluating and fine-tuning
it needs LeRobot alone. `lerobot-train --resume=true`, with the alignment, needs

```bash
pip install lerobot_policy_spatial_forcing
```

and the folder `spatial_forcing/`: the projector, and what it was aligned with. A teacher's weights are not in it.
"""


def add_to_readme(directory: str | Path) -> None:
    """Say in the README of ``directory/spatial_forcing/`` what ``lerobot-train --resume=true`` needs."""
    path = Path(directory) / hub.FOLDER / "README.md"
    fresh = path.with_suffix(".part")
    before = path.read_text().rstrip() if path.is_file() else ""
    fresh.write_text(f"{before}\n\n{_NOTE}".lstrip())
    os.replace(fresh, path)  # noqa: PTH105 - as the rest of that folder is written


def add_to_card(card: ModelCard) -> ModelCard:
    """Append the same to a model card of LeRobot."""
    card.text = f"{card.text.rstrip()}\n\n{_NOTE}"
    return card
