"""The comparison of softmax losses on digits: its data, losses, training, table, and command."""

import gzip
import re

import pytest
import torch

for module in ("torchvision", "sklearn", "pandas", "matplotlib"):
    pytest.importorskip(module)

import pandas as pd
from sklearn.datasets import load_digits

from ghm_triton import ghm_cross_entropy
from perf.classification import __main__ as command
from perf.classification import images as sources
from perf.classification.images import load_images
from perf.classification.losses import LOSSES, class_counts, focal_loss
from perf.classification.plan import RATES, TUNING_SEEDS, chosen, reported, with_chosen_rate
from perf.classification.report import differences, plot, table
from perf.classification.split import split as split_images

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 1])
COUNTS = torch.tensor([6.0, 3.0, 1.0])


def split_digits(**options):
    return split_images(load_images("digits"), **options)


def pixels(images):
    return {tuple(image.tolist()) for image in images}


@pytest.mark.parametrize("imbalance", [1, 10, 100])
def test_split(imbalance):
    """The class sizes fall geometrically; no image is in both parts; the test part is balanced."""
    split = split_digits(imbalance=imbalance, wrong_labels=0.0, seed=3)
    sizes = split.train_labels.bincount(minlength=10).tolist()
    expected = [129, 129 / imbalance ** (1 / 9), 129 / imbalance ** (5 / 9), 129 / imbalance]
    for size, wanted in zip([sizes[rank] for rank in (0, 1, 5, 9)], expected):
        assert wanted - 5.5 <= size <= wanted + 0.5  # the rarest of the digits has 5 images less
    assert split.test_labels.bincount().tolist() == [50] * 10
    assert not pixels(split.train_images) & pixels(split.test_images)
    assert pixels(split.train_images) <= pixels(torch.from_numpy(load_digits().data).float() / 16)


def test_labels_of_a_class_are_one_digit():
    """Train and test agree on the digit of each class."""
    digits = load_digits()
    found = {
        tuple(image.tolist()): digit for image, digit in zip(torch.from_numpy(digits.data).float() / 16, digits.target)
    }
    split = split_digits(imbalance=10, wrong_labels=0.0, seed=1)
    kinds = {}
    for images, labels in ((split.train_images, split.train_labels), (split.test_images, split.test_labels)):
        for image, label in zip(images, labels.tolist()):
            kinds.setdefault(label, set()).add(found[tuple(image.tolist())])
    assert sorted(digit for (digit,) in kinds.values()) == list(range(10))


def test_wrong_labels():
    """A label is replaced by another class, each of which comes up, and the images stay."""
    clean, noisy, hopeless = (split_digits(imbalance=1, wrong_labels=share, seed=0) for share in (0.0, 0.4, 1.0))
    assert torch.equal(clean.train_images, noisy.train_images) and torch.equal(clean.test_labels, noisy.test_labels)
    changed = clean.train_labels != noisy.train_labels
    assert 0.35 < changed.float().mean() < 0.45  # 1,286 draws: 0.4 and 3.6 standard deviations
    assert (clean.train_labels != hopeless.train_labels).all()
    assert ((hopeless.train_labels - clean.train_labels) % 10).unique().tolist() == list(range(1, 10))
    other = split_digits(imbalance=1, wrong_labels=0.0, seed=1)
    assert pixels(other.test_images) != pixels(clean.test_images)


def write_idx(path, array):
    """MNIST's format: two bytes 0, 8 (uint8), the number of dimensions, the sizes (big endian), the values."""
    header = bytes([0, 0, 8, array.dim()]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + bytes(array.flatten().tolist()))


def test_fashion_mnist(tmp_path, monkeypatch):
    """torchvision's folder and the packed files of Debian give the same images. The test part stays."""
    raw, packed = tmp_path / "FashionMNIST" / "raw", tmp_path / "packed"
    raw.mkdir(parents=True)
    packed.mkdir()
    labels = {"train": torch.arange(60) % 10, "t10k": torch.arange(20).flip(0) % 10}
    pictures = {part: torch.randint(256, (len(label), 2, 3)) for part, label in labels.items()}
    for part, label in labels.items():
        write_idx(raw / f"{part}-labels-idx1-ubyte", label)
        write_idx(raw / f"{part}-images-idx3-ubyte", pictures[part])
    for file in raw.iterdir():
        (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr(sources, "DEBIAN", packed)
    for found in (load_images("fashion-mnist", root) for root in (tmp_path, None)):
        assert torch.equal((found.images * 255).round().long(), pictures["train"].flatten(1))
        assert torch.equal((found.test_images * 255).round().long(), pictures["t10k"].flatten(1))
        assert torch.equal(found.labels, labels["train"]) and torch.equal(found.test_labels, labels["t10k"])
    split = split_images(found, imbalance=6, wrong_labels=0.0, seed=0)
    sizes = split.train_labels.bincount(minlength=10)
    assert sizes[0] == 6 and sizes[9] == 1 and pixels(split.train_images) <= pixels(found.images)
    assert pixels(split.test_images) == pixels(found.test_images) and split.test_labels.bincount().tolist() == [2] * 10

    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="install Debian's dataset-fashion-mnist, or give --root"):
        load_images("fashion-mnist")


def test_losses():
    """Each by its formula, GHM by its function; a loss that keeps a state is new for each run."""
    p = LOGITS.double().softmax(1)[torch.arange(3), LABELS]
    torch.testing.assert_close(
        focal_loss(LOGITS, LABELS).double(), (-((1 - p) ** 2) * p.log()).mean(), rtol=1e-6, atol=0
    )
    values = {name: make(COUNTS)(LOGITS, LABELS).item() for name, make in LOSSES.items()}
    weights = 10 / (3 * COUNTS[LABELS].double())
    assert values["cross entropy"] == pytest.approx(-p.log().mean().item(), rel=1e-6)
    assert values["class weights"] == pytest.approx(-((weights * p.log()).sum() / weights.sum()).item(), rel=1e-6)
    assert values["generalized CE"] == pytest.approx(((1 - p**0.7) / 0.7).mean().item(), rel=1e-6)
    smooth = -(0.9 * p.log() + 0.1 * LOGITS.double().log_softmax(1).mean(1)).mean()
    assert values["label smoothing"] == pytest.approx(smooth.item(), rel=1e-6)
    weighted = LOGITS.double().exp() * COUNTS / 10
    shifted = weighted[torch.arange(3), LABELS] / weighted.sum(1)
    assert values["logit adjustment"] == pytest.approx(-shifted.log().mean().item(), rel=1e-6)
    for exponent in (0.25, 0.5, 0.75, 1.0):
        make = LOSSES[f"GHM {exponent:g}"]
        assert values[f"GHM {exponent:g}"] == ghm_cross_entropy(LOGITS, LABELS, exponent=exponent)
        assert make(COUNTS) is not make(COUNTS)
    expected = ghm_cross_entropy(weighted.log().float(), LABELS, exponent=0.5).item()
    assert values["GHM 0.5 adjusted"] == pytest.approx(expected, rel=1e-6)


def test_class_counts():
    assert class_counts(torch.tensor([0, 2, 2]), 4).tolist() == [1, 1, 2, 1]  # no logarithm or inverse of zero


def test_training_learns_and_repeats():
    """Far above the 10% of guessing after 150 steps; the same seed gives the same scores."""
    split = split_digits(imbalance=1, wrong_labels=0.0, seed=0)
    first, again = (
        command.scores(command.train(split, LOSSES["GHM 0.5"](COUNTS), rate=3e-3, steps=150, seed=0), split)
        for _ in range(2)
    )
    assert first == again and first["accuracy"] > 0.8
    assert sum(first[name] for name in command.RECALLS) / 10 == pytest.approx(first["accuracy"])  # balanced


def rows_of(loss, accuracies, imbalance=10.0, rate=3e-3, seeds=range(10)):
    recalls = {f"recall_{rank}": rank / 10 for rank in range(10)}
    common = {"data": "digits", "imbalance": imbalance, "wrong_labels": 0.2, "loss": loss, "rate": rate} | recalls
    return [common | {"seed": seed, "accuracy": accuracy} for seed, accuracy in zip(seeds, accuracies)]


def tuned(loss, imbalance=10.0, best=3e-3):
    """Rows of the search: the rate `best` wins on the mean, not with each seed."""
    return [
        row
        for rate in RATES
        for row in rows_of(loss, [0.5, 0.9] if rate == best else [0.6, 0.7], imbalance, rate, TUNING_SEEDS)
    ]


def test_rate_is_chosen_on_other_seeds():
    """The rate of the best mean of the tuning seeds, whatever a rate does on the seeds that are reported."""
    better = rows_of("focal", [0.99], rate=1e-2)
    rows = pd.DataFrame(tuned("focal") + rows_of("focal", [0.7]) + better)
    setting = {"data": "digits", "imbalance": 10.0, "wrong_labels": 0.2, "loss": "focal"}
    assert chosen(rows) == {tuple(setting.values()): 3e-3}
    assert list(reported([setting], rows, 2)) == [setting | {"seed": seed, "rate": 3e-3} for seed in (0, 1)]
    assert with_chosen_rate(rows)["accuracy"].tolist() == [0.7]


def test_table():
    """Means and sample standard deviations in percent, the tail in parentheses, an empty cell where nothing ran."""
    rows = pd.DataFrame(
        [*tuned("GHM 0.5"), *rows_of("GHM 0.5", [0.8, 0.9]), *tuned("focal"), *rows_of("focal", [0.7])]
        + [*tuned("focal", 1.0), *rows_of("focal", [0.5], 1.0)]
    )
    assert table(rows).splitlines() == [
        "| imbalance | wrong labels | focal | GHM 0.5 |",
        "| --- | --- | --- | --- |",
        "| 1 | 20% | 50.0 (80) |  |",
        "| 10 | 20% | 70.0 (80) | 85.0 ± 7.1 (80) |",
    ]


def test_differences():
    """Paired by seed, with Student's interval: of two differences, 12.706 / sqrt(2) times their deviation."""
    rows = pd.DataFrame(
        [*tuned("GHM 0.5"), *rows_of("GHM 0.5", [0.8, 0.9]), *tuned("focal"), *rows_of("focal", [0.7, 0.9])]
        + [*tuned("cross entropy"), *rows_of("cross entropy", [0.6, 0.6])]
    )
    header, _, line = differences(rows).splitlines()
    cells = dict(zip(header.split(" | "), line.split(" | ")))
    assert cells["best rival"] == "focal" and cells["GHM 0.5 - best rival"] == cells["GHM 0.5 - focal"]
    assert cells["GHM 0.5 - focal"] == "+5.0 ± 63.5"  # 10 and 0: 12.706 * 7.071 / sqrt(2)
    assert cells["GHM 0.5 - cross entropy"] == "+25.0 ± 63.5"
    assert cells["GHM 0.5 adjusted - logit adjustment"].strip() == ""


@pytest.mark.slow
def test_figure(tmp_path):
    rows = [*tuned("GHM 0.5"), *rows_of("GHM 0.5", [0.8, 0.9])]
    rows += [*tuned("cross entropy"), *rows_of("cross entropy", [0.7, 0.6])]
    plot(pd.DataFrame(rows), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def run(out, *arguments):
    common = ["--imbalance", "10", "--wrong-labels", "0.2", "--losses", "cross entropy", "GHM 0.5", "--steps", "3"]
    return command.main([*common, "--out", str(out), *arguments])


@pytest.mark.slow
def test_command_continues(tmp_path, capsys, monkeypatch):
    """Only the runs without a row are done, and give what they gave before."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    out = tmp_path / "new" / "classification.csv"
    assert run(out, "--seeds", "2") == 0
    shown = capsys.readouterr().out
    count = 2 * (len(TUNING_SEEDS) * len(RATES) + 2)
    assert "| 10 | 20% |" in shown and f"{count} rows in {out}" in shown and out.with_suffix(".png").exists()
    whole = pd.read_csv(out)
    last = whole.tail(4)
    assert last[["loss", "seed"]].values.tolist() == [
        [loss, seed] for seed in (0, 1) for loss in ("cross entropy", "GHM 0.5")
    ]
    rates = {setting[-1]: rate for setting, rate in chosen(whole).items()}
    assert last["rate"].tolist() == [rates[loss] for loss in last["loss"]]
    whole.drop(index=last.index[2]).to_csv(out, index=False)
    trained, original = [], command.train
    monkeypatch.setattr(
        command, "train", lambda *args, **options: trained.append(options) or original(*args, **options)
    )
    run(out, "--seeds", "2")
    assert trained == [{"rate": rates["cross entropy"], "steps": 3, "seed": 1}]
    order = ["loss", "seed", "rate"]
    again = pd.read_csv(out).sort_values(order, ignore_index=True).drop(columns="seconds")
    pd.testing.assert_frame_equal(again, whole.sort_values(order, ignore_index=True).drop(columns="seconds"))


@pytest.mark.slow
def test_rates_are_chosen_on_held_out_training_images(monkeypatch):
    """Fashion-MNIST has test images of its own: a tuning seed must not see them."""
    images = load_images("digits")
    images = images._replace(test_images=images.images[:40] + 7, test_labels=images.labels[:40])
    setting = {"data": "x", "imbalance": 1.0, "wrong_labels": 0.0, "loss": "cross entropy", "rate": 1e-3}
    seen = []
    monkeypatch.setattr(command, "scores", lambda model, data: seen.append(data.test_images.max().item()) or {})
    for seed in (TUNING_SEEDS[0], 0):
        command.run(images, setting | {"seed": seed}, steps=1)
    assert seen == [1, 8]


@pytest.mark.parametrize(
    ("written", "arguments", "message"),
    [
        ("a,b\n1,2\n", (), "argument --out: .*rows.csv must have the columns .*, got "),
        (None, ("--steps", "4"), "argument --steps: must be 3, as in the rows of .*, got 4"),
        (None, ("--data", "fashion-mnist"), "argument --data: must be digits, as in the rows of .*, got fashion-mnist"),
        (
            ",".join(command.COLUMNS) + "\n",
            ("--data", "fashion-mnist", "--root", "none"),
            "argument --data: no FashionMNIST/raw",
        ),
        (None, ("--root", "here"), "argument --root: must be left out with --data digits, got here"),
        (None, ("--imbalance", "0.5"), "argument --imbalance: must be a finite number from 1, got '0.5'"),
        (None, ("--losses", "hinge"), "argument --losses: invalid choice: 'hinge'"),
    ],
)
def test_bad_arguments(written, arguments, message, tmp_path, capsys):
    """Exit code 2 with a message; the file stays as it was."""
    out = tmp_path / "rows.csv"
    text = written or ",".join(command.COLUMNS) + "\ndigits,10,0.2,focal,0,0.003,3" + ",0" * 14 + "\n"
    out.write_text(text)
    with pytest.raises(SystemExit) as stop:
        run(out, *arguments)
    assert stop.value.code == 2 and out.read_text() == text
    assert re.search(message, capsys.readouterr().err)
