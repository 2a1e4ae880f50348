"""What makes a dense detector need NMS, and what removes the need?

    python run.py                                      one run on the built-in images
    python run.py -m cost=loc_only,loc_cls heads=1,3   the main job: four runs and their table
    python run.py +experiment=table1                   a table of the paper
    python run.py --help                               groups, options, experiments

A Hydra application (https://hydra.cc) whose sweeper is onenet/sweeps/. Keys and their meaning:
conf/config.yaml.
"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from onenet.sweeps.app import run
from onenet.sweeps.handover import run_frozen


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(_: DictConfig) -> None:
    """One run, which the sweeper has frozen, for a launcher that is not ours."""
    job = HydraConfig.get()
    run_frozen(Path(job.runtime.output_dir), Path(job.sweeper.request))


if __name__ == "__main__":
    status = run(main)
    if "LOCAL_RANK" in os.environ:  # no process of a run may wait for the others at its end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
