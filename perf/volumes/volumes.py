"""Volumes with small blobs to find, and tubes to leave out."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

SIDE = 24  # voxels
BLOBS = (1, 2)  # fewest and most per volume
DIAMETER = (3.0, 8.0)  # of a blob, voxels
TUBES = (1, 2)
TUBE_DIAMETER = (2.5, 6.0)
CONTRAST = (0.5, 1.0)  # of blobs and tubes, over a background of 0
NOISE = 0.2  # standard deviation per voxel
TEXTURE = 0.2  # standard deviation of the noise that is smooth over 5 voxels


class Volume(NamedTuple):
    """A volume [1, SIDE, SIDE, SIDE], and the boxes [blobs, 6] (three lower corners, three upper ones) in it."""

    image: Tensor
    boxes: Tensor


@functools.lru_cache(maxsize=1000)
def draw(*seed: int) -> Volume:
    """Draw the volume of this seed. The next runs of a command use the same ones."""
    mixed = 0
    for part in seed:
        mixed = mixed * 1_000_003 + part
    generator = torch.Generator().manual_seed(mixed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=generator)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    place = torch.stack(torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 3, indexing="ij"), dim=-1)
    image = torch.zeros(SIDE, SIDE, SIDE)
    for _ in range(number(*TUBES)):
        direction = torch.randn(3, generator=generator)
        direction = direction / direction.norm()
        offset = place - uniform(0, SIDE, 3)
        distance = (offset - (offset @ direction)[..., None] * direction).norm(dim=-1)
        image = torch.maximum(image, _inside(distance, uniform(*TUBE_DIAMETER) / 2) * uniform(*CONTRAST))
    centers, radii = [], []
    wanted = number(*BLOBS)
    while len(radii) < wanted:
        radius = uniform(*DIAMETER) / 2
        center = radius + uniform(0, 1, 3) * (SIDE - 2 * radius)
        if all((center - other).norm() > radius + size + 1 for other, size in zip(centers, radii)):
            centers.append(center)
            radii.append(radius)
            distance = (place - center).norm(dim=-1)
            image = torch.maximum(image, _inside(distance, radius) * uniform(*CONTRAST))
    smooth = avg_pool3d(torch.randn(1, SIDE + 4, SIDE + 4, SIDE + 4, generator=generator), 5, stride=1)[0]
    image = image + TEXTURE * smooth / smooth.std() + NOISE * torch.randn(image.shape, generator=generator)
    boxes = [torch.cat([center - radius, center + radius]) for center, radius in zip(centers, radii)]
    return Volume(image[None], torch.stack(boxes))


def _inside(distance: Tensor, radius: Tensor) -> Tensor:
    """Return the share of each voxel inside a surface at `radius`, an edge one voxel wide."""
    return (radius - distance + 0.5).clamp(0, 1)
