"""The order of images that are best read together."""

import numpy as np
import pytest

from kd.training.batches import BlockOrder

BLOCKS = np.repeat(np.arange(40), 7)


def test_each_epoch_has_every_image_once_in_an_order_of_its_own():
    order = BlockOrder(BLOCKS, seed=0)
    first, again = list(order), list(order)
    assert first == again and sorted(first) == list(range(len(BLOCKS))) == list(range(len(order)))
    order.set_epoch(1)
    assert sorted(order) == sorted(first) and list(order) != first
    assert list(BlockOrder(BLOCKS, seed=1)) != first


def test_images_of_one_block_stay_near_each_other_and_are_mixed_with_others(monkeypatch):
    monkeypatch.setattr(BlockOrder, "MIXED", 28)
    blocks = BLOCKS[list(BlockOrder(BLOCKS, seed=0))]
    for block in range(40):
        places = np.flatnonzero(blocks == block)
        assert np.ptp(places) < 28 and np.ptp(places) > 6
    assert (np.diff(blocks) == 0).mean() < 0.5


@pytest.mark.parametrize("left_out", [0, 1, 3])
def test_so_many_images_of_an_epoch_are_left_out(left_out):
    order = BlockOrder(BLOCKS, seed=0, left_out=left_out)
    assert len(list(order)) == len(set(order)) == len(order) == len(BLOCKS) - left_out
