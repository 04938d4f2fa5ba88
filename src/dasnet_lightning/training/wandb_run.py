"""The W&B run of a training: one for both stages and all budgets, taken up again when the training continues.

Only rank zero opens a run. Its id stands in `wandb.json` of the run folder before W&B hears of it. `wandb agent` gives the id
in WANDB_RUN_ID. Metrics are prefixed by stage, such as `detector/train/loss`, and have a step metric for each stage.
"""

import json
import os
import secrets
import signal
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from dasnet_lightning import __version__, console
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.distributed import is_rank_zero, run_on_rank_zero
from dasnet_lightning.errors import ConfigError, Stopped
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.wandb_files import find_run_files, read_run_file
from dasnet_lightning.training.wandb_journal import Journal

IDENTITY, JOURNAL = "wandb.json", "wandb.jsonl"
RESULT_AXIS = "mask_objects"  # of the results of all budgets


class TrackedRun:
    """An open W&B run of a run folder.

    Args:
        run: what `wandb.init` returned.
        folder: the run folder.
    """

    def __init__(self, run: Any, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self._journal = Journal(folder / JOURNAL)
        self._axes: set[str] = set()
        run.define_metric(RESULT_AXIS, hidden=True)
        run.define_metric("val/*", step_metric=RESULT_AXIS)
        for prefix in sorted({line["scope"] for line in self._journal.lines} - {RESULT_AXIS}):
            self._define(prefix)
        if run.offline:
            paths = find_run_files(folder / "wandb", run.id)
            steps = {row["_step"] for path in paths for row in read_run_file(path).rows}
            self._journal.resume(steps.__contains__, self._send)
        else:
            self._journal.resume(lambda step: run.resumed and step < run.step, self._send)

    def log(self, prefix: str, values: Mapping[str, Any], step: float, media: bool = False) -> None:
        """Log values of a stage at one of its steps; what was logged before is skipped."""
        self._define(prefix)
        row = {f"{prefix}/{name}": value for name, value in values.items()}
        pictures = tuple(row) if media else ()
        if any(not self._journal.has(prefix, name, step) for name in row if name != f"{prefix}/epoch"):
            self._journal.send(row, {f"{prefix}/step": step}, prefix, step, self._send, pictures)

    def has(self, prefix: str, name: str, step: float) -> bool:
        """Return whether a value of a stage was logged at a step."""
        return self._journal.has(prefix, f"{prefix}/{name}", step)

    def log_result(self, position: int, values: Mapping[str, Any]) -> None:
        """Log the result of a budget, the number `position` of the run, by the number of its masks."""
        axis = {name: values[name] for name in ("budget", RESULT_AXIS)}
        self._journal.send(values, axis, RESULT_AXIS, position, self._send)

    def prefix_of(self, folder: Path) -> str:
        """Return the prefix of the metrics of a stage by its folder, such as `masks-5-per-class`."""
        return folder.relative_to(self.folder).as_posix().replace("/", "-")

    def _define(self, prefix: str) -> None:
        if prefix not in self._axes:
            self._axes.add(prefix)
            self.run.define_metric(f"{prefix}/step", hidden=True)
            self.run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def _send(self, row: Mapping[str, Any], step: int) -> None:
        self.run.log(dict(row), step=step, commit=True)


class StageLogger(Logger):
    """Lightning's logger of one stage, which writes into the run of the whole training.

    Args:
        tracked: the run.
        prefix: in front of the name of each metric.
    """

    def __init__(self, tracked: TrackedRun, prefix: str) -> None:
        super().__init__()
        self.tracked = tracked
        self.prefix = prefix

    @property
    def name(self) -> str:
        """The prefix."""
        return self.prefix

    @property
    def version(self) -> str:
        """The id of the run."""
        return str(self.tracked.run.id)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration of the run was logged when it was opened."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values at a step of the stage."""
        self.tracked.log(self.prefix, metrics, 0 if step is None else step)


_open: list[TrackedRun] = []


def open_run() -> TrackedRun | None:
    """Return the W&B run that this process has open, None on other ranks and without W&B."""
    return _open[-1] if _open else None


@contextmanager
def wandb_run(config: RunConfig, dataset: DataSet) -> Iterator[None]:
    """Keep the W&B run of a training open in the body, if the settings ask for it. Collective.

    An error in the body marks the run as crashed. A signal other than Ctrl-C marks it as preempted, and a sweep hands it out
    again.

    Args:
        config: the options of the run.
        dataset: the checked data set.

    Raises:
        ConfigError: W&B refuses to open a run.
    """
    if config.trainer.logger != "wandb":
        yield
        return
    run_on_rank_zero(lambda: _open_run(config, dataset))
    tracked = open_run() if is_rank_zero() else None
    try:
        yield
    except BaseException as error:
        if tracked is not None:
            if isinstance(error, Stopped) and error.signal != signal.SIGINT:
                tracked.run.mark_preempting()
            tracked.run.finish(exit_code=1)
        raise
    else:
        if tracked is not None:
            tracked.run.finish()
    finally:
        _open.clear()


def _open_run(config: RunConfig, dataset: DataSet) -> None:
    import wandb

    identity = claim_identity(config.folder)
    environment = os.environ
    arguments: dict[str, Any] = {}
    if not environment.get("WANDB_SWEEP_ID"):  # a sweep has set these
        project = config.trainer.project or environment.get("WANDB_PROJECT") or "dasnet"
        arguments = {"id": identity, "project": project}
    if not environment.get("WANDB_NAME"):
        arguments["name"] = config.folder.resolve().name
    try:
        run = wandb.init(
            dir=config.folder, resume="allow", job_type="train", config=describe_config(config, dataset), **arguments
        )
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"logger wandb: no run can be opened ({reason}); log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error
    write_json(config.folder / IDENTITY, {"id": run.id, "project": run.project, "url": run.url})
    _open.append(TrackedRun(run, config.folder))


def claim_identity(folder: Path) -> str:
    """Return the id of the W&B run of a run folder, and keep it there before any run is opened.

    The id is WANDB_RUN_ID if that is set, else that of the folder, else a new one.
    """
    path = folder / IDENTITY
    saved = json.loads(path.read_text()).get("id") if path.is_file() else None
    identity = os.environ.get("WANDB_RUN_ID") or saved or secrets.token_hex(4)
    if saved and saved != identity:
        console.info(f"{path}: the W&B run was {saved}; WANDB_RUN_ID asks for {identity}, which gets its history")
    if saved != identity:
        write_json(path, {"id": identity})
    return identity


def describe_config(config: RunConfig, dataset: DataSet) -> dict[str, Any]:
    """Return the configuration that W&B shows: all options by name, and the size of the data set.

    `mask_budget` has the budgets as one text, the name under which a sweep sets them.
    """
    options = asdict(config)
    options |= options.pop("trainer")
    sizes = {"train_images": len(dataset.train.records), "val_images": len(dataset.val.records)}
    return {
        **options,
        **sizes,
        "mask_budget": " ".join(config.mask_budgets),
        "classes": len(dataset.train.class_names) - 1,
        "dasnet_lightning": __version__,
    }
