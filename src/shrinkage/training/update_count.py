"""How many updates an optimizer made, skipped ones aside."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Updates:
    """Counts the updates that happened: a fused optimizer that met an overflow took a step, but no update."""

    steps: int = 0
    skipped: Tensor | None = None

    def record(self, overflow: Tensor | None) -> None:
        """Count one step; `overflow` is 1 on the device if it did not update anything."""
        self.steps += 1
        if overflow is not None:
            self.skipped = overflow.clone() if self.skipped is None else self.skipped + overflow

    def count(self) -> int:
        """Return the number of updates; waits for the device if loss scaling with a fused optimizer is in use."""
        return self.steps - (0 if self.skipped is None else int(self.skipped.item()))
