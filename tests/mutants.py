"""Changes the code in many small ways, one at a time, and says which changes the fast tests do not notice.

`make mutants` runs it. A mutant that survives stands for a figure that could be wrong unseen. The listed ones once
survived; all of them must be killed. The drawn ones are a seeded sample of what can go wrong in the modules
that compute: comparisons, operators, constants, conditions, what is returned. Their share that is killed is the score.
Each mutant is made in a copy of the checkout. The module's own tests run there, of them the fast ones.
"""

import argparse
import ast
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("pyproject.toml", "README.md", "dipsim", "policies", "tests", "traces", "devices", "examples", "benchmarks")
PATIENCE = 120  # seconds, after which tests that hang count as failed

EVICTION = (
    "memory/test_further_rules.py memory/test_eviction.py memory/test_unit_cache.py memory/test_eviction_by_hand.py"
)
TESTS = {  # the module's tests, those that fail first in front
    "dipsim/memory/cache.py": "memory/test_cache_by_hand.py memory/test_cache.py memory/test_against_slow.py",
    "dipsim/memory/eviction/rule.py": "memory/test_eviction_by_hand.py memory/test_eviction.py "
    "memory/test_cache.py memory/test_unit_cache.py",
    "dipsim/memory/eviction/lru.py": EVICTION,
    "dipsim/memory/eviction/lfru.py": EVICTION,
    "dipsim/memory/eviction/slru.py": EVICTION,
    "dipsim/memory/eviction/s3_fifo.py": EVICTION,
    "dipsim/memory/stack_distance.py": "memory/test_cache.py memory/test_against_slow.py",
    "dipsim/memory/budget.py": "memory/test_budget.py planning/test_plan.py",
    "dipsim/planning/planner.py": "planning/test_plan_by_hand.py planning/test_plan.py planning/test_split.py",
    "dipsim/planning/builder.py": "planning/test_plan_by_hand.py planning/test_plan.py planning/test_builder.py "
    "planning/test_start.py timing/test_by_hand.py planning/test_experts.py planning/test_precision.py",
    "dipsim/timing/engine.py": "timing/test_engine_by_hand.py timing/test_by_hand.py timing/test_engine.py "
    "timing/test_server.py",
    "dipsim/timing/recurrence.py": "timing/test_by_hand.py timing/test_engine.py",
    "dipsim/timing/service.py": "timing/test_by_hand.py timing/test_costs.py timing/test_engine.py "
    "timing/test_experts_time.py timing/test_prompts_of_experts.py",
    "dipsim/timing/device.py": "timing/test_device.py timing/test_device_values.py timing/test_costs.py",
    "dipsim/workload/trace.py": "workload/test_trace.py workload/test_trace_values.py",
    "dipsim/workload/recorded.py": "workload/test_trace.py workload/test_trace_values.py",
    "dipsim/sparsity/selection.py": "sparsity/test_policy.py sparsity/test_policy_values.py planning/test_plan.py "
    "sparsity/test_levels.py",
    "dipsim/sparsity/policy.py": "sparsity/test_policy.py sparsity/test_policy_values.py planning/test_plan.py",
    "dipsim/basics/units.py": "basics/test_units.py basics/test_units_values.py",
    "dipsim/study/sweep.py": "study/test_sweep_values.py study/test_sweep.py study/test_planners.py",
    "dipsim/study/points.py": "study/test_sweep_values.py",
    "dipsim/study/passes.py": "study/test_sweep_values.py study/test_clock_options.py",
    "dipsim/study/keys.py": "study/test_keys.py study/test_keys_values.py",
}
OTHER = {  # of files that only the list touches
    "dipsim/planning/fetch_plan.py": "planning/test_plan_by_hand.py study/test_keys.py",
    "dipsim/planning/masks.py": "planning/test_plan_by_hand.py",
    "dipsim/storage/placement.py": "planning/test_plan_by_hand.py storage/test_placement.py",
    "dipsim/storage/flash.py": "timing/test_device.py timing/test_device_values.py",
    "dipsim/figures/maps.py": "figures/test_sweep_figures.py",
    "dipsim/figures/sweep_table.py": "figures/test_sweep_figures.py",
    "dipsim/live/closed_loop.py": "live/test_evaluate_values.py",
    "dipsim/live/evaluate.py": "live/test_evaluate_values.py",
    "dipsim/live/perplexity.py": "live/test_evaluate_values.py",
    "policies/dip_ca.py": "sparsity/test_policy_values.py",
    "policies/dip_ca_approx.py": "sparsity/test_policy_values.py",
    "policies/predictor.py": "sparsity/test_policy_values.py",
    "dipsim/results/result.py": "results/test_summary.py",
    "dipsim/workload/shape.py": "workload/test_shape_values.py",
}

LISTED = [  # (file, what is there, what is put there)
    ("dipsim/planning/builder.py", "static, bits.attention, reads=4)", "static, bits.attention, reads=3)"),
    ("dipsim/planning/builder.py", "+= 2 * own * 8 / PREDICTOR_BITS", "+= own * 8 / PREDICTOR_BITS"),
    ("dipsim/storage/placement.py", "Fetch(placement, runs * placement.pieces,", "Fetch(placement, runs,"),
    ("dipsim/planning/planner.py", "if not 0 < tokens <= trace.tokens:", "if not 0 <= tokens <= trace.tokens:"),
    ("dipsim/planning/fetch_plan.py", "self.budget.static_bytes - self.budget.streamed_static_bytes",
     "self.budget.static_bytes"),
    ("dipsim/planning/builder.py", "static, bits.attention, reads=4)", "static, bits.mlp, reads=4)"),
    ("dipsim/planning/builder.py", "static, bits.lm_head, reads=1)", "static, bits.attention, reads=1)"),
    ("dipsim/planning/builder.py", "computed = counts.wanted if", "computed = counts.found if"),
    ("dipsim/planning/builder.py",
     "max(int(ones(np.bitwise_or.reduce(pack(masks[begin:end])))) for begin, end in starts)",
     "int(ones(np.bitwise_or.reduce(pack(masks))))"),
    ("dipsim/memory/budget.py", "if kv_cache + policy_bytes > dram_bytes:", "if kv_cache > dram_bytes:"),
    ("dipsim/memory/budget.py", "dynamic - whole_resident if caching else 0.0", "dynamic - whole_resident"),
    ("dipsim/memory/budget.py", "shape.static_bytes(length, streams) + policy_bytes",
     "shape.static_bytes(length, streams)"),
    ("dipsim/memory/budget.py", "self.kv_cache_bytes + self.policy_bytes", "self.kv_cache_bytes"),
    ("dipsim/timing/engine.py", "if token in starts:", "if token == 0:"),
    ("dipsim/timing/recurrence.py", "- seconds + ttft * sequence", "- seconds + ttft"),
    ("dipsim/timing/service.py", "batch_time([3], [3 * shape", "batch_time([1], [3 * shape"),
    ("dipsim/timing/service.py", "shape.attention_bytes * 8 / bits.attention", "shape.attention_bytes * 8 / bits.mlp"),
    ("dipsim/timing/service.py", "max(plan.setting.prompt + plan.warm_up, 1)", "plan.setting.prompt + plan.warm_up"),
    ("dipsim/storage/flash.py", "np.exp(np.interp(np.log(within), np.log(sizes), np.log(rates)))",
     "np.interp(within, sizes, rates)"),
    ("dipsim/timing/device.py", "flash_copies: int = Field(0, ge=0, le=2)",
     "flash_copies: int = Field(0, ge=0, le=3)"),
    ("dipsim/workload/recorded.py", "or not found[1] or size % found[1]:", "or not found[1]:"),
    ("dipsim/workload/trace.py", "if not 0 <= index < self.shape.num_hidden_layers:", "if False:"),
    ("dipsim/workload/recorded.py", "if not np.isfinite(values).all() or (limit", "if (limit"),
    ("dipsim/workload/recorded.py", '.get_slice(f"{key}.scale")[:tokens]', '.get_slice(f"{key}.scale")[-tokens:]'),
    ("dipsim/planning/masks.py", "scores[here], masks=masks[here], residents=residents[here])",
     "scores[here], masks=masks[here], residents=residents[here], position=begin)"),
    ("dipsim/sparsity/selection.py", "np.asarray(scores >= (score_threshold", "np.asarray(scores > (score_threshold"),
    ("dipsim/planning/masks.py", "cache = caches.cache(layer, begin_with)",
     "cache = cache if begin else caches.cache(layer, begin_with)"),
    ("dipsim/sparsity/selection.py", "< len(seen) or len({group.name for group in groups}) < len(groups):",
     "< len(seen):"),
    ("dipsim/sparsity/selection.py", "or not 0 <= group.k <= size:", "or not 0 < group.k <= size:"),
    ("dipsim/basics/units.py", '{"K": 1e3} | _BINARY', '{"K": 1024.0} | _BINARY'),
    ("dipsim/basics/units.py", '"Mi": 2.0**20', '"Mi": 1e6'),
    ("dipsim/study/keys.py",
     "[cls for cls in type(plugin).__mro__ if issubclass(cls, base) and cls is not base]", "[type(plugin)]"),
    ("dipsim/sparsity/policy.py", "if path.is_file()]", "if False]"),
    ("dipsim/planning/fetch_plan.py", 'if name != "policy"}', 'if name not in ("policy", "prompt")}'),
    ("dipsim/study/keys.py", "digest([__version__, *(sha256(path) for path in modules)])", "digest([__version__])"),
    ("dipsim/study/passes.py", "job.setting()) == job.key", "job.setting()) is not None"),
    ("dipsim/study/passes.py", 'for name, value in summary["utilisation"].items()',
     'for name, value in zip(("dram", "flash", "compute"), summary["utilisation"].values())'),
    ("dipsim/figures/maps.py", "speeds.argmax(axis=0)", "speeds.argmin(axis=0)"),
    ("dipsim/figures/sweep_table.py", 'table["tokens_per_s"] / dense.reindex(point).to_numpy()',
     'dense.reindex(point).to_numpy() / table["tokens_per_s"]'),
    ("dipsim/live/closed_loop.py", "kept = mask if kept is None else kept & mask", "kept = mask"),
    ("dipsim/live/perplexity.py", "difference.std(ddof=1) /", "difference.std(ddof=0) /"),
    ("dipsim/live/perplexity.py", "difference.std(ddof=1) / np.sqrt(difference.size)", "difference.std(ddof=1)"),
    ("dipsim/live/evaluate.py", "ids if calibration is None else calibration", "ids"),
    ("dipsim/live/evaluate.py", "str(setting.options)", 'str(setting.options | {"eviction": ""})'),
    ("dipsim/live/evaluate.py", "if point.hardware:", "if False:"),
    ("policies/dip_ca.py", "1 - (1 - self.gamma) * position", "1 - self.gamma * position"),
    ("policies/dip_ca_approx.py", "(2 * scores.max() + 1e-30)", "(scores.max() + 1e-30)"),
    ("policies/predictor.py", "(hidden * (hidden > 0)) @ b", "hidden @ b"),
    ("dipsim/results/result.py", "np.percentile(latency, q)", "np.percentile(latency, 50)"),
    ("dipsim/results/result.py", "(self.device.flash.peak_bandwidth, self.device.dram.bandwidth)",
     "(self.device.dram.bandwidth, self.device.flash.peak_bandwidth)"),
    ("dipsim/workload/shape.py", "return values * self.bits.kv_cache / 8", "return values * self.bits.attention / 8"),
    ("dipsim/workload/shape.py", "(weights + routers) * self.bits.attention / 8",
     "(weights + routers) * self.bits.mlp / 8"),
]  # fmt: skip
SAME = ("recurrence.py: timing != pipelined instead of timing == concurrent: serial has returned before",)
GONE = ("bounds.py: totals.min instead of totals.max: the bounds are no longer part of dipsim, but of tests/oracles",)


@dataclass(frozen=True)
class Mutant:
    """A file with one place changed: `old`, at an offset in bytes, becomes `new`."""

    file: str
    at: int
    old: bytes
    new: bytes

    def applied(self, source):
        assert source[self.at : self.at + len(self.old)] == self.old
        return source[: self.at] + self.new + source[self.at + len(self.old) :]

    def __str__(self):
        source = (ROOT / self.file).read_bytes()
        start, end = source.rfind(b"\n", 0, self.at) + 1, source.find(b"\n", self.at + len(self.old))
        after = source[start : self.at] + b">>>" + self.new + b"<<<" + source[self.at + len(self.old) : end]
        line = source.count(b"\n", 0, self.at) + 1
        return f"{self.file}:{line}: {' '.join(after.decode().split())}"


def listed():
    """The mutants of the list. Exits if what one of them changes is not there, or is there more than once."""
    for file, old, new in LISTED:
        source = (ROOT / file).read_bytes()
        if source.count(old.encode()) != 1:
            sys.exit(f"error: {file}: {old!r} is there {source.count(old.encode())} times; put the list right")
        yield Mutant(file, source.index(old.encode()), old.encode(), new.encode())


COMPARED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is",
            "in": "not in", "not in": "in"}  # fmt: skip
COMPUTED = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*", "|": "&", "&": "|", "^": "|"}
JOINED = {"and": "or", "or": "and"}
CALLED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any",
          "argmax": "argmin", "sum": "max", "ceil": "floor"}  # fmt: skip
SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr)  # what is said, and what cannot happen


class Finder(ast.NodeVisitor):
    """Finds every place of a file that can be changed."""

    def __init__(self, file):
        self.file, self.source, self.found = file, (ROOT / file).read_bytes(), []
        lines = self.source.split(b"\n")
        self.begins = [sum(len(line) + 1 for line in lines[:row]) for row in range(len(lines))]
        self.visit(ast.parse(self.source))

    def at(self, node, end=False):
        row, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)
        return self.begins[row - 1] + column

    def change(self, begin, end, new):
        self.found.append(Mutant(self.file, begin, self.source[begin:end], new.encode()))

    def between(self, left, right, swaps):
        begin, end = self.at(left, end=True), self.at(right)
        text = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[begin:end])
        match = re.search(rb"not in|is not|[a-z]+|[^\s()\\]+", text)
        if match and (new := swaps.get(match[0].decode())):
            self.change(begin + match.start(), begin + match.end(), new)

    def generic_visit(self, node):
        if isinstance(node, SKIPPED) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            return
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list", "format_spec"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)

    def visit_Compare(self, node):
        for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
            self.between(left, right, COMPARED)
        self.generic_visit(node)

    def visit_BinOp(self, node):
        self.between(node.left, node.right, COMPUTED)
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, JOINED)
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.change(self.at(node), self.at(node.operand), "")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, (bool, int, float)):
            new = not node.value if isinstance(node.value, bool) else node.value + 1
            self.change(self.at(node), self.at(node, end=True), repr(new))

    def visit_Return(self, node):
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self.change(self.at(node.value), self.at(node.value, end=True), "None")
        self.generic_visit(node)

    def visit_Call(self, node):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CALLED:
            end = self.at(node.func, end=True)
            self.change(end - len(name), end, CALLED[name])
        self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg != "strict":  # of zip: it states what holds
            self.generic_visit(node)

    def visit_IfExp(self, node):
        self.change(self.at(node.test), self.at(node.test, end=True), "True")
        self.generic_visit(node)


EQUIVALENT = {  # drawn mutants that change nothing that can be seen: file, line as it is shown, and why
    (
        "dipsim/workload/trace.py",
        "starts = [start for start in self.sequence_starts if start >>><=<<< count]",
    ): "a sequence of no tokens is never the longest",
    (
        "dipsim/timing/engine.py",
        "interrupted = Request((0.0, >>>1.0<<<, demand.after), self.nothing.bytes)",
    ): "only compute is asked",
    (
        "dipsim/timing/recurrence.py",
        "over = np.>>>minimum<<<(early[0] - done, 0), np.maximum(early[1] - done, 0) "
        "# what ended before begins with the token",
    ): "it is served from when a step that has ended had its turn, so never after the token begins",
    ("dipsim/timing/recurrence.py", "seconds = parts.sum(axis=>>><<<1)"): "the second axis is the last",
    (
        "dipsim/timing/engine.py",
        "self.start, self.latency, self.ttft = [0] * tokens, [>>>1<<<] * tokens, 0",
    ): "every token writes its own",
    ("dipsim/memory/stack_distance.py", "if one_pass >>>or<<< together:"): "of no capacities there are no hits",
    ("dipsim/memory/cache.py", "self.found = >>>1<<< # hits of the last token"): "there was no last token yet",
    (
        "dipsim/memory/eviction/rule.py",
        "if enough >>><=<<< len(units): # only the least valuable need an order",
    ): "all of them in order give the same",
    (
        "dipsim/memory/eviction/rule.py",
        "near = value <= np.partition(value, enough - >>>2<<<)[enough - 1]",
    ): "what is near may be more than must be",
    (
        "dipsim/memory/eviction/rule.py",
        "enough = int(excess >>>*<<< self.sizes.min()) + 1 # as many as could leave",
    ): "what is near may be more than must be",
    ("dipsim/memory/eviction/lru.py", "drift = >>>2<<<"): "a guess where to begin the search",
    ("dipsim/memory/eviction/lru.py", "inclusive = >>>False<<<"): "one pass over all sizes finds what a pass each does",
    (
        "dipsim/memory/eviction/lfru.py",
        "SCALE = 2**>>>33<<< # values are whole numbers",
    ): "ratios of small numbers stay apart",
    ("dipsim/memory/eviction/lfru.py", "self._uses[units] += >>>2<<<"): "twice the uses of all are in the same order",
    (
        "dipsim/memory/eviction/lfru.py",
        "SCALE = >>>3<<<**32 # values are whole numbers",
    ): "ratios of small numbers stay apart",
    (
        "dipsim/memory/eviction/lfru.py",
        "self.value = self._uses * SCALE >>>/<<< (1 + self.token - self._last)",
    ): "ratios of small numbers stay apart",
    ("dipsim/memory/eviction/slru.py", "self.token += >>>2<<<"): "only the order counts",
    (
        "dipsim/memory/eviction/slru.py",
        "protected = np.flatnonzero(self._here & (self.value >>>><<< RANK))",
    ): "no value is RANK itself",
    ("dipsim/memory/eviction/slru.py", "RANK = 2**>>>41<<< # above every position"): "still above every position",
    (
        "dipsim/memory/eviction/s3_fifo.py",
        "return float(self.sizes[list(queue)].sum()) if >>>True<<< else 0.0",
    ): "nothing sums to 0",
    ("dipsim/memory/stack_distance.py", "column = next(old, ->>>2<<<)"): "only its sign counts",
    (
        "dipsim/memory/budget.py",
        "return tuple(min(shape.axis_size(group.axis), int(share >>>/<<< column_bytes(shape, group))) for group in groups)",  # noqa: E501
    ): "int rounds down, too",
    (
        "dipsim/memory/budget.py",
        "share = size / masked if masked else >>>1.0<<<",
    ): "where nothing is masked there is no group",
    (
        "dipsim/timing/engine.py",
        "interrupted = Request((>>>1.0<<<, 0.0, demand.after), self.nothing.bytes)",
    ): "only compute is asked",
    (
        "dipsim/timing/recurrence.py",
        "if (off <= ROUNDING * parts.sum(axis=>>><<<1)).all():",
    ): "the second axis is the last",
}


class Copy:
    """A copy of the checkout, in which tests run on mutants."""

    def __init__(self, folder):
        self.root = Path(folder) / "checkout"
        self.root.mkdir()
        for name in COPIED:
            part = ROOT / name
            if part.is_dir():
                shutil.copytree(part, self.root / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(part, self.root / name)

    def survives(self, mutant, tests):
        """Whether the tests pass with a mutant in place."""
        path = self.root / mutant.file
        source = path.read_bytes()
        path.write_bytes(mutant.applied(source))
        self.forget(path)
        try:
            return self.passes(tests)
        finally:
            path.write_bytes(source)
            self.forget(path)

    @staticmethod
    def forget(path):
        """Remove what Python compiled: it cannot tell two files of one second and one size apart."""
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()

    def passes(self, tests):
        """Whether tests pass, in a process of its own that has loaded what takes long."""
        process = multiprocessing.get_context("fork").Process(target=self.run, args=(tests,))
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            os.killpg(process.pid, 9)
            process.join()
        return process.exitcode == 0

    def run(self, tests):
        os.setpgid(0, 0)
        os.chdir(self.root)
        with Path(os.environ.get("MUTANTS_LOG", os.devnull)).open("a") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        os.environ["PYTHONPATH"] = str(self.root)
        sys.path[:] = [str(self.root), *(place for place in sys.path if Path(place).resolve() != ROOT / "tests")]
        import pytest

        paths = [f"tests/{path}" for path in tests.split()]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was loaded before
        os._exit(int(pytest.main([*options, *paths])))


def preload(live):
    """Load what tests need and mutants do not touch, once for all."""
    import yaml  # noqa: F401

    if live:
        import transformers  # noqa: F401


def count(what, mutants, copy, tests):
    """Try mutants; say which survive; return how many were tried and killed."""
    tried = killed = 0
    for mutant in mutants:
        if (why := EQUIVALENT.get((mutant.file, str(mutant).split(": ", 1)[1]))) is not None:
            print(f"  equivalent  {mutant}  ({why})")
            continue
        survives = copy.survives(mutant, tests[mutant.file])
        tried, killed = tried + 1, killed + (not survives)
        if survives or what == "listed":
            print(f"  {'survived' if survives else 'killed  '}  {mutant}", flush=True)
    return tried, killed


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--listed", action="store_true", help="only the listed mutants")
    arguments.add_argument("--drawn", action="store_true", help="only the drawn ones")
    arguments.add_argument("--sample", type=int, default=12, help="mutants drawn from each module (12)")
    arguments.add_argument("--all", action="store_true", help="every mutant of each module")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--trust", action="store_true", help="do not run the tests without any change first")
    arguments.add_argument("--only", default="", help="part of the path of the files to change")
    chosen = arguments.parse_args()
    tests, started, survived = TESTS | OTHER, time.monotonic(), 0
    os.environ |= {"OMP_NUM_THREADS": "1"}
    preload(live=not chosen.drawn)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(folder)
        if not chosen.drawn:
            wanted = [mutant for mutant in listed() if chosen.only in mutant.file]
            if not chosen.trust:
                check(copy, {mutant.file for mutant in wanted}, tests)
            tried, killed = count("listed", wanted, copy, tests)
            survived += tried - killed
            print(f"listed: {killed} of {tried} killed", flush=True)
            print(f"  equivalent  {'; '.join(SAME)}\n  gone        {'; '.join(GONE)}")
        if not chosen.listed:
            totals = [0, 0]
            if not chosen.trust:
                check(copy, {file for file in TESTS if chosen.only in file}, tests)
            for file in TESTS:
                if chosen.only not in file:
                    continue
                found = Finder(file).found
                drawn = random.Random(f"{chosen.seed} {file}").sample(found, min(len(found), chosen.sample))
                tried, killed = count("drawn", found if chosen.all else drawn, copy, tests)
                totals = [totals[0] + tried, totals[1] + killed]
                share = f"{killed / tried:.0%}" if tried else "-"
                print(f"{file}: {killed} of {tried} killed ({share}; {len(found)} there are)", flush=True)
            print(f"drawn: {totals[1]} of {totals[0]} killed ({totals[1] / max(totals[0], 1):.1%})")
            survived += totals[1] < 0.85 * totals[0]
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(1 if survived else 0)


def check(copy, files, tests):
    """Exit unless the tests pass as long as nothing is changed."""
    for file in sorted(files):
        if not copy.passes(tests[file]):
            sys.exit(f"error: {file}: its tests fail without any change: {tests[file]}")


if __name__ == "__main__":
    main()
