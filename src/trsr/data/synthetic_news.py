"""The words of the synthetic newspaper: 8 sections of 4 columns each, 6 invented papers, and how they read.

`synthetic` decides which story belongs to which column; this file turns column, paper and a few random
numbers into the texts of a story. Every name of a place, club or paper is invented.
"""

from __future__ import annotations

from collections.abc import Sequence

TEXT_FIELDS = ("category", "subcategory", "title", "source", "abstract")
CATEGORY_FIELDS = ("category", "subcategory", "source")
N_PICKS = 6
N_MAKERS = 6

SOURCES = (
    "Harbour Courier",
    "Northfield Gazette",
    "The Evening Lantern",
    "Valley Post",
    "The Plain Reader",
    "Quayside Times",
)
# Section: {column: (who or what, what happened)}; every one of the first goes with every one of the second.
_Column = tuple[tuple[str, ...], tuple[str, ...]]
SECTIONS: dict[str, dict[str, _Column]] = {
    "sports": {
        "football": (
            ("Ashmere Rovers", "Millbrook Town", "The Dunholt women", "Coach Irena Vask's eleven"),
            (
                "win the derby with a late header",
                "sign a goalkeeper from abroad",
                "drop out of the cup on penalties",
            ),
        ),
        "cycling": (
            (
                "Sprinter Jonna Reel",
                "The Tarvel team",
                "Veteran climber Oskar Brandt",
                "A junior from Lowmarsh",
            ),
            ("takes the mountain stage", "loses a minute in the crosswind", "plans one last tour"),
        ),
        "tennis": (
            (
                "Top seed Mira Kolt",
                "Qualifier Ben Astor",
                "Doubles star Lena Quist",
                "Left-hander Paul Idris",
            ),
            (
                "reaches a first final on grass",
                "fights back from two sets down",
                "changes coach before the open",
            ),
        ),
        "rowing": (
            (
                "The Quayside eight",
                "Sculler Hanna Beck",
                "The university crew",
                "A pair of brothers from Eddle",
            ),
            ("sets a course record", "trains through the winter ice", "qualifies for the regatta"),
        ),
    },
    "money": {
        "markets": (
            (
                "The harbour exchange",
                "The shipbuilders' index",
                "The price of copper",
                "A fund for small savers",
            ),
            ("ends the week higher", "falls after a surprise report", "draws new buyers from overseas"),
        ),
        "housing": (
            (
                "The rental market of Northfield",
                "A block of timber flats",
                "The market for old cottages",
                "A housing co-op",
            ),
            (
                "gets a second look from the council",
                "surprises first-time buyers",
                "divides the neighbourhood",
            ),
        ),
        "jobs": (
            (
                "A shipyard in Dunholt",
                "The four-day week",
                "An apprentice scheme",
                "A start-up for repair work",
            ),
            ("finds more takers than places", "wins over doubtful managers", "is copied in three towns"),
        ),
        "savings": (
            (
                "A plain savings account",
                "The envelope method",
                "An old pension rule",
                "A shared family budget",
            ),
            ("beats its clever rivals", "makes a quiet comeback", "helps readers through the winter"),
        ),
    },
    "food": {
        "recipes": (
            (
                "A soup of roasted carrots",
                "The lemon tart of our reader",
                "A one-pan bean stew",
                "The Sunday dumpling",
            ),
            ("is ready in half an hour", "needs only six ingredients", "tastes even better the next day"),
        ),
        "restaurants": (
            (
                "A noodle bar by the station",
                "The oldest inn of Eddle",
                "A kitchen without a menu",
                "Café Larkspur",
            ),
            (
                "earns a place among our favourites",
                "opens after a long refit",
                "cooks only what the valley grows",
            ),
        ),
        "wine": (
            (
                "A white from stony slopes",
                "The new vintage",
                "A cellar in Tarvel",
                "Cider from forgotten apples",
            ),
            ("pleases the tasting panel", "costs less than you would think", "sells out before the spring"),
        ),
        "bread": (
            ("A rye loaf with caraway", "The sourdough of two sisters", "A night baker", "The village oven"),
            ("brings a queue to the door", "takes three patient days", "shares the secret of its crust"),
        ),
    },
    "science": {
        "space": (
            ("A probe the size of a shoe box", "A new comet", "The southern telescope", "A student rocket"),
            ("sends back its first pictures", "puzzles astronomers", "passes closer than expected"),
        ),
        "animals": (
            ("A colony of storks", "The shy river otter", "A deep-sea squid", "The city's oldest bat colony"),
            ("turns up where nobody looked", "remembers the way home", "is counted for the first time"),
        ),
        "climate": (
            (
                "A bog that was dry for decades",
                "The glacier above Tarvel",
                "A warm winter",
                "A mast full of sensors",
            ),
            (
                "tells more than the models did",
                "changes faster than planned for",
                "worries farmers downstream",
            ),
        ),
        "medicine": (
            (
                "A patch instead of a needle",
                "A trial with night nurses",
                "An old malaria drug",
                "A blood test",
            ),
            (
                "shows promise in a careful study",
                "spares patients a second visit",
                "needs larger trials, doctors say",
            ),
        ),
    },
    "travel": {
        "trains": (
            (
                "The night train to the coast",
                "A branch line with two stops",
                "The mountain railway",
                "A rail pass",
            ),
            (
                "returns after twenty years",
                "is slower and better than flying",
                "shows the country from behind",
            ),
        ),
        "hiking": (
            (
                "The ridge path above Lowmarsh",
                "A hut-to-hut week",
                "A pilgrim's short cut",
                "The river trail",
            ),
            ("rewards early risers", "asks for good boots", "stays empty even in August"),
        ),
        "islands": (
            ("A ferry to Sandrey", "The lighthouse of Holm", "An island with one shop", "A bay of seals"),
            ("makes a perfect long weekend", "takes guests out of season", "keeps its quiet for now"),
        ),
        "cities": (
            (
                "The canal quarter of Brevik",
                "A town of libraries",
                "A market under iron arches",
                "The tram museum",
            ),
            ("is best seen on foot", "deserves more than a day", "wakes up after dark"),
        ),
    },
    "culture": {
        "film": (
            (
                "A silent thriller",
                "The debut of Noor Halim",
                "A documentary about bells",
                "A comedy in one room",
            ),
            ("fills the small cinemas", "divides the critics", "wins the audience prize"),
        ),
        "books": (
            (
                "A novel about two lighthouse keepers",
                "The diary of a ferryman",
                "A thin book of poems",
                "A family saga",
            ),
            (
                "is the surprise of the season",
                "asks what we owe our parents",
                "reads like a letter to a friend",
            ),
        ),
        "theatre": (
            ("A play without words", "The harbour stage", "A king in a raincoat", "The youth ensemble"),
            ("holds the house for three hours", "moves into an old depot", "earns its standing ovation"),
        ),
        "concerts": (
            ("A choir of dock workers", "The string quartet of Eddle", "A lost symphony", "The jazz cellar"),
            ("plays to the last row", "sounds new after a century", "adds a second evening"),
        ),
    },
    "technology": {
        "phones": (
            (
                "A phone that can be repaired",
                "The smallest handset of the year",
                "A keypad revival",
                "A solar charger",
            ),
            ("lasts a week in our test", "does less, and that is the point", "costs half of its rivals"),
        ),
        "privacy": (
            (
                "A law on smart doorbells",
                "A leak at a parking app",
                "A complaint by three neighbours",
                "A quiet browser",
            ),
            ("leaves questions open", "shows what is stored about us", "finds friends in parliament"),
        ),
        "robots": (
            (
                "A robot that folds towels",
                "The weeding machine",
                "A delivery cart",
                "An arm with soft fingers",
            ),
            ("starts work in a real house", "learns from its mistakes", "still needs a helping hand"),
        ),
        "games": (
            (
                "A puzzle game about tides",
                "A farm on a comet",
                "The return of a text adventure",
                "A game for two",
            ),
            (
                "is made by three friends",
                "takes an evening and stays for weeks",
                "tops the charts of the small studios",
            ),
        ),
    },
    "health": {
        "running": (
            ("A plan for the first five miles", "Barefoot running", "A slow mile a day", "A lunch-hour run"),
            ("works better than willpower", "gets praise from coaches", "suits beginners past fifty"),
        ),
        "sleep": (
            ("A cool bedroom", "The afternoon nap", "An hour without screens", "The shift worker's rest"),
            ("does more than any tea", "is better than its name", "is put to the test in a sleep lab"),
        ),
        "nutrition": (
            ("A handful of nuts", "A bowl of porridge", "Cheap frozen spinach", "A plate of lentils"),
            ("keeps up with the fancy kind", "is simpler than the labels say", "feeds four for little money"),
        ),
        "mind": (
            (
                "A walk without a phone",
                "A class in doing nothing",
                "The worry diary",
                "A chat with a stranger",
            ),
            ("lifts the mood for hours", "is prescribed by some doctors", "helps where advice does not"),
        ),
    },
}
_SECOND_LINES = (
    "Our reporter spent a day on the spot.",
    "Those who know it best are careful with their hopes.",
    "It began with a letter from a reader.",
    "Not everybody in town is pleased.",
    "The figures were published on Tuesday.",
    "Similar stories are heard all along the coast.",
)
_THIRD_LINES = (
    "",
    "A guide with the most important questions and answers.",
    "What comes next will be decided in the autumn.",
    "With a map and many pictures.",
    "The second part follows next week.",
)
_LEADS = ("", "", "Report: ", "Weekend read: ", "In brief: ")

TOPICS = tuple((name, tuple(columns)) for name, columns in SECTIONS.items())


def describe(topic: str, subtopic: str, maker: int, picks: Sequence[int]) -> tuple[str, ...]:
    """Return the texts of a story in the order of `TEXT_FIELDS`.

    Args:
        topic: The section.
        subtopic: The column.
        maker: Number of the paper, below `N_MAKERS`.
        picks: `N_PICKS` random numbers of at least 0 that choose the words.
    """
    who, what = SECTIONS[topic][subtopic]
    headline = f"{who[picks[0] % len(who)]} {what[picks[1] % len(what)]}"
    abstract = " ".join(
        line
        for line in (
            f"News from the world of {subtopic}: {headline}.",
            _SECOND_LINES[picks[3] % len(_SECOND_LINES)],
            _THIRD_LINES[picks[4] % len(_THIRD_LINES)],
        )
        if line
    )
    return topic, subtopic, _LEADS[picks[2] % len(_LEADS)] + headline, SOURCES[maker], abstract
