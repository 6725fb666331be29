"""What one step did."""

from __future__ import annotations

import dataclasses
from typing import Literal

Status = Literal["applied", "unchanged", "dropped"]


@dataclasses.dataclass
class StepResult:
    """What one step did; a step inside `repeat` has the sum over its rounds."""

    name: str
    status: Status = "unchanged"
    changes: int = 0
    seconds: float = 0.0
    reason: str = ""
    """Why it was dropped."""
    nodes: int = 0
    """Nodes in the model afterwards."""
