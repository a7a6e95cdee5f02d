"""The detection transformers that GHM-C fits."""

from transformers import PreTrainedModel

from ghm_triton import HarmonizedBCELoss

from .criterion import LossFunction

_CRITERIA = {  # by the type of the loss, which is the name of the model: the criterion in the loss function
    "DeformableDetrForObjectDetection": "DeformableDetrImageLoss",
    "ConditionalDetrForObjectDetection": "DeformableDetrImageLoss",
    "RTDetrForObjectDetection": "RTDetrLoss",
    "RTDetrV2ForObjectDetection": "RTDetrLoss",
    "DFineForObjectDetection": "DFineLoss",
}
_SOFTMAX = ("DetrForObjectDetection", "YolosForObjectDetection", "TableTransformerForObjectDetection")


def harmonize(model: PreTrainedModel, loss: HarmonizedBCELoss | None = None) -> PreTrainedModel:
    """Make `model` train with GHM-C in place of the focal or varifocal loss of the classes.

    The classification term of each decoder layer keeps its value, its divisor, and its weight (with
    ``preserve="value"``): what changes is which queries and classes the gradient comes from. The other terms and the
    matching do not change. All layers and the denoising queries share one density, which is updated several times per
    step. Where gradients are disabled, as in `Trainer.evaluate`, the loss is that of the framework.

    The model is changed and returned. The loss becomes its submodule `ghm_loss`, so that it moves with the model and
    its running counts are saved with it. Call this function again after `from_pretrained`, which builds a plain model
    and reports `ghm_loss.running_counts` as unexpected: the average then starts anew. A `Trainer` that resumes restores
    the counts.

    Args:
        model: A Deformable DETR, Conditional DETR, RT-DETR, RT-DETRv2 or D-FINE for object detection.
        loss: The loss and its settings. None: ``HarmonizedBCELoss()``.

    Raises:
        TypeError: `model` is another model, such as a DETR or YOLOS, whose classifier is a softmax; or `loss` is no
            HarmonizedBCELoss.
        ValueError: `loss` has a process group, and the model trains with denoising queries. A process without objects
            has none, and the others would wait for it.

    Example:
        >>> model = harmonize(RTDetrForObjectDetection.from_pretrained("PekingU/rtdetr_r18vd"))
        >>> Trainer(model, arguments, train_dataset=..., data_collator=...).train()
    """
    kind = getattr(model, "loss_type", None) if isinstance(model, PreTrainedModel) else None
    if kind in _SOFTMAX or type(model).__name__ in _SOFTMAX:
        raise TypeError(
            f"model must classify with a sigmoid, got {type(model).__name__}, which classifies queries with a softmax"
        )
    if kind not in _CRITERIA:
        raise TypeError(f"model must be one of {', '.join(_CRITERIA)}, got {type(model).__name__}")
    loss = HarmonizedBCELoss() if loss is None else loss
    if not isinstance(loss, HarmonizedBCELoss):
        raise TypeError(f"loss must be a HarmonizedBCELoss or None, got {type(loss).__name__}")
    if loss.process_group is not None and getattr(model.config, "num_denoising", 0):
        raise ValueError(
            f"loss.process_group must be None for a model with denoising queries, got {loss.process_group} "
            f"with config.num_denoising={model.config.num_denoising}"
        )
    unharmonize(model)
    model.ghm_loss = loss.to(model.device).train(model.training)
    model.loss_function = LossFunction(model.loss_function, _CRITERIA[kind], loss)
    return model


def unharmonize(model: PreTrainedModel) -> PreTrainedModel:
    """Undo :func:`harmonize`: the model has its own loss again, and its `state_dict` no running counts.

    The model is changed and returned. A model that is not harmonized is returned as it is.

    Args:
        model: A model of transformers.
    """
    function = getattr(model, "_loss_function", None)
    if isinstance(function, LossFunction):
        model.loss_function = function.plain
        del model.ghm_loss
    return model
