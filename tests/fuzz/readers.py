"""Every reader of files, with a sound input of each kind and what is done with a damaged one."""

import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_mixture
import yaml
from answered import write_answers
from fuzz.mutations import (
    damage_bytes,
    damage_rows,
    damage_safetensors,
    damage_tree,
    json_bytes,
    yaml_bytes,
)
from safetensors.numpy import save_file

from dipsim.basics import assets, units
from dipsim.basics.errors import InputError
from dipsim.figures.compare import draw_compare
from dipsim.figures.gains import gains, map_axes
from dipsim.figures.memory import draw_memory
from dipsim.figures.run import draw_run
from dipsim.figures.solve import draw_solve, read_solve
from dipsim.figures.sweep import draw_sweep
from dipsim.figures.sweep_table import WITHOUT, read_sweep
from dipsim.planning.learn import learn_layout
from dipsim.report.page import render
from dipsim.results.compare import read_compare
from dipsim.results.folder import read_experts, read_tables
from dipsim.results.quality import Measured, read_quality, write_quality
from dipsim.results.split import read_split
from dipsim.sparsity.calibrated import BASES, NESTED, Calibrated, Origin
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.layouts import load_layout
from dipsim.study import sweep as resumed
from dipsim.study.experiment import Experiment
from dipsim.study.points import points
from dipsim.study.run import check, run, write_run
from dipsim.study.sweep import sweep
from dipsim.timing.device import Device
from dipsim.workload import Trace
from dipsim.workload.config import read_config
from dipsim.workload.importers import import_trace
from dipsim.workload.recorded import write_requests, write_trace
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Header

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = {
    **{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "hidden_act": "silu", "head_dim": 4},
}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
DEEPSEEK = {
    **{"n_routed_experts": 8, "n_shared_experts": 1, "kv_lora_rank": 8, "qk_rope_head_dim": 2, "q_lora_rank": 6},
    **{"qk_nope_head_dim": 2, "v_head_dim": 4, "first_k_dense_replace": 1, "moe_layer_freq": 1},
}
CONFIGS = (
    CONFIG,
    CONFIG | {"model_type": "qwen3_moe", "mlp_only_layers": [0]} | MIXTURE,
    CONFIG | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    CONFIG | {"model_type": "deepseek_v3"} | MIXTURE | DEEPSEEK,
    {
        "model_type": "gemma4",
        "text_config": CONFIG
        | {"model_type": "gemma4_text"}
        | MIXTURE
        | {"num_kv_shared_layers": 1, "global_head_dim": 8},
    },
)
ROUTE = """# route_trace v1
# model=/data/My Model-Q4.gguf arch=qwen3moe n_layer=3 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=500 dense_bytes=900
# layer=1 expert_bytes=1000 dense_bytes=300
# layer=2 expert_bytes=2000 dense_bytes=400
turn,phase,step,layer,slot,expert,weight
"""
ROUTE += "".join(
    f"0,{step // 2 and 1},{step},{layer},{slot},{(step + 3 * layer + slot) % 8},0.5\n"
    for step in range(4)
    for layer in range(3)
    for slot in range(2)
)
COLIBRI = "".join(f"{call} 0 {call % 3} {call % 8}:0.7500 {(call + 3) % 8}:0.2500\n" for call in range(9))
WARP = "".join(json.dumps({"tok": tok, "layers": [[tok, 4], [1, 5], [2, 7]]}) + "\n" for tok in range(3))
QUANTITIES = ("1.5 GB/s", "64 MB", "60 us", "2 TFLOP/s", "2 G/s", "52 pJ/bit", "1 pJ/FLOP", "0 B", "1e3 MiB", ".5 s")


@dataclass(frozen=True)
class Damage:
    """Sound inputs, and how to damage one."""

    sound: tuple[bytes, ...]
    damage: Callable[[int, random.Random], bytes]  # of the sound input at a place

    def __call__(self, rng: random.Random) -> bytes:
        return self.damage(rng.randrange(len(self.sound)), rng)


@dataclass(frozen=True)
class Reader:
    """What reads a file `name` in a folder, and `damaged`, which makes one.

    `read` raises InputError for what it refuses; whatever else it raises is a failure. `costly` ones get fewer inputs.
    """

    name: str
    file: str
    damaged: Damage
    read: Callable[[Path], object]
    costly: bool = False


def readers(base: Path) -> list[Reader]:
    """All readers. Sound inputs are written below `base`, an empty folder."""
    return [
        *(_yaml_readers(base)),
        *(_tensor_readers(base)),
        *(_table_readers(base)),
        Reader("config", "config.json", _tree(CONFIGS, json_bytes), _read_config),
        Reader("units", "units.txt", _units(), _read_units),
        *(_import_readers()),
    ]


def _tree(trees: Sequence[Any], written: Callable[[Any], bytes]) -> Damage:
    """Trees, damaged as such or as the bytes that they are written as."""

    def damage(index: int, rng: random.Random) -> bytes:
        if rng.random() < 0.25:
            return damage_bytes(sound[index], rng)
        return written(damage_tree(trees[index], rng))

    sound = tuple(map(written, trees))
    return Damage(sound, damage)


def _tensors(path: Path) -> Damage:
    data = path.read_bytes()
    return Damage((data,), lambda _, rng: damage_safetensors(data, rng))


def _rows(*paths: Path) -> Damage:
    """CSV tables."""
    sound = tuple(path.read_bytes() for path in paths)

    def damage(index: int, rng: random.Random) -> bytes:
        change = damage_bytes if rng.random() < 0.2 else damage_rows
        return change(sound[index], rng)

    return Damage(sound, damage)


def _yaml_readers(base: Path) -> list[Reader]:
    dense, mixed = _dense(base), _mixed(base)
    own = [{"dip": {"keep": 0.5}}, "dense", {"dip-ca": {"keep": 0.5, "gamma": 0.5}}]
    one = {"trace": str(dense), "device": "pc-nvme-gen4", "dram": {"mlp_fraction": 0.5}, "policies": own, "tokens": 6}
    cached = {"cache": {"size": "3 kB", "scope": "model"}, "eviction": "lru", "timing": "pipelined", "prompt": 3}
    clock = {
        "prefetch": {"by": {"oracle": {"recall": 0.5}}, "units": 2, "ahead": 1, "when": "idle", "lanes": 1},
        "speculate": {"draft": 2, "acceptance": 0.7, "draft_time": "1 us"},
        "streams": 1,
        "contention": True,
    }
    several = {"trace": str(mixed), "device": "paper", "policies": ["experts", {"low-bit": {}}], "tokens": 5} | cached
    grid = {"dram": ["5 kB", {"mlp_fraction": 0.2}], "flash.read_bandwidth": ["1 GB/s", "2 GB/s"], "dip.keep": [0.5]}
    experiments = (
        one,
        several,
        {**one, "policies": own[:1], **clock},
        {
            **one,
            "device": "paper",
            "layout": "popularity",
            "hardware": {"flash.page": "64 B"},
        },
        {**one, "device": "paper", "sweep": grid, "policies": own[:2]},
    )
    devices = [yaml.safe_load((assets.directory("devices") / f"{name}.yaml").read_text()) for name in
               ("paper", "pc-nvme-gen4", "oneplus-15r", "macbook-m1-max")]  # fmt: skip
    recipes = []
    for name in ("smollm2-135m-synthetic", "qwen3-30b-a3b-synthetic"):
        recipe = yaml.safe_load((assets.directory("traces") / f"{name}.yaml").read_text())
        small = {key: value[:2] if key in ("statistics", "routing") else value for key, value in recipe.items()}
        recipes.append({**small, "tokens": 8, "source": {"note": "fuzz"}, "prompt": 0})
        (base / f"{name}.yaml").write_bytes(yaml_bytes(recipes[-1]))
        recipes.append({"model": small["model"], "like": str(base / f"{name}.yaml"), "tokens": 8})
    return [
        Reader("device", "device.yaml", _tree(devices, yaml_bytes), _read_device),
        Reader("experiment", "experiment.yaml", _tree(experiments, yaml_bytes), _read_experiment),
        Reader("recipe", "recipe.yaml", _tree(recipes, yaml_bytes), _read_trace(1)),
    ]


def _dense(base: Path) -> Path:
    path = base / "dense.safetensors"
    if not path.exists():
        header = Header(model=tiny.SHAPE, sequence_starts=(0, 5), source={"text": "none"})
        write_trace(path, header, tiny.activations(tokens=8), dtype="int8")
    return path


def _mixed(base: Path) -> Path:
    path = base / "mixed.safetensors"
    if not path.exists():
        tiny_mixture.write(path, tokens=8, prompts=((0, 3),))
    return path


def _tensor_readers(base: Path) -> list[Reader]:
    dense, mixed = _dense(base), _mixed(base)
    levels, layout, precision = (base / f"{name}.safetensors" for name in ("levels", "dense.layout", "dense.precision"))
    rng = np.random.default_rng(0)
    shape = tiny.SHAPE
    of_layers = [{"gate": rng.integers(0, 6, (8, shape.intermediate_size), np.uint8)} for _ in range(2)]
    write_requests(levels, Header(model=shape, holds="requests"), of_layers)
    other = base / "other.safetensors"
    write_trace(other, Header(model=shape), tiny.activations(tokens=8, seed=1))
    learn_layout(Trace.open(other), load_policy("dip", keep=0.5), "popularity", layout)
    _write_precision(precision)
    sensitivity = base / "dense.sensitivity.safetensors"
    of = {"input": shape.hidden_size, "neuron": shape.intermediate_size}
    save_file(
        {f"layers.{i}.{name}": rng.random(size, np.float32) for i in range(2) for name, size in of.items()}, sensitivity
    )
    predictor = base / "predictor.safetensors"
    sides = {"A": (shape.hidden_size, 4), "B": (4, shape.intermediate_size)}
    save_file(
        {f"layers.{i}.{name}": rng.random(size, np.float32) for i in range(2) for name, size in sides.items()},
        predictor,
    )
    trace = Trace.open(dense)
    return [
        Reader("trace of activations", "a.safetensors", _tensors(dense), _read_trace(None)),
        Reader("trace of routing", "r.safetensors", _tensors(mixed), _read_trace(None)),
        Reader("trace of levels", "l.safetensors", _tensors(levels), _read_trace(None)),
        Reader("layout", "x.layout.safetensors", _tensors(layout), _run_with(trace, _layout)),
        Reader("precision", "x.precision.safetensors", _tensors(precision), _run_with(trace, _precision)),
        Reader("sensitivity", "x.sensitivity.safetensors", _tensors(sensitivity), _run_with(trace, _worth)),
        Reader("predictor", "x.safetensors", _tensors(predictor), _run_with(trace, _predictor)),
    ]  # fmt: skip


def _write_precision(path: Path) -> None:
    """A calibration for the tiny model, of random numbers."""
    rng, shape = np.random.default_rng(0), tiny.SHAPE
    d, m, levels = shape.hidden_size, shape.intermediate_size, len(NESTED.each)
    origin = Origin(
        **{"model": shape, "model_sha256": "0", "text": "t", "text_sha256": "0", "sequences": 1, "length": 8},
        weights=(0.5, 0.5),
    )
    tensors: dict[str, Any] = {}
    for i in range(shape.num_hidden_layers):
        for group, matrix in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            errors = np.sort(rng.exponential(1.0, (m, levels)))[:, ::-1].copy()
            errors[:, -1] = 0
            tensors[f"layers.{i}.{group}.errors"] = errors.astype(np.float32)
            tensors[f"layers.{i}.{group}.scores"] = rng.exponential(1.0, (2, m)).astype(np.float32)
            for level in BASES:
                rows, inputs = (d, m) if matrix == "down_proj" else (m, d)
                tensors[f"layers.{i}.{matrix}.base{level}"] = rng.integers(0, 256, (rows, inputs // 32), np.uint8)
                for name in ("scales", "centres"):
                    tensors[f"layers.{i}.{matrix}.{name}{level}"] = rng.random(16, np.float32)
                tensors[f"layers.{i}.{matrix}.values{level}"] = rng.random(2**level, np.float32)
        tensors[f"layers.{i}.value"] = rng.random(m, np.float32)
        tensors[f"layers.{i}.token_weight"] = rng.random(d + 1, np.float32).astype(np.float16)
    Calibrated(path, origin, tensors).write()


def _table_readers(base: Path) -> list[Reader]:
    dense, mixed = _dense(base), _mixed(base)
    measured = [
        Measured(
            *("dip", json.dumps({"keep": keep}), 0.5, "lfu", 10, 8, 20.0, 0.1, 0.5, 0.5, "paper", "serial"),
            *(9.0, "t", "tiny"),
        )
        for keep in (0.5, 0.6)
    ]  # fmt: skip
    write_quality(measured, base / "dense.quality.csv")
    quality = _rows(base / "dense.quality.csv")
    (base / "dense.quality.csv").unlink()

    folder = base / "run"
    data = {"trace": str(mixed), "device": "paper", "policies": ["experts", {"fewer-experts": {"experts": 1}}]}
    experiment = Experiment.model_validate({**data, "dram": {"mlp_fraction": 0.5}})
    write_run(experiment, run(experiment), folder)
    damages = {name: _rows(folder / name) for name in ("tokens.csv", "layers.csv", "spans.csv", "experts.csv")}
    damages["summary.json"] = _tree([json.loads((folder / "summary.json").read_text())], json_bytes)
    damaged = _one_of(damages)

    data = {"trace": str(dense), "device": "paper", "policies": ["dense", {"dip": {"keep": 0.5}}], "tokens": 4}
    grid = {"dram": [{"mlp_fraction": 0.2}, {"mlp_fraction": 0.6}], "flash.read_bandwidth": ["1 GB/s", "2 GB/s"]}
    clock = {"by": "popular", "units": 1, "when": "idle"}
    prefetch = {"prefetch.when": ["never", "idle"], "prefetch.units": [1, 2], "dram.bandwidth": ["1 GB/s", "2 GB/s"]}
    sweeps = []
    for name, more in (
        ("grid", {"sweep": grid}),
        ("ahead", {"sweep": prefetch, "prefetch": clock, "dram": {"mlp_fraction": 0.5}}),
    ):
        sweep(Experiment.model_validate({**data, **more}), base / name)
        sweeps.append(base / name / "sweep.csv")
    one = Experiment.model_validate({**data, "policies": ["dense"], "sweep": {"tokens": [2, 3]}})
    sweep(one, base / "kept")
    point = next((base / "kept/points").glob("*.json"))
    kept = _tree([json.loads(point.read_text())], json_bytes)
    row = resumed._read(base / "kept", point.stem)

    def resume(path: Path) -> None:
        where = path.parent / "points" / point.name
        where.parent.mkdir(exist_ok=True)
        path.replace(where)
        if (found := resumed._read(path.parent, point.stem)) is None:
            raise InputError("is computed again")
        assert found == row, "a damaged point was taken for whole"

    any_sweep = _rows(*sweeps)
    return [
        Reader("quality table", "q.quality.csv", quality, _read_quality(dense)),
        *_answer_readers(base),
        Reader("folder of a run", "damaged", damaged, _read_in(folder, _tables)),
        Reader("table of a sweep", "sweep.csv", any_sweep, _read_sweep),
        Reader("figures of a run", "damaged", damaged, _read_in(folder, draw_run), costly=True),
        Reader("page of a run", "damaged", damaged, _read_in(folder, render), costly=True),
        Reader("page of a sweep", "sweep.csv", any_sweep, lambda path: render(path.parent), costly=True),
        Reader("figures of a sweep", "sweep.csv", any_sweep, lambda path: draw_sweep(path.parent), costly=True),
        Reader("kept point", "point.json", kept, resume),
    ]


def _answer_readers(base: Path) -> list[Reader]:
    """Of the folders of `solve`, `plan-memory` and `compare`: their tables, and their figures and pages."""
    folders = write_answers(_dense(base), base)
    readers = []
    for command, read, draw in (
        ("solve", read_solve, draw_solve),
        ("plan-memory", read_split, draw_memory),
        ("compare", read_compare, draw_compare),
    ):
        folder = folders[command]
        damaged = _one_of({table.name: _rows(table) for table in sorted(folder.glob("*.csv"))})
        readers += [
            Reader(f"folder of {command}", "damaged", damaged, _read_in(folder, read)),
            Reader(f"figures of {command}", "damaged", damaged, _read_in(folder, draw), costly=True),
            Reader(f"page of {command}", "damaged", damaged, _read_in(folder, render), costly=True),
        ]
    return readers


def _import_readers() -> list[Reader]:
    shape = tiny_mixture.SHAPE
    ids = np.stack([np.argsort(np.random.default_rng(token).random((3, 8)), axis=1)[:, :2] for token in range(4)])
    array = io.BytesIO()
    np.save(array, ids.astype(np.int16))
    files = {
        "bigmoeonedge": ROUTE.encode(),
        "colibri": COLIBRI.encode(),
        "warp": WARP.encode(),
        "vllm": array.getvalue(),
    }

    def damage(data: bytes) -> Damage:
        return Damage(
            (data,), lambda _, rng: damage_bytes(damage_bytes(data, rng) if rng.random() < 0.3 else data, rng)
        )

    def read(name: str) -> Callable[[Path], object]:
        return lambda path: import_trace(name, path, shape=shape)

    return [Reader(f"import of {name}", "recorded.txt", damage(data), read(name)) for name, data in files.items()]


def _read_device(path: Path) -> None:
    device = Device.load(path)
    for size in (1.0, 4096.0, 1e6):
        device.flash.read_time(size)
    device.flash.batch_time(np.ones((1, 4)), np.full((1, 4), 4096.0))
    if device.sustained is not None:
        device.hot()
    device.replace(**{"dram.bandwidth": "1 GB/s"})


def _read_experiment(path: Path) -> None:
    experiment = Experiment.load(path)
    if experiment.sweep:
        points(experiment, path)
        return
    check(experiment)
    run(experiment)


def _read_trace(tokens: int | None) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        trace = Trace.open(path)
        json.dumps(trace.header.source)  # as the provenance of a run does
        for layer in trace.layers if tokens is None else trace.layers[:1]:
            trace.layer(layer, tokens)

    return read


def _run_with(trace: Trace, changes: Callable[[Path], dict[str, Any]]) -> Callable[[Path], object]:
    """Runs the tiny model with a damaged file."""

    def read(path: Path) -> None:
        whole = {
            "trace": str(trace.path),
            "device": "paper",
            "dram": {"mlp_fraction": 0.6},
            "tokens": 4,
            "start": "cold",
        }
        run(Experiment.model_validate({**whole, **changes(path)}))

    return read


def _layout(path: Path) -> dict[str, Any]:
    load_layout(str(path))
    return {"layout": str(path), "policies": [{"dip": {"keep": 0.5}}], "dram": {"mlp_fraction": 0.5}}


def _precision(path: Path) -> dict[str, Any]:
    return {"policies": [{"precision": {"calibration": str(path)}}], "dram": "6 kB"}


def _worth(path: Path) -> dict[str, Any]:
    return {"policies": [{"worth": {"sensitivity": str(path)}}], "eviction": "pinned"}


def _predictor(path: Path) -> dict[str, Any]:
    return {"policies": [{"predictor": {"weights": str(path)}}]}


def _read_quality(trace: Path) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        beside = path.with_name("q.safetensors")
        if not beside.exists():
            shutil.copyfile(trace, beside)
        read_quality(Trace.open(beside))

    return read


def _tables(folder: Path) -> None:
    runs, _ = read_tables(folder)
    read_experts(folder, runs)


def _one_of(damages: dict[str, Damage]) -> Damage:
    """Damages one of the files of a folder; the first line says which."""
    names = list(damages)
    return Damage(
        tuple(name.encode() + b"\n" + damages[name].sound[0] for name in names),
        lambda index, rng: names[index].encode() + b"\n" + damages[names[index]](rng),
    )


def _read_in(sound: Path, use: Callable[[Path], object]) -> Callable[[Path], object]:
    """Uses a folder of which one file is damaged."""

    def read(path: Path) -> None:
        folder = path.parent / sound.name
        if not folder.exists():
            shutil.copytree(sound, folder)
        name, _, content = path.read_bytes().partition(b"\n")
        damaged = folder / name.decode()
        damaged.write_bytes(content)
        try:
            use(folder)
        finally:
            shutil.copyfile(sound / damaged.name, damaged)

    return read


def _read_sweep(path: Path) -> None:
    table = read_sweep(path)
    for of in WITHOUT:
        map_axes(gains(table, of), of)


def _read_config(path: Path) -> None:
    shape = ModelShape.from_config(read_config(path), path)
    shape.static_bytes(10)


def _units() -> Damage:
    sound = tuple(text.encode() for text in QUANTITIES)
    return Damage(sound, lambda index, rng: damage_bytes(sound[index], rng))


def _read_units(path: Path) -> None:
    text = path.read_bytes().decode(errors="replace")
    found = []
    for dimension in ("size", "bandwidth", "time", "throughput", "rate", "energy per byte", "energy per operation"):
        try:
            value = units.parse(text, dimension, zero=True)
        except ValueError as error:
            found.append(str(error))
            continue
        assert units.parse(units.write(value, dimension), dimension, zero=True) == value
        units.show(value, dimension)
        return
    raise InputError(max(found, key=len))
