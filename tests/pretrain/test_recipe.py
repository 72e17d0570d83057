"""A recipe says everything, and says clearly what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.pretrain.conftest import make_recipe, recipe_values
from transferbench import storage
from transferbench.errors import UserError
from transferbench.pretrain.recipe import (
    differences,
    dumps,
    load_recipe,
    parse_recipe,
    recipe_names,
    resolve,
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(recipe_values()))
    return path


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(recipe_values(**changes), "mine.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


SGD = {"name": "sgd", "lr": 0.1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 3}, "mine.toml: unknown key 'epoch'; did you mean 'epochs'?"),
        (
            {"optimizer": {**SGD, "weight_deca": 0}},
            "mine.toml: unknown key 'optimizer.weight_deca'; did you mean 'weight_decay'?",
        ),
        (
            {"views": [{"size": 16, "crop": {"scales": [0.1, 1]}}]},
            "mine.toml: unknown key 'views.0.crop.scales'; did you mean 'scale'?",
        ),
        (
            {"optimizer": {**SGD, "group": [{"name": "weights", "weight_decays": 0}]}},
            "mine.toml: unknown key 'optimizer.group.0.weight_decays'; did you mean",
        ),
        ({"backbone": {}}, "mine.toml: the key 'backbone.name' is missing"),
        ({"epochs": "ten"}, "mine.toml: epochs must be a valid integer, not 'ten'"),
        ({"epochs": "10"}, "mine.toml: epochs must be a valid integer, not '10'"),
        ({"epochs": True}, "mine.toml: epochs must be a valid integer, not True"),
        ({"epochs": 0}, "mine.toml: epochs must be greater than 0, not 0"),
        (
            {"eval_size": 8193},
            "mine.toml: eval_size must be less than or equal to 8192, not 8193",
        ),
        (
            {"image_size": 10**9},
            "mine.toml: image_size must be less than or equal to 8192, not 1000000000",
        ),
        ({"seed": -1}, "mine.toml: seed must be greater than or equal to 0, not -1"),
        (
            {"precision": "bfloat"},
            "mine.toml: precision must be 'float32' or 'bfloat16', not 'bfloat'; did you mean "
            "'bfloat16'?",
        ),
        (
            {"optimizer": {"name": "sgd", "lr": float("nan")}},
            "mine.toml: optimizer.lr must be a finite number, not nan",
        ),
        ({"views": []}, "mine.toml: views"),
        ({"method": "swaw"}, "unknown method 'swaw' in mine.toml; did you mean 'swav'?"),
        (
            {"phases": [{"from_epoch": 3}]},
            "mine.toml: phases: from_epoch must rise and stay below epochs (3), not 3",
        ),
    ],
)
def test_a_wrong_key_type_or_range_is_one_line(changes: dict[str, Any], said: str) -> None:
    assert refusal(changes).startswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optimizer": {"name": "sgd"}},
            "mine.toml: optimizer: give exactly one of 'lr' (as is) and 'base_lr' (per 256 images)",
        ),
        (
            {"normalization": "imagnet"},
            "mine.toml: normalization: no normalization 'imagnet'; valid: imagenet, cifar, none",
        ),
        (
            {"views": [{"size": 16, "crop": {"scale": [0.5, 0.1]}}]},
            "mine.toml: views.0.crop: scale must be [smallest, largest], not [0.5, 0.1]",
        ),
        (
            {"optimizer": {**SGD, "group": [{"name": "weights", "lr": 1, "base_lr": 1}]}},
            "mine.toml: optimizer.group.0: group 'weights': give 'lr' or 'base_lr', not both",
        ),
        (
            {"schedule": {"warmup_epochs": 3.5}},
            "mine.toml: schedule.warmup_epochs (3.5) must not exceed the schedule's number of "
            "epochs (3)",
        ),
        (
            {
                "schedule": {"warmup_epochs": 3},
                "phases": [
                    {"from_epoch": 1, "lr": 0.5},
                    {"from_epoch": 2, "schedule": {"name": "swav", "warmup_epochs": 2}},
                ],
            },
            "mine.toml: phases.1.schedule.warmup_epochs (2) must not exceed the schedule's "
            "number of epochs (1)",
        ),
        (
            {"schedule": {"name": "step", "milestones": [2, 3]}},
            "mine.toml: schedule.milestones: the rate would never drop at epoch 3, for the "
            "schedule has 3 epochs, counted from 0",
        ),
        (
            {"schedule": {"name": "step", "every": 3}},
            "mine.toml: schedule.every: the rate would never drop at epoch 3, for the schedule "
            "has 3 epochs, counted from 0",
        ),
        (
            {"schedule": {"name": "cosine", "epochs": 4}},
            "mine.toml: schedule.epochs (4) must not exceed 3",
        ),
        (
            {"schedule": {"name": "cosine", "epochs": 2, "warmup_epochs": 3}},
            "mine.toml: schedule.warmup_epochs (3) must not exceed the schedule's number of "
            "epochs (2)",
        ),
        (
            {"schedule": {"name": "lambda", "formula": "1 / (epoch - 2)"}},
            "mine.toml: schedule.formula: '1 / (epoch - 2)' must be a finite number of at least 0 "
            "in every epoch, but at epoch 0 of 3 it is -0.5",
        ),
        (
            {"schedule": {"name": "lambda", "formula": "0.9 ** epohc"}},
            "mine.toml: schedule: a formula has no name 'epohc'; did you mean 'epoch'?",
        ),
        (
            {
                "optimizer": {
                    "name": "adam-then-sgd",
                    "lr": 0.1,
                    "switch_epoch": 3,
                    "sgd_factor": 9.0,
                }
            },
            "mine.toml: optimizer.switch_epoch (3) must be below epochs (3), or the optimizer "
            "never switches",
        ),
        (
            {"optimizer": {**SGD, "lr_scaling": "sqrt"}},
            "mine.toml: optimizer: 'lr_scaling' scales 'base_lr'; 'lr' is taken as it is",
        ),
    ],
)
def test_a_rule_between_keys_is_told_in_its_own_words(changes: dict[str, Any], said: str) -> None:
    assert refusal(changes) == said


def test_a_misspelt_key_is_told_before_the_key_that_it_makes_missing() -> None:
    values = recipe_values()
    values["batchsize"] = values.pop("batch_size")
    with pytest.raises(UserError, match="unknown key 'batchsize'; did you mean 'batch_size'"):
        parse_recipe(values, "mine.toml")


def test_whole_numbers_serve_where_fractions_are_meant() -> None:
    assert make_recipe(optimizer={"name": "sgd", "lr": 1}).optimizer.lr == 1.0


def test_a_warmup_may_last_the_whole_run() -> None:
    assert make_recipe(epochs=1).schedule.warmup_epochs == 1
    assert make_recipe(epochs=1, schedule={"name": "epoch-cosine"}).epochs == 1


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("tiny/")])
def test_a_tiny_recipe_can_be_tried_for_one_epoch(name: str) -> None:
    assert load_recipe(name, overrides=["epochs=1"]).epochs == 1


def test_overrides_reach_tables_lists_and_new_keys(file: Path) -> None:
    recipe = load_recipe(
        "mine.toml",
        overrides=[
            "optimizer.lr=0.3",
            "views.0.size=12",
            "views.1.crop.scale=[0.2, 0.4]",
            "precision=bfloat16",
            "normalization.mean=[0, 0, 0]",
            "settings.prototypes = 5",
        ],
    )
    assert recipe.optimizer.lr == 0.3
    assert recipe.views[0].size == 12
    assert recipe.views[1].crop is not None
    assert recipe.views[1].crop.scale == (0.2, 0.4)
    assert recipe.precision == "bfloat16"
    assert recipe.normalization.mean == (0, 0, 0)
    assert recipe.settings["prototypes"] == 5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lrr=0.3", "--set optimizer.lrr=0.3: unknown key 'optimizer.lrr'"),
        ("optimizer.lr", "write key=value"),
        ("=3", "write key=value"),
        ("views.7.size=16", "views has the positions 0 to 1"),
        ("views.first.size=16", "views has the positions 0 to 1"),
        ("epochs.more=16", "epochs is a value, not a table"),
        ("method=[", "is not a TOML value"),
        ("epochs=1\nseed=5", "is not a TOML value"),
    ],
)
def test_a_wrong_override_is_one_line(file: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("mine.toml", overrides=[override])
    assert said in str(caught.value)


def test_given_values_replace_the_files_unless_none(file: Path) -> None:
    recipe = load_recipe("mine.toml", seed=7, data=None)
    assert (recipe.seed, recipe.data) == (7, "noise")


def test_a_recipe_here_shadows_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"tiny/swav", "tiny/byol", "tiny/simclr-v1", "small/supervised"} <= set(recipe_names())
    (tmp_path / "recipes" / "tiny").mkdir(parents=True)
    path = tmp_path / "recipes" / "tiny" / "swav.toml"
    path.write_text(tomli_w.dumps(recipe_values(epochs=77)))
    (tmp_path / "recipes" / "own.toml").write_text(tomli_w.dumps(recipe_values()))
    assert load_recipe("tiny/swav").epochs == 77
    assert "own" in recipe_names()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiny/swaw", "unknown recipe 'tiny/swaw'; did you mean 'tiny/swav'"),
        ("nowhere.toml", "there is no recipe file nowhere.toml"),
    ],
)
def test_an_unknown_recipe_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(text)
    assert str(caught.value).startswith(said)


def test_a_file_that_is_no_toml_is_one_line(file: Path) -> None:
    file.write_text("method = \n")
    with pytest.raises(UserError, match=r"^mine.toml is not valid TOML: .*line 1"):
        load_recipe("mine.toml")


def test_resolving_fills_every_default_and_names_a_wrong_setting() -> None:
    recipe = resolve(make_recipe())
    assert recipe.settings["temperature"] == 0.1
    assert recipe.eval_size == 16
    assert resolve(recipe) == recipe
    with pytest.raises(UserError, match=r"'settings.prototype'; did you mean 'prototypes'"):
        resolve(make_recipe(settings={"prototype": 4}))
    with pytest.raises(UserError, match=r"^test.toml: settings.prototypes must be"):
        resolve(make_recipe(settings={"prototypes": "many"}))


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_parses_back_equal(name: str) -> None:
    recipe = resolve(load_recipe(name))
    back = parse_recipe(tomllib.loads(dumps(recipe)), name)
    assert back == recipe
    assert back.digest() == recipe.digest()


def test_phases_parse_back_equal() -> None:
    phases = [{"from_epoch": 2, "lr": 0.5, "schedule": {"name": "constant"}}]
    recipe = resolve(make_recipe(phases=phases))
    assert parse_recipe(tomllib.loads(dumps(recipe)), "back") == recipe


def test_differences_name_keys_and_both_values() -> None:
    one = make_recipe()
    other = make_recipe(epochs=4, optimizer={"name": "sgd", "lr": 0.1, "weight_decay": 1e-4})
    assert differences(one, other) == ["epochs (3 / 4)", "optimizer.lr (0.05 / 0.1)"]
    assert differences(one, one) == []


def test_a_plugin_brings_its_recipes_unimported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, about = tmp_path / "plug", tmp_path / "plug-1.dist-info"
    (package / "recipes" / "tiny").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "recipes" / "tiny" / "plugged.toml").write_text(tomli_w.dumps(recipe_values()))
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[transferbench.recipes]\nplug = plug.recipes\n")
    monkeypatch.syspath_prepend(tmp_path)
    storage._plugin_folders.cache_clear()
    try:
        assert "tiny/plugged" in recipe_names()
        assert load_recipe("tiny/plugged").method == "swav"
    finally:
        storage._plugin_folders.cache_clear()


def test_reading_recipes_and_run_folders_imports_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "from transferbench.pretrain.recipe import load_recipe\n"
        "import transferbench.pretrain.run\n"
        "load_recipe('tiny/swav')\n"
        "heavy = {'torch', 'timm', 'sklearn', 'datasets', 'pandas', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
