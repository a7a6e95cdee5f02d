"""MONAI's RetinaNet in 3D, small: its training and its average precision."""

import torch
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.data.box_utils import box_iou
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ghm_triton.detection.training.schedules import one_cycle

from .losses import Way
from .volumes import Volume, draw

CHANNELS = 8
BATCH = 4  # volumes per step
ANCHORS = (4, 6, 8)  # sides, voxels
METRICS = {  # names of the columns, and MONAI's
    "AP": "mAP_IoU_0.10_0.50_0.05_MaxDet_100",
    "AP10": "AP_IoU_0.10_MaxDet_100",
    "AP50": "AP_IoU_0.50_MaxDet_100",
}


class Features(nn.Module):
    """Feature maps at a stride of 2, with the context of a stride of 4 and 8."""

    out_channels = CHANNELS

    def __init__(self):
        super().__init__()
        self.start = _layer(1, 8, stride=2)
        self.levels = nn.ModuleList([_layer(8, CHANNELS), _layer(CHANNELS, 32, stride=2), _layer(32, 32, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv3d(channels, CHANNELS, 1) for channels in (CHANNELS, 32, 32)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a list of one feature map."""
        maps, x = [], self.start(images)
        for level in self.levels:
            maps.append(x := level(x))
        merged = self.lateral[2](maps[2])
        for level in (1, 0):
            merged = self.lateral[level](maps[level]) + interpolate(merged, scale_factor=2)
        return [merged]


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.ReLU())


def build(way: Way) -> RetinaNetDetector:
    """Return an untrained detector with this classification loss and MONAI's default box loss, smooth L1.

    The matcher, the sampler, and the suppression of overlaps are set as in MONAI's tutorial. No detection is left out
    for a low score, because the losses give scores of different sizes.
    """
    anchors = AnchorGeneratorWithAnchorShape(
        feature_map_scales=(1,), base_anchor_shapes=[(side,) * 3 for side in ANCHORS]
    )
    network = RetinaNet(3, 1, len(ANCHORS), Features(), size_divisible=8)
    detector = RetinaNetDetector(network, anchors)
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    if way.sampler:
        detector.set_hard_negative_sampler(batch_size_per_image=64, positive_fraction=0.3, pool_size=20, min_neg=16)
    detector.set_cls_loss(way.loss())
    detector.set_box_selector_parameters(
        score_thresh=0.0, topk_candidates_per_level=50, nms_thresh=0.22, detections_per_img=100
    )
    return detector


def train(way: Way, *, rate: float, box_weight: float, steps: int, seed: int) -> RetinaNetDetector:
    """Train a detector for this many steps with AdamW and a one-cycle schedule, on volumes of the seed."""
    torch.manual_seed(seed)
    detector = build(way).train()
    optimizer, schedule = one_cycle(detector, rate=rate, steps=steps)
    for step in range(steps):
        volumes = [draw(1, seed, step, item) for item in range(BATCH)]
        targets = [{"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)} for _, boxes in volumes]
        losses = detector(torch.stack([image for image, _ in volumes]), targets)
        optimizer.zero_grad()
        (losses["classification"] + box_weight * losses["box_regression"]).backward()
        optimizer.step()
        schedule.step()
    return detector


@torch.no_grad()
def average_precision(detector: RetinaNetDetector, held_out: list[Volume]) -> dict[str, float]:
    """Return MONAI's average precision in percent: over the overlaps 0.1, 0.15 ... 0.5, and at 0.1 and 0.5."""
    detector.eval()
    found = [one for first in range(0, len(held_out), BATCH) for one in detector(_images(held_out[first:][:BATCH]))]
    metric = COCOMetric(classes=["blob"], iou_list=[0.1, 0.5], max_detection=[100])
    matches = matching_batch(
        iou_fn=box_iou,
        iou_thresholds=metric.iou_thresholds,
        pred_boxes=[one["boxes"].numpy() for one in found],
        pred_classes=[one["labels"].numpy() for one in found],
        pred_scores=[one["labels_scores"].numpy() for one in found],
        gt_boxes=[boxes.numpy() for _, boxes in held_out],
        gt_classes=[torch.zeros(len(boxes), dtype=torch.int64).numpy() for _, boxes in held_out],
    )
    values = metric(matches)[0]
    return {name: 100 * float(values[own]) for name, own in METRICS.items()}


def _images(volumes: list[Volume]) -> Tensor:
    return torch.stack([image for image, _ in volumes])
