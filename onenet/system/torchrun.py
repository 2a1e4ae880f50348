"""Whether this process is one of several that `torchrun` started."""

import os


def started_by_torchrun() -> bool:
    """True if all variables of torchrun are set; other tools set some of them."""
    return {"LOCAL_RANK", "RANK", "WORLD_SIZE"} <= os.environ.keys()
