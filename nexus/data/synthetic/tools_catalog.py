"""The functions that the tools generator offers: verbs x objects x argument sets of fourteen domains.

Training and evaluation functions are disjoint by construction. Every domain keeps the last two of its objects for the
evaluation split, so no verb-object pair is shared, and the *set* of argument names of a function belongs to one split
by the same stable hash that splits the values (`words.split_of`). Verbs, their synonyms and single argument names are
shared: that is the language a model is meant to learn; what is measured is a new function with new values.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nexus.data.synthetic.words import in_split, of_split

EVAL_OBJECTS_PER_DOMAIN = 2
OPTIONAL_SHARE = 0.3

#: Verb -> other ways to say it. No way of saying belongs to two verbs (a test checks it).
VERBS: dict[str, tuple[str, ...]] = {
    "add": ("insert",),
    "approve": ("accept",),
    "archive": ("put away",),
    "assign": ("hand over",),
    "book": ("reserve",),
    "cancel": ("call off",),
    "check": ("inspect",),
    "clean": ("tidy up",),
    "compare": (),
    "copy": ("duplicate",),
    "create": ("make", "set up"),
    "delete": ("remove", "erase"),
    "deliver": ("bring",),
    "download": (),
    "export": (),
    "find": ("look up", "search for"),
    "log": ("record", "note down"),
    "move": ("relocate",),
    "order": ("buy", "purchase"),
    "pay": ("settle",),
    "plan": ("prepare",),
    "play": (),
    "print": (),
    "rate": ("grade",),
    "rename": (),
    "rent": ("hire",),
    "repair": ("fix",),
    "report": (),
    "schedule": ("arrange",),
    "sell": (),
    "send": ("dispatch",),
    "share": ("pass on",),
    "start": ("begin", "turn on"),
    "stop": ("end", "turn off"),
    "track": ("follow",),
    "translate": (),
    "update": ("change", "modify"),
    "verify": ("confirm",),
    "water": (),
}


@dataclass(frozen=True)
class Argument:
    """One argument as the catalog knows it, without the function that it belongs to.

    Attributes:
        name: as in the schema, for instance `order_id`.
        kind: what fills it: city, country, person, code, title, email, date, integer, number, boolean, enum, items.
        cues: how a request mentions it, with `{v}` for the value; for a boolean the two wordings (true, false).
        low: least value of a number.
        high: greatest value of a number.
        options: all words of an enum, of both splits.
    """

    name: str
    kind: str
    cues: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    options: tuple[str, ...] = ()

    @property
    def spoken(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Parameter:
    """One argument of one function.

    Attributes:
        argument: its meaning, kind and cues.
        required: whether a call must have it.
        options: the words of an enum, all of the function's split.
    """

    argument: Argument
    required: bool
    options: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        kind = self.argument.kind
        if kind in ("integer", "number", "boolean"):
            return {"type": kind}
        if kind == "items":
            return {"type": "array", "items": {"type": "string"}}
        if kind == "enum":
            return {"type": "string", "enum": list(self.options)}
        if kind in ("date", "email"):
            return {"type": "string", "format": kind}
        return {"type": "string"}


@dataclass(frozen=True)
class Function:
    """One function of the catalog.

    Attributes:
        name: `verb_object`.
        verb: key of `VERBS`.
        noun: the object in words.
        domain: key of `DOMAINS`.
        description: two to five words.
        parameters: in signature order, required ones first.
    """

    name: str
    verb: str
    noun: str
    domain: str
    description: str
    parameters: tuple[Parameter, ...]

    @property
    def argument_names(self) -> frozenset[str]:
        """Names of all arguments."""
        return frozenset(p.argument.name for p in self.parameters)

    def schema(self) -> dict[str, Any]:
        """The tool in the form that chat templates take."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {p.argument.name: p.schema() for p in self.parameters},
                    "required": [p.argument.name for p in self.parameters if p.required],
                },
            },
        }


_TEXTS: list[tuple[str, str, tuple[str, ...]]] = [
    ("city", "city", ("in {v}", "in the city of {v}", "in the city {v}")),
    ("place", "city", ("at {v}", "at the place {v}")),
    ("country", "country", ("in {v}", "in the country {v}")),
    ("origin", "city", ("from {v}", "with origin {v}")),
    ("destination", "city", ("to {v}", "with destination {v}")),
    ("guest", "person", ("for {v}", "for the guest {v}")),
    ("customer", "person", ("for {v}", "for the customer {v}")),
    ("patient", "person", ("for {v}", "for the patient {v}")),
    ("student", "person", ("for {v}", "for the student {v}")),
    ("recipient", "person", ("to {v}", "to the recipient {v}")),
    ("sender", "person", ("from {v}", "from the sender {v}")),
    ("author", "person", ("by {v}", "by the author {v}")),
    ("artist", "person", ("by {v}", "by the artist {v}")),
    ("teacher", "person", ("with {v}", "with the teacher {v}")),
    ("owner", "person", ("owned by {v}", "for the owner {v}")),
    ("title", "title", ("called {v}", "titled {v}", "with the title {v}")),
    ("topic", "title", ("about {v}", "on the topic {v}")),
    ("label", "title", ("labeled {v}", "with the label {v}")),
    ("project", "title", ("in the project {v}", "for the project {v}")),
    ("folder", "title", ("in the folder {v}", "from the folder {v}")),
    ("room", "title", ("in the room {v}", "for the room {v}")),
    ("code", "code", ("with code {v}", "using the code {v}")),
    ("order_id", "code", ("with order id {v}", "for order id {v}")),
    ("user_id", "code", ("for user id {v}", "with user id {v}")),
    ("account", "code", ("on account {v}", "for account {v}")),
    ("serial", "code", ("with serial {v}", "serial {v}")),
    ("email", "email", ("with the email {v}", "using the email {v}")),
    ("contact", "email", ("with {v} as contact", "with the contact {v}")),
    ("date", "date", ("on {v}", "for the date {v}")),
    ("start_date", "date", ("starting on {v}", "with start date {v}")),
    ("end_date", "date", ("until {v}", "with end date {v}")),
    ("due_date", "date", ("due on {v}", "with due date {v}")),
]
_NUMBERS: list[tuple[str, str, int, int, tuple[str, ...]]] = [
    ("guests", "integer", 2, 60, ("for {v} guests", "with {v} guests")),
    ("nights", "integer", 2, 60, ("for {v} nights", "staying {v} nights")),
    ("days", "integer", 2, 90, ("for {v} days", "over {v} days")),
    ("hours", "integer", 2, 60, ("for {v} hours", "lasting {v} hours")),
    ("minutes", "integer", 2, 90, ("for {v} minutes", "lasting {v} minutes")),
    ("quantity", "integer", 2, 400, ("with quantity {v}", "in a quantity of {v}")),
    ("copies", "integer", 2, 90, ("with {v} copies", "in {v} copies")),
    ("seats", "integer", 2, 90, ("with {v} seats", "having {v} seats")),
    ("page", "integer", 2, 900, ("on page {v}", "at page {v}")),
    ("floor", "integer", 2, 60, ("on floor {v}", "for floor {v}")),
    ("limit", "integer", 2, 90, ("with a limit of {v}", "with limit {v}")),
    ("volume", "integer", 2, 99, ("at volume {v}", "with volume {v}")),
    ("age", "integer", 2, 90, ("of age {v}", "with age {v}")),
    ("score", "integer", 2, 99, ("with a score of {v}", "with score {v}")),
    ("price", "number", 2, 900, ("at a price of {v}", "for the price {v}")),
    ("budget", "number", 20, 900, ("with a budget of {v}", "on a budget of {v}")),
    ("amount", "number", 2, 900, ("with the amount {v}", "for an amount of {v}")),
    ("weight", "number", 2, 99, ("with a weight of {v}", "with weight {v}")),
    ("distance", "number", 2, 99, ("within a distance of {v}", "with distance {v}")),
    ("temperature", "number", 2, 99, ("at a temperature of {v}", "with temperature {v}")),
    ("width", "number", 2, 99, ("with a width of {v}", "with width {v}")),
]
_ENUMS: list[tuple[str, str, str]] = [
    ("color", "in {v}", "red green black brown pink amber teal violet silver blue white gray lime"),
    ("size", "in {v} size", "small medium tiny huge wide mini slim large compact giant regular"),
    ("priority", "with {v} priority", "low medium high urgent normal minor routine critical top"),
    ("format", "as {v}", "pdf csv html text markdown yaml json xml excel zip png"),
    ("class", "in {v} class", "business first standard deluxe luxury economy premium basic budget classic"),
    ("genre", "of the genre {v}", "rock jazz pop folk blues disco soul opera metal classical techno"),
    ("status", "with status {v}", "open pending active done blocked draft final paused lost new closed ready"),
    ("category", "in the category {v}", "sports news science health history nature fashion food art comedy"),
    ("material", "of the material {v}", "wood steel paper leather stone copper wool glass cotton plastic"),
    ("channel", "by {v}", "chat letter radio fax post phone web app video sms"),
    ("level", "at {v} level", "advanced master trainee beginner expert novice junior senior"),
    ("flavor", "with {v} flavor", "vanilla lemon mint cherry ginger coconut almond honey mango peach"),
    ("shape", "in {v} shape", "round square oval curved straight star flat hexagon diamond"),
]
_LISTS: list[tuple[str, str]] = [
    ("tags", "with tags {v}"), ("items", "with items {v}"), ("members", "with members {v}"),
    ("keywords", "with keywords {v}"), ("extras", "with extras {v}"), ("parts", "with parts {v}"),
]  # fmt: skip
_FLAGS = ("breakfast", "reminder", "receipt", "backup", "subtitles", "wrapping", "delivery")


def _arguments() -> dict[str, Argument]:
    found = [Argument(name, kind, cues) for name, kind, cues in _TEXTS]
    found += [Argument(name, kind, cues, low, high) for name, kind, low, high, cues in _NUMBERS]
    found += [
        Argument(name, "enum", (cue, f"with the {name} {{v}}"), options=tuple(words.split()))
        for name, cue, words in _ENUMS
    ]
    found += [Argument(name, "items", (cue, f"with the {name} {{v}}")) for name, cue in _LISTS]
    found += [Argument(name, "boolean", (f"with {name}", f"without {name}")) for name in _FLAGS]
    return {argument.name: argument for argument in found}


ARGUMENTS = _arguments()


@dataclass(frozen=True)
class Domain:
    """Verbs, objects and arguments that go together.

    Attributes:
        verbs: keys of `VERBS`.
        objects: nouns; the last `EVAL_OBJECTS_PER_DOMAIN` belong to the evaluation split.
        arguments: keys of `ARGUMENTS`.
    """

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    arguments: tuple[str, ...]

    def objects_of(self, split: str) -> tuple[str, ...]:
        """The objects of a split, "train" or "eval"."""
        cut = len(self.objects) - EVAL_OBJECTS_PER_DOMAIN
        return self.objects[:cut] if split == "train" else self.objects[cut:]


def _domain(verbs: str, objects: str, arguments: str) -> Domain:
    return Domain(tuple(verbs.split()), tuple(o.strip() for o in objects.split(",")), tuple(arguments.split()))


DOMAINS: dict[str, Domain] = {
    "travel": _domain(
        "book cancel find update compare", "hotel, flight, train, cruise, bus ride, hostel, ferry, airport taxi",
        "city origin destination date nights guests class breakfast budget country guest"),
    "dining": _domain(
        "order cancel find deliver rate", "pizza, dinner, salad, coffee, birthday cake, sandwich, lunch box, dessert",
        "place customer size extras quantity flavor date price delivery code"),
    "calendar": _domain(
        "schedule cancel move create find", "meeting, event, interview, workshop, call, seminar, appointment, review",
        "title date minutes room members email reminder place topic"),
    "messages": _domain(
        "send delete find share archive", "message, letter, invitation, note, reply, voice memo, postcard, newsletter",
        "recipient sender topic priority channel date contact label limit"),
    "music": _domain(
        "play find add download rate", "song, album, playlist, podcast, concert, audio book, melody, soundtrack",
        "title artist genre volume minutes tags limit subtitles quantity"),
    "files": _domain(
        "copy delete move rename export", "file, document, spreadsheet, image, folder, video, backup copy, database",
        "title folder format owner tags date backup label page"),
    "home": _domain(
        "start stop check schedule repair", "heater, lamp, dishwasher, alarm, fan, oven, robot vacuum, sprinkler",
        "room temperature minutes color hours floor reminder serial days"),
    "shop": _domain(
        "order sell find track compare", "laptop, chair, jacket, backpack, desk, camera, phone case, mattress",
        "color size price quantity material order_id wrapping items customer"),
    "finance": _domain(
        "pay create check approve report", "invoice, bill, loan, salary, tax form, refund, bank transfer, pension",
        "amount account due_date recipient status receipt code customer days"),
    "health": _domain(
        "log book check update plan", "workout, checkup, diet, vaccine, blood test, therapy, massage, prescription",
        "patient date minutes weight age level hours reminder distance"),
    "library": _domain(
        "find rent order archive translate", "book, magazine, poem, essay, comic, map, research paper, dictionary",
        "title author category page copies due_date keywords limit email"),
    "support": _domain(
        "create assign approve update verify", "ticket, request, complaint, warranty, bug, claim, work order, license",
        "user_id priority status customer email project due_date tags score"),
    "school": _domain(
        "plan schedule rate print assign", "lesson, exam, course, homework, lecture, quiz, field trip, report card",
        "student teacher topic level date hours seats score copies"),
    "garden": _domain(
        "water clean plan move order", "lawn, pond, hedge, flower bed, orchard, fence, greenhouse, compost",
        "place start_date end_date width parts quantity shape material hours"),
}  # fmt: skip


def _argument_sets(pool: tuple[str, ...], size: int, split: str) -> list[tuple[str, ...]]:
    # A flag alone is no set: its calls would differ in nothing but yes and no.
    pool = pool if size > 1 else tuple(name for name in pool if ARGUMENTS[name].kind != "boolean")
    return [names for names in itertools.combinations(pool, size) if in_split("|".join(sorted(names)), split)]


def _parameters(rng: random.Random, domain: Domain, split: str) -> tuple[Parameter, ...]:
    size = rng.choices((1, 2, 3), (32, 46, 22))[0]
    sets = _argument_sets(domain.arguments, size, split)
    while not sets:  # few sets of one name belong to the evaluation split
        size += 1
        sets = _argument_sets(domain.arguments, size, split)
    names = list(rng.choice(sets))
    rng.shuffle(names)
    names.sort(key=lambda name: ARGUMENTS[name].kind == "boolean")
    required = [True] + [rng.random() >= OPTIONAL_SHARE for _ in names[1:]]
    parameters = []
    for name, needed in sorted(zip(names, required, strict=True), key=lambda pair: not pair[1]):
        argument = ARGUMENTS[name]
        words = of_split(argument.options, split) if argument.options else ()
        options = tuple(rng.sample(words, min(len(words), rng.randint(2, 3)))) if words else ()
        parameters.append(Parameter(argument, needed, options))
    return tuple(parameters)


def _description(rng: random.Random, verb: str, noun: str) -> str:
    said = rng.choice((verb, *VERBS[verb]))
    article = rng.choice(("", "", "a ", "the "))
    article = "an " if article == "a " and noun[0] in "aeiou" else article
    return f"{said} {article}{noun}".capitalize()


@lru_cache(maxsize=2)
def functions(split: str) -> tuple[Function, ...]:
    """All functions of a split; the same on every machine, whatever the seed of the rows.

    Args:
        split: "train" or "eval".

    Returns:
        The functions, domain by domain.
    """
    found = []
    for key, domain in DOMAINS.items():
        for verb, noun in itertools.product(domain.verbs, domain.objects_of(split)):
            rng = random.Random(f"nexus-tools:{key}:{verb}:{noun}")
            name = f"{verb}_{noun.replace(' ', '_')}"
            parameters = _parameters(rng, domain, split)
            found.append(Function(name, verb, noun, key, _description(rng, verb, noun), parameters))
    return tuple(found)
