"""sheeprl's `dreamer_v3_5` (Apache 2.0, https://github.com/Eclectic-Sheep/sheeprl): its `build_agent`, its `train`, its player."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gymnasium
import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3_5.agent import build_agent
from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
from sheeprl.algos.dreamer_v3_5.utils import Moments, prepare_obs
from sheeprl.utils.utils import dotdict

from ..case import Case, arrays, observations
from ..contender import Mode, Unsupported, contend

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def configuration(case: Case, mode: Mode) -> Any:
    """Its own experiment for walker_walk, at the widths of the case. Raises Unsupported for a mode it does not have."""
    if mode.dtype not in PRECISION or mode.compile not in ("none", "own"):
        raise Unsupported(f"sheeprl has {', '.join(PRECISION)}, eager or compiled its own way; not {mode.dtype}, {mode.compile}")
    image, keys = case.obs == "image", f"[{case.key}]"
    settings = {
        "algo.dense_units": case.units,
        "algo.cnn_channels_multiplier": case.depth,
        "algo.horizon": case.horizon,
        "algo.per_rank_batch_size": case.batch,
        "algo.per_rank_sequence_length": case.length,
        "algo.world_model.discrete_size": case.classes,
        "algo.world_model.stochastic_size": case.stoch,
        "algo.world_model.recurrent_model.recurrent_state_size": case.deter,
        "algo.world_model.recurrent_model.hidden_size": case.hidden,
        "algo.cnn_keys.encoder": keys if image else "[]",
        "algo.mlp_keys.encoder": "[]" if image else keys,
        "algo.compile.enabled": mode.compile == "own",
        "fabric.accelerator": "cuda" if case.device.startswith("cuda") else "cpu",
        "fabric.precision": PRECISION[mode.dtype],
        "run_name": "benchmark",  # its default asks Hydra's command line for the time
    }
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        chosen = hydra.compose("config", ["exp=dreamer_v3_5_dmc_walker_walk", *(f"{k}={v}" for k, v in settings.items())])
    return dotdict(OmegaConf.to_container(chosen, resolve=True))


class Sheeprl:
    """One agent of sheeprl and the batch it is trained on, built as its `main` builds it."""

    def __init__(self, case: Case, mode: Mode) -> None:
        self.case, self.cfg = case, configuration(case, mode)
        torch.set_float32_matmul_precision(self.cfg.float32_matmul_precision)
        torch.distributions.Distribution.set_default_validate_args(self.cfg.distribution.validate_args)
        self.fabric = hydra.utils.instantiate(self.cfg.fabric, callbacks=[], _convert_="all")
        shape = (3, case.image, case.image) if case.obs == "image" else (case.vector,)
        space = gymnasium.spaces.Dict({case.key: gymnasium.spaces.Box(-1, 1, shape)})
        built = build_agent(self.fabric, (case.actions,), True, self.cfg, space)
        self.world, self.actor, self.critic, self.slow, self.player = built
        note = "its logging off, which favours it"
        if case.obs == "image" and case.device == "cpu":
            # Its own choice for GPUs, and faster on a processor, too.
            self.world.encoder.to(memory_format=torch.channels_last)
            self.world.observation_model.to(memory_format=torch.channels_last)
            note += "; convolutions in channels-last layout as on its GPU path, which favours it"
        params = [p for module in (self.world, self.actor, self.critic) for p in module.parameters()]
        optimizer = hydra.utils.instantiate(self.cfg.algo.optimizer, params=params, _convert_="all")
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        limits = self.cfg.algo.actor.moments
        self.moments = Moments(limits.decay, limits.max, limits.percentile.low, limits.percentile.high).to(self.fabric.device)
        self.data = batch(case, self.fabric.device)
        self.facts = {"version": version("sheeprl"), "parameters": sum(p.numel() for p in params), "note": note}

    def update(self) -> None:
        """Its gradient step and its step of the slow critic, as its `main` takes them."""
        models = self.world, self.actor, self.critic, self.slow
        train(self.fabric, self.cfg, *models, self.optimizer, self.moments, dict(self.data), None, (self.case.actions,))
        update_target_critic(self.critic, self.slow, self.cfg.algo.critic.tau)

    def acting(self, environments: int) -> Callable[[], None]:
        """Its player's step, with what its `main` does to observations before and to actions and latents after."""
        case, player = self.case, self.player
        seen = observations(case, environments)
        obs = {case.key: np.moveaxis(seen, -1, 1).copy() if case.obs == "image" else seen}
        player.num_envs = environments
        player.init_states()
        cnn_keys = self.cfg.algo.cnn_keys.encoder

        def step() -> None:
            with torch.inference_mode():
                actions = player.get_actions(prepare_obs(self.fabric, obs, cnn_keys=cnn_keys, num_envs=environments))
                classes = player.stochastic_state.view(1, environments, case.stoch, case.classes).argmax(-1)
                torch.stack(actions, dim=-1).cpu().numpy()
                player.recurrent_state.half().cpu().numpy()
                classes.cpu().numpy().astype(np.uint8)

        return step


def batch(case: Case, device: torch.device) -> dict[str, torch.Tensor]:
    """The case's batch as its replay gives it: time first, images channels first, flags as floats."""
    data = {k: torch.as_tensor(v).transpose(0, 1).contiguous() for k, v in arrays(case).items()}
    named = {
        case.key: data["obs"].movedim(-1, -3).contiguous() if case.obs == "image" else data["obs"],
        "actions": data["action"],
        "rewards": data["reward"][..., None],
        "is_first": data["is_first"].float()[..., None],
        "terminated": data["is_terminal"].float()[..., None],
        "truncated": (data["is_last"] & ~data["is_terminal"]).float()[..., None],
        "deter": data["deter"],
        "stoch": data["stoch"],
    }
    return {k: v.to(device) for k, v in named.items()}


if __name__ == "__main__":
    contend(Sheeprl)
