"""Growth in the middle of a Lightning run.

    from net2net.integrations.lightning import GrowthCallback

    trainer = Trainer(callbacks=[GrowthCallback("step 2000: widen 1.5", attribute="network")])

Lightning itself does not change architectures while it trains. The callback does it between two batches, when nothing
is being accumulated: it grows the network that the LightningModule holds, the optimizer and the schedule, and puts them
where Lightning looks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from net2net.dynamics import keep_dynamics
from net2net.grow import GrowthReport, grow
from net2net.growth_schedule import GrowthSchedule
from net2net.growth_text import OnPlateau
from net2net.outputs import leaves
from net2net.plan import GrowthPlan
from net2net.running import Inputs


class GrowthCallback(pl.Callback):
    """Grows a network whenever a schedule says so.

    What it has done goes into Lightning's checkpoints. A run that is resumed from one (`trainer.fit(module,
    ckpt_path=...)`, with the module as it was at first) is brought to the grown architecture before its weights are
    loaded.

    Args:
        schedule: the entries of a `net2net.GrowthSchedule`; steps are `trainer.global_step`, epochs
            `trainer.current_epoch`.
        attribute: where the LightningModule holds the network to grow, such as `"network"` or `"parts.encoder"`. The
            optimizer must be over its parameters alone.
        monitor: the logged metric that plateaus are of; it is looked at after every validation.
        inputs: what to plan and compare on, from a batch; None: its first tensor, two samples of it.
        lr: the rule for the rates after each growth, and
        state: what becomes of the optimizer's state; see `net2net.grow`.

    Attributes:
        reports: of the growths of this process, in their order.

    Raises:
        ValueError: the schedule waits for a plateau and there is no `monitor`.
    """

    def __init__(
        self,
        schedule: str | Iterable[str],
        attribute: str = "model",
        *,
        monitor: str | None = None,
        inputs: Callable[[Any], Inputs] | None = None,
        lr: str | float = "tenth",
        state: str = "exact",
    ) -> None:
        self.schedule = GrowthSchedule(schedule)
        self.attribute, self.monitor, self.lr, self.state = attribute, monitor, lr, state
        self.inputs = inputs or _two_samples
        self.reports: list[GrowthReport] = []
        self._plans: list[GrowthPlan] = []
        self._metric: float | None = None
        if monitor is None and any(isinstance(entry.when, OnPlateau) for entry in self.schedule.entries):
            raise ValueError("monitor (=None) must name the metric that the schedule's plateaus are of")

    # -- growing -----------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are being collected
        metric, self._metric = self._metric, None
        for growth in self.schedule.due(step=trainer.global_step, epoch=trainer.current_epoch, metric=metric):
            self._grow(trainer, pl_module, batch, growth.what.arguments())

    def _grow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, arguments: dict[str, Any]) -> None:
        optimizers, schedulers = trainer.optimizers, trainer.lr_scheduler_configs
        if len(optimizers) != 1 or len(schedulers) > 1:
            raise ValueError(
                f"one optimizer can be grown, with one schedule; there are {len(optimizers)} with {len(schedulers)}"
            )
        grown = grow(
            pl_module.get_submodule(self.attribute),
            self.inputs(batch),
            optimizer=optimizers[0],
            scheduler=schedulers[0].scheduler if schedulers else None,
            lr=self.lr,
            state=self.state,
            **arguments,
        )
        self._put(pl_module, grown.model)
        trainer.optimizers = [grown.optimizer]
        for config in schedulers:
            config.scheduler = grown.scheduler
        self._plans += grown.plans
        self.reports.append(grown.report)

    def _put(self, pl_module: pl.LightningModule, network: nn.Module) -> None:
        parent, _, name = self.attribute.rpartition(".")
        setattr(pl_module.get_submodule(parent), name, network)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(trainer.callback_metrics) or "none"
            raise ValueError(f"monitor (={self.monitor!r}) has not been logged; there are: {known}")
        self._metric = float(trainer.callback_metrics[self.monitor])

    # -- what Lightning saves ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"schedule": self.schedule.state_dict(), "plans": [plan.document() for plan in self._plans]}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise ValueError(
                f"{trainer.world_size} processes share this model, and a data-parallel wrapper cannot grow: save a "
                "checkpoint, grow it (`net2net grow`), and go on from that"
            )
        # Lightning hands a callback its state after it has loaded the weights, which is too late.
        pl_module.on_load_checkpoint = functools.partial(self._before_weights, pl_module, pl_module.on_load_checkpoint)

    def _before_weights(
        self, pl_module: pl.LightningModule, own: Callable[[dict[str, Any]], None], checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
        for document in saved.get("plans", [])[len(self._plans) :]:
            plan = GrowthPlan.from_document(document, "a plan in the checkpoint")
            self._put(pl_module, plan.apply(pl_module.get_submodule(self.attribute)))
            self._plans.append(plan)
        own(checkpoint)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state_dict["schedule"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            keep_dynamics(optimizer)


def _two_samples(batch: Any) -> Tensor:
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor):
            return leaf[:2]
    raise ValueError("there is no tensor in this batch; say with `inputs` what the network is given")
