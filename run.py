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
from onenet.sweeps.foreign import run_frozen
from onenet.system.torchrun import started_by_torchrun


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(_: DictConfig) -> None:
    """Does one run for a launcher of Hydra's; the sweeper has frozen the run."""
    job = HydraConfig.get()
    run_frozen(Path(job.runtime.output_dir), Path(job.sweeper.request))


if __name__ == "__main__":
    status = run(main)
    if started_by_torchrun():  # exit without waiting for the run's other processes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
