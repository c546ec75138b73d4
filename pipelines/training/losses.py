"""The losses of the learned codecs, over a batch of queries and the pool of candidates that they share.

Letters: B queries, P candidates; ``scores`` (B, P) are the codec's, ``teacher`` (B, P) the dense ones, both in the
embedding's units, and ``positive`` (B, P) marks each query's relevant candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["contrastive", "lambda_mrr", "listwise", "margin_mse"]

MASKED = -1e4


def listwise(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``KL(softmax(teacher / t) | softmax(scores / t))``, ListNet's loss less its constant (Distill-VQ)."""
    wanted = functional.log_softmax(teacher / temperature, dim=1)
    got = functional.log_softmax(scores / temperature, dim=1)
    return functional.kl_div(got, wanted, reduction="batchmean", log_target=True)


def lambda_mrr(scores: Tensor, positive: Tensor, temperature: float, cutoff: int) -> Tensor:
    """Return JPQ's pairwise loss, weighted by what a swap changes of the reciprocal ranks (CIKM 2021, eq. 9-11).

    ``sum over i, j of |1/p_i - 1/p_j| log(1 + exp((s_j - s_i) / t))``, `i` relevant and `j` not, divided by the number
    of relevant candidates. The ranks are those in the pool; negatives beyond rank `cutoff` do not count, and a relevant
    candidate beyond it has ``1/p = 0``.
    """
    with torch.no_grad():
        ranks = scores.argsort(dim=1, descending=True).argsort(dim=1) + 1
        gains = torch.where(ranks <= cutoff, 1 / ranks, torch.zeros(()))
    query, relevant = positive.nonzero(as_tuple=True)
    if not len(query):
        return scores.sum() * 0
    negative = ~positive[query] & (ranks[query] <= cutoff)
    weights = (gains[query, relevant][:, None] - gains[query]).abs() * negative
    losses = functional.softplus((scores[query] - scores[query, relevant][:, None]) / temperature)
    return (weights * losses).sum() / len(query)


def contrastive(scores: Tensor, positive: Tensor, temperature: float, hardest: int | None = None) -> Tensor:
    """Return the InfoNCE loss of each relevant candidate against the irrelevant ones (MoPQ, eq. 8; RepCONC, eq. 5).

    Other relevant candidates are no negatives. With `hardest`, only so many negatives of the highest scores count.
    """
    query, relevant = positive.nonzero(as_tuple=True)
    if not len(query):
        return scores.sum() * 0
    logits = scores / temperature
    negatives = logits.masked_fill(positive, MASKED)[query]
    if hardest is not None and hardest < negatives.shape[1]:
        negatives = negatives.topk(hardest, dim=1).values
    own = logits[query, relevant][:, None]
    first = torch.zeros(len(query), dtype=torch.long, device=own.device)
    return functional.cross_entropy(torch.cat([own, negatives], dim=1), first)


def margin_mse(scores: Tensor, places: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error of score margins below each query's best candidate (GPL, Wang et al. 2022).

    Parameters
    ----------
    scores : Tensor (B, P)
    places : Tensor (B, m) of int64
        Where each query's judged candidates lie in the pool; -1 where there is none.
    teacher : Tensor (B, m)
        What the teacher gives them, in the scores' units.
    """
    known = places >= 0
    teacher = teacher.masked_fill(~known, -torch.inf)
    got = scores.gather(1, places.clamp_min(0))
    best = teacher.argmax(dim=1, keepdim=True)
    wanted = teacher.gather(1, best) - teacher
    errors = (got.gather(1, best) - got - wanted.masked_fill(~known, 0.0)) ** 2
    return (errors * known).sum() / known.sum().clamp_min(1)
