"""Seeded material of the synthetic generators: word lists and invented names.

Everything that may be a *value* (a person, a city, an invented word) belongs to exactly one split. The split is a
stable hash of the lower-cased text, so the training and the evaluation rows of any generator can never share a value,
whoever wrote them and on whichever machine. Built-in ``hash`` is never used: it changes from process to process.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import lru_cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SPLITS = ("train", "eval")
EVAL_SHARE = 0.2

NOUNS = _words(
    """
    apple anchor arrow bag ball banana bank barn basket beach bean bear bed bee bell belt bench bike bird blanket
    boat book boot bottle bowl box branch bread brick bridge broom brush bucket bus button cabin cable cake camera
    candle canoe cap car card carpet carrot cart castle cat chain chair chalk cheese cherry chest clock cloud coat
    coin comb cook corn couch cow crayon crow crown cup curtain desk dish dog doll door dragon drawer dress drill
    drum duck eagle ear egg engine envelope eraser fan farm feather fence field fig finger fire fish flag flame
    flower flute fly folder fork fox frog fruit game garden gate gem ghost gift glass globe glove goat grape grass
    guitar hammer hand harp hat hawk heart hen hill hook horn horse hose house ice island jacket jam jar jewel jug
    juice kettle key king kite kitten knife knot ladder lake lamp leaf lemon letter lion lock log magnet map mask
    match meadow melon mill mirror mitten moon moth mountain mouse mug mushroom nail neck needle nest net nose
    note nut oak oar onion orange oven owl paddle page paint palm pan paper parrot path peach pear pearl pen
    pencil pepper piano pie pig pillow pin pipe plane plant plate plum pocket pond pony pot potato purse puzzle
    queen quilt rabbit radio rail rain rake ribbon rice ring river road robe robin rock rocket roof room root rope
    rose rug ruler sail salt sand saw scarf school screw seal seed shark sheep shelf shell ship shirt shoe shovel
    sink skate sled snail snake snow soap sock sofa soup spider spoon spring stair stamp star steam stick stone
    stool stove straw string suit sun swan sweater swing sword table tail tank tape tea tent thread thumb ticket
    tiger tile tire toad toast tomato tool torch towel tower toy track trail train tray tree truck trumpet trunk
    tulip turtle umbrella van vase vest village vine violin wagon wall wallet watch water wave web whale wheat
    wheel whistle window wing wire wolf wood wool worm yard zebra
    """
)
ADJECTIVES = _words(
    """
    able ancient angry bitter blunt bold brave brief bright broad broken calm careful cheap clean clear clever
    cold common cool crisp curious damp dark deep dry dull eager early easy empty even fair famous fancy fast fat
    final fine firm flat fresh full funny gentle giant glad golden grand great happy hard heavy hidden high hollow
    honest hot huge hungry icy idle jolly keen kind large late lazy light little lonely long loose loud low lucky
    mad mild modern muddy narrow neat new nice noisy odd old open pale plain polite poor proud pure quick quiet
    rare raw ready rich ripe rough round sad safe salty sharp shiny short shy silent silly simple slim slow small
    smart smooth soft solid sour spare steady steep stiff still strange strict strong sunny sweet swift tall tame
    tender thick thin tidy tight tiny tired tough true ugly usual vast warm weak wet wide wild wise wooden young
    """
)
VERBS = _words(
    """
    add ask bake bend blow borrow bring build burn buy call carry catch change check choose clean climb close
    collect cook copy count cover cross cut dance dig draw dream drink drive drop dry eat enter explain feed fill
    find finish fix fly fold follow gather give grow guard guess hang help hide hold jump keep kick kiss knock
    laugh lead learn leave lend lift light listen load lock look lose make mark meet melt mix move name need nod
    note offer open order pack paint pass pay pick plan plant play point pour press print pull push put raise
    reach read rent repair rest ride ring roll run sail save search see sell send serve sew shake share shout show
    shut sing sit sketch sleep slide smell smile sort speak spell spend spin stack stand start stay steal stop
    store sweep swim swing take talk taste teach tell test think throw tie touch trade travel try turn use visit
    wait walk wash watch water wave wear weigh win wipe wish work wrap write
    """
)
OFFICE_NOUNS = _words(
    """
    access account action address advice age agency agent agreement airport alarm album amount animal answer area
    argument army article artist aspect attempt audience author average balance battery benefit bill birth bonus
    budget building business calendar campaign capital career category cause center century challenge chance change
    channel chapter charge choice claim class client climate coach code collection color comment committee community
    company complaint computer concept concert condition contact content contract control corner cost country couple
    course credit culture customer damage data date daughter deal debt decision degree delay delivery demand deposit
    depth design detail device diet difference direction director discount disease distance doctor document dollar
    domain draft duration duty economy edge editor effect effort election element email employee energy engineer
    entry environment error estimate event evidence exam example exchange exercise expense expert extra factor family
    feature fee feedback figure file film filter flavor flight floor focus font footer force format foundation frame
    friend fuel function future garage genre goal government grade group growth guest guide habit header health
    height history hobby holiday hotel hour idea image impact income index industry insurance interest internet
    interview inventory invoice issue item job journey judge keyword label language laptop law lawyer layer leader
    length lesson level library limit line link list loan location loss machine magazine manager margin market
    material matter measure media meeting member memory menu message method minute mission mode model moment money
    month mood movie museum music nation network news night number object office officer opinion option organ origin
    owner package parent parking part partner party passenger password patient pattern payment people percent period
    permission person phone photo picture place platform player podcast poem poet point policy position post power
    price priority prize problem process product profile profit program project promise purpose quality quantity
    quarter query question queue range rating ratio reason receipt recipe recipient record refund region release
    reminder rent reply report request result return revenue role route rule safety salary sample scale schedule
    science score season seat second section sector security seller sender sentence series server service session
    setting shape share shipment shop signal site situation size skill society source space speaker speed sport staff
    stage standard state statement station status step store storm story strategy student studio style subject
    summary supply support surface survey symbol system tag target task tax teacher team temperature term theme theory
    time title tone topic total tour trade traffic transfer transport trip type unit update user vaccine value version
    video view visit visitor voice volume vote wage warning warranty weather website week weight width winner
    workshop world writer year zone
    """
)
OFFICE_VERBS = _words(
    """
    accept allow apply approve archive arrange assign attach attend begin block calculate cancel clear combine compare
    confirm connect convert create define delete deliver describe detect disable dispatch display download duplicate
    edit enable encode end erase estimate evaluate expand export extract fetch format forward generate grade hire
    identify import improve include increase inform insert inspect install invite invoke issue join launch limit link
    list locate log manage merge modify monitor notify obtain operate pause perform predict prepare present prevent
    process produce publish purchase query rate receive recommend record reduce refresh register reject release relocate
    remind remove rename renew replace reply report request reserve reset resolve restore resume return reverse review
    scan schedule select separate settle share simulate solve start submit subscribe suggest summarize support suspend
    switch sync track transfer translate trigger update upgrade upload validate verify view
    """
)
COLORS = _words(
    """
    red blue green yellow orange purple pink brown black white gray teal gold silver
    """
)
SHAPES = _words(
    """
    circle square triangle star heart diamond cross ring oval hexagon
    """
)
MATERIALS = _words(
    """
    wood steel glass paper cotton leather stone copper plastic clay wool brass rubber bamboo
    """
)
FOODS = _words(
    """
    bread soup salad rice pasta pizza cheese yogurt omelet pancake noodles stew curry sandwich taco burrito
    dumpling porridge waffle muffin cookie brownie pie pudding sausage steak salmon tuna shrimp tofu lentils beans
    hummus falafel risotto lasagna ramen sushi kebab goulash paella chowder
    """
)
ANIMALS = _words(
    """
    cat dog horse cow sheep goat pig hen duck goose rabbit fox wolf bear lion tiger zebra camel monkey panda otter
    beaver badger hedgehog squirrel mouse rat bat owl eagle hawk crow parrot swan penguin seal whale dolphin shark
    salmon frog toad turtle lizard snake crab snail spider bee ant moth
    """
)
JOBS = _words(
    """
    baker pilot nurse farmer teacher painter plumber singer dentist lawyer driver tailor writer actor barber
    butcher chef clerk doctor editor florist gardener guard judge librarian mechanic miner waiter welder sailor
    scientist engineer carpenter cashier coach dancer designer detective electrician firefighter fisher
    """
)
#: Every common word, whatever it is used for elsewhere: copying must not depend on it.
COMMON = tuple(
    sorted({*NOUNS, *ADJECTIVES, *VERBS, *OFFICE_NOUNS, *OFFICE_VERBS, *COLORS, *MATERIALS, *FOODS, *ANIMALS, *JOBS})
)
COMPANY_ENDINGS = (
    "Labs",
    "Foods",
    "Motors",
    "Works",
    "Group",
    "Partners",
    "Systems",
    "Media",
    "Bank",
    "Energy",
    "Studio",
)
FIRST_NAMES = _words(
    """
    Ada Adam Agnes Aisha Alan Alba Alex Alice Amir Amy Ana Andre Anita Anna Anton Arjun Astrid Ava Ben Bianca
    Boris Bruno Camila Carla Carlos Cecil Chen Chloe Clara Cleo Colin Cora Dalia Dan Daria David Dean Diana Diego
    Dora Edgar Eli Elena Ella Elsa Emil Emma Enzo Eric Erin Esther Eva Fatima Felix Fiona Flora Frank Freya George
    Gina Grace Greta Gus Hana Hannah Harry Hassan Hector Heidi Helen Henry Hugo Ida Igor Ines Ingrid Irene Iris
    Isaac Ivan Ivy Jack Jade James Jan Jane Jasper Jean Joan Joel John Jonas Jorge Jose Judy Julia June Kai Karen
    Karim Karl Kate Keiko Ken Kira Kurt Lara Lars Laura Lena Leo Lily Linda Lisa Liv Louis Luca Lucy Luis Luna
    Mabel Maria Mario Mark Marta Mary Max Maya Mei Mia Mila Milo Mina Mohan Mona Nadia Nancy Naomi Nate Nell Nia
    Nick Nina Nora Noah Olaf Olga Olive Omar Oscar Otto Owen Pablo Paul Pedro Pia Priya Quinn Rafael Raj Ravi Rene
    Rita Rob Rosa Ruben Ruth Ryan Sam Sana Sara Saul Sean Selma Simon Sofia Sonia Stan Stella Sven Tara Tariq Tess
    Theo Tim Tina Tom Uma Vera Vic Viktor Wanda Will Yara Yuki Yusuf Zane Zara Zoe
    """
)
LAST_NAMES = _words(
    """
    Abbott Adams Allen Baker Barnes Bell Bennett Berg Bishop Black Blake Bose Boyd Brandt Brooks Brown Burke Burns
    Carr Carter Castro Chan Clark Cole Cook Cooper Costa Cruz Dale Davis Dean Diaz Dixon Duncan Ellis Evans
    Farrell Fischer Flynn Ford Foster Fox Garcia Gibson Gomez Grant Gray Green Gupta Hale Hall Hansen Harper Hart
    Hayes Hill Hoffman Holt Howard Hughes Hunt Ito James Jensen Jones Joshi Kane Keller Kelly Khan Kim King Klein
    Knight Kumar Lane Larsen Lee Lewis Lopez Lowe Lynch Marsh Martin Mason Meyer Miller Moore Morgan Morris Murphy
    Myers Nash Nelson Nolan Novak Olsen Ortiz Owens Page Park Parker Patel Perez Perry Porter Price Quinn Ramos
    Reed Reyes Rivera Roberts Rossi Russo Santos Schmidt Scott Shaw Silva Singh Smith Soto Stone Sutton Tanaka
    Taylor Torres Turner Vance Vargas Vega Wagner Walker Wallace Ward Watson Weber West White Wolf Wong Wood
    Wright Yang York Young Zhang
    """
)
CITIES = _words(
    """
    Accra Adelaide Algiers Amman Amsterdam Ankara Antwerp Athens Atlanta Auckland Austin Baku Bali Bangkok
    Barcelona Basel Beirut Belfast Belgrade Bergen Berlin Bern Bogota Bologna Bonn Boston Bremen Brisbane Bristol
    Brussels Bucharest Budapest Cairo Calgary Cardiff Chicago Cologne Copenhagen Cork Cusco Dakar Dallas Damascus
    Darwin Delhi Denver Detroit Doha Dresden Dubai Dublin Durban Edinburgh Florence Frankfurt Geneva Genoa Ghent
    Glasgow Graz Hamburg Hanoi Havana Helsinki Hobart Houston Istanbul Jakarta Jerusalem Kabul Kampala Karachi
    Kiev Kingston Kobe Krakow Kyoto Lagos Lahore Leeds Leipzig Lima Lisbon Liverpool London Luanda Lusaka Lyon
    Madrid Malaga Malmo Manchester Manila Marseille Medellin Melbourne Memphis Miami Milan Minsk Montreal Moscow
    Mumbai Munich Nairobi Nantes Naples Nice Odessa Osaka Oslo Ottawa Oxford Palermo Panama Paris Perth Phoenix
    Porto Portland Prague Quito Rabat Reykjavik Riga Rome Rotterdam Salzburg Santiago Sapporo Seattle Seoul
    Seville Shanghai Singapore Sofia Stockholm Sydney Taipei Tallinn Tampa Tokyo Toronto Trieste Tunis Turin
    Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Wellington York Zagreb Zurich
    """
)
COUNTRIES = _words(
    """
    Argentina Australia Austria Belgium Bolivia Brazil Bulgaria Canada Chile China Colombia Croatia Cuba Denmark
    Ecuador Egypt Estonia Ethiopia Finland France Georgia Germany Ghana Greece Hungary Iceland India Indonesia
    Ireland Israel Italy Jamaica Japan Jordan Kenya Latvia Lebanon Lithuania Malaysia Malta Mexico Morocco Nepal
    Netherlands Nigeria Norway Oman Pakistan Panama Peru Poland Portugal Qatar Romania Rwanda Senegal Serbia
    Slovakia Slovenia Spain Sudan Sweden Switzerland Tanzania Thailand Tunisia Turkey Uganda Ukraine Uruguay
    Vietnam Zambia
    """
)
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_ONSETS = _words(
    """
    b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl pr sh sl st th tr qu sk sw
    """
) + ("",)
_VOWELS = _words(
    """
    a e i o u a e i o ai ea ee io ou oo y
    """
)
_CODAS = ("", "", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "x", "rn", "ck", "sh", "v", "p")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=1 << 16)
def split_of(text: str) -> str:
    """The split that owns a value.

    Args:
        text: the value; case and outer white space do not matter.

    Returns:
        "train" or "eval" (one value in five), the same on every machine.
    """
    digest = hashlib.blake2b(text.strip().lower().encode(), digest_size=4).digest()
    return "eval" if int.from_bytes(digest, "big") < EVAL_SHARE * 2**32 else "train"


def in_split(text: str, split: str) -> bool:
    """Whether a value belongs to a split.

    Args:
        text: the value.
        split: "train" or "eval".

    Returns:
        True when the hash of `text` puts it in `split`.

    Raises:
        ValueError: `split` is not a split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    return split_of(text) == split


@lru_cache(maxsize=256)
def of_split(words: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The part of a word list that belongs to a split.

    Args:
        words: a tuple of values.
        split: "train" or "eval".

    Returns:
        The values of that split, in order, never empty.

    Raises:
        ValueError: no word of the list falls into the split.
    """
    kept = tuple(word for word in words if in_split(word, split))
    if not kept:
        raise ValueError(f"no word of {words[:3]}... belongs to the split {split!r}")
    return kept


def pick(rng: random.Random, words: tuple[str, ...], split: str) -> str:
    """One word of a list, from the split only.

    Args:
        rng: source of randomness.
        words: the list as a tuple.
        split: "train" or "eval".

    Returns:
        The word.
    """
    return rng.choice(of_split(words, split))


def draw(rng: random.Random, split: str, make: Callable[[random.Random], str]) -> str:
    """Draw values until one belongs to the split.

    Args:
        rng: source of randomness.
        split: "train" or "eval".
        make: makes one candidate; it must be able to reach both splits.

    Returns:
        The first candidate in the split.
    """
    text = make(rng)
    while not in_split(text, split):
        text = make(rng)
    return text


def _syllables(rng: random.Random) -> str:
    count = rng.choice((1, 2, 2, 2, 3, 3))
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)]
    word = "".join(parts) + rng.choice(_CODAS)
    return word if len(word) > 2 else word + "n" + rng.choice("aeiou")


def _random_letters(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(rng.choice((3, 4, 4, 5, 5, 6, 7))))


def invented_name(rng: random.Random, split: str, *, letters: float = 0.25) -> str:
    """A lower-case word that does not exist: mostly syllables, sometimes a string of random letters.

    Args:
        rng: source of randomness.
        split: "train" or "eval".
        letters: share of strings of random letters, 0 to 1.

    Returns:
        A word of 3 to about 14 letters of `a-z`, in the split.
    """
    return draw(rng, split, _random_letters if rng.random() < letters else _syllables)


def person(rng: random.Random, split: str) -> str:
    """A person: a first name, mostly with a last name; a third of the last names are invented.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "Ada", "Omar Reed" or "Mia Brolat"; first and last name are each in the split.
    """
    first = pick(rng, FIRST_NAMES, split) if rng.random() < 0.8 else invented_name(rng, split, letters=0.0).capitalize()
    kind = rng.random()
    if kind < 0.35:
        return first
    if kind < 0.75:
        return f"{first} {pick(rng, LAST_NAMES, split)}"
    return f"{first} {invented_name(rng, split, letters=0.0).capitalize()}"


def city(rng: random.Random, split: str) -> str:
    """A city, real in two cases of three, else invented.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "Oslo" or "Drelain".
    """
    if rng.random() < 0.67:
        return pick(rng, CITIES, split)
    return invented_name(rng, split, letters=0.0).capitalize()


def country(rng: random.Random, split: str) -> str:
    """A country of the split.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "Peru".
    """
    return pick(rng, COUNTRIES, split)


def company(rng: random.Random, split: str) -> str:
    """An invented company.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "Torvale Labs"; the invented word is in the split.
    """
    return f"{invented_name(rng, split, letters=0.1).capitalize()} {rng.choice(COMPANY_ENDINGS)}"


def email(rng: random.Random, split: str) -> str:
    """An invented e-mail address.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "mia.brolat@torvale.com"; both invented words are in the split.
    """
    name = pick(rng, FIRST_NAMES, split).lower()
    host = f"{invented_name(rng, split)}.{rng.choice(('com', 'org', 'net', 'io'))}"
    return f"{name}.{invented_name(rng, split)}@{host}" if rng.random() < 0.5 else f"{name}@{host}"


def code(rng: random.Random, split: str) -> str:
    """An identifier such as an order number or a flight number.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "KD-4071" or "b83x2"; the whole code is in the split.
    """

    def make(source: random.Random) -> str:
        if source.random() < 0.6:
            letters = "".join(source.choice(_LETTERS) for _ in range(source.randint(1, 3))).upper()
            return f"{letters}{source.choice(('-', '', '-'))}{source.randint(10, 99999)}"
        return "".join(source.choice(_LETTERS + "0123456789") for _ in range(source.randint(4, 7)))

    return draw(rng, split, make)


def date(rng: random.Random, split: str) -> str:
    """A date of the years 2000 to 2039 in ISO form.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "2031-04-17".
    """
    return draw(rng, split, lambda r: f"{r.randint(2000, 2039)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}")


def clock(rng: random.Random, split: str) -> str:
    """A time of day.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        For instance "17:35".
    """
    return draw(rng, split, lambda r: f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}")


def phrase(rng: random.Random, split: str, *, low: int = 2, high: int = 4) -> str:
    """A few words that may serve as a title, a message or a search text.

    Args:
        rng: source of randomness.
        split: "train" or "eval".
        low: least number of words.
        high: greatest number of words.

    Returns:
        Lower-case words; the whole phrase is in the split and so is each invented word in it.
    """

    def make(source: random.Random) -> str:
        pools: Sequence[tuple[str, ...]] = (NOUNS, ADJECTIVES, NOUNS, VERBS)
        words = [
            invented_name(source, split) if source.random() < 0.15 else source.choice(source.choice(pools))
            for _ in range(source.randint(low, high))
        ]
        return " ".join(words)

    return draw(rng, split, make)
