"""The paper's recipe at full size, for twenty steps on two COCO images.

Run: pytest -m slow tests/test_rehearsal.py (minutes)
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from onenet.system.files import REPOSITORY

COCO_MINI = REPOSITORY.parent / "shared" / "data" / "coco_mini"
RECIPE = (
    *("preset=paper", "batch=2", "optim.warmup=0", "lr=1e-3", "backbone.weights=none"),
    *("steps=20", "data.limit=2"),
)


def stand_in(root: Path) -> Path:
    """Two images of coloured rectangles in COCO's format, for machines without COCO."""
    rng = np.random.default_rng(0)
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for image in (7, 9):
            picture = Image.effect_noise((640, 480), 40).convert("RGB")
            images.append({"id": image, "file_name": f"{image}.jpg", "width": 640, "height": 480})
            for label in (1, 3, 90):
                x, y, w, h = (int(v) for v in rng.integers([0, 0, 40, 40], [400, 250, 240, 230]))
                color = ("red", "green", "blue")[label % 3]
                ImageDraw.Draw(picture).rectangle((x, y, x + w, y + h), fill=color)
                box = {"category_id": label, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": image, **box})
            picture.save(root / split / f"{image}.jpg")
        categories = [{"id": label, "name": f"class {label}"} for label in range(1, 91)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def steps_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.timeout(2400)  # a ResNet at full size on two busy cores
def test_the_papers_recipe_learns_evaluates_and_resumes(tmp_path):
    data = COCO_MINI if COCO_MINI.is_dir() else stand_in(tmp_path / "data")
    where = (f"data.root={data}", f"runs_root={tmp_path / 'runs'}", "tracker=none")
    command = [sys.executable, str(REPOSITORY / "run.py"), *RECIPE, *where]
    command += ["log_every=1", "save_every=0"]

    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("runs/*/checkpoints/last.pt")):
        assert first.poll() is None
        time.sleep(0.5)
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/config.yaml"))
    time.sleep(3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(2)

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert json.loads((folder / "status.json").read_text())["resumes"] == 1

    steps = steps_of(folder)
    assert [line["step"] for line in steps] == list(range(1, 21))
    losses = [line["loss"] for line in steps]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    metrics, notes = result["metrics"], result["metrics_notes"]
    assert {"AP", "AP50", "AP_nms", "AP_nms_07", "AR100", "duplicates_per_object"} <= set(metrics)
    assert all(value is not None or name in notes for name, value in metrics.items())
    assert metrics["params"] == pytest.approx(31.03e6, rel=0.02)
    timing = result["timing"]
    print(f"\n{timing['seconds_per_step']:.1f} s a step, peak {timing['peak_memory_gib']} GiB")
    assert timing["seconds_per_step"] > 0
    assert 1 < timing["peak_memory_gib"] < 16
