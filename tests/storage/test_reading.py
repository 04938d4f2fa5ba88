import random

import pytest
import torch
from bad_files import make_bad_files
from safetensors.torch import save_file

from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.checksum import LENGTH, Seal, check_seal
from dasnet_lightning.storage.reading import SEALED, read_safetensors, read_tensors
from dasnet_lightning.storage.writing import write_tensors

CONTENT = {"a": torch.arange(200.0), "b": {"c": (1, "two", None, 3.0, [4])}, SEALED: True}


@pytest.mark.parametrize("name", make_bad_files(victim=None))
def test_a_bad_file_gets_one_sentence_and_no_code_of_its_runs(tmp_path, name):
    victim = tmp_path / "victim"
    content, pattern = make_bad_files(victim)[name]
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.ckpt: .*({pattern})") as caught:
        read_tensors(path)
    assert not victim.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_the_malicious_files_are_malicious(tmp_path):
    """Else it would be no wonder that nothing of them runs."""
    for name in ("code", "sly code", "system", "legacy code"):
        victim = tmp_path / "victim"
        path = tmp_path / "x.ckpt"
        path.write_bytes(make_bad_files(victim)[name][0])
        torch.load(path, weights_only=False)
        assert victim.exists(), name
        victim.rmdir()


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such checkpoint"):
        read_tensors(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder, expected a weights file"):
        read_tensors(tmp_path, "weights")
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such weights"):
        read_safetensors(tmp_path / "none.safetensors", "weights")


def test_every_flipped_byte_is_noticed(tmp_path):
    """Of each byte of the file a bit, of those that the checksum stands in all eight: content, headers, and itself."""
    path = tmp_path / "x.ckpt"
    write_tensors(CONTENT, path)
    whole = path.read_bytes()
    rng = random.Random(0)
    places = [(place, 1 << rng.randrange(8)) for place in range(len(whole))]
    places += [(place, 1 << bit) for place in range(len(whole) - LENGTH - 2, len(whole)) for bit in range(8)]
    with path.open("r+b") as file:
        for place, bit in places:
            file.seek(place)
            file.write(bytes([whole[place] ^ bit]))
            file.flush()
            with pytest.raises(CheckpointError, match=r"x\.ckpt: (damaged|truncated)"):
                read_tensors(path)
            file.seek(place)
            file.write(whole[place : place + 1])
            file.flush()
    assert len(places) > 2500
    assert torch.equal(read_tensors(path)["a"], CONTENT["a"])


@pytest.mark.parametrize("lost", [1, 10, LENGTH, LENGTH + 1, LENGTH + 30, 1000])
def test_a_truncated_file_is_noticed(tmp_path, lost):
    path = tmp_path / "x.ckpt"
    write_tensors(CONTENT, path)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(CheckpointError, match=r"x\.ckpt: .*truncated"):
        read_tensors(path)


def test_a_block_of_zeros_is_noticed(tmp_path):
    """What a disk leaves that lost a sector, or a machine that lost its power."""
    path = tmp_path / "x.ckpt"
    write_tensors({"a": torch.rand(5000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(512) + whole[4608:])
    with pytest.raises(CheckpointError, match="its checksum does not match"):
        read_tensors(path)


def test_a_sealed_file_is_a_file_of_torchs(tmp_path):
    path = tmp_path / "x.ckpt"
    write_tensors(CONTENT, path)
    assert check_seal(path) is Seal.INTACT
    for options in ({}, {"mmap": True}):
        content = torch.load(path, weights_only=True, **options)
        assert torch.equal(content["a"], CONTENT["a"])
        assert content["b"] == CONTENT["b"]


@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_others_are_read_without_a_checksum(tmp_path, new_format):
    path = tmp_path / "x.pth"
    torch.save({"a": CONTENT["a"]}, path, _use_new_zipfile_serialization=new_format)
    assert check_seal(path) is Seal.ABSENT
    assert torch.equal(read_tensors(path)["a"], CONTENT["a"])
    save_file({"a": CONTENT["a"]}, tmp_path / "x.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "x.safetensors")["a"], CONTENT["a"])
