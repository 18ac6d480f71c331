"""What a report costs: building it from 24,576 samples of an accuracy run, and opening it in headless Chromium.

    python scripts/bench_report.py                      makes the run once in ./bench-report (echo, two minutes)
    python scripts/bench_report.py --run DIR            of a run that is there
    python scripts/bench_report.py --live               also with charts drawn by the page instead of beforehand

Building is a fresh process each time, by the clock and in CPU seconds of all its processes. Opening is from the
navigation to the load event, and until the first rows of the sample table are there. Figures are the least and the
median of the rounds, since other work on a machine only adds. `--live` puts the same specifications and vl_convert's
bundle of Vega into a page and waits for the last chart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from harness.demo import MODEL
from harness.page.gauges import pictures
from harness.page.source import Run, read

SAMPLES, TOKENS = 24_576, 294

ECHO = ["--backend", "echo", "--replicas", "4", "--engine-arg", "slots=64", "--engine-arg", "ttft=0.01"]
ECHO += ["--engine-arg", "tpot=0.0005", "--engine-arg", f"tokens={TOKENS}", "--engine-arg", "jitter=0.3"]

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


def make_run(folder: Path) -> Path:
    """An accuracy run of llama2-70b's size on echo; prompts as long as OpenOrca's, references of made-up words."""
    run = folder / "run"
    if (run / "result.json").exists():
        return run
    folder.mkdir(exist_ok=True)
    r = random.Random(1)
    words = ["".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=r.randint(2, 9))) for _ in range(3000)]
    ids = np.random.default_rng(1).integers(3, 650, (SAMPLES, TOKENS)).tolist()
    references = [" ".join(r.choices(words, k=r.randint(20, 250))) for _ in range(SAMPLES)]
    dataset = folder / "made_up.parquet"
    pd.DataFrame({"tok_input": ids, "output": references}).to_parquet(dataset)
    words = ["run", "--scenario", "Server", "--mode", "accuracy", "--benchmark", "llama2-70b-99.9", "--quiet"]
    words += ["--target-qps", "400", "--model", str(MODEL), "--dataset", str(dataset), "--output-dir", str(run), *ECHO]
    subprocess.run([sys.executable, "-m", "harness", *words], stdout=subprocess.DEVNULL, check=False)
    if not (run / "result.json").exists():
        sys.exit("the run on echo did not come to its end")
    return run


def told(name: str, seconds: Sequence[float], more: str = "") -> None:
    print(f"  {name:<44}{min(seconds):7.2f} s at least {statistics.median(seconds):7.2f} s in the median   {more}")


def build(run: Path, page: Path, rounds: int, *options: str) -> None:
    """Wall and CPU seconds of `report`."""
    walls, cpus = [], []
    for _ in range(rounds):
        before, began = children(), perf_counter()
        words = ["report", str(run), "--output", str(page), *options]
        subprocess.run([sys.executable, "-m", "harness", *words], stdout=subprocess.DEVNULL, check=True)
        walls.append(perf_counter() - began)
        cpus.append(children() - before)
    told(
        f"build {' '.join(options) or 'with texts'}",
        walls,
        f"{min(cpus):.2f} s of CPU, {page.stat().st_size / 1e6:.1f} MB",
    )


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def open_pages(pages: dict[str, tuple[Path, Callable[[Any], object]]], rounds: int) -> None:
    """Seconds to the load event and until what each page is waited for is there, a fresh browser context each time."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for name, (file, wait) in pages.items():
            loads, ready = [], []
            for _ in range(rounds):
                page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
                began = perf_counter()
                page.goto(file.as_uri())
                loads.append(perf_counter() - began)
                wait(page)
                ready.append(perf_counter() - began)
                page.context.close()
            told(f"open {name}: loaded", loads, f"{file.stat().st_size / 1e6:.1f} MB")
            told(f"open {name}: all there", ready)
        browser.close()


def make_live(run: Path, page: Path) -> int:
    """The same charts as a page that draws them itself; returns how many."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    found = read(run)
    assert isinstance(found, Run)
    specs = [chart.spec for chart in pictures(found)]
    text = json.dumps(specs).replace("<", "\\u003c")
    page.write_text(
        f"<!doctype html><meta charset=utf-8><body><script>{bundle}</script><script>"
        f"const specs = {text}; Promise.all(specs.map((spec) => {{ const place = document.body.appendChild("
        "document.createElement('div')); return vegaEmbed(place, spec, {actions: false, ast: true}); }))"
        ".then(() => document.body.append(Object.assign(document.createElement('p'), {id: 'done'})));</script>"
    )
    return len(specs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run's folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--live", action="store_true", help="also charts that the page draws")
    options = parser.parse_args()
    run = options.run or make_run(Path("bench-report"))
    print(f"{run}, {options.rounds} rounds, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        whole, light, live = (Path(name) / f"{page}.html" for page in ("whole", "light", "live"))
        build(run, light, options.rounds, "--no-texts")
        build(run, whole, options.rounds)

        def table(page: Any) -> None:
            page.wait_for_selector(".browser tr.row")

        pages: dict[str, tuple[Path, Callable[[Any], object]]] = {
            "without texts": (light, table),
            "with texts": (whole, table),
        }
        if options.live:
            began = perf_counter()
            count = make_live(run, live)
            print(f"  a page that draws {count} charts itself: {perf_counter() - began:.2f} s to make")
            pages["live charts alone"] = (live, lambda page: page.wait_for_selector("#done", state="attached"))
        open_pages(pages, options.rounds)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
