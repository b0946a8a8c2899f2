"""What tiles need of an image is read before it is asked for, within the memory that is planned for it."""

import threading

import pytest
import torch
from torch import nn

from gigapipe.spatial import Mesh
from gigapipe.spatial.layers import Layers
from gigapipe.spatial.planning import trace
from gigapipe.spatial.reading_ahead import read_ahead


def test_what_follows_is_read_unasked_and_no_more_of_it_than_was_said():
    begun = {index: threading.Event() for index in range(10)}

    def read(index: int) -> int:
        begun[index].set()
        return index

    with read_ahead(10, 2, read) as pieces:
        assert pieces.take(0) == 0
        assert begun[1].wait(30) and begun[2].wait(30)
        assert not any(begun[index].is_set() for index in range(3, 10))
        assert pieces.take(1) == 1 and begun[3].wait(30)
        assert [pieces.take(index) for index in (3, 2)] == [3, 2]
    assert not begun[6].is_set()


def test_a_piece_that_is_not_begun_is_read_by_who_asks_for_it():
    busy, readers = threading.Event(), {}

    def read(index: int) -> int:
        readers[index] = threading.get_ident()
        if index == 1:
            assert busy.wait(30)
        return index

    with read_ahead(4, 1, read) as pieces:  # whose one thread stays with piece 1
        assert [pieces.take(0), pieces.take(2), pieces.take(3)] == [0, 2, 3]
        busy.set()
        assert pieces.take(1) == 1
    assert readers[2] == readers[3] == threading.get_ident() != readers[1]


def test_what_reading_raises_is_raised_by_who_asks_and_leaves_no_thread():
    def read(index: int) -> int:
        if index == 2:
            raise ValueError("piece 2")
        return index

    threads, alive = torch.get_num_threads(), threading.active_count()
    with pytest.raises(ValueError, match="piece 2"), read_ahead(1000, 2, read) as pieces:
        for index in range(1000):
            assert pieces.take(index) == index < 2
    assert threading.active_count() == alive and torch.get_num_threads() == threads


def test_memory_of_what_is_read_ahead_is_planned():
    nodes = trace(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 96, 96), Mesh(), None, torch.float32, "cpu")
    alone, ahead = (Layers(nodes, Mesh(), 2, read=True, ahead=ahead).streamed(None, None, 3) for ahead in (0, 2))
    assert ahead.tiles == alone.tiles == {nodes[-1].index: (32, 32)}
    more = 2 * 34 * 34 * 3 * 4  # two tiles with the neighbours of their pixels
    assert (ahead.forward - alone.forward, ahead.backward - alone.backward) == (more, more)
