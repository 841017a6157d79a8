"""Losses of other papers that keep a state per image: ROLE, APL, LL-Cp, asset regularisation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.losses import stateless as of
from spcl_lib.losses.settings import MethodSettings
from spcl_lib.losses.state import Context, State
from spcl_lib.system import ranks


class Role(State):
    """ROLE: (L'(p | y) + L'(y | p)) / 2 with L'(a | b) = BCE(a, stop(b)) + EPR(a).

    The optimiser learns the labels y, from 0.995 where annotated, else between 0.4 and 0.6.
    """

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        limit, certain = math.log(0.6 / 0.4), math.log(0.995 / 0.005)
        unknown = (2 * self.random() - 1) * limit
        self.estimates = nn.Parameter(torch.where(self.labels, certain, unknown))  # logits (N, C)

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        y = self.rows(self.estimates, context, s)
        one, other = (
            F.binary_cross_entropy_with_logits(learning, fixed.detach().sigmoid())
            + of.expected_positive_regularisation(learning, z, context)
            for learning, fixed in ((s, y), (y, s))
        )
        return (one + other) / 2


class AsymmetricPseudoLabels(State):
    """EM + APL: after an epoch, the lowest predictions of every class become soft negative labels.

    Every epoch from `start` adds the same number, rounded down; at the end of a long training, 90 %
    of the unknown labels have one. Their loss is beta * BCE(s, pseudo-label) in place of EM's. The
    predictions are those of the steps; the paper makes a pass for them.
    """

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        self.register_buffer("predictions", torch.full(labels.shape, 0.5))
        self.register_buffer("pseudo", torch.full(labels.shape, torch.nan))  # NaN: there is none

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        pseudo = self.rows(self.pseudo, context, s)
        loss = of.entropy_terms(s, z, self.settings.entropy_weight)
        cross = F.binary_cross_entropy_with_logits(s, pseudo.nan_to_num().to(s), reduction="none")
        known = ~pseudo.isnan() & ~z.bool()
        return torch.where(known, self.settings.pseudo_weight * cross, loss).mean()

    def observe(self, s: Tensor, context: Context) -> None:
        self.keep(self.predictions, context, s.sigmoid())

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        start = max(1, self.settings.start)
        if not start <= done < self.epochs:
            return
        predictions = ranks.merge(self.predictions)
        for c in range(self.labels.shape[1]):
            unknown = ~self.labels[:, c]
            count = int(0.9 * int(unknown.sum()) / (self.epochs - start))
            free = (unknown & self.pseudo[:, c].isnan()).nonzero().flatten()
            lowest = free[predictions[free, c].argsort()[:count]]
            self.pseudo[lowest, c] = predictions[lowest, c]


class LargeLossForGood(State):
    """LL-Cp: AN, but after the first epoch the largest losses become positives for good."""

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        self.register_buffer("made", torch.zeros(labels.shape, dtype=torch.bool))

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        loss, largest = self._largest(s, z, context)
        return torch.where(largest, -F.logsigmoid(s), loss).mean()

    def observe(self, s: Tensor, context: Context) -> None:
        largest = self._largest(s, self.rows(self.labels, context, s), context)[1]
        self.keep(self.made, context, self.rows(self.made, context, s) | largest)

    def _largest(self, s: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        positive = z.bool() | self.rows(self.made, context, s)
        loss = F.binary_cross_entropy_with_logits(s, positive.to(s), reduction="none")
        after_first = min(1, int(context.epoch))
        return loss, of.largest_losses(loss, positive, after_first, self.settings.rejected)


class AssetRegularisation(State):
    """AN + alpha * BCE(s, P): agreement with a slow average P of the image's predictions.

    It is the published loss nearest to CL. Their asset is a recording, whose clips share P. Ours is
    an image, whose crops share P. P starts at 1 where annotated, else between 0.4 and 0.6, acts at
    once, and P <- (1 - eps) P + eps p after a step: once an epoch. Theirs moves some 40 times. With
    the published eps of 0.001 ours hardly moves, so the league tries 0.05 and 0.3.
    """

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        first = torch.where(self.labels, 1.0, 0.4 + 0.2 * self.random())
        self.register_buffer("averages", first)

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        averages = self.rows(self.averages, context, s).to(s)
        agreement = F.binary_cross_entropy_with_logits(s, averages)
        return of.assume_negative(s, z) + self.settings.asset_weight * agreement

    def observe(self, s: Tensor, context: Context) -> None:
        averages, eps = self.rows(self.averages, context, s), self.settings.asset_step
        self.keep(self.averages, context, (1 - eps) * averages + eps * s.sigmoid())
