"""The embedded default: a tiny Llama, the 1,024 questions it was trained for, and what it scores on them.

Everything in this folder is made from a seed by ``scripts/make_demo_assets.py``.
"""

from pathlib import Path

_HERE = Path(__file__).parent

MODEL = _HERE / "model"
QUESTIONS = _HERE / "questions.jsonl"
REFERENCE = _HERE / "reference.json"
