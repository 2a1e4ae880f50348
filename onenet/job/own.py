"""Whether a user's own parts can be imported: `python -m onenet.job.own TARGET ...`.

A sweep asks before it starts anything. In a process of its own, since the parts import torch.
"""

import sys

from onenet.errors import UserError
from onenet.system.own import TARGET, load


def main(targets: list[str]) -> int:
    try:
        for target in targets:
            load({TARGET: target})
    except UserError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
