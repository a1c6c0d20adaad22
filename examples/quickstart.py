"""From two tables to recommendations, with the embedded model.

python examples/quickstart.py                          # a small made-up shop
python examples/quickstart.py items.csv events.csv     # your own tables
"""

import argparse
import tempfile
from pathlib import Path

import trsr
from trsr.data.synthetic import SyntheticConfig, generate


def made_up_shop(folder: Path) -> tuple[Path, Path]:
    shop = generate(SyntheticConfig(domain="products", n_users=60, n_items=200), folder / "shop")
    shop.items().sink_csv(folder / "items.csv")
    shop.events().drop("position").sink_csv(folder / "events.csv")
    return folder / "items.csv", folder / "events.csv"


def main(items: Path, events: Path, model_name: str, out: Path) -> None:
    data = trsr.Dataset.from_tables(items, events)
    summarizer = trsr.Summarizer("recurrent", model=model_name)
    profiles = summarizer.summarize(data)
    user, profile = next(iter(profiles.items()))
    print(f"{len(profiles)} profiles; {user}: {profile.text}")

    split = trsr.split(data)
    prompt = {"n_recent": 3, "max_field_tokens": 12}
    trsr.fine_tune(model_name, split.train, profiles, out=out, valid=split.valid, prompt=prompt)

    model = trsr.Recommender.from_pretrained(out)
    for item in model.rank(history=split.test[0].history, candidates=split.test[0].candidates[:3]):
        print(f"{item.rank}. {item.title} ({item.score:.2f})")
    for item in model.recommend(user, top_n=3):
        print(f"{user} may like {item.title} ({item.score:.2f})")
    print(trsr.evaluate([model, trsr.Popularity(data), trsr.BM25(data)], split.test))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", type=Path, help="items.csv events.csv")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("my-model"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        items, events = given.tables or made_up_shop(Path(folder))
        main(items, events, given.model, given.out)
