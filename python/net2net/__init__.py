"""Net2Net for any PyTorch model: grow a trained network wider or deeper without changing what it computes."""

from net2net import models, rules
from net2net.baselines import random_pad
from net2net.checkpoints import grow_checkpoint, growth_log, load
from net2net.deepen import deepen, plan_deepen
from net2net.dynamics import keep_dynamics
from net2net.feature_prediction import FeaturePrediction
from net2net.grow import Grown, GrowthReport, grow
from net2net.growth_schedule import GrowthSchedule
from net2net.kernel_size import enlarge_kernels, plan_kernels
from net2net.optimizer import register_optimizer
from net2net.picture import picture
from net2net.plan import GrowthPlan
from net2net.sharded import grow_sharded
from net2net.verify import verify
from net2net.widen import groups, plan_widen, widen

__all__ = [
    "FeaturePrediction",
    "Grown",
    "GrowthPlan",
    "GrowthReport",
    "GrowthSchedule",
    "deepen",
    "enlarge_kernels",
    "groups",
    "grow",
    "grow_checkpoint",
    "grow_sharded",
    "growth_log",
    "keep_dynamics",
    "load",
    "models",
    "picture",
    "plan_deepen",
    "plan_kernels",
    "plan_widen",
    "random_pad",
    "register_optimizer",
    "rules",
    "verify",
    "widen",
]
