"""The plain form of each loss of the five papers, to be read beside its equation: dense matrices, autograd, no tiles.

Nothing that makes a result imports this file: tests hold the losses that train to these forms, and `udaseg bench
losses` measures against them. Equations (B1) .. (C4): docs/methods/{bcl,plca,sepico,pipa,cluda}.md. A label of 255 is no class.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.classes import IGNORE

LOG_EPS = 1e-10  # in PLCA's divergence, as released: a probability may round to 0


# --- BCL: B pairs, K classes, D channels, h w feature map, H W labels -------------------------------------------------


def bcl_prototypes(features: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(B1): mean feature (B, K, D) of each class, and which classes occur (B, K).

    Args:
        features: (B, D, h, w).
        label: (B, h, w).
        classes: K.
    """
    member = label.flatten(1)[..., None] == torch.arange(classes, device=label.device)  # B x hw x K
    number = member.sum(dim=1)
    sums = torch.einsum("bdn,bnk->bkd", features.flatten(2), member.to(features.dtype))
    return sums / number.clamp(min=1)[..., None], number > 0


def bcl_contrast(features: Tensor, label: Tensor, vectors: Tensor, present: Tensor, temperature: float) -> Tensor:
    """(B2), (B3): mean over anchors of -log softmax_c(cos(f(i), rho(c)) / tau) at c = y(i), then over pairs.

    Args:
        features: (B, D, h, w) of one domain.
        label: (B, H, W) of the same domain, 255 where the class of a pixel is not in both.
        vectors: (B, K, D) prototypes of the other domain.
        present: (B, K) which of them there are.
        temperature: tau.
    """
    similarity = torch.einsum("bdhw,bkd->bkhw", F.normalize(features, dim=1), F.normalize(vectors, dim=2))
    return bcl_cross_entropy((similarity / temperature).masked_fill(~present[..., None, None], -torch.inf), label)


def bcl_cross_entropy(scores: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of (B, K, h, w) scores at label size, mean over labelled pixels, then images: (B10) unabridged."""
    upsampled = F.interpolate(scores, size=label.shape[1:], mode="nearest")
    each = F.cross_entropy(upsampled, label, ignore_index=IGNORE, reduction="none")
    return (each.sum(dim=(1, 2)) / (label != IGNORE).sum(dim=(1, 2)).clamp(min=1)).mean()


# --- PLCA: B pairs, N and M positions, D channels, C classes, H W labels ----------------------------------------------


def plca_cosine(x: Tensor, y: Tensor) -> Tensor:
    """(L1): similarity (B, N, M) of features (B, N, D) and (B, M, D)."""
    return F.normalize(x, dim=2) @ F.normalize(y, dim=2).mT


def plca_divergence(p: Tensor, q: Tensor) -> Tensor:
    """(L2): -KL(p_i || q_j), (B, N, M), of class probabilities (B, N, C) and (B, M, C)."""
    log_p, log_q = (p + LOG_EPS).log(), (q + LOG_EPS).log()
    return p @ log_q.mT - (p * log_p).sum(dim=2, keepdim=True)


def plca_standardised(similarity: Tensor) -> Tensor:
    """(L3): rows of (B, N, M) with mean 0 and standard deviation 1, which take no gradient."""
    mean, std = similarity.mean(dim=2, keepdim=True), similarity.std(dim=2, keepdim=True)
    return (similarity - mean.detach()) / std.detach()


def plca_aggregation(x: Tensor, scores: Tensor, alpha: float) -> Tensor:
    """(L4), (L5): (1 - alpha) x_j + alpha sum_k softmax_k(scores_jk) x_k.

    Args:
        x: (B, M, D) features, or (B, M, C) probabilities.
        scores: (B, M, M), standardised cosines of features, -KL of probabilities.
        alpha: share of the mean.
    """
    return (1 - alpha) * x + alpha * scores.softmax(dim=2) @ x


def plca_association(there: Tensor, back: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(L6), (L7): A = mean over I of -log p_ij* - log q_j*i*, 0 where I is empty.

    Args:
        there: (B, N, M) similarity of each source position to the target's.
        back: (B, M, N) the way back.
        label: (B, N) of the source.

    Returns:
        A, and (B, N) each: I as a mask, j*, i*.
    """
    log_p, log_q = (plca_standardised(similarity).log_softmax(dim=2) for similarity in (there, back))
    first, j = log_p.max(dim=2)
    second, i = log_q.max(dim=2)
    home = i.gather(1, j)
    kept = (label != IGNORE) & (label.gather(1, home) == label)
    loss = -first - second.gather(1, j)
    return loss[kept].sum() / kept.sum().clamp(min=1), kept, j, home


def plca_smoothing(logits: Tensor, limit: float) -> Tensor:
    """(L8), LSR: mean over positions of sg(l / limit - 1) l, with l = -(1/C) sum_c log p_c, of (B, C, h, w) logits."""
    length = -logits.softmax(dim=1).log().mean(dim=1)
    return ((length / limit - 1).detach() * length).mean()


def plca_lovasz(probabilities: Tensor, label: Tensor) -> Tensor:
    """(L9): mean over the classes that occur of sum_k e_k (J_k - J_(k-1)), errors e in falling order.

    Args:
        probabilities: (B, C, H, W).
        label: (B, H, W), not all of it 255.
    """
    valid = label.flatten() != IGNORE
    y, p = label.flatten()[valid], probabilities.transpose(0, 1).flatten(1)[:, valid]
    losses = []
    for c in y.unique().tolist():
        own = (y == c).to(p.dtype)
        errors, order = (own - p[c]).abs().sort(descending=True)
        found, others = own[order].cumsum(dim=0), (1 - own[order]).cumsum(dim=0)
        jaccard = 1 - (own.sum() - found) / (own.sum() + others)
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean()


# --- SePiCo: N cells, A embedding width, C classes, M keys of a bank, t temperature -----------------------------------


def sepico_statistics(
    key: Tensor, label: Tensor, number: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(S3): number of cells (C,), mean (C, A) and variance (C, A) of each class with a batch added.

    Args:
        key: (N, A) embeddings of the batch.
        label: (N,).
        number, mean, variance: before the batch.
    """
    member = (label[:, None] == torch.arange(len(mean), device=label.device)).to(key.dtype)[..., None]  # N x C x 1
    n = member.sum(dim=0)
    m = (key[:, None] * member).sum(dim=0) / n.clamp(min=1)
    v = ((key[:, None] - m) * member).square().sum(dim=0) / n.clamp(min=1)
    w = n / (n + number[:, None]).clamp(min=1)
    new_variance = (1 - w) * variance + w * v + w * (1 - w) * (mean - m).square()
    return number + n[:, 0], (1 - w) * mean + w * m, new_variance


def sepico_proto(q: Tensor, label: Tensor, mean: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """(S5), ProtoCL: mean over anchors of -q.mu_y/t + log sum_c exp(q.mu_c/t).

    Args:
        q: (N, A) embeddings.
        label: (N,).
        mean: (C, A) mu.
        seen: (C,) the classes that have one; only they compete and have anchors.
        temperature: t.
    """
    q, y = _anchors(q, label, seen)
    similarity = q @ mean.T / temperature
    return (similarity[:, seen].logsumexp(dim=1) - similarity.gather(1, y[:, None])[:, 0]).mean()


def sepico_dist(q: Tensor, label: Tensor, mean: Tensor, variance: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """(S7), DistCL: mean over anchors of -q.mu_y/t + log sum_c exp(q.mu_c/t + q'Sigma_c q/(2t^2)).

    `variance` is (C, A), the diagonals of Sigma; all else as for ProtoCL.
    """
    q, y = _anchors(q, label, seen)
    similarity = q @ mean.T / temperature
    spread = (q[:, None].square() * variance).sum(dim=2) / (2 * temperature**2)  # of N x C x A
    return ((similarity + spread)[:, seen].logsumexp(dim=1) - similarity.gather(1, y[:, None])[:, 0]).mean()


def sepico_bank(q: Tensor, label: Tensor, bank: Tensor, length: Tensor, temperature: float) -> Tensor:
    """(S6), BankCL: mean over anchors and own keys of softplus(log Z - q.k_ym/t), Z = sum_c!=y exp(q.mean_m k_cm/t).

    Args:
        q: (N, A) embeddings.
        label: (N,).
        bank: (C, M, A) keys; those beyond the length are zero.
        length: (C,) keys that each class has; one without any does not compete and has no anchors.
        temperature: t.
    """
    q, y = _anchors(q, label, length > 0)
    similarity = torch.einsum("na,cma->ncm", q, bank) / temperature
    centre = similarity.sum(dim=2) / length.clamp(min=1)  # N x C
    competes = (length > 0) & (y[:, None] != torch.arange(len(bank), device=y.device))
    log_z = centre.masked_fill(~competes, -torch.inf).logsumexp(dim=1, keepdim=True)
    own = similarity[torch.arange(len(y), device=y.device), y]  # N x M
    is_key = torch.arange(bank.shape[1], device=y.device) < length[y, None]
    return ((F.softplus(log_z - own) * is_key).sum(dim=1) / length[y]).mean()


def sepico_regulariser(q: Tensor, label: Tensor, mean: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """(S8): sum_c log softmax(Q.mu/t)_c / (C log C), Q the mean of the anchors, C > 1 the number of seen classes."""
    centre = _anchors(q, label, seen)[0].mean(dim=0)
    log_p = (mean[seen] @ centre / temperature).log_softmax(dim=0)
    return log_p.sum() / (len(log_p) * math.log(len(log_p)))


def _anchors(q: Tensor, label: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The cells with a class that something stands for, and their classes; there must be one."""
    chosen = (label != IGNORE) & seen[label.clamp(max=len(seen) - 1)]
    return q[chosen], label[chosen]


# --- PiPa: A anchors, N cells of a crop, M keys, D embedding width, B images ------------------------------------------


def pipa_pixel(embedding: Tensor, label: Tensor, valid: Tensor, temperature: float, base_temperature: float) -> Tensor:
    """(P3): tau/tau_b times the mean, over anchors i with a positive, of 1/n_i sum over P(i) of the pair losses.

    Args:
        embedding: (A, D), unit length.
        label: (A,).
        valid: (A,) which places hold an anchor.
        temperature, base_temperature: tau and tau_b.
    """
    e, (positive, negative) = embedding[valid], _pairs(label[valid])
    loss = _pair_loss(e @ e.T / temperature, negative)
    each = _mean_over_positives(loss, positive)
    return temperature / base_temperature * each[positive.any(dim=1)].mean()


def pipa_patch(
    query: Tensor, positive: Tensor, tag: Tensor, weight: Tensor, keys: Tensor, key_tag: Tensor, temperature: float
) -> Tensor:
    """One sum of (P9): sum of weight times (P8), -log softmax(<f1, f2>/tau, <f1, b_m>/tau ..) at the first.

    Args:
        query: (B, N, D) f1, unit length; the only side with gradient.
        positive: (B, N, D) f2, the same places in the other view.
        tag: (B, N) predicted class c1.
        weight: (B, N) the mask M1 over its sum.
        keys: (1 or B, M, D) b.
        key_tag: (1 or B, M) their classes, -1 where the bank is still empty; a key of the query's class is no negative.
        temperature: tau.
    """
    own = (query * positive.detach()).sum(dim=2, keepdim=True) / temperature
    negative = (tag[..., None] != key_tag[:, None]) & (key_tag >= 0)[:, None]
    others = (query @ keys.detach().mT / temperature).masked_fill(~negative, -torch.inf)
    return -(torch.cat([own, others], dim=2).log_softmax(dim=2)[..., 0] * weight).sum()


# --- CLUDA: N positions, D channels -----------------------------------------------------------------------------------


def cluda(features: Tensor, label: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
    """(C2): mean over i of 1/n_i sum over P(i) of w_i w_j l_ij.

    Args:
        features: (N, D), of any length.
        label: (N,), not all of it 255.
        weight: (N,) w.
        temperature: t.
    """
    valid = label != IGNORE
    f, w = F.normalize(features[valid], dim=1), weight[valid]
    positive, negative = _pairs(label[valid])
    loss = _pair_loss(f @ f.T / temperature, negative)
    return _mean_over_positives(w[:, None] * w * loss, positive).mean()


def cluda_two_resolutions(
    context: Tensor,
    detail: Tensor,
    label: Tensor,
    weight: Tensor,
    blend: Tensor,
    inside: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """(C4): half the mean over i of 1/n_i sum over P(i) of w_i w_j (W_ij l_ij + (1 - W_ij) l'_ij); W_ij of (C3).

    Args:
        context, detail: (N, D), of any length; detail is 0 outside the crop.
        label, weight: as for one resolution.
        blend: (N,) a.
        inside: (N,) the crop mask m.
    """
    valid = label != IGNORE
    low, high = F.normalize(context[valid], dim=1), F.normalize(detail[valid], dim=1)
    w, a, m = weight[valid], blend[valid], inside[valid]
    positive, negative = _pairs(label[valid])
    within = _pair_loss(low @ low.T / temperature, negative)
    across = _pair_loss(low @ high.T / temperature, negative)
    share = a[:, None] * a * m[:, None]  # W_ij = a_i a_j m_i
    return _mean_over_positives(w[:, None] * w * (share * within + (1 - share) * across), positive).mean() / 2


def _pairs(label: Tensor) -> tuple[Tensor, Tensor]:
    """P(i) and N(i) as masks (N, N): the others of the same class, and those of other classes."""
    same = label[:, None] == label
    return same & ~torch.eye(len(label), dtype=torch.bool, device=label.device), ~same


def _pair_loss(similarity: Tensor, negative: Tensor) -> Tensor:
    """(C1), and what (P3) adds up: l_ij = -log(e^s_ij / (e^s_ij + sum over N(i) of e^s_in)), (N, N)."""
    e = similarity.exp()
    return -(e / (e + (e * negative).sum(dim=1, keepdim=True))).log()


def _mean_over_positives(loss: Tensor, positive: Tensor) -> Tensor:
    """(N,) 1/n_i sum over P(i); 0 where there is none."""
    return (loss * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
