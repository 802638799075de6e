"""The words of the synthetic world: names, attributes with their values, and what the OFF skills are made of."""

from __future__ import annotations

NAMES: tuple[str, ...] = tuple(
    """
    Ada Alba Alma Amos Anya Arlo Asa Axel Basil Beau Bella Beth Bianca Blake Bo Boris Bram Brit Bruno Cara
    Carl Cato Cecil Chloe Clara Clem Cleo Cole Cora Cruz Dale Dana Dara Dario Dean Della Dina Dora Drew Duke
    Earl Edda Edna Eli Ella Elsa Emil Emma Enzo Eric Erin Esme Esta Etta Eva Ezra Faye Felix Fern Fido
    Finn Fiona Flora Floyd Frank Freya Fritz Gail Gemma Gia Gina Glen Greta Gus Gwen Hana Hank Hans Hazel Heidi
    Helga Hugo Ida Igor Ilse Ines Ingrid Ira Iris Isla Ivan Ivy Jack Jada Jana Jasper Jed Jens Jill Joan
    Joel Jonas Josie Judd Jules June Juno Kai Kara Karl Kate Kato Keith Kira Kirk Klaus Kurt Lana Lars Laura
    Leah Lena Leo Liam Lila Linus Lois Lola Lorna Lotte Luca Lucy Luis Luke Lyle Mabel Magda Malik Mara Marco
    Marge Marta Matt Maud Max May Mia Mila Milo Mina Moira Mona Moses Nadia Nell Nico Nils Nina Noah Nola
    Nora Odin Olga Olive Omar Orla Oscar Otto Owen Paco Paula Pearl Pedro Penny Percy Petra Phil Piper Quinn Raul
    Rex Rhea Rita Rosa Roy Ruben Ruth Sadie Saul Seth Sid Silas Sonia Sven Tara Ted Tess Thea Tilda Toby
    """.split()
)

# Every value belongs to one attribute, so a wrong attribute is a visible mistake.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    name: tuple(values.split())
    for name, values in {
        "color": "red blue green black white brown pink gray purple yellow orange silver golden violet teal amber",
        "city": "Lisbon Geneva Turin Dublin Bergen Krakow Porto Leipzig Bruges Seville Quito Osaka Boston Denver Perth Cairns",
        "pet": "cat dog rabbit parrot hamster turtle lizard pony ferret goldfish canary gecko spider mouse goat duck",
        "food": "pizza rice soup bread pasta salad curry noodles beans cheese tacos stew omelet porridge waffles sushi",
        "drink": "tea coffee milk juice water cider cocoa lemonade soda broth punch mead espresso kefir nectar cola",
        "job": "baker pilot nurse teacher farmer painter plumber lawyer singer tailor doctor driver sailor miner barber chef",
        "sport": "tennis rugby soccer golf hockey judo rowing boxing cycling skating fencing chess surfing archery karate polo",
        "instrument": "piano violin flute drum harp guitar cello trumpet banjo oboe tuba organ lute fiddle clarinet viola",
        "flower": "rose tulip lily daisy orchid poppy iris marigold lotus peony aster dahlia jasmine lilac crocus pansy",
        "tool": "hammer saw wrench drill shovel rake chisel ladder pliers axe file clamp trowel anvil level brush",
        "vehicle": "car bicycle truck boat van scooter tractor sled canoe taxi bus tram glider raft wagon yacht",
        "room": " ".join(str(n) for n in range(10, 100)),
    }.items()
}

# (word, opposite): memorised, needs no document.
OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (left, right)
    for pair in """hot/cold big/small fast/slow high/low up/down day/night old/young happy/sad rich/poor hard/soft
    light/dark early/late open/closed full/empty strong/weak wet/dry near/far long/short thick/thin loud/quiet
    clean/dirty sweet/sour true/false in/out left/right front/back north/south east/west push/pull first/last
    win/lose buy/sell give/take start/stop above/below inside/outside begin/end love/hate war/peace smooth/rough""".split()
    for left, right in [tuple(pair.split("/"))]
)

# (country, capital): facts of the real world, memorised.
CAPITALS: tuple[tuple[str, str], ...] = tuple(
    (country, capital)
    for pair in """France/Paris Italy/Rome Spain/Madrid Germany/Berlin Austria/Vienna Greece/Athens Poland/Warsaw
    Hungary/Budapest Norway/Oslo Sweden/Stockholm Finland/Helsinki Denmark/Copenhagen Russia/Moscow Japan/Tokyo
    China/Beijing Korea/Seoul Egypt/Cairo Kenya/Nairobi Cuba/Havana Peru/Lima Chile/Santiago Canada/Ottawa
    Turkey/Ankara Iran/Tehran Iraq/Baghdad India/Delhi Thailand/Bangkok Vietnam/Hanoi Ukraine/Kyiv Belgium/Brussels
    Bulgaria/Sofia Romania/Bucharest Serbia/Belgrade Croatia/Zagreb Latvia/Riga Estonia/Tallinn Iceland/Reykjavik
    Ghana/Accra Senegal/Dakar Lebanon/Beirut""".split()
    for country, capital in [tuple(pair.split("/"))]
)

NUMBER_WORDS: tuple[str, ...] = tuple(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)

PLAIN_WORDS: tuple[str, ...] = tuple(
    """sun moon star cloud rain snow wind storm river lake hill tree leaf stone sand road bridge house door window
    table chair lamp clock book pen paper letter box key ring coin bell rope cup plate spoon knife bowl basket
    shirt coat shoe hat glove scarf button pocket mirror candle apple pear plum grape nut corn""".split()
)

PLACES: tuple[str, ...] = tuple(
    "market garden forest harbor village castle station school bakery meadow island valley tower museum farm beach".split()
)
ANIMALS: tuple[str, ...] = tuple("fox bear owl deer wolf frog swan crow hen otter badger seal".split())
MOODS: tuple[str, ...] = tuple("glad tired brave calm proud shy lonely curious".split())
TIMES: tuple[str, ...] = tuple("morning evening winter summer autumn spring night noon".split())
