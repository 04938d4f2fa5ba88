"""Two machines, which here are two torchruns on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

from forks import _free_port

from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.tasks.checkpoints import read_checkpoint

LIMIT = 240.0  # seconds
TINY = [
    *("--detector", "ssd_tiny", "--detector-option", "detections_per_image=6", "--image-size", "64"),
    *("--detector-batch-size", "2", "--batch-size", "2", "--detector-steps", "3", "--steps", "2", "--num-workers", "0"),
    *("--accelerator", "cpu", "--precision", "32-true"),
]


def test_two_nodes_make_one_run(tmp_path):
    shapes, out, port = (
        write_synthetic(tmp_path / "shapes", num_train=8, num_val=3, size=64),
        tmp_path / "run",
        _free_port(),
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command = ["-m", "dasnet_lightning.cli.main", "train", str(shapes), "--out", str(out), *TINY]
    nodes, logs = [], [tmp_path / f"node{rank}.log" for rank in (0, 1)]
    for rank, log in enumerate(logs):
        place = ["--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        with log.open("w") as file:
            nodes.append(
                subprocess.Popen(
                    [*torchrun, *place, *command],
                    stdout=file,
                    stderr=file,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
            )
    try:
        codes = [node.wait(LIMIT) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, 9)
    first, second = (log.read_text() for log in logs)
    assert codes == [0, 0], first + second
    assert "2 processes x batch 2 = 4 images a step" in first
    assert "mIoU" in first
    assert "mIoU" not in second
    assert len(json.loads((out / "results.json").read_text())["budgets"]) == 1
    assert read_checkpoint(Path(out, "detector", "final.ckpt"))["global_step"] == 3
