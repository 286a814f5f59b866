"""The commands that read a real disk: a device of this machine, and how right a prediction is on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipsim.basics.errors import InputError
from dipsim.cli.terminal import console, must_end, plain_table, progress_bar

if TYPE_CHECKING:
    from dipsim.timing.device import Device

commands = typer.Typer()

File = Annotated[Path, typer.Option(help="A path on the disk; a file that is there is only read.")]
Bytes = Annotated[str, typer.Option(help='Of the file, if there is none, e.g. "4 GB"; nothing is left of it.')]


@commands.command()
def calibrate(
    file: File,
    out: Annotated[Path, typer.Option(help="The device to write, ending in .yaml.")] = Path("this-machine.yaml"),
    size: Bytes = "4 GB",
) -> None:
    """Measure this machine's Flash and DRAM, and write a device file. Takes minutes; leave the machine alone."""
    import numpy as np
    import yaml

    from dipsim.basics.fields import parse
    from dipsim.basics.files import write
    from dipsim.machine import calibrate as method
    from dipsim.machine.disk import open_disk
    from dipsim.timing.device import Device

    must_end(out, ".yaml", "a device")
    method.check_size(_bytes(size))
    with progress_bar() as progress, open_disk(file, _bytes(size), 0, progress) as disk:
        before = method.conditions(disk)
        curves = method.measure(disk, progress=progress)
        progress("timing DRAM", 0, 1)
        data = method.device(out.stem, curves, disk, method.dram_bandwidth(), before)
    device = parse(Device, data, out)
    write(out, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    print(f"{out}: {_rates(device)}; spread of passes {device.conditions['spread of passes']}")
    if np.median(curves.spread) > method.UNSTEADY:
        print("the passes lie far apart: something else uses the disk or the processor; calibrate again without it")


@commands.command()
def replay(
    result: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    file: File,
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy of the run, as its table says; by default all.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to read, the last of the run.")] = 16,
    size: Bytes = "4 GB",
    note: Annotated[Path | None, typer.Option(help="Device file to write the error into.")] = None,
) -> None:
    """Read from a real file what a run would have read; compare its time with the prediction."""
    from dipsim.machine.disk import open_disk
    from dipsim.machine.replay import DRIFT, LEAST, check_note, planned, write_replay
    from dipsim.machine.replay import note as write_error
    from dipsim.machine.replay import replay as read_again

    with progress_bar() as progress:
        device, reads = planned(result, policy or (), tokens, progress)
        if note is not None:
            check_note(note, device)
        least = max(LEAST, *(each.size for each in reads.values()))
        with open_disk(file, max(least, _bytes(size)), least, progress) as disk:
            found = {label: read_again(each, device, disk, progress) for label, each in reads.items()}
    write_replay(result, found)
    columns = ("policy", "predicted", "measured", "predicted / measured", "of tokens: 10 %, median, 90 %",
               "replay / replay", "disk before / after")  # fmt: skip
    rows = [
        (label, *(f"{1e3 * seconds.mean():.2f} ms" for seconds in (each.predicted, each.measured)), *each.verdict)
        for label, each in found.items()
    ]
    print(f"{tokens} tokens on {device.name}, read twice from {file}, Flash time a token:")
    console().print(plain_table(columns, rows))
    if not all(each.conclusive for each in found.values()):
        print(f"inconclusive: the disk changed more than {DRIFT} times meanwhile; repeat it while nothing else runs")
    print(f"{result}/replay.csv: every token")
    if note is not None:
        print(f"{note}: the largest error, {write_error(note, result, found):.1%}")


def _bytes(size: str) -> int:
    from dipsim.basics.units import parse

    try:
        return int(parse(size, "size"))
    except ValueError as error:
        raise InputError(f"--size: {error}") from None


def _rates(device: Device) -> str:
    from dipsim.basics.units import show

    curves = device.flash.read_curves or {}
    few, many = curves[min(curves)], curves[device.flash.lanes or max(curves)]
    return (
        f"Flash {show(few[0][1], 'bandwidth')} for reads of {few[0][0] / 1024:g} KiB one at a time, "
        f"{show(many[0][1], 'bandwidth')} with {device.flash.lanes} under way, {show(many[-1][1], 'bandwidth')} for "
        f"the longest; DRAM {show(device.dram.bandwidth, 'bandwidth')}"
    )
