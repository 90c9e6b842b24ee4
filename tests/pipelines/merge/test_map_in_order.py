"""Tensors side by side: in order, to the same bits, with errors in their turn and nothing left changed."""

import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from mergeopt_core.spectral.decompositions import symmetric_eigen
from pipelines.merge.stream import map_in_order


def blas_threads():
    return sorted((info["filepath"], info["num_threads"]) for info in threadpool_info() if info["user_api"] == "blas")


def test_results_come_map_in_order_though_later_ones_are_done_first():
    made = list(map_in_order(lambda k: (time.sleep(0.02 * (5 - k)), k * k)[1], range(5), 3))
    assert made == [(k, k * k) for k in range(5)]


def test_no_more_than_one_beyond_the_threads_is_begun():
    begun, seen = [], []
    for _ in map_in_order(begun.append, range(20), 2):
        time.sleep(0.005)
        seen.append(len(begun))
    assert all(count <= k + 3 for k, count in enumerate(seen))


def test_decompositions_have_the_bits_of_a_single_thread():
    matrices = [torch.randn(384, 384, generator=torch.Generator().manual_seed(k)).double() for k in range(4)]
    grams = [x @ x.mT for x in matrices]
    alone = [symmetric_eigen(gram.clone()) for gram in grams]
    several = [found for _, found in map_in_order(lambda gram: symmetric_eigen(gram.clone()), grams, 2)]
    for one, other in zip(alone, several):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("ends", ["closed", "failed"])
def test_threads_are_left_as_found(ends):
    torch_threads, blas = torch.get_num_threads(), blas_threads()
    inside = map_in_order(lambda k: torch.get_num_threads() / (k != 3), range(6), 2)
    assert next(inside) == (0, 1.0)
    if ends == "closed":
        inside.close()
    else:
        with pytest.raises(ZeroDivisionError):
            list(inside)
    assert torch.get_num_threads() == torch_threads
    assert blas_threads() == blas
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]
