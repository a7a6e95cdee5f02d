"""Random augmentation: what it does to boxes, and that an item depends on seed, epoch and index alone."""

import pytest
import torch

pytest.importorskip("torchvision")

from ghm_triton.detection.data.augment import Augmented

HEIGHT, WIDTH = 24, 40
BOX = [3.0, 5.0, 10.0, 17.0]


class Spots(torch.utils.data.Dataset):
    """Images with one bright box on dark ground, and their box."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        image = torch.full((3, HEIGHT, WIDTH), 0.2)
        left, top, right, bottom = (int(corner) for corner in BOX)
        image[:, top:bottom, left:right] = 0.7
        return image, {"boxes": torch.tensor([BOX]), "labels": torch.tensor([0]), "image_id": index}


def augment(dataset, name, *, seed=0, epoch=0):
    """All items of `dataset`, augmented."""
    augmented = Augmented(dataset, name, seed=seed, epoch=epoch)
    return [augmented[index] for index in range(len(augmented))]


def bright_box(image):
    """The box around the bright pixels, found in the image alone."""
    gray = image.mean(0)
    rows, columns = (gray > (gray.min() + gray.max()) / 2).nonzero(as_tuple=True)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def places(name):
    """The different shapes and boxes among the items."""
    found = set()
    for image, target in augment(Spots(), name):
        assert type(image) is type(target["boxes"]) is torch.Tensor and image.dtype == torch.float32
        assert 0 <= image.min() and image.max() <= 1
        assert target["boxes"].tolist() == [pytest.approx(bright_box(image), abs=1e-4)]
        found.add((*image.shape[1:], *bright_box(image)))
    return found


def test_none_changes_nothing():
    plain, same = Spots()[3], Augmented(Spots(), "none", seed=0, epoch=0)[3]
    assert torch.equal(same[0], plain[0]) and torch.equal(same[1]["boxes"], plain[1]["boxes"])


def test_flip_mirrors_images_and_boxes():
    assert places("flip") == {(HEIGHT, WIDTH, 3, 5, 10, 17), (HEIGHT, WIDTH, 30, 5, 37, 17)}
    mirrored = [image for image, _ in augment(Spots(), "flip") if not torch.equal(image, Spots()[0][0])]
    assert 20 <= len(mirrored) <= 44  # 3 standard deviations of half of 64
    assert all(torch.equal(image, Spots()[0][0].flip(2)) for image in mirrored)


def test_aerial_draws_all_symmetries_and_other_colors():
    upright = {(HEIGHT, WIDTH, x, y, x + 7, y + 12) for x in (3, WIDTH - 10) for y in (5, HEIGHT - 17)}
    turned = {(WIDTH, HEIGHT, y, x, y + 12, x + 7) for x in (3, WIDTH - 10) for y in (5, HEIGHT - 17)}
    assert places("aerial") == upright | turned
    brightest = {image.max().item() for image, _ in augment(Spots(), "aerial")}
    assert len(brightest) > 32


def test_an_item_depends_on_seed_epoch_and_index_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = Augmented(Spots(), "aerial", seed=3, epoch=2)[5][0]
    assert torch.equal(torch.get_rng_state(), state)  # the model's own random numbers stay what they are
    torch.manual_seed(2)
    assert torch.equal(Augmented(Spots(), "aerial", seed=3, epoch=2)[5][0], first)
    others = [
        Augmented(Spots(), "aerial", seed=seed, epoch=epoch)[index][0]
        for seed, epoch, index in ((4, 2, 5), (3, 3, 5), (3, 2, 6))
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_images_without_boxes_are_augmented():
    class Empty(Spots):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, target | {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}

    for _, target in augment(Empty(), "aerial"):
        assert target["boxes"].shape == (0, 4)


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="augmentation must be one of .*'aerial'.*, got 'turn'"):
        Augmented(Spots(), "turn", seed=0, epoch=0)
