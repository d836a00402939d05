"""The closed world: its people, towns and animals, what is true of them, what nobody knows, and what people get wrong.

Every word of the sandbox's English comes from the lists below. The facts are drawn from a seed. The base model of the
package has read documents about the world of seed 0.
"""

import random
from dataclasses import dataclass, field
from functools import cache


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE = _words("""
    Ada Alba Amos Anton Arlo Astrid Bela Berta Bruno Carla Caspar Celia Clara Conrad Dagmar Dario Delia Dora Edda
    Edgar Egon Elias Elsa Emil Enzo Erik Esther Fabian Felix Finn Flora Frieda Gerda Gideon Gregor Greta Gustav
    Hanna Hector Hedda Helga Henrik Hugo Ida Igor Ilse Irma Ivan Jakob Jonas Julia Karl Katja Klara Konstantin Lars
    Laura Lena Leo Lotte Ludwig Luisa Magda Marek Marta Max Mila Mira Moritz Nadia Nils Nina Nora Olga Oskar Otto
    Paula Petra Pia Quentin Rasmus Renata Rita Robin Rosa Rudi Ruth Sami Selma Silas Sonja Stella Sven Tamara Theo
    Tilda Tom Ursula Vera Viktor Walter Wanda Xaver Yann Zelda
""")
TOWNS = _words("""
    Oldport Greenhill Stonebridge Riverton Marshfield Kingsford Lakewood Millbrook Northgate Pinewood Redcliff
    Saltmoor Silverton Sandbay Thornby Westhaven Whitby Foxley Harborough Goldenau Ashford Bridgeton Clifton Elmwood
    Moorland Seaview Winterby Yarrow
""")
ANIMALS = _words("""
    fox bear hen wolf goat horse cat dog rabbit mouse duck goose frog snake deer pig sheep crow pony lamb donkey
    tiger lion turtle beaver falcon badger beetle camel crane hamster hedgehog lizard mole monkey moose parrot
    pigeon puppy raven seal sparrow squirrel stork swan toad
""")
JOBS = _words("""
    baker farmer teacher doctor sailor painter singer tailor hunter miller driver writer carpenter gardener shepherd
    judge potter weaver barber butcher fisher lawyer nurse pilot plumber tinker clown cobbler dentist diver florist
    glazier guard jeweller juggler librarian mason mechanic merchant midwife porter printer roofer saddler tanner
    waiter
""")
FOODS = _words("""
    bread soup cheese honey rice fish cake butter salad porridge cabbage beans nuts plums pears pasta carrots
    cherries noodles pancakes pudding sausages tomatoes yoghurt bacon biscuits broccoli celery chicken chocolate
    corn cucumbers dates dumplings figs fudge garlic ham jam lentils lettuce marmalade melons muffins mushrooms
    mustard olives onions pastries peaches peas pepper pickles pies popcorn potatoes pumpkin radishes raisins
    rhubarb spinach toast turnips waffles walnuts
""")
COLORS = _words("red blue green yellow black white brown grey pink purple")
HOBBIES = _words("""
    reading singing fishing dancing swimming cooking painting sewing hiking sleeping gardening drumming skating
    juggling climbing writing baking boxing carving chess cycling fencing jogging knitting marbles poetry puzzles
    riding rowing running whittling wrestling
""")
PLACES = _words("""
    river forest market bridge garden harbour mountain mill lake castle school field tower station beach meadow
    cellar library bakery barracks canal chapel courtyard factory ferry fountain garage hospital hotel kitchen
    lighthouse museum orchard palace park quarry stadium theatre tunnel village vineyard workshop
""")
THINGS = _words("""
    hat lamp drum ring book knife basket key bell kite mirror bottle map coin spoon blanket ladder candle button
    camera chair clock comb cup flute hammer letter pencil scarf violin bag balloon barrel belt bench bicycle bowl
    bracelet broom brush bucket cage carpet cart chain chest compass cork cradle cushion desk dish doll door drill
    fan feather fork glove globe harp helmet horn jacket jar jug kettle lantern lock magnet mask mug nail napkin
    necklace needle paddle pan parcel pillow pipe plate pot purse quilt racket radio razor ribbon robe rope rug
    ruler saddle sack saw shawl shelf shoe shovel sled soap sock sofa spade spear stamp statue stool sword telescope
    thimble ticket torch towel toy tray trumpet tub vase wagon wallet wheel whip whistle
""")
ADJECTIVES = _words("""
    friendly hungry tired brave clever quiet lonely gentle proud curious silent happy nervous polite strong young
    bold busy calm careful cautious cheeky clumsy daring dirty faithful fierce fluffy funny generous greedy grumpy
    helpful jealous kind lazy lively loyal modest naughty noisy patient plump playful pretty quick restless rough
    scared shy skinny sleepy slow small smart stubborn tall thin timid tiny weak wild wise wounded
""")
PRODUCTS = _words("""
    wool glass salt paper silk wine leather silver clay timber bricks carpets copper ink lace linen marble perfume
    pottery tea tobacco violets
""")
WEATHERS = _words("warm cold wet dry windy foggy")
DIETS = _words("grass seeds leaves worms roots berries insects bark")
HABITATS = _words("barn cave nest hole reeds bushes stable hay")
GOOD_FEELINGS = _words("happy cheerful grateful")
BAD_FEELINGS = _words("sad worried angry afraid bored")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = _words("two three four")

# Field name -> the words it can hold. A digit after a field's name (person2) means another word of the same class.
WORDS = {
    "person": PEOPLE, "town": TOWNS, "animal": ANIMALS, "job": JOBS, "food": FOODS, "color": COLORS, "hobby": HOBBIES,
    "place": PLACES, "thing": THINGS, "adjective": ADJECTIVES, "product": PRODUCTS, "weather": WEATHERS, "diet": DIETS,
    "habitat": HABITATS, "good": GOOD_FEELINGS, "bad": BAD_FEELINGS, "day": DAYS, "number": NUMBERS,
}  # fmt: skip


@dataclass(frozen=True)
class Attribute:
    """A relation of the world, with its statement, its question and its noun phrase."""

    entity: str  # class of the subject's words: a key of WORDS
    value: str  # class of the object's words
    statement: str
    question: str
    noun: str


# fmt: off
# Name: (subject, object, statement, question, noun phrase).
ATTRIBUTES = {
    name: Attribute(*fields)
    for name, fields in {
        "job": ("person", "job", "{person} is a {job}.", "What is the job of {person}?", "what the job of {person} is"),
        "home": ("person", "town", "{person} lives in {town}.", "Where does {person} live?", "where {person} lives"),
        "food": (
            "person",
            "food",
            "{person} likes {food}.",
            "What food does {person} like?",
            "what food {person} likes",
        ),
        "pet": (
            "person",
            "animal",
            "{person} has a {animal}.",
            "What pet does {person} have?",
            "what pet {person} has",
        ),
        "coat": (
            *("person", "color", "{person} wears a {color} coat."),
            *("Which coat does {person} wear?", "which coat {person} wears"),
        ),
        "hobby": ("person", "hobby", "{person} loves {hobby}.", "What does {person} love?", "what {person} loves"),
        "product": (
            *("town", "product", "{town} is known for {product}."),
            *("What is {town} known for?", "what {town} is known for"),
        ),
        "weather": (
            *("town", "weather", "The weather in {town} is {weather}."),
            *("How is the weather in {town}?", "how the weather in {town} is"),
        ),
        "diet": (
            *("animal", "diet", "The {animal} eats {diet}."),
            *("What does the {animal} eat?", "what the {animal} eats"),
        ),
        "habitat": (
            *("animal", "habitat", "The {animal} sleeps in the {habitat}."),
            *("Where does the {animal} sleep?", "where the {animal} sleeps"),
        ),
    }.items()
}


# fmt: on


@dataclass(frozen=True)
class Fact:
    """The value of one attribute of one entity; None: nobody knows it. `myth` is a wrong value that people repeat."""

    entity: str
    attribute: str
    value: str | None
    myth: str | None
    split: str  # train, validation or test: the split whose prompts may ask for the fact

    @property
    def spec(self) -> Attribute:
        return ATTRIBUTES[self.attribute]

    def statement(self, value: str | None = None) -> str:
        return self.spec.statement.format(**{self.spec.entity: self.entity, self.spec.value: value or self.value})

    def question(self) -> str:
        return self.spec.question.format(**{self.spec.entity: self.entity})

    def noun(self) -> str:
        return self.spec.noun.format(**{self.spec.entity: self.entity})


@dataclass
class World:
    """All facts of one seed, about 750: 15 % are unknown to everybody, 12 % have a myth beside the truth."""

    seed: int = 0
    facts: dict[tuple[str, str], Fact] = field(default_factory=dict)

    def __post_init__(self):
        rng = random.Random(f"world-{self.seed}")
        for name, attribute in ATTRIBUTES.items():
            for entity in WORDS[attribute.entity]:
                value, myth = rng.sample(WORDS[attribute.value], 2)
                kind = rng.random()
                split = rng.choices(["train", "validation", "test"], [0.65, 0.1, 0.25])[0]
                self.facts[entity, name] = Fact(
                    entity, name, None if kind < 0.15 else value, myth if 0.15 <= kind < 0.27 else None, split
                )


@cache
def world(seed: int = 0) -> World:
    return World(seed)
