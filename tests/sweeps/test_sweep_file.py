"""The runs that a sweep's file describes, and that all its mistakes are reported before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.sweeps.check import check_sweep
from nlora.sweeps.expand import read_sweep
from sweeps import BASE, Machine, names, swept, write_sweep

# The runs


def test_variants_times_seeds_the_first_seed_of_all_first(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    assert names(sweep) == ["plain-seed1", "penalty-seed1", "plain-seed2", "penalty-seed2"]
    configs = check_sweep(sweep)
    config = configs[tmp_path / "out" / "penalty-seed2"]
    assert (config.name, config.seed, config.method.name, config.method.options) == (
        "penalty", 2, "nlora", {"weight": 1e-5},
    )  # fmt: skip
    assert config.output_dir == str(tmp_path / "out" / "penalty-seed2")
    assert (config.model, config.train.batch_size) == ("tiny", 8)
    assert configs[tmp_path / "out" / "plain-seed1"].method.options == {}


def test_seeds_of_a_variant_are_its_own(tmp_path: Path) -> None:
    variants = {"plain": "inclora", "once": {"method": "nlora", "seeds": [7]}, "base": None}
    sweep = read_sweep(write_sweep(tmp_path, variants=variants))
    assert names(sweep) == ["plain-seed1", "once-seed7", "base-seed1", "plain-seed2", "base-seed2"]
    assert check_sweep(sweep)[tmp_path / "out" / "base-seed1"].method.name == "nlora"  # the default


def test_a_mapping_in_the_grid_leaves_the_other_keys_alone(tmp_path: Path) -> None:
    """The base's keys of the same group stay, as with a mapping of `set` or of a variant."""
    base = {**BASE, "train": {**BASE["train"], "batch_size": 4, "epochs": 5}}
    grid = {"train": [{"learning_rate": 0.1}, {"learning_rate": 0.2, "epochs": 2}]}
    file = write_sweep(tmp_path, base=base, variants=None, grid=grid, seeds=[1])
    trains = [config.train for config in check_sweep(read_sweep(file)).values()]
    assert [(one.learning_rate, one.epochs, one.batch_size) for one in trains] == [(0.1, 5, 4), (0.2, 2, 4)]


def test_an_empty_mapping_changes_nothing(tmp_path: Path) -> None:
    base = {**BASE, "method": "olora", "train": {**BASE["train"], "batch_size": 4, "epochs": 5}}
    file = write_sweep(
        tmp_path, base=base, seeds=[1],
        variants={"plain": {"method": {}}, "other": {"train": {}}},
        grid={"train": [{}, {"learning_rate": 0.2}], "evaluate.general": [None, {}]},
    )  # fmt: skip
    configs = list(check_sweep(read_sweep(file)).values())
    assert len(configs) == 8
    assert {(one.method.name, one.train.epochs, one.train.batch_size) for one in configs} == {("olora", 5, 4)}
    assert sum(one.evaluate.general is not None for one in configs) == 4


def test_the_command_line_wins_however_the_file_writes_a_key(tmp_path: Path) -> None:
    base = {**BASE, "train": {**BASE["train"], "learning_rate": 0.5}}
    given = {"train.epochs": 4, "train": {"batch_size": 4, "epochs": 3}}
    file = write_sweep(
        tmp_path,
        base=base,
        set=given,
        variants={"v": {"lora": {"r": 8, "alpha": 2}}},
        grid={"seed": []},
        seeds=[1],
    )
    forced = ["set.train.epochs=2", "variants.v.lora={r: 3}", "grid={}", "train={max_samples: 50}"]
    (config,) = check_sweep(read_sweep(file, forced)).values()
    train = config.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.max_samples) == (2, 4, 0.5, 50)
    assert (config.lora.r, config.lora.alpha) == (3, 2)
    (config, _) = check_sweep(read_sweep(file, [*forced, "grid.lora.dropout=[0.1, 0.2]"])).values()
    assert config.lora.dropout == 0.1


def test_values_that_a_name_cannot_tell_apart_are_runs_of_their_own(tmp_path: Path) -> None:
    data = ["a b", "a_b", "A_B", "x" * 70, "x" * 71]
    runs = read_sweep(write_sweep(tmp_path, variants=None, grid={"data": data}, seeds=[1])).runs
    assert [run.settings[0].value for run in runs] == data
    assert len({run.folder.name.casefold() for run in runs}) == len(data)
    assert runs[0].folder.name == "data=a_b-seed1"


def test_later_places_win_and_mappings_are_merged(tmp_path: Path) -> None:
    """set, then the variant, then the grid, then the command line."""
    base = {**BASE, "method": {"name": "nlora", "penalty": "factor_l1"}, "lora": {"r": 2, "alpha": 4}}
    file = write_sweep(
        tmp_path,
        base=base,
        set={"train": {"epochs": 3, "batch_size": 4}, "lora.r": 3},
        variants={
            "keeps": {"method.weight": 0.5, "lora": {"dropout": 0.25}},
            "other": {"method": {"name": "inclora"}, "train.epochs": 5},
        },
        grid={"lora.r": [6, 7]},
        seeds=[1],
    )
    configs = check_sweep(read_sweep(file, ["train.learning_rate=5e-4"]))
    out = tmp_path / "out"
    keeps, other = configs[out / "keeps-r=6-seed1"], configs[out / "other-r=7-seed1"]
    assert keeps.method.options == {"penalty": "factor_l1", "weight": 0.5}
    assert other.method.options == {}
    assert (keeps.train.epochs, other.train.epochs, keeps.train.batch_size) == (3, 5, 4)
    assert (keeps.lora.r, other.lora.r, keeps.lora.alpha, keeps.lora.dropout) == (6, 7, 4, 0.25)
    assert {c.train.learning_rate for c in configs.values()} == {5e-4}
    assert check_sweep(read_sweep(file, ["train.epochs=9"]))[out / "other-r=7-seed1"].train.epochs == 9


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    variants = {"v": {"method.weight": 0.5, "method": "nlora"}}
    configs = check_sweep(read_sweep(write_sweep(tmp_path, variants=variants)))
    assert {config.method.options["weight"] for config in configs.values()} == {0.5}


def test_neither_does_it_in_the_grid(tmp_path: Path) -> None:
    grid = {"method.weight": [0.5, 0.1], "method": ["nlora", "olora"]}
    configs = check_sweep(read_sweep(write_sweep(tmp_path, variants=None, grid=grid, seeds=[1])))
    assert {folder.name: (c.method.name, c.method.options["weight"]) for folder, c in configs.items()} == {
        f"weight={weight}-method={method}-seed1": (method, weight)
        for weight in (0.5, 0.1)
        for method in ("nlora", "olora")
    }


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"set": {"method.weight": 0.5}, "variants": ["nlora"]}, "set.method.weight"),
        (
            {"variants": {"strong": {"method.weight": 0.5}}, "grid": {"method": ["nlora", "olora"]}},
            "variants.strong.method.weight",
        ),
    ],
)
def test_a_key_that_a_later_part_of_the_file_throws_away_is_a_mistake(
    tmp_path: Path, keys: dict[str, Any], where: str
) -> None:
    with pytest.raises(InputErrors) as caught:
        check_sweep(read_sweep(write_sweep(tmp_path, **keys)))
    (line,) = str(caught.value).splitlines()
    assert f"{where}: is lost, since method is set after it" in line


def test_a_variant_has_the_last_word_on_what_all_runs_set(tmp_path: Path) -> None:
    variants = {
        "v": {"method": "nlora", "method.weight": 0.5},
        "w": {"method": {"name": "olora", "weight": 2}},
    }
    configs = check_sweep(read_sweep(write_sweep(tmp_path, set={"method.weight": 1}, variants=variants)))
    assert {config.method.options["weight"] for config in configs.values()} == {0.5, 2}


def test_the_name_of_a_long_value_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """Else a sweep that lost its first value gives the folder of that one's run to the next."""
    one, other = (f"/models/{'long/' * 20}{end}" for end in ("a", "b"))

    def names(*values: str) -> list[str]:
        file = write_sweep(tmp_path, variants=None, grid={"model": list(values)}, seeds=[1])
        return [run.folder.name for run in read_sweep(file).runs]

    both = names(one, other)
    assert len(set(both)) == 2
    assert names(other, one) == both[::-1]
    assert [names(one), names(other)] == [[name] for name in both]
    assert all(name.startswith("model=models_long_long") for name in both)


def test_a_grid_is_every_combination_with_the_values_in_the_names(tmp_path: Path) -> None:
    grid = {"lora.r": [4, 8], "lora.targets": [["q", "v"], None], "train.learning_rate": [1e-3]}
    sweep = read_sweep(write_sweep(tmp_path, variants=None, grid=grid, seeds=[5]))
    assert names(sweep) == [
        f"r={r}-targets={targets}-learning_rate=0.001-seed5" for r in (4, 8) for targets in ("q,v", "null")
    ]
    configs = check_sweep(sweep)
    assert [(c.lora.r, c.lora.targets) for c in configs.values()] == [
        (4, ("q", "v")), (4, None), (8, ("q", "v")), (8, None),
    ]  # fmt: skip
    assert {config.name for config in configs.values()} == {n.removesuffix("-seed5") for n in names(sweep)}


def test_several_bases_are_in_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are found in the current folder, and next to the sweep's file."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("short", "long"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**BASE, "name": name}))
    sweep = read_sweep(write_sweep(tmp_path, base=["short.yaml", "long.yaml", "demo"], variants=["inclora"]))
    assert names(sweep)[:3] == ["short-inclora-seed1", "long-inclora-seed1", "demo-inclora-seed1"]
    configs = check_sweep(sweep)
    assert configs[tmp_path / "out" / "demo-inclora-seed2"].data == "builtin"
    assert configs[tmp_path / "out" / "long-inclora-seed2"].name == "long-inclora"


def test_overrides_reach_the_files_own_keys(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    sweep = read_sweep(file, ["seeds=[3]", "variants.plain=nlora", "output_dir=there", "set.lora.r=2"])
    assert names(sweep) == ["plain-seed3", "penalty-seed3"]
    config = check_sweep(sweep)[Path("there/plain-seed3")]
    assert (config.method.name, config.lora.r) == ("nlora", 2)
    with pytest.raises(InputErrors, match=r"seed=3: the sweep sets 'seed' of each run; give seeds"):
        check_sweep(read_sweep(file, ["seed=3"]))


@pytest.mark.parametrize(
    "variants",
    [
        {"v": {"method": "nlora", "method.weight": 0.5}},
        {"v": {"method.weight": 0.5, "method": "nlora"}},
        {"v": {"method": {"name": "nlora", "weight": 0.5}}},
        {"v": {"method": "nlora"}},
    ],
)
def test_a_variants_key_is_overridden_however_it_is_written(tmp_path: Path, variants: Any) -> None:
    file = write_sweep(tmp_path, variants=variants)
    configs = check_sweep(read_sweep(file, ["variants.v.method.weight=2", "variants.v.train.epochs=7"]))
    assert {(c.method.options["weight"], c.train.epochs) for c in configs.values()} == {(2, 7)}


def test_a_method_alone_takes_keys_from_the_command_line(tmp_path: Path) -> None:
    for variants in ({"inclora": "inclora", "nlora": "nlora"}, ["inclora", "nlora"]):
        sweep = read_sweep(write_sweep(tmp_path, variants=variants), ["variants.nlora.method.weight=2"])
        configs = {run.folder.name: check_sweep(sweep)[run.folder] for run in sweep.runs}
        assert configs["nlora-seed1"].method.options == {"weight": 2}
        assert configs["inclora-seed1"].method.options == {}
    with pytest.raises(InputErrors, match=r"no variant is called nlra; there are inclora, nlora"):
        read_sweep(write_sweep(tmp_path, variants=["inclora", "nlora"]), ["variants.nlra.method.weight=2"])


def test_a_key_with_an_equals_sign_reaches_the_run(tmp_path: Path) -> None:
    weights = {"<=50K": 0.5, ">50K": 2}
    variants = {"heavy": {"method": "inclora", "train": {"label_weights": weights, "epochs": 3}}}
    sweep = read_sweep(write_sweep(tmp_path, variants=variants, seeds=[1]))
    (run,) = sweep.runs
    train = load_config(BASE, run.overrides).config.train  # as the run's own process reads them
    assert (train.label_weights, train.epochs) == (weights, 3)


def test_a_variant_that_is_there_twice_is_told_also_with_an_override(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, variants=["nlora", "nlora"])
    with pytest.raises(InputErrors, match=r"variants\.1: the variant nlora is here twice"):
        read_sweep(file, ["variants.nlora.method.weight=1"])


@pytest.mark.parametrize("variants", ["nlora", 5])
def test_what_cannot_be_variants_is_told_also_with_an_override(tmp_path: Path, variants: Any) -> None:
    file = write_sweep(tmp_path, variants=variants)
    with pytest.raises(InputErrors, match="variants"):
        check_sweep(read_sweep(file, ["variants.nlora.method.weight=1"]))


def test_the_seed_of_a_run_is_the_default_where_none_is_given(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path, variants=None, seeds=None, output_dir=None))
    assert [run.folder for run in sweep.runs] == [Path("runs/two/two-seed42")]


# Mistakes


def mistakes(file: str, *overrides: str) -> dict[str, str]:
    with pytest.raises(InputErrors) as caught:
        check_sweep(read_sweep(file, overrides))
    return {problem.where: problem.what for problem in caught.value.problems}


def expect(told: dict[str, str], file: str, expected: dict[str, tuple[str, str]]) -> None:
    """expected: by key, how its line begins, and what is said about it."""
    text = Path(file).read_text().splitlines()
    for key, (begin, what) in expected.items():
        (line,) = [
            i for i, line in enumerate(text, 1) if line.startswith(begin) or line.strip().startswith(begin)
        ]
        assert what in told[f"{file}:{line}: {key}"], key
    assert len(told) == len(expected)


def test_unknown_keys_of_the_file_are_reported_first(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, runner="locl", sedes=[3], variants={"b": "nlroa"})
    expect(mistakes(file), file, {
        "runner": ("runner:", "must be local, ray or slurm, not 'locl'; did you mean 'local'?"),
        "sedes": ("sedes:", "unknown key; did you mean 'seeds'?"),
    })  # fmt: skip


def test_every_mistake_in_what_the_sweep_describes_has_its_key(tmp_path: Path) -> None:
    variants = {"c/d": "ewc", "e": {"train": {"lr": 1}, "seed": 3}, "f": {"seeds": [1, 1]}, "g": 5}
    file = write_sweep(tmp_path, variants=variants)
    expect(mistakes(file), file, {
        "variants.c/d": ("c/d:", "becomes part of a folder's"),
        "variants.e.seed": ("seed:", "give seeds: [1, 2, 3] at the top level"),
        "variants.f.seeds": ("    seeds:", "duplicate seed"),
        "variants.g": ("g:", "must be a mapping of keys"),
    })  # fmt: skip


def test_every_mistake_of_every_run_has_its_key_in_the_sweeps_file(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        base={**BASE, "train": {"epohcs": 1}},
        variants={
            "a": {"method.name": "nlora", "method.wieght": 3},
            "b": "nlroa",
            "e": {"train": {"lr": 1}},
            "h": {"method": {"name": "nlora", "wieht": 1}},
        },
        grid={"train.batch_size": [8, "x"]},
    )
    told = mistakes(file, "train.max_samples=ten")
    assert told.pop("train.max_samples=ten").startswith("must be a whole number")
    expect(told, file, {
        "base.train.epohcs": ("epohcs:", "unknown key; did you mean 'epochs'?"),
        "variants.a.method.wieght": ("method.wieght:", "unknown key; did you mean 'weight'?"),
        "variants.b": ("b:", "unknown method 'nlroa'; did you mean 'nlora'?"),
        "variants.e.train.lr": ("lr:", "unknown key"),
        "variants.h.method.wieht": ("method:", "unknown key; did you mean 'weight'?"),
        "grid.train.batch_size.1": ("- x", "must be a whole number >= 1, not 'x'"),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "base: the key is missing"),
        ({"base": []}, "base: must be a recipe, a file, a list of them, or the keys of a run"),
        (
            {"base": "dmeo"},
            "sweep.yaml:2: base: dmeo: no such file, and no recipe of that name; did you mean",
        ),
        ({"base": ["demo", "dmeo"]}, "sweep.yaml:4: base.1: dmeo: no such file, and no recipe of that name"),
        ({"variants": ["nlora", "nlora"]}, "variants.1: the variant nlora is here twice; leave one out"),
        ({"seeds": ["1"]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": [True]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": 3}, "seeds: must be a list of different whole numbers"),
        ({"base": {"model": "tiny"}}, "base.tasks: the key is missing"),
        ({"base": {**BASE, "name": "x"}}, "base.name: the sweep sets 'name' of each run"),
        ({"set": {"output_dir": "x"}}, "set.output_dir: the sweep sets 'output_dir'"),
        ({"grid": {"seed": [1]}}, "grid.seed: the sweep sets 'seed'"),
        ({"grid": {"lora.r": []}}, "grid.lora.r: must be a list of values that is not empty"),
        ({"grid": {"lora.r": [4, 8, 4]}}, "grid.lora.r.2: the value 4 is here twice; leave one out"),
        ({"grid": {"lora.r": [4, 4.0]}}, "grid.lora.r.1: the value 4.0 is here twice; leave one out"),
        ({"grid": {"method.weight": [1]}}, "grid.method.weight: a variant sets method.weight too"),
        (
            {"variants": {"a": {"method": "nlora", "lora.r": 2}}, "grid": {"lora": [{"r": 4}]}},
            "grid.lora: a variant sets lora.r too; remove it from one of the two",
        ),
        (
            {"grid": {"lora": [{"r": 4, "alpha": 8}], "lora.r": [8]}},
            "grid.lora.r: grid.lora sets lora.r too; remove it from one of the two",
        ),
        ({"grid": {"name": [{"x": 1}]}}, "the sweep sets 'name' of each run"),
        ({"variants": "inclora"}, "variants: must be a mapping of names to what they set"),
        ({"seeds": [-1]}, "seeds: must be a list of different whole numbers"),
        ({"seeds": []}, "seeds: must be a list"),
        ({"variants": {"x": "inclora", "X": "nlora"}}, "two runs would have the name X-seed1"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write_sweep(tmp_path, **changes)
    with pytest.raises(InputErrors) as caught:
        check_sweep(read_sweep(file))
    assert said in str(caught.value).splitlines()[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["lora.r=16", "lora={r: 16, alpha: 8}", "lora={r: 4}"])
def test_the_command_line_makes_no_run_another_than_its_name_says(tmp_path: Path, given: str) -> None:
    file = write_sweep(tmp_path, grid={"lora.r": [4, 8]})
    with pytest.raises(InputErrors, match=r"grid\.lora\.r: the command line sets lora\.r too; remove it"):
        read_sweep(file, [given])
    read_sweep(file, ["lora.alpha=16", "grid.lora.r=[16]"])


def test_the_method_of_the_command_line_is_not_that_of_a_grid(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, variants=None, grid={"method": ["nlora", "olora"]})
    with pytest.raises(InputErrors, match=r"grid\.method: the command line sets method too"):
        read_sweep(file, ["method=ewc"])
    read_sweep(file, ["method.weight=0.5"])  # an option of both
    file = write_sweep(tmp_path, variants=None, grid={"method.weight": [1, 2]})
    with pytest.raises(InputErrors, match=r"grid\.method\.weight: the command line sets method\.weight too"):
        read_sweep(file, ["method={name: nlora, weight: 3}"])


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for content, said in (
        (None, "no such file"),
        ("- a", "must have the keys of a sweep"),
        ("a: [", "not YAML"),
    ):
        path = tmp_path / "x.yaml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputErrors, match=said):
            read_sweep(str(path))


def test_a_folder_of_another_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    machine = Machine()
    assert swept(write_sweep(tmp_path), machine)[0]
    with pytest.raises(InputErrors) as caught:
        swept(write_sweep(tmp_path, set={"train.epochs": 2}), machine)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"{tmp_path / 'out' / 'plain-seed1'}: was started with another configuration")
    assert "(train.epochs: 1.0 in the folder, 2.0 now)" in lines[0]
    assert len(machine.started) == 4


def test_a_key_that_the_folder_does_not_know_yet_stands_at_its_default(tmp_path: Path) -> None:
    machine = Machine()
    swept(write_sweep(tmp_path, seeds=[1]), machine)
    path = tmp_path / "out" / "plain-seed1" / "run.yaml"
    record = yaml.safe_load(path.read_text())
    del record["config"]["train"]["warmup_steps"]
    path.write_text(yaml.safe_dump(record))
    assert swept(write_sweep(tmp_path, seeds=[1]), machine)[0]
    with pytest.raises(InputErrors, match=r"train\.warmup_steps: 0 in the folder, 3 now"):
        swept(write_sweep(tmp_path, seeds=[1], set={"train.warmup_steps": 3}), machine)
