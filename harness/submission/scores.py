"""Does the accuracy run show that the model still answers well: the log, accuracy.txt, the truncated answers?

Sources: [checker] submission_checker/checks/accuracy_check.py and ACC_PATTERN, [truncate]
tools/submission/truncate_accuracy_log.py, [loadgen] loadgen/loadgen.cc, all of mlcommons/inference; the targets are
harness/benchmarks.py's.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.answers import GAP
from harness.benchmarks import Benchmark
from harness.results import ACCURACY
from harness.submission.claim import Claim
from harness.submission.contents import Unreadable, parse_json, read_answers, read_bytes, read_text, size_of
from harness.submission.form import AGAIN, says_audit
from harness.submission.logs import DetailLog
from harness.submission.performance import PASSED_OVER, check_identity
from harness.submission.problem import Problem, clean, error, graded, note, warning
from harness.submission.tree import KEPT, LONGEST, SCORES, truncated

CHECKER = "submission_checker, accuracy_check.py"
TRUNCATE = "truncate_accuracy_log.py"
SCORE_AGAIN = "score the untruncated log again with `python -m harness accuracy` or the reference's script"
SHORTEN = "run truncate_accuracy_log.py once on the whole log, and keep the original"


def check_accuracy_log(log: DetailLog, claim: Claim, network: bool) -> Iterator[Problem]:
    """A run in accuracy mode over the whole dataset, without an error."""
    yield from check_identity(log, claim, "AccuracyOnly", network)
    if says_audit(log):
        what = "LoadGen found an audit.config and ran with its settings"
        yield error(log.path, what, f"compliance/README.md; {PASSED_OVER}", "remove audit.config and run again")
    expected, key = claim.row.accuracy_samples, "effective_accuracy_sample_count"
    key = key if key in log.values else "qsl_reported_total_count"
    if log.number(key) != expected:
        what = f"the run covered {log.show(key)} samples, and the dataset has {expected}"
        yield error(log.path, what, f"{CHECKER} dataset_check", "run accuracy on the whole dataset")
    elif fault := _coverage(log, expected):
        yield error(log.path, fault, f"loadgen/loadgen.cc: accuracy mode loads each sample once; {PASSED_OVER}", AGAIN)


def _coverage(log: DetailLog, expected: int) -> str | None:
    loaded = [line.value for line in log.lines if line.key == "loaded_qsl_set"]
    if not all(isinstance(each, list) and all(isinstance(index, int) for index in each) for each in loaded):
        return "loaded_qsl_set is no list of samples"
    samples = [index for each in loaded for index in each]
    if len(samples) != expected or set(samples) != set(range(expected)):
        return (
            f"{len(samples)} samples were loaded, {len(set(samples))} different ones, and not each of {expected} once"
        )
    return None


# -- accuracy.txt -----------------------------------------------------------------------------------------------------

_NUMBER = r"([\d.]+)"


def pattern(metric: str) -> re.Pattern[str]:
    """How the checker finds a metric in a line: ROUGE may stand in quotes, the rest after one blank."""
    if metric.startswith("rouge"):
        return re.compile(rf".*'{metric}':\s+'?{_NUMBER}'?.*")
    return re.compile(rf".*'{metric}':\s{_NUMBER}.*")


def read_scores(text: str, metrics: Mapping[str, object]) -> dict[str, list[float]]:
    """Every value that the checker would find for each metric; nan for what it would crash on."""
    found: dict[str, list[float]] = {metric: [] for metric in metrics}
    for metric in metrics:
        for line in text.splitlines():
            if match := pattern(metric).match(line):
                found[metric].append(_float(match[1]))
    return found


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def check_scores(claim: Claim) -> Iterator[Problem]:
    """accuracy.txt can be read, meets the targets, and fits itself."""
    path = claim.place.accuracy / SCORES
    try:
        text = read_text(path)
    except Unreadable as fault:
        yield error(path, f"accuracy.txt {fault}", CHECKER, SCORE_AGAIN)
        return
    for metric, values in read_scores(text, claim.row.targets).items():
        yield from _check_metric(path, claim, metric, values, text)
    yield from _check_fit(path, claim, text)


def _check_metric(path: Path, claim: Claim, metric: str, values: list[float], text: str) -> Iterator[Problem]:
    target = claim.row.targets[metric]
    if not values:
        shown = re.search(rf"'{metric}':\s*([^\s,]{{1,60}})", text)
        what = f"{metric} is not there" if shown is None else f"{metric} stands there as {clean(shown[1])}"
        if shown and "np." in shown[1]:
            what += ", as numpy 2 prints its own numbers; the checker cannot read that"
        # The checker looks for upper limits and does not miss them.
        yield graded(claim.strict and target.low is not None, path, what, f"{CHECKER}, ACC_PATTERN", SCORE_AGAIN)
    elif len(set(values)) > 1:
        several = ", ".join(f"{value:g}" for value in values[:4])
        yield error(path, f"{metric} is said more than once: {several}", CHECKER, "leave the real score alone")
    elif values[0] != values[0]:
        yield error(path, f"{metric} is no number, on which the checker fails", CHECKER, SCORE_AGAIN)
    elif (fault := target.fault(values[0])) is not None:
        what, fix = f"{metric} {fault}", "find out why the answers are worse, or submit to the open division"
        yield graded(claim.strict, path, what, f"{CHECKER} accuracy_result_check", fix)


_SIDE = ("rouge1", "rouge2", "rougeL", "gen_num", "gen_tok_len", "tokens_per_sample")


def _check_fit(path: Path, claim: Claim, text: str) -> Iterator[Problem]:
    """The numbers of one scoring fit each other and the dataset, where the script prints them."""
    said = {name: values[0] for name, values in read_scores(text, dict.fromkeys(_SIDE)).items() if len(values) == 1}
    rule = f"language/*/evaluate-accuracy.py computes them from the same answers; {PASSED_OVER}"
    expected = claim.row.accuracy_samples
    if "gen_num" in said and said["gen_num"] != expected:
        what = f"{said['gen_num']:g} answers were scored, and the dataset has {expected}"
        yield graded(claim.strict, path, what, rule, SCORE_AGAIN)
    if said.get("rougeL", 0.0) > said.get("rouge1", 100.0) or said.get("rouge2", 0.0) > said.get("rouge1", 100.0):
        yield error(path, "rougeL or rouge2 is above rouge1, which cannot be", rule, SCORE_AGAIN)
    if said.get("gen_num") and {"gen_tok_len", "tokens_per_sample"} <= set(said):
        mean = said["gen_tok_len"] / said["gen_num"]
        if not abs(mean - said["tokens_per_sample"]) <= 0.0501:
            what = f"tokens_per_sample is {said['tokens_per_sample']:g}, and gen_tok_len / gen_num is {mean:.1f}"
            yield error(path, what, rule, SCORE_AGAIN)


def check_lengths(claim: Claim, measured: float | None) -> Iterator[Problem]:
    """The answers of the performance run are as long as those whose accuracy was scored, if both are of one dataset."""
    path = claim.place.accuracy / SCORES
    if measured is None or claim.row.accuracy_samples != claim.row.samples:
        return
    try:
        scored = read_scores(read_text(path), {"tokens_per_sample": None})["tokens_per_sample"]
    except Unreadable:
        return
    if len(scored) == 1 and abs(measured - scored[0]) > 0.05 * scored[0]:
        what = f"the scored answers have {scored[0]:g} tokens on average, those of the performance run {measured:.1f}"
        fix = "explain it, or run both with the same settings"
        yield warning(path, what, "inference_rules.adoc, both runs serve the same model in the same way", fix)


# -- the answers ------------------------------------------------------------------------------------------------------


def said_hash(text: str) -> list[str]:
    """The hashes that accuracy.txt gives, as the checker finds them."""
    return re.findall(r"^hash=(\w+)$", text, re.MULTILINE)


def original_of(path: Path, claim: Claim, originals: Path) -> Path:
    """Where the whole of a truncated log lies, as truncate_accuracy_log.py leaves it in its --backup."""
    return originals / path.relative_to(claim.place.submitter.root)


def check_answers(claim: Claim, originals: Path | None) -> Iterator[Problem]:
    """mlperf_log_accuracy.json is truncated as it must be, and its hash is the original's where that is given."""
    path, scores = claim.place.accuracy / ACCURACY, claim.place.accuracy / SCORES
    try:
        size = size_of(path)
    except Unreadable as fault:
        yield error(path, f"the accuracy log {fault}", CHECKER, SHORTEN)
        return
    if size > LONGEST:
        yield error(path, f"the accuracy log has {size} bytes and is not truncated", f"{CHECKER}, {TRUNCATE}", SHORTEN)
    else:
        yield from _check_truncated(path)
    try:
        digests = said_hash(read_text(scores))
    except Unreadable:
        return
    if len(set(digests)) != 1 or not re.fullmatch(r"[0-9a-f]{64}", digests[0]):
        what = f"accuracy.txt gives {len(set(digests))} hashes" if len(set(digests)) != 1 else "the hash is no SHA-256"
        yield error(scores, what, f"{CHECKER}, {TRUNCATE}: one line hash=<sha256 of the whole log>", SHORTEN)
    elif originals is None:
        what = "the hash cannot be verified here, for the whole log is not given"
        yield note(scores, what, TRUNCATE, "give the folder of the originals with --originals")
    else:
        original = original_of(path, claim, originals)
        yield from check_original(path, original, scores)
        yield from _check_entries(path, original, scores, claim.row)


def _check_truncated(path: Path) -> Iterator[Problem]:
    try:
        content = read_bytes(path)
    except Unreadable as fault:
        yield error(path, f"the accuracy log {fault}", CHECKER, SHORTEN)
        return
    head, tail = content[:KEPT], content[KEPT + len(GAP) :]
    if len(content) != 2 * KEPT + len(GAP) or content[KEPT:-KEPT] != GAP:
        what = f"the accuracy log has {len(content)} bytes and not the form of a truncated one, 4096 + ... + 4096"
        yield error(path, what, f"{TRUNCATE}; {PASSED_OVER}", SHORTEN)
    elif not (_is_head(head) and tail.rstrip().endswith(b"]")):
        yield error(path, "the two ends are not LoadGen's", f"{TRUNCATE}; {PASSED_OVER}", SHORTEN)


def _is_head(head: bytes) -> bool:
    """Begins as LoadGen's list does; each whole line of it is an answer."""
    begin, *rows = head.decode("ascii", errors="replace").split("\n")
    return begin.strip() == "[" and all(_is_answer(row) for row in rows[:-1]) and (len(rows) < 1 or "{" in rows[0])


def _is_answer(row: str) -> bool:
    try:
        answer = parse_json(row.rstrip().removesuffix(","))
    except Unreadable:
        return False
    return isinstance(answer, dict) and {"seq_id", "qsl_idx", "data"} <= set(answer)


def check_original(path: Path, original: Path, scores: Path) -> Iterator[Problem]:
    """The whole of a truncated log has the hash in accuracy.txt and the ends in the package."""
    try:
        size_of(original)
        content = original.read_bytes()
    except (Unreadable, OSError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else fault
        yield error(path, f"its original {why} among the originals", TRUNCATE, "give the folder of the originals")
        return
    try:
        digests = said_hash(read_text(scores))
        ends = read_bytes(path)
    except Unreadable as fault:
        yield error(
            path, f"it cannot be compared with its original: {path.name} or {scores.name} {fault}", TRUNCATE, SHORTEN
        )
        return
    if hashlib.sha256(content).hexdigest() not in digests:
        what = "the hash in accuracy.txt is not that of the original log"
        yield error(scores, what, f"{TRUNCATE}; the checker of v6.1 does not compare", SHORTEN)
    if ends != truncated(content):
        what = "the accuracy log is not the truncated form of the original"
        yield error(path, what, f"{TRUNCATE}; the checker of v6.1 does not compare", SHORTEN)


def _check_entries(path: Path, original: Path, scores: Path, row: Benchmark) -> Iterator[Problem]:
    """In the whole log each sample is answered exactly once, and as long as accuracy.txt says."""
    try:
        entries = read_answers(original)
    except Unreadable as fault:
        if not fault.missing:
            yield error(path, f"its original {clean(str(fault))}", "loadgen/logging.cc", AGAIN)
        return
    for what in answered_faults([entry.index for entry in entries], row.accuracy_samples):
        yield error(path, what, f"each sample is answered exactly once; {PASSED_OVER}", "run accuracy again")
    try:
        said = read_scores(read_text(scores), {"tokens_per_sample": None})["tokens_per_sample"]
    except Unreadable:
        return
    if len(said) == 1 and entries:
        mean = sum(len(entry.data) for entry in entries) / 4 / len(entries)
        if not abs(mean - said[0]) <= 0.0501:
            what = f"tokens_per_sample is {said[0]:g}, and the original has {mean:.1f} int32 tokens a sample"
            yield error(scores, what, f"language/llama2-70b/evaluate-accuracy.py; {PASSED_OVER}", SCORE_AGAIN)


def answered_faults(indices: Sequence[int], expected: int) -> Iterator[str]:
    """What keeps a list of answered samples from being each of `expected` exactly once."""
    answered = Counter(indices)
    strange = sum(1 for index in answered if not 0 <= index < expected)
    missing, twice = expected - (len(answered) - strange), sum(1 for count in answered.values() if count > 1)
    if missing or twice or strange:
        yield f"of {expected} samples {missing} have no answer, {twice} several, and {strange} are of no dataset"
