"""The trainer of YOLO detectors whose classification loss is GHM-C."""

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from ghm_triton import GHMCLoss
from ghm_triton.density import Density
from ghm_triton.distributed import world

from .criterion import HarmonizedBCE, harmonize_criterion, losses_of_branches


class GHMDetectionTrainer(DetectionTrainer):
    """Ultralytics' `DetectionTrainer` with GHM-C in place of binary cross entropy.

    The classification term of each batch has the value that binary cross entropy has (:class:`HarmonizedBCE`), so that
    the gain `cls` keeps its meaning. The box terms do not change. Each branch of an end-to-end model has its own
    density. With several processes, the density is that of all processes.

    The model and the checkpoints are those of Ultralytics. A checkpoint holds the running counts in the attribute
    `ghm_density` of its model, and `resume=True` continues from them. Loading a checkpoint does not need ghm_triton.

    Attributes:
        bins, momentum, exponent: As for :func:`ghm_triton.ghmc_loss`. To change one, derive a class.

    Raises:
        TypeError, ValueError: One of these attributes is not as described.

    Example:
        >>> from ultralytics import YOLO
        >>> class Trainer(GHMDetectionTrainer):
        ...     exponent = 0.25
        >>> YOLO("yolo11n.yaml").train(data="coco8.yaml", trainer=Trainer)  # doctest: +SKIP
    """

    bins: int = 30
    momentum: float = 0.75
    exponent: float = 0.5

    def __init__(self, *args, **kwargs):
        HarmonizedBCE(**self._loss_options())  # raises errors before anything is written
        super().__init__(*args, **kwargs)

    def density(self) -> dict[str, Density]:
        """The gradient density of each branch: "one2many" and "one2one", or "detect" if there is only one.

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

    def _losses(self) -> dict[str, GHMCLoss]:
        return losses_of_branches(unwrap_model(self.model).criterion)

    def _loss_options(self) -> dict:
        return {"bins": self.bins, "momentum": self.momentum, "exponent": self.exponent}
