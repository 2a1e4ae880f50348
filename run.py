"""What makes a dense detector need NMS, and what removes the need?

    python run.py                                      one run on the built-in data
    python run.py -m cost=loc_only,loc_cls heads=1,3   the main job: four runs and their table
    python run.py -m +experiment=table1                a table of the paper
    python run.py -m +experiment=search_cost           a search: later runs follow from earlier ones
    ... plan=true                                      what would run, and in which state it is
    torchrun --nproc-per-node=8 run.py preset=paper data.root=DIR     one run, eight processes
    python run.py --cfg cost=loc_only                  the resolved configuration

Keys and their meaning: conf/config.yaml. Options of a group: the files in conf/<group>/.
"""

import argparse
import os
import sys

import yaml
from rich.console import Console

from onenet.config.compose import to_dict
from onenet.errors import UserError
from onenet.sweeps import launch, plan, search, search_sweep, summary
from onenet.sweeps.experiments import expand
from onenet.system.signals import EXIT_STATUS, Preempted, StopRequest


def main(arguments: list[str]) -> int:
    """0 if all is done, 1 if a run is not, 2 if the input cannot work, 75 if it was stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="run all combinations")
    parser.add_argument("--cfg", action="store_true", help="print the configuration, run nothing")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args(arguments)
    # In a pipe or a file, lines are as long as they need to be.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    try:
        StopRequest().install()
        if searched := search.requested(given.overrides, given.multirun):
            return search_sweep.main(console, searched, given.cfg)
        cells = expand(given.overrides, given.multirun)
        if given.cfg:
            for cell in cells:
                print(yaml.safe_dump({"id": cell.id, **to_dict(cell.config)}, sort_keys=False))
            return 0
        runs = plan.group(cells)
        plan.require_one_root(runs)
        if cells[0].config.plan:
            plan.print_plan(console, runs)
            return 0
        if "LOCAL_RANK" in os.environ:
            return launch.take_part(runs)
        complete = launch.run_all(console, runs)
        summary.print_results(console, runs)
        return 0 if complete else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Preempted) as reason:
        name = f" ({reason})" if str(reason) else ""
        print(f"stopped{name}: the same command goes on from here", file=sys.stderr)
        return EXIT_STATUS


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if "LOCAL_RANK" in os.environ:  # no process of a run may wait for the others at its end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
