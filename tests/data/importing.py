"""Each kind of import as a call: the files, the dataset folder, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trsr.data.amazon import AmazonM2Import, AmazonReviewsImport
from trsr.data.dataset import Dataset
from trsr.data.mind import MindImport
from trsr.data.movielens import MovieLensImport
from trsr.data.raw_file import ImportOptions
from trsr.data.table import TableImport


def run(model: type[ImportOptions], out: Path, *, overwrite: bool = False, **options: Any) -> Dataset:
    return Dataset.open(model.checked(**options).run(out, overwrite=overwrite))


def import_mind(source: Path, out: Path, **options: Any) -> Dataset:
    return run(MindImport, out, source=source, **options)


def import_amazon_m2(source: Path, out: Path, **options: Any) -> Dataset:
    return run(AmazonM2Import, out, source=source, **options)


def import_amazon_reviews(source: Path, out: Path, **options: Any) -> Dataset:
    return run(AmazonReviewsImport, out, source=source, **options)


def import_movielens(source: Path, out: Path, **options: Any) -> Dataset:
    return run(MovieLensImport, out, source=source, **options)


def import_table(items: Path, events: Path, out: Path, **options: Any) -> Dataset:
    return run(TableImport, out, items=items, events=events, **options)
