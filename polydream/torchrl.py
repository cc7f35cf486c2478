"""A trained agent as a TorchRL policy: for `env.rollout`, for TorchRL's collectors, and for whatever else steps TensorDicts.

    import polydream.torchrl
    policy = polydream.torchrl.Policy("runs/NAME", env)
    data = policy.equip(env).rollout(1000, policy)

What the agent remembers travels in the TensorDict under `polydream`, as recurrent states of TorchRL's own modules do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import Compose, ExplorationType, InitTracker, TensorDictPrimer, TransformedEnv, exploration_type

from .core.player import Player, load
from .core.specs import Space
from .tasks import spaces
from .tasks.base import hint
from .tasks.torchrl import space_of

STATE = "polydream"
"""Key of the agent's state, at the root and under `next`."""


class Policy(TensorDictModuleBase):
    """Reads observations, `is_init` and the agent's state; writes actions in the environment's own terms and the next state.

    agent: a Player, or the run or checkpoint directory to load one from. env: a TorchRL environment with the agent's observations
    and actions; its specs say how to read and write them, any batch size is taken. keys: the agent's observation key for an
    observation of the environment, where they differ; a lone one stands for a lone one. Actions are drawn from the policy, and the most
    likely ones under `set_exploration_type` DETERMINISTIC, MODE or MEAN.

    Raises ValueError where a key or a space of the agent has no counterpart.
    """

    def __init__(self, agent: Player | str | Path, env: Any, keys: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.player = agent if isinstance(agent, Player) else load(agent)
        self._sees, self._does = env.full_observation_spec, env.full_action_spec
        for _ in env.batch_size:  # specs are those of the whole batch; a row is read and written by that of one environment
            self._sees, self._does = self._sees[0], self._does[0]
        self._space = space_of(self._does, "action")
        spec = self.player.spec
        seen, keys = spaces.flatten(space_of(self._sees, "observation")), keys or {}
        optional = {k: s for k, s in {**spec.obs, **spec.extras}.items() if k not in spec.visible}
        self._read = matched({keys.get(k, k): leaf for k, leaf in seen.items()}, spec.visible, optional)
        self._write = matched(spaces.flatten(self._space, action=True), spec.action)
        self.in_keys = [*self._sees.keys(True, True), "is_init", STATE]
        self.out_keys = [*self._does.keys(True, True), ("next", STATE)]

    def equip(self, env: Any) -> Any:
        """The environment with what the policy needs beside it: `is_init` at first steps, and a state to begin with."""
        batch = tuple(env.batch_size)
        primer = TensorDictPrimer(Composite({STATE: self._state_spec(batch)}, shape=batch), expand_specs=True)
        return TransformedEnv(env, Compose(InitTracker(), primer))

    def _state_spec(self, batch: tuple[int, ...]) -> Any:
        """Spec of the agent's state, with all that acting puts into it."""
        known = {**self.player.spec.obs, **self.player.spec.extras}
        calls = self.player.calls
        state = self.player.act({key: np.zeros((1, *space.shape), space.dtype) for key, space in known.items()})[1]
        self.player.calls = calls

        def told(part: TensorDictBase) -> Any:
            leaves = {
                k: told(v) if isinstance(v, TensorDictBase) else Unbounded((*batch, *v.shape[1:]), dtype=v.dtype) for k, v in part.items()
            }
            return Composite(leaves, shape=batch)

        return told(state)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act: writes the action keys and `("next", "polydream")`. Raises KeyError where `is_init` or the state is missing."""
        lead = tensordict.batch_size
        rows = tensordict.reshape(-1) if lead else tensordict[None]
        first, state = rows.get("is_init", None), rows.get(STATE, None)
        if first is None or (state is None and not bool(first.all())):
            missing = "is_init" if first is None else STATE
            raise KeyError(f"{missing!r} is missing: step the environment that policy.equip(env) gives")
        nested = [self._sees.to_numpy(row.select(*self._sees.keys(True, True))) for row in rows.unbind(0)]
        read = [spaces.read(self._read, one) for one in nested]
        settled = exploration_type() in (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN)
        actions, state = self.player.act(
            {key: np.stack([one[key] for one in read]) for key in self._read},
            state,
            is_first=first.reshape(len(read)).cpu().numpy(),
            mode="mode" if settled else "sample",
        )
        written = [spaces.write(self._space, self._write, {k: v[i] for k, v in actions.items()}) for i in range(len(read))]
        encoded = torch.stack([self._does.encode(one) for one in written])
        tensordict.update(encoded.reshape(lead) if lead else encoded[0])
        return tensordict.set(("next", STATE), state.reshape(lead) if lead else state[0])


def matched(
    leaves: Mapping[str, spaces.Leaf], wanted: Mapping[str, Space], optional: Mapping[str, Space] | None = None
) -> dict[str, spaces.Leaf]:
    """Leaves of an environment under the agent's keys: all of `wanted`, and what there is of `optional`.

    A lone leaf stands for a lone wanted key. Raises ValueError naming a key that is missing or of another space.
    """
    if len(leaves) == len(wanted) == 1:
        leaves = dict(zip(wanted, leaves.values(), strict=True))
    found = {}
    for key, space in {**wanted, **(optional or {})}.items():
        if key not in leaves and key in wanted:
            raise ValueError(f"the agent knows {key!r}, the environment has {', '.join(leaves)}; {hint(key, leaves)}")
        if key in leaves:
            if ((there := leaves[key].space).shape, there.classes) != (space.shape, space.classes):
                raise ValueError(f"{key!r} is {there} in the environment, but the agent was trained on {space}")
            found[key] = leaves[key]
    return found
