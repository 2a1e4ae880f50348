"""Restores files of a finished run from other files of the run."""

from dataclasses import asdict

from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder
from onenet.system.files import write_atomically


def repair(folder: RunFolder, run_id: str, default: EvalSpec) -> None:
    """Restores the state of a finished run, and the result of its default evaluation, which is in
    two files. The caller must hold the lock."""
    if not folder.is_trained():
        return
    folder.set_status(state="done", kind="done", id=run_id)
    original, copy = folder.evaluation(default) / "result.json", folder.result_file
    if folder.result(default) and not folder.result():
        write_atomically(copy, original.read_bytes())
    elif not folder.result(default) and folder.result().get("evaluation") == asdict(default):
        write_atomically(original, copy.read_bytes())
