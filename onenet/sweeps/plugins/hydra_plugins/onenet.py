"""What Hydra loads: our sweeper and our launchers. Hydra looks for plugins in folders of this name.

`conf/hydra/` has their options. Their work is in onenet/sweeps/.
"""

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from onenet.config.compose import CannotCompose, Loader, use
from onenet.config.options import LauncherOptions, SlurmOptions
from onenet.config.validate import out_of_range
from onenet.errors import raise_for
from onenet.sweeps import app, launch, plan, sweep
from onenet.sweeps.experiments import RunSpec, expand
from onenet.sweeps.handover import HydrasLauncher
from onenet.sweeps.plan import group
from onenet.sweeps.start import NotDone


class OneNetSweeper(Sweeper):
    """Composes and checks every run, leaves out what is done, hands the rest to a launcher, and
    prints the table."""

    def __init__(self, request: str | None = None):
        """`request`: of one run, for Hydra's launchers; run.py reads it."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.settings = config
        use_loader(hydra_context, config)
        self.launched = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if isinstance(self.launched, OneNetLauncher):
            launcher = self.launched.runs()
        else:
            at_a_time = self.settings.hydra.launcher.get("n_jobs", 1)
            launcher = HydrasLauncher(self.launched.launch, at_a_time)
        app.sweeping = True
        if status := sweep.sweep([*app.words, *arguments], launcher):
            sys.exit(status)


def use_loader(hydra_context: HydraContext, config: DictConfig) -> None:
    """Runs are composed from where Hydra composes: --config-dir, hydra.searchpath."""
    words = list(config.hydra.overrides.hydra)
    use(Loader(hydra_context.config_loader, config.hydra.job.config_name, words))


class OneNetLauncher(Launcher):
    """One of ours. Under another sweeper than ours, each job is a run of the words that it has."""

    kind: type[LauncherOptions]
    made: type

    def __init__(self, **options: Any):
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.settings = hydra_context, config

    def runs(self) -> launch.RunLauncher:
        """Raises UserError if an option is not what it may be."""
        try:  # under the keys that are typed, for the text of errors
            typed = OmegaConf.create({"hydra": {"launcher": OmegaConf.structured(self.kind)}})
            merged = OmegaConf.merge(typed, {"hydra": {"launcher": self.options}})
            options: Any = OmegaConf.to_object(merged.hydra.launcher)
        except OmegaConfBaseException as error:
            raise CannotCompose(error) from error
        raise_for(out_of_range(options, "hydra.launcher."))
        return self.made(options)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        use_loader(self.hydra_context, self.settings)
        jobs = [expand(words) for words in job_overrides]
        runs = group([spec for specs in jobs for spec in specs])
        plan.require_one_root(runs)
        if runs[0].config.plan:
            plan.print_plan(Console(), runs)
            sys.exit(0)
        launch.run_all(Console(), runs, self.runs())
        return [_returned(specs[0]) for specs in jobs]


def _returned(spec: RunSpec) -> JobReturn:
    """Its AP, for a sweeper that asks."""
    result = spec.folder.result(spec.evaluation)
    job = JobReturn(status=JobStatus.COMPLETED if result else JobStatus.FAILED)
    problem = NotDone(f"{spec.folder.path.name} is not done: see {spec.folder.log_file}")
    job.return_value = result["metrics"]["AP"] if result else problem
    return job


class LocalLauncher(OneNetLauncher):
    """hydra/launcher=local"""

    kind, made = LauncherOptions, launch.Local


class SlurmLauncher(OneNetLauncher):
    """hydra/launcher=slurm"""

    kind, made = SlurmOptions, launch.Slurm
