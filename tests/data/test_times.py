from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from trsr.data.columns import find_time_column, time_like_columns
from trsr.data.times import TimeReader
from trsr.errors import DataError

NOON = datetime(2019, 11, 12, 12, 0, 1, tzinfo=UTC)
MIDNIGHT = datetime(2019, 11, 12, tzinfo=UTC)


def read(*texts: str | None, time_format: str | None = None, at_once: int = 2) -> list[datetime | None]:
    reader = TimeReader("e.csv", "when", time_format)
    batches = [pl.Series(texts[i : i + at_once], dtype=pl.String) for i in range(0, len(texts), at_once)]
    first = [(batch, *reader.read(batch)) for batch in batches]
    reader.decide()
    found: list[datetime | None] = []
    for batch, times, later in first:
        at_the_end, still_open = reader.read(batch, final=True)
        assert not still_open.any()
        found += times.zip_with(~later, at_the_end).to_list()
    return found


READ: dict[datetime | None, tuple[str | None, ...]] = {
    NOON: (
        *("1573560001", "1573560001.0", "1573560001000", "1573560001000000", "1573560001000000000"),
        *("1.573560001e+09", "1573560001,0", "2019-11-12T12:00:01Z", "2019-11-12T14:00:01+02:00"),
        *("2019-11-12T14:00:01+02:00[Europe/Berlin]", "2019-11-12 07:00:01 -0500", "2019-11-12 12:00:01+00"),
        *("2019-11-12 12:00:01 UTC", "2019-11-12 12:00:01.000 UTC", "2019-11-12 12:00:01"),
        *("20191112T120001Z", "20191112120001", "2019:11:12 12:00:01", "2019年11月12日 12:00:01"),
        *("2019-Nov-12 12:00:01 pm", "Tue, 12 Nov 2019 12:00:01 +0000", "Tue, 12 Nov 2019 12:00:01 GMT"),
        *("12/Nov/2019:13:00:01 +0100", "Tue Nov 12 12:00:01 2019", "Tue Nov 12 12:00:01 +0000 2019"),
        "Tue Nov 12 2019 13:00:01 GMT+0100 (Central European Standard Time)",
        *("Tuesday, November 12, 2019 at 12:00:01 PM", "12-NOV-19 12.00.01.000000 PM"),
        *("/Date(1573560001000)/", "$date: 2019-11-12T12:00:01Z"),
    ),
    NOON.replace(second=0): ("2019-11-12 12:00", "201911121200"),
    NOON.replace(microsecond=500_000): ("2019-11-12T12:00:01.5", "2019-11-12 12:00:01,5"),
    MIDNIGHT: ("20191112", "20191112.0", "2019-11-12", "2019/11/12", "12th November 2019"),
    None: (
        *("12/11/2019 24:00", "yesterday", "12:00:01", "inf", "1e300", "0", "-1", "201911", "2019111212"),
        *("1.57356E+12", "637091568010000000", "0000-00-00 00:00:00", "2019-02-29", "31/31/2019"),
        *("٣١/١٢/٢٠١٩", "", None),
    ),
}


@pytest.mark.parametrize(("time", "text"), [(time, text) for time, texts in READ.items() for text in texts])
def test_times_are_read_in_their_only_possible_reading(text: str | None, time: datetime | None) -> None:
    assert read(text) == [time]


def test_times_of_several_clear_forms_in_one_column_are_all_read() -> None:
    texts = ["nothing", "2019-11-12 12:00:01", None, "1573560001", "20191112", "12 Nov 2019 12:00:01"]
    assert read(*texts) == [None, NOON, None, NOON, MIDNIGHT, NOON]


@pytest.mark.parametrize(
    ("clear", "time"),
    [
        ("13.11.2019 12:00", datetime(2019, 12, 11, tzinfo=UTC)),
        ("11/13/2019 1:00:00 PM", MIDNIGHT),
    ],
)
def test_the_order_of_day_and_month_is_found_in_the_whole_column(clear: str, time: datetime) -> None:
    assert read("11/12/2019", "10/10/2019", None, "11/11/2019", clear)[0] == time


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["11/12/2019", "1/1/2019"], "'11/12/2019' can be read day-first or month-first.*--time-format day"),
        (["13/12/2019", "12/13/2019"], ".* cannot be read in one order of day and month.*--time-format"),
        (["11.12.19"], ".* day-first or month-first or year-first"),
    ],
)
def test_a_column_with_several_readings_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(DataError, match=rf"e.csv, column 'when': {words}"):
        read(*texts)


def test_dates_that_mean_the_same_in_both_orders_are_read() -> None:
    assert read("05/05/2025") == [datetime(2025, 5, 5, tzinfo=UTC)]


def test_day_numbers_are_read_where_all_numbers_of_a_column_are_such() -> None:
    noon = MIDNIGHT.replace(hour=12)
    assert read("43781", "43781.5", "2019-11-12", "0") == [MIDNIGHT, noon, MIDNIGHT, None]
    assert read("43781", "2019-11-12", "100") == [None, MIDNIGHT, None]


@pytest.mark.parametrize("texts", [["3", "1", "0"], ["100", "45000", "2019"], ["1.5", None, "x"]])
def test_small_numbers_alone_give_an_order(texts: list[str | None]) -> None:
    reader = TimeReader("e.csv", "when")
    series = pl.Series(texts, dtype=pl.String)
    times, later = reader.read(series)
    assert times.null_count() == len(texts)
    reader.decide()
    in_order, _ = reader.read(series.filter(later), final=True)
    assert reader.order_only
    assert in_order.arg_sort().to_list() == series.filter(later).cast(pl.Float64).arg_sort().to_list()


def test_numbers_that_can_be_dates_in_another_order_give_none() -> None:
    assert read("311225", "010126") == [None, None]
    assert read("5", "100000") == [None, None]
    assert read("5", "2019-11-12") == [None, MIDNIGHT]


@pytest.mark.parametrize(
    ("text", "time_format", "time"),
    [
        ("300", "epoch-s", datetime(1970, 1, 1, 0, 5, tzinfo=UTC)),
        ("1573560001000", "epoch-ms", NOON),
        ("18212", "epoch-days", MIDNIGHT),
        ("43781,5", "excel", MIDNIGHT.replace(hour=12)),
        ("42319", "excel-1904", MIDNIGHT),
        ("637091568010000000", "dotnet-ticks", NOON),
        ("132180336010000000", "filetime", NOON),
        ("12/11/2019", "day-first", MIDNIGHT),
        ("11/12/2019", "month-first", MIDNIGHT),
        ("19.11.12", "year-first", MIDNIGHT),
        ("12.11.2019 12:00:01", "%d.%m.%Y %H:%M:%S", NOON),
        ("12.11.2019 13:00:01.0 +0100", "%d.%m.%Y %H:%M:%S.%f %z", NOON),
        ("2019111212", "%Y%m%d%H", NOON.replace(second=0)),
        ("2019", "%Y", datetime(2019, 1, 1, tzinfo=UTC)),
        ("2019-11-12", "%d.%m.%Y", None),
        ("1e300", "epoch-s", None),
    ],
)
def test_a_named_format_is_followed(text: str, time_format: str, time: datetime | None) -> None:
    assert read(text, time_format=time_format) == [time]


def test_an_unknown_format_is_one_sentence() -> None:
    with pytest.raises(DataError, match="no time format 'epoch'; expected one of epoch-s"):
        TimeReader("e.csv", "when", "epoch")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("order_date", "order_date"),
        ("ordered_at,updated_at", "ordered_at"),
        ("updated_at,created_at", "created_at"),
        ("order_purchase_timestamp,order_status", "order_purchase_timestamp"),
        ("Date Time", "Date Time"),
        ("InvoiceDate", "InvoiceDate"),
        ("ts", "ts"),
        ("eventTs", "eventTs"),
        ("t_dat", "t_dat"),
        ("unixReviewTime,reviewTime", "unixReviewTime"),
        ("timestamp,date", "timestamp"),
        ("order_date,ship_date,birth_date", "order_date"),
        ("updated_at", "updated_at"),
        ("timezone,birthdate,duration,status,data", None),
    ],
)
def test_the_time_column_is_found_by_its_name(columns: str, found: str | None) -> None:
    assert find_time_column("e.csv", columns.split(",")) == found


def test_two_equally_good_time_columns_are_refused() -> None:
    with pytest.raises(DataError, match=r"order_date, event_time.*name one with --timestamp"):
        find_time_column("e.csv", ["order_date", "event_time"])


def test_columns_look_like_times_by_name_or_by_value() -> None:
    frame = pl.DataFrame(
        {"user": ["1", "2"], "wann": ["2019-11-12"] * 2, "kauf_datum": ["x", "y"], "n": ["3", "4"]}
    )
    assert time_like_columns(frame) == ["wann", "kauf_datum"]
