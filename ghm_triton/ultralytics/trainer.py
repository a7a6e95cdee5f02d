"""The trainers of Ultralytics' models whose classification loss is GHM."""

from ultralytics import RTDETR
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.models.yolo.semantic import SemanticSegmentationTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from ghm_triton import HarmonizedBCELoss
from ghm_triton.density import Density
from ghm_triton.distributed import world
from ghm_triton.losses.base import HarmonizedLoss

from .criterion import harmonize_criterion, losses_of_branches

OPTIONS = ("bins", "momentum", "exponent", "preserve")


class HarmonizedTrainer(BaseTrainer):
    """What the trainers share. Each derives from this class and from the trainer of Ultralytics for its task.

    The classification term of each batch keeps its value (:class:`ghm_triton.HarmonizedBCELoss`), so that its gain
    keeps its meaning. The other terms do not change. Each branch of an end-to-end model has its own density. With
    several processes, the density is that of all processes, but for RT-DETR that of each process.

    The model and the checkpoints are those of Ultralytics. A checkpoint holds the running counts in the attribute
    `ghm_density` of its model, and `resume=True` continues from them. Loading a checkpoint does not need ghm_triton.

    Attributes:
        bins, momentum, exponent, preserve: As for :class:`ghm_triton.HarmonizedBCELoss`. To change one, derive a class.

    Raises:
        TypeError, ValueError: One of these attributes is not as described.
    """

    bins: int = 30
    momentum: float = 0.75
    exponent: float = 0.5
    preserve: str = "value"

    def __init__(self, *args, **kwargs):
        HarmonizedBCELoss(**self._loss_options())  # raises errors before anything is written
        super().__init__(*args, **kwargs)

    def density(self) -> dict[str, Density]:
        """Return the gradient density of each branch: "one2many" and "one2one", or one of the name of the task.

        The name is "classify", "semantic", or, for all tasks with boxes, "detect".

        Raises:
            RuntimeError: `momentum` is 0, so there is no moving average.
        """
        return {name: loss.density() for name, loss in self._losses().items()}

    def resume_training(self, ckpt: dict | None) -> None:
        """Set the criterion of the model. Ultralytics calls this method at the end of the setup of every run."""
        super().resume_training(ckpt)  # sets the criterion of an end-to-end model
        model = unwrap_model(self.model)
        criterion = getattr(model, "criterion", None) or model.init_criterion()
        model.criterion = harmonize_criterion(criterion, process_group=world(), **self._loss_options())
        if self.resume:
            self._load_running_counts(getattr(ckpt["ema"], "ghm_density", {}))

    def save_model(self) -> bool:
        """Save the checkpoints, with the running counts of each branch."""
        counts = {name: loss.running_counts for name, loss in self._losses().items()}
        self.ema.ema.ghm_density = {name: saved.clone() for name, saved in counts.items() if saved is not None}
        return super().save_model()

    def _load_running_counts(self, counts: dict) -> None:
        for name, loss in self._losses().items():
            if loss.running_counts is None:
                continue
            if name not in counts:
                LOGGER.warning(
                    f"{self.args.model} has no running counts of {name!r}. The moving average starts from zero."
                )
                continue
            if counts[name].shape != loss.running_counts.shape:
                raise ValueError(f"bins must be {len(counts[name]) - 1} as in {self.args.model}, got {self.bins}")
            loss.running_counts.copy_(counts[name])

    def _losses(self) -> dict[str, HarmonizedLoss]:
        return losses_of_branches(unwrap_model(self.model).criterion)

    def _loss_options(self) -> dict:
        return {name: getattr(self, name) for name in OPTIONS}


class GHMDetectionTrainer(HarmonizedTrainer, DetectionTrainer):
    """Ultralytics' `DetectionTrainer` with GHM-C in place of binary cross entropy. See :class:`HarmonizedTrainer`.

    Example:
        >>> from ultralytics import YOLO
        >>> class Trainer(GHMDetectionTrainer):
        ...     exponent = 0.25
        >>> YOLO("yolo11n.yaml").train(data="coco8.yaml", trainer=Trainer)  # doctest: +SKIP
    """


class GHMSegmentationTrainer(HarmonizedTrainer, SegmentationTrainer):
    """Ultralytics' `SegmentationTrainer` with GHM-C for the classes. The masks keep their loss."""


class GHMOBBTrainer(HarmonizedTrainer, OBBTrainer):
    """Ultralytics' `OBBTrainer`, for oriented boxes, with GHM-C for the classes."""


class GHMPoseTrainer(HarmonizedTrainer, PoseTrainer):
    """Ultralytics' `PoseTrainer` with GHM-C for the classes. The keypoints keep their losses."""


class GHMRTDETRTrainer(HarmonizedTrainer, RTDETRTrainer):
    """Ultralytics' `RTDETRTrainer` with GHM-C in place of the varifocal loss and the focal loss, with one density.

    All decoder layers and the denoising queries share the density. It is updated several times per step. Each process
    has its own density, because a process without objects has no denoising queries.
    """


class GHMClassificationTrainer(HarmonizedTrainer, ClassificationTrainer):
    """Ultralytics' `ClassificationTrainer` with :class:`ghm_triton.GHMCrossEntropyLoss`."""


class GHMSemanticSegmentationTrainer(HarmonizedTrainer, SemanticSegmentationTrainer):
    """Ultralytics' `SemanticSegmentationTrainer` with :class:`ghm_triton.GHMCrossEntropyLoss`, or GHM-C for one class.

    The Dice term stays. The main and the auxiliary output share the density. Class weights are not used.
    """


_TRAINERS = {
    "detect": GHMDetectionTrainer,
    "segment": GHMSegmentationTrainer,
    "obb": GHMOBBTrainer,
    "pose": GHMPoseTrainer,
    "classify": GHMClassificationTrainer,
    "semantic": GHMSemanticSegmentationTrainer,
}


def trainer_of(model) -> type[HarmonizedTrainer]:
    """Return the trainer for the task of a `YOLO` or `RTDETR` of Ultralytics.

    Raises:
        ValueError: There is none for this task.
    """
    if isinstance(model, RTDETR):
        return GHMRTDETRTrainer
    if model.task not in _TRAINERS:
        raise ValueError(f"model must have one of the tasks {', '.join(_TRAINERS)}, got {model.task!r}")
    return _TRAINERS[model.task]
