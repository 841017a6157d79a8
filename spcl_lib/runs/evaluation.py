"""Evaluation of a finished run on labelled images, and the choice of a threshold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spcl_lib.config import RunConfig
from spcl_lib.data.folders import list_labelled
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import evaluate_scores, precision_recall, predict_maps
from spcl_lib.model import Images, SpatialClassifier
from spcl_lib.runs.predict import read_batches
from spcl_lib.runs.predictor import BATCH, LabelRule, Predictor
from spcl_lib.runs.splits import list_report, report_labels
from spcl_lib.system.errors import UserError
from spcl_lib.system.randomness import keyed_generator

Row = dict[str, Any]
_CHOSEN = "one threshold, chosen here"
_THRESHOLD_IMAGES = 2000  # enough images to choose one number


@dataclass(frozen=True)
class Evaluation:
    """Scores and labels of N images."""

    scores: Tensor  # (N, C) in [0, 1]
    labels: Tensor  # (N, C) bool
    classes: tuple[str, ...]
    single: bool  # whether only one label of every image is known
    skipped: dict[str, str]  # images that could not be read, with the reason; not among the N
    ignored: Tensor | None = None  # (N, C) bool; labels that do not count

    def metrics(self) -> dict[str, Any]:
        """See `evaluate_scores`."""
        return evaluate_scores(self.scores, self.labels, self.classes, self.ignored)

    def class_rows(self, rule: LabelRule) -> list[Row]:
        """Per class: images with it; AP, precision, recall, F1 in percent, None if undefined."""
        chosen, rows = rule.choose(self.scores), []
        if self.ignored is not None:
            chosen &= ~self.ignored
        for c, (name, ap) in enumerate(self.metrics()["AP"].items()):
            right = int((chosen & self.labels)[:, c].sum())
            given, true = int(chosen[:, c].sum()), int(self.labels[:, c].sum())
            rows.append({
                "class": name, "images": true, "AP": ap,
                "precision": 100 * right / given if given else None,
                "recall": 100 * right / true if true else None,
                "F1": 200 * right / (given + true) if true else None,
            })  # fmt: skip
        return rows

    def rule_rows(self, rule: LabelRule, expected_positives: float) -> list[Row]:
        """What a rule gives, and what a threshold that is chosen on these images would give.

        With full labels, it is chosen on one half of the images and measured on the other half, and
        the other way round. With single labels, it is that of `threshold`.
        """
        rows = [self._row(str(rule), rule.choose(self.scores))]
        if self.single:
            return [*rows, self._row(_CHOSEN, self.scores >= self.threshold(expected_positives))]
        order = torch.randperm(len(self.scores), generator=keyed_generator("halves", 0))
        first, second = order.tensor_split([len(order) // 2])
        chosen = torch.zeros_like(self.labels)
        for half, other in ((first, second), (second, first)):
            if not self.labels[half].any():
                return rows
            chosen[other] = self.scores[other] >= self.threshold(expected_positives, half)
        return [*rows, self._row(_CHOSEN, chosen)]

    def threshold(self, expected_positives: float, which: Tensor | slice = slice(None)) -> float:
        """The best threshold for all or some of these images.

        With single labels, it is the score that `expected_positives` labels of an image reach.
        """
        if self.single:
            return expected_threshold(self.scores[which], expected_positives)
        scores = self.scores
        if self.ignored is not None:  # no threshold chooses a score of 0
            scores = scores.masked_fill(self.ignored, 0)
        return best_threshold(scores[which], self.labels[which])

    def _row(self, name: str, chosen: Tensor) -> Row:
        row: Row = {"labels": name, "per image": float(chosen.sum(1).double().mean())}
        return row if self.single else row | precision_recall(chosen, self.labels, self.ignored)


def evaluate_files(predictor: Predictor, images: Path, labels: Path) -> Evaluation:
    """Predicts the labelled images of a folder.

    `labels` is a CSV file of `path,labels` with all labels of every image ("a|b"), or of
    `path,label` with one; paths are below `images`.
    """
    if not images.is_dir():
        raise UserError(f"'{images}' is no folder; give the folder that the paths are below")
    data, is_single = list_labelled(images, labels, predictor.classes)
    return _evaluate(predictor, data, images, data.ids, is_single)


def evaluate_own(predictor: Predictor, data_root: str | Path | None) -> Evaluation:
    """Predicts the images that the run was reported on, which it has not been trained on."""
    config = predictor.config
    data = list_report(config, data_root)
    if data.files is None:
        raise UserError(f"{config.dataset} has no image files; give --images and --labels")
    names = [str(file) for file in data.files]
    return _evaluate(predictor, data, Path(), names, report_labels(config) == "single")


def _evaluate(
    predictor: Predictor, data: ImageSet, root: Path, names: Sequence[str], single: bool
) -> Evaluation:
    skipped: dict[str, str] = {}
    batches = read_batches(root, names, predictor.square_side, skipped)
    scores = [predictor(torch.stack(list(batch.values()))) for batch in batches]
    kept = torch.tensor([name not in skipped for name in names])
    ignored = None if data.ignored is None else data.ignored[kept]
    return Evaluation(
        torch.cat(scores), data.labels[kept], predictor.classes, single, skipped, ignored
    )


# --- thresholds -----------------------------------------------------------------------------------


def choose_threshold(model: SpatialClassifier, images: Images, config: RunConfig) -> float:
    """The score that `expected_positives` labels of a training image reach, on average (ours)."""
    order = torch.randperm(len(images), generator=keyed_generator("threshold", config.seed))
    parts = order[:_THRESHOLD_IMAGES].sort().values.split(BATCH)
    maps = [predict_maps(model, images[part], config.eval_side, "off") for part in parts]
    scores = model.pooling(torch.cat(maps)).sigmoid()  # (M, C)
    return expected_threshold(scores, config.settings.expected_positives)


def expected_threshold(scores: Tensor, expected_positives: float) -> float:
    """The score that so many labels per image reach, on average over scores (N, C)."""
    count = round(len(scores) * expected_positives)
    return float(scores.flatten().topk(min(max(count, 1), scores.numel())).values[-1])


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """The threshold with the highest OF1 on held-out images (N, C), halfway between two scores."""
    ranked, order = scores.flatten().sort(descending=True)
    right = labels.flatten()[order].double().cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(ranked) + 1) + labels.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # a threshold cannot separate equal scores
    best = int(f1.argmax())
    return float((ranked[best] + ranked[min(best + 1, len(ranked) - 1)]) / 2)
