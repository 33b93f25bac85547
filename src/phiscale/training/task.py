"""The training step, as a LightningModule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from phiscale.data.transforms import normalize
from phiscale.errors import TrainingError
from phiscale.nn.layers import set_rows
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.training.meter import Meter
from phiscale.training.mixup import mixup
from phiscale.training.optim import build_optimizer, lr_factor, parameter_groups, ramp
from phiscale.training.randomness import seed_step
from phiscale.training.ranks import RowsOfBatches, global_sum, my_share, with_previous
from phiscale.training.recipe import Recipe

__all__ = ["ClassificationTask"]

# Reading a loss from a GPU waits for it, so there a loss that is not finite is noticed a little later.
_GPU_CHECK_EVERY = 20


class ClassificationTask(pl.LightningModule):
    """uint8 batch -> normalise -> mixup -> network -> cross entropy.

    Args:
        net: The network to train.
        recipe: How.
        preprocess: Mean and standard deviation of the images.
        steps_per_epoch: Optimizer steps in an epoch.
        rows: Which rows of each batch this process has, where several share the batches; None is all.
    """

    def __init__(
        self,
        net: Network,
        *,
        recipe: Recipe,
        preprocess: Preprocess,
        steps_per_epoch: int,
        rows: RowsOfBatches | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.recipe = recipe
        self.preprocess = preprocess
        self.steps_per_epoch = steps_per_epoch
        self.rows = rows
        self.train_meter, self.val_meter = Meter(), Meter()
        self._stored_meter: dict[str, Any] = {}

    # -- training ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the epoch's means are made of so far."""
        checkpoint["train_meter"] = self.train_meter.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of `on_save_checkpoint`, carried out when the device is known."""
        self._stored_meter = checkpoint.get("train_meter", {})

    def on_train_start(self) -> None:
        """Make ready to go on within an epoch, of which `on_train_epoch_start` is not called again."""
        if my_share().rank == 0:  # with several, the sum over all of them counts
            self.train_meter.restore(self._stored_meter, self.device)
        self.set_frozen(self.current_epoch < self.recipe.freeze_epochs)

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze, by the number of the epoch alone, so that a resumed run does the same."""
        self.train_meter.reset()
        self.set_frozen(self.current_epoch < self.recipe.freeze_epochs)

    def set_frozen(self, frozen: bool) -> None:
        """Let everything train, or the classifier alone, on features of the network in eval mode."""
        self.net.train(not frozen)
        self.net.requires_grad_(not frozen)
        self.net.dropout.train()
        self.net.classifier.train().requires_grad_(True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch: uint8 images (N, C, H, W) and labels (N,). Returns the loss."""
        seed_step(self.recipe.seed, self.current_epoch, batch_idx)
        if self.rows:
            set_rows(self.net, self.rows(batch_idx))
        x, targets = self.mixed(*batch)
        logits = self.net(x).float()
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        self.train_meter.add(loss, logits, targets)
        if self.rows:
            loss = loss * self.rows.weight(batch_idx)
        if self.device.type == "cpu" or batch_idx % _GPU_CHECK_EVERY == 0:
            # The sum over all processes, so that all of them stop.
            self.check_finite(global_sum(loss.detach()))
        return loss

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared images and targets, mixed in pairs where the recipe says so."""
        if self.recipe.mixup_alpha == 0:
            return self.prepare(images), labels
        if self.rows:
            # An image is mixed with the one before it in the batch, which another process may have.
            images, labels = with_previous(images, labels)
        classes = self.net.spec.num_classes
        x, targets = mixup(self.prepare(images), labels, alpha=self.recipe.mixup_alpha, num_classes=classes)
        return (x[1:], targets[1:]) if self.rows else (x, targets)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set this step's learning rates and clip the gradient."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step, body=group["body"]) * group["lr_scale"]
        if self.recipe.clip_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad_norm)

    def learning_rate(self, step: int, *, body: bool = False) -> float:
        """The learning rate at an optimizer step, before the scale of a layer.

        Args:
            step: Optimizer steps taken so far.
            body: Whether of the layers before the classifier: they warm up anew once unfrozen.
        """
        rate = self.recipe.peak_learning_rate * lr_factor(
            step, steps_per_epoch=self.steps_per_epoch, recipe=self.recipe
        )
        if body and self.recipe.freeze_epochs > 0:
            warmup = round(self.recipe.warmup_epochs * self.steps_per_epoch)
            rate *= ramp(step, start=self.recipe.freeze_epochs * self.steps_per_epoch, length=warmup)
        return rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimizer; there is no scheduler, the rate is a function of the step."""
        return build_optimizer(parameter_groups(self.net, self.recipe), self.recipe)

    def check_finite(self, loss: Tensor) -> None:
        """Stop at a loss of NaN or infinity.

        Raises:
            TrainingError: The loss is not finite.
        """
        if not torch.isfinite(loss).all():
            rate = self.recipe.learning_rate
            raise TrainingError(
                f"the loss became {loss.mean().item()} in epoch {self.current_epoch + 1}; "
                f"try a lower learning_rate ({rate / 4:g} instead of {rate:g}), more warmup_epochs, "
                "or clip_grad_norm 1"
            )

    # -- validation ----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin a new mean."""
        self.val_meter.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One batch, as in `training_step`, with plain cross entropy."""
        images, labels = batch
        logits = self.net(self.prepare(images)).float()
        self.val_meter.add(functional.cross_entropy(logits, labels), logits, labels)

    # -- shared --------------------------------------------------------------------------------

    def prepare(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 to normalised floats, in the recipe's memory format."""
        if self.recipe.channels_last:
            # Before the conversion, while an image is a quarter as large.
            images = images.contiguous(memory_format=torch.channels_last)
        return normalize(images, self.preprocess)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own forward."""
        return self.net(*args, **kwargs)
