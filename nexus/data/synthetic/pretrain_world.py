"""Pretraining tasks about numbers, small talk and described worlds: a scene, a sequence of tones, a motion."""

from __future__ import annotations

import random

from nexus.data.synthetic import words as w
from nexus.data.synthetic.pretrain_copy import Turns, distinct

PLACES = ("left", "right", "top", "bottom", "center", "top left", "top right", "bottom left", "bottom right")
SIZES = ("small", "big", "medium")
PITCHES = ("low", "high", "middle")
MOVES = ("left", "right", "up", "down")
OPPOSITES = (
    "hot cold|big small|up down|left right|high low|fast slow|old new|wet dry|open closed|full empty|light dark|"
    "early late|happy sad|hard soft|near far|thick thin|loud quiet|long short|strong weak|day night|true false|"
    "first last"
)
FACTS = (
    ("How many days has a week?", "7"), ("How many months has a year?", "12"), ("How many minutes has an hour?", "60"),
    ("What color is snow?", "white"), ("What color is grass?", "green"), ("What color is a ripe banana?", "yellow"),
    ("Is fire hot?", "yes"), ("Is ice hot?", "no"), ("Can a fish swim?", "yes"), ("Can a stone swim?", "no"),
    ("How many legs has a dog?", "4"), ("How many legs has a bird?", "2"), ("How many sides has a triangle?", "3"),
    ("How many sides has a square?", "4"), ("Which meal is in the morning?", "breakfast"),
    ("What do bees make?", "honey"),
    ("What falls from clouds?", "rain"), ("Where do fish live?", "in water"), ("What do we read?", "books"),
)  # fmt: skip


def _number(rng: random.Random, high: int = 99) -> int:
    return rng.randint(0, rng.choice((9, 20, high)))


def arithmetic(rng: random.Random, split: str) -> Turns:
    """Sums, differences and small products, written out as an equation.

    Args:
        rng: source of randomness.
        split: "train" or "eval"; a sum belongs to the split of its text.

    Returns:
        One to three turns.
    """

    def one(source: random.Random) -> str:
        sign = source.choice("++--*")
        if sign == "*":
            return f"{source.randint(0, 12)} * {source.randint(0, 12)}"
        a, b = _number(source), _number(source)
        return f"{max(a, b)} - {min(a, b)}" if sign == "-" else f"{a} + {b}"

    turns: Turns = []
    for _ in range(rng.randint(1, 3)):
        sum_ = w.draw(rng, split, one)
        a, sign, b = sum_.split()
        total = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        ask = rng.choice(("{}", "{} = ?", "What is {}?", "Calculate {}.", "Work out {}"))
        turns.append((ask.format(sum_), f"{sum_} = {total}"))
    return turns


def two_steps(rng: random.Random, split: str) -> Turns:
    """A start number and two changes; sometimes the first equation stands in think tags.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    start, plus, minus = (int(w.draw(rng, split, lambda r: str(_number(r, 60)))) for _ in range(3))
    middle = start + plus
    minus = min(minus, middle)
    first, second = f"{start} + {plus} = {middle}", f"{middle} - {minus} = {middle - minus}"
    ask = rng.choice((f"Start with {start}, add {plus}, take away {minus}.", f"{start} plus {plus} minus {minus}"))
    if rng.random() < 0.5:
        return [(f"{ask} Think first.", f"<think>{first}\n{second}</think>\n{middle - minus}")]
    return [(ask, f"{first}\n{second}")]


def numbers(rng: random.Random, split: str) -> Turns:
    """Largest, smallest, order, comparison and count of some numbers.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Two or three turns about one list.
    """
    items = [
        int(text)
        for text in distinct(rng, lambda: w.draw(rng, split, lambda r: str(_number(r, 999))), rng.randint(2, 5))
    ]
    a, b = items[0], items[1]
    asks: Turns = [
        ("Largest?", str(max(items))), ("Smallest?", str(min(items))), ("How many numbers?", str(len(items))),
        ("Sort them.", ", ".join(map(str, sorted(items)))), (f"Is {a} more than {b}?", "yes" if a > b else "no"),
        (f"Which is less, {a} or {b}?", str(min(a, b))),
    ]  # fmt: skip
    chosen = rng.sample(asks, rng.randint(2, 3))
    return [(f"Numbers: {', '.join(map(str, items))}. {chosen[0][0]}", chosen[0][1]), *chosen[1:]]


def sort_words(rng: random.Random, split: str) -> Turns:
    """Sort words by the alphabet or count one of them.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    items = distinct(rng, lambda: w.pick(rng, rng.choice((w.NOUNS, w.ANIMALS, w.FOODS)), split), rng.randint(2, 4))
    if rng.random() < 0.5:
        return [(f"Sort by the alphabet: {', '.join(items)}", ", ".join(sorted(items)))]
    counts = [rng.randint(1, 4) for _ in items]
    many = [item for item, count in zip(items, counts, strict=True) for _ in range(count)]
    rng.shuffle(many)
    return [(f"{' '.join(many)}\nHow many times {items[0]}?", str(counts[0]))]


def talk(rng: random.Random, split: str) -> Turns:
    """Small talk in which a name or a wish is remembered.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Two or three turns.
    """
    name, place, food = w.person(rng, split), w.city(rng, split), w.pick(rng, w.FOODS, split)
    hello = rng.choice(("Hi", "Hello", "Good morning", "Hey"))
    turns: Turns = [(f"{hello}, I am {name}.", f"{hello}, {name}! How can I help you?")]
    extra: Turns = [
        ("What is my name?", f"Your name is {name}."), (f"I live in {place}.", f"I hear {place} is nice."),
        (f"I like {food}.", f"{food.capitalize()} is tasty."), ("Thank you.", "You are welcome."),
        ("How are you?", "I am fine, thank you."), ("Goodbye.", f"Goodbye, {name}!"),
    ]  # fmt: skip
    return turns + rng.sample(extra, rng.randint(1, 2))


def facts(rng: random.Random, split: str) -> Turns:
    """Opposites, order of days and months, a few facts of daily life.

    Args:
        rng: source of randomness.
        split: "train" or "eval"; unused, the facts are the same everywhere.

    Returns:
        Two turns.
    """
    turns: Turns = []
    for _ in range(2):
        kind = rng.random()
        if kind < 0.3:
            pair = rng.choice(OPPOSITES.split("|")).split()
            rng.shuffle(pair)
            turns.append((rng.choice((f"Opposite of {pair[0]}?", f"What is the opposite of {pair[0]}?")), pair[1]))
        elif kind < 0.6:
            names = rng.choice((w.WEEKDAYS, w.MONTHS))
            place = rng.randrange(len(names) - 1)
            turns.append((f"What comes after {names[place]}?", names[place + 1]))
        elif kind < 0.8:
            turns.append(rng.choice(FACTS))
        else:
            pool = rng.choice((w.ANIMALS, w.FOODS, w.CITIES, w.COUNTRIES, w.JOBS))
            kinds = {w.ANIMALS: "animal", w.FOODS: "food", w.CITIES: "city", w.COUNTRIES: "country", w.JOBS: "job"}
            turns.append((f"Is {rng.choice(pool)} an animal, a food, a city, a country or a job?", kinds[pool]))
    return turns


def scene(rng: random.Random, split: str) -> Turns:
    """A described picture: shapes with color, size and place.

    Args:
        rng: source of randomness.
        split: "train" or "eval"; unused, a scene is drawn anew each time.

    Returns:
        Two to four turns about one scene.
    """
    count = rng.randint(1, 4)
    shapes = rng.sample(w.SHAPES, count)
    colors = [rng.choice(w.COLORS) for _ in shapes]
    sizes, places = [rng.choice(SIZES) for _ in shapes], rng.sample(PLACES, count)
    article = rng.random() < 0.5
    parts = [
        f"{'a ' if article else ''}{s} {c} {x} at the {p}"
        for s, c, x, p in zip(sizes, colors, shapes, places, strict=True)
    ]
    start = rng.choice(("The picture shows {}.", "Scene: {}.", "I see {}.", "There is {}.")).format(", ".join(parts))
    turns: Turns = []
    for _ in range(rng.randint(2, 4)):
        i = rng.randrange(count)
        color = rng.choice(w.COLORS) if rng.random() < 0.5 else colors[i]
        turns.append(
            rng.choice(
                (
                    (f"What color is the {shapes[i]}?", colors[i]), (f"Where is the {shapes[i]}?", places[i]),
                    (f"What is at the {places[i]}?", f"a {sizes[i]} {colors[i]} {shapes[i]}"),
                    (f"How big is the {shapes[i]}?", sizes[i]), ("How many shapes are there?", str(count)),
                    (f"Is there a {color} {shapes[i]}?", "yes" if color == colors[i] else "no"),
                    (f"How many {colors[i]} shapes?", str(colors.count(colors[i]))),
                    ("Describe it.", ", ".join(f"{c} {x}" for c, x in zip(colors, shapes, strict=True))),
                )
            )
        )  # fmt: skip
    return [(f"{start} {turns[0][0]}", turns[0][1]), *turns[1:]]


def tones(rng: random.Random, split: str) -> Turns:
    """A described sound: low, middle and high tones in order.

    Args:
        rng: source of randomness.
        split: "train" or "eval"; unused.

    Returns:
        Two or three turns about one sequence.
    """
    heard = [rng.choice(PITCHES) for _ in range(rng.randint(2, 5))]
    start = rng.choice(("Tones: {}.", "I hear {}.", "The sound goes {}.")).format(", ".join(heard))
    pitch = rng.choice(PITCHES)
    asks: Turns = [
        ("How many tones?", str(len(heard))), (f"How many {pitch} tones?", str(heard.count(pitch))),
        ("Which tone is first?", heard[0]), ("Which tone is last?", heard[-1]),
        ("Say the tones in order.", ", ".join(heard)),
        (f"Is there a {pitch} tone?", "yes" if pitch in heard else "no"), ("Second tone?", heard[1]),
        ("Backwards?", ", ".join(reversed(heard))),
    ]  # fmt: skip
    chosen = rng.sample(asks, rng.randint(2, 3))
    return [(f"{start} {chosen[0][0]}", chosen[0][1]), *chosen[1:]]


def motion(rng: random.Random, split: str) -> Turns:
    """A described clip: a colored shape that moves in one to three steps.

    Args:
        rng: source of randomness.
        split: "train" or "eval"; unused.

    Returns:
        Two or three turns about one motion.
    """
    color, shape = rng.choice(w.COLORS), rng.choice(w.SHAPES)
    steps = [rng.choice(MOVES) for _ in range(rng.randint(1, 3))]
    start = rng.choice(("A {0} {1} moves {2}.", "The {0} {1} goes {2}.", "Clip: {0} {1}, {2}.")).format(
        color, shape, ", then ".join(steps)
    )
    asks: Turns = [
        ("What moves?", f"the {color} {shape}"), ("Which way does it move first?", steps[0]),
        ("Which way does it move last?", steps[-1]), ("How many moves?", str(len(steps))), ("What color is it?", color),
        ("What shape is it?", shape), ("List the moves.", ", ".join(steps)),
        (f"Does it move {MOVES[0]}?", "yes" if MOVES[0] in steps else "no"),
    ]  # fmt: skip
    chosen = rng.sample(asks, rng.randint(2, 3))
    return [(f"{start} {chosen[0][0]}", chosen[0][1]), *chosen[1:]]
