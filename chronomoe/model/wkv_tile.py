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
first border do not see S_0, and only the last document's rows reach S_C. These are masks of fixed shape: nothing waits
for the host, and no product of one document's numbers enters another.

Axes: B batch, S sequence, H heads, N head width (keys and values), C tokens of a chunk, M chunks, Z = B*H,
X = M*B*H, R = 2C: r above a, k above b, v above U. Of B and M, a tile at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from chronomoe.model.unit_lower import invert_unit_lower
from chronomoe.model.wkv import Inputs


def in_chunks(x_BSHN: Tensor, chunk: int) -> Tensor:
    """[M, B, H, C, N]: a view, or a ragged end filled with zeros, which are tokens that change nothing."""
    missing = -x_BSHN.shape[1] % chunk
    whole_BSHN = pad(x_BSHN, (0, 0, 0, 0, 0, missing)) if missing else x_BSHN
    return whole_BSHN.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)


class Documents(NamedTuple):
    """Of the tokens of each chunk, by the number of documents that began in it up to there."""

    other_MB1CC: Tensor
    """The two tokens are of different documents."""
    start_MB1C1: Tensor
    """A document begins with the token."""
    later_MB1C1: Tensor
    """A document began since the chunk did: the incoming state is gone."""
    ended_MB1C1: Tensor
    """A document begins later in the chunk: nothing of this token is in the state that leaves."""


def number_documents(starts_BS: Tensor, chunk: int) -> Documents:
    start_MB1C = in_chunks(starts_BS[..., None, None], chunk)[..., 0]
    number_MB1C = start_MB1C.cumsum(dim=-1)
    return Documents(
        number_MB1C[..., :, None] != number_MB1C[..., None, :],
        start_MB1C[..., None],
        (number_MB1C > 0)[..., None],
        (number_MB1C < number_MB1C[..., -1:])[..., None],
    )


class Rows(NamedTuple):
    """What a tile's products are of."""

    summing_XCC: Tensor
    """1 where the second token's log w counts for the first: G = summing log_w. [C, C] without documents."""
    upto_XCN: Tensor
    """e^G."""
    before_XCN: Tensor
    """e^X."""
    undo_XCN: Tensor
    """e^-G."""
    queries_XRN: Tensor
    """Q above A."""
    keys_XRN: Tensor
    """K above D."""


def form_rows(inputs: Inputs, documents: Documents | None, dtype: torch.dtype) -> Rows:
    r, log_w, k, _, a, b = inputs
    shape = log_w.shape
    log_w_XCN = log_w.to(dtype).reshape(-1, *shape[3:])
    summing = torch.ones(shape[3], shape[3], dtype=dtype, device=log_w.device).tril_()
    if documents is not None:
        summing = summing.masked_fill(documents.other_MB1CC.expand(*shape[:3], -1, -1), 0.0).flatten(0, 2)
    upto_XCN = (summing @ log_w_XCN).exp_()
    undo_XCN = upto_XCN.reciprocal()
    before_XCN = pad(upto_XCN[:, :-1], (0, 0, 1, 0), value=1.0)  # X is G of the token before
    if documents is not None:
        before_XCN.view(shape).masked_fill_(documents.start_MB1C1, 1.0)
    queries_MBHRN, keys_MBHRN = upto_XCN.new_empty(2, *shape[:3], 2 * shape[3], shape[4])
    products = (r, upto_XCN), (a, before_XCN), (k, undo_XCN), (b, undo_XCN)
    outs = *queries_MBHRN.chunk(2, dim=3), *keys_MBHRN.chunk(2, dim=3)
    for (x, factor_XCN), out in zip(products, outs, strict=True):
        torch.mul(x, factor_XCN.view(shape), out=out)
    return Rows(summing, upto_XCN, before_XCN, undo_XCN, queries_MBHRN.flatten(0, 2), keys_MBHRN.flatten(0, 2))


def mask_pairs(pairs_XRR: Tensor, documents: Documents | None) -> Tensor:
    """In place: r sees k and b up to its own token, a those before; neither sees another document's."""
    chunk = pairs_XRR.shape[1] // 2
    for row, diagonal in ((0, 0), (chunk, -1)):
        for column in (0, chunk):
            pairs_XRR[:, row : row + chunk, column : column + chunk].tril_(diagonal)
    if documents is not None:
        m, b = documents.other_MB1CC.shape[:2]
        other_MB11C1C = documents.other_MB1CC[:, :, :, None, :, None]
        pairs_XRR.view(m, b, -1, 2, chunk, 2, chunk).masked_fill_(other_MB11C1C, 0.0)
    return pairs_XRR


def clear_rows(rows_XRN: Tensor, gone_MB1C1: Tensor) -> Tensor:
    """In place: zeros in both of a token's rows."""
    m, b, _, chunk, _ = gone_MB1C1.shape
    rows_XRN.view(m, b, -1, 2, chunk, rows_XRN.shape[-1]).masked_fill_(gone_MB1C1[:, :, :, None], 0.0)
    return rows_XRN


def keep_state(state_ZNN: Tensor, documents: Documents | None, m: int) -> Tensor:
    """Zero where a document began in chunk m."""
    if documents is None:
        return state_ZNN
    gone_B111 = documents.later_MB1C1[m, :, :, -1:]
    return state_ZNN.unflatten(0, (len(gone_B111), -1)).masked_fill(gone_B111, 0.0).flatten(0, 1)


class Kept(NamedTuple):
    """Of a tile, for the backward pass, which forms its rows and pairs again."""

    U_XCN: Tensor
    inverse_XCC: Tensor
    states_MZNN: Tensor
    """Before each chunk and after the last: M + 1."""


def run_tile(inputs: Inputs, state_ZNN: Tensor, documents: Documents | None, out_MBHCN: Tensor) -> Kept:
    """Inputs [M, B, H, C, N]; writes O to `out_MBHCN`."""
    v = inputs.v
    chunks, chunk = v.shape[0], v.shape[3]
    rows = form_rows(inputs, documents, state_ZNN.dtype)
    queries_XRN, keys_XRN = rows.queries_XRN, rows.keys_XRN
    pairs_XRR = mask_pairs(queries_XRN @ keys_XRN.mT, documents)
    inverse_XCC = invert_unit_lower(pairs_XRR[:, chunk:, chunk:])
    values_XRN = torch.empty_like(keys_XRN)
    values_XRN[:, :chunk].view(v.shape).copy_(v)
    held_XCN = pairs_XRR[:, chunk:, :chunk] @ values_XRN[:, :chunk]
    if documents is not None:
        clear_rows(queries_XRN, documents.later_MB1C1)
        clear_rows(keys_XRN, documents.ended_MB1C1)
    states_MZNN = state_ZNN.new_empty(chunks + 1, *state_ZNN.shape)
    states_MZNN[0] = state_ZNN
    of_chunk = queries_XRN[:, chunk:], keys_XRN.mT, values_XRN, inverse_XCC, held_XCN, rows.upto_XCN[:, -1, :, None]
    by_chunk = *(x.unflatten(0, (chunks, -1)) for x in of_chunk), states_MZNN[:-1], states_MZNN[1:]
    for m in range(chunks):
        A, K, V, inverse, held, decay, before, after = (x[m] for x in by_chunk)
        V[:, chunk:] = inverse @ torch.baddbmm(held, A, before)  # torch multiplies into a part one matrix at a time
        torch.mul(torch.baddbmm(keep_state(before, documents, m), K, V), decay, out=after)
    o_XCN = pairs_XRR[:, :chunk] @ values_XRN
    o_XCN.baddbmm_(queries_XRN[:, :chunk], states_MZNN[:-1].flatten(0, 1))
    out_MBHCN.copy_(o_XCN.view(v.shape))
    return Kept(values_XRN[:, chunk:].clone(), inverse_XCC, states_MZNN)


def differentiate_tile(
    inputs: Inputs,
    kept: Kept,
    documents: Documents | None,
    d_o_MBHCN: Tensor,
    d_state_ZNN: Tensor,
    d_inputs: Inputs,
) -> Tensor:
    """Writes the inputs' gradients to `d_inputs`, [M, B, H, C, N], and returns the incoming state's."""
    U_XCN, inverse_XCC, states_MZNN = kept
    shape = d_o_MBHCN.shape
    chunks, chunk = shape[0], shape[3]
    rows = form_rows(inputs, documents, U_XCN.dtype)
    queries_XRN, keys_XRN = rows.queries_XRN, rows.keys_XRN
    pairs_XRR = mask_pairs(queries_XRN @ keys_XRN.mT, documents)
    seeing_XRN, leaving_XRN = queries_XRN, keys_XRN
    if documents is not None:
        seeing_XRN = clear_rows(queries_XRN.clone(), documents.later_MB1C1)
        leaving_XRN = clear_rows(keys_XRN.clone(), documents.ended_MB1C1)
    values_XRN = torch.empty_like(keys_XRN)
    values_XRN[:, :chunk].view(shape).copy_(inputs.v)
    values_XRN[:, chunk:] = U_XCN
    d_rows_XRN = torch.empty_like(queries_XRN)  # of O, above that of A S_0 + P_ak V
    d_rows_XRN[:, :chunk].view(shape).copy_(d_o_MBHCN)
    d_values_XRN = pairs_XRR[:, :chunk].mT @ d_rows_XRN[:, :chunk]
    d_states_MZNN = torch.empty_like(states_MZNN)
    d_states_MZNN[-1] = d_state_ZNN
    d_sums_MZNN = torch.empty_like(states_MZNN[1:])  # of S_0 + K^T V + D^T U
    of_chunk = seeing_XRN.mT, leaving_XRN, d_values_XRN, inverse_XCC.mT, d_rows_XRN, rows.upto_XCN[:, -1, :, None]
    by_chunk = *(x.unflatten(0, (chunks, -1)) for x in of_chunk), d_sums_MZNN, d_states_MZNN[:-1], d_states_MZNN[1:]
    for m in reversed(range(chunks)):
        seeing, leaving, d_values, inverse, d_rows, decay, d_sum, d_before, d_after = (x[m] for x in by_chunk)
        torch.mul(d_after, decay, out=d_sum)
        d_values.baddbmm_(leaving, d_sum)
        d_rows[:, chunk:] = inverse @ d_values[:, chunk:]
        torch.baddbmm(keep_state(d_sum, documents, m), seeing, d_rows, out=d_before)
    d_v_XCN = torch.baddbmm(d_values_XRN[:, :chunk], pairs_XRR[:, chunk:, :chunk].mT, d_rows_XRN[:, chunk:])
    d_pairs_XRR = mask_pairs(torch.bmm(d_rows_XRN, values_XRN.mT, out=pairs_XRR), documents)
    d_queries_XRN = d_rows_XRN @ states_MZNN[:-1].flatten(0, 1).mT
    d_keys_XRN = values_XRN @ d_sums_MZNN.flatten(0, 1).mT
    if documents is not None:
        clear_rows(d_queries_XRN, documents.later_MB1C1)
        clear_rows(d_keys_XRN, documents.ended_MB1C1)
    d_queries_XRN.baddbmm_(d_pairs_XRR, keys_XRN)
    d_keys_XRN.baddbmm_(d_pairs_XRR.mT, queries_XRN)
    # The powers of e are factors of the rows: d_G = d_Q Q + d_A A - d_K K - d_D D, and d_S S for the state that leaves
    of_r_XCN, of_a_XCN = queries_XRN.mul_(d_queries_XRN).chunk(2, dim=1)
    of_k_XCN, of_b_XCN = keys_XRN.mul_(d_keys_XRN).chunk(2, dim=1)
    d_sum_XCN = of_r_XCN.add_(of_a_XCN).sub_(of_k_XCN).sub_(of_b_XCN)
    d_sum_XCN[:, -1] += torch.linalg.vecdot(d_states_MZNN[1:], states_MZNN[1:]).flatten(0, 1)
    torch.sub((rows.summing_XCC.mT @ d_sum_XCN).view(shape), of_a_XCN.view(shape), out=d_inputs.log_w)
    d_inputs.v.copy_(d_v_XCN.view(shape))
    (d_Q, d_A), (d_K, d_D) = d_queries_XRN.chunk(2, dim=1), d_keys_XRN.chunk(2, dim=1)
    products = (d_Q, rows.upto_XCN), (d_A, rows.before_XCN), (d_K, rows.undo_XCN), (d_D, rows.undo_XCN)
    for (d_row_XCN, factor_XCN), out in zip(products, (d_inputs.r, d_inputs.a, d_inputs.k, d_inputs.b), strict=True):
        torch.mul(d_row_XCN.view(shape), factor_XCN.view(shape), out=out)
    return d_states_MZNN[0]
