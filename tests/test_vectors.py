"""Parameters of one dimension that weigh features and sum them up, as additive attention does to make scores."""

import json

import net2net
import pytest
import torch
import torch.nn.functional as F
from test_computed_weights import left_alone, randomised, same_or_refused
from torch import nn


class Additive(nn.Module):
    """Pools tokens [b, t, 5] by scores [b, t] of features [b, t, 6]."""

    def __init__(self, score):
        super().__init__()
        self.score = [score]
        self.embed, self.features, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 3)
        self.vector, self.other = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        y = self.embed(x)
        scores = self.score[0](self, self.features(y).tanh(), y)
        return self.head((scores.softmax(-1)[..., None] * y).sum(1))


SCORES = {
    "product": lambda m, e, y: e @ m.vector,
    "of each sample": lambda m, e, y: torch.stack([rows @ m.vector for rows in e]),
    "column": lambda m, e, y: (e @ m.vector[:, None])[..., 0],
    "row": lambda m, e, y: F.linear(e, m.vector[None])[..., 0],
    "einsum": lambda m, e, y: torch.einsum("btd,d->bt", e, m.vector),
    "several": lambda m, e, y: e.relu() @ m.vector + y @ m.other,
    "of normed": lambda m, e, y: F.layer_norm(e, e.shape[-1:]) @ m.vector,
}


def network(score):
    return randomised(Additive(score)).eval(), torch.randn(2, 4, 5).double()


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("how", [{}, {"split": "random", "noise": "none"}, {"width": 2.5, "mapping": "balanced"}])
def test_they_share_what_replicas_feed(score, how):
    model, x = network(score)
    plan = net2net.plan_widen(model, x, **{"width": 1.5, **how})
    student = plan.apply(model)
    assert not left_alone(plan)
    assert student.vector.shape[0] == student.features.out_features > 6
    loaded = net2net.GrowthPlan.from_document(json.loads(json.dumps(plan.document())), "plan").apply(model)
    for each in (student, loaded, net2net.widen(student, x, 1.5)):
        assert net2net.verify(model, each, torch.randn(3, 7, 5).double()).max_rel < 1e-13


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_gradients_and_dynamics(optimizer):
    model, x = network(SCORES["several"])
    theirs = optimizer(model.parameters(), 1e-3)
    plan = net2net.plan_widen(model, x, 1.5, noise="none")
    student = plan.apply(model)
    mine = plan.grow_optimizer(theirs, student, dynamics=True)
    expected = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    for net in (model, student):
        net(x).square().mean().backward()
    for p in model.parameters():
        expected.state[p]["momentum_buffer"] = p.grad.clone()
    expected = plan.grow_optimizer(expected, student)
    for p in student.parameters():
        torch.testing.assert_close(p.grad, expected.state[p]["momentum_buffer"], rtol=1e-10, atol=1e-14)
    for _ in range(5):
        for net, how in ((model, theirs), (student, mine)):
            how.zero_grad()
            net(x).square().mean().backward()
            how.step()
    assert net2net.verify(model, student, x).max_rel < 1e-11


OTHER = {
    "a gain too": lambda m, e, y: (e * m.vector) @ m.vector,
    "its values too": lambda m, e, y: e @ m.vector * m.vector.sum(),
    "a part of it": lambda m, e, y: (e.unflatten(-1, (2, 3)) @ m.vector[:3]).mean(-1),
    "for two heads": lambda m, e, y: (e.unflatten(-1, (2, 3)) @ m.vector.unflatten(0, (2, 3)).mT).mean((-1, -2)),
    "of tokens": lambda m, e, y: (e.mT @ m.vector[:4])[:, :1] + y[..., 0],
    "of a fixed width": lambda m, e, y: e @ m.vector * (y[..., :6] @ m.vector),
    "squared": lambda m, e, y: e @ m.vector.square(),
    "a length": lambda m, e, y: e @ m.vector * len(m.vector) ** -0.5,
    "a matrix of parameters": lambda m, e, y: e @ (m.features.weight @ y[0, 0]),
}


@pytest.mark.parametrize("score", OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("width", [1.5, 2])
def test_other_uses(score, width):
    same_or_refused(*network(score), width=width)
