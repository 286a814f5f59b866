"""What a run found, as flat tables and a summary derived from them. Every name says its unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from dipsim.basics.arrays import Floats, same
from dipsim.basics.units import significant
from dipsim.planning.fetch_plan import FetchPlan, Guessed
from dipsim.results.quality import priced
from dipsim.sparsity.policy import whole_matrices
from dipsim.timing.device import Device
from dipsim.timing.service import dram_traffic, page_fault_share
from dipsim.timing.timeline import RESOURCES, Timeline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


FATES = ("useful", "late", "wasted", "dropped")  # of guesses


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """One policy's run on one device. Two are equal if all that they hold is, arrays and spans included.

    `summary()` has the figures, `tokens()`, `layers()`, `experts()` and `spans(token)` are tables, `plot()` draws.
    `perplexity` and its `standard_error` are None unless they were measured for exactly this setting. `on_clock` says
    in words what depended on the clock.
    """

    plan: FetchPlan
    device: Device
    timeline: Timeline
    perplexity: float | None = None
    standard_error: float | None = None
    on_clock: str = ""

    def __eq__(self, other: object) -> bool:
        return same(self, other) if isinstance(other, Result) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.policy, self.device.name, self.tokens_per_s))

    def __repr__(self) -> str:
        speed, hits, price = self._shown.values()
        where = f"{self.policy} on {self.device.name}"
        return f"<Result {where}: {speed} tokens/s, hit rate {hits}, perplexity {price}>"

    def _repr_html_(self) -> str:
        """A small table, which notebooks show."""
        cells = {"policy": self.policy, "device": self.device.name, **self._shown}
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in cells.items())
        return f"<table>{rows}</table>"

    @property
    def _shown(self) -> dict[str, str]:
        """The speed and what goes with it, in words."""
        price = priced(self.perplexity)
        return {"tokens/s": significant(self.tokens_per_s), "hit rate": f"{self.hit_rate:.1%}", "perplexity": price}

    def plot(self, figure: str = "latency") -> Figure:
        """One of the figures of this run, which notebooks show. Arguments and errors are those of `dipsim.plot`."""
        import dipsim  # figures are drawn from results, which know none of them but by this public name

        return dipsim.plot(self, figure)

    @property
    def policy(self) -> str:
        """The policy's label: its name and parameters."""
        return self.plan.setting.policy.label

    @property
    def tokens_per_s(self) -> float:
        """Tokens divided by the time to decode them, of all streams. Prompt encoding is left out."""
        return self.plan.tokens / self.timeline.elapsed_s

    @property
    def hit_rate(self) -> float:
        """The share of the MLP bytes read that came from DRAM, from 0 to 1; of experts the share of their number.

        A low copy of an expert counts as its part of an exact one.
        """
        hits, misses = self._lookups()
        return float(_ratio(hits.sum(), hits.sum() + misses.sum()))

    def _lookups(self) -> tuple[Floats, Floats]:
        """What hit rates are of: MLP bytes, or experts, from DRAM and from Flash, [T, positions that read the MLP]."""
        if not self.plan.of_experts:
            return self._mlp_bytes()
        found, missed = self.plan.units
        return found[:, self.plan.is_mlp], missed[:, self.plan.is_mlp]

    @property
    def hit_rate_with_prompt(self) -> float | None:
        """The hit rate with the tokens that are not counted; None where it is not of experts."""
        encoded = self.plan.encoded
        if encoded is None:
            return self.hit_rate if self.plan.of_experts else None
        found, missed = (part.sum() for part in self._lookups())
        return float((found + encoded.found) / (found + missed + encoded.wanted))

    def _mlp_bytes(self) -> tuple[Floats, Floats]:
        """MLP bytes from DRAM and from Flash, [T, positions that read the MLP]."""
        mlp = self.plan.is_mlp
        return self.plan.dram_bytes[:, mlp], self.plan.flash_bytes[:, mlp]

    def _flash_bytes(self) -> Floats:
        """Bytes read from Flash per token, [T], with gaps, whole pages and guesses."""
        read = (self.plan.flash_static + self.plan.flash_read_bytes).sum(axis=1) + self._guessed.bytes
        return np.asarray(read - self._tiers[:, len(self.device.above) :].sum(axis=1))

    def _flash_reads(self) -> Floats:
        """Reads from Flash per token, [T]."""
        reads = self.plan.flash_reads.sum(axis=1) + self._guessed.reads
        if self.plan.tier_reads is not None:
            reads = reads - self.plan.tier_reads[:, len(self.device.above) :].sum(axis=1)
        return np.asarray(reads)

    def _dram_traffic(self) -> Floats:
        """Bytes over the DRAM bus per token, [T], with what storage copies through it."""
        static, masked = dram_traffic(self.plan, self.device)
        copied = self.device.dram.flash_copies * self._guessed.bytes
        return np.asarray((static + masked).sum(axis=1) + copied - self._tiers[:, : len(self.device.above)].sum(axis=1))

    @property
    def _tiers(self) -> Floats:
        """Bytes per token that came from other tiers, [T, tiers]: those above DRAM, then those behind Flash."""
        tiers = self.plan.tier_bytes
        return np.zeros((self.plan.rows, 0)) if tiers is None else tiers

    @cached_property
    def _guessed(self) -> Guessed:
        """What became of guesses; all 0 where there were none."""
        return self.plan.guessed or Guessed.none(self.plan.rows)

    def _energy_j(self) -> Floats | None:
        """Joules per token, [T]; None where the device does not say what a part of them costs."""
        energy, plan = self.device.energy, self.plan
        if energy is None or energy.flash is None or energy.dram is None or self.device.tiers:
            return None
        joules = self._flash_bytes() * energy.flash + self._dram_traffic() * energy.dram
        if self.device.compute is None:
            return np.asarray(joules)
        return None if energy.compute is None else np.asarray(joules + plan.flops.sum(axis=1) * energy.compute)

    def tokens(self) -> pd.DataFrame:
        """One row a counted token: its times and their breakdown, bytes and reads, hit rate, MLP fraction read, energy
        if known.
        """
        import pandas as pd

        plan, timeline = self.plan, self.timeline
        hits, misses = (part.sum(axis=1) for part in self._mlp_bytes())
        found, missed = (part.sum(axis=1) for part in self._lookups())
        columns: dict[str, Any] = {
            "policy": self.policy,
            "token": np.arange(plan.rows),
            "sequence": np.searchsorted(plan.sequence_starts, np.arange(plan.rows), side="right") - 1,
            "start_s": timeline.start_s,
            "latency_s": timeline.latency_s,
            **{f"{part}_s": timeline.parts_s[:, index] for index, part in enumerate(timeline.breakdown)},
            "flash_bytes": self._flash_bytes(),
            "flash_reads": self._flash_reads(),
            "dram_bytes": self._dram_traffic(),
            "hit_rate": _ratio(found, found + missed),
            "mlp_fraction_read": (hits + misses) / plan.shape.mlp_bytes,
        }
        if (energy := self._energy_j()) is not None:
            columns["energy_j"] = energy
        if plan.accepted is not None:
            columns["accepted"] = plan.accepted
        if timeline.streams:
            columns["stream"] = np.repeat(np.arange(len(timeline.streams)), [len(rows) for rows in timeline.streams])
        if plan.guessed is not None:
            columns |= {f"guesses_{name}": getattr(plan.guessed, name) for name in FATES}
        return pd.DataFrame(columns)

    def layers(self) -> pd.DataFrame:
        """One row a layer: hit rate and MLP bytes per token from DRAM and from Flash."""
        import pandas as pd

        of_layer = self.plan.layer[self.plan.is_mlp]
        hits, misses = (np.bincount(of_layer, weights=part.mean(axis=0)) for part in self._mlp_bytes())
        found, missed = (np.bincount(of_layer, weights=part.mean(axis=0)) for part in self._lookups())
        columns: dict[str, Any] = {
            "policy": self.policy,
            "layer": np.arange(len(hits)),
            "hit_rate": _ratio(found, found + missed),
            "mlp_dram_bytes_per_token": hits,
            "mlp_flash_bytes_per_token": misses,
        }
        if self.plan.of_experts:
            columns["experts_per_token"] = found + missed
        return pd.DataFrame(columns)

    def experts(self) -> pd.DataFrame | None:
        """One row an expert of a layer: by how many tokens it is used. None for a model without experts."""
        import pandas as pd

        if self.plan.uses is None:
            return None
        layers = np.flatnonzero(self.plan.shape.is_mixture)
        layer, expert = np.meshgrid(layers, np.arange(self.plan.uses.shape[1]), indexing="ij")
        uses = self.plan.uses[layers].ravel()
        return pd.DataFrame({"policy": self.policy, "layer": layer.ravel(), "expert": expert.ravel(), "tokens": uses})

    def spans(self, token: int) -> pd.DataFrame:
        """One row a request of one token, in seconds from the token's start."""
        import pandas as pd

        start = self.timeline.start_s[token]
        rows = [
            (self.policy, s.token, s.resource, s.kind, int(self.plan.layer[s.step]), self.plan.step[s.step],
             s.request_s - start, s.start_s - start, s.end_s - start, s.bytes)
            for s in self.timeline.spans
            if s.token == token and s.step >= 0
        ]  # fmt: skip
        names = ("policy", "token", "resource", "kind", "layer", "step", "request_s", "start_s", "end_s", "bytes")
        return pd.DataFrame(rows, columns=pd.Index(names))

    def summary(self) -> dict[str, Any]:
        """The figures of the run as one JSON-ready object."""
        plan, latency = self.plan, self.timeline.latency_s
        hits, misses = self._mlp_bytes()
        elapsed, parts = self.timeline.elapsed_s, self.timeline.parts_s.sum(axis=0) / plan.tokens
        busy = self.timeline.busy_s.sum(axis=0)
        moved = (self._flash_bytes().sum(), self._dram_traffic().sum())
        reads, missed = self._flash_reads().sum(), plan.flash_misses.sum()
        peaks = (self.device.flash.peak_bandwidth, self.device.dram.bandwidth)
        energy = self._energy_j()
        matrices = np.array([len(self._matrices(name)) for name in np.array(plan.step)[plan.is_mlp]])
        per_matrix = _ratio(hits, hits + misses).mean(axis=0)
        of_experts = {
            "scope": plan.setting.scope,
            "hit_rate_with_prompt": self.hit_rate_with_prompt,
            "working_set_bytes": plan.working_set_bytes,
        }
        return {
            "policy": self.policy,
            "model": plan.shape.name,
            "device": self.device.name,
            "start": plan.setting.start,
            "layout": plan.setting.layout,
            "eviction": plan.setting.eviction,
            **({} if plan.setting.split == "even" else {"split": plan.setting.split}),
            "timing": self.timeline.timing,
            **({"on_clock": self.on_clock} if self.on_clock else {}),
            "dram_bytes": plan.setting.dram_bytes,
            "tokens": plan.tokens,
            "warm_up_tokens": plan.warm_up,
            "sequences": len(plan.sequence_starts),
            **self._on_clock(),
            "tokens_per_s": self.tokens_per_s,
            "ttft_s": self.timeline.ttft_s,
            "latency_s": {
                "mean": float(latency.sum() / plan.tokens),
                **{f"p{q}": float(np.percentile(latency, q)) for q in (50, 95, 99)},
            },
            "parts_s": dict(zip(self.timeline.breakdown, parts.tolist(), strict=True)),
            "hit_rate": self.hit_rate,
            "hit_rate_mean_of_matrices": float(np.average(per_matrix, weights=matrices)),
            "mlp_fraction_read": float((hits.sum() + misses.sum()) / plan.tokens / plan.shape.mlp_bytes),
            "flash_bytes_per_token": float(moved[0] / plan.tokens),
            "flash_reads_per_token": float(reads / plan.tokens),
            "mean_read_bytes": _ratio(moved[0], reads, 0.0),
            "read_amplification": _ratio(plan.flash_read_bytes.sum(), missed),
            "dram_bytes_per_token": float(moved[1] / plan.tokens),
            "utilisation": dict(zip(self.timeline.resources, (busy / elapsed).tolist(), strict=True)),
            "busy_s": dict(zip(self.timeline.resources, busy.tolist(), strict=True)),
            "waited_s": dict(zip(self.timeline.resources, self.timeline.waited_s.sum(axis=0).tolist(), strict=True)),
            "bandwidth_bytes_per_s": {  # while busy
                name: _ratio(moved[index], busy[index], 0.0) for index, name in enumerate(RESOURCES[:2])
            },
            "peak_bandwidth_bytes_per_s": dict(zip(RESOURCES, peaks, strict=False)),
            "peak_dram_bytes": plan.peak_dram_bytes,
            "page_fault_share": page_fault_share(plan.setting.dram_bytes, self.device),
            "dram_budget": self._budget(),
            "energy_j_per_token": None if energy is None else float(energy.sum() / plan.tokens),
            "perplexity": self.perplexity,
            "perplexity_standard_error": self.standard_error,
            **(of_experts if plan.of_experts else {}),
        }

    def _on_clock(self) -> dict[str, Any]:
        """What depends on the clock: streams, drafts and guesses, where there are any."""
        found: dict[str, Any] = {}
        plan, latency, streams = self.plan, self.timeline.latency_s, self.timeline.streams
        if streams:
            accepted = np.ones(plan.rows, dtype=int) if plan.accepted is None else plan.accepted
            mine = [(int(accepted[list(rows)].sum()), float(latency[list(rows)].sum())) for rows in streams]
            found["streams"] = [
                {"tokens": count, "tokens_per_s": count / seconds, "mean_latency_s": seconds / count}
                for count, seconds in mine
            ]
        if plan.tier_bytes is not None:
            names = [tier.name for tier in self.device.tiers]
            moved = self._tiers.sum(axis=0) / plan.tokens
            found["tier_bytes_per_token"] = dict(zip(names, moved.tolist(), strict=True))
        if plan.accepted is not None:
            found["tokens_per_verification"] = plan.tokens / plan.rows
        if plan.guessed is not None:
            found["guesses_per_token"] = {
                name: float(getattr(plan.guessed, name).sum() / plan.tokens) for name in FATES
            }
            missed = self.plan.flash_misses / np.maximum(self.plan.unit_bytes, 1.0)  # of units, by demand
            used = (plan.guessed.useful + plan.guessed.late).sum()
            found["guess_recall"] = float(_ratio(used, used + missed.sum(), 0.0))
            found["guess_precision"] = float(_ratio(used, used + plan.guessed.wasted.sum(), 0.0))
            found["guessed_flash_bytes_per_token"] = float(plan.guessed.bytes.sum() / plan.tokens)
        return found

    def _budget(self) -> dict[str, Any]:
        """How the DRAM was divided, by the names of `Budget`."""
        fields = {name: value for name, value in vars(self.plan.budget).items() if name != "capacities"}
        names = [group.name for group in self.plan.groups]
        return fields | {"capacity_columns": dict(zip(names, self.plan.budget.capacities, strict=True))}

    def _matrices(self, step: str) -> tuple[str, ...]:
        """The matrices that a step reads."""
        grouped = {group.name: group.matrices for group in self.plan.groups}
        return grouped.get(step) or whole_matrices(self.plan.groups)


def shown_token(rows: int) -> int:
    """The token in the middle of a run of so many, whose spans are kept and drawn."""
    return rows // 2


def _ratio(part: Any, whole: Any, empty: float = 1.0) -> Any:
    """part / whole, and `empty` where there is no whole. A mask that wants nothing misses nothing."""
    ratio = np.divide(part, whole, out=np.full(np.shape(whole), empty), where=np.asarray(whole) > 0)
    return float(ratio) if ratio.ndim == 0 else ratio
