"""Putting a configuration together: order, sizes, what presets allow."""

from __future__ import annotations

import pytest

from polydream.core.agent import Config, Dreamer
from polydream.core.config import ConfigError, to_dict
from polydream.core.presets import PRESETS, SIZES, resolve, restore
from polydream.core.profiles import PROFILES
from polydream.core.specs import Space, Spec

IMAGE18 = Spec(obs={"image": Space(shape=(64, 64, 3), dtype="uint8")}, action={"action": Space(dtype="int32", classes=18)})
ATARI = Spec(obs={"image": Space(shape=(96, 96, 1), dtype="uint8")}, action={"action": Space(dtype="int32", classes=18)})
IMAGE6 = Spec(obs={"image": Space(shape=(64, 64, 3), dtype="uint8")}, action={"action": Space(shape=(6,))})
PROPRIO = Spec(obs={"vector": Space(shape=(24,))}, action={"action": Space(shape=(6,))})

COUNTS = {
    "size1m": (688_004, 769_762, 686_846, 640_867),
    "size12m": (10_498_772, 11_808_850, 10_494_158, 9_738_019),
    "size25m": (23_496_244, 26_444_402, 23_489_326, 21_782_947),
    "size50m": (41_659_284, 46_900_882, 41_650_062, 38_612_003),
    "size100m": (93_482_068, 105_276_626, 93_468_238, 86_622_499),
    "size200m": (165_967_124, 186_936_082, 165_948_686, 153_769_507),
    "size400m": (372_924_052, 420_106_130, 372_896_398, 345_473_059),
}
"""Trainable parameters of the released model by size, for four kinds of task."""


@pytest.mark.parametrize("size", sorted(COUNTS))
def test_parameter_counts_are_those_of_the_released_sizes(size: str) -> None:
    import torch

    for spec, expected in zip((IMAGE18, ATARI, IMAGE6, PROPRIO), COUNTS[size], strict=True):
        with torch.device("meta"):  # shapes only: the largest would not fit into memory
            agent = _shapes(spec, size)
        assert sum(p.numel() for p in agent.parameters() if p.requires_grad) == expected


def _shapes(spec: Spec, size: str) -> Dreamer:
    from unittest.mock import patch

    with patch("polydream.core.agent.initialize"):
        return Dreamer(spec, SIZES[size](Config()))


def test_the_laptop_is_smaller_than_the_smallest() -> None:
    count = sum(p.numel() for p in Dreamer(PROPRIO, SIZES["laptop"](Config())).parameters() if p.requires_grad)
    assert count < COUNTS["size1m"][3]


def test_later_choices_win() -> None:
    cfg = resolve({"profile": "seed", "size": "size12m", "preset": "none"}, {"agent.rssm.deter": "640", "steps": "1e4"})
    assert cfg.agent.dynamics == "gru" and cfg.agent.rssm.hidden == 256 and cfg.agent.rssm.deter == 640 and cfg.steps == 10_000
    assert resolve({}).preset == "laptop" and resolve({"size": "size1m"}).preset == "none"
    assert resolve({"profile": "seed", "preset": "none"}).agent.rssm.deter == 512
    both, alone = resolve({"preset": "laptop", "size": "size12m"}), resolve({"size": "size12m"})
    assert both.size == "size12m" and both.agent.rssm == alone.agent.rssm, "a size that is named is the size"
    assert (both.length, both.agent.optim.lr) == (32, 4e-4), "and the rest is the preset's"
    assert (
        resolve({"preset": "demo"}).task.startswith("dmc/")
        and resolve({"preset": "demo", "task": "gym/CartPole-v1"}).task == "gym/CartPole-v1"
    )


def test_every_name_resolves_and_round_trips() -> None:
    for profile in PROFILES:
        for preset in PRESETS:
            chosen = {"preset": preset} if preset == "reproduce" else {"preset": preset, "profile": profile}
            cfg = resolve(chosen)
            assert restore(to_dict(cfg)) == cfg
    for size in SIZES:
        assert resolve({"size": size}).size == size


def test_the_published_settings_cannot_be_weakened() -> None:
    cfg = resolve({"preset": "reproduce"}, {"seed": "3"})
    assert (cfg.agent.rssm.deter, cfg.ratio, cfg.batch, cfg.length, cfg.env.repeat, cfg.seed, cfg.steps) == (
        2048,
        512,
        16,
        64,
        2,
        3,
        500_000,
    )
    assert resolve({"preset": "reproduce"}, {"env.obs": "pixels"}).steps == 1_000_000
    for locked in ({"ratio": "32"}, {"steps": "100"}, {"agent.optim.lr": "1"}, {"env.repeat": "4"}, {"replay.capacity": "10"}):
        with pytest.raises(ConfigError, match=next(iter(locked))):
            resolve({"preset": "reproduce"}, locked)
    with pytest.raises(ConfigError, match="size"):
        resolve({"preset": "reproduce", "size": "laptop"})
    with pytest.raises(ConfigError, match="no published settings for 'gym'"):
        resolve({"preset": "reproduce", "task": "gym/CartPole-v1"})


@pytest.mark.parametrize(
    ("selection", "overrides", "hint"),
    [
        ({"variant": "bse"}, {}, "base"),
        ({"profile": "v2"}, {}, "v"),
        ({"size": "size1"}, {}, "size1m"),
        ({"preset": "lap"}, {}, "laptop"),
        ({"variant": "json:JSONDecoder"}, {}, "inherits from"),
        ({}, {"steps": "-5"}, "steps must be at least 1"),
        ({}, {"agent.encoder.norm": "batch"}, "rms, layer, none"),
        ({}, {"agent.augment": "flip"}, "none, shift"),
        ({}, {"agent.rssm.detr": "1"}, "agent.rssm.deter"),
        ({}, {"agent.rssm.deter": "many"}, "agent.rssm.deter"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(selection: dict[str, str], overrides: dict[str, str], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        resolve(selection, overrides)


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"agent.optim.lr_model": "1e-3"},
            "agent.optim.lr_model does nothing with agent.optim.groups=single, which goes by agent.optim.lr",
        ),
        ({"agent.optim.clip_actor": "1"}, "goes by agent.optim.clip"),
        ({"agent.optim.groups": "split", "agent.optim.lr": "1e-3"}, r"goes by agent.optim.lr_\{model,actor,critic\}"),
    ],
)
def test_a_rate_that_nobody_goes_by_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve({}, options)
    resolve({}, {"agent.optim.groups": "split", "agent.optim.lr_model": "1e-3", "agent.optim.clip_critic": "1"})
    resolve({"profile": "seed"}, {"agent.optim.lr_actor": "1e-3"})
    resolve({}, {"agent.optim.lr": "1e-3", "agent.optim.clip": "1"})
