"""The words of the synthetic shop: 8 departments of 4 shelves and 6 invented brands each, and how they read.

`synthetic` decides which item stands on which shelf; this file turns shelf, brand and a few random numbers
into the texts of an item. Every name is invented.
"""

from __future__ import annotations

from collections.abc import Sequence

TEXT_FIELDS = ("title", "brand", "category", "description")
CATEGORY_FIELDS = ("category", "brand")
N_PICKS = 8

# Department: (brands, materials, {shelf: (kinds of item, what they are for)}).
_Shelf = tuple[tuple[str, ...], tuple[str, ...]]
DEPARTMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, _Shelf]]] = {
    "Kitchen": (
        ("Marlowen", "Tarnby", "Ovenna", "Crestel", "Pellmar", "Hobwick"),
        ("stainless steel", "bamboo", "stoneware", "silicone"),
        {
            "Baking": (
                ("cake tin", "rolling pin", "mixing bowl", "bread form", "dough scraper"),
                ("for bread that rises evenly", "for birthday cakes", "for a slow Sunday of baking"),
            ),
            "Coffee": (
                ("coffee dripper", "milk jug", "bean grinder", "espresso tamper", "coffee jar"),
                ("for a calm first cup", "for a café at home", "for beans ground just before brewing"),
            ),
            "Cutting": (
                ("chopping board", "paring knife", "vegetable peeler", "knife block", "herb mincer"),
                ("for quick weeknight vegetables", "for clean, thin slices", "for cooks who chop a lot"),
            ),
            "Food storage": (
                ("pantry canister", "lunch box", "spice rack", "bread bin", "fridge tray"),
                ("for a tidy pantry", "for leftovers that last", "for lunches on the go"),
            ),
        },
    ),
    "Garden": (
        ("Fernhollow", "Rootley", "Sodden & Sun", "Thistleby", "Greavewood", "Loamwell"),
        ("galvanised steel", "ash wood", "terracotta", "recycled plastic"),
        {
            "Watering": (
                ("watering can", "hose reel", "rain gauge", "drip feeder", "water butt"),
                ("for dry weeks in summer", "for pots on a balcony", "for beds that need a gentle rain"),
            ),
            "Planting": (
                ("seed tray", "hand trowel", "bulb planter", "plant label set", "raised bed"),
                ("for sowing in early spring", "for tulips in straight rows", "for a first vegetable patch"),
            ),
            "Pruning": (
                ("hedge shear", "pruning saw", "branch lopper", "rose secateur", "sharpening stone"),
                ("for old apple trees", "for roses and berry canes", "for hedges that grew too tall"),
            ),
            "Garden birds": (
                ("bird feeder", "nest box", "bird bath", "seed scoop", "feeder pole"),
                ("for tits and finches", "for hungry visitors in winter", "for watching birds from a window"),
            ),
        },
    ),
    "Cycling": (
        ("Velder", "Spokesby", "Cranlow", "Hillhorn", "Pedalix", "Wendrade"),
        ("anodised aluminium", "waxed cotton", "ripstop nylon", "carbon fibre"),
        {
            "Bike lights": (
                ("front light", "rear light", "helmet light", "wheel reflector", "light mount"),
                ("for dark commutes", "for foggy country lanes", "for being seen from the side"),
            ),
            "Bike bags": (
                ("saddle bag", "handlebar roll", "pannier", "frame bag", "top tube pouch"),
                ("for a week of touring", "for tools and a spare tube", "for the ride to work"),
            ),
            "Bike repair": (
                ("chain tool", "tyre lever", "floor pump", "spoke wrench", "repair stand"),
                ("for flats on the road", "for a workshop in the cellar", "for gears that shift cleanly"),
            ),
            "Cycling wear": (
                ("rain cape", "winter glove", "overshoe", "cycling cap", "wind vest"),
                ("for rides in cold rain", "for long climbs and fast descents", "for the first frost"),
            ),
        },
    ),
    "Desk": (
        ("Inkerton", "Foliant", "Deskaway", "Papyron", "Quirewell", "Blottmann"),
        ("recycled card", "walnut", "brass", "brushed aluminium"),
        {
            "Notebooks": (
                ("dotted notebook", "pocket diary", "sketch pad", "week planner", "index card box"),
                ("for lists and small drawings", "for a year of plans", "for notes that should last"),
            ),
            "Pens": (
                ("fountain pen", "gel pen", "pen case", "ink bottle", "mechanical pencil"),
                ("for letters by hand", "for writing without smudges", "for signing with a fine line"),
            ),
            "Desk lamps": (
                ("desk lamp", "clamp light", "reading lamp", "screen light bar", "lamp arm"),
                ("for late evenings", "for work without glare", "for a corner without a window"),
            ),
            "Filing": (
                ("ring binder", "document tray", "label maker", "drawer organiser", "archive box"),
                ("for bills and letters", "for a desk that stays clear", "for papers of many years"),
            ),
        },
    ),
    "Music": (
        ("Harrowtone", "Bellmont", "Chordwick", "Resona", "Tremalo", "Lyrebeck"),
        ("maple", "spruce", "rosewood", "nickel"),
        {
            "Guitar": (
                ("guitar strap", "capo", "string set", "guitar stand", "tuner clip"),
                ("for acoustic evenings", "for players on stage", "for beginners and their first songs"),
            ),
            "Piano": (
                ("piano bench", "key cover", "sustain pedal", "metronome", "music stand"),
                ("for daily practice", "for a good posture at the keys", "for lessons at home"),
            ),
            "Drums": (
                ("drumstick pair", "practice pad", "snare stand", "cymbal bag", "drum key"),
                ("for quiet practice", "for rehearsals and gigs", "for fast, light rolls"),
            ),
            "Recording": (
                ("microphone arm", "pop filter", "studio headphone", "cable set", "sound panel"),
                ("for a studio in the bedroom", "for spoken word", "for clear takes of a voice"),
            ),
        },
    ),
    "Camping": (
        ("Tarnfell", "Bivvern", "Larkmoor", "Ridgeby", "Outlandia", "Cairnwell"),
        ("ripstop polyester", "titanium", "merino wool", "anodised aluminium"),
        {
            "Tents": (
                ("ridge tent", "tarp", "tent peg set", "groundsheet", "guy line"),
                ("for two people and their packs", "for stormy nights", "for short weekends away"),
            ),
            "Camp stoves": (
                ("gas stove", "camp kettle", "windshield", "folding pot", "fuel bottle"),
                ("for porridge at dawn", "for meals above the tree line", "for boiling water in the wind"),
            ),
            "Sleeping bags": (
                ("sleeping bag", "sleeping mat", "camp pillow", "bag liner", "compression sack"),
                ("for nights below zero", "for light sleepers", "for huts and open skies"),
            ),
            "Navigation": (
                ("compass", "map case", "altimeter", "head torch", "signal whistle"),
                ("for paths without signs", "for walkers who trust paper", "for finding the way at night"),
            ),
        },
    ),
    "Painting": (
        ("Umbrien", "Palletta", "Ochre Lane", "Vermeil", "Canvaro", "Tintwell"),
        ("beech", "cotton", "linen", "enamelled tin"),
        {
            "Brushes": (
                ("flat brush", "rigger brush", "brush roll", "brush washer", "palette knife"),
                ("for broad washes", "for fine branches and lettering", "for thick, lively strokes"),
            ),
            "Art paper": (
                ("watercolour block", "pastel pad", "canvas panel", "tracing roll", "drawing board"),
                ("for wet work that stays flat", "for quick studies outdoors", "for soft chalk"),
            ),
            "Easels": (
                ("field easel", "table easel", "display stand", "painter's stool", "easel lamp"),
                ("for painting on a hillside", "for small rooms", "for large canvases"),
            ),
            "Paints": (
                ("watercolour set", "oil colour tube", "acrylic set", "gouache box", "varnish bottle"),
                ("for bright skies", "for colours that mix cleanly", "for portraits and warm shadows"),
            ),
        },
    ),
    "Pets": (
        ("Waggery", "Purrlock", "Burrowby", "Finwick", "Tailsworth", "Nibbleton"),
        ("woven rope", "felt", "brushed cotton", "smoothed pine"),
        {
            "Dogs": (
                ("dog lead", "chew toy", "dog bed", "training whistle", "travel bowl"),
                ("for strong pullers", "for puppies with new teeth", "for long walks in the woods"),
            ),
            "Cats": (
                ("scratching post", "cat tunnel", "window perch", "feather wand", "cat carrier"),
                ("for cats that stay indoors", "for naps in the sun", "for a calm trip to the vet"),
            ),
            "Aquarium": (
                ("tank filter", "gravel rake", "fish net", "aquarium light", "feeding ring"),
                ("for clear water", "for planted tanks", "for shy fish"),
            ),
            "Small pets": (
                ("hamster wheel", "hay rack", "rabbit hutch", "guinea pig tunnel", "water bottle"),
                ("for busy nights", "for rabbits that like to dig", "for a clean cage"),
            ),
        },
    ),
}
QUALITIES = (
    ("compact", "It takes up little room and goes into any drawer or bag."),
    ("sturdy", "It takes knocks and years of daily use."),
    ("lightweight", "You will hardly notice its weight."),
    ("classic", "Its plain shape has not changed for decades, for good reason."),
    ("well-made", "It feels right from the first day."),
    ("affordable", "It costs less than it looks."),
    ("handmade", "Each one is finished by hand and looks a little different."),
    ("all-weather", "Neither rain nor frost does it any harm."),
)
_MATERIAL_LINES = (
    "Comes with a case of {material}.",
    "The {material} trim ages well.",
    "Made with {material} from small suppliers.",
    "Finished with a touch of {material}.",
)
_BRAND_LINES = (
    "{brand} gives five years of guarantee.",
    "{brand} has made its name with things like this.",
    "Spare parts can be ordered from {brand} one by one.",
    "Designed by {brand} and tested by its customers.",
    "Part of the new season from {brand}.",
)
_EXTRAS = ("", "", ", Large", ", Small", ", Set of Two", ", Gift Edition")
_LAST_LINES = (
    "",
    "",
    "A spare is included.",
    "Comes without plastic wrapping.",
    "Instructions are printed on the box.",
    "Pairs well with others of the series.",
)

TOPICS = tuple((name, tuple(shelves)) for name, (_, _, shelves) in DEPARTMENTS.items())
N_MAKERS = 6


def describe(topic: str, subtopic: str, maker: int, picks: Sequence[int]) -> tuple[str, ...]:
    """Return the texts of an item in the order of `TEXT_FIELDS`.

    Args:
        topic: The department.
        subtopic: The shelf.
        maker: Number of the brand, below `N_MAKERS`.
        picks: `N_PICKS` random numbers of at least 0 that choose the words.
    """
    brands, materials, shelves = DEPARTMENTS[topic]
    kinds, uses = shelves[subtopic]
    brand = brands[maker]
    kind = kinds[picks[0] % len(kinds)]
    material = materials[picks[1] % len(materials)]
    quality, quality_line = QUALITIES[picks[2] % len(QUALITIES)]
    use = uses[picks[3] % len(uses)]
    title = f"{brand} {_capitals(quality)} {_capitals(kind)}{_EXTRAS[picks[4] % len(_EXTRAS)]}"
    article = "An" if quality[0] in "aeiou" else "A"
    lines = (
        f"{article} {quality} {kind} {use}.",
        _MATERIAL_LINES[picks[5] % len(_MATERIAL_LINES)].format(material=material),
        quality_line,
        _BRAND_LINES[picks[6] % len(_BRAND_LINES)].format(brand=brand),
        _LAST_LINES[picks[7] % len(_LAST_LINES)],
    )
    return title, brand, f"{topic}, {subtopic}", " ".join(line for line in lines if line)


def _capitals(words: str) -> str:
    return " ".join(word[0].upper() + word[1:] for word in words.split())
