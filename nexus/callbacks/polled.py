"""What the callbacks share that read sensors beside the training: their thread ends when training does."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from nexus.hardware.sensors import Poller


class PolledCallback(Callback):
    """Reads sensors in a thread of its own while training runs.

    Attributes:
        poller: the thread; None while nothing is read.
    """

    poller: Poller | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop reading."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop reading."""
        self.close()

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        if self.poller is not None:
            self.poller.close()
            self.poller = None
