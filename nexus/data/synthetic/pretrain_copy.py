"""Pretraining tasks about copying and looking up: the skill on which calls with unseen names rest.

Each task is a function of a random source and a split; it returns the turns of one short chat as pairs of a question
and its answer. Several questions about one text give more answer tokens for the same prompt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from nexus.data.synthetic import words as w

Turns = list[tuple[str, str]]
# Tokens of the chat template with an end of their own; a model that never wrote them cannot learn to with an adapter.
MARKERS = ("think", "tools", "tool_call", "tool_response", "answer")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def value(rng: random.Random, split: str) -> str:
    """A value of any kind: a name, a code, a number, a date, a phrase.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        The value as text; the whole of it, or each invented part, is in the split.
    """
    kind = rng.random()
    if kind < 0.30:
        return w.invented_name(rng, split, letters=0.35)
    if kind < 0.42:
        return w.person(rng, split)
    if kind < 0.52:
        return w.city(rng, split)
    if kind < 0.60:
        return w.code(rng, split)
    if kind < 0.66:
        return w.email(rng, split)
    if kind < 0.76:
        return w.draw(rng, split, lambda r: str(r.randint(0, 10 ** r.randint(1, 5))))
    if kind < 0.80:
        return w.date(rng, split)
    if kind < 0.83:
        return w.clock(rng, split)
    if kind < 0.86:
        return w.company(rng, split)
    return w.phrase(rng, split)


def noun(rng: random.Random) -> str:
    """A common noun, of the house or of the office; now and then another word that is used as one.

    Args:
        rng: source of randomness.

    Returns:
        The word; nouns are no values and belong to both splits.
    """
    return rng.choice(rng.choice((w.NOUNS, w.OFFICE_NOUNS, w.NOUNS, w.OFFICE_NOUNS, w.COMMON)))


def identifier(rng: random.Random, split: str) -> str:
    """A key such as `house_color`, `drabo` or `find_plin`.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Lower-case words joined by underscores; invented words are in the split.
    """
    kind = rng.random()
    if kind < 0.35:
        return noun(rng)
    if kind < 0.5:
        return w.invented_name(rng, split)
    first = rng.choice(rng.choice((w.NOUNS, w.OFFICE_NOUNS, w.VERBS, w.OFFICE_VERBS, w.ADJECTIVES, w.COMMON)))
    second = noun(rng) if rng.random() < 0.7 else w.invented_name(rng, split)
    return f"{first}_{second}"


def distinct(rng: random.Random, make: Callable[[], str], count: int) -> list[str]:
    """Distinct items.

    Args:
        rng: source of randomness; used for the order.
        make: makes one item.
        count: how many.

    Returns:
        `count` different items.
    """
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    items = list(found)
    rng.shuffle(items)
    return items


def _items(rng: random.Random, split: str, low: int, high: int) -> list[str]:
    count = rng.randint(low, high)
    if rng.random() < 0.4:
        return distinct(rng, lambda: w.invented_name(rng, split, letters=0.4), count)
    if rng.random() < 0.5:
        change = rng.choice((str, str, str.title))
        return distinct(rng, lambda: change(noun(rng)), count)
    return distinct(rng, lambda: value(rng, split), count)


def repeat(rng: random.Random, split: str) -> Turns:
    """Say a text again.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One or two turns.
    """
    turns = []
    for _ in range(rng.randint(2, 4)):
        text = " ".join(_items(rng, split, 1, 6))
        ask = rng.choice(
            (
                "Repeat: {}", "Say {}", "Write this again: {}", "Copy the words: {}", "Echo {}", 'Write "{}".',
                "Repeat after me: {}", "Type {} please", "Copy exactly: {}", "{}\nSay that again.", "{}", "{}",
            )
        )  # fmt: skip
        turns.append((ask.format(text), text))
    return turns


def echo(rng: random.Random, split: str) -> Turns:
    """Strings said back without a word around them, at times twice: the densest copying there is.

    Many strings have no space inside, so the next token follows from the last one alone, which is learned first.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Two to four turns.
    """
    turns: Turns = []
    for _ in range(rng.randint(2, 3)):
        between = rng.choice(("", "", "", "-", ".", ", ", " ", "_", "/"))
        text = between.join(w.invented_name(rng, split, letters=0.6) for _ in range(rng.randint(2, 7)))
        turns.extend([(text, text)] * rng.choice((1, 1, 2)))
    return turns


def positions(rng: random.Random, split: str) -> Turns:
    """Items of a list by position, neighbors, reversed, as JSON.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Two to four turns about one list.
    """
    items = _items(rng, split, 3, 6)
    start = rng.choice(("List: {}. ", "Here are some words: {}. ", "Given {}. ", "Items: {}\n")).format(
        ", ".join(items)
    )
    turns: Turns = []
    for _ in range(rng.randint(2, 4)):
        place = rng.randrange(len(items))
        kind = rng.random()
        if kind < 0.3:
            turn = (rng.choice((f"What is the {ORDINALS[place]} item?", f"Item number {place + 1}?")), items[place])
        elif kind < 0.55 and place + 1 < len(items):
            ask = rng.choice(("What comes after {}?", "Which item follows {}?", "What is next after {}?"))
            turn = (ask.format(items[place]), items[place + 1])
        elif kind < 0.7 and place:
            turn = (f"What comes before {items[place]}?", items[place - 1])
        elif kind < 0.78:
            turn = ("What is the last item?", items[-1])
        elif kind < 0.86:
            turn = ("Write the list as JSON.", json.dumps(items))
        elif kind < 0.92:
            turn = (f"Leave out {items[place]}.", ", ".join(items[:place] + items[place + 1 :]))
        elif kind < 0.96:
            turn = ("How many items are there?", str(len(items)))
        else:
            turn = ("Write the list backwards.", ", ".join(reversed(items)))
        turns.append(turn)
    return [(start + turns[0][0], turns[0][1]), *turns[1:]]


def member(rng: random.Random, split: str) -> Turns:
    """Whether a list has a word, or a pair of words; most pairs that it has not are made of words that it has.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Four to seven turns about one list.
    """

    def word() -> str:
        return noun(rng) if rng.random() < 0.7 else w.invented_name(rng, split)

    pools = (w.VERBS, w.OFFICE_VERBS, w.ADJECTIVES, w.OFFICE_NOUNS)
    firsts = distinct(rng, lambda: rng.choice(rng.choice(pools)), rng.randint(2, 4))
    seconds = distinct(rng, word, rng.randint(2, 4))
    pairs = rng.random() < 0.75
    every = [(one, two) for one in firsts for two in seconds] if pairs else [("", two) for two in seconds]
    items = rng.sample(every, max(1, len(every) // 2 if pairs else len(every) - 1))
    joint = rng.choice(" _")
    between = rng.choice((", ", "\n", "; ", " and "))
    title = rng.choice(("List: ", "We have ", "Here: ", "On the shelf:\n", "Known:\n", ""))
    start = title + between.join(joint.join(filter(None, item)) for item in items)
    ask = rng.choice(("{}?", "Is there {}?", "Do we have {}?", "Can you find the {}?", "{} in the list?"))
    turns: Turns = []
    for _ in range(rng.randint(4, 7)):
        kind = rng.random()
        if kind < 0.5:
            item = rng.choice(items)
        elif kind < 0.8 or not pairs:
            item = rng.choice([item for item in every if item not in items])
        else:
            item = rng.choice([(rng.choice(firsts), word()), (rng.choice(rng.choice(pools)), rng.choice(seconds))])
        turns.append((ask.format(" ".join(filter(None, item))), "yes" if item in items else "no"))
    return [(f"{start}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def lookup(rng: random.Random, split: str) -> Turns:
    """A small table of names and values, asked in both directions.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Two to four turns about one table.
    """
    count = rng.randint(2, 5)
    keys = distinct(rng, lambda: identifier(rng, split) if rng.random() < 0.5 else w.person(rng, split), count)
    values = distinct(rng, lambda: value(rng, split), count)
    between = rng.choice((": ", " = ", " - ", " -> ", " is "))
    table = rng.choice(("\n", "; ", ", ")).join(f"{k}{between}{v}" for k, v in zip(keys, values, strict=True))
    turns: Turns = []
    for _ in range(rng.randint(2, 4)):
        place = rng.randrange(count)
        if rng.random() < 0.7:
            ask = rng.choice(("{}?", "What is {}?", "Give me the value of {}.", "What belongs to {}?", "Look up {}."))
            turns.append((ask.format(keys[place]), values[place]))
        else:
            ask = rng.choice(("Who or what has {}?", "Which one is {}?", "Which key holds {}?"))
            turns.append((ask.format(values[place]), keys[place]))
    return [(f"{table}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def quoted(rng: random.Random, split: str) -> Turns:
    """What stands in quotes or brackets in a sentence.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    text = value(rng, split) if rng.random() < 0.4 else " ".join(_items(rng, split, 2, 4))
    who, thing = w.person(rng, split), noun(rng)
    frames = (
        (f'{who} wrote "{text}" on the {thing}. What did {who} write?', text),
        (f'The {thing} says "{text}". What does it say?', text),
        (f"{who} sent the message: {text}. What was the message?", text),
        (f"Send {who} a note saying {text}. Who gets the note?", who),
        (f"Tell {who} that {text}. What should I tell?", text),
        (f"The {thing} of {who} is named {text}. What is its name?", text),
        (f"Put {text} on my {thing} list. What shall I put on the list?", text),
        (f"The word in brackets is ({text}). Which word?", text),
    )
    return [rng.choice(frames)]


def template(rng: random.Random, split: str) -> Turns:
    """Fill the slots of a sentence.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    slots = distinct(rng, lambda: rng.choice(w.NOUNS), 2)
    values = [value(rng, split), value(rng, split)]
    frame = rng.choice(
        (
            "{%s} and {%s}",
            "Dear {%s}, see you at {%s}.",
            "{%s}: {%s}",
            "The {%s} is in {%s}.",
            "<{%s}> {%s}",
            "{%s}/{%s}",
        )
    ) % tuple(slots)
    given = ", ".join(f"{slot} = {text}" for slot, text in zip(slots, values, strict=True))
    answer = frame
    for slot, text in zip(slots, values, strict=True):
        answer = answer.replace("{" + slot + "}", text)
    return [(f"Fill in: {frame}\n{given}", answer)]


def marked(rng: random.Random, split: str) -> Turns:
    """Put something between two markers, or read what stands between them.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One to three turns.
    """
    turns: Turns = []
    for _ in range(rng.randint(1, 3)):
        first, second = rng.sample(MARKERS, 2)
        text, other = value(rng, split), value(rng, split)
        one, two = f"<{first}>{text}</{first}>", f"<{second}>{other}</{second}>"
        kind = rng.random()
        if kind < 0.3:
            ask = rng.choice(("Put {t} between <{m}> and </{m}>.", "{t} in <{m}>", "Mark {t} with <{m}>."))
            turns.append((ask.format(t=text, m=first), one))
        elif kind < 0.5:
            between = rng.choice(("", "\n"))
            ask = rng.choice(("{t} in <{m}>, {o} in <{n}>", "First <{m}> with {t}, then <{n}> with {o}"))
            turns.append((ask.format(t=text, m=first, o=other, n=second), f"{one}{between}{two}"))
        elif kind < 0.7:
            turns.append((f"{one}\n{two}\nWhat stands in <{first}>?", text))
        elif kind < 0.85:
            turns.append((f"Repeat: {one}", one))
        else:
            turns.append((f"{one} with <{second}> in place of <{first}>", f"<{second}>{text}</{second}>"))
    return turns
