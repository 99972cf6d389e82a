"""Growing networks whose parameters are sharded over processes (FSDP2): each rank makes its own shards."""

from net2net.sharded.growing import grow_sharded

__all__ = ["grow_sharded"]
