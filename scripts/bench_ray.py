"""What Ray costs: Offline tokens/s of two engines that are actors over that of two in this process, pair by pair.

    python scripts/bench_ray.py                   the demo's model and one of 100 M parameters, 3 pairs each: 30 min
    python scripts/bench_ray.py --only demo --pairs 1

Each run is `python -m harness` on the same two engines' worth of cores, the order of a pair turned each time. With the
demo's model an engine step takes milliseconds and what surrounds it counts; with random weights of 100 M parameters the
engines' time dominates, as on any real system. Start-up is not counted: the figure is LoadGen's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.demo import MODEL

LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10, "num_attention_heads": 12}


def large_model(folder: Path) -> Path:
    """About 100 M random parameters, with the demo's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    demo = json.loads((MODEL / "config.json").read_text())
    kept = {key: demo[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "max_position_embeddings")}
    config = LlamaConfig(**kept, **LARGE, num_key_value_heads=12, head_dim=64, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for file in MODEL.glob("tokenizer*"):
        shutil.copy(file, folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, random", flush=True)
    return folder


def tokens_per_second(backend: str, options: list[str], folder: Path) -> float:
    """One Offline run in a process of its own."""
    words = ["--scenario", "Offline", "--backend", backend, "--replicas", "2", "--quiet", "--json", *options]
    place = ["--ray-address", "local"] if backend == "ray" else []
    process = subprocess.run(
        [sys.executable, "-m", "harness", *words, *place, "--output-dir", folder], capture_output=True, text=True
    )
    if process.returncode != 0:
        sys.exit(f"the {backend} run failed: {process.stderr[-2000:]}")
    result = json.loads(process.stdout.splitlines()[-1])
    return float(result["metrics"]["tokens_per_second"])


def compare(name: str, options: list[str], pairs: int, reach: str) -> None:
    ratios = []
    for number in range(pairs):
        speed = {}
        with tempfile.TemporaryDirectory() as place:
            for backend in ("vllm", "ray") if number % 2 == 0 else ("ray", "vllm"):
                speed[backend] = tokens_per_second(backend, options, Path(place) / backend)
        ratios.append(speed["ray"] / speed["vllm"])
        print(f"  {name}: in-process {speed['vllm']:,.0f}, Ray {speed['ray']:,.0f} tokens/s", flush=True)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{name}: Ray over in-process {statistics.median(ratios):.3f} ({spread}; asked {reach})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=["demo", "large"])
    options = parser.parse_args()
    if options.only != "large":
        compare("demo model", [], options.pairs, ">= 0.70")
    if options.only != "demo":
        with tempfile.TemporaryDirectory() as place:
            model = large_model(Path(place))
            large = ["--model", str(model), "--samples", "96", "--engine-arg", "dtype=float32"]
            compare("100 M parameters", [*large, "--engine-arg", "max_model_len=2048"], options.pairs, ">= 0.95")


if __name__ == "__main__":
    main()
