"""Training curves as TensorBoard event files: the rows of history.csv while they are made (`run.tensorboard`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from udaseg.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOGS = Path("logs/tensorboard")
log = logging.getLogger("udaseg")


class Curves:
    """A window on a training. It computes nothing, and should its disk fill up, the training goes on without it."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begin a file in `folder`; what earlier starts wrote there beyond `step` is made again, and hidden.

        Raises:
            UserError: the package tensorboard is not installed, or the folder cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"run.tensorboard: found true, but no usable package tensorboard ({str(error).splitlines()[0]}); run "
                f"`python -m pip install tensorboard` or say `tensorboard: false`"
            ) from None
        self.folder = folder
        try:
            self.writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=step + 1)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); make it writable or say `tensorboard: false`"
            ) from None
        log.info("curves: tensorboard --logdir %s", LOGS)

    def add(self, row: dict[str, float], images_per_second: float) -> None:
        """Show one row of the history; on the disk when this returns."""
        if self.writer is None:
            return
        step = int(row["step"])
        shown = {name: value for name, value in row.items() if name not in ("step", "learning_rate")}
        values = {name if "/" in name else f"loss/{name}": value for name, value in shown.items()}
        values |= {"learning_rate": row["learning_rate"], "images_per_second": images_per_second}
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
        except OSError as error:
            log.warning("%s: no more curves (%s); training goes on", self.folder, error.strerror)
            self.writer = None
