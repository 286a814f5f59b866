"""What every figure that is written means: each column of the tables and each field of `summary.json`.

A name with `*` stands for all that fit it, as keys that a sweep varies do. Numbers of equations are those of
docs/background/equations.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from dipsim.basics.files import write

COLUMNS = "columns.md"  # in a folder of results
OWN = ("streams", "turns", "contention", "split")  # swept keys without a dot that have a column of their own
HEAD = """# Columns

What the columns of the tables mean, and the fields of `summary.json`. All units are SI: bytes, not bits, and 1 GB is
1e9 bytes. A share is from 0 to 1. `*` stands for any name. Equations are those of `docs/background/equations.md`.
"""


class Entry(NamedTuple):
    """One quantity. Its name is that of a column, or the keys on the way to it in `summary.json`, joined by dots."""

    name: str
    unit: str
    meaning: str
    source: str = ""


_POLICY = Entry("policy", "text", "The policy, with the parameters that are not its defaults.", "section 2")
_LAYER = Entry("layer", "index", "The decoder layer, from 0; of lm_head the number of layers.")
_EVICTION = Entry("eviction", "text", "The rule by which caches let columns or experts go.", "section 4")
_START = Entry("start", "text", "How caches begin: warm, cold or filled.", "eq. 4.16")
_LAYOUT = Entry("layout", "text", "How columns lie in Flash.", "section 5")
_TIMING = Entry("timing", "text", "What runs side by side: serial, concurrent or pipelined.", "eq. 6.15 to 6.21")
_SCOPE = Entry("scope", "text", "What a cache of experts serves: each layer its own, or one the model.", "section 10")
_DEVICE = Entry("device", "text", "The name in the device file.")
_MODEL = Entry("model", "text", "The name of the model whose trace was run.")
_DRAM = Entry("dram_bytes", "bytes", "The DRAM for weights and KV cache.", "section 3")
_HITS = Entry(
    "hit_rate", "share", "Of the MLP bytes read, those from DRAM; of experts their number.", "eq. 4.11, eq. 10.10"
)
_READ = Entry("mlp_fraction_read", "share", "The part of the MLP that a token reads.", "eq. 4.13")
_SPEED = Entry("tokens_per_s", "tokens/s", "Tokens by the time to decode them, without the prompt.", "eq. 6.29")
_TTFT = Entry("ttft_s", "s", "The time to encode the prompt.", "eq. 6.23 to 6.26")
_PER_TOKEN = (
    Entry("flash_bytes_per_token", "bytes", "Read from Flash: with gaps, whole pages and guesses.", "eq. 5.2, 5.16"),
    Entry("dram_bytes_per_token", "bytes", "Moved over the DRAM bus, with what Flash copies through it.", "eq. 6.11"),
    Entry("flash_reads_per_token", "number", "Reads from Flash.", "eq. 5.7"),
    Entry("mean_read_bytes", "bytes", "The mean size of a read.", "flash_bytes / flash_reads"),
    Entry("read_amplification", "ratio", "Bytes read because of masks for each that was missing.", "eq. 5.14"),
)
_PEAK = Entry("peak_dram_bytes", "bytes", "The most DRAM in use at any time.", "eq. 3.22")
_ENERGY = Entry("energy_j_per_token", "J", "The energy of a token; empty where the device says none.", "eq. 7.1")
_GUESSED = Entry("guessed_flash_bytes_per_token", "bytes", "Read from Flash for guesses.", "section 11")
_PRICE = (
    Entry("perplexity", "perplexity", "As measured for exactly this setting; never interpolated.", "eq. 8.2"),
    Entry("perplexity_source", "text", "Whether the perplexity was measured, or `not measured`.", "section 8"),
    Entry("perplexity_standard_error", "perplexity", "That of the difference to the dense model.", "eq. 8.4"),
)
_WAITED = (
    Entry("parts_s.wait", "s", "Of a token's mean time, what it stood in queues.", "eq. 6.28"),
    Entry("parts_s.*", "s", "Of a token's mean time, what it waited for this resource.", "eq. 6.27"),
)
_FATES = {
    "useful": "Guesses that were there in time; they count as hits.",
    "late": "Guesses that were waited for; they count as hits.",
    "wasted": "Guesses that were read for nothing.",
    "dropped": "Guesses that were never read.",
}
_WORKING_SET = Entry("working_set_bytes", "bytes", "The experts that one token uses.", "eq. 10.2")

_SOLVED = (
    Entry("unknown", "text", "What was looked for, by the key of a sweep or as `iops`."),
    Entry("dimension", "text", "Its dimension; empty for a plain number."),
    Entry("value", "number", "Its value, in SI units."),
    Entry("case", "text", "The policy, without a parameter that was looked for."),
    Entry("target", "text", "The target, as it was asked for."),
    Entry("reached", "text", "Whether the target is reached."),
    Entry("column", "text", "The column that the target is about."),
    Entry("limit", "number", "The target in `unit`."),
    Entry("found", "number", "What was found of it, in `unit`."),
    Entry("unit", "text", "The unit of `limit` and `found`."),
)
_SWEPT = (
    Entry("trace", "text", "The trace, as the experiment names it."),
    _MODEL,
    _DEVICE,
    _POLICY,
    _SPEED,
    *_PRICE,
    _DRAM,
    Entry("flash_bandwidth_bytes_per_s", "bytes/s", "The most that Flash moves, by its device file."),
    Entry("dram_bandwidth_bytes_per_s", "bytes/s", "The bandwidth of DRAM."),
    Entry("mlp_fraction_in_dram", "share", "The part of the MLP that DRAM could hold.", "eq. 8.5"),
    _SCOPE,
    _WORKING_SET,
    Entry("cliff_dram_bytes", "bytes", "The DRAM below which a cache does not hold one token's experts.", "section 10"),
    _LAYOUT,
    Entry("calibration", "text", "The trace that a layout is learned from; empty for uncounted tokens."),
    _START,
    Entry("read_through", "text", "Whether gaps are read where that is faster.", "eq. 5.12, 5.13"),
    _EVICTION,
    _TIMING,
    Entry("prompt", "number", "Positions before those of the trace.", "eq. 6.25"),
    Entry("stream_static", "text", "Whether lm_head and attention may overflow to Flash.", "eq. 3.17"),
    Entry("on_clock", "text", "Whether anything depends on the clock.", "section 11"),
    Entry("tokens", "number", "Tokens that are simulated, with those that warm up."),
    Entry("latency_mean_s", "s", "The mean time of a token.", "1 / tokens_per_s of one stream"),
    Entry("latency_p*_s", "s", "The time that 50, 95 or 99 % of the tokens do not exceed."),
    _TTFT,
    _HITS,
    _READ,
    *_PER_TOKEN,
    Entry("*_utilisation", "share", "How much of the time a resource was busy.", "eq. 6.31"),
    _PEAK,
    _ENERGY,
    Entry("flash_waited_s", "s", "How much longer requests to Flash took than alone, together.", "eq. 11.6"),
    _GUESSED,
    *(Entry(f"guesses_{name}_per_token", "number", text, "section 11") for name, text in _FATES.items()),
    Entry("key", "text", "The hash of all that the point depends on."),
    Entry("flash.*", "as written", "Swept: a field of the device's Flash."),
    Entry("dram.*", "as written", "Swept: a field of the device's DRAM."),
    Entry("compute.*", "as written", "Swept: a field of the device's compute."),
    Entry("energy.*", "as written", "Swept: a field of the device's energy."),
    Entry("cache.*", "as written", "Swept: a field of the cache of experts.", "section 10"),
    Entry("prefetch.*", "as written", "Swept: an option of what is read ahead.", "section 11"),
    Entry("speculate.*", "as written", "Swept: an option of drafts.", "section 11"),
    Entry("streams", "number", "Swept: sequences that run side by side.", "section 11"),
    Entry("turns", "text", "Swept: in which order Flash serves streams.", "eq. 11.4"),
    Entry("contention", "text", "Swept: whether copies and fills cross DRAM beside demand.", "eq. 11.7, 11.8"),
    Entry("bits.*", "number", "Swept: bits of a weight, or of a value of the KV cache.", "section 3"),
    Entry("split", "text", "Swept: how the DRAM is split over caches, even or best.", "section 3"),
    Entry("*.*", "as written", "Swept: a parameter of the prefetcher."),
)

DICTIONARY: dict[str, tuple[Entry, ...]] = {
    "summary.json": (
        _POLICY,
        _MODEL,
        _DEVICE,
        _START,
        _LAYOUT,
        _EVICTION,
        _TIMING,
        Entry("on_clock", "text", "What depends on the clock; missing where nothing does.", "section 11"),
        _SPEED,
        _PRICE[0],
        _PRICE[2],
        Entry("latency_s.mean", "s", "The mean time of a token.", "1 / tokens_per_s of one stream"),
        Entry("latency_s.p*", "s", "The time that 50, 95 or 99 % of the tokens do not exceed."),
        _TTFT,
        *_WAITED,
        _HITS,
        Entry("hit_rate_mean_of_matrices", "share", "The mean over tokens and matrices of each hit rate.", "eq. 4.12"),
        Entry("hit_rate_with_prompt", "share", "The hit rate with the tokens that are not counted.", "eq. 10.10"),
        _READ,
        *_PER_TOKEN,
        _ENERGY,
        Entry("tokens", "number", "Tokens that are counted."),
        Entry("warm_up_tokens", "number", "Tokens of a sequence, at most, that only warmed caches up.", "eq. 4.16"),
        Entry("sequences", "number", "Sequences in the trace that are counted."),
        Entry("utilisation.*", "share", "How much of the time a resource was busy.", "eq. 6.31"),
        Entry("busy_s.*", "s", "The time that a resource served, of the whole run.", "eq. 6.10 to 6.14"),
        Entry("waited_s.*", "s", "How much longer requests to a resource took than alone, together.", "eq. 11.6"),
        Entry("bandwidth_bytes_per_s.*", "bytes/s", "Bytes moved by the time that a resource was busy.", "eq. 6.32"),
        Entry("peak_bandwidth_bytes_per_s.*", "bytes/s", "The most that a resource moves, by its device file."),
        _DRAM,
        _PEAK,
        Entry(
            "page_fault_share",
            "share",
            "Of what is thought resident, what is not: the device has less DRAM free.",
            "eq. 6.33",
        ),
        Entry("dram_budget.total_bytes", "bytes", "The DRAM that was divided."),
        Entry("dram_budget.lm_head_bytes", "bytes", "The weights of lm_head.", "eq. 3.3"),
        Entry("dram_budget.attention_bytes", "bytes", "The weights of attention.", "eq. 3.2"),
        Entry("dram_budget.kv_cache_bytes", "bytes", "The KV caches at their longest.", "eq. 3.5"),
        Entry(
            "dram_budget.policy_bytes",
            "bytes",
            "What the policy itself needs, such as a predictor's weights.",
            "eq. 3.7",
        ),
        Entry(
            "dram_budget.streamed_static_bytes", "bytes", "Of lm_head and attention, what Flash streams.", "eq. 3.17"
        ),
        Entry(
            "dram_budget.whole_resident_bytes",
            "bytes",
            "Of matrices that are read whole, what is resident.",
            "eq. 3.12",
        ),
        Entry(
            "dram_budget.whole_streamed_bytes",
            "bytes",
            "Of matrices that are read whole, what Flash streams.",
            "eq. 3.12",
        ),
        Entry("dram_budget.cache_bytes", "bytes", "The caches of columns or experts.", "eq. 3.15"),
        Entry("dram_budget.unused_bytes", "bytes", "What is left.", "eq. 3.16"),
        Entry("dram_budget.buffer_bytes", "bytes", "The buffer of guesses."),
        Entry(
            "dram_budget.capacity_columns.*", "number", "Columns, or experts, that a layer's cache holds.", "eq. 3.14"
        ),
        _SCOPE,
        _WORKING_SET,
        Entry("streams.*.tokens", "number", "Tokens of one stream."),
        Entry("streams.*.tokens_per_s", "tokens/s", "The speed of one stream."),
        Entry("streams.*.mean_latency_s", "s", "The mean time of a token of one stream."),
        Entry("tier_bytes_per_token.*", "bytes", "Read from a further tier of the device.", "eq. 11.10"),
        Entry("tokens_per_verification", "number", "Tokens that come out when drafts are verified once.", "section 11"),
        *(Entry(f"guesses_per_token.{name}", "number", text, "section 11") for name, text in _FATES.items()),
        Entry(
            "guess_recall", "share", "Of the units wanted and not resident, those guessed.", "used / (used + missed)"
        ),
        Entry("guess_precision", "share", "Of the guesses read, those used.", "used / (used + wasted)"),
        _GUESSED,
    ),
    "tokens.csv": (
        _POLICY,
        Entry("token", "index", "The counted token, from 0; with drafts the verification, of several tokens."),
        Entry("sequence", "index", "The sequence that it is of, from 0."),
        Entry("start_s", "s", "When the token begins, from the start of the run."),
        Entry("latency_s", "s", "The time of the token.", "eq. 6.15, 6.16, 6.21"),
        Entry("wait_s", "s", "Of it, what it stood in queues.", "eq. 6.28"),
        Entry("flash_bytes", "bytes", "Read from Flash: with gaps, whole pages and guesses.", "eq. 5.2, 5.16"),
        Entry("flash_reads", "number", "Reads from Flash.", "eq. 5.7"),
        Entry("dram_bytes", "bytes", "Moved over the DRAM bus, with what Flash copies through it.", "eq. 6.11"),
        _HITS,
        _READ,
        Entry("energy_j", "J", "The energy of the token; missing where the device says none.", "eq. 7.1"),
        Entry("accepted", "number", "With drafts: the tokens that came out.", "section 11"),
        Entry("stream", "index", "With several streams: the one that it is of, from 0."),
        *(Entry(f"guesses_{name}", "number", text, "section 11") for name, text in _FATES.items()),
        Entry("*_s", "s", "Of the time of the token, what it waited for this resource.", "eq. 6.27"),
    ),
    "layers.csv": (
        _POLICY,
        _LAYER,
        _HITS,
        Entry("mlp_dram_bytes_per_token", "bytes", "MLP bytes from DRAM.", "eq. 6.4, 6.6"),
        Entry(
            "mlp_flash_bytes_per_token", "bytes", "MLP bytes that are used from Flash, without gaps.", "eq. 6.4, 6.6"
        ),
        Entry("experts_per_token", "number", "Experts that a token uses; a low copy counts as a part.", "section 10"),
    ),
    "spans.csv": (
        _POLICY,
        Entry("token", "index", "The one token whose requests are kept, the middle one."),
        Entry("resource", "text", "What served the request: flash, dram, compute, or a device's own."),
        Entry("kind", "text", "demand of the token, guess, fill of a cache, or interrupt of compute.", "section 11"),
        _LAYER,
        Entry(
            "step", "text", "What the request is for: attention, whole, a group of the policy, lm_head.", "section 6"
        ),
        Entry("request_s", "s", "When it was asked for, from the start of the token."),
        Entry("start_s", "s", "When its service began, from the start of the token.", "eq. 6.17"),
        Entry("end_s", "s", "When its service ended, from the start of the token.", "eq. 6.17"),
        Entry("bytes", "bytes", "Moved for it; 0 for compute."),
    ),
    "experts.csv": (
        _POLICY,
        _LAYER,
        Entry("expert", "index", "The expert of the layer, from 0."),
        Entry("tokens", "number", "Counted tokens that use it, in whichever copy."),
    ),
    "sweep.csv": _SWEPT,
    "samples.csv": (*_SOLVED, *_SWEPT),
    "solve.csv": (
        Entry("answer", "as written", "What was found, as a file would say it; empty if the target is not reached."),
        Entry("note", "text", "What the answer does not say."),
        *_SOLVED,
        *_SWEPT,
    ),
    "memory.csv": (
        _POLICY,
        Entry(
            "part",
            "text",
            "What has the bytes: a whole matrix, a group, the KV cache, ...; or nothing: `unused`.",
        ),
        Entry("layer", "index", "The decoder layer, from 0; empty for what is of the whole model."),
        Entry("whole_bytes", "bytes", "All that the part can use."),
        Entry("*_bytes", "bytes", "What it has with the even and with the best split."),
        Entry("*_saves_s_per_byte", "s/byte", "What the next byte there saves a token; empty where it must be there."),
    ),
    "splits.csv": (
        _MODEL,
        _DEVICE,
        _POLICY,
        Entry("split", "text", "How the DRAM is split over caches: even or best.", "section 3"),
        _DRAM,
        Entry("tokens", "number", "Tokens that are counted."),
        Entry("flash_predicted_s", "s", "How long Flash is busy with a token, by the tokens that the split is from."),
        Entry("flash_s", "s", "How long Flash is busy with a token."),
        Entry("latency_predicted_s", "s", "The time of a token, by the same; empty where Flash and the rest overlap."),
        Entry("latency_s", "s", "The mean time of a token."),
        _HITS,
        *_PRICE[:2],
    ),
    "compare.csv": (
        _POLICY,
        Entry("compared", "text", "What is compared, by the name of its folder or device file."),
        _MODEL,
        _DEVICE,
        _DRAM,
        Entry("tokens", "number", "Tokens that are counted."),
        _SPEED,
        Entry("ratio", "ratio", "The speed over that of the first compared, of the same policy."),
        _HITS,
        *_PRICE,
        _ENERGY,
        *_WAITED,
        Entry("setting.*", "text", "An option of the run; `default` where its experiment gives none."),
    ),
}


def find(file: str, name: str) -> Entry | None:
    """The entry of a column, or of a field of `summary.json`; the first that fits, None if none does."""
    return next((entry for entry in DICTIONARY[file] if fnmatchcase(name, entry.name)), None)


def markdown(files: Iterable[str] = DICTIONARY) -> str:
    """The dictionary of these files, as a page."""
    parts = [HEAD]
    for file in files:
        rows = [f"| `{name}` | {unit} | {meaning} | {source} |" for name, unit, meaning, source in DICTIONARY[file]]
        parts.append("\n".join([f"## {file}\n", "| name | unit | meaning | formula |", "|---|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def write_columns(out: Path, files: Iterable[str]) -> None:
    """Write `columns.md`, the dictionary of these files, into a folder of results."""
    write(out / COLUMNS, markdown(files))


def flatten(value: object, name: str = "") -> dict[str, object]:
    """The figures of an object of `summary.json` by the keys on the way to them, joined by dots."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {k: v for key, each in items for k, v in flatten(each, f"{name}.{key}" if name else str(key)).items()}
    return {name: value}
