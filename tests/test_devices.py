"""Growth where the model is: the student, its optimizer and its statistics stay on the teacher's device."""

import net2net
import pytest
import torch
from models import EXAMPLES


@pytest.mark.parametrize("name", ["residual", "gated", "inception"])
def test_a_whole_growth_on_each_device(name: str, any_device: torch.device) -> None:
    teacher, x = EXAMPLES[name].build()
    teacher, x = teacher.to(any_device), x.to(any_device)
    teacher.train()
    optimizer = torch.optim.RMSprop(teacher.parameters(), lr=1e-4, momentum=0.9)
    teacher(x).square().sum().backward()
    optimizer.step()
    wide = net2net.plan_widen(teacher, x, 1.5)
    student = wide.apply(teacher)
    optimizer = wide.grow_optimizer(optimizer, student)
    deep = net2net.plan_deepen(student, x, data=[x])
    student, middle = deep.apply(student), student
    optimizer = deep.grow_optimizer(optimizer, student)
    for training in (True, False):
        for bigger in (middle, student):
            assert net2net.verify(teacher.train(training), bigger.train(training), x).max_rel < 1e-10
    assert {t.device.type for t in [*student.parameters(), *student.buffers()]} == {any_device.type}
    assert {s["square_avg"].device.type for s in optimizer.state.values()} == {any_device.type}
    student(x).square().sum().backward()
    optimizer.step()


def test_the_same_student_on_each_device(any_device: torch.device) -> None:
    teacher, x = EXAMPLES["residual"].build(torch.float32)
    plan = net2net.plan_widen(teacher, x, 1.5, noise="none")
    expected = plan.apply(teacher).state_dict()
    actual = plan.apply(teacher.to(any_device)).state_dict()
    assert all(torch.equal(expected[k], actual[k].cpu()) for k in expected)
