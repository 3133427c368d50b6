"""The recorder of exercise 14 does what a CUDA graph does."""

import pytest
import torch

from minilm.exercises.capture import Recorder


def recorded(step, *tensors):
    graph = Recorder()
    with graph.capture():
        step(*tensors)
    return graph


def test_capture_does_nothing_and_replay_does_it():
    x, y = torch.arange(4.0), torch.zeros(4)
    graph = recorded(lambda: y.add_(2 * x + 1).mul_(3))
    assert torch.equal(x, torch.arange(4.0)) and torch.equal(y, torch.zeros(4))
    graph.replay()
    assert torch.equal(y, 3 * (2 * x + 1))
    graph.replay()
    assert torch.equal(y, 3 * (3 * (2 * x + 1) + 2 * x + 1))
    assert (graph.captures, graph.replays) == (1, 2)


def test_tensors_are_read_anew_and_python_is_not():
    x, y, factor = torch.ones(3), torch.zeros(3), 2
    graph = Recorder()
    with graph.capture():
        y.copy_(factor * x)
    factor = 100
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [10, 10, 10] and factor == 100


def test_results_inside_keep_their_place():
    x = torch.ones(2, 3)
    graph = Recorder()
    with graph.capture():
        turned = x.T  # a view: no numbers of its own
        total = turned.sum(1)
    x.copy_(torch.arange(6.0).view(2, 3))
    graph.replay()
    assert total.tolist() == [3, 5, 7]
    assert turned.data_ptr() == x.data_ptr()


def test_views_that_are_written_and_several_results():
    x, best = torch.tensor([[3.0, 9.0], [8.0, 1.0]]), torch.zeros(2)
    graph = Recorder()
    with graph.capture():
        values, places = x.max(1)
        best[:1] = values[1:]
        x[0].zero_()
    assert x[0].tolist() == [3, 9] and best.tolist() == [0, 0]
    x[1, 1] = 20
    graph.replay()
    assert values.tolist() == [9, 20] and places.tolist() == [1, 1]
    assert best.tolist() == [20, 0] and x[0].tolist() == [0, 0]


def test_a_new_capture_replaces_the_old_one():
    x = torch.zeros(1)
    graph = recorded(lambda: x.add_(1))
    with graph.capture():
        x.add_(10)
    graph.replay()
    assert x.item() == 10 and graph.captures == 2


def test_numbers_cannot_be_read_back_inside():
    x = torch.ones(1)
    for reads in (lambda: x.item(), lambda: int(x), lambda: 1 if x > 0 else 2):
        with pytest.raises(RuntimeError, match="cannot be read back while operations are recorded"):
            recorded(reads)


def test_what_was_written_is_put_back_after_an_error():
    x = torch.ones(1)
    with pytest.raises(ValueError, match="mine"), Recorder().capture():
        x.add_(1)
        raise ValueError("mine")
    assert x.item() == 1


def test_replay_needs_a_capture():
    with pytest.raises(RuntimeError, match="^replay: nothing has been captured yet$"):
        Recorder().replay()
