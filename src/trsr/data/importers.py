"""One value that says what to import and how, as a YAML file carries it, and the importer it leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from trsr.data.amazon import AmazonM2Import, AmazonReviewsImport, import_amazon_m2, import_amazon_reviews
from trsr.data.dataset import Dataset
from trsr.data.mind import MindImport, import_mind
from trsr.data.movielens import MovieLensImport, import_movielens
from trsr.data.table import TableImport, import_table

ImportConfig = Annotated[
    MindImport | AmazonM2Import | AmazonReviewsImport | MovieLensImport | TableImport,
    Field(discriminator="kind"),
]


def run_import(config: ImportConfig, out: str | Path, *, overwrite: bool = False) -> Dataset:
    """Make a dataset folder at `out` as the configuration says.

    Raises:
        DataError: the raw files cannot be used, or `out` is in the way.
        OutputError: `out` cannot be written.
    """
    match config:
        case MindImport():
            return import_mind(out=out, overwrite=overwrite, **_options(config))
        case AmazonM2Import():
            return import_amazon_m2(out=out, overwrite=overwrite, **_options(config))
        case AmazonReviewsImport():
            return import_amazon_reviews(out=out, overwrite=overwrite, **_options(config))
        case MovieLensImport():
            return import_movielens(out=out, overwrite=overwrite, **_options(config))
        case TableImport():
            return import_table(out=out, overwrite=overwrite, **_options(config))


def _options(config: BaseModel) -> dict[str, Any]:
    return {key: value for key, value in config if key != "kind"}
