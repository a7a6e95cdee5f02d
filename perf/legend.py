"""Names and colors in tables and figures: one name and one color for each thing, wherever it appears."""

LABELS = {  # implementations of the sweep, in the order of columns
    "triton": "this package, Triton",
    "eager": "this package, eager",
    "eager_compiled": "this package, torch.compile",
    "exact": "exact density",
    "region_loop": "loop over regions",
    "mmdet": "mmdetection",
    "softmax_region_loop": "loop over regions",
    "bce": "cross entropy",
    "cross_entropy": "cross entropy",
    "bce_compiled": "cross entropy, torch.compile",
    "cross_entropy_compiled": "cross entropy, torch.compile",
    "liger": "cross entropy, Liger-Kernel",
    "torchvision_focal": "focal loss",
    "smooth_l1": "smooth L1",
}
LOSSES = {"ghmc": "GHM-C", "ghmr": "GHM-R", "cross_entropy": "GHM cross entropy"}
COLORS = {
    "triton": "#003f5c",
    "eager": "#0072b2",
    "eager_compiled": "#56b4e9",
    "exact": "#cc79a7",
    "region_loop": "#d55e00",
    "mmdet": "#8c564b",
    "bce": "#444444",
    "bce_compiled": "#aaaaaa",
    "liger": "#117733",
    "torchvision_focal": "#e69f00",
    "smooth_l1": "#009e73",
}
COLORS |= {
    "softmax_region_loop": COLORS["region_loop"],
    "cross_entropy": COLORS["bce"],
    "cross_entropy_compiled": COLORS["bce_compiled"],
}
PAIR_COLORS = {  # pairs of losses of perf.accuracy, as it describes them
    "CE + SL1": COLORS["bce"],
    "focal + SL1": COLORS["torchvision_focal"],
    "CE per image + SL1": COLORS["bce_compiled"],
    "focal per image + SL1": "#f0d089",
    "GHM-C + SL1, exponent 0": "#009e73",
    "GHM-C + SL1, exponent 0.25": "#88ccaa",
    "GHM-C + SL1": COLORS["eager_compiled"],
    "GHM-C + SL1, exponent 0.5": COLORS["eager"],
    "GHM-C + ASL1": "#999933",
    "GHM-C + GHM-R": "#b39ddb",
    "GHM-C + GHM-R, exponent 0.5": "#5e3c99",
    "exact GHM-C + SL1": COLORS["exact"],
}
LINE_STYLES = ("-", "--", ":", "-.")  # of the files of a report
