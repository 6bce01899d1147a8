"""Pretraining tasks about JSON, forms, extraction from sentences and choosing among descriptions."""

from __future__ import annotations

import json
import random
from typing import Any

from nexus.data.synthetic import words as w
from nexus.data.synthetic.pretrain_copy import Turns, distinct, identifier, noun, value

Pair = tuple[Any, str]

# Things that a sign, a menu or a shelf may offer: words for the description and words with which people ask for it.
TOPICS: tuple[tuple[str, str], ...] = (
    ("bread and rolls|fresh bread|baked goods", "I want a loaf|I need something baked|buy bread"),
    ("haircuts|cut and style hair", "my hair is too long|I need a haircut|trim my hair"),
    ("shoe repair|mend shoes and boots", "my boot has a hole|fix my shoes|the sole came off"),
    ("bicycle rental|rent a bike", "I want to ride a bike|borrow a bicycle|cycle around town"),
    ("swimming pool|swimming lessons", "I want to swim|learn to swim|go for a dip"),
    ("dental care|look after teeth", "my tooth hurts|I need a dentist|check my teeth"),
    ("eye tests and glasses|check eyesight", "I cannot see well|I need new glasses|test my eyes"),
    ("post and parcels|send letters and packages", "mail this letter|ship a package|send a parcel"),
    ("train tickets|book seats on trains", "I want to travel by train|a rail ticket|a seat on the train"),
    ("hotel rooms|rooms for the night", "a place to sleep|I need a room tonight|stay the night"),
    ("taxi rides|cars with a driver", "take me to the station|I need a cab|a ride home"),
    ("flowers and plants|bouquets", "roses for my mother|I want a bouquet|buy tulips"),
    ("pet food and toys|things for animals", "food for my dog|a toy for the cat|feed my rabbit"),
    ("books and maps|books to borrow", "something to read|I want a novel|borrow a story"),
    ("language lessons|learn to speak a language", "teach me Spanish|I want to speak French|learn a language"),
    ("piano and guitar lessons|music lessons", "learn an instrument|teach me the piano|play guitar"),
    ("car repair|garage for cars", "my engine is broken|fix my car|the brakes squeak"),
    ("money exchange|change coins and notes", "swap dollars for euros|I need foreign money|change currency"),
    ("bank accounts|save and borrow money", "open an account|I want a loan|save money"),
    ("lost and found|lost things", "I lost my umbrella|where is my missing bag|I found a wallet"),
    ("weather maps|rain and sun ahead", "will it rain|how hot will it be|is it sunny tomorrow"),
    ("daily news|stories of the day", "what happened today|show headlines|read me the news"),
    ("cinema tickets|films tonight", "watch a movie|see a film|what is on at the cinema"),
    ("theater plays|plays on stage", "see actors on stage|watch a play|go to the theater"),
    ("museum tours|guided tours of art", "look at paintings|see old art|a guide for the museum"),
    ("garden tools|spades and rakes", "dig a hole|something to rake leaves|plant a tree"),
    ("paint and brushes|wall paint", "paint my kitchen|color the wall|I need a brush"),
    ("lamps and bulbs|lights for the home", "it is too dark here|a new bulb|switch on a light"),
    ("beds and sofas|furniture", "I need a chair|a new sofa|something to sit on"),
    ("phones and chargers|mobile phones", "my phone is broken|charge my phone|call a friend"),
    ("computers and printers|computer help", "print a page|my laptop is slow|I need a computer"),
    ("photo prints|print pictures", "a portrait of my family|print my photo|frame a picture"),
    ("coffee and cake|hot drinks", "an espresso|I am thirsty|a cup of tea"),
    ("pizza and pasta|Italian dishes", "I want spaghetti|a slice of pizza|dinner with pasta"),
    ("ice cream|frozen sweets", "something cold and sweet|a scoop of vanilla|a cone"),
    ("fish market|fresh fish", "buy salmon|I want tuna|seafood for dinner"),
    ("fruit and vegetables|greens and fruit", "buy apples|I need carrots|a bag of oranges"),
    ("medicine|pills and bandages", "I have a headache|something for a cough|a plaster for my finger"),
    ("fitness room|weights and running", "I want to exercise|lift weights|get fit"),
    ("yoga classes|stretch and relax", "stretch my back|calm down|relax my body"),
    ("clothes alterations|tailor", "my trousers are too long|shorten a dress|sew on a button"),
    ("laundry|wash clothes", "my shirt is dirty|clean my clothes|wash the sheets"),
    ("keys and locks|copy keys", "I am locked out|a second key|change the lock"),
    ("boat trips|tours on the water", "go out on the lake|see the harbor|sail around the bay"),
    ("ski rental|skis and sleds", "I want to ski|rent a sled|go down the snow"),
    ("tax advice|help with forms", "how much tax do I owe|fill in my tax form|tax questions"),
    ("jobs|find work", "I am looking for work|find me a job|open positions"),
    ("house sales|homes for sale", "buy a house|I want to move|a home with a garden"),
    ("baby care|watch small children", "someone to watch my son|a sitter for tonight|mind the baby"),
    ("alarms and timers|wake people up", "wake me at seven|remind me in an hour|start a timer"),
    ("calendar|dates and meetings", "plan a meeting|when am I free|add an appointment"),
    (
        "translation|turn text into other languages",
        "what does this mean in German|translate a letter|say it in Italian",
    ),
    ("measures|convert units", "how many feet is a mile|turn pounds into kilos|convert inches"),
    ("sums|calculate numbers", "add these numbers|what is the total|work out the sum"),
    ("songs|play music", "put on some jazz|play my favorite song|I want to hear music"),
    ("recipes|how to cook dishes", "how do I make soup|what can I cook|steps for a cake"),
    ("route planner|ways and directions", "how do I get there|the shortest way|directions to the park"),
    ("parking|park cars", "where can I leave my car|a parking spot|a place for the van"),
    ("stock prices|shares", "how is the stock doing|price of a share|buy shares"),
    ("notes|write things down", "write this down|keep a memo|save a note"),
)


def typed_value(rng: random.Random, split: str) -> Pair:
    """A JSON value with the text that a sentence uses for it.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        The value (str, int, float, bool or list of str) and its text.
    """
    kind = rng.random()
    if kind < 0.62:
        text = value(rng, split)
        while text.isdigit():
            text = value(rng, split)
        return text, text
    if kind < 0.82:
        number = rng.randint(0, 10 ** rng.randint(1, 4))
        return number, str(number)
    if kind < 0.87:
        decimal = round(rng.uniform(0, 100), rng.choice((1, 2)))
        return decimal, str(decimal)
    if kind < 0.94:
        flag = rng.random() < 0.5
        return flag, rng.choice(("yes", "true", "on") if flag else ("no", "false", "off"))
    items = distinct(rng, lambda: rng.choice(w.NOUNS), rng.randint(2, 3))
    return items, " and ".join(items)


def kind_name(rng: random.Random, item: Any) -> str:
    """How a form names the kind of a value.

    Args:
        rng: source of randomness.
        item: the JSON value.

    Returns:
        For instance "number" or "yes or no".
    """
    if isinstance(item, bool):
        return rng.choice(("yes or no", "flag", "true/false"))
    if isinstance(item, int | float):
        return rng.choice(("number", "count", "amount"))
    return "list" if isinstance(item, list) else rng.choice(("text", "word", "text"))


def record(rng: random.Random, split: str, low: int, high: int) -> list[tuple[str, Any, str]]:
    """Some attributes with their values.

    Args:
        rng: source of randomness.
        split: "train" or "eval".
        low: least number of attributes.
        high: greatest number.

    Returns:
        Triples of key, JSON value and text, keys distinct.
    """
    keys = distinct(rng, lambda: identifier(rng, split), rng.randint(low, high))
    return [(key, *typed_value(rng, split)) for key in keys]


def say(rng: random.Random, fields: list[tuple[str, Any, str]]) -> str:
    """A sentence that states the attributes.

    Args:
        rng: source of randomness.
        fields: triples of key, value and text.

    Returns:
        For instance "the red bag is Oslo, house size: 4, without a cup and with lamp drabo".
    """
    frames = (
        "{k} is {v}", "the {k} is {v}", "{k} {v}", "{v} as {k}", "{k}: {v}", "{v} for the {k}", "with {k} {v}",
        "with the {k} {v}", "set {k} to {v}", "a {k} of {v}",
    )  # fmt: skip
    numbers = ("{v} {k}", "for {v} {k}", "with {v} {k}")
    flags = {True: ("with {k}", "{k}, please", "and {k}"), False: ("without {k}", "no {k}", "not {k}")}
    one = rng.choice(frames)
    parts = []
    for key, item, text in fields:
        frame = one if rng.random() < 0.6 else rng.choice(frames)
        if isinstance(item, bool) and rng.random() < 0.6:
            frame = rng.choice(flags[item])
        elif isinstance(item, int | float) and rng.random() < 0.4:
            frame = rng.choice(numbers)
        parts.append(frame.format(k=key.replace("_", " ") if rng.random() < 0.8 else key, v=text))
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def _dump(fields: list[tuple[str, Any, str]]) -> str:
    return json.dumps({key: item for key, item, _ in fields}, ensure_ascii=False)


def write_json(rng: random.Random, split: str) -> Turns:
    """Write attributes that a sentence states as JSON, in order or only those that are asked for.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    fields = record(rng, split, 1, 4)
    if rng.random() < 0.35:
        lines = "\n".join(f"{key}: {text}" for key, _, text in fields)
        return [(f"{rng.choice(('Write as JSON:', 'To JSON:', 'JSON please:'))}\n{lines}", _dump(fields))]
    wanted = sorted(rng.sample(range(len(fields)), rng.randint(1, len(fields))))
    asked = [fields[index] for index in wanted]
    rng.shuffle(asked)
    keys = ", ".join(key for key, _, _ in asked)
    ask = rng.choice(
        ("Keys: {k}. Text: {t}.", "{t}. Give JSON with {k}.", "Write JSON with the keys {k} from: {t}", "{k}\n{t}")
    )
    return [(ask.format(k=keys, t=say(rng, fields)), _dump(asked))]


def form(rng: random.Random, split: str) -> Turns:
    """Fill a form with kinds from a request in free words; fields that are not stated stay out.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    fields = record(rng, split, 1, 4)
    stated = fields if rng.random() < 0.6 else sorted(rng.sample(fields, rng.randint(1, len(fields))), key=fields.index)
    told = list(stated)
    rng.shuffle(told)
    who = rng.choice(("Please fill the form: ", "I would like ", "Order for me: ", "Can you note ", ""))
    lines = rng.choice(("\n", "; ")).join(f"{key} ({kind_name(rng, item)})" for key, item, _ in fields)
    return [(f"Form:\n{lines}\n{who}{say(rng, told)}", _dump(stated))]


def read_json(rng: random.Random, split: str) -> Turns:
    """Read fields of JSON, nested fields and items of arrays.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One to three turns about one object.
    """
    fields = record(rng, split, 2, 4)
    data: dict[str, Any] = {key: item for key, item, _ in fields}
    if rng.random() < 0.3:
        data = {**data, identifier(rng, split): {key: item for key, item, _ in record(rng, split, 1, 2)}}
    turns: Turns = []
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(data))
        item, path = data[key], key
        if isinstance(item, dict):
            inner = rng.choice(list(item))
            item, path = item[inner], f"{key}.{inner}"
        shown = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        turns.append((rng.choice(("What is {}?", "Read {}.", "{}?", "Value of {}?")).format(path), shown))
    return [(json.dumps(data, ensure_ascii=False) + "\n" + turns[0][0], turns[0][1]), *turns[1:]]


def edit_json(rng: random.Random, split: str) -> Turns:
    """Add, remove, rename or change a key.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    fields = record(rng, split, 1, 3)
    data = {key: item for key, item, _ in fields}
    key, (item, text), fresh = rng.choice(list(data)), typed_value(rng, split), identifier(rng, split)
    kind = rng.random()
    before = json.dumps(data, ensure_ascii=False)
    if kind < 0.35:
        ask, data[fresh] = rng.choice((f"Add {fresh} with {text}.", f"Add the key {fresh}: {text}")), item
    elif kind < 0.6:
        ask, data[key] = rng.choice((f"Change {key} to {text}.", f"Set {key} to {text}.")), item
    elif kind < 0.8:
        ask, data = f"Rename {key} to {fresh}.", {fresh if k == key else k: v for k, v in data.items()}
    else:
        ask, data = f"Remove {key}.", {k: v for k, v in data.items() if k != key}
    return [(f"{before}\n{ask}", json.dumps(data, ensure_ascii=False))]


def table_json(rng: random.Random, split: str) -> Turns:
    """Several records with the same attributes: as JSON lines, or a question about one of them.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One or two turns.
    """
    keys = distinct(rng, lambda: rng.choice(w.NOUNS), rng.randint(1, 2))
    owners = distinct(rng, lambda: w.person(rng, split), rng.randint(2, 3))
    cells = [[value(rng, split) for _ in keys] for _ in owners]
    told = ". ".join(
        f"{owner}: " + ", ".join(f"{key} {cell}" for key, cell in zip(keys, row, strict=True))
        for owner, row in zip(owners, cells, strict=True)
    )
    place, column = rng.randrange(len(owners)), rng.randrange(len(keys))
    first = (f"{told}. What is the {keys[column]} of {owners[place]}?", cells[place][column])
    if rng.random() < 0.5:
        return [first, (f"And which one has {keys[column]} {cells[place][column]}?", owners[place])]
    lines = "\n".join(
        json.dumps({"owner": owner} | dict(zip(keys, row, strict=True)), ensure_ascii=False)
        for owner, row in zip(owners, cells, strict=True)
    )
    return [(f"{told}. One JSON line each.", lines)]


def _offer(rng: random.Random, topic: tuple[str, str]) -> tuple[str, str]:
    """What an entry offers and how someone asks for it: a topic in other words, or the same two words."""
    if rng.random() < 0.5:
        return rng.choice(topic[0].split("|")), rng.choice(topic[1].split("|"))
    verb, thing = rng.choice(rng.choice((w.VERBS, w.OFFICE_VERBS))), noun(rng)
    if rng.random() < 0.4:
        thing = f"{rng.choice(rng.choice((w.ADJECTIVES, w.OFFICE_NOUNS)))} {thing}"
    frames = ("help me {v} the {n}", "{v} my {n}", "I want to {v} a {n}", "can you {v} a {n}", "now {v} the {n}")
    return f"{verb} {rng.choice(('a ', 'the ', ''))}{thing}", rng.choice(frames).format(v=verb, n=thing)


def choose(rng: random.Random, split: str) -> Turns:
    """Pick the entry of a list of short descriptions that fits a request, or say that none does.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One or two turns about one list.
    """
    count = rng.randint(2, 4)
    offers, answers = zip(*(_offer(rng, topic) for topic in rng.sample(TOPICS, count + 1)), strict=True)
    labels = distinct(rng, lambda: identifier(rng, split), count)
    between = rng.choice((": ", " - ", " = ", " sells ", " (", " offers "))
    entries = "\n".join(f"{label}{between}{offer}" for label, offer in zip(labels, offers, strict=False))
    title = rng.choice(("Shops:", "Signs:", "Menu:", "Doors:", "Desks:", "Which one fits?"))
    turns: Turns = []
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(count + 1) if rng.random() < 0.4 else rng.randrange(count)
        turns.append((answers[place], labels[place] if place < count else "none"))
    return [(f"{title}\n{entries}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def counter(rng: random.Random, split: str) -> Turns:
    """Pick the desk that fits a request and fill its slip: choosing and extracting together.

    Two requests give two slips; a request that no desk serves gives "no desk".

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        One turn.
    """
    count = rng.randint(1, 3)
    offers, answers = zip(*(_offer(rng, topic) for topic in rng.sample(TOPICS, count + 1)), strict=True)
    labels = distinct(rng, lambda: identifier(rng, split), count + 1)
    slips = [record(rng, split, 1, 3) for _ in labels]
    lines = "\n".join(
        f"{label}: {offer}; asks for {', '.join(key for key, _, _ in slip)}"
        for label, offer, slip in zip(labels[:count], offers, slips, strict=False)
    )
    places = [count] if rng.random() < 0.12 else rng.sample(range(count), 2 if count > 1 and rng.random() < 0.2 else 1)
    requests, filled = [], []
    for place in places:
        told = list(slips[place])
        if rng.random() < 0.4:
            rng.shuffle(told)
        requests.append(f"{answers[place]}, {say(rng, told)}")
        filled.append(
            json.dumps({"desk": labels[place]} | {key: item for key, item, _ in slips[place]}, ensure_ascii=False)
        )
    answer = "no desk" if places == [count] else "\n".join(filled)
    return [(f"Desks:\n{lines}\n{'. Then '.join(requests)}", answer)]


def extract(rng: random.Random, split: str) -> Turns:
    """Answer short questions about a sentence that states some facts in ordinary words.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        Two or three turns about one text.
    """
    who, place, when = w.person(rng, split), w.city(rng, split), rng.choice((w.date(rng, split), w.clock(rng, split)))
    thing, number, other = rng.choice(w.NOUNS), str(rng.randint(2, 999)), w.person(rng, split)
    to = w.city(rng, split)
    frames: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
        (f"{who} lives in {place} and pays {number} a month.",
         (("Who?", who), ("Where?", place), ("How much?", number))),
        (f"Book {number} seats from {place} to {to} on {when} for {who}.",
         (("From where?", place), ("To where?", to), ("For whom?", who), ("How many seats?", number), ("When?", when))),
        (f"Remind {who} at {when} to bring the {thing}.", (("Whom?", who), ("When?", when), ("What to bring?", thing))),
        (f"{who} met {other} in {place}.", ((f"Who met {other}?", who), ("Where did they meet?", place))),
        (f"{who} bought {number} {thing}s from {other} in {place}.",
         (("How many?", number), ("Who sold them?", other), ("Who bought them?", who), ("Where?", place))),
        (f"Send the {thing} to {who} in {place} before {when}.",
         (("Who gets it?", who), ("Where to?", place), ("What?", thing))),
        (f"The {thing} costs {number} in {place} but nothing in {to}.", (("Where is it free?", to), ("Cost?", number))),
    )  # fmt: skip
    text, questions = rng.choice(frames)
    chosen = rng.sample(questions, min(len(questions), rng.randint(2, 3)))
    return [(f"{text} {chosen[0][0]}", chosen[0][1]), *chosen[1:]]
