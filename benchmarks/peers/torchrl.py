"""TorchRL's own DreamerV3 (MIT, https://github.com/pytorch/rl): its networks, `DreamerV3Loss`, optimizer and optimization stepper.

The wheel has the parts and no recipe, so the parts are put together here as the documentation of `DreamerV3Loss` does, with
the settings of the released algorithm. Its convolutions are strided: a different and much cheaper model for images.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential
from tensordict.nn import ProbabilisticTensorDictModule as Sampler
from tensordict.nn import ProbabilisticTensorDictSequential as Policy
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import (
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    IndependentNormal,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    WorldModelWrapper,
)
from torchrl.objectives import (
    DreamerV3ActorLoss,
    DreamerV3Loss,
    DreamerV3ModelLoss,
    DreamerV3ValueLoss,
    SoftUpdate,
    ValueEstimators,
    symexp,
    symlog,
)
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

from ..case import CONTEXT, Case, arrays
from ..contender import Mode, Unsupported, contend

HORIZON, BINS = 333.0, 255
STATE = ["state", "belief"]
NEXT = [("next", "state"), ("next", "belief")]


class Actor(nn.Module):
    """Mean and deviation of a bounded normal policy."""

    def __init__(self, width: int, case: Case) -> None:
        super().__init__()
        self.net = DreamerV3MLP(width, 2 * case.actions, depth=3, num_cells=case.units, outscale=0.01)

    def forward(self, state: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.net(state, belief).float().chunk(2, -1)
        return mean.tanh(), 0.9 * torch.sigmoid(std + 2) + 0.1


def chain(net: nn.Module, after: Callable[[Tensor], Tensor], inputs: list, raw: object, out: object) -> TensorDictSequential:
    """net writes `raw`, and `after` of it, in float32, is `out`."""
    return TensorDictSequential(
        TensorDictModule(net, in_keys=inputs, out_keys=[raw]),
        TensorDictModule(lambda x: x.float(), in_keys=[raw], out_keys=[raw]),
        TensorDictModule(after, in_keys=[raw], out_keys=[out]),
    )


def sight(case: Case, width: int) -> tuple[TensorDictSequential, TensorDictSequential, int]:
    """Encoder and decoder of the one observation, and the width of its embedding."""
    seen, code, raw, out = ("next", case.key), ("next", "encoded_latents"), ("next", "raw_reco"), ("next", "reco")
    if case.obs == "image":
        shape, mults = (3, case.image, case.image), (2, 3, 4, 4)
        conv = DreamerV3ImageEncoder(depth=case.depth, mults=mults)
        decoder = DreamerV3ImageDecoder(width, shape, depth=case.depth, mults=mults)
        return TensorDictModule(conv, [seen], [code]), chain(decoder, lambda x: x, NEXT, raw, out), conv.output_features(shape)
    squash = TensorDictModule(symlog, in_keys=[seen], out_keys=[("next", "squashed")])
    mlp = DreamerV3MLP(case.vector, None, depth=3, num_cells=case.units)
    encoder = TensorDictSequential(squash, TensorDictModule(mlp, in_keys=[("next", "squashed")], out_keys=[code]))
    decoder = DreamerV3MLP(width, case.vector, depth=3, num_cells=case.units)
    return encoder, chain(decoder, symexp, NEXT, raw, out), case.units


def imagination(case: Case, prior: RSSMPriorV3, reward: nn.Module) -> DreamerEnv:
    """The environment that the actor dreams in."""
    step = TensorDictModule(prior, in_keys=[*STATE, "action"], out_keys=["_", *STATE])
    world = WorldModelWrapper(step, chain(reward, SymExpTwoHot(BINS), STATE, "reward_logits", "reward"))
    stoch = case.stoch * case.classes
    env = DreamerEnv(world, prior_shape=(stoch,), belief_shape=(case.deter,))
    env.observation_spec = Composite(state=Unbounded(stoch), belief=Unbounded(case.deter))
    env.state_spec = env.observation_spec.clone()
    env.action_spec = Bounded(-1, 1, (case.actions,))
    env.reward_spec = Unbounded((1,))
    return env.to(case.device)


def model(case: Case) -> DreamerV3Loss:
    """The whole learner as one loss module."""
    stoch = case.stoch * case.classes
    width = case.deter + stoch
    sizes = {"hidden_dim": case.hidden, "rnn_hidden_dim": case.deter, "num_categoricals": case.stoch, "num_classes": case.classes}
    encoder, decoder, embedding = sight(case, width)
    prior = RSSMPriorV3(action_shape=(case.actions,), action_dim=case.actions, recurrent_model="block_gru", unimix=0.01, **sizes)
    posterior = RSSMPosteriorV3(obs_embed_dim=embedding, use_rms_norm=True, unimix=0.01, **sizes)
    rollout = RSSMRolloutV3(
        TensorDictModule(prior, [*STATE, "action"], [("next", "prior_logits"), *NEXT]),
        TensorDictModule(posterior, [("next", "belief"), ("next", "encoded_latents")], [("next", "posterior_logits"), ("next", "state")]),
    )
    reward = DreamerV3MLP(width, BINS, depth=1, num_cells=case.units, outscale=0.0)
    going = DreamerV3MLP(width, 1, depth=1, num_cells=case.units)
    rewards = chain(reward, SymExpTwoHot(BINS), NEXT, ("next", "reward_logits"), ("next", "reward"))
    world = TensorDictSequential(encoder, rollout, decoder, rewards, TensorDictModule(going, NEXT, [("next", "continue_pred")]))
    critic = DreamerV3MLP(width, BINS, depth=3, num_cells=case.units, outscale=0.0)
    value = chain(critic, SymExpTwoHot(BINS), STATE, "state_value_logits", "state_value").to(case.device)
    mean = TensorDictModule(Actor(width, case), in_keys=STATE, out_keys=["loc", "scale"])
    draw = Sampler(
        in_keys=["loc", "scale"],
        out_keys=["action"],
        default_interaction_type=InteractionType.RANDOM,
        distribution_class=IndependentNormal,
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )
    actor = Policy(mean, draw).to(case.device)
    world_loss = DreamerV3ModelLoss(
        world.to(case.device),
        kl_mode="separate",
        unimix=0.01,
        lambda_continue=1.0,
        continue_target_scale=1 - 1 / HORIZON,
        reco_symlog=case.obs == "vector",
        detach_output=False,
    )
    world_loss.set_keys(pixels=case.key, reco_pixels="reco")
    goes_on = chain(going, torch.sigmoid, STATE, "continue_logits", "continuation")
    actor_loss = DreamerV3ActorLoss(
        actor, value, imagination(case, prior, reward), continuation_model=goes_on, imagination_horizon=case.horizon, use_reinforce=True
    )
    # The discount is inside the continuation.
    actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=0.95)
    value_loss = DreamerV3ValueLoss(value, "two_hot", actor_loss=actor_loss, slow_critic_regularization=1.0)
    return DreamerV3Loss(world_loss, actor_loss, value_loss, continuation_horizon=HORIZON)


class TorchRL:
    """One learner of TorchRL and the batch it is trained on."""

    def __init__(self, case: Case, mode: Mode) -> None:
        cuda = case.device.startswith("cuda")
        if mode.dtype not in ("float32", "bfloat16") or mode.dtype == "bfloat16" and not cuda:
            raise Unsupported(f"torchrl's stepper has float32, and bfloat16 on CUDA only; not {mode.dtype} on {case.device}")
        if mode.compile not in ("none", "own"):
            raise Unsupported(f"torchrl runs eager (none) or compiled as its stepper does (own), not {mode.compile}")
        if cuda:
            torch.set_float32_matmul_precision("high")  # tensor cores, as sheeprl sets it for itself
        loss = model(case).to(case.device)
        self.sample = batch(case)
        compiled = mode.compile == "own"
        self.stepper = DreamerV3OptimizationStepper(
            loss,
            DreamerV3Optimizer([p for p in loss.parameters() if p.requires_grad]),
            SoftUpdate(loss.value_loss, tau=0.02),
            compile_train_step=compiled,
            cudagraph=compiled and cuda,
            mixed_precision=mode.dtype == "bfloat16",
        )
        if compiled:
            self.stepper.warmup(self.sample.clone())
        count = sum(p.numel() for p in loss.parameters() if p.requires_grad)
        note = "strided convolutions: about a quarter of the others' work" if case.obs == "image" else ""
        self.facts = {"version": version("torchrl"), "parameters": count, "note": note}

    def update(self) -> None:
        """Its stepper's whole step: losses, gradients, optimizer, slow critic."""
        self.stepper.step(None, self.sample.copy())

    def acting(self, environments: int) -> Callable[[], None]:
        """Raises Unsupported: the wheel has no policy for acting."""
        raise Unsupported("torchrl's wheel has the parts of an acting policy and no policy")


def batch(case: Case) -> TensorDict:
    """The case's batch (B, T) as transitions: the action leads to what lies under `next`, the first stored latents start it."""
    data = {k: torch.as_tensor(v, device=case.device) for k, v in arrays(case).items()}
    lead = [case.batch, case.length]
    seen = data["obs"][:, CONTEXT:]
    stoch = nn.functional.one_hot(data["stoch"][:, :-CONTEXT].long(), case.classes).flatten(-2).float()
    after = {
        case.key: seen.movedim(-1, -3).contiguous() if case.obs == "image" else seen,
        "reward": data["reward"][:, CONTEXT:, None],
        "done": data["is_last"][:, CONTEXT:, None],
        "terminated": data["is_terminal"][:, CONTEXT:, None],
    }
    root = {"state": stoch, "belief": data["deter"][:, :-CONTEXT].float(), "action": data["action"][:, :-CONTEXT]}
    reset = data["is_first"][:, CONTEXT:, None]
    return TensorDict({**root, "is_init": reset, "next": TensorDict(after, lead)}, lead)


if __name__ == "__main__":
    contend(TorchRL)
