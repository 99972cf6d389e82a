"""Growth inside other training loops, with the real libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


def images(count: int = 48) -> TensorDataset:
    random = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 3, 6, 6, generator=random), torch.randint(4, (count,), generator=random))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def sizes(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.filterwarnings("ignore")  # Lightning warns of what it does itself
class TestLightning:
    @pytest.fixture
    def pl(self) -> Any:
        return pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    @pytest.fixture
    def make(self, pl: Any, tmp_path: Path) -> Any:
        class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.network = network()
                self.outputs: list[Tensor] = []

            def training_step(self, batch: Any, _index: int) -> Tensor:
                loss = cross_entropy(self.network(batch[0]), batch[1])
                self.log("loss", loss)
                return loss

            def validation_step(self, batch: Any, _index: int) -> None:
                self.log("flat", torch.ones(()))

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
                schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def trainer(callback: Any, **options: Any) -> Any:
            return pl.Trainer(
                callbacks=[callback], default_root_dir=tmp_path, accelerator="cpu", logger=False,
                enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
            )  # fmt: skip

        return Module, trainer

    def test_grows_and_trains_on(self, make: Any) -> None:
        from net2net.integrations.lightning import GrowthCallback

        make_module, trainer = make
        module, callback = make_module(), GrowthCallback("step 3: widen 1.5; step 5: deepen 1", "network", lr="keep")
        run = trainer(callback, max_steps=8, enable_checkpointing=False)
        run.fit(module, DataLoader(images(), 4))
        assert sizes(module.network) == [9, 9, 12, 12]
        assert [report.verified.ok for report in callback.reports] == [True, True]
        held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
        assert held == {id(p) for p in module.parameters()}
        assert run.optimizers[0].param_groups[0]["lr"] == 0.01 * 0.5**2
        assert run.lr_scheduler_configs[0].scheduler.optimizer is run.optimizers[0]

    def test_resumed_it_ends_with_the_same_bits(self, make: Any, pl: Any) -> None:
        from net2net.integrations.lightning import GrowthCallback

        make_module, trainer = make
        entries, ends = ["step 3: widen 1.5", "step 9: widen 2"], []
        for stop in (2, 1):
            module = make_module()
            run = trainer(GrowthCallback(entries, "network", lr="dynamics"), max_epochs=stop)
            run.fit(module, DataLoader(images(24), 4))
            if stop == 1:
                path = run.checkpoint_callback.best_model_path
                module = make_module()
                run = trainer(GrowthCallback(entries, "network", lr="dynamics"), max_epochs=2)
                run.fit(module, DataLoader(images(24), 4), ckpt_path=path)
            ends.append(module.network.state_dict())
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    def test_on_a_plateau(self, make: Any) -> None:
        from net2net.integrations.lightning import GrowthCallback

        make_module, trainer = make
        with pytest.raises(ValueError, match="monitor"):
            GrowthCallback("plateau patience=1: widen 1.5", "network")
        module = make_module()
        callback = GrowthCallback("plateau patience=1: widen 1.5", "network", monitor="flat")
        run = trainer(callback, max_epochs=3, enable_checkpointing=False)
        run.fit(module, DataLoader(images(8), 4), DataLoader(images(8), 4))
        assert sizes(module.network) == [9, 12]


class TestAccelerate:
    @pytest.fixture
    def accelerate(self) -> Any:
        return pytest.importorskip("accelerate", reason="accelerate is not installed")

    def test_grows_and_trains_on(self, accelerate: Any, tmp_path: Path) -> None:
        from net2net.integrations.accelerate import grow

        accelerator = accelerate.Accelerator(cpu=True)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, DataLoader(images(), 4), schedule)
        for step, (x, y) in enumerate(loader):
            if step == 5:
                teacher = model
                model, optimizer, schedule, plans, report = grow(
                    accelerator, model, x[:2], optimizer, schedule, widen=1.5, deepen=1, lr="keep"
                )
                assert report.verified is not None
                assert report.verified.ok
                assert net2net.verify(teacher.eval(), model.eval(), x).ok
                assert len(plans) == 2
                model.train()
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(model(x), y))
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            schedule.step()
        assert sizes(model) == [9, 9, 12, 12]
        assert optimizer.param_groups[0]["lr"] == 0.01 * 0.5**3
        accelerator.save_state(str(tmp_path))
        accelerator.load_state(str(tmp_path))

    def test_what_was_not_prepared_is_refused(self, accelerate: Any) -> None:
        from net2net.integrations.accelerate import grow

        accelerator = accelerate.Accelerator(cpu=True)
        model = network()
        with pytest.raises(ValueError, match=r"optimizer \(=SGD\) has not been prepared"):
            grow(accelerator, model, torch.randn(2, 3, 6, 6), torch.optim.SGD(model.parameters(), lr=0.1), widen=2)
