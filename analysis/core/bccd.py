"""Table 1 and the verdicts on real images (BCCD). Their runs are not committed, only what
`tables.py` and `claims.py` wrote."""

import pandas as pd

from analysis.core.frame import RESULTS
from analysis.core.pages import ours
from analysis.core.render import Page
from onenet.sweeps.summary import COLUMNS

FOLDER = RESULTS / "bccd"
NAMES = ("AP", "AP(+NMS)", "gain", "gain AP50", "dup/obj")


def numbers() -> pd.DataFrame:
    """The numbers of Table 1 by (row, metric), in the columns of `Table.numbers`."""
    frame = pd.read_csv(FOLDER / "table1.csv").set_index(["row", "metric"])
    return frame.assign(done=frame.n)


def verdicts() -> dict[str, str]:
    """claim id -> verdict."""
    return pd.read_csv(FOLDER / "claims.csv", index_col="id").verdict.to_dict()


def page() -> Page:
    frame = numbers()
    cells = {name: ours(frame, COLUMNS[name][0], ".2f") for name in NAMES}
    n = frame.n.xs("AP", level="metric").map("{:g}".format)
    return Page(
        "Table 1. Ablation on label assignment",
        "The same rows, on photographs of blood cells (BCCD).",
        (FOLDER / "setting.txt").read_text().splitlines(),
        [pd.DataFrame({"n": n, **cells})],
        [],
    )
