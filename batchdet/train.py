"""Training a detector on a data set of one's own: the wiring of ``batchdet train``, alone or on Ray Train.

Of all that trains only this module knows ray: it starts the workers, each of which runs the same loop.
"""

import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from batchdet.errors import BatchdetError, ClusterError, OutputError, SpecError
from batchdet.packages import missing_extra
from batchdet.text import counted
from batchdet.training.plan import TrainingPlan, agreed_plan

if TYPE_CHECKING:
    from batchdet.training.outcome import Outcome

_POLL_S: Final = 0.5
_LINES, _STOP, _RAY = "progress.log", "stop", "ray"


def train(
    out: str,
    settings: dict[str, Any],
    resume: bool = False,
    address: str | None = None,
    say: Callable[[str], None] | None = None,
) -> "Outcome":
    """Train a detector, measure it and export it.

    Args:
        out: The training's folder, on a disk; with workers on several machines one that all of them see.
        settings: Fields of `TrainingPlan`; those left out or None take their default.
        resume: Go on with the training in that folder; settings that are given must be those it was begun with.
        address: A running Ray cluster for several workers, as ``compute.address``; None starts a Ray here.
        say: Takes a line about the progress; standard error by default.

    Returns:
        What came of it.

    Raises:
        SpecError: A setting or the data is wrong.
        OutputError: The folder holds a training, or something else, and ``resume`` is not asked for.
        MissingExtra: torch, onnx or pycocotools is not installed.
        Interrupted: A signal came; the state is kept, ``resume`` goes on.
    """
    say = say or _to_stderr
    folder = Path(out)
    given = {key: value for key, value in settings.items() if value is not None}
    _check_packages()
    from batchdet.training import finetune
    from batchdet.training.loop import Trainer

    if resume:
        saved, sha256 = TrainingPlan.load(folder / finetune.SETTINGS)
        plan = agreed_plan(saved, given)
    else:
        if "data" not in given:
            raise SpecError("--data is missing; it takes a COCO JSON, or a folder that holds one")
        plan, sha256 = TrainingPlan(**given), ""
    prepared = finetune.prepare(plan)
    if resume and prepared.train.sha256 != sha256:
        raise SpecError(f"{prepared.train.uri} is not what the training in {folder} was begun with; begin a new one")
    if not resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is not empty; name another folder, or go on with --resume")
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / finetune.SETTINGS, prepared.train.sha256)
    resume = resume and (folder / finetune.STATE).exists()
    if plan.workers > 1:
        _train_on_ray(prepared, folder, resume, address, say)
        trainer = Trainer.restore(folder / finetune.STATE, trainee=prepared.trainee)
    else:
        trainer = _train_here(prepared, folder, resume, say)
    from batchdet.training.outcome import finish

    say(f"exporting, and measuring on {counted(len(prepared.val.images), 'image')}")
    return finish(prepared, trainer, folder)


def _train_here(prepared: Any, folder: Path, resume: bool, say: Callable[[str], None]) -> Any:
    """Train in this process."""
    from batchdet.training import finetune
    from batchdet.training.crew import Crew
    from batchdet.training.interrupt import noted_signals

    with noted_signals() as signals:
        trainer = finetune.train(prepared, folder, resume, Crew(signals.wanted), say)
    if not finetune.finished(trainer):
        signals.raise_interrupted(_kept(trainer.step, folder))
    return trainer


def _train_on_ray(prepared: Any, folder: Path, resume: bool, address: str | None, say: Callable[[str], None]) -> None:
    """Train in several processes that Ray starts, and pass on what the first of them says.

    Workers look for a file named ``stop`` after every step, because no signal reaches them.
    """
    from batchdet.pipeline.session import ray_session
    from batchdet.training import finetune
    from batchdet.training.interrupt import noted_signals
    from batchdet.training.loop import Trainer

    folder = folder.resolve()
    for name in (_LINES, _STOP):
        (folder / name).unlink(missing_ok=True)
    failures: list[BaseException] = []
    with ray_session(address) as capacity, noted_signals() as signals:
        if capacity.cpus < prepared.plan.workers:
            raise ClusterError(
                f"--workers is {prepared.plan.workers}, but the cluster has {capacity.cpus:g} CPUs; each takes one"
            )
        # Not in the main thread, whose signal handlers Ray Train would replace.
        fit = threading.Thread(target=_fit, args=(prepared, folder, resume, failures), daemon=True)
        fit.start()
        shown = 0
        while fit.is_alive():
            fit.join(_POLL_S)
            shown = _pass_on(folder / _LINES, shown, say)
            if signals.wanted():
                (folder / _STOP).touch()
        shutil.rmtree(folder / _RAY, ignore_errors=True)
        for name in (_LINES, _STOP):
            (folder / name).unlink(missing_ok=True)
    if failures:
        raise _told(failures[0]) from failures[0]
    trainer = Trainer.restore(folder / finetune.STATE, trainee=prepared.trainee)
    if not finetune.finished(trainer):
        signals.raise_interrupted(_kept(trainer.step, folder))


def _fit(prepared: Any, folder: Path, resume: bool, failures: list[BaseException]) -> None:
    """Run Ray Train to its end; keep what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray speaks of its own deprecations
            _fit_on_ray(prepared, folder, resume)
    except BaseException as error:
        failures.append(error)


def _fit_on_ray(prepared: Any, folder: Path, resume: bool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        _work,
        train_loop_config={"prepared": prepared, "folder": str(folder), "resume": resume},
        scaling_config=ScalingConfig(num_workers=prepared.plan.workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="train", storage_path=str(folder / _RAY), failure_config=FailureConfig(max_failures=0)
        ),
        torch_config=TorchConfig(backend="gloo"),
    ).fit()


def _work(config: dict[str, Any]) -> None:
    """Train as one of several workers; runs in a process of Ray's."""
    from batchdet.training import finetune
    from batchdet.training.crew import DistributedCrew

    folder = Path(config["folder"])

    def say(line: str) -> None:
        with (folder / _LINES).open("a") as lines:
            print(line, file=lines, flush=True)

    crew = DistributedCrew((folder / _STOP).exists)
    finetune.train(config["prepared"], folder, config["resume"], crew, say)


def _pass_on(path: Path, shown: int, say: Callable[[str], None]) -> int:
    """Say the lines of a growing file that were not shown yet; return how far it was read."""
    if not path.exists():
        return shown
    with path.open() as lines:
        lines.seek(shown)
        text = lines.read()
    whole = text.rpartition("\n")[0]
    for line in whole.splitlines():
        say(line)
    return shown + (len(whole.encode()) + 1 if whole else 0)


def _told(error: BaseException) -> BatchdetError:
    """Find our own error in what Ray Train raises, or put its words into one."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, BatchdetError):
                return seen
            seen = getattr(seen, "cause", None) or seen.__cause__
    text = " ".join(str(failures[0]).split())
    return ClusterError(f"the workers failed: {text[-600:]}")


def _check_packages() -> None:
    """Name what is missing before anything is read."""
    from importlib.util import find_spec

    needed = ("torch", "onnx", "onnxscript", "safetensors", "onnxruntime", "pycocotools")
    absent = [package for package in needed if find_spec(package) is None]
    if absent:
        raise missing_extra("training needs", "cpu,torch,evaluate", *absent)


def _kept(step: int, folder: Path) -> str:
    return f"the training is kept at step {step}; batchdet train --resume --out {folder} goes on"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
