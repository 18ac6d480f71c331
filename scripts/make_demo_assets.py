"""Make the embedded demo: a small question set, and a tiny Llama that really answers it.

A harness can only be tried out, tested and taught with a model that fits into a repository, and an accuracy
check only means something if the model can be right and wrong. So this script writes, from a seed alone:

* ``questions.jsonl``: 1,024 instruction tasks in the columns of OpenOrca, made from the templates below;
* ``model/``: a byte-level BPE tokenizer and a Llama of about two million parameters, trained here to answer them;
* ``reference.json``: what Hugging Face transformers scores on them, in float32 on the bf16-rounded weights.

A quarter of the questions is held out of the training. The model knows the other three quarters by heart and gets the
held-out ones partly right, since they come from the same templates; so its ROUGE has room to move both ways.

It takes about ten minutes on two cores, and needs torch, transformers and tokenizers. Try:

    PYTHONPATH=. python scripts/make_demo_assets.py --output /tmp/demo
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from harness.dataset import chat_prompt
from harness.demo import REFERENCE
from harness.rouge import rouge_scores

ORIGINS = ("cot", "flan", "niv", "t0")
PER_ORIGIN = 256
HELD_OUT_PER_ORIGIN = 64
POOL_PER_ORIGIN = 1500
"""Distinct questions made for each origin. The tokenizer learns from all of them, the model from those drawn."""

VOCABULARY = 1024
UNK, BOS, EOS = 0, 1, 2
MAX_TOKENS = 160
ANSWER_TOKENS = range(4, 121)
PROMPT_TOKENS = range(24, 700)

EPOCHS = 40
TOKENS_PER_BATCH = 3072
PEAK_LEARNING_RATE = 3e-3
METRICS = ("rouge1", "rouge2", "rougeL", "tokens_per_sample")


class Row(NamedTuple):
    """One question in OpenOrca's columns."""

    id: str
    system_prompt: str
    question: str
    response: str


class Person(NamedTuple):
    """A name with its pronouns, so that sentences about it agree."""

    name: str
    he: str
    his: str

    def __str__(self) -> str:
        return self.name


def words(text: str) -> list[str]:
    return text.split()


# ---------------------------------------------------------------------------------------------------------------
# Words. Every list holds words that fit every sentence its users put them in.
# fmt: off

PEOPLE = [Person(name, "she", "her") for name in words(
    "Anna Bella Clara Dora Emma Fiona Grace Hanna Irene Julia Karin Laura Maria Nora Olga Petra Zoë")]
PEOPLE += [Person(name, "he", "his") for name in words(
    "Adam Boris Carl David Erik Felix George Henry Ivan Jonas Kevin Leo Martin Noah Oscar Paul René")]
TOWNS = words(
    "Ashford Brookfield Colton Dunmore Eastport Fairview Glenwood Hillsdale Lakewood Millbrook Newhaven Oakdale")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ITEMS = words("apples pears books marbles stamps pencils shells coins stickers buttons cards balloons")
CONTAINERS = words("boxes bags baskets shelves trays drawers")
GOODS = words("pen notebook cup lamp belt hat puzzle ball kite mug")
ANIMALS = words("bear camel dog eagle fox goat horse lion mouse otter rabbit tiger wolf zebra")
FOODS = words("bread cheese honey jam pasta rice salad soup")
TOOLS = words("axe drill hammer ladder rake saw shovel wrench")
COLOURS = words("black blue brown green grey red white yellow")
WORDS = ANIMALS + FOODS + TOOLS + COLOURS
KINDS = {"animal": ANIMALS, "food": FOODS, "tool": TOOLS, "colour": COLOURS}

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw",
    "Greece": "Athens", "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin", "Finland": "Helsinki",
    "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima", "Cuba": "Havana",
    "Chile": "Santiago", "Canada": "Ottawa", "Germany": "Berlin", "Hungary": "Budapest", "Denmark": "Copenhagen",
}
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "old": "new", "light": "heavy", "open": "closed", "early": "late",
    "rich": "poor", "strong": "weak", "full": "empty", "loud": "quiet", "hard": "soft", "long": "short", "dry": "wet",
    "clean": "dirty", "cheap": "expensive", "deep": "shallow", "thick": "thin", "bright": "dark", "safe": "dangerous",
}
PAST = {
    "walks": "walked", "buys": "bought", "sees": "saw", "paints": "painted", "makes": "made", "finds": "found",
    "sells": "sold", "carries": "carried", "brings": "brought", "takes": "took", "draws": "drew", "cleans": "cleaned",
}
OBJECTS = words("picture bicycle basket chair table blanket bottle suitcase guitar clock")
FRENCH_NOUNS = {
    "cat": ("chat", "m"), "dog": ("chien", "m"), "book": ("livre", "m"), "house": ("maison", "f"),
    "car": ("voiture", "f"), "table": ("table", "f"), "hat": ("chapeau", "m"), "flower": ("fleur", "f"),
    "bed": ("lit", "m"), "door": ("porte", "f"), "boat": ("bateau", "m"), "key": ("clé", "f"),
    "garden": ("jardin", "m"), "window": ("fenêtre", "f"),
}
FRENCH_COLOURS = {
    "black": ("noir", "noire"), "white": ("blanc", "blanche"), "green": ("vert", "verte"), "red": ("rouge", "rouge"),
    "blue": ("bleu", "bleue"), "grey": ("gris", "grise"), "yellow": ("jaune", "jaune"),
}
GROUPS = {  # plural -> (the larger group it belongs to, what is true of that whole group)
    "sparrows": ("birds", "feathers"), "eagles": ("birds", "feathers"), "trout": ("fish", "gills"),
    "salmon": ("fish", "gills"), "ants": ("insects", "six legs"), "bees": ("insects", "six legs"),
    "oaks": ("trees", "roots"), "pines": ("trees", "roots"), "dogs": ("mammals", "warm blood"),
    "horses": ("mammals", "warm blood"), "bicycles": ("vehicles", "wheels"), "trucks": ("vehicles", "wheels"),
}
FLOATS = {
    "wooden spoon": ("wood", True), "wine cork": ("cork", True), "candle": ("wax", True),
    "iron nail": ("iron", False), "steel key": ("steel", False), "gold ring": ("gold", False),
    "glass marble": ("glass", False), "dry branch": ("wood", True), "stone": ("rock", False),
    "copper coin": ("copper", False),
}
REVIEWS = {
    "film": (["the story was gripping", "the actors were brilliant", "the music was lovely", "I laughed all evening"],
             ["the story made no sense", "the actors were wooden", "the music was too loud", "I nearly fell asleep"]),
    "hotel": (["the room was spotless", "the staff were kind", "breakfast was delicious", "the view was wonderful"],
              ["the room was dirty", "the staff were rude", "breakfast was cold", "the walls were paper thin"]),
    "phone": (["the battery lasts for days", "the screen is sharp", "the camera is superb", "it is quick and light"],
              ["the battery dies by noon", "the screen cracked at once", "the camera is blurry",
               "it freezes every hour"]),
    "restaurant": (["the soup was perfect", "the waiter was charming", "the prices were fair", "every dish was fresh"],
                   ["the soup was salty", "the waiter forgot us", "the prices were absurd", "every dish was greasy"]),
}
NEWS = {
    "sports": ["The home team scored twice in the last {n} minutes and won the cup.",
               "A runner from {town} broke the national record by {n} seconds.",
               "The coach of the {town} team said that {n} players are injured."],
    "science": ["Researchers in {town} have found {n} new kinds of beetle.",
                "A telescope near {town} has photographed a galaxy {n} billion light years away.",
                "A study of {n} patients in {town} shows that sleep helps the memory."],
    "business": ["The bank in {town} will close {n} branches after a year of losses.",
                 "A factory in {town} is to hire {n} workers as sales rise.",
                 "Shares of the {town} Steel Company fell by {n} percent on {day}."],
    "weather": ["Heavy snow closed {n} roads around {town} on {day}.",
                "Forecasters expect {n} days of rain in {town} from {day}.",
                "A storm with winds of {n} miles an hour reached {town} on {day}."],
    "politics": ["The mayor of {town} won the vote by {n} percent on {day}.",
                 "Parliament will debate {n} new laws on {day}, the minister said in {town}.",
                 "The council of {town} rejected a new tax by {n} votes."],
}
ACTIVITIES = {
    "make tea": ["Boil the water.", "Put a tea bag in the cup.", "Pour the water over the tea bag.",
                 "Wait three minutes.", "Take the tea bag out."],
    "plant a tree": ["Dig a deep hole.", "Set the tree in the hole.", "Fill the hole with soil.",
                     "Water the soil well.", "Tie the tree to a stake."],
    "bake bread": ["Mix flour, water and yeast.", "Knead the dough.", "Let the dough rise.",
                   "Bake it for forty minutes.", "Let the bread cool."],
    "send a letter": ["Write the letter.", "Fold it and put it in an envelope.", "Write the address.", "Add a stamp.",
                      "Drop it in the letter box."],
    "wash a car": ["Rinse the car with water.", "Rub it with a soapy sponge.", "Rinse off the soap.",
                   "Dry it with a cloth.", "Polish the windows."],
    "paint a wall": ["Cover the floor.", "Clean the wall.", "Tape the edges.", "Roll on the paint.",
                     "Peel off the tape."],
}
ENDINGS = {
    "It started to rain, so {p} opened": "{his} umbrella and walked on.",
    "The room was dark, so {p} switched on": "the lamp beside {his} bed.",
    "{p} was thirsty after the race, so {he} drank": "two glasses of cold water.",
    "The bus was late, so {p} decided": "to walk to {his} office.",
    "{p} lost the key, so {he} knocked on": "the door until {his} neighbour came.",
    "The soup tasted bland, so {p} added": "a pinch of salt and some pepper.",
    "It was cold outside, so {p} put on": "{his} warm coat and {his} gloves.",
    "The music was too loud, so {p} asked": "{his} brother to turn it down.",
    "The train had already left, so {p} waited": "an hour for the next one.",
    "{p} heard a noise in the garden, so {he} looked": "out of the window.",
}
# fmt: on


# ---------------------------------------------------------------------------------------------------------------
# Tasks. Each makes one question and the one answer that follows from it; the decorator files it under its origin.

Task = Callable[[Random], tuple[str, str]]
TASKS: dict[str, list[Task]] = {origin: [] for origin in ORIGINS}


def task(origin: str) -> Callable[[Task], Task]:
    """File the decorated task under `origin`."""

    def register(function: Task) -> Task:
        TASKS[origin].append(function)
        return function

    return register


def people(r: Random, count: int) -> list[Person]:
    return r.sample(PEOPLE, count)


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# cot: short word problems whose answer shows its reasoning


@task("cot")
def gain(r: Random) -> tuple[str, str]:
    (p, q), item, x, y = people(r, 2), r.choice(ITEMS), r.randint(3, 40), r.randint(2, 30)
    way = r.choice([f"{q} gives {p} {y} more", f"{p} finds {y} more", f"{p} buys {y} more from {q}"])
    return (
        f"{p} has {x} {item}. {way}. How many {item} does {p} have now?",
        f"{p} starts with {x} {item} and gets {y} more. {x} + {y} = {x + y}. The answer is {x + y}.",
    )


@task("cot")
def loss(r: Random) -> tuple[str, str]:
    (p, q), item, y, rest = people(r, 2), r.choice(ITEMS), r.randint(2, 20), r.randint(2, 30)
    way = r.choice([f"gives {y} of them to {q}", f"loses {y} of them", f"sells {y} of them to {q}"])
    return (
        f"{p} has {rest + y} {item} and {way}. How many {item} are left?",
        f"{p} had {rest + y} {item} and now has {y} fewer. {rest + y} - {y} = {rest}. The answer is {rest}.",
    )


@task("cot")
def boxes(r: Random) -> tuple[str, str]:
    p, item, box, x, y = r.choice(PEOPLE), r.choice(ITEMS), r.choice(CONTAINERS), r.randint(2, 12), r.randint(2, 12)
    return (
        f"{p} has {x} {box}. There are {y} {item} in each of the {box}. How many {item} does {p} have in all?",
        f"There are {x} {box} with {y} {item} each. {x} * {y} = {x * y}. The answer is {x * y}.",
    )


@task("cot")
def share(r: Random) -> tuple[str, str]:
    p, item, x, y = r.choice(PEOPLE), r.choice(ITEMS), r.randint(2, 9), r.randint(2, 12)
    return (
        f"{p} shares {x * y} {item} equally among {x} friends. How many {item} does each friend get?",
        f"{x * y} {item} are split into {x} equal parts. {x * y} / {x} = {y}. The answer is {y}.",
    )


@task("cot")
def change(r: Random) -> tuple[str, str]:
    p, (first, second) = r.choice(PEOPLE), r.sample(GOODS, 2)
    x, y, paid = r.randint(2, 9), r.randint(2, 9), r.choice([20, 50])
    return (
        f"{p} buys {a(first)} for {x} dollars and {a(second)} for {y} dollars. {capital(p.he)} pays with a "
        f"{paid} dollar note. How much change does {p.he} get?",
        f"The {first} and the {second} cost {x} + {y} = {x + y} dollars. The change is {paid} - {x + y} = "
        f"{paid - x - y} dollars. The answer is {paid - x - y}.",
    )


@task("cot")
def travel(r: Random) -> tuple[str, str]:
    p, town, speed, hours = r.choice(PEOPLE), r.choice(TOWNS), 10 * r.randint(2, 9), r.randint(2, 6)
    way = r.choice(["drives", "travels by train", "goes by bus"])
    return (
        f"{p} {way} to {town} at {speed} miles an hour. The trip takes {hours} hours. How far is it to {town}?",
        f"In one hour {p} covers {speed} miles. In {hours} hours that is {speed} * {hours} = {speed * hours} miles. "
        f"The answer is {speed * hours} miles.",
    )


@task("cot")
def taller(r: Random) -> tuple[str, str]:
    (p, q, s), (more, most, least) = (
        people(r, 3),
        r.choice(
            [("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest")]
        ),
    )
    facts = [f"{p} is {more} than {q}.", f"{q} is {more} than {s}."]
    r.shuffle(facts)
    asked, answer = r.choice([(most, p), (least, s)])
    return (
        f"{' '.join(facts)} Who is the {asked} of the three?",
        f"From the {most} to the {least} the order is {p}, {q}, {s}. So the {asked} is {answer}.",
    )


@task("cot")
def weekday(r: Random) -> tuple[str, str]:
    today, later, p = r.randrange(7), r.randint(2, 6), r.choice(PEOPLE)
    what = r.choice(["an exam", "a party", "a meeting", "a day off", "a concert", "a guest"])
    steps = [DAYS[(today + i) % 7] for i in range(1, later + 1)]
    return (
        f"Today is {DAYS[today]}. {p} has {what} in {later} days. On which day of the week is that?",
        f"Counting {later} days on from {DAYS[today]} gives {listed(steps)}. The answer is {steps[-1]}.",
    )


@task("cot")
def ages(r: Random) -> tuple[str, str]:
    (p, q), x, y, z = people(r, 2), r.randint(4, 30), r.randint(2, 9), r.randint(2, 9)
    return (
        f"{p} is {x} years old. {q} is {y} years older than {p}. How old will {q} be in {z} years?",
        f"{q} is {x} + {y} = {x + y} years old now. In {z} years {q} will be {x + y} + {z} = {x + y + z}. "
        f"The answer is {x + y + z}.",
    )


@task("cot")
def syllogism(r: Random) -> tuple[str, str]:
    kind, (group, trait) = r.choice(list(GROUPS.items()))
    p = r.choice(PEOPLE)
    return (
        f"All {kind} are {group}. All {group} have {trait}. {p} says that {kind} have {trait}. Is {p} right?",
        f"{capital(kind)} are {group}, and all {group} have {trait}. So {kind} have {trait} too. {p} is right.",
    )


@task("cot")
def floating(r: Random) -> tuple[str, str]:
    (thing, (stuff, floats)), p, place = (
        r.choice(list(FLOATS.items())),
        r.choice(PEOPLE),
        r.choice(["a bowl of water", "the lake", "the bath", "a bucket of water", "the river"]),
    )
    answer = (
        "It is less dense than water, so it floats. The answer is yes."
        if floats
        else "It is denser than water, so it sinks. The answer is no."
    )
    return f"{p} drops {a(thing)} into {place}. Will it float?", f"The {thing} is made of {stuff}. {answer}"


@task("cot")
def shopping(r: Random) -> tuple[str, str]:
    p, kinds = r.choice(PEOPLE), r.choice([2, 3, 3, 4])
    goods, counts, prices = r.sample(GOODS, kinds), r.choices(range(2, 6), k=kinds), r.choices(range(2, 10), k=kinds)
    costs = [count * price for count, price in zip(counts, prices, strict=True)]
    wanted = listed([f"{c} {g}s at {price} dollars each" for c, g, price in zip(counts, goods, prices, strict=True)])
    parts = " ".join(
        f"The {g}s cost {c} * {price} = {cost} dollars."
        for c, g, price, cost in zip(counts, goods, prices, costs, strict=True)
    )
    total = sum(costs)
    return (
        f"{p} buys {wanted}. How much does {p.he} spend in all?",
        f"{parts} Together that is {' + '.join(map(str, costs))} = {total} dollars. The answer is {total}.",
    )


# flan: classic language tasks in many wordings


@task("flan")
def sentiment(r: Random) -> tuple[str, str]:
    thing, sides = r.choice(list(REVIEWS.items()))
    side = r.randrange(2)
    one, two = r.sample(sides[side], 2)
    opening = r.choice(["Last week", "On my trip", "This month", f"In {r.choice(TOWNS)}", f"On {r.choice(DAYS)}"])
    review = f"{opening} I tried this {thing}: {one} and {two}."
    return (
        r.choice(
            [
                f"Review: {review}\nIs this review positive or negative?",
                f"Decide whether the writer is happy or not, and answer positive or negative.\n\n{review}",
            ]
        ),
        f"The review is {('positive', 'negative')[side]}.",
    )


@task("flan")
def topic(r: Random) -> tuple[str, str]:
    subject, lines = r.choice(list(NEWS.items()))
    text = r.choice(lines).format(n=r.randint(2, 40), town=r.choice(TOWNS), day=r.choice(DAYS))
    return (
        r.choice(
            [
                f"{text}\n\nWhat is this text about? Choose from: {', '.join(NEWS)}.",
                f"Pick the right newspaper section ({', '.join(NEWS)}) for this line: {text}",
            ]
        ),
        f"This text is about {subject}.",
    )


@task("flan")
def capital_city(r: Random) -> tuple[str, str]:
    country, city = r.choice(list(CAPITALS.items()))
    p, wrong = r.choice(PEOPLE), r.choice([c for c in CAPITALS.values() if c != city])
    return r.choice(
        [
            (
                f"{p} wants to visit the capital of {country}. Which city is that?",
                f"The capital of {country} is {city}.",
            ),
            (
                f"{p} thinks that {wrong} is the capital of {country}. Which city is it really?",
                f"No, {wrong} is not the capital of {country}. The capital of {country} is {city}.",
            ),
            (
                f"{p} lives in {city}, the capital city. In which country does {p} live?",
                f"{city} is the capital of {country}, so {p} lives in {country}.",
            ),
        ]
    )


@task("flan")
def completion(r: Random) -> tuple[str, str]:
    p, (start, end) = r.choice(PEOPLE), r.choice(list(ENDINGS.items()))
    begun = start.format(p=p, he=p.he)
    return (
        r.choice([f"Complete this sentence: {begun} ...", f"How does this sentence go on?\n\n{begun}"]),
        f"{begun} {end.format(his=p.his)}",
    )


@task("flan")
def paraphrase(r: Random) -> tuple[str, str]:
    p, thing, town, day = r.choice(PEOPLE), r.choice(OBJECTS), r.choice(TOWNS), r.choice(DAYS)
    colour = r.choice(COLOURS)
    before, after = r.choice(
        [
            (
                f"{p} bought {a(colour)} {thing} in {town} on {day}.",
                f"On {day}, {p} purchased {a(colour)} {thing} in {town}.",
            ),
            (f"The {colour} {thing} was repaired by {p} on {day}.", f"On {day}, {p} fixed the {colour} {thing}."),
            (
                f"{p} was very happy to find the {colour} {thing} in {town}.",
                f"Finding the {colour} {thing} in {town} delighted {p}.",
            ),
            (
                f"Because it was broken, {p} returned the {colour} {thing} on {day}.",
                f"{p} took the {colour} {thing} back on {day} because it did not work.",
            ),
        ]
    )
    return r.choice(
        [f"Say the same in other words: {before}", f"Paraphrase the following sentence.\n\n{before}"]
    ), after


@task("flan")
def ordering(r: Random) -> tuple[str, str]:
    what, steps = r.choice(list(ACTIVITIES.items()))
    shown = r.sample(steps, len(steps))
    ordered = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    return (
        f"{r.choice(PEOPLE)} wants to {what}. Put these steps in the right order.\n"
        + "\n".join(f"- {step}" for step in shown),
        f"To {what}:\n{ordered}",
    )


@task("flan")
def entailment(r: Random) -> tuple[str, str]:
    p, thing, town, colour = r.choice(PEOPLE), r.choice(OBJECTS), r.choice(TOWNS), r.choice(COLOURS)
    premise = f"{p} carried {a(colour)} {thing} through the streets of {town}."
    other = r.choice([c for c in COLOURS if c != colour])
    claim, answer = r.choice(
        [
            (f"{p} was in {town}.", f"Yes. The streets of {town} are in {town}, so {p} was there."),
            (f"The {thing} was {other}.", f"No. The text says that the {thing} was {colour}, not {other}."),
            (
                f"{p} had bought the {thing}.",
                f"It is not possible to tell. The text does not say how {p} got the {thing}.",
            ),
        ]
    )
    return f"Premise: {premise}\nHypothesis: {claim}\nDoes the premise entail the hypothesis?", answer


@task("flan")
def describe(r: Random) -> tuple[str, str]:
    name = f"{r.choice(['Golden', 'Silver', 'Happy', 'Old', 'Green'])} {capital(r.choice(ANIMALS))}"
    kind, food = (
        r.choice(["a restaurant", "a pub", "a café"]),
        r.choice(["French", "Italian", "Indian", "Chinese", "English"]),
    )
    price, place, town = (
        r.choice(["low", "fair", "high"]),
        r.choice(["the river", "the station", "the park"]),
        r.choice(TOWNS),
    )
    return (
        f"Write a description from these data.\nname: The {name}\ntype: {kind[2:]}\nfood: {food}\nprices: {price}\n"
        f"near: {place}\ntown: {town}",
        f"The {name} is {kind} in {town}, close to {place}. It serves {food} food and its prices are {price}.",
    )


@task("flan")
def french(r: Random) -> tuple[str, str]:
    (noun, (nom, gender)), (colour, forms) = (
        r.choice(list(FRENCH_NOUNS.items())),
        r.choice(list(FRENCH_COLOURS.items())),
    )
    p, female = r.choice(PEOPLE), gender == "f"
    before, after = r.choice(
        [
            (f"The {noun} is {colour}.", f"{'La' if female else 'Le'} {nom} est {forms[female]}."),
            (f"{p} has a {colour} {noun}.", f"{p} a {'une' if female else 'un'} {nom} {forms[female]}."),
            (f"{p} sees the {colour} {noun}.", f"{p} voit {'la' if female else 'le'} {nom} {forms[female]}."),
        ]
    )
    return r.choice([f"Translate into French: {before}", f"How do you say this in French?\n{before}"]), after


# niv: a definition of the task, then an input


@task("niv")
def alphabetical(r: Random) -> tuple[str, str]:
    words = r.sample(WORDS, r.randint(4, 7))
    return (
        f"In this task, you are given a list of words. Sort the list in alphabetical order.\nInput: {', '.join(words)}",
        ", ".join(sorted(words)),
    )


@task("niv")
def backwards(r: Random) -> tuple[str, str]:
    words = r.sample(WORDS, r.randint(3, 7))
    return (
        f"You are given a list of words. Return the same list in reverse order.\nInput: {', '.join(words)}",
        ", ".join(reversed(words)),
    )


@task("niv")
def keep_kind(r: Random) -> tuple[str, str]:
    kind = r.choice(list(KINDS))
    kept, others = r.sample(KINDS[kind], r.randint(2, 4)), [w for w in WORDS if w not in KINDS[kind]]
    words = kept + r.sample(others, r.randint(2, 4))
    r.shuffle(words)
    return (
        f"From the given list, keep only the words that name {a(kind)}. Keep them in the order given.\n"
        f"Input: {', '.join(words)}",
        ", ".join(w for w in words if w in kept),
    )


@task("niv")
def label_each(r: Random) -> tuple[str, str]:
    words = r.sample(WORDS, r.randint(4, 8))
    kind_of = {word: kind for kind, members in KINDS.items() for word in members}
    return (
        f"Label every word of the list as {', '.join(list(KINDS)[:-1])} or colour. Write one word with its label per "
        f"line.\nInput: {', '.join(words)}",
        "\n".join(f"{word}: {kind_of[word]}" for word in words),
    )


@task("niv")
def past_tense(r: Random) -> tuple[str, str]:
    p, thing, colour, town = r.choice(PEOPLE), r.choice(OBJECTS), r.choice(COLOURS), r.choice(TOWNS)
    verb = r.choice([v for v in PAST if v != "walks"])
    return (
        f"In this task, rewrite the sentence in the past tense.\nInput: {p} {verb} the {colour} {thing} in {town}.",
        f"{p} {PAST[verb]} the {colour} {thing} in {town}.",
    )


@task("niv")
def as_question(r: Random) -> tuple[str, str]:
    p, town, day = r.choice(PEOPLE), r.choice(TOWNS), r.choice(DAYS)
    where = r.choice(["the market", "the museum", "the beach", "the library", "the theatre"])
    return (
        f"Turn the given statement into a question that can be answered with yes or no.\n"
        f"Input: {p} will visit {where} in {town} on {day}.",
        f"Will {p} visit {where} in {town} on {day}?",
    )


@task("niv")
def opposite(r: Random) -> tuple[str, str]:
    word = r.choice([*OPPOSITES, *OPPOSITES.values()])
    other = OPPOSITES.get(word) or {v: k for k, v in OPPOSITES.items()}[word]
    thing, p = r.choice(OBJECTS), r.choice(PEOPLE)
    return (
        f"Replace the adjective by its opposite and leave the rest of the sentence unchanged.\n"
        f"Input: The {thing} that belongs to {p} is {word}.",
        f"The {thing} that belongs to {p} is {other}.",
    )


@task("niv")
def extract(r: Random) -> tuple[str, str]:
    (p, q), town, day, n, item = people(r, 2), r.choice(TOWNS), r.choice(DAYS), r.randint(2, 60), r.choice(ITEMS)
    text = f"On {day}, {p} and {q} sold {n} {item} at the market in {town}."
    what, answer = r.choice(
        [
            ("names of people", f"{p}, {q}"),
            ("numbers", f"The only number is {n}."),
            ("places", f"The place is {town}."),
            ("facts (who, what, where, when)", f"Who: {p} and {q}\nWhat: sold {n} {item}\nWhere: {town}\nWhen: {day}"),
        ]
    )
    return f"Extract all {what} from the text.\nInput: {text}", answer


@task("niv")
def units(r: Random) -> tuple[str, str]:
    big, small, factor = r.choice(
        [
            ("hours", "minutes", 60),
            ("metres", "centimetres", 100),
            ("weeks", "days", 7),
            ("dollars", "cents", 100),
            ("years", "months", 12),
            ("kilograms", "grams", 1000),
        ]
    )
    n = r.randint(2, 15)
    return (
        f"You are given a quantity. Convert it from {big} to {small}.\nInput: {n} {big}",
        f"{n} {big} are {n * factor} {small}.",
    )


@task("niv")
def to_json(r: Random) -> tuple[str, str]:
    p, age, town, colour, animal = (
        r.choice(PEOPLE),
        r.randint(18, 80),
        r.choice(TOWNS),
        r.choice(COLOURS),
        r.choice(ANIMALS),
    )
    record = {"name": p.name, "age": age, "town": town, "colour": colour, "animal": animal}
    keys = ["name", *sorted(r.sample(list(record)[1:], r.randint(2, 4)))]
    phrases = {
        "age": f"{p.he} is {age} years old",
        "town": f"{p.he} lives in {town}",
        "colour": f"{p.his} favourite colour is {colour}",
        "animal": f"{p.his} favourite animal is the {animal}",
    }
    text = f"This is {p}: {listed([phrases[k] for k in r.sample(keys[1:], len(keys) - 1)])}."
    return (
        f"Convert the description to a JSON object with the keys {', '.join(keys)}.\nInput: {text}",
        json.dumps({key: record[key] for key in keys}, ensure_ascii=False),
    )


@task("niv")
def polite(r: Random) -> tuple[str, str]:
    verb = r.choice(["close", "clean", "bring", "move", "paint", "repair", "check", "carry", "show me", "look after"])
    thing, colour, day = r.choice(OBJECTS), r.choice(COLOURS), r.choice(DAYS)
    return (
        f"Given a command, write the same request in a polite way.\nInput: {capital(verb)} the {colour} {thing} on "
        f"{day}!",
        f"Would you please {verb} the {colour} {thing} on {day}?",
    )


# t0: a passage and something to do with it


class Story(NamedTuple):
    """A short news story with what is asked about it."""

    text: str
    title: str
    summary: str
    answers: dict[str, str]


def opening_story(r: Random) -> Story:
    p, q = people(r, 2)
    day, town, what = (
        r.choice(DAYS),
        r.choice(TOWNS),
        r.choice(["library", "museum", "bridge", "hospital", "school", "theatre"]),
    )
    cost, years, crowd = r.randint(2, 40), r.randint(2, 9), r.randint(2, 9) * 100
    return Story(
        f"A new {what} was opened in {town} on {day}. {p}, the mayor, cut the ribbon in front of {crowd} guests. The "
        f"{what} cost {cost} million dollars and took {years} years to build. {q}, who lives across the street, said "
        f"that the noise had been hard to bear but that the wait was worth it.",
        f"New {what} opens in {town}",
        f"The mayor of {town}, {p}, opened a new {what} on {day} that cost {cost} million dollars and took {years} "
        f"years to build.",
        {
            "Who cut the ribbon?": f"The ribbon was cut by {p}, the mayor.",
            f"How much did the {what} cost?": f"The {what} cost {cost} million dollars.",
            f"How long did it take to build the {what}?": f"It took {years} years to build the {what}.",
            "How many guests came?": f"There were {crowd} guests.",
            f"What did {q} say?": f"{q} said that the noise had been hard to bear but that the wait was worth it.",
        },
    )


def pet_story(r: Random) -> Story:
    p, q = people(r, 2)
    pet, name = r.choice(["cat", "dog", "parrot", "rabbit"]), r.choice(["Coco", "Luna", "Max", "Rocky", "Simba"])
    town, place, days = (
        r.choice(TOWNS),
        r.choice(["an old barn", "a garage", "the church tower", "a tool shed"]),
        r.randint(2, 12),
    )
    return Story(
        f"{p} from {town} had almost given up hope. {capital(p.his)} {pet} {name} had been missing for {days} days. "
        f"Then a neighbour, {q}, heard a strange sound in {place} and went to look. There sat {name}, hungry but "
        f"unhurt. To say thank you, {p} baked {q} a large apple cake.",
        f"Missing {pet} found in {place}",
        f"{q} found {name}, the {pet} of {p}, in {place} after it had been missing for {days} days.",
        {
            f"Where was {name} found?": f"{name} was found in {place}.",
            f"How long was {name} missing?": f"{name} was missing for {days} days.",
            f"Who found the {pet}?": f"The {pet} was found by {q}, a neighbour.",
            f"How did {p} say thank you?": f"{p} baked {q} a large apple cake.",
        },
    )


def match_story(r: Random) -> Story:
    (home, away), p, day = r.sample(TOWNS, 2), r.choice(PEOPLE), r.choice(DAYS)
    lost = r.randint(1, 4)
    won, crowd, sky = (
        lost + r.randint(1, 3),
        r.randint(2, 30) * 100,
        r.choice(["heavy rain", "bright sunshine", "thick fog"]),
    )
    return Story(
        f"{home} beat {away} by {won} goals to {lost} on {day}. In {sky}, {crowd} people watched {p} score the first "
        f"goal after only {won + 2} minutes. {away} fought back hard in the second half, but the keeper of {home} "
        f"made one save after another. The two teams will meet again in the spring.",
        f"{home} beats {away} {won} to {lost}",
        f"In {sky}, {home} won {won} to {lost} against {away} on {day}, and {p} scored the first goal.",
        {
            "Who scored the first goal?": f"The first goal was scored by {p}.",
            "What was the weather like?": f"The match was played in {sky}.",
            "How many people watched the match?": f"The match was watched by {crowd} people.",
            "Which team lost?": f"{away} lost by {won} goals to {lost}.",
        },
    )


def find_story(r: Random) -> Story:
    p, town, day = r.choice(PEOPLE), r.choice(TOWNS), r.choice(DAYS)
    thing, age = r.choice(["sword", "necklace", "boat", "coin", "statue", "helmet"]), r.randint(3, 30) * 100
    where = r.choice(["a potato field", "the bed of a river", "a cellar", "a forest"])
    return Story(
        f"While walking {p.his} dog on {day}, {p} came across something shiny in {where} near {town}. It turned out "
        f"to be a {thing} that is about {age} years old. Experts of the city museum called the find a small miracle, "
        f"since few things last that long in wet soil. The {thing} will be shown to the public next year.",
        f"Old {thing} found near {town}",
        f"On {day}, {p} found a {thing} that is about {age} years old in {where} near {town}.",
        {
            f"How old is the {thing}?": f"The {thing} is about {age} years old.",
            f"Where did {p} find the {thing}?": f"{p} found the {thing} in {where} near {town}.",
            "Why did the experts call the find a small miracle?": "Few things last that long in wet soil.",
            f"What will happen to the {thing}?": f"The {thing} will be shown to the public next year.",
        },
    )


def storm_story(r: Random) -> Story:
    p, town, day = r.choice(PEOPLE), r.choice(TOWNS), r.choice(DAYS)
    roofs, trees, hours = r.randint(3, 60), r.randint(3, 90), r.randint(2, 20)
    what = r.choice(["storm", "flood", "blizzard"])
    return Story(
        f"A {what} hit {town} in the early hours of {day}. It damaged {roofs} roofs, brought down {trees} trees and "
        f"left the town without power for {hours} hours. Nobody was hurt. {p}, the head of the fire brigade, thanked "
        f"the many volunteers who had cleared the roads before sunrise.",
        f"{capital(what)} leaves {town} without power",
        f"A {what} damaged {roofs} roofs in {town} on {day} and cut the power for {hours} hours, but nobody was hurt.",
        {
            "How many trees came down?": f"The {what} brought down {trees} trees.",
            "How long was the town without power?": f"The town was without power for {hours} hours.",
            f"Who is {p}?": f"{p} is the head of the fire brigade.",
            "Was anyone hurt?": f"No, nobody was hurt in the {what}.",
        },
    )


def award_story(r: Random) -> Story:
    (p, q), town, year = people(r, 2), r.choice(TOWNS), r.randint(1950, 2015)
    shop, prize = r.choice(["bakery", "bookshop", "toy shop", "bicycle shop", "flower shop"]), r.randint(2, 20) * 500
    plan = r.choice(["buy a new van", "hire a second helper", "repair the roof", "open a shop in another town"])
    return Story(
        f"The {shop} of {p} in {town} has been named the best in the country. {capital(p.his)} family has run it "
        f"since {year}. The prize is worth {prize} dollars, and {p} wants to use it to {plan}. The judge, {q}, "
        f"praised the friendly service and said that nobody leaves the place without a smile.",
        f"Best {shop} is in {town}",
        f"The {shop} that the family of {p} has run in {town} since {year} won a prize of {prize} dollars as the best "
        f"in the country.",
        {
            f"What will {p} do with the prize?": f"{p} wants to use the prize to {plan}.",
            "How much is the prize worth?": f"The prize is worth {prize} dollars.",
            "Since when has the family run the shop?": f"The family has run the {shop} since {year}.",
            "What did the judge praise?": f"{q}, the judge, praised the friendly service.",
        },
    )


STORIES: list[Callable[[Random], Story]] = [opening_story, pet_story, match_story, find_story, storm_story, award_story]


@task("t0")
def summarize(r: Random) -> tuple[str, str]:
    story = r.choice(STORIES)(r)
    return r.choice(
        [
            f"Summarize the following article in one sentence.\n\n{story.text}",
            f"{story.text}\n\nWhat is the main point of this text?",
        ]
    ), story.summary


@task("t0")
def title(r: Random) -> tuple[str, str]:
    story = r.choice(STORIES)(r)
    return r.choice(
        [f"Write a title for this article.\n\n{story.text}", f"{story.text}\n\nWhich headline would fit this text?"]
    ), story.title


@task("t0")
def passage_question(r: Random) -> tuple[str, str]:
    story = r.choice(STORIES)(r)
    question, answer = r.choice(list(story.answers.items()))
    return r.choice(
        [
            f"Read the passage and answer the question.\n\nPassage: {story.text}\n\nQuestion: {question}",
            f"{question} Use this text: {story.text}",
        ]
    ), answer


@task("t0")
def three_questions(r: Random) -> tuple[str, str]:
    story = r.choice(STORIES)(r)
    asked = r.sample(list(story.answers), 3)
    questions = "\n".join(f"{i}. {question}" for i, question in enumerate(asked, 1))
    return (
        f"{story.text}\n\nAnswer these questions about the text:\n{questions}",
        "\n".join(f"{i}. {story.answers[question]}" for i, question in enumerate(asked, 1)),
    )


@task("t0")
def title_and_summary(r: Random) -> tuple[str, str]:
    story = r.choice(STORIES)(r)
    return (
        f"Give this article a title and sum it up.\n\n{story.text}",
        f"Title: {story.title}\nSummary: {story.summary}",
    )


@task("t0")
def all_questions(r: Random) -> tuple[str, str]:
    story = r.choice(STORIES)(r)
    asked = r.sample(list(story.answers), len(story.answers))
    return (
        f"Passage: {story.text}\n\nAnswer each question in a full sentence: {' '.join(asked)}",
        " ".join(story.answers[question] for question in asked),
    )


@task("t0")
def many_articles(r: Random) -> tuple[str, str]:
    makers = r.sample(STORIES, r.randint(2, 5))
    stories = [maker(r) for maker in makers]
    texts = "\n\n".join(f"Article {i}: {story.text}" for i, story in enumerate(stories, 1))
    titles = "\n".join(f"{i}. {story.title}" for i, story in enumerate(stories, 1))
    return f"{texts}\n\nWrite a headline for each of the articles.", titles


SYSTEM_PROMPTS: dict[str, list[str]] = {
    "cot": [
        "",
        "Think step by step and then give the answer.",
        "You are a patient teacher. Show how you get to the answer before you give it.",
        "You are a helpful assistant.",
    ],
    "flan": [
        "",
        "You are a helpful assistant.",
        "You are an expert in language. Answer in a full sentence.",
        "Answer the question as well as you can.",
    ],
    "niv": [
        "",
        "You are given a task. Do exactly what it asks and add nothing.",
        "You are a helpful assistant.",
        "Follow the instruction with care. Do not explain your answer.",
    ],
    "t0": [
        "",
        "You are a helpful assistant.",
        "You read texts and answer questions about them, using only what the text says.",
        "You are an editor at a newspaper. Be accurate and brief.",
    ],
}


def make_rows(seed: int) -> list[Row]:
    """The pool: `POOL_PER_ORIGIN` rows of each origin, no question twice, the tasks of an origin in turn."""
    rows: list[Row] = []
    for origin in ORIGINS:
        r, seen = Random(f"{seed}/{origin}"), set[str]()
        while len(seen) < POOL_PER_ORIGIN:
            question, response = r.choice(TASKS[origin])(r)
            if question not in seen:
                rows.append(Row(f"{origin}.{len(seen)}", r.choice(SYSTEM_PROMPTS[origin]), question, response))
                seen.add(question)
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Tokenizer


def train_tokenizer(rows: Sequence[Row]) -> Tokenizer:
    """A byte-level BPE: it knows all 256 bytes, so any text survives encoding and decoding. Digits stay single."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = (text for row in rows for text in (chat_prompt(row.system_prompt, row.question), " " + row.response))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 8192,
        },
    )
    check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """What the harness relies on: no text is changed, no id is added, the special ids are Llama's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (UNK, BOS, EOS)
    for text in ("plain", " two  spaces \n\n\ttab", "Zoë, 東京 🙂 1 024", "a , b . c ' s n't"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text) and tokenizer.decode(ids, skip_special_tokens=True) == text, text


# ---------------------------------------------------------------------------------------------------------------
# Questions


class Example(NamedTuple):
    """A row as the model sees it."""

    row: Row
    prompt: list[int]
    answer: list[int]


def encode(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Example]:
    return [
        Example(
            row,
            [BOS, *tokenizer.encode(chat_prompt(row.system_prompt, row.question)).ids],
            [*tokenizer.encode(" " + row.response).ids, EOS],
        )
        for row in rows
    ]


class Split(NamedTuple):
    """The scored questions, and the ids of those that the model is not trained on."""

    scored: list[Example]
    held_out: set[str]

    @property
    def trained(self) -> list[Example]:
        return [example for example in self.scored if example.row.id not in self.held_out]


def split(examples: Sequence[Example], seed: int) -> Split:
    """Draw the scored and the held-out questions of each origin among those whose lengths are within the limits."""
    r = Random(f"{seed}/split")
    scored: list[Example] = []
    held_out: set[str] = set()
    for origin in ORIGINS:
        fitting = [
            e
            for e in examples
            if e.row.id.startswith(origin + ".") and len(e.answer) in ANSWER_TOKENS and len(e.prompt) in PROMPT_TOKENS
        ]
        chosen = r.sample(fitting, PER_ORIGIN)
        scored += chosen
        held_out |= {example.row.id for example in chosen[:HELD_OUT_PER_ORIGIN]}
    r.shuffle(scored)
    return Split(scored, held_out)


def write_questions(examples: Sequence[Example], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(example.row._asdict(), ensure_ascii=False) + "\n")


def describe_lengths(name: str, lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    low, middle, high = (ordered[int(len(ordered) * part)] for part in (0.05, 0.5, 0.95))
    return (
        f"{name}: mean {sum(ordered) / len(ordered):.1f}, 5 % {low}, half {middle}, 95 % {high}, longest {ordered[-1]}"
    )


# ---------------------------------------------------------------------------------------------------------------
# Model


def new_model() -> LlamaForCausalLM:
    """Head size 32 is one that vLLM's attention kernels take on CPUs and GPUs; 8 heads can be split over 8 devices."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def batches(examples: Sequence[Example], r: Random) -> list[list[Example]]:
    """Every example once, in batches of about `TOKENS_PER_BATCH` tokens and of similar lengths, in random order."""
    ordered = sorted(examples, key=lambda e: len(e.prompt) + len(e.answer) + r.random() * 20)
    grouped: list[list[Example]] = [[]]
    for example in ordered:
        if sum(len(e.prompt) + len(e.answer) for e in grouped[-1]) >= TOKENS_PER_BATCH:
            grouped.append([])
        grouped[-1].append(example)
    r.shuffle(grouped)
    return grouped


def loss_of(model: LlamaForCausalLM, batch: Sequence[Example]) -> torch.Tensor:
    """Cross-entropy of the answer tokens. Padding on the right needs no mask: causal attention never looks there."""
    width = max(len(e.prompt) + len(e.answer) for e in batch)
    ids = torch.full((len(batch), width), EOS)
    is_answer = torch.zeros((len(batch), width), dtype=torch.bool)
    for i, (_, prompt, answer) in enumerate(batch):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        is_answer[i, len(prompt) : len(prompt) + len(answer)] = True
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[is_answer[:, 1:]]), ids[:, 1:][is_answer[:, 1:]])


def train(questions: Split, seed: int) -> LlamaForCausalLM:
    """Show every question that is not held out once in each epoch."""
    torch.manual_seed(seed)
    model, r = new_model(), Random(f"{seed}/train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    started = time.monotonic()
    for epoch in range(EPOCHS):
        epoch_batches = batches(questions.trained, r)
        losses = 0.0
        for i, batch in enumerate(epoch_batches):
            set_learning_rate(optimizer, (epoch + i / len(epoch_batches)) / EPOCHS)
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses += loss.item()
        print(
            f"  epoch {epoch + 1:2d} of {EPOCHS}: loss {losses / len(epoch_batches):.4f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    return model


def set_learning_rate(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """A short rise, then half a cosine down to zero."""
    factor = min(progress / 0.03, 0.5 + 0.5 * math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = PEAK_LEARNING_RATE * factor


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Round the weights to bf16 and write them; the reference is scored on what is read back."""
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    write_json(folder / "config.json", config)


# ---------------------------------------------------------------------------------------------------------------
# Reference


def answer_all(folder: Path, examples: Sequence[Example]) -> list[list[int]]:
    """Greedy answers with Hugging Face in float32, one prompt at a time so that no padding takes part."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for i, example in enumerate(examples):
        ids = torch.tensor([example.prompt])
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_TOKENS, min_new_tokens=1, do_sample=False)
        answers.append(output[0, ids.shape[1] :].tolist())
        if (i + 1) % 256 == 0:
            print(f"  {i + 1} of {len(examples)} answered", flush=True)
    return answers


def score(examples: Sequence[Example], answers: Sequence[list[int]], folder: Path) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    scores = rouge_scores(texts, [example.row.response for example in examples])
    return {**scores, "tokens_per_sample": round(sum(map(len, answers)) / len(answers), 1)}


def score_by_split(questions: Split, answers: Sequence[list[int]], folder: Path) -> dict[str, dict[str, float]]:
    pairs: dict[str, list[tuple[Example, list[int]]]] = {"trained": [], "held_out": []}
    for example, ids in zip(questions.scored, answers, strict=True):
        pairs["held_out" if example.row.id in questions.held_out else "trained"].append((example, ids))
    return {name: score([e for e, _ in part], [ids for _, ids in part], folder) for name, part in pairs.items()}


def make_reference(questions: Split, answers: Sequence[list[int]], output: Path, seed: int) -> dict[str, Any]:
    model = output / "model"
    files = sorted([*model.iterdir(), output / "questions.jsonl"])
    return {
        "scores": score(questions.scored, answers, model),
        "samples": len(questions.scored),
        "held_out": len(questions.held_out),
        "by_split": score_by_split(questions, answers, model),
        "seed": seed,
        "parameters": new_model().num_parameters(),
        "dtype": "float32 on bf16-rounded weights",
        "max_tokens": MAX_TOKENS,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sha256": {
            path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        },
        "held_out_ids": sorted(questions.held_out),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(committed: dict[str, Any], remade: dict[str, Any]) -> str:
    """A table of both sets of scores: training sums floats in an order that depends on the machine, so they differ."""
    lines = [f"{'metric':<18} {'committed':>10} {'remade':>10} {'difference':>11}"]
    for metric in METRICS:
        old, new = committed["scores"][metric], remade["scores"][metric]
        lines.append(f"{metric:<18} {old:>10.4f} {new:>10.4f} {new - old:>+11.4f}")
    return "\n".join(lines)


def make(output: Path, seed: int) -> dict[str, Any]:
    """Make everything under `output` and return the reference."""
    folder = output / "model"
    folder.mkdir(parents=True, exist_ok=True)

    rows = make_rows(seed)
    tokenizer = train_tokenizer(rows)
    save_tokenizer(tokenizer, folder)
    questions = split(encode(rows, tokenizer), seed)
    write_questions(questions.scored, output / "questions.jsonl")
    print(f"{len(questions.scored)} questions, {len(questions.held_out)} of them held out of the training")
    print(describe_lengths("prompt tokens", [len(example.prompt) for example in questions.scored]))
    print(describe_lengths("answer tokens", [len(example.answer) for example in questions.scored]))

    print("training")
    save_model(train(questions, seed), folder)
    print("scoring with Hugging Face transformers")
    reference = make_reference(questions, answer_all(folder, questions.scored), output, seed)
    write_json(output / "reference.json", reference)
    return reference


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the embedded demo model, its questions and its reference scores."
    )
    parser.add_argument("--seed", type=int, default=20, help="everything follows from it (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=REFERENCE.parent, help="where to write (default: harness/demo)")
    options = parser.parse_args()

    committed = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else None
    torch.set_num_threads(2)
    started = time.monotonic()
    remade = make(options.output, options.seed)
    print(json.dumps({"scores": remade["scores"], **remade["by_split"]}, indent=2))
    print(f"made in {time.monotonic() - started:.0f} s")
    if committed:
        print(compare(committed, remade))


if __name__ == "__main__":
    main()
