"""One dream, two scales of time: the segments that a worker is trained on, and the decisions of its manager. Pure functions.

A subgoal is held for K steps, so a dream of H steps has H / K segments. `rate` is the discount where `cont` does not hold it, else 1.

    state     s_0 ... s_{K-1}  s_K ... s_{2K-1}  s_2K
    subgoal   g_0 ... g_0      g_K ... g_K       g_2K      r_t, for arriving at s_t, is scored against the subgoal of s_{t-1}
    worker   [s_0 ............ s_K] and [s_K ... s_2K]     the last state of each with the subgoal of the first
    manager   s_0              s_K               s_2K      r over s_1 ... s_K, r over s_{K+1} ... s_2K
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from ..core.config import ConfigError

USUAL = 8
"""Steps that a subgoal is held (Hafner et al. 2022), where this divides the dream."""


def held(dream: int, hold: int) -> int:
    """K for dreams of H steps: `hold`, or where that is 0 the largest divisor of H up to 8. Raises ConfigError where it does not divide."""
    fitting = [k for k in range(1, dream + 1) if dream % k == 0]
    if not hold:
        return max(k for k in fitting if k <= USUAL)
    if hold not in fitting:
        near = min(fitting, key=lambda k: (abs(k - hold), k))
        raise ConfigError(f"hierarchy.hold={hold} does not divide dream={dream}: the nearest that does is {near}")
    return hold


def cut(x: Tensor | TensorDict, hold: int) -> Tensor | TensorDict:
    """Dreams (N, H + 1, *) -> segments (H / K * N, K + 1, *), the first of all dreams first. Neighbours share a state."""
    return torch.cat([x[:, t : t + hold + 1] for t in range(0, x.shape[1] - 1, hold)])


def worker_view(dream: TensorDict, hold: int, rate: float = 1.0) -> TensorDict:
    """Segments (H / K * N, K + 1) of dreams (N, H + 1). The state that ends a segment, whose value bootstraps, gets the old subgoal.

    Entry 0 of `cont` becomes the probability that the dream has lived to see the segment, so that later ones count for less.
    """
    # Index 0 of a dream is its start, which no return reads: there cont only weighs what follows.
    alive = torch.cumprod(dream["cont"] * rate, 1) / rate
    segments: TensorDict = cut(dream.exclude("subgoal"), hold)
    first = torch.cat([dream["subgoal"][:, t] for t in range(0, dream.shape[1] - 1, hold)])
    segments["subgoal"] = first.unsqueeze(1).expand(-1, hold + 1, -1)
    begins = torch.cat([alive[:, t : t + 1] for t in range(0, dream.shape[1] - 1, hold)])
    return segments.set("cont", torch.cat([begins, segments["cont"][:, 1:]], 1))


def facing(subgoal: Tensor, there: Tensor, hold: int) -> tuple[Tensor, Tensor]:
    """Subgoals (N, H + 1, D) and the states (N, H, D) that were made for them, float32: (N, H / K, 1, D) and (N, H / K, K, D).

    Of what is held for K steps nothing has to be worked out K times.
    """
    return subgoal[:, :-1:hold].float().unsqueeze(2), there.float().unflatten(1, (-1, hold))


def manager_view(dream: TensorDict, hold: int, rate: float = 1.0) -> TensorDict:
    """The states (N, H / K + 1) in which subgoals are chosen, without them. `action` is the code, `cont` the product over K steps."""
    chosen: TensorDict = dream[:, ::hold].exclude("subgoal")
    cont = dream["cont"]
    going = (cont[:, 1:] * rate).unflatten(1, (-1, hold)).prod(-1) / rate
    chosen.set("action", TensorDict({"code": chosen["code"]}, chosen.batch_size))
    return chosen.set("cont", torch.cat([cont[:, :1], going], 1))


def manager_reward(reward: Tensor, cont: Tensor, hold: int, rate: float = 1.0, once: bool = False) -> Tensor:
    """Reward (N, H / K + 1) of each decision: the mean over its K steps, each weighted by the product of `cont` before it.

    reward, cont (N, H + 1). Entry k + 1 is for the steps k K + 1 ... (k + 1) K. A mean, so that its scale does not depend on K. once: the
    greatest instead, for a reward after which nothing follows.
    """
    live = (cont[:, 1:] * rate).unflatten(1, (-1, hold))
    before = F.pad(torch.cumprod(live[..., :-1], -1), (1, 0), value=1.0)
    paid = reward[:, 1:].unflatten(1, (-1, hold)) * before
    return F.pad(paid.amax(-1) if once else paid.mean(-1), (1, 0))
