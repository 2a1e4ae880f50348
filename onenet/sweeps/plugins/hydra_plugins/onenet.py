"""Hydra's plugins: our sweeper and our launchers. Hydra looks for them in packages of this name.

Their options are in `conf/hydra/`, their work is done in onenet/sweeps/.
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

from onenet.config.compose import ComposeError, Loader, use
from onenet.config.options import LauncherOptions, SlurmOptions
from onenet.config.validate import out_of_range
from onenet.errors import raise_for
from onenet.sweeps import app, plan, sweep
from onenet.sweeps.console import SafeConsole
from onenet.sweeps.experiments import RunSpec, expand
from onenet.sweeps.foreign import ForeignLauncher
from onenet.sweeps.launch import RunLauncher, run_all
from onenet.sweeps.local import Local
from onenet.sweeps.process import NotDone
from onenet.sweeps.slurm import Slurm


class OneNetSweeper(Sweeper):
    """Composes and checks all runs, skips those that are done, passes the others to a launcher, and
    prints the table."""

    def __init__(self, request: str | None = None):
        """`request`: the file of one run, for Hydra's launchers; run.py reads it."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.settings = config
        use_loader(hydra_context, config)
        self.hydra_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if isinstance(self.hydra_launcher, OneNetLauncher):
            launcher = self.hydra_launcher.run_launcher()
        else:
            jobs = self.settings.hydra.launcher.get("n_jobs", 1)
            launcher = ForeignLauncher(self.hydra_launcher.launch, jobs)
        app.sweep_started = True
        if status := sweep.sweep([*app.run_overrides, *arguments], launcher):
            sys.exit(status)


def use_loader(hydra_context: HydraContext, config: DictConfig) -> None:
    """Composes runs from Hydra's own sources: --config-dir, hydra.searchpath."""
    overrides = list(config.hydra.overrides.hydra)
    use(Loader(hydra_context.config_loader, config.hydra.job.config_name, overrides))


class OneNetLauncher(Launcher):
    """Our launchers, for Hydra. Under another sweeper, each job is a run with the overrides that
    the sweeper chooses."""

    options_class: type[LauncherOptions]
    launcher_class: type

    def __init__(self, **options: Any):
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        use_loader(hydra_context, config)

    def run_launcher(self) -> RunLauncher:
        """Raises UserError if an option has a wrong type or is out of bounds."""
        try:  # nested, so that Hydra's errors name the keys as they are typed
            schema = OmegaConf.structured(self.options_class)
            typed = OmegaConf.create({"hydra": {"launcher": schema}})
            merged = OmegaConf.merge(typed, {"hydra": {"launcher": self.options}})
            options: Any = OmegaConf.to_object(merged.hydra.launcher)
        except OmegaConfBaseException as error:
            raise ComposeError(error) from error
        raise_for(out_of_range(options, "hydra.launcher."))
        return self.launcher_class(options)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        jobs = [expand(overrides) for overrides in job_overrides]
        runs = plan.group([spec for specs in jobs for spec in specs])
        console = SafeConsole(highlight=False)
        if runs[0].config.plan:
            plan.print_plan(console, runs)
            sys.exit(0)
        run_all(console, runs, self.run_launcher())
        return [_job_return(specs[0]) for specs in jobs]


def _job_return(spec: RunSpec) -> JobReturn:
    """Returns the run's AP, for sweepers that optimize it."""
    result = spec.folder.result(spec.evaluation)
    job = JobReturn(status=JobStatus.COMPLETED if result else JobStatus.FAILED)
    problem = NotDone(f"{spec.folder.path.name} is not done: see {spec.folder.log_file}")
    job.return_value = result["metrics"].get("AP") if result else problem
    return job


class LocalLauncher(OneNetLauncher):
    """hydra/launcher=local"""

    options_class, launcher_class = LauncherOptions, Local


class SlurmLauncher(OneNetLauncher):
    """hydra/launcher=slurm"""

    options_class, launcher_class = SlurmOptions, Slurm
