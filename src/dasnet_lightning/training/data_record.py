"""What a run keeps of its data set, and what becomes of a run whose data set changed.

`run.json` holds the fingerprint beside the settings, among them the options of the data set. A changed data set is refused
unless the user accepts it; the run then says which stages were trained before the change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasnet_lightning import console
from dasnet_lightning.callbacks.resumable import CHECKPOINT
from dasnet_lightning.data.fingerprint import Fingerprint, describe_changes, describe_class_changes
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.training.config import RunConfig, claim_folder, read_run_file
from dasnet_lightning.training.stage import FINAL

METRICS = "metrics.json"

AcceptedChanges = list[dict[str, Any]]  # each with "changes" and "trained_before", the folders of the stages


def check_same_data(config: RunConfig, current: Fingerprint) -> AcceptedChanges:
    """Return the changes of the data set that the user accepted for this run, now or before.

    A stage that was deleted since is trained again and no longer listed.

    Raises:
        ConfigError: the data set changed and the user does not accept it, or the classes of trained weights changed.
    """
    saved, trained = read_run_file(config), trained_stages(config.folder)
    accepted = [
        {**entry, "trained_before": [name for name in entry["trained_before"] if name in trained]}
        for entry in saved.get("accepted_changes", [])
    ]
    before = saved.get("fingerprint")
    changes = [] if before is None else describe_changes(before, current)
    if not changes:
        return accepted
    text = f"{config.folder}: the data set changed since this run began: {'; '.join(changes)}"
    if trained and before is not None and describe_class_changes(before, current):
        raise ConfigError(f"{text}; its weights were trained for the former classes, choose another --out")
    if not config.accept_changes:
        raise ConfigError(f"{text}; choose another --out, or continue this run on the new data with --accept-changes")
    return [*accepted, {"changes": changes, "trained_before": trained}]


def record_data(config: RunConfig, current: Fingerprint, accepted: Sequence[Mapping[str, Any]]) -> None:
    """Write settings, fingerprint and accepted changes into the run folder.

    Metrics of a former data set are deleted, so that trained stages are measured again.
    """
    if len(accepted) > len(read_run_file(config).get("accepted_changes", [])):
        for name in trained_stages(config.folder):
            (config.folder / name / METRICS).unlink(missing_ok=True)
    claim_folder(config, fingerprint=current, accepted_changes=list(accepted))
    for line in describe_accepted(accepted):
        console.error(f"{config.folder}: {line}; delete a stage's folder to train it again")


def describe_accepted(accepted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each accepted change that trained stages do not know."""
    return [
        f"{', '.join(entry['trained_before'])} began training before the data set changed ({'; '.join(entry['changes'])})"
        for entry in accepted
        if entry["trained_before"]
    ]


def trained_stages(folder: Path) -> list[str]:
    """Return the folders, relative to the run folder, of stages with a checkpoint."""
    files = [path for name in (FINAL, CHECKPOINT) for path in folder.rglob(name)]
    return sorted({path.parent.relative_to(folder).as_posix() for path in files})
