"""The experts: each token goes to the experts that the gate chose for it, and to no other. Dropless, whatever the load.

Rows are sorted by expert, so that an expert's rows lie together and its products are plain matrix products. The whole
dispatch is one autograd.Function: by plain autograd each expert's slice would have a backward of full size.
Gradients are returned, not written into .grad, so accumulation, hooks, retain_graph and double use in one graph are
torch's own affair. That costs fresh memory each step, which the trainer's allocator keeps (docs/decisions.md).

Shapes: T tokens, D model width, H expert width, E experts, K experts per token, N = T * K rows in order of expert,
n the rows of one expert. `x_TD` is (T, D).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SMALL = 2**20  # hidden activations; up to here on a CPU calls from Python cost more than the cache gives (measured)

relu_backward = torch.ops.aten.threshold_backward


def mixture(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, counts_E: Tensor, w1_EDH: Tensor, w2_EDH: Tensor
) -> Tensor:
    """(T, D): the sum over a token's k experts of weight * w2 relu(w1 x). No row is dropped, no other expert is evaluated.

    counts_E are the selections of each expert in experts_TK. Runs in autocast's precision where that is on, else in x's.
    Differentiable once; reference_mixture is for gradients of gradients.
    """
    device = x_TD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
    with torch.autocast(device, enabled=False):
        x_TD, weights_TK, w1_EDH, w2_EDH = (t.to(dtype) for t in (x_TD, weights_TK, w1_EDH, w2_EDH))
        # The grouped kernels want rows of whole 16 bytes and at most 32 bits; anything else takes the loop.
        fits = dtype.itemsize <= 4 and all(width * dtype.itemsize % 16 == 0 for width in w1_EDH.shape[1:])
        small = experts_TK.numel() * w1_EDH.shape[2] <= SMALL
        return Mixture.apply(
            x_TD, weights_TK, experts_TK, counts_E, w1_EDH, w2_EDH, fits and (device == "cuda" or small)
        )


class Mixture(torch.autograd.Function):
    """Sort by expert, two products with a relu between, and back into token order, weighted. grouped: one kernel for all."""

    @staticmethod
    def forward(ctx, x_TD, weights_TK, experts_TK, counts_E, w1_EDH, w2_EDH, grouped):
        (tokens, k), products = experts_TK.shape, Grouped if grouped else OneByOne
        order_N = experts_TK.flatten().argsort(stable=True)
        place_TK = (
            torch.empty_like(order_N).scatter_(0, order_N, torch.arange(tokens * k, device=x_TD.device)).view(tokens, k)
        )
        x_ND = x_TD.index_select(0, order_N // k)
        rows = counts_E.cumsum(0, dtype=torch.int32) if grouped else counts_E.tolist()
        hidden_NH, out_ND = products.forward(x_ND, w1_EDH, w2_EDH, rows)
        ctx.products, ctx.rows, ctx.k = products, rows, k
        ctx.save_for_backward(weights_TK, order_N, place_TK, x_ND, hidden_NH, out_ND, w1_EDH, w2_EDH)
        # A bag of k rows for each token: a weighted sum in a fixed order, without atomics.
        return F.embedding_bag(place_TK, out_ND, per_sample_weights=weights_TK, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD):
        weights_TK, order_N, place_TK, x_ND, hidden_NH, out_ND, w1_EDH, w2_EDH = ctx.saved_tensors
        grad_ND = grad_TD.index_select(0, order_N // ctx.k)
        weights_grad_TK = (out_ND * grad_ND).sum(1)[place_TK]
        grad_ND *= weights_TK.flatten()[order_N, None]
        x_grad_ND, w1_grad_EDH, w2_grad_EDH = ctx.products.backward(grad_ND, x_ND, hidden_NH, w1_EDH, w2_EDH, ctx.rows)
        x_grad_TD = F.embedding_bag(place_TK, x_grad_ND, mode="sum")
        return x_grad_TD, weights_grad_TK, None, None, w1_grad_EDH, w2_grad_EDH, None


class OneByOne:
    """The products expert by expert, for a CPU: what one expert needs stays in the cache. rows: the list of counts."""

    @staticmethod
    def forward(x_ND, w1_EDH, w2_EDH, rows):
        hidden_NH, out_ND = x_ND.new_empty(x_ND.shape[0], w1_EDH.shape[2]), torch.empty_like(x_ND)
        for n, x_nD, hidden_nH, out_nD, w1_DH, w2_HD in zip(
            rows, x_ND.split(rows), hidden_NH.split(rows), out_ND.split(rows), w1_EDH, w2_EDH.mT, strict=True
        ):
            if n:
                torch.mm(torch.mm(x_nD, w1_DH, out=hidden_nH).relu_(), w2_HD, out=out_nD)
        return hidden_NH, out_ND

    @staticmethod
    def backward(grad_ND, x_ND, hidden_NH, w1_EDH, w2_EDH, rows):
        x_grad_ND = torch.empty_like(x_ND)
        w1_grad_EDH, w2_grad_EDH = torch.empty_like(w1_EDH), torch.empty_like(w2_EDH)
        scratch = hidden_NH.new_empty(max(rows), hidden_NH.shape[1])
        by_expert = zip(
            *(rows, grad_ND.split(rows), x_ND.split(rows), hidden_NH.split(rows), x_grad_ND.split(rows)),
            *(w1_EDH.mT, w2_EDH, w1_grad_EDH, w2_grad_EDH),
            strict=True,
        )
        for n, grad_nD, x_nD, hidden_nH, x_grad_nD, w1_HD, w2_DH, w1_grad_DH, w2_grad_DH in by_expert:
            if n == 0:  # not evaluated, so nothing has been written
                w1_grad_DH.zero_()
                w2_grad_DH.zero_()
                continue
            hidden_grad_nH = torch.mm(grad_nD, w2_DH, out=scratch[:n])
            relu_backward.grad_input(hidden_grad_nH, hidden_nH, 0, grad_input=hidden_grad_nH)
            torch.mm(grad_nD.T, hidden_nH, out=w2_grad_DH)
            torch.mm(x_nD.T, hidden_grad_nH, out=w1_grad_DH)
            torch.mm(hidden_grad_nH, w1_HD, out=x_grad_nD)
        return x_grad_ND, w1_grad_EDH, w2_grad_EDH


class Grouped:
    """The products of all experts in one kernel each, for a GPU (no wait for the counts) and for small batches. rows: where each expert's end."""

    @staticmethod
    def forward(x_ND, w1_EDH, w2_EDH, rows):
        hidden_NH = F.grouped_mm(x_ND, w1_EDH, offs=rows).relu_()
        return hidden_NH, F.grouped_mm(hidden_NH, w2_EDH.mT, offs=rows)

    @staticmethod
    def backward(grad_ND, x_ND, hidden_NH, w1_EDH, w2_EDH, rows):
        hidden_grad_NH = relu_backward(F.grouped_mm(grad_ND, w2_EDH, offs=rows), hidden_NH, 0)
        w2_grad_EDH = F.grouped_mm(grad_ND.T, hidden_NH, offs=rows)
        w1_grad_EDH = F.grouped_mm(x_ND.T, hidden_grad_NH, offs=rows)
        return F.grouped_mm(hidden_grad_NH, w1_EDH.mT, offs=rows), w1_grad_EDH, w2_grad_EDH


def reference_mixture(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, w1_EDH: Tensor, w2_EDH: Tensor) -> Tensor:
    """The same by plain autograd, one expert after the other: for gradients of gradients, and to compare with."""
    y_TD = torch.zeros_like(x_TD)
    for e in experts_TK.unique().tolist():
        token_n, rank_n = (experts_TK == e).nonzero(as_tuple=True)
        out_nD = (x_TD[token_n] @ w1_EDH[e]).relu() @ w2_EDH[e].T
        y_TD = y_TD.index_add(0, token_n, out_nD * weights_TK[token_n, rank_n, None])
    return y_TD
