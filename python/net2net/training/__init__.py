"""Training: `loop.train` is the loop, `runs.run` is `net2net train`, from a configuration to a folder of results."""

from net2net.training.config import TrainConfig
from net2net.training.evaluation import evaluate
from net2net.training.loop import LoopConfig, train
from net2net.training.optimizers import rmsprop
from net2net.training.runs import run
from net2net.training.schedules import Schedule, attach
from net2net.training.state import History, State, moving_average

__all__ = [
    "History",
    "LoopConfig",
    "Schedule",
    "State",
    "TrainConfig",
    "attach",
    "evaluate",
    "moving_average",
    "rmsprop",
    "run",
    "train",
]
