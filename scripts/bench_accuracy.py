"""What ROUGE costs beside the reference's way, whether every score is the same, and what scoring a whole log holds.

    python scripts/bench_accuracy.py                   times faster than rouge-score, on one core and on all
    python scripts/bench_accuracy.py --check 20000     every single score against rouge-score's, bit for bit
    python scripts/bench_accuracy.py --full            memory and seconds of harness.accuracy on 24,576 answers

Texts have about 300 words in 15 sentences: words of Python's own documentation as often as they stand there, and, as in
any large corpus, words seen hardly ever before. A prediction is a noisy copy of its reference, or a text of its own.
Where NLTK's punkt data is not installed, a model trained on Python's documentation takes its place on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

from harness import rouge

ALL = (*rouge.METRICS, "rougeLsum")
Pair = tuple[str, str]

# ---------------------------------------------------------------------------------------------------------------
# Texts

RARE = 0.015
SYLLABLES = re.findall("[a-z]+", "ba con del fer gran hy in ju kel lor mi nov or pre qua ri str tan un ver yo chi phos")
SUFFIXES = re.findall("[a-z]+", "ation ing ed ness ies ly able ational izer fulness ement y s es ous ive al ism er")

# What a tokenizer can get wrong: lower() makes ASCII of some, several characters of others.
ODD = "İKſßẞΣςéﬁñ数字７٣²_—…’“\t\n\r\x0b\x1c\x85\u2028\u00a0\ud800😀ŉǰ0123456789.?!,;:'\"()[]-"


@cache
def vocabulary() -> tuple[list[str], list[int]]:
    """Words and their cumulated frequencies."""
    from pydoc_data.topics import topics

    counted = Counter(re.findall(r"[A-Za-z][a-z']+", " ".join(topics.values())))
    return list(counted), list(accumulate(counted.values()))


def words(r: random.Random, count: int) -> list[str]:
    known, frequencies = vocabulary()
    drawn = r.choices(known, cum_weights=frequencies, k=count)
    return [rare(r) if r.random() < RARE else word for word in drawn]


def rare(r: random.Random) -> str:
    """One of some 350,000 words."""
    return "".join([*r.choices(SYLLABLES, k=3), r.choice(SUFFIXES)])


def noisy(r: random.Random, text: Sequence[str]) -> list[str]:
    """A tenth each of the words left out, replaced and preceded by another."""
    kept = []
    for word in text:
        match r.randrange(10):
            case 0:
                continue
            case 1:
                kept += words(r, 1)
            case 2:
                kept += [*words(r, 1), word]
            case _:
                kept.append(word)
    return kept


def sentences(r: random.Random, text: Sequence[str], mean: int = 20) -> str:
    found, start = [], 0
    while start < len(text):
        end = start + max(1, int(r.gauss(mean, mean / 3)))
        first, *rest = text[start:end]
        found.append(" ".join([first.capitalize(), *rest]) + r.choice("...?!"))
        start = end
    return " ".join(found)


def pair(r: random.Random, count: int) -> Pair:
    """(prediction, reference) of about `count` words."""
    reference = words(r, count)
    prediction = noisy(r, reference) if r.random() < 0.5 else words(r, count)
    return sentences(r, prediction), sentences(r, reference)


def tricky(r: random.Random) -> Pair:
    """Pairs that are short or empty, of very few different words, of odd characters, or, rarely, very long."""
    kind = r.random()
    if kind < 0.3:
        return pair(r, int(10 ** r.uniform(0, 2.5)))
    if kind < 0.301:
        return pair(r, r.randrange(1000, 3000))
    if kind < 0.7:
        few = [rare(r) for _ in range(r.randrange(1, 8))]
        return few_words(r, few), few_words(r, few)
    if kind < 0.9:
        reference = odd_text(r)
        return odd_text(r) if r.random() < 0.5 else reference[r.randrange(len(reference) + 1) :], reference
    single = ["", " ", ".", "_", "\n\n", *words(r, 3), rare(r), "is", "a. b.", "7"]
    return r.choice(single), r.choice(single)


def few_words(r: random.Random, few: Sequence[str]) -> str:
    return sentences(r, r.choices(few, k=r.randrange(80)), mean=r.randrange(1, 20))


def odd_text(r: random.Random) -> str:
    pieces = [r.choice(ODD) if r.random() < 0.4 else word for word in words(r, r.randrange(60))]
    return "".join(piece + r.choice(("", " ", " ", ". ")) for piece in pieces)


# ---------------------------------------------------------------------------------------------------------------
# The reference's way


def provide_sentences(folder: Path) -> str:
    """Train what NLTK lacks here, and say which model splits sentences."""
    if not rouge.sentences_missing():
        return "NLTK's own"
    from pydoc_data.topics import topics

    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    os.environ["NLTK_DATA"] = str(folder)
    nltk.data.path.insert(0, str(folder))
    model = folder / "tokenizers" / "punkt_tab" / "english"
    model.parent.mkdir(parents=True)
    save_punkt_params(PunktTrainer("\n".join(topics.values())).get_params(), dir=str(model))
    return "trained on Python's documentation"


@cache
def scorer(metrics: tuple[str, ...]):  # type: ignore[no-untyped-def]
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(metrics), use_stemmer=True)


def reference_way(pairs: Sequence[Pair], metrics: tuple[str, ...]) -> list[list[float]]:
    """As evaluate-accuracy.py of mlcommons/inference: strip, split if a metric looks at sentences, score."""
    from nltk import sent_tokenize

    rows = []
    for prediction, reference in pairs:
        prediction, reference = prediction.strip(), reference.strip()
        if "rougeLsum" in metrics:
            prediction, reference = "\n".join(sent_tokenize(prediction)), "\n".join(sent_tokenize(reference))
        scores = scorer(metrics).score(reference, prediction)
        rows.append([scores[name].fmeasure for name in metrics])
    return rows


def our_way(pairs: Sequence[Pair], metrics: tuple[str, ...]) -> list[list[float]]:
    predictions, references = zip(*pairs, strict=True)
    rows: list[list[float]] = rouge.rouge_table(predictions, references, metrics).tolist()
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Seconds


def one_core(length: int, rounds: int) -> None:
    """Both sides in turns on one core, in seconds of CPU, each round on texts that are new to both."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    r = random.Random(0)
    for metrics in (rouge.METRICS, ALL):
        our_way([pair(r, length)], metrics)
        reference_way([pair(r, length)], metrics)
        ours, theirs = [], []
        for _ in range(rounds):
            few, many = ([pair(r, length) for _ in range(count)] for count in (20, 400))
            began = time.process_time()
            expected = reference_way(few, metrics)
            theirs.append((time.process_time() - began) / len(few))
            began = time.process_time()
            our_way(many, metrics)
            ours.append((time.process_time() - began) / len(many))
            assert our_way(few, metrics) == expected
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        print(
            f"one core, {'+'.join(metrics):<30} {1e3 * statistics.median(theirs):6.1f} ms a pair → "
            f"{1e3 * statistics.median(ours):.3f} ms: {statistics.median(ratios):.0f} times faster "
            f"({min(ratios):.0f} to {max(ratios):.0f} in {rounds} rounds)"
        )


def start_up() -> None:
    """What one_core leaves out: imports, and the first use of punkt."""
    call = f"from harness import rouge; rouge.rouge_table(['A b. C'], ['a'], {ALL})"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", call], check=True)
    print(f"one pair in a new process: {time.perf_counter() - began:.2f} s")


def all_cores(length: int, count: int, rounds: int) -> None:
    """Both in turns: ours with the start of its processes, the reference's with its pool already running."""
    cores = len(os.sched_getaffinity(0))
    r = random.Random(1)
    pairs = [pair(r, length) for _ in range(count)]
    shares = [pairs[start : start + 10] for start in range(0, 100 * cores, 10)]
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        for metrics in (rouge.METRICS, ALL):
            list(pool.map(reference_seconds, shares, [metrics] * len(shares)))
            clocks, loads = [], []
            for _ in range(rounds):
                began = time.perf_counter()
                their_load = sum(pool.map(reference_seconds, shares, [metrics] * len(shares))) / (100 * cores)
                their_clock = (time.perf_counter() - began) / (100 * cores)
                began, busy = time.perf_counter(), seconds_of_cpu()
                our_way(pairs, metrics)
                our_clock, our_load = (time.perf_counter() - began) / count, (seconds_of_cpu() - busy) / count
                clocks.append(their_clock / our_clock)
                loads.append(their_load / our_load)
            print(
                f"{cores} cores, {'+'.join(metrics):<30}{1e3 * their_clock:6.1f} ms a pair → {1e3 * our_clock:.3f} ms: "
                f"{statistics.median(clocks):.0f} times faster on the clock ({min(clocks):.0f} to {max(clocks):.0f}), "
                f"{statistics.median(loads):.0f} times in CPU; {count:,} pairs, start of the pool included"
            )


def reference_seconds(pairs: Sequence[Pair], metrics: tuple[str, ...]) -> float:
    """Of CPU."""
    began = time.process_time()
    reference_way(pairs, metrics)
    return time.process_time() - began


def seconds_of_cpu() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# ---------------------------------------------------------------------------------------------------------------
# Equality


def differences(seed: int, count: int) -> list[str]:
    """Tricky pairs on which any of the scores differs, and how."""
    r = random.Random(seed)
    pairs = [tricky(r) for _ in range(count)]
    found = []
    for one, ours, theirs in zip(pairs, our_way(pairs, ALL), reference_way(pairs, ALL), strict=True):
        if ours != theirs:
            found.append(f"{one!r}: {ours} for {theirs}")
    if our_way(pairs, rouge.METRICS) != reference_way(pairs, rouge.METRICS):
        found.append(f"seed {seed}: other scores where no sentences are split")
    return found


def check(count: int, seed: int) -> None:
    began, cores, share = time.perf_counter(), len(os.sched_getaffinity(0)), 250
    seeds = range(seed, seed + -(-count // share))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        found = [line for part in pool.map(differences, seeds, [share] * len(seeds)) for line in part]
    print(*found[:10], sep="\n", end="\n" if found else "")
    seconds = time.perf_counter() - began
    print(f"{len(seeds) * share:,} pairs, {len(ALL)} metrics: {len(found)} differ ({seconds:.0f} s)")
    if found:
        sys.exit(1)


# ---------------------------------------------------------------------------------------------------------------
# Memory


def make_log(folder: Path, samples: int, length: int) -> float:
    """A processed dataset and an accuracy log of answers with about `length` tokens; returns their mean."""
    import numpy as np
    import pandas as pd

    from harness.dataset import Tokenizer
    from harness.demo import MODEL

    r, tokenizer, total = random.Random(2), Tokenizer(MODEL), 0
    prompts = np.random.default_rng(2).integers(3, 1000, (samples, 512)).tolist()
    pairs = [pair(r, int(length / 1.35)) for _ in range(samples)]
    pd.DataFrame({"tok_input": prompts, "output": [reference for _, reference in pairs]}).to_parquet(
        folder / "set.parquet"
    )
    with (folder / "mlperf_log_accuracy.json").open("w") as log:
        for index, (prediction, _) in enumerate(pairs):
            ids = np.array(tokenizer.encode([prediction])[0][: int(length * 1.02)], np.int32)
            total += len(ids)
            line = {"seq_id": index, "qsl_idx": index, "data": ids.tobytes().hex().upper(), "token_count": len(ids)}
            log.write(("[\n" if index == 0 else ",\n") + json.dumps(line))
        log.write("\n]\n")
    return total / samples


def evaluate(folder: Path, metrics: tuple[str, ...], workers: int) -> None:
    """A child process: score the log as `harness.accuracy` does, of a benchmark with these metrics."""
    from harness import accuracy, benchmarks
    from harness.dataset import Tokenizer, load
    from harness.demo import MODEL

    rouge.sched_getaffinity = lambda _: set(range(workers))  # type: ignore[attr-defined]
    tokenizer = Tokenizer(MODEL)
    samples = load(str(folder / "set.parquet"), tokenizer)
    log = accuracy.read_log(folder / "mlperf_log_accuracy.json")
    row = benchmarks.find("llama2-70b-99.9" if metrics == rouge.METRICS else "llama3.1-8b")
    print(accuracy.evaluate(log, samples, tokenizer, row, accuracy.Scope("a measurement")).scores)


def processes(root: int) -> Iterator[int]:
    """A process and all below it, but for those that still run on their parent's memory, as between fork and exec."""
    yield root
    command = Path(f"/proc/{root}/cmdline").read_bytes()
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            if Path(f"/proc/{child}/cmdline").read_bytes() != command:
                yield from processes(child)


def kilobytes(file: str, key: str) -> int:
    line = next((line for line in Path(file).read_text().splitlines() if line.startswith(key)), None)
    return int(line.split()[1]) if line else 0


def full(samples: int, length: int, metrics: tuple[str, ...], workers: int) -> None:
    """Peak of all processes together: a page that several hold counts once (PSS), looked at every 20 ms."""
    with tempfile.TemporaryDirectory() as name:
        tokens = make_log(Path(name), samples, length)
        command = [sys.executable, __file__, "--evaluate", name, "--metrics", *metrics, "--workers", str(workers)]
        began, largest = time.perf_counter(), [0]
        with subprocess.Popen(command) as child:
            while child.poll() is None:
                try:
                    held = [kilobytes(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in processes(child.pid)]
                except (FileNotFoundError, ProcessLookupError):
                    continue  # One ended while it was looked at.
                largest = max(largest, held, key=sum)
                time.sleep(0.02)
        if child.returncode:
            sys.exit(child.returncode)
        print(
            f"{samples:,} answers of {tokens:.0f} tokens, {'+'.join(metrics)}, {workers} workers: at most "
            f"{sum(largest) / 1024:.0f} MB ({' + '.join(f'{one / 1024:.0f}' for one in largest)}); "
            f"{time.perf_counter() - began:.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=300, help="words of a text (with --full: tokens)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=24_576, help="on all cores and with --full")
    parser.add_argument("--check", type=int, metavar="N", help="only hold N pairs against rouge-score")
    parser.add_argument("--seed", type=int, default=0, help="of --check")
    parser.add_argument("--full", action="store_true", help="only the memory of scoring a log")
    parser.add_argument("--metrics", nargs="+", default=rouge.METRICS, choices=ALL, help="of --full")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of --full, as if cores")
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    metrics = tuple(options.metrics)
    if options.evaluate:
        return evaluate(options.evaluate, metrics, options.workers)
    with tempfile.TemporaryDirectory() as folder:
        print(f"sentences are split by {provide_sentences(Path(folder))} punkt model")
        if options.check:
            return check(options.check, options.seed)
        if options.full:
            return full(options.pairs, options.length, metrics, options.workers)
        all_cores(options.length, options.pairs, 3)
        start_up()
        one_core(options.length, options.rounds)


if __name__ == "__main__":
    main()
