"""A trainer of YOLO detectors whose classification loss is GHM-C."""

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from ghm_triton.density import Density

from .criterion import HarmonizedBCE, density_losses, harmonize_criterion


class GHMDetectionTrainer(DetectionTrainer):
    """Ultralytics' `DetectionTrainer` with GHM-C in the place of binary cross entropy.

    The classification term keeps the value and the meaning that it has with binary cross entropy: its total over a batch
    is the same, so that the gain `cls` stays as it is. The box terms are not changed. Each branch of an end-to-end model
    has its own density. With several processes the density is that of all processes.

    The model and its checkpoints are those of Ultralytics. A checkpoint holds the running counts as the attribute
    `ghm_density` of its model, from which `resume=True` continues; to load it, ghm_triton is not needed.

    Attributes:
        bins, momentum, exponent: As for :func:`ghm_triton.ghmc_loss`. A subclass sets other values.

    Raises:
        TypeError, ValueError: One of these attributes is not as described.

    Example:
        >>> from ultralytics import YOLO
        >>> class Trainer(GHMDetectionTrainer):
        ...     exponent = 0.75
        >>> YOLO("yolo11n.yaml").train(data="coco8.yaml", trainer=Trainer)  # doctest: +SKIP
    """

    bins: int = 30
    momentum: float = 0.75
    exponent: float = 0.5

    def __init__(self, *args, **kwargs):
        HarmonizedBCE(**self._loss_options())  # errors come before anything is written
        super().__init__(*args, **kwargs)

    def _loss_options(self) -> dict:
        return {"bins": self.bins, "momentum": self.momentum, "exponent": self.exponent}

    def resume_training(self, ckpt: dict | None) -> None:
        """Set the criterion of the model. Ultralytics calls this at the end of the setup of each run."""
        super().resume_training(ckpt)  # replaces the criterion of an end-to-end model
        model = unwrap_model(self.model)
        criterion = getattr(model, "criterion", None) or model.init_criterion()
        model.criterion = harmonize_criterion(criterion, sync=True, **self._loss_options())
        if self.resume:
            self._load_density(getattr(ckpt["ema"], "ghm_density", {}))

    def _load_density(self, states: dict) -> None:
        for name, loss in density_losses(unwrap_model(self.model).criterion).items():
            if name in states:
                loss.load_state_dict({"running_counts": states[name]})
            elif self.momentum > 0:
                LOGGER.warning(f"{self.args.model} has no gradient density of {name}: it starts from zero.")

    def save_model(self) -> bool:
        """Save the checkpoints, which hold the running counts of each branch."""
        states = {name: loss.state_dict() for name, loss in self._losses().items()}
        self.ema.ema.ghm_density = {
            name: state["running_counts"].clone() for name, state in states.items() if "running_counts" in state
        }
        return super().save_model()

    def _losses(self):
        return density_losses(unwrap_model(self.model).criterion)

    def density(self) -> dict[str, Density]:
        """The gradient density of each branch: "one2many" and "one2one", or "detect" if there is only one.

        Raises:
            RuntimeError: `momentum` is 0, with which nothing is kept.
        """
        return {name: loss.density() for name, loss in self._losses().items()}
