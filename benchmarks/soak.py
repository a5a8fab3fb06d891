"""A long soak: many kills over many devices under load, every answer checked, and what is in use recorded.

Prints a line a minute and a table at the end, and writes the result as JSON, with a picture beside it where
matplotlib is. It ends with an error at the first answer or output that is lost, doubled or wrong, and where
descriptors, mappings or memory have grown.

Usage: python -m benchmarks.soak --kills 100000 --devices 20 --seed 1 --output docs/soak.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from pathlib import Path

from benchmarks.plots import draw_soak
from tests.chaos import census
from tests.soaking import Sample, Soak, soak_board

SAMPLES = 100
GROWTH_KIB = 8192  # over the whole run, after its first fifth: less than 0.1 KiB a kill
LINE_EVERY_S = 60.0


def main() -> None:
    """Runs the soak that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--output", type=Path, help="where the result goes as JSON")
    asked = parser.parse_args()
    print(f"seed={asked.seed}", flush=True)
    began = time.monotonic()
    with census(), soak_board(asked.devices) as sup:
        soak = Soak(sup, asked.seed)
        soak.run(asked.kills, samples=SAMPLES, on_sample=_Progress(asked.kills))
        soak.check_flat(rss_kib=GROWTH_KIB)
    took_s = time.monotonic() - began
    _print_table(soak, took_s)
    if asked.output is not None:
        result = _result(soak, asked, took_s)
        asked.output.write_text(json.dumps(result, indent=1) + "\n")
        try:
            draw_soak(result, asked.output.with_suffix(".png"))
        except ImportError:
            print("no matplotlib: no picture")


class _Progress:
    """Prints a sample now and then."""

    def __init__(self, kills: int) -> None:
        self._kills = kills
        self._due = 0.0

    def __call__(self, sample: Sample) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_EVERY_S
            what = (
                f"{sample.kills} of {self._kills} kills, {sample.requests} requests, RSS {sample.rss_kib} KiB"
            )
            print(f"{sample.seconds:8.0f} s  {what}, {sample.descriptors} descriptors", flush=True)


def _print_table(soak: Soak, took_s: float) -> None:
    first, settled, last = soak.samples[0], soak.samples[len(soak.samples) // 5], soak.samples[-1]
    print(f"\n{soak.kills} kills, {soak.requests} requests in {took_s:.0f} s: nothing lost, nothing twice\n")
    print(f"{'':16}{'start':>12}{'one fifth':>12}{'end':>12}")
    for name in ("rss_kib", "pss_kib", "zygote_rss_kib", "descriptors", "journals", "processes"):
        values = "".join(f"{getattr(sample, name):>12}" for sample in (first, settled, last))
        print(f"{name:16}{values}")


def _result(soak: Soak, asked: argparse.Namespace, took_s: float) -> dict[str, object]:
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "seed": asked.seed,
        "devices": asked.devices,
        "kills": soak.kills,
        "requests": soak.requests,
        "seconds": round(took_s, 1),
        "start": soak.samples[0].as_dict(),
        "end": soak.samples[-1].as_dict(),
        "samples": [sample.as_dict() for sample in soak.samples],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
