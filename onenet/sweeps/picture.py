"""The picture of a sweep: each run's AP without and with NMS, and its duplicates per object."""

import os
import textwrap
from pathlib import Path

WITHOUT, WITH = "#c0392b", "#bdc3c7"


def draw(runs: list[tuple[str, dict]], path: Path) -> None:
    """Writes a PNG. `runs`: label and metrics of each; those without AP are left out."""
    runs = [(label, m) for label, m in runs if None not in (m.get("AP"), m.get("AP_nms"))]
    if not runs:
        return
    # Matplotlib writes a font cache, which also goes into the runs root.
    os.environ.setdefault("MPLCONFIGDIR", str(path.parent / ".matplotlib"))
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.55 * len(runs)), width_ratios=(3, 1), sharey=True
    )
    rows = range(len(runs))
    with_nms = [m["AP_nms"] for _, m in runs]
    without = [m["AP"] for _, m in runs]
    left.barh(rows, with_nms, color=WITH, height=0.7, label="AP with NMS")
    left.barh(rows, without, color=WITHOUT, height=0.4, label="AP without NMS")
    for row, (alone, helped) in enumerate(zip(without, with_nms, strict=True)):
        text = f"{alone:.1f} → {helped:.1f}  ({helped - alone:+.1f})"
        left.text(max(alone, helped) + 0.5, row, text, va="center", fontsize=9)
    left.set_yticks(rows, [textwrap.fill(label, 40, max_lines=3) for label, _ in runs])
    left.invert_yaxis()
    left.set_xlim(0, 1.35 * max(1, *with_nms, *without))
    left.set_xlabel("AP")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    duplicates = [m.get("duplicates_per_object") or 0 for _, m in runs]
    right.barh(rows, duplicates, color=WITHOUT, height=0.4)
    for row, value in enumerate(duplicates):
        right.text(value, row, f" {value:.2f}", va="center", fontsize=9)
    right.set_xlim(0, 1.3 * max(0.1, *duplicates))
    right.set_xlabel("duplicates per object")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
