"""The recurrence of wkv.py over a whole sequence, a chunk of tokens at a time, as products; its gradient written out.

Per head and chunk, rows 1..C, incoming state S_0; G_i = sum of log w_1..i, X_i = G_i - log w_i:
    Q = r e^G,  A = a e^X,  K = k e^-G,  D = b e^-G
    U = (I - P_ab)^-1 (A S_0 + P_ak V),   P_ab, P_ak: strictly lower parts of A D^T, A K^T
    O = Q S_0 + P_rk V + P_rb U,          P_rk, P_rb: lower parts of Q K^T, Q D^T, with the diagonal
    S_C = diag(e^{G_C}) (S_0 + K^T V + D^T U)
Row i of U is what the state held under a_i: a_i^T S_{i-1}. Only U, hence S_C, waits for the chunk before. Exponents
stay within C * 0.6065, RWKV-7's bound on a decay, which fp32 holds for C <= 128; nothing is shifted by what later
tokens say, so that a token's output depends bit by bit on the past alone.

Documents: where one begins inside a chunk, G begins anew, P is filled with zeros across the border, rows after the
first border do not see S_0, and only the last document's rows reach S_C. Masks of fixed shape, so nothing waits for the
host and no product of one document's numbers enters another.

Axes: B batch, S sequence, H heads, N head width (keys and values), C tokens of a chunk, M chunks, Z = B*H,
X = M*B*H, R = 2C: r above a, k above b, v above U.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from chronomoe.model.wkv import exact_products, state_dtype

CHUNK = 64
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Powers of two for the inverse, no longer than fp32's exponents allow."""


def wkv_chunked(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state_BHNN: Tensor,
    *,
    starts_BS: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """What `wkv_recurrent` returns; log_w within [-0.6066, 0]. Differentiable once."""
    if chunk not in CHUNKS:
        raise ValueError(f"chunk must be one of {CHUNKS}, not {chunk}")
    o_BSHN, new_state_BHNN = ChunkedWKV.apply(r, log_w, k, v, a, b, state_BHNN, starts_BS, chunk)
    return o_BSHN, new_state_BHNN


class Documents(NamedTuple):
    """Of the tokens of each chunk, by the number of documents that began in it up to there."""

    same_MB1CC: Tensor
    """Both tokens are of one document."""
    later_MB1C1: Tensor
    """A document began since the chunk did: the incoming state is gone."""
    ended_MB1C1: Tensor
    """A document begins later in the chunk: nothing of this token is in the state that leaves."""


def number_documents(starts_BS: Tensor, chunk: int) -> Documents:
    number_MB1C = in_chunks(starts_BS[..., None, None], chunk)[..., 0].cumsum(dim=-1)
    return Documents(
        number_MB1C[..., :, None] == number_MB1C[..., None, :],
        (number_MB1C > 0)[..., None],
        (number_MB1C < number_MB1C[..., -1:])[..., None],
    )


class Decays(NamedTuple):
    summing_XCC: Tensor
    """1 where the second token's log w counts for the first: G = summing log_w. [C, C] without documents."""
    upto_XCN: Tensor
    """e^G."""
    before_XCN: Tensor
    """e^X."""
    undo_XCN: Tensor
    """e^-G."""


def form_decays(log_w_MBHCN: Tensor, documents: Documents | None, dtype: torch.dtype) -> Decays:
    chunk, width = log_w_MBHCN.shape[-2:]
    log_w_XCN = log_w_MBHCN.to(dtype).reshape(-1, chunk, width)
    summing = torch.ones(chunk, chunk, dtype=dtype, device=log_w_XCN.device).tril()
    if documents is not None:
        same_MBHCC = documents.same_MB1CC.expand(*log_w_MBHCN.shape[:3], -1, -1)
        summing = summing.masked_fill(~same_MBHCC, 0.0).flatten(0, 2)
    sum_XCN = summing @ log_w_XCN
    upto_XCN = sum_XCN.exp()
    return Decays(summing, upto_XCN, sum_XCN.sub_(log_w_XCN).exp_(), upto_XCN.reciprocal())


def stack_rows(above_MBHCN: Tensor, below_MBHCN: Tensor, by_above_XCN: Tensor, by_below_XCN: Tensor) -> Tensor:
    """Both, each scaled, one above the other: [X, R, N]."""
    rows_MBHRN = by_above_XCN.new_empty(*above_MBHCN.shape[:3], 2 * above_MBHCN.shape[3], above_MBHCN.shape[4])
    above_out, below_out = rows_MBHRN.chunk(2, dim=3)
    torch.mul(above_MBHCN, by_above_XCN.view(above_MBHCN.shape), out=above_out)
    torch.mul(below_MBHCN, by_below_XCN.view(below_MBHCN.shape), out=below_out)
    return rows_MBHRN.flatten(0, 2)


def mask_pairs(pairs_XRR: Tensor, documents: Documents | None) -> Tensor:
    """In place: r sees k and b up to its own token, a those before; neither sees another document's."""
    chunk = pairs_XRR.shape[1] // 2
    for row, diagonal in ((0, 0), (chunk, -1)):
        for column in (0, chunk):
            pairs_XRR[:, row : row + chunk, column : column + chunk].tril_(diagonal)
    if documents is not None:
        m, b = documents.same_MB1CC.shape[:2]
        other_MB11C1C = ~documents.same_MB1CC[:, :, :, None, :, None, :]
        pairs_XRR.view(m, b, -1, 2, chunk, 2, chunk).masked_fill_(other_MB11C1C, 0.0)
    return pairs_XRR


def clear_rows(rows_XRN: Tensor, gone_MB1C1: Tensor) -> Tensor:
    """In place: zeros in both of a token's rows."""
    m, b, _, chunk, _ = gone_MB1C1.shape
    rows_XRN.view(m, b, -1, 2, chunk, rows_XRN.shape[-1]).masked_fill_(gone_MB1C1[:, :, :, None], 0.0)
    return rows_XRN


def invert_unit_lower(strict_XCC: Tensor) -> Tensor:
    """(I - P)^-1 of strictly lower P, C a power of two. Neighbouring inverted blocks A^-1, B^-1 of the diagonal and the
    block P_BA between them give the next larger one, whose lower left is B^-1 P_BA A^-1.

    Not by (I + P)(I + P^2)(I + P^4)..., which needs no blocks: where keys repeat, its powers of P grow like binomials
    and cancel.
    """
    chunk, width = strict_XCC.shape[-1], 1
    inverse_XCC = torch.eye(chunk, dtype=strict_XCC.dtype, device=strict_XCC.device).repeat(len(strict_XCC), 1, 1)
    while width < chunk:
        grid = (chunk // (2 * width), 2, width)
        of_P, of_inverse = (
            matrix.unflatten(2, grid).unflatten(1, grid).diagonal(dim1=1, dim2=4).movedim(-1, 1)
            for matrix in (strict_XCC, inverse_XCC)
        )  # [X, blocks, 2, width, 2, width]
        left, right = (of_inverse[:, :, n, :, n].reshape(-1, width, width) for n in (1, 0))
        between = of_P[:, :, 1, :, 0].reshape(-1, width, width)
        of_inverse[:, :, 1, :, 0] = (left @ between @ right).view(len(strict_XCC), -1, width, width)
        width *= 2
    return inverse_XCC


class ChunkedWKV(torch.autograd.Function):
    """The backward pass forms the chunks' pairs again; kept are U, the inverse and the state between chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        log_w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        state_BHNN: Tensor,
        starts_BS: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = state_dtype(r, log_w, k, v, a, b, state_BHNN)
        length = r.shape[1]
        with exact_products(r.device.type):
            documents = None if starts_BS is None else number_documents(starts_BS, chunk)
            decays, queries_XRN, keys_XRN = form_rows(r, log_w, k, a, b, documents, chunk, dtype)
            pairs_XRR = mask_pairs(queries_XRN @ keys_XRN.mT, documents)
            inverse_XCC = invert_unit_lower(pairs_XRR[:, chunk:, chunk:])
            v_MBHCN = in_chunks(v, chunk)
            chunks = len(v_MBHCN)
            values_XRN = torch.empty_like(keys_XRN)
            values_XRN[:, :chunk].view(v_MBHCN.shape).copy_(v_MBHCN)
            held_XCN = pairs_XRR[:, chunk:, :chunk] @ values_XRN[:, :chunk]
            if documents is not None:
                clear_rows(queries_XRN, documents.later_MB1C1)
                clear_rows(keys_XRN, documents.ended_MB1C1)
            A, K, V, inverse, held = (
                x.unflatten(0, (chunks, -1))
                for x in (queries_XRN[:, chunk:], keys_XRN, values_XRN, inverse_XCC, held_XCN)
            )
            decay_MZN1 = decays.upto_XCN[:, -1, :, None].unflatten(0, (chunks, -1))
            states = [state_BHNN.to(dtype).flatten(0, 1)]
            for m in range(chunks):
                V[m, :, chunk:] = inverse[m] @ torch.baddbmm(held[m], A[m], states[m])
                kept_ZNN = keep_state(states[m], documents, m)
                states.append(torch.baddbmm(kept_ZNN, K[m].mT, V[m]) * decay_MZN1[m])
            states_MZNN = torch.stack(states)
            o_XCN = torch.baddbmm(pairs_XRR[:, :chunk] @ values_XRN, queries_XRN[:, :chunk], states_MZNN[:-1].flatten(0, 1))
        ctx.save_for_backward(r, log_w, k, a, b, starts_BS, values_XRN, inverse_XCC, states_MZNN)
        ctx.chunk, ctx.dtypes = chunk, (v.dtype, state_BHNN.dtype)
        return in_sequence(o_XCN, v_MBHCN.shape, length), states[-1].view(state_BHNN.shape).clone()

    @staticmethod
    def backward(ctx: Any, d_o_BSHN: Tensor, d_state_BHNN: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        r, log_w, k, a, b, starts_BS, values_XRN, inverse_XCC, states_MZNN = ctx.saved_tensors
        chunk, length, dtype = ctx.chunk, r.shape[1], values_XRN.dtype
        with exact_products(r.device.type):
            documents = None if starts_BS is None else number_documents(starts_BS, chunk)
            decays, queries_XRN, keys_XRN = form_rows(r, log_w, k, a, b, documents, chunk, dtype)
            pairs_XRR = mask_pairs(queries_XRN @ keys_XRN.mT, documents)
            seeing_XRN, leaving_XRN = queries_XRN, keys_XRN
            if documents is not None:
                seeing_XRN = clear_rows(queries_XRN.clone(), documents.later_MB1C1)
                leaving_XRN = clear_rows(keys_XRN.clone(), documents.ended_MB1C1)
            d_o_MBHCN = in_chunks(d_o_BSHN, chunk)
            chunks, shape = len(d_o_MBHCN), d_o_MBHCN.shape
            d_rows_XRN = torch.empty_like(queries_XRN)  # of O, above that of A S_0 + P_ak V
            d_rows_XRN[:, :chunk].view(shape).copy_(d_o_MBHCN)
            d_values_XRN = pairs_XRR[:, :chunk].mT @ d_rows_XRN[:, :chunk]
            seeing, leaving, inverse, d_rows, d_values = (
                x.unflatten(0, (chunks, -1)) for x in (seeing_XRN, leaving_XRN, inverse_XCC, d_rows_XRN, d_values_XRN)
            )
            decay_MZN1 = decays.upto_XCN[:, -1, :, None].unflatten(0, (chunks, -1))
            d_state_ZNN = d_state_BHNN.to(dtype).flatten(0, 1)
            d_sums_MZNN = torch.empty_like(states_MZNN[1:])  # of S_0 + K^T V + D^T U
            d_whole_MZN = torch.empty_like(decay_MZN1[..., 0])  # of G_C in the decay of the whole
            for m in reversed(range(chunks)):
                torch.sum(d_state_ZNN * states_MZNN[m + 1], dim=-1, out=d_whole_MZN[m])
                torch.mul(d_state_ZNN, decay_MZN1[m], out=d_sums_MZNN[m])
                d_values[m].baddbmm_(leaving[m], d_sums_MZNN[m])
                d_rows[m, :, chunk:] = inverse[m].mT @ d_values[m, :, chunk:]
                d_kept_ZNN = keep_state(d_sums_MZNN[m], documents, m)
                d_state_ZNN = torch.baddbmm(d_kept_ZNN, seeing[m].mT, d_rows[m])
            d_v_XCN = d_values_XRN[:, :chunk].baddbmm_(pairs_XRR[:, chunk:, :chunk].mT, d_rows_XRN[:, chunk:])
            d_pairs_XRR = mask_pairs(torch.bmm(d_rows_XRN, values_XRN.mT, out=pairs_XRR), documents)
            d_queries_XRN = d_rows_XRN @ states_MZNN[:-1].flatten(0, 1).mT
            d_keys_XRN = values_XRN @ d_sums_MZNN.flatten(0, 1).mT
            if documents is not None:
                clear_rows(d_queries_XRN, documents.later_MB1C1)
                clear_rows(d_keys_XRN, documents.ended_MB1C1)
            d_queries_XRN.baddbmm_(d_pairs_XRR, keys_XRN)
            d_keys_XRN.baddbmm_(d_pairs_XRR.mT, queries_XRN)
            # e^G, e^X and e^-G multiply what their gradient is read off: d_G = d_Q Q + d_A A - d_K K - d_D D
            of_r_XCN, of_a_XCN = (d_queries_XRN * queries_XRN).chunk(2, dim=1)
            of_k_XCN, of_b_XCN = keys_XRN.mul_(d_keys_XRN).chunk(2, dim=1)
            d_sum_XCN = (of_r_XCN + of_a_XCN).sub_(of_k_XCN).sub_(of_b_XCN)
            d_sum_XCN[:, -1] += d_whole_MZN.flatten(0, 1)
            d_log_w_XCN = decays.summing_XCC.mT @ d_sum_XCN - of_a_XCN
            d_r_XCN, d_a_XCN = (x * y for x, y in zip(d_queries_XRN.chunk(2, dim=1), decays[1:3], strict=True))
            d_k_XCN, d_b_XCN = (x * decays.undo_XCN for x in d_keys_XRN.chunk(2, dim=1))
        v_dtype, state_dtype_ = ctx.dtypes
        given = zip(
            (d_r_XCN, d_log_w_XCN, d_k_XCN, d_v_XCN, d_a_XCN, d_b_XCN),
            (r.dtype, log_w.dtype, k.dtype, v_dtype, a.dtype, b.dtype),
            strict=True,
        )
        d_inputs = (in_sequence(d_x_XCN, shape, length).to(wanted) for d_x_XCN, wanted in given)
        return *d_inputs, d_state_ZNN.view(d_state_BHNN.shape).to(state_dtype_), None, None


def form_rows(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    a: Tensor,
    b: Tensor,
    documents: Documents | None,
    chunk: int,
    dtype: torch.dtype,
) -> tuple[Decays, Tensor, Tensor]:
    """Decays; Q above A, [X, R, N]; K above D, [X, R, N]."""
    r_, log_w_, k_, a_, b_ = (in_chunks(x, chunk) for x in (r, log_w, k, a, b))
    decays = form_decays(log_w_, documents, dtype)
    return (
        decays,
        stack_rows(r_, a_, decays.upto_XCN, decays.before_XCN),
        stack_rows(k_, b_, decays.undo_XCN, decays.undo_XCN),
    )


def keep_state(state_ZNN: Tensor, documents: Documents | None, m: int) -> Tensor:
    """Zero where a document began in chunk m."""
    if documents is None:
        return state_ZNN
    gone_B111 = documents.later_MB1C1[m, :, :, -1:]
    return state_ZNN.unflatten(0, (len(gone_B111), -1)).masked_fill(gone_B111, 0.0).flatten(0, 1)


def in_chunks(x_BSHN: Tensor, chunk: int) -> Tensor:
    """A view [M, B, H, C, N]; a ragged end is filled with zeros, tokens that change nothing."""
    x_BSHN = pad(x_BSHN, (0, 0, 0, 0, 0, -x_BSHN.shape[1] % chunk))
    return x_BSHN.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)


def in_sequence(x_XCN: Tensor, shape_MBHCN: torch.Size, length: int) -> Tensor:
    """[B, S, H, N]."""
    return x_XCN.reshape(shape_MBHCN).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]
