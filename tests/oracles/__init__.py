"""Independent slow models that the tests and `benchmarks/validate.py` compare dipsim with."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import simpy
from scipy.optimize import linprog

from dipsim.basics.fields import parse
from dipsim.memory.eviction import RULES
from dipsim.memory.eviction.rule import next_use
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.flash import Flash
from dipsim.storage.runs import runs
from dipsim.timing.device import Device

EVICTIONS = ("none", "lru", "lfu", "belady", "optimal")  # those with a slow twin
CLAIRVOYANT = tuple(name for name in EVICTIONS if RULES[name].needs_future)
DATA = Path(__file__).parent.parent / "data"
FIGURES = json.loads((DATA / "cache_hits.json").read_text())
MEASURED = json.loads((DATA / "flash_measured.json").read_text())


def lognormal_masks(seed, N, T, density, sigma, kjit):  # noqa: N803, the figures' own names
    rng = np.random.default_rng(seed)
    weight = np.exp(sigma * rng.standard_normal(N))
    masks = np.zeros((T, N), dtype=bool)
    for mask in masks:
        k = round(density * N)
        if kjit:
            k = int(np.clip(k + rng.integers(-kjit, kjit + 1), 1, N))
        mask[np.argsort(-np.log1p(-rng.random(N)) / weight, kind="stable")[:k]] = True
    return masks


def explicit_masks(case):
    """The masks of a case that lists the columns of each token."""
    masks = np.zeros((case["T"], case["N"]), dtype=bool)
    for token, columns in enumerate(case["masks"]):
        masks[token, columns] = True
    return masks


def zipf_stream(tokens, columns, seed):
    """One column a token, [tokens], some much more popular than others."""
    rng = np.random.default_rng(seed)
    weight = rng.permutation(1 / np.arange(1, columns + 1) ** 0.8)
    return rng.choice(columns, tokens, p=weight / weight.sum())


def libcachesim_hits(name, columns, capacity):
    """Whether each request of a stream hits in libcachesim's cache `name` (LRU, Belady)."""
    import libcachesim

    upcoming = next_use(columns[:, None] == np.arange(columns.max() + 1))[np.arange(len(columns)), columns]
    cache = getattr(libcachesim, name)(cache_size=capacity)
    hits = []
    for clock, (column, upcoming_use) in enumerate(zip(columns.tolist(), upcoming.tolist(), strict=True)):
        request = libcachesim.Request(obj_size=1, obj_id=column + 1, clock_time=clock)
        request.next_access_vtime = upcoming_use if upcoming_use < len(columns) else np.iinfo(np.int64).max
        hits.append(cache.get(request))
    return hits


def most_hits(masks, capacity):
    """Most hits of any cache: the most intervals between uses bridged, at most `capacity` at a time (an exact LP)."""
    intervals = [uses for column in masks.T for uses in pairwise(np.flatnonzero(column).tolist())]
    if not intervals:
        return 0.0
    bridged = np.array([[a <= gap < b for a, b in intervals] for gap in range(len(masks))], dtype=float)
    return -linprog(-np.ones(len(intervals)), A_ub=bridged, b_ub=np.full(len(masks), capacity), bounds=(0, 1)).fun


def device(**fields):
    data = {"flash": {"read_bandwidth": "1 GB/s"}, "dram": {"capacity": "8 GB", "bandwidth": "60 GB/s"}, "name": "x"}
    return parse(Device, data, "device").replace(**fields)


def reference_seconds(fetch_plan, dev, concurrent=False):
    """reference section 5, straight from bytes: static from DRAM, then miss / flash + hit / dram (or the larger)."""
    mlp = fetch_plan.is_mlp
    static = fetch_plan.dram_bytes[:, ~mlp].sum(axis=1) / dev.dram.bandwidth
    miss = fetch_plan.flash_bytes[:, mlp] / dev.flash.read_bandwidth
    hit = fetch_plan.dram_bytes[:, mlp] / dev.dram.bandwidth
    return static + (np.maximum(miss, hit) if concurrent else miss + hit).sum(axis=1)


def random_plan(shape, seed, tokens, name, empty_share):
    """A plan with random bytes at every position, some of them zero."""
    rng = np.random.default_rng(seed)
    builder = PlanBuilder(shape, Setting(load_policy(name), shape.static_bytes(tokens)), tokens, (0,))
    arrays = builder.arrays
    for key in ("dram_static", "flash_static", "dram_hits", "flash_misses"):
        arrays[key][:] = rng.exponential(1e6, arrays[key].shape) * (rng.random(arrays[key].shape) > empty_share)
    arrays["static_reads"][:] = 1
    shape = arrays["flops"].shape
    arrays["flops"][:] = rng.exponential(1e6, shape) * (rng.random(shape) > 0.3)
    arrays["reads"][..., 0] = rng.integers(1, 50, shape) * (arrays["flash_misses"] > 0)
    arrays["read_bytes"][..., 0] = arrays["flash_misses"]
    return builder.finish()


def bounds(service):
    """Seconds per token, [T] each: the busiest resource on its own, and everything one after the other."""
    totals = service.by_resource().sum(axis=-1)
    return totals.max(axis=0), totals.sum(axis=0)


def steady_read_time(flash, size):
    """Seconds that one more read of `size` bytes adds to a saturated queue, over whole rounds of it."""
    short, long = 20 * flash.queue_depth, 40 * flash.queue_depth
    return (flash.batch_time([long], [long * size]) - flash.batch_time([short], [short * size])) / (long - short)


def events(sizes, command, bandwidth, latency, depth, overlapping):
    """Seconds until the last of these reads ends, one SimPy process a read.

    A read takes one of `depth` queue slots; then, overlapping: the command stage, its latency, the bus; otherwise its
    latency, then one server that handles command and transfer together.
    """
    env = simpy.Environment()
    slots, stage, bus = (simpy.Resource(env, capacity) for capacity in (depth, 1, 1))

    def hold(server, seconds):
        with server.request() as turn:
            yield turn
            yield env.timeout(seconds)

    def read(size):
        with slots.request() as slot:
            yield slot
            if overlapping:
                yield from hold(stage, command)
                yield env.timeout(latency)
                yield from hold(bus, size / bandwidth)
            else:
                yield env.timeout(latency)
                yield from hold(bus, command + size / bandwidth)

    for size in sizes:
        env.process(read(size))
    env.run()
    return env.now


def flash(command, bandwidth, latency, depth, overlap):
    fields = {"read_bandwidth": f"{bandwidth} B/s", "command_time": f"{command} s", "latency": f"{latency} s"}
    return parse(Flash, fields | {"queue_depth": depth, "overlap": overlap}, "flash")


def parse_flash(curve):
    """The Flash of a measured curve."""
    return parse(Flash, curve["flash"], curve["name"])


def neuralink_throughput(inactive):
    """MiB/s of the shipped device on random masks, through the same runs and batches as any fetch."""
    rng = np.random.default_rng(0)
    active = rng.random((4, MEASURED["neuralink"]["bundles"])) >= inactive
    count, bundles = runs(active)
    seconds = Device.load(MEASURED["neuralink"]["device"]).flash.batch_time(
        count, bundles * MEASURED["neuralink"]["bundle_bytes"]
    )
    return float((active.sum(axis=1) * MEASURED["neuralink"]["bundle_bytes"] / seconds).mean()) / 2**20
