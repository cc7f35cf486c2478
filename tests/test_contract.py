"""The conformance kit passes sound variants and catches one broken promise after another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polydream.core import agent, registry
from polydream.core.agent import Dreamer
from polydream.core.behavior import Behavior, Objective
from polydream.core.config import ConfigError
from polydream.core.heads import Head, HeadConfig
from polydream.core.nets import Linear
from polydream.core.promises import Promises
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec, Step
from polydream.eval.contract import PARTS, check_variant
from polydream.eval.knobs import added_knobs, candidates


def findings(cls: type[Dreamer], *parts: str, **options: Any) -> list[str]:
    """What the named parts of the kit say; the others are left out, to save time."""
    skipped = {name: "not of interest here" for name in PARTS if name not in (*parts, "learns")}
    mine = vars(cls).get("promises", Promises())
    quiet = type(cls.__name__, (cls,), {"promises": Promises(exempt={**mine.exempt, **skipped})})
    return check_variant(quiet, **options)


def test_sound_variants_pass_whole() -> None:
    assert check_variant("base") == []
    assert check_variant("examples.thrifty:Thrifty") == []
    assert check_variant("base+examples.thrifty:Thrifty", task="world/dots") == []


def test_what_cannot_be_tried_is_one_line() -> None:
    assert check_variant("bsae") == ["no variant named 'bsae'; did you mean base?"]
    assert "no class that inherits from polydream.core.agent.Dreamer" in check_variant(dict)[0]  # type: ignore[arg-type]

    class Needy(Dreamer):
        promises = Promises(requires=("instruction",))

    assert check_variant(Needy) == [
        "Needy requires instruction, which none of world/reach, world/fourrooms, world/grid4, world/dots offers: name a task that does"
    ]
    (line,) = check_variant(Needy, task="world/reach")
    assert line == "Needy needs 'instruction' from its task, which offers point, target; the nearest is 'point'"


# ---------------------------------------------------------------------------------------------------- learning


def test_replaced_final_methods_are_caught() -> None:
    class Sly(Dreamer):
        """Refused at class definition, so it is done afterwards."""

    Sly.total = lambda self, losses: Dreamer.total(self, losses)  # type: ignore[method-assign]
    assert findings(Sly, "final") == [
        "total is the core's own and the same for all variants, but has been replaced: override a seam that it calls"
    ]


class Lossy(Dreamer):
    """A loss without a scale, and a scale without a loss."""

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        return super().model_losses(batch, post) | {"extra": torch.zeros(batch.batch_size)}

    def scales(self) -> dict[str, float]:
        return super().scales() | {"other": 1.0}


class Reduced(Dreamer):
    """A loss that is a mean already."""

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        return {k: v.mean() if k == "reward" else v for k, v in super().model_losses(batch, post).items()}


class Infinite(Dreamer):
    """A loss that is not finite."""

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        losses = super().model_losses(batch, post)
        return losses | {"cont": losses["cont"] / 0.0}


class Scribbler(Dreamer):
    """Relabels the replay's own arrays."""

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        batch["reward"] += 1.0
        return super().prepare(batch, draws)


def test_names_shapes_and_values_of_losses_are_checked() -> None:
    assert findings(Lossy) == ["loss 'extra' has no scale of that name", "scale 'other' has no loss of that name"]
    assert "loss 'reward' has shape (): one number per replayed step (B, T) or dreamed step (N, H) is wanted" in findings(Reduced)
    assert "'loss/cont' is not finite after 1 updates" in findings(Infinite)


def test_batches_changed_in_place_are_caught() -> None:
    assert findings(Scribbler) == ["an update changes 'reward' of the replayed batch in place: copy it in prepare()"]


class Hoarder(Dreamer):
    """Keeps a trained network where torch does not look."""

    def build(self) -> dict[str, nn.Module]:
        nets = super().build()
        self.kept = [nn.Linear(nets["rssm"].latent_width, 1)]  # type: ignore[arg-type]
        return nets

    def scales(self) -> dict[str, float]:
        return super().scales() | {"probe": 1.0}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        probe = self.kept[0](self.latent(post)).squeeze(-1).square()
        return super().model_losses(batch, post) | {"probe": probe}


class Idler(Dreamer):
    """Owns a network that nothing trains, and a buffer that nobody saves."""

    def build(self) -> dict[str, nn.Module]:
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        return super().build() | {"idle": Linear(2, 3)}

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        self.seen += 1  # type: ignore[operator]
        return super().prepare(batch, draws)


def test_parameters_that_are_lost_or_idle_are_caught() -> None:
    lost = findings(Hoarder, "parameters")
    assert lost and all("feeds the losses and is no parameter: nothing saves or steps it" in line for line in lost)
    assert findings(Idler, "parameters") == [
        "no loss reaches the parameters of 'nets.idle': train them, or freeze them with requires_grad_(False)",
        "buffer 'seen' changes while training and is not in the checkpoint",
    ]
    Idler.promises = Promises(exempt={"nets.idle": "kept for later"})  # type: ignore[attr-defined]
    assert len(findings(Idler, "parameters")) == 1


class Forgetful(Dreamer):
    """Remembers in an attribute, which no checkpoint holds, how much it has trained."""

    age = 0

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        self.age += 1
        losses = super().model_losses(batch, post)
        return losses | {"reward": losses["reward"] * self.age}


class Restless(Dreamer):
    """Takes noise from the global generator."""

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        losses = super().model_losses(batch, post)
        return losses | {"reward": losses["reward"] * torch.rand(())}


@pytest.mark.parametrize("cls", [Forgetful, Restless])
def test_an_agent_that_does_not_go_on_as_before_is_caught(cls: type[Dreamer]) -> None:
    (line,) = findings(cls, "resumes")
    assert line.startswith("a saved and loaded agent does not go on as before: 'loss/reward'")


class Intruder(Dreamer):
    """Draws from the stream of the posterior, so the base agent's noise is another."""

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        draws.uniform("posterior", 3)
        return super().prepare(batch, draws)


class Heavy(Dreamer):
    """Adds a term to a base loss instead of a loss of its own."""

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        losses = super().model_losses(batch, post)
        return losses | {"reward": losses["reward"] + 0.01}


def test_variants_that_disturb_the_base_losses_are_caught() -> None:
    (line,) = findings(Intruder, "neutral")
    assert all(f"'{name}' is " in line for name in ("rec/point", "reward", "dyn", "policy"))
    (line,) = findings(Heavy, "neutral")
    assert line.count(" instead of ") == 1 and "'reward' is" in line
    Heavy.promises = Promises(exempt={"loss/reward": "a test"})  # type: ignore[attr-defined]
    assert findings(Heavy, "neutral") == []


# ---------------------------------------------------------------------------------------------------- acting and dreaming


class Turncoat(Dreamer):
    """Acts otherwise in the world (n,) than in a dream."""

    def imagine(self, start: TensorDict, draws: Draws) -> TensorDict:
        dream = super().imagine(start, draws)
        return dream.set("tag", torch.ones(dream.batch_size))

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        return super().context(data, state, draws).set("tag", torch.zeros(state.batch_size))


class Shifty(Dreamer):
    """Shows the actor a mean over all states at hand."""

    def view(self, state: TensorDict) -> Tensor:
        seen = super().view(state)
        return seen - seen.flatten(0, -2).mean(0)


class Lopsided(Dreamer):
    """Has context when acting only, and one of another kind."""

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        found = super().context(data, state, draws)
        if state.batch_dims == 1:
            return found.set("alone", torch.zeros(len(state))).set("both", torch.zeros(len(state), 2))
        return found.set("both", torch.zeros(*state.batch_size, 3))


def test_acting_and_dreaming_by_two_rules_is_caught() -> None:
    assert "'tag' of the same state is not the same when acting and when dreaming: act() alone may decide it" in findings(Turncoat, "acts")
    assert "view() shows another picture of the same state when acting (n,) and in a dream (N, H + 1)" in findings(Shifty, "acts")
    lines = findings(Lopsided, "acts")
    assert "context 'alone' is there when acting and not when training" in lines
    assert "context 'both' is (2,) torch.float32 when acting and (3,) torch.float32 when training" in lines


class Counting(Dreamer):
    """A counter of decisions that nothing resets."""

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        count = state.get("count", None)
        return super().act(state, draws).set("count", torch.zeros(state.batch_size) if count is None else count + 1)


def test_what_outlives_its_episode_is_caught() -> None:
    assert findings(Counting, "begins") == [
        "'count' of the last episode reaches into the next: is_first must reset it (context() gives start values)"
    ]
    Counting.promises = Promises(exempt={"state/count": "counts for ever"})  # type: ignore[attr-defined]
    assert findings(Counting, "begins") == []


class Nosy(Dreamer):
    """Encodes what its own spec hides, and steps by their place in a sequence."""

    def spaces(self, spec: Spec) -> Spec:
        from dataclasses import replace

        return replace(super().spaces(spec), hidden=frozenset({"target"}))

    def encode(self, data: TensorDict) -> Tensor:
        tokens = super().encode(data) + data["obs", "target"][..., None]
        return tokens if data.batch_dims == 1 else tokens.cumsum(1)


def test_encoders_that_look_elsewhere_are_caught() -> None:
    assert findings(Nosy, "encodes", task="world/reach") == [
        "encode() gives a step other tokens inside a sequence than alone, which is how they come when acting",
        "encode() sees observation 'target', which the spec hides",
    ]


class Early(Objective):
    """Counts the reward of the start state."""

    def returns(self, reward: Tensor, cont: Tensor, value: Tensor, slow: Tensor) -> tuple[Tensor, Tensor]:
        return super().returns(torch.cat([reward[:, :1], reward[:, :-1]], 1), cont, value, slow)


class Premature(Dreamer):
    def build_behaviors(self) -> dict[str, Behavior]:
        main = super().build_behaviors()["main"]
        width = self.rssm.latent_width
        early = {"extrinsic": Early(width, self.cfg.critic, replay=lambda batch: batch["reward"])}
        return {"main": Behavior(main.policy, early, self.cfg.actor)}


def test_reading_the_reward_of_the_start_is_caught() -> None:
    lines = findings(Premature, "index zero")
    assert {line.split("'")[1] for line in lines} == {"policy", "value", "repval"}
    assert all("reads a dream's reward at index 0" in line for line in lines)


# ---------------------------------------------------------------------------------------------------- in a run


class Bookkeeper(Dreamer):
    """Needs of every batch what only the replay's have."""

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        assert batch["stepid"].ndim == 3
        return super().prepare(batch, draws)


class Learning(Dreamer):
    """Counts reports in a buffer."""

    def build(self) -> dict[str, nn.Module]:
        self.register_buffer("reports", torch.zeros(()))
        return super().build()

    def report(self, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        self.reports += 1  # type: ignore[operator]
        return super().report(batch, draws)


def test_reports_are_made_as_in_a_run() -> None:
    (line,) = findings(Bookkeeper, "runs")
    assert line.startswith("while evaluating and reporting it raised KeyError")
    assert findings(Learning, "runs") == ["evaluation or report changes 'reports' of the agent"]


class Broken(Dreamer):
    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        raise RuntimeError("no idea what to do")


def test_an_agent_that_cannot_act_is_one_line() -> None:
    assert findings(Broken) == ["while acting and training it raised RuntimeError: no idea what to do"]


class One(Dreamer):
    """One of two that take the same names."""

    def build(self) -> dict[str, nn.Module]:
        return super().build() | {"probe": Linear(1, 1).requires_grad_(False)}

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        return super().context(data, state, draws).set("tag", torch.zeros(state.batch_size))


class Two(Dreamer):
    """The other."""

    def build(self) -> dict[str, nn.Module]:
        return super().build() | {"probe": Linear(1, 1).requires_grad_(False)}

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        return super().context(data, state, draws).set("tag", torch.ones(state.batch_size))


def test_parts_that_take_each_others_names_are_caught() -> None:
    both = type("OneTwo", (One, Two), {"promises": Promises(exempt={k: "" for k in PARTS if k not in ("parts", "learns")})})
    assert check_variant(both) == ["One and Two both add the module 'probe'", "One and Two both add the context 'tag'"]


# ---------------------------------------------------------------------------------------------------- knobs


@dataclass(frozen=True, kw_only=True)
class KnobConfig(agent.Config):
    """Knobs of every kind, some of them dead."""

    size: int = 3  # of the probe
    kind: Literal["plain", "double", "same"] = "plain"  # of the probe; same is a mistake
    dead: float = 1.0  # does nothing
    bare: float = 1.0
    words: str = "a"  # says nothing to the kit
    late: float = 1.0  # only used beside kind=double
    probe: HeadConfig = field(default_factory=HeadConfig)  # in use
    spare: HeadConfig = field(default_factory=HeadConfig)  # not in use


class Knobby(Dreamer):
    """A probe, and knobs on it."""

    Config = KnobConfig
    cfg: KnobConfig

    def build(self) -> dict[str, nn.Module]:
        width = super().build()["rssm"].latent_width
        return super().build() | {"probe": Head(width, self.cfg.probe), "sized": Linear(width, self.cfg.size)}  # type: ignore[arg-type]

    def scales(self) -> dict[str, float]:
        return super().scales() | {"probe": self.cfg.bare}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        latent = self.latent(post).detach()
        loss = self.nets["probe"](latent).loss(batch["reward"]) + self.nets["sized"](latent).square().sum(-1)
        return super().model_losses(batch, post) | {"probe": loss * (2 * self.cfg.late if self.cfg.kind == "double" else 1)}


def test_every_dead_or_unexplained_knob_is_named() -> None:
    lines = findings(Knobby, "knobs")
    same = "give the same losses, weights and actions"
    assert lines == [
        "knob 'bare' has no comment beside it",
        f"knob 'kind' changes nothing: 'plain' and 'same' {same}",
        f"knob 'dead' changes nothing: 1.0 and 2.0, 0.5, 0.0 {same}",
        "knob 'words' ('a') could not be turned: name values for it in promises.turn",
        f"knob 'late' changes nothing: 1.0 and 2.0, 0.5, 0.0 {same}",
        "no knob of the group 'spare' changes anything",
    ]


class Fussy(Dreamer):
    """Beside another variant it does not take `kind=double`, and says so."""

    says = "choose plain: kind=double does not go with others"

    def spaces(self, spec: Spec) -> Spec:
        if self.cfg.kind == "double":  # type: ignore[attr-defined]
            raise ConfigError(self.says)
        return super().spaces(spec)


def test_a_combination_may_refuse_a_value_by_the_knobs_name_and_not_otherwise() -> None:
    spared = (*PARTS, "size", "dead", "bare", "words", "probe", "spare")
    exempt = {k: "" for k in spared if k not in ("learns", "knobs")}
    promises = Promises(turn={"kind": ("double",)}, beside={"late": {"kind": "double"}}, exempt=exempt)
    both = type("KnobbyFussy", (Knobby, Fussy), {"promises": promises})
    assert check_variant(both) == ["knob 'bare' has no comment beside it"]
    vague = type("Vague", (both,), {"says": "no"})
    assert check_variant(vague) == ["while turning its knobs it raised ConfigError: no"]


def test_one_variant_alone_takes_every_value_that_it_offers() -> None:
    class Alone(Knobby):
        promises = Promises(exempt=dict.fromkeys((*OTHERS, "size", "dead", "words", "probe", "spare", "late"), ""))

        def spaces(self, spec: Spec) -> Spec:
            if self.cfg.kind == "double":
                raise ConfigError(Fussy.says)
            return super().spaces(spec)

    assert check_variant(Alone)[1:] == [f"knob 'kind' set to 'double' raises ConfigError: {Fussy.says}"]


OTHERS = {name: "" for name in PARTS if name not in ("learns", "knobs")}


def test_promises_say_how_a_knob_is_turned() -> None:
    class Spoken(Knobby):
        promises = Promises(
            turn={"words": ("b",), "kind": ("double",)},
            beside={"late": {"kind": "double"}},
            exempt={
                "dead": "kept for old configurations",
                "spare": "not yet",
                "bare": "",
                **{k: "" for k in PARTS if k not in ("learns", "knobs")},
            },
            neutral={"sise": 3},
        )

    assert check_variant(Spoken) == [
        "knob 'bare' has no comment beside it",
        "knob 'words' changes nothing: 'a' and 'b' give the same losses, weights and actions",
        "promises name 'sise', which is no knob of the variant",
    ]


def test_added_knobs_are_those_that_the_base_does_not_have() -> None:
    knobs = added_knobs(Knobby)
    assert [k.leaf.path for k in knobs if k.group == k.leaf.path] == ["size", "kind", "dead", "bare", "words", "late"]
    assert {k.group for k in knobs if k.group != k.leaf.path} == {"probe", "spare"}
    assert added_knobs(Dreamer) == []


def test_candidates_differ_from_the_value() -> None:
    assert candidates(bool, True) == [False]
    assert candidates(int, 1) == [2, 0]
    assert candidates(float, 0.0) == [1.0, 0.5]
    assert candidates(Literal["a", "b"], "a") == ["b"]
    assert candidates(tuple[int, ...], (1, 2)) == [(1,), (1, 2, 2), (2, 2), (0, 2)]
    assert candidates(int | None, None) == [2, 0, 1]
    assert candidates(str, "a") == []


# ---------------------------------------------------------------------------------------------------- tasks of one's own


class Corridor:
    """A task with an extra of its own."""

    spec = Spec(obs={"place": Space(shape=(1,))}, action={"action": Space(dtype="int32", classes=2)}, extras={"cost": Space()})
    place = 0

    def reset(self, seed: int | None = None) -> Step:
        self.place = 0
        return self._row(True)

    def step(self, action: dict[str, np.ndarray]) -> Step:
        self.place += 1 if action["action"] else -1
        return self._row(False)

    def _row(self, first: bool) -> Step:
        obs = {"place": np.array([self.place], np.float32)}
        return {"obs": obs, "reward": np.float32(0), "is_first": first, "is_last": False, "is_terminal": False, "cost": np.float32(1)}

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None: ...


class Costly(Dreamer):
    """Needs an extra of the task."""

    promises = Promises(requires=("cost",))

    def scales(self) -> dict[str, float]:
        return super().scales() | {"cost": 1.0}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        return super().model_losses(batch, post) | {"cost": batch["cost"] * self.latent(post).mean(-1)}


def test_a_task_may_be_a_function() -> None:
    assert check_variant(Costly, task=Corridor) == []
    assert registry.variant("base") is not None
