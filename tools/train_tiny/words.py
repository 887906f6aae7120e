"""Words to copy: real ones, invented ones, numbers, names, codes.

Knows: lists and how to draw from them. Does not know: what the words are used for. Copying is
learned from variety, so most of what is drawn here was never drawn before.
"""

from __future__ import annotations

import random
import string
from typing import Final

CITIES: Final = tuple(
    """Paris|London|Berlin|Rome|Madrid|Vienna|Prague|Oslo|Stockholm|Helsinki|Dublin|Lisbon|Athens
    |Warsaw|Budapest|Zurich|Geneva|Munich|Hamburg|Cologne|Lyon|Milan|Naples|Tokyo|Osaka|Kyoto|Seoul
    |Beijing|Shanghai|Delhi|Mumbai|Bangkok|Hanoi|Manila|Jakarta|Sydney|Melbourne|Auckland|Cairo
    |Nairobi|Lagos|Accra|Tunis|Dakar|New York|Los Angeles|San Francisco|Chicago|Boston|Seattle
    |Denver|Austin|Dallas|Miami|Toronto|Montreal|Vancouver|Mexico City|Lima|Bogota|Quito|Santiago
    |Buenos Aires|Rio de Janeiro|Havana|Istanbul|Dubai|Tehran|Moscow|Kyiv|Riga|Tallinn|Vilnius
    |Sofia|Belgrade|Zagreb|Porto|Seville|Valencia|Turin|Florence|Venice|Bern|Basel|Graz|Leipzig
    |Dresden|Bremen|Bonn|Ghent|Antwerp|Utrecht|Bergen|Aarhus|Reykjavik|Cape Town|Hong Kong|Singapore
    |Taipei|Perth|Salt Lake City|St. Louis|Saint-Denis|Ulm""".replace("\n", "").replace("  ", "").split("|")
)
NAMES: Final = tuple(
    """Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Maria Nina Oscar Paula Quinn
    Rosa Simon Tina Uwe Vera Willy Xenia Yann Zoe Alice Bob Carol Dan Eve Frank Grace Heidi Ivan
    Judy Mallory Olivia Peggy Rupert Sybil Trent Victor Wendy Ahmed Fatima Chen Mei Raj Priya Kofi
    Amara Diego Lucia Pedro Ines Olga Dmitri Yuki Kenji Sven Ingrid Pierre Chloe""".split()
)
NOUNS: Final = tuple(
    """apple anchor animal answer arrow author badge basket battery beach bear bicycle bird boat book
    bottle box branch bread bridge brother bucket building butter button cable cake calendar camera
    candle captain car card carpet castle cat chair cheese cherry church circle clock cloud coat
    coffee coin colour comet computer contract cookie country cousin cow crane crown cup curtain
    customer dance daughter day deer desk dinner doctor document dog dollar door dragon dream drum
    duck eagle ear earth egg elephant engine evening farm father feather fence festival field film
    finger fire fish flag flower folder food forest fork fox friend frog fruit garden gate ghost
    giant glass glove goat gold grape grass guitar hammer hand harbour hat hawk heart hill history
    holiday honey horse hotel house ice idea insect invoice iron island jacket jar jewel judge juice
    jungle kettle key king kitchen kite knife ladder lake lamp language lawyer leaf lemon letter
    library lion lizard lunch machine magnet market mask match meadow meal meeting melon member
    message metal milk mirror moment money monkey month moon morning mother mountain mouse movie
    museum music nail neck needle nest night nose number nurse ocean office onion orange orchestra
    order oven owl package page paint palace pan paper parcel parrot party pencil people pepper
    person phone piano picture pig pilot pizza planet plant plate player pocket poem poet police
    policy potato present president price prince printer prize project pumpkin puzzle queen rabbit
    radio rain recipe record restaurant rice ring river road robot rocket roof room rope rose ruler
    salad salt sand sandwich school science scissors score sea season secret shadow sheep ship shirt
    shoe shop silver singer sister skin sky snake snow soap sock soldier song soup spider spoon
    spring square stamp star station stone storm story street student sugar summer sun supper table
    tail tea teacher team telephone temple tent theatre thunder ticket tiger toast tomato tongue
    tooth tower town toy train tree truck trumpet turtle umbrella uncle vase vegetable village
    violin visit wagon wall watch water wave weather week wheel whistle wind window wine winter wolf
    word worker world worm yacht year zebra account asset backup bill booking branch budget camera
    chart client column contact course delivery device employee event expense file flight issue item
    job label lead lesson license log note payment permit profile project quote receipt refund
    report reservation review route salary sensor shipment stock subscription survey task tax team
    tenant transaction user vendor visa voucher warranty""".split()
)
ADJECTIVES: Final = tuple(
    """red green blue yellow black white old new young small big little large long short quick slow
    warm cold happy sad quiet loud soft hard light dark heavy clean dirty brave clever strange
    simple fresh dry wet empty full early late rich poor strong weak sweet bitter round flat deep
    golden silver broken lost hidden famous silent lazy brown""".split()
)
VERBS: Final = tuple(
    """runs walks sleeps jumps sings reads writes waits eats drinks falls flies swims shines grows
    stops starts laughs cries works plays dreams turns opens closes burns melts dances""".split()
)
SMALL: Final = tuple(
    """the a and or of in on at with from to for by is was are it he she we they you I not very my
    your his her our this that these those one two three""".split()
)

_ONSETS: Final = tuple("b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl sh st th tr qu".split())
_VOWELS: Final = tuple("a e i o u a e i o ai ee oo ou y".split())
_CODAS: Final = ("", "", "", "n", "r", "s", "l", "t", "x", "nd", "rk", "m", "ck", "sh", "p", "b")


def invented(rng: random.Random) -> str:
    """A word that no dictionary has: `strolm`, `quaber`."""
    count = rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def code(rng: random.Random) -> str:
    """An identifier: `A-1234`, `xk93p`, `order_77`."""
    match rng.randrange(5):
        case 0:
            return f"{rng.choice(string.ascii_uppercase)}-{rng.randrange(10, 10_000)}"
        case 1:
            return "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(3, 7)))
        case 2:
            return f"{rng.choice(NOUNS)}_{rng.randrange(1, 100)}"
        case 3:
            return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 4))) + str(rng.randrange(1, 1000))
        case _:
            return f"{invented(rng)}-{rng.randrange(100)}"


def integer(rng: random.Random) -> int:
    """A number of one to five digits, short ones more often."""
    return rng.randrange(10 ** rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5)))


def decimal(rng: random.Random) -> float:
    """A number with one or two places."""
    return round(rng.uniform(0, 10 ** rng.choice((1, 2, 3))), rng.choice((1, 2)))


def capital(rng: random.Random) -> str:
    """A name of a place or person, real or invented, of one or two words."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(CITIES)
    if roll < 0.45:
        return rng.choice(NAMES)
    if roll < 0.85:
        return invented(rng).capitalize()
    return f"{invented(rng).capitalize()} {invented(rng).capitalize()}"


def word(rng: random.Random) -> str:
    """Any single word."""
    roll = rng.random()
    if roll < 0.35:
        return rng.choice(NOUNS)
    if roll < 0.45:
        return rng.choice(ADJECTIVES)
    if roll < 0.5:
        return rng.choice(VERBS)
    if roll < 0.85:
        return invented(rng)
    return capital(rng)


def date_text(rng: random.Random) -> str:
    """A day as ISO 8601 writes it."""
    return f"{rng.randint(1990, 2035)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def email(rng: random.Random) -> str:
    """An address."""
    host = invented(rng) if rng.random() < 0.6 else "example"
    return f"{rng.choice((rng.choice(NAMES).lower(), invented(rng)))}@{host}.{rng.choice(('com', 'org', 'net', 'de'))}"


def expression(rng: random.Random) -> str:
    """A small calculation: `12 * 7`, `(3 + 4) / 2`."""
    space = rng.choice(("", " "))
    op = lambda: f"{space}{rng.choice('+-*/')}{space}"  # noqa: E731
    text = f"{integer(rng)}{op()}{integer(rng)}"
    if rng.random() < 0.2:
        text = f"({text}){op()}{integer(rng)}"
    elif rng.random() < 0.2:
        text += f"{op()}{integer(rng)}"
    return text


def phrase(rng: random.Random, longest: int = 6) -> str:
    """Two or more words without punctuation."""
    return " ".join(
        rng.choice(SMALL) if rng.random() < 0.25 else word(rng)
        for _ in range(rng.randint(2, longest))
    )


def sentence(rng: random.Random) -> str:
    """A plain sentence that may well make no sense."""
    noun, other = rng.choice(NOUNS), rng.choice(NOUNS)
    adjective, verb = rng.choice(ADJECTIVES), rng.choice(VERBS)
    return rng.choice(
        (
            f"The {adjective} {noun} {verb}.",
            f"My {noun} has a {adjective} {other}.",
            f"{rng.choice(NAMES)} {verb} in {rng.choice(CITIES)}.",
            f"I have {rng.randrange(2, 100)} {noun}s and a {other}.",
            f"The {noun} is {adjective}, but the {other} is {rng.choice(ADJECTIVES)}.",
            f"{adjective} {noun}, {rng.choice(ADJECTIVES)} {other}!",
            f"A {noun} {verb} and a {other} {rng.choice(VERBS)}.",
        )
    )
