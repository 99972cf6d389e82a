"""Which kind of checkpoint lies at a path."""

from __future__ import annotations

from pathlib import Path

from net2net.checkpoints.checkpoint import Checkpoint, Format
from net2net.checkpoints.pt_format import SUFFIXES, TorchFile
from net2net.checkpoints.run_format import DOCUMENT, Run
from net2net.checkpoints.safetensors_formats import INDEX, SUFFIX, Sharded, SingleFile
from net2net.checkpoints.streams import Stream


def format_of(path: Path) -> tuple[Format, Path]:
    """The kind of the checkpoint at `path`, and the path by which that kind knows it.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: what is there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
    if path.is_dir():
        if (path / ".metadata").is_file():
            from net2net.checkpoints.dcp_format import Dcp  # torch.distributed.checkpoint takes a while

            return Dcp(), path
        if (path / DOCUMENT).is_file():
            return Run(), path
        if any(path.glob(f"*{INDEX}")) or len(list(path.glob(f"*{SUFFIX}"))) == 1:
            return Sharded(), path
        raise ValueError(
            f"{path} is a folder without a checkpoint: it has neither {DOCUMENT} nor .metadata nor an index of "
            f"{SUFFIX} files"
        )
    if path.name.endswith(INDEX):
        return Sharded(), path.parent
    if path.suffix == SUFFIX:
        return SingleFile(), path
    if path.suffix in SUFFIXES:
        return TorchFile(), path
    raise ValueError(f"{path} is no checkpoint: its name must end in {', '.join((SUFFIX, INDEX, *SUFFIXES))}")


def read(path: Path, scratch: Path | None = None) -> Checkpoint:
    """The checkpoint at `path`; errors as for `format_of`, and ValueError if it is damaged."""
    format_, place = format_of(path)
    return format_.read(place, scratch)


def written_as(checkpoint: Checkpoint, target: Path) -> Checkpoint:
    """The same in the format that `target` is to have: that of the source, but a state dict may leave torch's own
    format for safetensors.

    Raises:
        ValueError: the format cannot be called so, or does not hold what there is.
    """
    if isinstance(checkpoint.format, TorchFile) and target.suffix == SUFFIX:
        if not all(isinstance(value, Stream) for value in checkpoint.tree.values()):
            raise ValueError(
                f"dst (={str(target)!r}): a safetensors file takes a state dict alone, and the source has more"
            )
        checkpoint = Checkpoint(SingleFile(), checkpoint.tree, checkpoint.log, {"format": "pt"})
    checkpoint.format.check_target(target)
    return checkpoint
