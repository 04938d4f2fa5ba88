"""Failures from outside become one sentence: a loader process that is killed while it hands a batch over, a full disk."""

import errno
import os
from multiprocessing.connection import Listener
from multiprocessing.reduction import DupFd
from multiprocessing.resource_sharer import _resource_sharer
from threading import Thread

import pytest

from dasnet_lightning.errors import DataError, TrainingError
from dasnet_lightning.training.failures import explained_failures


def test_a_loader_that_dies_while_it_hands_a_batch_over_is_named():
    """The connection that fetches a file descriptor is reset or closed: the process behind it is gone."""
    with Listener() as listener:

        def hang_up() -> None:
            listener._listener.accept().close()

        peer = Thread(target=hang_up)
        peer.start()
        with pytest.raises(TrainingError, match=r"a loader process ended .*fewer --num-workers"), explained_failures():
            _resource_sharer.get_connection((listener.address, 1))
        peer.join()


def test_a_loader_whose_socket_is_gone_is_named(tmp_path):
    with pytest.raises(TrainingError, match="a loader process ended"), explained_failures():
        _resource_sharer.get_connection((str(tmp_path / "gone"), 1))


def test_a_batch_that_arrives_is_passed_on():
    read, write = os.pipe()
    try:
        with explained_failures():
            os.close(DupFd(read).detach())
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), EOFError(), OSError(errno.EACCES, "denied")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as raised, explained_failures():
        raise error
    assert raised.value is error


def test_a_full_disk_and_an_error_of_our_own():
    with pytest.raises(TrainingError, match=r"^a\.ckpt: .*make room"), explained_failures():
        raise OSError(errno.ENOSPC, "No space left on device", "a.ckpt")
    with pytest.raises(DataError, match=r"^b\.jpg: broken$"), explained_failures():
        raise DataError("b.jpg: broken")
