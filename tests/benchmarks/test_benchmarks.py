"""The benchmarks: what they count and choose is right, and each of them runs to its end on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import write_config
from nlora.config.schema import LoraOptions
from nlora.data.task import TokenizedExample
from nlora.kernels.l1 import update_l1
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.lora_factors import LoraFactors
from tiny import LORA, load, weights


def examples(lengths: list[int]) -> list[TokenizedExample]:
    """One example of each length, its answer of one token included."""
    return [TokenizedExample([7] * (n - 1), [1]) for n in lengths]


def test_the_spread_is_the_median_with_the_least_and_the_most(script: Callable[[str], Any]) -> None:
    measure = script("measure")
    spread = measure.Spread.of([4.0, 1.0, 2.5])
    assert (spread.median, spread.least, spread.most) == (2.5, 1.0, 4.0)
    assert str(spread) == "2.5 (1 to 4)"
    # Within each round: 3/1 and 8/4, not a ratio of medians.
    assert measure.ratios([3.0, 8.0], [1.0, 4.0]) == measure.Spread(2.5, 2.0, 3.0)
    with pytest.raises(ValueError, match="at least one round"):
        measure.Spread.of([])


def test_everyone_has_a_turn_a_round_and_the_beginner_changes(script: Callable[[str], Any]) -> None:
    order: list[tuple[str, int]] = []

    def contestant(name: str) -> Callable[[int], str]:
        return lambda number: order.append((name, number)) or f"{name}{number}"  # type: ignore[func-returns-value]

    results = script("measure").interleave({name: contestant(name) for name in "abc"}, 4)
    assert [name for name, _ in order] == list("abcbcacababc")
    assert results == {name: [f"{name}{i}" for i in range(4)] for name in "abc"}


def test_typical_batches_are_neighbors_in_length_from_everywhere(script: Callable[[str], Any]) -> None:
    measure = script("measure")
    pool = examples([*range(41, 2, -1)])  # 39 lengths, 3 to 41
    batches = measure.typical_batches(pool, 4, 3)
    # Each stands for 13 neighbors and is their middle.
    assert [[measure.tokens_of(e) for e in batch] for batch in batches] == [
        [7, 8, 9, 10],
        [20, 21, 22, 23],
        [33, 34, 35, 36],
    ]
    assert [measure.tokens_of(e) for e in measure.longest_batch(pool, 4)] == [38, 39, 40, 41]
    with pytest.raises(ValueError, match="10 batches of 4 examples, but the data set has 39"):
        measure.typical_batches(pool, 4, 10)


@pytest.mark.parametrize("by_length", [True, False])
def test_every_example_is_in_one_round(script: Callable[[str], Any], by_length: bool) -> None:
    batches = [examples([10 * i + j for j in (2, 3)]) for i in range(6)]
    rounds = script("measure").of_rounds(batches, 3, by_length)
    everything = [id(e) for batch in batches for e in batch]
    assert sorted(id(e) for some in rounds for e in some) == sorted(everything)
    assert [len(some) for some in rounds] == [4, 4, 4]
    whole = {tuple(map(id, batch)) for batch in batches}
    kept = {tuple(map(id, some[i : i + 2])) for some in rounds for i in (0, 2)}
    assert (kept == whole) == by_length
    if by_length:
        assert [len(e.prompt_ids) for e in rounds[0]] == [1, 2, 31, 32]  # a short batch and a long one


def test_a_table_is_markdown_and_the_machine_has_a_name(script: Callable[[str], Any], tmp_path: Path) -> None:
    measure = script("measure")
    assert measure.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus: the second\n")
    on = measure.machine(cpuinfo)
    assert on["processor"] == "Abacus: the second"
    assert on["threads"] == torch.get_num_threads()
    assert f"{on['processor']}, {on['threads']} threads, torch {torch.__version__}" in measure.described(on)


@pytest.mark.parametrize(("family", "embeddings"), [("llama", 12), ("t5", 12 + 6)])
def test_positions_are_those_that_the_model_embeds(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], family: str, embeddings: int
) -> None:
    model = load(tiny_model(family))
    inputs = {"input_ids": torch.ones(2, 6, dtype=torch.long)}
    if family == "t5":
        inputs["labels"] = torch.ones(2, 3, dtype=torch.long)
    with script("measure").Positions(model) as positions:
        model(**inputs)
        with torch.no_grad():
            model(**inputs)
    model(**inputs)
    assert positions.count == embeddings


def test_the_plain_penalty_is_the_same_number_with_the_same_gradients(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path]
) -> None:
    adapter = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    factors = list(adapter.factors().values())
    with torch.no_grad():
        for f in factors:
            f.B.normal_(generator=torch.Generator().manual_seed(1))
    plain: Any = script("contestants").plain_penalty(adapter, 0.5)
    plain.backward()
    for f in factors:
        A, B = f.A.detach().requires_grad_(), f.B.detach().requires_grad_()
        expected: Any = 0.5 * update_l1(A, B, f.scaling)
        expected.backward()
        torch.testing.assert_close(f.A.grad, A.grad)
        torch.testing.assert_close(f.B.grad, B.grad)
    total = sum(0.5 * float(f.update().detach().abs().sum()) for f in factors)
    assert float(plain.detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_adapters_folded_and_beside_are_the_same_model(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], family: str
) -> None:
    growth = script("growth")
    model = load(tiny_model(family))
    before = weights(model)
    inputs = {"input_ids": torch.arange(2, 14).reshape(2, 6)}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.ones(2, 3, dtype=torch.long)
    found = {}
    with torch.no_grad():
        plain = model(**inputs).logits
        for kind in growth.KINDS:
            with growth.at_stage(model, kind, 4):
                found[kind] = model(**inputs).logits
    # T5 does not scale its attention: random weights make its softmax sharp, which magnifies rounding.
    tolerance = 1e-4 if family == "t5" else 1e-5
    torch.testing.assert_close(found["nlora"], found["beside"], rtol=10 * tolerance, atol=tolerance)
    assert (found["nlora"] - found["beside"]).abs().max() < 0.1 * (found["nlora"] - plain).abs().max()
    assert (found["nlora"] - plain).abs().max() > 1e-5  # there is something to tell apart
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_operations_of_a_product_and_its_gradients_are_counted(script: Callable[[str], Any]) -> None:
    flops = script("floor").Flops()
    x, weight = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    query = torch.randn(2, 4, 6, 8, requires_grad=True)
    with flops:
        out: Any = torch.nn.functional.linear(x, weight)
        out.sum().backward()
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        out.sum().backward()
        torch.zeros(5, 7).addmm_(x.detach(), weight.detach().t())
    assert flops.by_operation["addmm_"] == 2 * 5 * 3 * 7
    # x·Wᵀ, and one product of the same size for each gradient.
    assert flops.by_operation["mm"] == 3 * 2 * 5 * 3 * 7
    attention = {name: n for name, n in flops.by_operation.items() if "attention" in name}
    product = 2 * (2 * 4) * 6 * 6 * 8  # queries by keys, or weights by values
    assert sorted(attention.values()) == [2 * product, 5 * product]


def test_the_time_of_a_step_is_divided_by_kind(script: Callable[[str], Any]) -> None:
    floor = script("floor")
    kinds = floor.by_kind({"aten::mm": 2.0, "aten::addmm": 1.0, "aten::mul": 0.5, "MmBackward0": 0.25}, 4.0)
    assert kinds["matrix products"] == 3.0
    assert kinds["elementwise"] == 0.5
    assert kinds["other operations"] == 0.25
    assert kinds["outside of operations"] == 0.25
    assert sum(kinds.values()) == 4.0
    names = {
        "aten::bernoulli_": "random numbers of dropout",
        "aten::copy_": "copies",
        "aten::add_": "elementwise",
    }
    assert {name: floor.kind_of(name) for name in names} == names


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_train_runs(
    script: Callable[[str], Any],
    tiny_model: Callable[[str], Path],
    benchmark_folder: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    family: str,
) -> None:
    train = script("train")
    common = ["--model", str(tiny_model(family)), "--data", str(benchmark_folder), "--batch-size", "4"]
    common += ["--rounds", "2", "--steps", "2"]
    train.main([*common, "--no-memory", "--json", str(tmp_path / "figures.json")])
    made = json.loads((tmp_path / "figures.json").read_text())
    assert list(made["contestants"]) == list(train.CONTESTANTS)
    assert made["settings"]["steps"] == 2
    for figures in made["contestants"].values():
        assert len(figures["of_rounds"]) == 2
        assert figures["positions"] > 0
    positions = {name: figures["positions"] for name, figures in made["contestants"].items()}
    assert positions["nlora"] == positions["plain-penalty"]
    # Those who make batches by length pad less than the one who does not, and never compute less than the data.
    assert made["tokens"] <= positions["grouped"] < positions["trainer"]
    assert made["contestants"]["nlora"]["nlora_is_times_as_fast"] == 1
    assert made["contestants"]["nlora"]["penalty_share_of_step"] > 0
    assert made["contestants"]["trainer"]["penalty_share_of_step"] == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| grouped \| .* \|$", printed, re.MULTILINE)
    train.main([*common, "--alone", "trainer", "--json", str(tmp_path / "alone.json")])
    assert json.loads((tmp_path / "alone.json").read_text())["peak_memory_bytes"] > 2**20


def test_mixed_runs(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(benchmark_folder / "TC/agnews", benchmark_folder / "TC/dbpedia")
    common = ["--model", str(tiny_model("llama")), "--data", str(benchmark_folder), "--batch-size", "4"]
    common += ["--datasets", "agnews", "dbpedia", "--rounds", "1", "--json", str(tmp_path / "figures.json")]
    script("mixed").main(common)
    made = json.loads((tmp_path / "figures.json").read_text())["contestants"]
    apart, mixed, common_only = (
        made[name]["positions_per_token"] for name in ("apart", "mixed", "common-only")
    )
    assert apart <= mixed < common_only
    assert made["common-only"]["times_as_fast_as_common_only"]["most"] == 1


def test_growth_runs(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    growth = script("growth")
    common = ["--model", str(tiny_model("llama")), "--data", str(benchmark_folder), "--batch-size", "4"]
    common += [
        "--rounds",
        "1",
        "--steps",
        "1",
        "--stages",
        "1",
        "3",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    growth.main([*common, "--no-memory"])
    made = json.loads((tmp_path / "figures.json").read_text())["contestants"]
    assert list(made) == ["nlora 1", "nlora 3", "beside 3"]
    assert made["nlora 1"]["times_the_first"]["median"] == 1
    growth.main([*common, "--alone", "beside", "3"])
    assert json.loads((tmp_path / "figures.json").read_text())["peak_memory_bytes"] > 2**20


def test_what_rounding_leaves_of_an_update(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Weights of 1, near which bfloat16 numbers are 1/128 apart, and 1/256 below."""
    rounding = script("rounding")
    f = LoraFactors(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[2**-10], [2**-7], [1.01 * 2**-8]]), 1.0)
    assert torch.equal(
        rounding.folded(torch.ones(3, 3), f) * 128, torch.tensor([[0.0], [1], [1]]).expand(3, 3)
    )
    assert rounding.beside(f)[0, 0] == 2**-10
    name = "model.layers.0.self_attn.q_proj"
    model = load(tiny_model("llama"))
    layer: Any = model.get_submodule(name)
    layer.weight.data.fill_(1.0)
    adapter = LoraAdapter.attach(model, LoraOptions(r=1, alpha=1, dropout=0.0, targets=(name,)), seed=0)
    ones = LoraFactors(torch.ones(1, 32), torch.full((32, 1), 2.0**-7), 1.0)
    ones.B[:8] = 2.0**-10
    adapter.load_state({name: ones})
    adapter.save(tmp_path / "outputs" / "1-first" / "adapter", base_model="any")
    left = rounding.of_run(tmp_path, adapter.detach())
    assert left["lost"] == [0.25]
    assert left["folded"] == pytest.approx([(8 * 2**-20 / (8 * 2**-20 + 24 * 2**-14)) ** 0.5])
    assert left["beside"] == [0]


def test_floor_runs(
    script: Callable[[str], Any],
    tiny_model: Callable[[str], Path],
    benchmark_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floor = script("floor")
    monkeypatch.setattr(floor, "SQUARE", 64)
    arguments = ["--model", str(tiny_model("llama")), "--data", str(benchmark_folder), "--batch-size", "4"]
    arguments += ["--rounds", "1", "--steps", "2", "--json", str(tmp_path / "figures.json")]
    floor.main(arguments)
    made = json.loads((tmp_path / "figures.json").read_text())
    seconds, flops = made["seconds_per_step"][0], sum(made["flops_per_step"].values())
    rate = made["rates"]["64 x 64 squares, float32"][0]
    share = made["share_of_rate"]["64 x 64 squares, float32"]["median"]
    assert share == pytest.approx(flops / seconds / rate)
    # Each token passes 2 layers of 32 x 32 (q and o), 16 x 32 (k and v) and 3 of 64 x 32. Backward, attention, the
    # head and the factors come on top. A step has 4 examples of 9 tokens and more.
    layers = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert flops > 4 * 9 * 2 * layers
    assert made["profile_seconds"]["matrix products"] > 0


def test_the_preflight_check_and_the_search_of_labels_are_timed(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    preflight = script("preflight")
    preflight.main([str(write_config(tmp_path, tiny_model("llama"))), "--rounds", "1"])
    assert "preflight seconds" in capsys.readouterr().out
    preflight.main(["--labels", "30", "--prompts", "3", "--model", str(tiny_model("llama")), "--rounds", "1"])
    found = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert float(next(v for k, v in found.items() if k.startswith("passes")).split()[0]) < 30


@pytest.mark.parametrize(
    ("part", "scale"), [("compare", 0.02), pytest.param("stages", 0.004, marks=pytest.mark.slow)]
)
def test_load_runs(script: Callable[[str], Any], tmp_path: Path, part: str, scale: float) -> None:
    load = script("load")
    load.main([part, "--scale", str(scale), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())[part]
    if part == "compare":
        assert figures["peak_bytes"] > 2**20
    else:
        assert {len(values) for values in figures.values()} == {15}


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(
    script: Callable[[str], Any], tiny_model: Callable[[str], Path], benchmark_folder: Path
) -> None:
    arguments = ["--model", str(tiny_model("llama")), "--data", str(benchmark_folder), "--alone", "nlora"]
    figures = script("measure").alone(Path(script("train").__file__), arguments)
    assert 2**26 < figures["peak_memory_bytes"] < 2**33  # torch alone takes more than 64 MiB
