"""The hand-differentiated scan against the same loop differentiated by autograd."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from polydream.core import gpuscan
from polydream.core.nets import initialize
from polydream.core.rng import Draws
from polydream.core.rssm import RSSM, RSSMConfig
from tests.fixtures import VECTOR, agent, batch

CFG = RSSMConfig(deter=32, hidden=8, stoch=4, classes=3, blocks=4)


def outputs(rssm: RSSM, plain: bool, noise: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """deter, stoch, logits and the gradients of weights, inputs and start, with an episode that begins in the middle."""
    rssm.plain = plain
    g = torch.Generator().manual_seed(1)
    tokens, action = torch.randn(3, 6, 5, generator=g, requires_grad=True), torch.randn(3, 6, 2, generator=g, requires_grad=True)
    first = torch.zeros(3, 6, dtype=torch.bool)
    first[0, 0] = first[1, 3] = True
    state = rssm.initial(3)
    start = [torch.randn(state[k].shape, generator=g, requires_grad=True) for k in ("deter", "stoch")]
    state = state.update({"deter": start[0], "stoch": start[1]})
    post = rssm.observe(tokens, action, first, state, Draws(0, modes={} if noise else {"posterior": 0.0}))
    out = [post[k] for k in ("deter", "stoch", "logits")]
    loss = sum((x * torch.randn(x.shape, generator=g)).sum() for x in out)
    used = [p for name, p in rssm.named_parameters() if not name.startswith("prior")]
    return out, list(torch.autograd.grad(loss, [tokens, action, *start, *used]))  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("unimix", [0.01, 0.2])
def test_the_scan_equals_the_plain_loop(noise: bool, unimix: float) -> None:
    rssm = RSSM("block_gru", 2, 5, RSSMConfig(**{**vars(CFG), "unimix": unimix}))
    initialize(rssm, 0)
    for parameter in rssm.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    for mine, plain in zip(outputs(rssm, True, noise), outputs(rssm, False, noise), strict=True):
        for a, b in zip(mine, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dreamed_steps_equal_the_cell_of_any_kind() -> None:
    rssm = RSSM("block_gru", 2, 5, CFG)
    initialize(rssm, 0)
    state, action = rssm.initial(4), 3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        rssm.plain = True
        fast = rssm.step(state, action, Draws(0))
        rssm.plain = False
        state = rssm.step(state, action, Draws(0))
        for key in ("deter", "stoch"):
            torch.testing.assert_close(fast[key], state[key], rtol=1e-5, atol=1e-6)


def test_laid_out_weights_follow_every_change() -> None:
    """The layout is kept between steps of a dream: no update, loading or move of the weights may leave a stale one."""
    rssm = RSSM("block_gru", 2, 5, CFG)
    initialize(rssm, 0)
    state, action = rssm.initial(2), torch.ones(2, 2)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return rssm.step(state, action, Draws(0))["deter"]

    before = step()
    assert torch.equal(step(), before)
    with torch.no_grad():
        rssm.cell.gates.bias.add_(1.0)
    moved = step()
    assert not torch.equal(moved, before)
    rssm.cell.gates.bias.data = rssm.cell.gates.bias.data - 1.0
    torch.testing.assert_close(step(), before)
    replaced = {k: v + 1 if k == "cell.gates.bias" else v for k, v in rssm.state_dict().items()}
    rssm.load_state_dict(replaced)
    torch.testing.assert_close(step(), moved)


def test_bfloat16_products_stay_close_and_weights_stay_float32() -> None:
    losses, grads = [], []
    for precision in ("float32", "bfloat16"):
        learner = agent()
        learner.accelerate(precision)  # type: ignore[arg-type]
        state, data, previous = learner.replay_context(batch(VECTOR), 0)
        named, post, _ = learner.losses(data, state, previous, Draws(0, modes={"posterior": 0, "prior": 0, "action": 0.5}))
        learner.total(named)[0].backward()
        assert {p.dtype for p in learner.parameters()} == {torch.float32} == {v.dtype for v in named.values()} | {post["deter"].dtype}
        losses.append(torch.stack([named[k].mean() for k in sorted(named) if k != "policy"]).detach())
        grads.append(torch.cat([p.grad.flatten() for p in learner.nets["decoder"].parameters()]))  # type: ignore[union-attr]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.02)
    assert not torch.equal(*losses), "the precision must change something"
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.99


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_compute_the_same() -> None:
    data = batch(VECTOR)
    metrics = []
    for compile in ("none", "steps"):
        learner = agent()
        learner.accelerate("float32", compile)  # type: ignore[arg-type]
        rows = [learner.update(data, learner.optimizer(), Draws(0, i))[0] for i in range(1)]
        metrics.append({k: float(v) for k, v in rows[-1].items()})
    for key, value in metrics[0].items():
        assert metrics[1][key] == pytest.approx(value, rel=2e-3, abs=1e-4), key


@pytest.mark.parametrize(
    ("deter", "hidden", "blocks", "stoch", "classes", "fit"),
    [
        (128, 16, 8, 4, 4, True),
        (2048, 256, 8, 32, 16, True),
        (32, 16, 8, 4, 4, False),  # preset smoke
        (64, 16, 8, 4, 4, False),
        (128, 16, 8, 2, 4, False),
        (8192, 1024, 8, 32, 64, False),
    ],
)
def test_kernels_are_offered_widths_that_fill_their_tiles(
    deter: int, hidden: int, blocks: int, stoch: int, classes: int, fit: bool
) -> None:
    class Keep(list):  # type: ignore[type-arg]
        """As if on a GPU, where there is none."""

        is_cuda = True

    cell = SimpleNamespace(own=torch.empty(blocks, deter // blocks, 0), shared=torch.empty(3 * hidden, 0))
    settings = SimpleNamespace(groups=(stoch, classes), dtype=torch.bfloat16)
    assert gpuscan.fits(settings, cell, Keep(range(16)), torch.zeros(1)) is fit  # type: ignore[arg-type]
