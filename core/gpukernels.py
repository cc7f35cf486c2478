"""Kernels for a GPU, in Triton: those of the scan of `observe` (`gpuscan`), each a product with all that surrounds it, and the optimizer's.

A step is short products of few rows; as single operations each waits for the launch of the next. Here a kernel reads what the one
before left, brings it into the form it needs (norm, gates, the draw) and multiplies. Rows are padded to 16, the least a tensor core
takes. Sums over a whole row arrive as the partial sums of whoever wrote it, so nothing is waited for inside a kernel, and everything
is added in a fixed order: equal inputs give equal bits.

The formulas are those of `scan.observe_step`; products are bfloat16 with float32 sums, and everything between them is float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROWS: tl.constexpr = tl.constexpr(16)
TILE: tl.constexpr = tl.constexpr(16)
"""Columns of a product that one program makes."""
KIND: tl.constexpr = tl.constexpr(tl.bfloat16)
"""Type of the factors of products."""


@triton.jit
def _rows(x, stride, start, columns, real):
    """(16, n) of a row-major array, zeros beyond the real rows."""
    row = tl.arange(0, ROWS)
    return tl.load(x + row[:, None] * stride + (start + columns)[None, :], (row < real)[:, None], 0.0).to(tl.float32)


@triton.jit
def _put(x, stride, columns, value, real):
    row = tl.arange(0, ROWS)
    tl.store(x + row[:, None] * stride + columns[None, :], value, (row < real)[:, None])


@triton.jit
def _column(x, real):
    """(16, 1) of a vector with one number per row."""
    row = tl.arange(0, ROWS)
    return tl.load(x + row, row < real, 0.0)[:, None]


@triton.jit
def _split_rows(parts, width, columns, real, split: tl.constexpr):
    """The sum of partial products (split, 16, width) at some columns."""
    total = _rows(parts, width, 0, columns, real)
    for i in tl.static_range(1, split):
        total += _rows(parts + i * ROWS * width, width, 0, columns, real)
    return total


@triton.jit
def _norm(x, width: tl.constexpr, eps: tl.constexpr):
    """x / rms(x), rows whole, and 1 / rms(x)."""
    inverse = tl.rsqrt(tl.sum(x * x, 1) / width + eps)[:, None]
    return x * inverse, inverse


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _silu_backward(x, grad):
    s = tl.sigmoid(x)
    return grad * s * (1 + x * (1 - s))


@triton.jit
def _tile(w, rows, columns, row_stride, column_stride):
    """Elements of a matrix, whatever its type, as factors of a product."""
    return tl.load(w + rows[:, None] * row_stride + columns[None, :] * column_stride).to(KIND)


@triton.jit
def _dot(x, w):
    return tl.dot(x.to(KIND), w, out_dtype=tl.float32)


# ------------------------------------------------------------------------------------------------ forwards


@triton.jit
def embed(after, w_post, w_deter, parts, real, D: tl.constexpr, H: tl.constexpr, chunk: tl.constexpr, split: tl.constexpr):
    """after (16, D) @ [posterior's matrix | embedding of deter], cut into `split` sums: parts (split, 16, 2 * H)."""
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    start = tl.program_id(1) * (D // split)
    total = tl.zeros((ROWS, TILE), tl.float32)
    second = tl.program_id(0) * TILE >= H
    for i in tl.static_range(D // split // chunk):
        k = start + i * chunk + tl.arange(0, chunk)
        x = _rows(after, D, 0, k, real)
        if second:
            total += _dot(x, _tile(w_deter, k, column - H, 1, D))
        else:
            total += _dot(x, _tile(w_post, k, column, 1, D))
    _put(parts + tl.program_id(1) * ROWS * 2 * H, 2 * H, column, total, 16)


@triton.jit
def draw(parts, seen, scale, w_out, bias, noise, unit_out, logits_out, stoch_out, real, unimix,
         H: tl.constexpr, Z: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
         width: tl.constexpr, split: tl.constexpr, eps: tl.constexpr):  # fmt: skip
    """The posterior of `width` columns, whole groups: logits and a one-hot draw at uniform noise (B, S)."""
    k = tl.arange(0, H)
    column = tl.program_id(0) * width + tl.arange(0, width)
    unit = _split_rows(parts, 2 * H, k, real, split) + _rows(seen, H, 0, k, real)
    if tl.program_id(0) == 0:
        _put(unit_out, H, k, unit, real)
    normed, _ = _norm(unit, H, eps)
    active = _silu(normed * tl.load(scale + k)[None, :])
    logits = _dot(active, _tile(w_out, k, column, 1, H)) + tl.load(bias + column).to(tl.float32)[None, :]
    _put(logits_out, Z, column, logits, real)
    cube = tl.reshape(logits, (ROWS, width // C, C))
    cube = tl.exp(cube - tl.max(cube, 2, keep_dims=True))
    probs = cube / tl.sum(cube, 2, keep_dims=True) * (1 - unimix) + unimix / C
    row, group = tl.arange(0, ROWS), tl.program_id(0) * (width // C) + tl.arange(0, width // C)
    u = tl.load(noise + row[:, None] * S + group[None, :], (row < real)[:, None], 0.0)
    below = tl.cumsum(probs, 2)
    place = tl.arange(0, C)[None, None, :]
    # The last class closes the interval, whatever rounding left of it.
    passed = tl.sum(tl.where((u[:, :, None] >= below) & (place < C - 1), 1, 0), 2)
    onehot = tl.where(place == passed[:, :, None], 1.0, 0.0)
    _put(stoch_out, Z, column, tl.reshape(onehot, (ROWS, width)), real)


@triton.jit
def embed_stoch(stoch, w_stoch, out, real, H: tl.constexpr, Z: tl.constexpr):
    """stoch (16, Z) @ embedding of stoch (Z, H)."""
    k, column = tl.arange(0, Z), tl.program_id(0) * TILE + tl.arange(0, TILE)
    _put(out, H, column, _dot(_rows(stoch, Z, 0, k, real), _tile(w_stoch, k, column, 1, Z)), 16)


@triton.jit
def hidden(parts, from_stoch, bias_deter, scale_deter, bias_stoch, scale_stoch, action, deter, keep, w_shared, w_own, bias,
            deter_out, stoch_out, hidden_out, squares, real, D: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
            split: tl.constexpr, eps: tl.constexpr):  # fmt: skip
    """What the gates read, before its norm: 16 columns, and the sum of their squares (D / 16, 16)."""
    k, kept = tl.arange(0, H), _column(keep, real)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    from_deter = kept * _split_rows(parts, 2 * H, H + k, real, split) + tl.load(bias_deter + k).to(tl.float32)[None, :]
    embedded = kept * _rows(from_stoch, H, 0, k, real) + tl.load(bias_stoch + k).to(tl.float32)[None, :]
    if tl.program_id(0) == 0:
        _put(deter_out, H, k, from_deter, real)
        _put(stoch_out, H, k, embedded, real)
    x, _ = _norm(from_deter, H, eps)
    total = _dot(_silu(x * tl.load(scale_deter + k)[None, :]), _tile(w_shared, k, column, 1, 3 * H))
    x, _ = _norm(embedded, H, eps)
    total += _dot(_silu(x * tl.load(scale_stoch + k)[None, :]), _tile(w_shared, H + k, column, 1, 3 * H))
    total += _dot(_rows(action, H, 0, k, real), _tile(w_shared, 2 * H + k, column, 1, 3 * H))
    block: tl.constexpr = D // G
    own, inner = tl.program_id(0) * TILE // block, tl.arange(0, block)
    x = kept * _rows(deter, D, 0, own * block + inner, real)
    total += _dot(x, _tile(w_own + own * block * block, inner, column - own * block, 1, block))
    total += tl.load(bias + column).to(tl.float32)[None, :]
    _put(hidden_out, D, column, total, real)
    tl.store(squares + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(total * total, 1))


@triton.jit
def _inverse(squares, D: tl.constexpr, eps: tl.constexpr):
    """1 / rms (16, 1) of rows whose squares were summed tile by tile."""
    tiles, row = tl.arange(0, D // TILE), tl.arange(0, ROWS)
    total = tl.sum(tl.load(squares + tiles[:, None] * ROWS + row[None, :]), 0)
    return tl.rsqrt(total / D + eps)[:, None]


@triton.jit
def gate(hidden, squares, scale, w_gates, bias, deter, keep, gates_out, after_out, real,
          D: tl.constexpr, G: tl.constexpr, eps: tl.constexpr):  # fmt: skip
    """16 columns of the next state."""
    block: tl.constexpr = D // G
    own, inner = tl.program_id(0) * TILE // block, tl.arange(0, block)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = own * block + inner
    active = _silu(_rows(hidden, D, 0, k, real) * _inverse(squares, D, eps) * tl.load(scale + k)[None, :])
    weights, inside = w_gates + own * block * 3 * block, column - own * block
    biases = bias + own * 3 * block + inside
    reset = _dot(active, _tile(weights, inner, inside, 1, block)) + tl.load(biases).to(tl.float32)[None, :]
    candidate = _dot(active, _tile(weights, inner, block + inside, 1, block)) + tl.load(biases + block).to(tl.float32)[None, :]
    update = _dot(active, _tile(weights, inner, 2 * block + inside, 1, block)) + tl.load(biases + 2 * block).to(tl.float32)[None, :]
    _put(gates_out, 3 * D, own * 3 * block + inside, reset, real)
    _put(gates_out, 3 * D, own * 3 * block + block + inside, candidate, real)
    _put(gates_out, 3 * D, own * 3 * block + 2 * block + inside, update, real)
    before = _column(keep, real) * _rows(deter, D, 0, column, real)
    bounded = 2 * tl.sigmoid(2 * tl.sigmoid(reset) * candidate) - 1
    _put(after_out, D, column, before + tl.sigmoid(update - 1) * (bounded - before), real)


# ------------------------------------------------------------------------------------------------ backwards


@triton.jit
def undraw(logits, d_logits, d_stoch, w_out, d_logits_out, d_active_out, real, unimix,
            H: tl.constexpr, Z: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Gradient of the logits, the draw passing its own on to the probabilities; and 16 columns of that of the posterior's active unit."""
    k, column = tl.arange(0, Z), tl.program_id(0) * TILE + tl.arange(0, TILE)
    cube = tl.reshape(_rows(logits, Z, 0, k, real), (ROWS, Z // C, C))
    cube = tl.exp(cube - tl.max(cube, 2, keep_dims=True))
    probs = cube / tl.sum(cube, 2, keep_dims=True)
    given = tl.reshape(_rows(d_stoch, Z, 0, k, real), (ROWS, Z // C, C)) * (1 - unimix)
    inner = probs * (given - tl.sum(given * probs, 2, keep_dims=True))
    total = _rows(d_logits, Z, 0, k, real) + tl.reshape(inner, (ROWS, Z))
    if tl.program_id(0) == 0:
        _put(d_logits_out, Z, k, total, real)
    _put(d_active_out, H, column, _dot(total, _tile(w_out, k, column, H, 1)), real)


@triton.jit
def _norm_backward(x, scale, grad, width: tl.constexpr, eps: tl.constexpr):
    """Gradient of x (16, width), rows whole, given that of silu(x / rms(x) * scale)."""
    normed, inverse = _norm(x, width, eps)
    inner = _silu_backward(normed * scale, grad) * scale
    return (inner - normed * (tl.sum(inner * normed, 1)[:, None] / width)) * inverse


@triton.jit
def ungate(unit, scale, d_active, d_after, w_post, gates, deter, keep, d_gates_out, d_deter_out, real,
            D: tl.constexpr, H: tl.constexpr, G: tl.constexpr, eps: tl.constexpr):  # fmt: skip
    """16 columns of the gradients of the gates, and of the state before as far as it went around them."""
    k, column = tl.arange(0, H), tl.program_id(0) * TILE + tl.arange(0, TILE)
    d_unit = _norm_backward(_rows(unit, H, 0, k, real), tl.load(scale + k)[None, :], _rows(d_active, H, 0, k, real), H, eps)
    grad = _rows(d_after, D, 0, column, real) + _dot(d_unit, _tile(w_post, k, column, D, 1))
    block: tl.constexpr = D // G
    own = tl.program_id(0) * TILE // block
    at = own * 3 * block + column - own * block
    reset = tl.sigmoid(_rows(gates, 3 * D, 0, at, real))
    candidate = _rows(gates, 3 * D, 0, at + block, real)
    share = tl.sigmoid(_rows(gates, 3 * D, 0, at + 2 * block, real) - 1)
    before = _column(keep, real) * _rows(deter, D, 0, column, real)
    bounded = 2 * tl.sigmoid(2 * reset * candidate) - 1
    d_gated = grad * share * (1 - bounded * bounded)
    _put(d_gates_out, 3 * D, at, d_gated * candidate * reset * (1 - reset), real)
    _put(d_gates_out, 3 * D, at + block, d_gated * reset, real)
    _put(d_gates_out, 3 * D, at + 2 * block, grad * (bounded - before) * share * (1 - share), real)
    _put(d_deter_out, D, column, grad * (1 - share), real)


@triton.jit
def unhidden(d_gates, w_gates, hidden, squares, scale, d_active_out, sums, real, D: tl.constexpr, G: tl.constexpr, eps: tl.constexpr):
    """16 columns of the gradient of what the gates read, activated; and of what its norm must know of whole rows."""
    block: tl.constexpr = D // G
    own = tl.program_id(0) * TILE // block
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside, k = column - own * block, tl.arange(0, block)
    weights = w_gates + own * block * 3 * block
    total = tl.zeros((ROWS, TILE), tl.float32)
    for i in tl.static_range(3):
        total += _dot(_rows(d_gates, 3 * D, (own * 3 + i) * block, k, real), _tile(weights, i * block + k, inside, 1, 3 * block))
    _put(d_active_out, D, column, total, real)
    normed, by = _rows(hidden, D, 0, column, real) * _inverse(squares, D, eps), tl.load(scale + column)[None, :]
    along = tl.sum(_silu_backward(normed * by, total) * by * normed, 1)
    tl.store(sums + tl.program_id(0) * ROWS + tl.arange(0, ROWS), along)


@triton.jit
def unnorm(hidden, d_active, squares, sums, scale, out, real, D: tl.constexpr, width: tl.constexpr, eps: tl.constexpr):
    """Some columns of the gradient of what the gates read, before its norm."""
    column = tl.program_id(0) * width + tl.arange(0, width)
    tiles, row, inverse = tl.arange(0, D // TILE), tl.arange(0, ROWS), _inverse(squares, D, eps)
    along = tl.sum(tl.load(sums + tiles[:, None] * ROWS + row[None, :]), 0)[:, None] / D
    normed, by = _rows(hidden, D, 0, column, real) * inverse, tl.load(scale + column)[None, :]
    grad = _silu_backward(normed * by, _rows(d_active, D, 0, column, real)) * by
    _put(out, D, column, (grad - normed * along) * inverse, real)


@triton.jit
def unembed(d_hidden, w_shared, w_own, d_shared_out, d_own_out, real,
             D: tl.constexpr, H: tl.constexpr, G: tl.constexpr, chunk: tl.constexpr, split: tl.constexpr):  # fmt: skip
    """Gradients of the embedded deter and stoch, activated, in `split` sums (split, 16, 2 * H); and of each block's own slice (16, D)."""
    shared: tl.constexpr = 2 * H // TILE * split
    if tl.program_id(0) < shared:
        column = tl.program_id(0) // split * TILE + tl.arange(0, TILE)
        part = tl.program_id(0) % split
        total = tl.zeros((ROWS, TILE), tl.float32)
        for i in tl.static_range(D // split // chunk):
            k = part * (D // split) + i * chunk + tl.arange(0, chunk)
            total += _dot(_rows(d_hidden, D, 0, k, real), _tile(w_shared, k, column, 1, D))
        _put(d_shared_out + part * ROWS * 2 * H, 2 * H, column, total, 16)
    else:
        block: tl.constexpr = D // G
        start = (tl.program_id(0) - shared) * TILE
        own, inner, column = start // block, tl.arange(0, block), start + tl.arange(0, TILE)
        x = _rows(d_hidden, D, 0, own * block + inner, real)
        _put(d_own_out, D, column, _dot(x, _tile(w_own + own * block * block, inner, column - own * block, 1, block)), real)


@triton.jit
def unstep(parts, from_deter, scale_deter, from_stoch, scale_stoch, w_deter, w_stoch, d_around, d_own, keep,
            more_deter, more_stoch, d_deter_out, d_stoch_out, real, D: tl.constexpr, H: tl.constexpr, Z: tl.constexpr,
            split: tl.constexpr, eps: tl.constexpr):  # fmt: skip
    """16 columns of the gradient of the state before, with what reaches that state from elsewhere."""
    k, kept = tl.arange(0, H), _column(keep, real)
    if tl.program_id(0) < D // TILE:
        column = tl.program_id(0) * TILE + tl.arange(0, TILE)
        grad = _split_rows(parts, 2 * H, k, real, split)
        inner = _norm_backward(_rows(from_deter, H, 0, k, real), tl.load(scale_deter + k)[None, :], grad, H, eps)
        total = _dot(inner, _tile(w_deter, k, column, D, 1)) + _rows(d_around, D, 0, column, real) + _rows(d_own, D, 0, column, real)
        _put(d_deter_out, D, column, total * kept + _rows(more_deter, D, 0, column, real), real)
    else:
        column = (tl.program_id(0) - D // TILE) * TILE + tl.arange(0, TILE)
        grad = _split_rows(parts, 2 * H, H + k, real, split)
        inner = _norm_backward(_rows(from_stoch, H, 0, k, real), tl.load(scale_stoch + k)[None, :], grad, H, eps)
        total = _dot(inner, _tile(w_stoch, k, column, Z, 1))
        _put(d_stoch_out, Z, column, total * kept + _rows(more_stoch, Z, 0, column, real), real)


# ------------------------------------------------------------------------------------------------ the optimizer


@triton.jit
def move(
    table, pieces, dials, shrink, good, sums, count, beta1, beta2, eps, adam: tl.constexpr, nesterov: tl.constexpr, block: tl.constexpr
):
    """table: rows of addresses (parameter, gradient, first and second moment) and sizes; pieces: tensor and start of each program;
    dials: rows of rate, both bias corrections and weight decay; shrink: factor on each gradient; sums: squares of update and parameter."""
    program = tl.program_id(0)
    tensor = tl.load(pieces + 2 * program)
    at = tl.load(pieces + 2 * program + 1) + tl.arange(0, block)
    size = tl.load(table + 4 * count + tensor)
    inside, writes = at < size, at < tl.where(tl.load(good) != 0, size, 0)
    parameters = tl.load(table + tensor).to(tl.pointer_type(tl.float32)) + at
    gradients = tl.load(table + count + tensor).to(tl.pointer_type(tl.float32)) + at
    firsts = tl.load(table + 2 * count + tensor).to(tl.pointer_type(tl.float32)) + at
    seconds = tl.load(table + 3 * count + tensor).to(tl.pointer_type(tl.float32)) + at
    rate, correct1 = tl.load(dials + tensor), tl.load(dials + count + tensor)
    correct2, decay = tl.load(dials + 2 * count + tensor), tl.load(dials + 3 * count + tensor)
    weight = tl.load(parameters, inside, 0.0)
    gradient = tl.load(gradients, inside, 0.0) * tl.load(shrink + tensor)
    first, second = tl.load(firsts, inside, 0.0), tl.load(seconds, inside, 0.0)
    second = beta2 * second + (1 - beta2) * gradient * gradient
    root = tl.sqrt(second / correct2) + eps
    added = gradient if adam else gradient / root
    first = first + (1 - beta1) * (added - first)
    average = first + (1 - beta1) * (added - first) if nesterov else first
    update = average / correct1 / root if adam else average / correct1
    update = update + decay * weight
    moved = weight - rate * update
    tl.store(parameters, moved, writes)
    tl.store(firsts, first, writes)
    tl.store(seconds, second, writes)
    tl.store(sums + 2 * program, tl.sum(tl.where(inside, update * update, 0.0)))
    tl.store(sums + 2 * program + 1, tl.sum(tl.where(writes, moved * moved, tl.where(inside, weight * weight, 0.0))))
