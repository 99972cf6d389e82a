"""Configurations: from the command line, from JSON, with errors that name what is wrong."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import pytest
from net2net import options
from net2net.training import TrainConfig, runs


def parse(*argv: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, TrainConfig)
    return options.override(TrainConfig(), options.given(TrainConfig, parser.parse_args(argv)))


def test_nothing_given_is_the_default() -> None:
    assert parse() == TrainConfig()


def test_every_kind_of_option() -> None:
    config = parse("--steps", "7", "--lr", "1e-3", "--name", "a", "--compile", "--no-in-memory", "--image-size", "32")
    assert (config.loop.steps, config.optimizer.lr, config.run.name) == (7, 1e-3, "a")
    assert (config.loop.compile, config.data.in_memory, config.data.image_size) == (True, False, 32)


def test_growths_are_joined() -> None:
    config = parse("--grow", "step 5: widen 1.5", "--grow", "step 9: deepen 1", "--growth-lr", "0.5")
    assert config.growth.grow == "step 5: widen 1.5; step 9: deepen 1"
    assert options.from_json(TrainConfig, json.loads(json.dumps(options.to_json(config)))) == config


def test_names_are_unlike_in_all_sections() -> None:
    count = sum(len(dataclasses.fields(getattr(TrainConfig(), f.name))) for f in dataclasses.fields(TrainConfig))
    assert len(options.leaves(TrainConfig)) == count


def test_json_there_and_back() -> None:
    config = parse("--eps", "0.5", "--threads", "2", "--precision", "bfloat16")
    assert options.from_json(TrainConfig, json.loads(json.dumps(options.to_json(config)))) == config
    assert options.from_json(TrainConfig, {}) == TrainConfig()
    assert options.from_json(TrainConfig, {"optimizer": {"lr": 1}}).optimizer.lr == 1.0  # a float in JSON


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"optimizer": {"speed": 1}}, r"optimizer.speed \(=1\) is unknown"),
        ({"loop": {"lr": 0.1}}, r"loop.lr \(=0.1\) is unknown"),
        ({"optimiser": {"lr": 0.1}}, "section 'optimiser' is unknown; there are data, model"),
        ({"optimizer": {"lr": "fast"}}, r"lr \(='fast'\) must be of type float"),
        ({"optimizer": {"lr": 0}}, r"lr \(=0.0\) must be above 0"),
        ({"optimizer": {"lr": None}}, r"lr \(=None\) must be of type float"),
        ({"loop": {"steps": True}}, r"steps \(=True\) must be of type int"),
        ({"schedule": {"schedule": "linear"}}, r"schedule \(='linear'\) must be one of constant"),
        ({"optimizer": {"lr": math.inf}}, r"lr \(=inf\) must be finite"),
        ({"optimizer": {"eps": math.inf}}, r"eps \(=inf\) must be finite"),
        ({"optimizer": {"weight_decay": math.inf}}, r"weight_decay \(=inf\) must be finite"),
        ({"schedule": {"decay_epochs": math.inf}}, r"decay_epochs \(=inf\) must be finite"),
        ({"schedule": {"decay_rate": 1.5}}, r"decay_rate \(=1.5\) must be at most 1"),
        ({"schedule": {"final_lr": 2}}, r"final_lr \(=2.0\) must be at most 1"),
        ({"run": {"seed": 99999999999999999999}}, r"seed \(=99999999999999999999\) must be below 9223372036854775808"),
        ({"model": {"ema": math.nan}}, r"ema \(=nan\) must be at least 0"),
        ({"growth": {"grow": "step 5"}}, r"growth schedule, entry 1, column 7: expected a colon"),
        ({"growth": {"growth_lr": "nan"}}, r"growth_lr \(='nan'\) must be one of tenth, dynamics, keep or a positive"),
        ({"growth": {"growth_state": "all"}}, r"growth_state \(='all'\) must be one of exact"),
        ([], r"\(=\[\]\) must be an object"),
    ],
)
def test_what_is_wrong_is_named(document: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.from_json(TrainConfig, document)


def test_unknown_override() -> None:
    with pytest.raises(ValueError, match=r"speed \(=3\) is not an option; there are data"):
        options.override(TrainConfig(), {"speed": 3})


def test_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        runs.read_config(tmp_path / "config.json")
