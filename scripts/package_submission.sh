#!/usr/bin/env bash
# From a model and its dataset to a checked package for MLCommons: each scenario's accuracy, performance and compliance
# on one start of the engines, then pack, then check. Options go to every run; each command is printed before it runs.
#
#   SUBMITTER=Acme scripts/package_submission.sh --model MODEL --dataset FILE --replicas 4
#   SUBMITTER=Acme scripts/package_submission.sh --model MODEL --dataset FILE --backend echo      a rehearsal
#
#   SUBMITTER     who submits                      BENCHMARK    default llama2-70b-99.9
#   DIVISION      closed (default), open, network  SCENARIOS    default "Offline Server"
#   OUTPUT        folder of runs and package, default results/submission-<time>; what is finished there is not run again
#   OFFLINE_OPTIONS, SERVER_OPTIONS, INTERACTIVE_OPTIONS   options of one scenario, such as "--target-qps 40"
#   PACK_OPTIONS  options of `submission pack`, such as "--system-name 8xH200 --system system.json", and the folders of
#                 further runs, such as the accuracy run that gpt-oss-120b has apart
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

say() { printf '%s\n' "$@" >&2; }
fail() { local code=$1; shift; say "error: $*"; exit "$code"; }

# Prints a command of the harness and runs it; the exit code is left in `code`.
harness() { say "" "\$ python -m harness$(printf ' %q' "$@")"; code=0; "$root/scripts/run.sh" "$@" || code=$?; }

submitter=${SUBMITTER:-} division=${DIVISION:-closed} benchmark=${BENCHMARK:-llama2-70b-99.9}
output=${OUTPUT:-results/submission-$(date +%Y%m%d-%H%M%S)}
read -ra scenarios <<<"${SCENARIOS:-Offline Server}"
read -ra packing <<<"${PACK_OPTIONS:-}"
[ -n "$submitter" ] || fail 2 "nobody submits: name the submitter, SUBMITTER=Acme $0 …"
[ ! -e "$output/package" ] || fail 2 "$output/package is there already, and nothing is overwritten: choose another OUTPUT."
rehearsal=""
for option in "$@" ${packing[@]+"${packing[@]}"}; do
  case $option in echo | --backend=echo | --rehearsal) rehearsal=yes ;; esac
done
[ -z "$rehearsal" ] || say "This is a rehearsal: its package says so itself, and cannot be submitted."

say "1. Run ${scenarios[*]}: accuracy, performance and compliance of each, on one start of the engines."
folders=()
for scenario in "${scenarios[@]}"; do
  folder=$output/$scenario
  folders+=("$folder")
  if [ -e "$folder/submission.json" ]; then
    grep -q '"status": "complete"' "$folder/submission.json" ||
      fail 2 "$folder holds runs that did not come to their end: remove it, or choose another OUTPUT."
    say "$folder is finished: not run again."
    continue
  fi
  own=$(tr '[:lower:]' '[:upper:]' <<<"$scenario")_OPTIONS
  read -ra options <<<"${!own:-}"
  harness run --mode submission --benchmark "$benchmark" --scenario "$scenario" --output-dir "$folder" \
    "$@" ${options[@]+"${options[@]}"}
  # What answers in a rehearsal need not be accurate, and the open division takes any accuracy.
  [ "$code" = 5 ] && [ -n "$rehearsal" ] && { say "Accuracy is below its target, as a rehearsal may be."; code=0; }
  [ "$code" = 5 ] && [ "$division" = open ] && { say "Something is below its target, as in the open division it may be."; code=0; }
  # All ran to its end, and a file that a grader writes decides: packing says which.
  [ "$code" = 3 ] && [ -e "$folder/submission.json" ] && { say "Not all is decided yet: packing says what is missing."; code=0; }
  [ "$code" = 0 ] || fail "$code" "$scenario ended with code $code, so nothing was packed: mend what it says, remove $folder and start again with OUTPUT=$output."
done

say "" "2. Pack."
harness submission pack "${folders[@]}" --submitter "$submitter" --division "$division" --output "$output/package" \
  ${packing[@]+"${packing[@]}"}
[ "$code" = 0 ] || fail "$code" "nothing was packed (code $code): mend what is said above and start again with OUTPUT=$output."

say "" "3. Check."
harness submission check "$output/package" --originals "$output/package-originals"
[ "$code" != 0 ] || { say "" "$output/package is ready."; exit 0; }
[ -z "$rehearsal" ] || fail "$code" "$output/package is a rehearsal, so the check refuses it; what else it lists is what a submission would still lack."
fail "$code" "$output/package has the problems listed above (code $code): mend them and check again."
