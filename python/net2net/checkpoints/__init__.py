"""Growth from checkpoint to checkpoint, without the model and in bounded memory.

`steps` grows one checkpoint into another. In between, everything is a `Stored` tensor, which lies in a file that is
mapped (`stored`), or a `Stream`, a tensor that is made some rows at a time (`streams`); `moving` makes the latter of
the former, `weights` and `optimizers` do so for state dicts, and `trees` finds these. What kinds of checkpoints there
are is in `formats`, with a file for each; `log` says by what a checkpoint has grown, from which `load` makes the
network again.
"""

from net2net.checkpoints.load import load
from net2net.checkpoints.log import growth_log
from net2net.checkpoints.steps import CheckpointReport, grow_checkpoint

__all__ = ["CheckpointReport", "grow_checkpoint", "growth_log", "load"]
