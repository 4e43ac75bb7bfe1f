"""Views of a picture: crops and flips that are a pure function of their index."""

import numpy as np
import torch
from PIL import Image

from kd.data.views import Views, crop


def test_views_are_a_pure_function_and_view_0_is_the_whole_picture():
    views = Views("ab" * 16, 50, 0.5)
    boxes, mirrored = views.boxes(3)
    again, _ = Views("ab" * 16, 50, 0.5).boxes(3)
    np.testing.assert_array_equal(boxes, again)
    assert 5 < mirrored.sum() < 45
    area = boxes[:, 2] * boxes[:, 3]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1.0001).all() and area.min() > 0.45
    for other in (
        Views("ab" * 16, 50, 0.5, seed=1).boxes(3)[0],
        Views("cd" * 16, 50, 0.5).boxes(3)[0],
        views.boxes(2)[0],
    ):
        assert not np.array_equal(boxes, other)
    whole, straight = views.boxes(0)
    assert (whole == [0, 0, 1, 1]).all() and not straight.any()


def test_a_crop_is_the_box_that_pillow_would_cut():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.asarray(smooth).transpose(2, 0, 1).copy())[None]
    box = torch.tensor([[0.25, 0.125, 0.5, 0.75]])
    expected = smooth.resize((32, 32), Image.Resampling.BILINEAR, box=(16, 8, 48, 56))
    for mirrored in (False, True):
        found = crop(values, box, torch.tensor([mirrored]), (32, 32))[0].permute(1, 2, 0).numpy()
        wanted = np.asarray(expected, dtype=float)
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert np.abs(found - wanted).mean() < 2.5


def test_the_whole_picture_at_its_own_size_is_untouched():
    values = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0.0, 0, 1, 1]] * 2)
    torch.testing.assert_close(
        crop(values, whole, torch.tensor([False] * 2), (28, 28)), values.float(), atol=1e-3, rtol=0
    )


def test_without_crops_the_picture_stays_whole_and_every_second_view_is_mirrored():
    views = Views("ab" * 16, 4, 1.0)
    for view in range(4):
        boxes, mirrored = views.boxes(view)
        assert (boxes == [0, 0, 1, 1]).all() and (mirrored == (view % 2 == 1)).all()
