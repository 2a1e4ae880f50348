"""Checks that a user's own parts can be imported: `python -m onenet.job.own TARGET ...`.

A sweep runs it before it starts any run, in a separate process because the parts import torch.
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
