"""lib/data.py: damage is found, and the order of the windows never changes."""
import json
import zlib

import numpy as np
import pytest
from conftest import flip

from lib import data
from lib.data import document_starts, load_meta, load_tokens, training_windows, validation_windows, write_meta
from train import load_data


@pytest.fixture
def make_dataset(tmp_path, monkeypatch):
    """make_dataset(number of pieces) -> a folder; the pieces have 64 bytes, the last one 38."""
    monkeypatch.setattr(data, "PIECE_BYTES", 64)

    def make(n_pieces):
        folder = tmp_path / f"{n_pieces}"
        folder.mkdir()
        n_tokens = 32 * n_pieces - 13
        for split in "train", "val":
            np.arange(n_tokens, dtype=np.uint16).tofile(folder / f"{split}.bin")
        (folder / "tokenizer.tiktoken").write_text("YQ== 0\n", encoding="utf-8")
        write_meta(folder, {"dtype": "uint16", "train": {"tokens": n_tokens}, "val": {"tokens": n_tokens}})
        return folder
    return make


def found(folder, check):
    """The numbers of the pieces in which load_tokens finds a changed bit."""
    meta, numbers = load_meta(folder), []
    for number in range(len(meta["pieces"]["train.bin"])):
        flip(folder / "train.bin", 64 * number + 37)
        try:
            load_tokens(folder, "train", meta, check)
        except ValueError as e:
            assert "train.bin is damaged" in str(e)
            numbers.append(number)
        flip(folder / "train.bin", 64 * number + 37)
    return numbers


@pytest.mark.parametrize("n_pieces", [1, 2, 4])
def test_a_small_file_is_checked_whole(n_pieces, make_dataset):
    """One changed bit is found in each of up to four pieces."""
    assert found(make_dataset(n_pieces), "sample") == list(range(n_pieces))


def test_four_pieces_of_a_large_file_are_checked(make_dataset):
    """The first, the last and two others, always the same ones; all of them on demand; none in other processes."""
    folder = make_dataset(11)
    sample = found(folder, "sample")
    assert len(sample) == 4 and sample[0] == 0 and sample[-1] == 10 and sample == found(folder, "sample")
    assert found(folder, "all") == list(range(11))
    assert found(folder, "none") == []


def test_pieces_that_changed_places_are_damage(make_dataset):
    """The bytes are the same, and their order is not."""
    folder = make_dataset(5)
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[64:128] + content[:64] + content[128:])
    with pytest.raises(ValueError, match="is damaged"):
        load_tokens(folder, "train", load_meta(folder))


def test_the_checksum_of_a_file_is_that_of_its_bytes(make_dataset):
    """Whatever the number of its pieces."""
    path = make_dataset(5) / "train.bin"
    content = path.read_bytes()
    expected = [zlib.crc32(content[i:i + 64]) for i in range(0, len(content), 64)]
    assert data.checksums(path) == (zlib.crc32(content), expected) and data.crc32(path) == zlib.crc32(content)
    assert [data.crc32_of_piece(path, number) for number in range(5)] == expected


def test_the_size_is_checked_by_every_process(make_dataset):
    """Whatever else is checked."""
    folder = make_dataset(5)
    with open(folder / "train.bin", "ab") as f:
        f.write(b"\0\0")
    for check in "none", "sample", "all":
        with pytest.raises(ValueError, match="train.bin has 296 bytes, but should have 294"):
            load_tokens(folder, "train", load_meta(folder), check)


def test_a_dataset_without_checksums_of_pieces_is_checked_whole(make_dataset):
    """An older prepare.py made it; its checksums are those of today."""
    folder = make_dataset(11)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    del meta["pieces"]
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert load_meta(folder)["crc32"] == meta["crc32"]
    assert len(load_tokens(folder, "train", load_meta(folder))) == meta["train"]["tokens"]
    for place in range(0, 678, 113):
        flip(folder / "train.bin", place)
        with pytest.raises(ValueError, match="is damaged"):
            load_tokens(folder, "train", load_meta(folder))
        flip(folder / "train.bin", place)


def test_one_process_per_machine_reads_the_checksums(make_dataset, monkeypatch):
    """torchrun numbers the processes of a machine by LOCAL_RANK; the first one checks, all of it with verify."""
    folder, calls = make_dataset(11), []
    monkeypatch.setattr("train.load_tokens", lambda folder, split, meta, check: calls.append(check) or range(99))
    for local_rank, verify in ("0", False), ("0", True), ("1", False), ("1", True):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        load_data(str(folder), 11, 1, verify)
    monkeypatch.delenv("LOCAL_RANK")
    load_data(str(folder), 11, 0)
    assert calls[::2] == calls[1::2] == ["sample", "all", "none", "none", "sample"]


@pytest.mark.parametrize("n_tokens, block_size", [(1009, 13), (70_001, 1), (3_000_017, 29)])
def test_the_order_of_the_data_never_changes(n_tokens, block_size):
    """For each seed and epoch it equals a permutation of 64-bit integers, as in the first release."""
    for seed, epoch in (0, 0), (1337, 1), (2 ** 40, 7):
        rng = np.random.default_rng((seed, epoch))
        offset = rng.integers(block_size)
        n_windows = (n_tokens - 1 - offset) // block_size
        expected = offset + block_size * rng.permutation(n_windows)
        starts, position = training_windows(n_tokens, block_size, seed, (epoch, 0), n_windows)
        assert starts == expected.tolist() and position == (epoch, n_windows)


def test_starts_beyond_32_bits_are_exact(monkeypatch):
    """Ten billion tokens: starts do not wrap around."""
    monkeypatch.setattr(data, "epoch_order", lambda *_: (7, np.array([19_531_249, 0], dtype=np.uint32)))
    assert training_windows(10 ** 10, 512, 0, (0, 0), 2)[0] == [9_999_999_495, 7]


def test_documents_begin_behind_each_end_of_text(monkeypatch):
    """Whatever the size of the pieces in which they are searched; none begins at the end of the data."""
    tokens = np.array([5, 6, 9, 9, 4, 7, 9, 8, 9], dtype=np.uint16)
    for size in 1, 2, 4, 100:
        monkeypatch.setattr(data, "PIECE_BYTES", size)
        assert document_starts(tokens, 9).tolist() == [0, 3, 4, 7]
    assert document_starts(tokens[:3], 9).tolist() == [0]


def test_an_epoch_reads_each_document_once():
    """In an order of its own for each epoch and seed, and the same one however many are taken at a time."""
    starts = np.cumsum(np.random.default_rng(0).integers(1, 50, 101))
    orders = [training_windows(9999, 13, seed, (epoch, 0), 101, starts) for seed in (7, 8) for epoch in (0, 1)]
    for order, position in orders:
        assert sorted(order) == starts.tolist() and position[1] == 101
    assert all(orders[i][0] != orders[j][0] for i in range(4) for j in range(i))
    whole, end = training_windows(9999, 13, 7, (0, 0), 202, starts)
    assert whole == orders[0][0] + orders[1][0] and end == (1, 101)
    position, taken = (0, 0), []
    while len(taken) < 202:
        some, position = training_windows(9999, 13, 7, position, 2, starts)
        taken += some
    assert taken == whole and position == end


def test_validation_documents_are_fixed():
    """The same ones at each call, each once; all there are if more are asked for."""
    starts = np.cumsum(np.random.default_rng(0).integers(1, 50, 101))
    chosen = validation_windows(9999, 13, 20, starts)
    assert chosen.tolist() == validation_windows(9999, 13, 20, starts).tolist()
    assert len({*chosen}) == 20 and {*chosen} <= {*starts}
    assert validation_windows(9999, 13, 1000, starts).tolist() == starts.tolist()
