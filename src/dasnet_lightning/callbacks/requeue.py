"""Puts a SLURM job back into the queue, as Lightning does; ours follows a checkpoint at an agreed step."""

import os
import subprocess
import sys


def requeue_on_slurm() -> None:
    """Ask SLURM to start this job again; does nothing outside a job, says so where SLURM refuses."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        complaint = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        complaint = str(error)
    said = f"not requeued: {complaint}" if complaint else "requeued"
    print(f"SLURM job {job}: {said}", file=sys.stderr, flush=True)
