"""Telling users what is no warning: through logging where it is set up, else on standard error."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("sfkit")


def log_info(message: str) -> None:
    """Log ``message`` at level INFO, or print it where nobody has set up logging."""
    if logger.hasHandlers():
        logger.info(message)
    else:
        print(f"sfkit: {message}", file=sys.stderr)
