"""Variants joined by name: one class, one configuration, whatever the order; and what cannot be joined says why."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.__main__ import main
from polydream.core import registry
from polydream.core.agent import Config, Dreamer
from polydream.core.compose import EXCLUSIVE, SEAMS, changed_seams, compose
from polydream.core.config import ConfigError, describe, override, to_dict
from polydream.core.knobs import Scales
from polydream.core.presets import resolve, restore
from polydream.core.promises import Promises, promises_of, require
from polydream.core.rng import Draws
from polydream.core.specs import Space
from tests.fixtures import VECTOR, batch, tiny

THRIFTY = "examples.thrifty:Thrifty"


@dataclass(frozen=True, kw_only=True)
class AddScales(Scales):
    """One more weight."""

    add: float = 1.0  # of the loss `add`


@dataclass(frozen=True, kw_only=True)
class AddConfig(Config):
    """Knobs of Add."""

    amount: float = 2.0  # that is added
    starts: int = 3  # of three steps
    scales: AddScales = field(default_factory=AddScales)


class Add(Dreamer):
    """Adds to rewards."""

    Config = AddConfig
    cfg: AddConfig
    promises = Promises(requires=("pos",), neutral={"amount": 0.0})

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        return {k: v + self.cfg.amount for k, v in super().rewards(dream).items()}

    def scales(self) -> dict[str, float]:
        return super().scales() | {"add": self.cfg.scales.add}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        return super().model_losses(batch, post) | {"add": self.latent(post).mean(-1)}


@dataclass(frozen=True, kw_only=True)
class TimesScales(Scales):
    """One weight more, one default changed."""

    times: float = 1.0  # of the loss `times`
    rep: float = 0.2


@dataclass(frozen=True, kw_only=True)
class TimesConfig(Config):
    """Knobs of Times."""

    factor: float = 3.0  # that is multiplied with
    scales: TimesScales = field(default_factory=TimesScales)


class Times(Dreamer):
    """Multiplies rewards."""

    Config = TimesConfig
    cfg: TimesConfig
    promises = Promises(requires=("height",), exempt={"loss/policy": "other rewards"})

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        return {k: v * self.cfg.factor for k, v in super().rewards(dream).items()}

    def scales(self) -> dict[str, float]:
        return super().scales() | {"times": self.cfg.scales.times}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        return super().model_losses(batch, post) | {"times": self.latent(post).square().mean(-1)}


def both(*parts: tuple[str, type[Dreamer]]) -> type[Dreamer]:
    return compose(parts or (("times", Times), ("add", Add)))


def small(cls: type[Dreamer], **changes: Any) -> Any:
    """The class's own configuration at the size of `tiny`."""
    usual, little = cls.Config(), tiny()
    sizes = {f.name: getattr(little, f.name) for f in fields(Config) if f.name not in ("scales", "starts")}
    return replace(usual, **sizes, **changes)


# ---------------------------------------------------------------------------------------------------- one class


def test_the_order_of_names_changes_nothing_and_a_name_always_gives_the_same_class() -> None:
    combined = registry.variant(f"base+{THRIFTY}")
    assert combined is registry.variant(f"{THRIFTY}+base") is registry.variant(f" base + {THRIFTY} ")
    assert combined.__name__ == "BaseThrifty"
    assert [c.__name__ for c in combined.__mro__[1:4]] == ["Base", "Thrifty", "Dreamer"]
    assert (
        combined.__doc__
        == "DreamerV3 with nothing added (Hafner et al. 2025). + Dreams of reward minus effort; everything else is inherited."
    )
    one, other = both(("add", Add), ("times", Times)), both(("times", Times), ("add", Add))
    assert one.__mro__[1:] == other.__mro__[1:]


def test_seams_call_one_another_from_the_first_name_to_the_last() -> None:
    cls = both()
    dreamer = cls(VECTOR, small(cls))
    dream = dreamer.imagine(TensorDict({"deter": torch.zeros(2, 32), "stoch": torch.zeros(2, 4, 4)}, [2]), Draws(0))
    plain = Dreamer.rewards(dreamer, dream)["extrinsic"]
    torch.testing.assert_close(dreamer.rewards(dream)["extrinsic"], plain * 3.0 + 2.0)
    assert changed_seams(cls) == ["scales", "rewards", "model_losses"]


def test_a_combination_trains_saves_and_reads_back() -> None:
    cls = both()
    dreamer = cls(VECTOR, small(cls))
    metrics, _ = dreamer.update(batch(VECTOR), dreamer.optimizer(), Draws(0))
    assert {"loss/add", "loss/times", "loss/reward"} <= metrics.keys()
    cfg = resolve({"variant": f"base+{THRIFTY}"}, {"agent.price": "0.5"})
    assert restore(to_dict(cfg), [cfg.variant]) == cfg
    assert cfg.agent.price == 0.5  # type: ignore[attr-defined]
    # Worker processes get the run's configuration.
    run = replace(cfg, agent=cls.Config(amount=7.0))  # type: ignore[call-arg]
    assert to_dict(cloudpickle.loads(cloudpickle.dumps(run))) == to_dict(run)


def test_seams_are_the_methods_that_say_so() -> None:
    said = [name for name, method in vars(Dreamer).items() if (getattr(method, "__doc__", None) or "").startswith("Seam:")]
    assert sorted(SEAMS) == sorted(said)
    assert set(EXCLUSIVE) <= set(SEAMS)


# ---------------------------------------------------------------------------------------------------- one configuration


def test_the_configuration_has_the_knobs_of_all_and_the_defaults_that_any_changed() -> None:
    config = both().Config
    assert issubclass(config, AddConfig) and issubclass(config, TimesConfig)
    cfg = config()
    assert (cfg.amount, cfg.factor, cfg.starts) == (2.0, 3.0, 3)  # type: ignore[attr-defined]
    assert (cfg.scales.add, cfg.scales.times, cfg.scales.rep, cfg.scales.dyn) == (1.0, 1.0, 0.2, 1.0)  # type: ignore[attr-defined]
    comments = {o.path: o.comment for o in describe(cfg)}
    assert comments["amount"] == "that is added"
    assert comments["starts"] == "of three steps"
    assert comments["scales.times"] == "of the loss `times`"
    assert override(cfg, "scales.add", "5").scales.add == 5.0  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        cfg.amount = 1.0  # type: ignore[attr-defined]


def test_the_first_base_does_not_hide_the_default_that_the_second_changed() -> None:
    """A dataclass that inherits from two takes the first one's whole list of fields, unchanged ones included."""

    @dataclass(frozen=True, kw_only=True)
    class First(Config):
        one: int = 1  # a knob

    @dataclass(frozen=True, kw_only=True)
    class Second(Config):
        two: int = 2  # a knob
        dream: int = 6  # fewer of them

    a, b = type("A", (Dreamer,), {"Config": First}), type("B", (Dreamer,), {"Config": Second})
    cfg = compose([("a", a), ("b", b)]).Config()
    assert (cfg.one, cfg.two, cfg.dream) == (1, 2, 6)  # type: ignore[attr-defined]
    assert {o.path: o.comment for o in describe(cfg)}["dream"] == "fewer of them"


def refused(*parts: tuple[str, type[Dreamer]]) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(parts)
    return str(caught.value)


def test_knobs_and_defaults_that_clash_are_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Same(Config):
        amount: float = 2.0

    @dataclass(frozen=True, kw_only=True)
    class Later(Config):
        starts: int = 4

    @dataclass(frozen=True, kw_only=True)
    class OtherScales(Scales):
        rep: float = 0.3

    @dataclass(frozen=True, kw_only=True)
    class Deep(Config):
        scales: OtherScales = field(default_factory=OtherScales)

    def holder(config: type) -> type[Dreamer]:
        return type("Holder", (Dreamer,), {"Config": config})

    assert refused(("add", Add), ("x", holder(Same))) == "variant 'add+x': add and x both have a knob 'amount'"
    assert refused(("x", holder(Later)), ("add", Add)) == (
        "variant 'add+x': the default of 'starts' is changed in two ways: add says 3, x says 4"
    )
    assert refused(("times", Times), ("x", holder(Deep))) == (
        "variant 'times+x': the default of 'scales.rep' is changed in two ways: times says 0.2, x says 0.3"
    )


# ---------------------------------------------------------------------------------------------------- refusals


class Actor(Dreamer):
    """Owns act."""

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        return super().act(state, draws)


class Manager(Dreamer):
    """Owns act, too."""

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        return super().act(state, draws)


class Child(Add):
    """Contains Add."""


def test_what_cannot_be_combined_says_why() -> None:
    assert refused(("b", Manager), ("a", Actor)) == "variant 'a+b': a and b both own the seam 'act', which only one of a combination may"
    assert refused(("add", Add), ("add", Add)) == "variant 'add+add' names 'add' twice"
    assert refused(("add", Add), ("plus", Add)) == "variant 'add+plus' names 'add' twice (as 'plus')"
    assert refused(("add", Add), ("child", Child)) == "variant 'add+child': 'child' is already a 'add', so leave out 'add'"
    assert compose([("actor", Actor), ("add", Add)]).__name__ == "ActorAdd"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base+bsae", "did you mean base?"),
        ("base+", "no variant named ''"),
        ("base+base", "names 'base' twice"),
        ("base+json:JSONDecoder", "not a class that inherits from"),
        ("base+json:JSONDecodr", "did you mean 'JSONDecoder'?"),
    ],
)
def test_wrong_names_in_a_combination(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + message.replace("?", r"\?")):
        resolve({"variant": name})


# ---------------------------------------------------------------------------------------------------- promises


def test_promises_add_up_along_the_classes() -> None:
    found = promises_of(both())
    assert set(found.requires) == {"pos", "height"}
    assert (found.neutral, found.exempt) == ({"amount": 0.0}, {"loss/policy": "other rewards"})
    assert promises_of(Dreamer) == Promises()
    with pytest.raises(ConfigError, match=r"Odd.promises is a dict, not a polydream.core.promises.Promises"):
        promises_of(type("Odd", (Dreamer,), {"promises": {}}))


def test_a_task_must_offer_what_is_required() -> None:
    require(both(), VECTOR)
    require(both(), replace(VECTOR, obs={"pos": Space()}, extras={"height": Space()}))
    with pytest.raises(ConfigError, match=r"TimesX needs 'height' from its task, which offers pos, hight; the nearest is 'hight'"):
        require(type("TimesX", (Times,), {}), replace(VECTOR, obs={"pos": Space(), "hight": Space()}))


def test_an_agent_refuses_a_task_before_it_builds_anything() -> None:
    class Needy(Times):
        def build(self) -> dict[str, torch.nn.Module]:
            raise AssertionError("nothing may be built")

    with pytest.raises(ConfigError, match=r"Needy needs 'height' from its task, which offers pos, hight; the nearest is 'hight'"):
        Needy(replace(VECTOR, obs={"pos": Space(), "hight": Space()}), small(Needy))


def test_training_refuses_a_task_without_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    Path("needy.py").write_text(
        "from polydream.core.agent import Dreamer\nfrom polydream.core.promises import Promises\n"
        "class Needy(Dreamer):\n    '''Needs much.'''\n    promises = Promises(requires=('instruction',))\n"
    )
    assert main(["train", "--variant", "needy:Needy", "--task", "world/chain", "--preset", "smoke"]) == 2
    assert capsys.readouterr().err == ("polydream: Needy needs 'instruction' from its task, which offers vector; the nearest is 'vector'\n")
    assert not Path("runs").exists()


def test_who_descends_from_a_variant_takes_its_place() -> None:
    for first in ("ensemble", "multitask"):
        usual, own = registry.variant(f"{first}+goal"), registry.variant(f"benchmarks.goals:Held+{first}")
        theirs = [c.__name__ for c in own.__mro__[1:] if c.__name__ != "Held"]
        assert theirs == [c.__name__ for c in usual.__mro__[1:]]
