"""The experts: each token goes to the experts that the gate chose for it, and to no other. No token is dropped, whatever
the load.

Rows are sorted by expert, so that an expert's rows lie together and its products are plain matrix products. The whole
dispatch is one autograd.Function: by plain autograd each expert's slice would have a backward of full size.
Gradients are returned, not written into .grad, so accumulation, hooks, retain_graph and double use in one graph work
as usual in torch. That costs fresh memory each step, which the trainer's allocator keeps (docs/decisions.md).

Shapes: T tokens, D model width, H expert width, E experts, K places for experts per token, N rows in order of
expert (T * K where no place is empty), n the rows of one expert. `x_TD` is (T, D).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.backends import mkldnn
from torch.nn import functional as F

from moe_core.nn.once import only_once

# On a CPU, measured on AMD EPYC; others were not:
SMALL = 2**18  # hidden activations, up to which calls from Python cost more than the cache gives
MANY, WIDE = 512, 2**18  # rows an expert, and numbers in a matrix, from which oneDNN is faster than torch.mm
STRIDE = 32  # rows

relu_backward = torch.ops.aten.threshold_backward.grad_input
bag_weights_backward = torch.ops.aten._embedding_bag_per_sample_weights_backward  # grad . row, without gathering grads


def mixture(
    x_TD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counts_E: Tensor,
    w1_EDH: Tensor,
    w2_EDH: Tensor,
    gaps: bool = False,
) -> Tensor:
    """(T, D): the sum over a token's k experts of weight * w2 relu(w1 x). No row is dropped, no other expert is evaluated.

    counts_E are the selections of each expert in experts_TK. gaps=True says that experts_TK may hold E, one past the last
    expert, where a place is empty: no row is computed for it, its weight counts for nothing and gets no gradient, and
    counts_E leaves it out; a token without any expert gets 0. Without gaps=True there must be none, which is not checked.
    Runs in autocast's precision where that is on, else in x's. create_graph=True is refused (once.py); reference_mixture is for
    gradients of gradients.
    """
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        x_TD = x_TD.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return mixture(x_TD, weights_TK, experts_TK, counts_E, w1_EDH, w2_EDH, gaps)
    weights_TK, w1_EDH, w2_EDH = (t.to(x_TD.dtype) for t in (weights_TK, w1_EDH, w2_EDH))
    # The grouped kernels want rows of whole 16 bytes and at most 32 bits; anything else takes the loop.
    itemsize = x_TD.dtype.itemsize
    fits = itemsize <= 4 and all(width * itemsize % 16 == 0 for width in w1_EDH.shape[1:])
    # On a GPU they never wait for the counts in 16 bits; in 32 torch's kernel waits at each product, our loop once.
    never_waits = fits and device == "cuda" and itemsize == 2
    filled = experts_TK.numel() if not gaps else None if never_waits else int(counts_E.sum())
    grouped = never_waits or (fits and device != "cuda" and filled * w1_EDH.shape[2] <= SMALL)
    products = Grouped if grouped else Fused if fused_pays(x_TD, filled, w1_EDH) else OneByOne
    return Mixture.apply(x_TD, weights_TK, experts_TK, counts_E, w1_EDH, w2_EDH, products, filled)


def fused_pays(x_TD: Tensor, rows: int, w_EDH: Tensor) -> bool:
    """Whether Fused is faster than OneByOne, for so many rows in all (measured)."""
    has = mkldnn.is_available() and mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    can = has and x_TD.dtype == torch.float32 and x_TD.device.type == "cpu"
    return can and rows >= MANY * w_EDH.shape[0] and w_EDH[0].numel() >= WIDE


class Mixture(torch.autograd.Function):
    """Sort by expert, two products with a relu between, and back into token order, weighted.

    products: how the experts are multiplied. filled: how many places of experts_TK are not empty; None: the host does not know.
    """

    @staticmethod
    def forward(ctx, x_TD, weights_TK, experts_TK, counts_E, w1_EDH, w2_EDH, products, filled):
        empty_N1 = None
        order_N = in_order(experts_TK, w1_EDH.shape[0])[:filled]
        if filled is None:
            weights_TK = weights_TK.masked_fill(experts_TK == w1_EDH.shape[0], 0)
            empty_N1 = (torch.arange(order_N.numel(), device=x_TD.device) >= counts_E.sum())[:, None]
        place_N, row_N, start_T = bags(order_N, *experts_TK.shape)
        token_N = order_N.div(experts_TK.shape[1], rounding_mode="trunc")
        x_ND = rows_of(x_TD.detach(), token_N)
        rows = counts_E.cumsum(0, dtype=torch.int32) if products is Grouped else counts_E.tolist()
        hidden, out_ND = products.forward(x_ND, w1_EDH, w2_EDH, rows)
        if empty_N1 is not None:  # the grouped kernel left these rows unwritten: whatever was in that memory
            out_ND.masked_fill_(empty_N1, 0)
        ctx.products, ctx.rows = products, rows
        ctx.save_for_backward(
            *(weights_TK, order_N, token_N, place_N, row_N, start_T, empty_N1),
            *(x_ND, out_ND, w1_EDH, w2_EDH, *hidden),
        )
        weights_N = weights_TK.detach().flatten()
        return sum_of_bags(out_ND, row_N, start_T, weights_N if place_N is None else weights_N.index_select(0, place_N))

    @staticmethod
    @only_once
    def backward(ctx, grad_TD):
        weights_TK, order_N, token_N, place_N, row_N, start_T, empty_N1, *saved = ctx.saved_tensors
        x_ND, out_ND, w1_EDH, w2_EDH, *hidden = saved
        weights_N = weights_TK.flatten().index_select(0, order_N)
        if grad_TD.device.type == "cpu":
            bag_N = torch.arange(row_N.numel()) if place_N is None else place_N
            bag_N = bag_N.div(weights_TK.shape[1], rounding_mode="trunc")
            weights_grad_N = bag_weights_backward(grad_TD, out_ND, row_N, start_T, bag_N, 0)
            grad_ND = rows_of(grad_TD, token_N, weights_N)
        else:  # where torch has no such kernel for bfloat16
            place_N, grad_ND = order_N, grad_TD.index_select(0, token_N)
            weights_grad_N = torch.bmm(grad_ND[:, None], out_ND[:, :, None]).flatten()
            grad_ND *= weights_N[:, None]
        if place_N is not None:
            weights_grad_N = weights_TK.new_zeros(weights_TK.numel()).index_copy_(0, place_N, weights_grad_N)
        x_grad_ND, w1_grad_EDH, w2_grad_EDH = ctx.products.backward(grad_ND, x_ND, hidden, w1_EDH, w2_EDH, ctx.rows)
        if empty_N1 is not None:
            x_grad_ND.masked_fill_(empty_N1, 0)
        x_grad_TD = sum_of_bags(x_grad_ND, row_N, start_T)
        return x_grad_TD, weights_grad_N.view(weights_TK.shape), None, None, w1_grad_EDH, w2_grad_EDH, None, None


def in_order(experts_TK: Tensor, num_experts: int) -> Tensor:
    """(T * K) the places of experts_TK by expert, and by token where the expert is the same; the empty places are last."""
    expert_N = experts_TK.flatten()
    if expert_N.device.type == "cpu" and num_experts < 2**15:  # by radix, in a fifth of the time
        return torch.from_numpy(expert_N.short().numpy().argsort(kind="stable"))
    return expert_N.int().sort(stable=True).indices  # int32 sorts faster than int64


def bags(order_N: Tensor, tokens: int, k: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """The way back from rows to tokens: the places in token order (N,), the row of each (N,), and each token's first (T,).

    A token's rows are its bag, k of them or fewer where places are empty. The places are None where none is empty: 0, 1, 2 …
    """
    start_T = torch.arange(0, tokens * k, k, device=order_N.device)
    if order_N.numel() < tokens * k:
        place_N, row_N = order_N.sort()
        return place_N, row_N, torch.searchsorted(place_N, start_T)
    place_N = torch.arange(tokens * k, device=order_N.device)
    return None, torch.empty_like(order_N).index_copy_(0, order_N, place_N), start_T


def sum_of_bags(rows_ND: Tensor, row_N: Tensor, start_T: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """(T, D) each bag's sum of weight * row, in a fixed order and without atomics.

    F.embedding_bag does the same; on a small batch its checks take longer than the sums.
    """
    return torch.embedding_bag(rows_ND, row_N, start_T, False, 0, False, weights_N)[0]


def rows_of(x_TD: Tensor, token_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """(N, D) weight * row of each token; on a CPU as bags of one, which is one pass and faster than index_select."""
    if x_TD.device.type == "cpu" and x_TD.dtype == torch.float32:
        return sum_of_bags(x_TD, token_N, torch.arange(token_N.numel()), weights_N)
    x_ND = x_TD.index_select(0, token_N)
    return x_ND if weights_N is None else x_ND.mul_(weights_N[:, None])


class OneByOne:
    """The products expert by expert, for a CPU: what one expert needs stays in the cache. rows: the list of counts.

    backward overwrites grad_ND with the gradient of x_ND.
    """

    @staticmethod
    def forward(x_ND, w1_EDH, w2_EDH, rows):
        hidden_NH, out_ND = x_ND.new_empty(x_ND.shape[0], w1_EDH.shape[2]), torch.empty_like(x_ND)
        for n, x_nD, hidden_nH, out_nD, w1_DH, w2_HD in zip(
            rows, x_ND.split(rows), hidden_NH.split(rows), out_ND.split(rows), w1_EDH, w2_EDH.mT, strict=True
        ):
            if n:
                torch.mm(torch.mm(x_nD, w1_DH, out=hidden_nH).relu_(), w2_HD, out=out_nD)
        return [hidden_NH], out_ND

    @staticmethod
    def backward(grad_ND, x_ND, hidden, w1_EDH, w2_EDH, rows):
        [hidden_NH] = hidden
        w1_grad_EDH, w2_grad_EDH = torch.empty_like(w1_EDH), torch.empty_like(w2_EDH)
        scratch = hidden_NH.new_empty(max(rows), hidden_NH.shape[1])
        by_expert = zip(
            *(rows, grad_ND.split(rows), x_ND.split(rows), hidden_NH.split(rows)),
            *(w1_EDH.mT, w2_EDH, w1_grad_EDH, w2_grad_EDH),
            strict=True,
        )
        for n, grad_nD, x_nD, hidden_nH, w1_HD, w2_DH, w1_grad_DH, w2_grad_DH in by_expert:
            if n == 0:  # not evaluated, so nothing has been written
                w1_grad_DH.zero_()
                w2_grad_DH.zero_()
                continue
            hidden_grad_nH = torch.mm(grad_nD, w2_DH, out=scratch[:n])
            relu_backward(hidden_grad_nH, hidden_nH, 0, grad_input=hidden_grad_nH)
            torch.mm(grad_nD.T, hidden_nH, out=w2_grad_DH)
            torch.mm(x_nD.T, hidden_grad_nH, out=w1_grad_DH)
            torch.mm(hidden_grad_nH, w1_HD, out=grad_nD)  # no longer needed; fresh memory is slow
        return grad_ND, w1_grad_EDH, w2_grad_EDH


class Fused:
    """The products expert by expert through oneDNN, for a CPU and many rows an expert: there it is faster than torch.mm, and its
    relu costs nothing. rows: the list of counts.

    backward overwrites grad_ND with the gradient of x_ND. oneDNN writes code for each number of rows that it has not seen, which takes
    as long as the product. So it gets a multiple of STRIDE: an expert's rows and some of its neighbours', whose results are left out.
    """

    @staticmethod
    def forward(x_ND, w1_EDH, w2_EDH, rows):
        hidden, out_ND = [], torch.empty_like(x_ND)
        for (window, own, inside), w1_DH, w2_DH in zip(windows(rows), w1_EDH, w2_EDH, strict=True):
            hidden.append(linear(x_ND[window], w1_DH.T, "relu"))
            out_ND[own] = linear(hidden[-1], w2_DH)[inside]
        return hidden, out_ND

    @staticmethod
    def backward(grad_ND, x_ND, hidden, w1_EDH, w2_EDH, rows):
        w1_grad_EDH, w2_grad_EDH = torch.empty_like(w1_EDH), torch.empty_like(w2_EDH)
        by_expert = zip(windows(rows), hidden, w1_EDH, w2_EDH, w1_grad_EDH, w2_grad_EDH, strict=True)
        for (window, own, inside), hidden_mH, w1_DH, w2_DH, w1_grad_DH, w2_grad_DH in by_expert:
            hidden_grad_mH = linear(grad_ND[window], w2_DH.T)
            relu_backward(hidden_grad_mH, hidden_mH, 0, grad_input=hidden_grad_mH)
            torch.mm(grad_ND[own].T, hidden_mH[inside], out=w2_grad_DH)
            torch.mm(x_ND[own].T, hidden_grad_mH[inside], out=w1_grad_DH)
            grad_ND[own] = linear(hidden_grad_mH, w1_DH)[inside]
        return grad_ND, w1_grad_EDH, w2_grad_EDH


def windows(rows: list[int]) -> Iterator[tuple[slice, slice, slice]]:
    """For each expert: the rows that are multiplied with it, its own rows, and these as counted within the former."""
    filled, begin = sum(rows), 0
    for n in rows:
        size = min(-(-n // STRIDE) * STRIDE, filled)
        start = min(begin, filled - size)
        yield slice(start, start + size), slice(begin, begin + n), slice(begin - start, begin - start + n)
        begin += n


def linear(x_nD: Tensor, w_HD: Tensor, then: str = "none") -> Tensor:
    """(n, H) x w^T by oneDNN, which F.linear does not ask. then="relu": relu(x w^T)."""
    return torch.ops.mkldnn._linear_pointwise(x_nD, w_HD, None, then, [], "")


class Grouped:
    """The products of all experts in one kernel each, for a GPU (no wait for the counts) and for small batches. rows: where the rows
    of each expert end."""

    @staticmethod
    def forward(x_ND, w1_EDH, w2_EDH, rows):
        hidden_NH = F.grouped_mm(x_ND, w1_EDH, offs=rows).relu_()
        return [hidden_NH], F.grouped_mm(hidden_NH, w2_EDH.mT, offs=rows)

    @staticmethod
    def backward(grad_ND, x_ND, hidden, w1_EDH, w2_EDH, rows):
        [hidden_NH] = hidden
        hidden_grad_NH = F.grouped_mm(grad_ND, w2_EDH, offs=rows)
        relu_backward(hidden_grad_NH, hidden_NH, 0, grad_input=hidden_grad_NH)
        w2_grad_EDH = F.grouped_mm(grad_ND.T, hidden_NH, offs=rows)
        w1_grad_EDH = F.grouped_mm(x_ND.T, hidden_grad_NH, offs=rows)
        return F.grouped_mm(hidden_grad_NH, w1_EDH.mT, offs=rows), w1_grad_EDH, w2_grad_EDH


def reference_mixture(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, w1_EDH: Tensor, w2_EDH: Tensor) -> Tensor:
    """The same by plain autograd, one expert after the other: for gradients of gradients, and to compare with."""
    y_TD = torch.zeros_like(x_TD)
    for e in range(w1_EDH.shape[0]):  # the number of experts itself marks an empty place
        token_n, rank_n = (experts_TK == e).nonzero(as_tuple=True)
        out_nD = (x_TD[token_n] @ w1_EDH[e]).relu() @ w2_EDH[e].T
        y_TD = y_TD.index_add(0, token_n, out_nD * weights_TK[token_n, rank_n, None])
    return y_TD
