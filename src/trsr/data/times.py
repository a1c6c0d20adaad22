"""Read times as other systems write them: each text in its only possible reading, or not at all.

Self-contained forms (ISO 8601, month names, compact dates, epochs of today's size) are read text by text.
A text with several readings (`05/01/2025`, a two-digit year, an Excel day number) is decided by the
whole column: it is read only where one reading fits every text; otherwise the column is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl

from trsr.data.schema import TIME
from trsr.errors import DataError

UNREADABLE = "time cannot be read"
DAY_FIRST, MONTH_FIRST, YEAR_FIRST = "day-first", "month-first", "year-first"
# Order -> which part of `_OPEN` is year, month and day.
_ORDERS = {DAY_FIRST: ("c", "b", "a"), MONTH_FIRST: ("c", "a", "b"), YEAR_FIRST: ("a", "b", "c")}
_DAY = 86_400_000_000
_YEARS_1_TO_9999 = (-62_135_596_800_000_000, 253_402_300_799_999_999)  # in microseconds: Python's range


def _micros(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp() * 1e6  # type: ignore[misc,arg-type] # year, month, day


# Numbers by name: microseconds a unit, and where zero lies.
NUMBERS = {
    "epoch-s": (1e6, 0.0),
    "epoch-ms": (1e3, 0.0),
    "epoch-us": (1.0, 0.0),
    "epoch-ns": (1e-3, 0.0),
    "epoch-days": (float(_DAY), 0.0),
    "excel": (float(_DAY), _micros(1899, 12, 30)),
    "excel-1904": (float(_DAY), _micros(1904, 1, 1)),
    "dotnet-ticks": (0.1, _micros(1, 1, 1)),
    "filetime": (0.1, _micros(1601, 1, 1)),
}
# Readings of a number without a name: 1990 to 2100 in the epochs (larger ones of ten digits are a date and an
# hour, and 18 digits can be .NET ticks), 2000 to 2050 in Excel's days. None of these ranges meet.
_RANGES = {
    "epoch-s": (631_152_000.0, 1_990_000_000.0),
    "epoch-ms": (631_152_000e3, 4_102_444_800e3),
    "epoch-us": (631_152_000e6, 4_102_444_800e6),
    "epoch-ns": (1e18, 4_102_444_800e9),
    "excel": (36_526.0, 54_789.0),
}
ORDER = "order"
_ORDER_RANGE = (0.0, 100_000.0)  # larger ones can be dates in another order of digits, such as 311225
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<m>Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|"
    r"Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_CLOCK = (
    r"(?:(?:T|,? at |[ ,:-])\s*(?P<h>\d{1,2})"
    r"(?:[:.h](?P<min>\d{2})(?:[:.](?P<s>\d{2})(?:[.,:](?P<f>\d{1,9}))?)?)?"
    r"\s*(?:(?P<half>[AP])\.?M\.?)?"
    r"\s*(?:(?:UTC|GMT|Z)?(?P<zone>[+-]\d{2})(?::?(?P<zone_min>\d{2}))?(?:\[[\w/+-]+\])?|UTC|GMT|Z)?)?"
)
_SEPARATOR = r" ?[-/.] ?"
_TH = r"(?:st|nd|rd|th)?"
_ISO = "year-month-day"
_MIND = "%m/%d/%Y %I:%M:%S %p"
_FAST = dict.fromkeys(
    ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"),
    _ISO,
)
_WRITTEN = {
    _ISO: r"(?P<y>\d{4})(?: ?[-/.:_] ?)(?P<m>\d{1,2})(?: ?[-/.:_] ?)(?P<d>\d{1,2})",
    "day month year": (
        rf"(?P<d>\d{{1,2}}){_TH}(?:\.? |[-/.])(?:of )?{_MONTH}(?:,? |[-/.])(?P<y>\d{{4}}|\d{{2}})"
    ),
    "month day year": rf"{_MONTH} ?(?P<d>\d{{1,2}}){_TH},? (?P<y>\d{{4}})",
    "year month day": rf"(?P<y>\d{{4}})[-/. ]{_MONTH}[-/. ](?P<d>\d{{1,2}})",
}
_OPEN = "day and month"
_WRITTEN[_OPEN] = rf"(?P<a>\d{{1,2}}){_SEPARATOR}(?P<b>\d{{1,2}}){_SEPARATOR}(?P<c>\d{{4}}|\d{{2}})"
_COMPACT = r"^(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{4}|\d{6})?(?:\.0*)?$"
# Ignored text around a time, and other orders of its parts.
_TIDY = (
    (r"^\$date: (?:\$numberLong: )?|^/Date\(|\)/$|^ISODate\(|^['\"]+|['\"]?\)?['\"]*$", ""),
    (r" ?\([A-Z][A-Za-z ]*\)?$", ""),
    (r"^(?i:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? +", ""),
    (r"^([A-Za-z]{3,9} +\d{1,2}) (\d{1,2}:\d{2}:\d{2}) ?([+:\w-]*) (\d{4})$", "${1} ${4} ${2} ${3}"),
    (r"^(\d{4})(\d{2})(\d{2})[T ](\d{2}):?(\d{2}):?(\d{2})?", "${1}-${2}-${3}T${4}:${5}:${6}"),
    (r"^([\d/.-]+ [\d:]+):($|Z|[+-])", "${1}${2}"),
    (r"^(\d{4}) ?[年] ?(\d{1,2}) ?月 ?(\d{1,2}) ?日?", "${1}-${2}-${3}"),
    (r" ?(\d{1,2}) ?時 ?(\d{1,2}) ?分(?: ?(\d{1,2}) ?秒)?", " ${1}:${2}"),
    (r"^(\d+),(\d+)$", "${1}.${2}"),
    (r"(\d) ?Uhr$", "${1}"),
    (r"\s+", " "),
)


class TimeReader:
    """Reads the times of one column, batch by batch; `forms` counts the texts by the form they had."""

    def __init__(self, file: str, column: str, time_format: str | None = None) -> None:
        """Read `column` of `file`; `time_format` is a name, or a pattern such as `%d.%m.%Y %H:%M`.

        Raises:
            DataError: the format is no such name or pattern.
        """
        if time_format is not None and time_format not in (*NUMBERS, *_ORDERS) and "%" not in time_format:
            known = ", ".join((*NUMBERS, *_ORDERS))
            raise DataError(
                f"There is no time format {time_format!r}; expected one of {known}, or a pattern such as "
                "'%d.%m.%Y %H:%M'."
            )
        self._where = f"{file}, column {column!r}"
        self._format = time_format
        self._order = time_format if time_format in _ORDERS else None
        self._evidence = {4: _Evidence(), 2: _Evidence()}
        self._small: set[str] = {"excel", ORDER}  # possible meanings of the column's small numbers
        self.forms: Counter[str] = Counter()

    def read(self, texts: pl.Series, *, final: bool = False) -> tuple[pl.Series, pl.Series]:
        """Return the times (null where a text cannot be read), and a mask of texts to read again at the end.

        After `decide`, with `final`, no text is left open.
        """
        texts = texts.str.strip_chars()
        times, later = _no_times(texts), _none_of(texts)
        if texts.null_count() == len(texts):
            return times, later
        if self._format is not None and self._format not in _ORDERS:
            times = self._count(self._format, _in_format(texts, self._format))
        else:
            times, later = self._guess(texts, final)
            rest = times.is_null() & ~later & texts.is_not_null()
            if rest.any():
                tidied, open_too = self._guess(_tidy(texts.filter(rest)), final)
                at = rest.arg_true()
                times = times.scatter(at, tidied)
                later = later.scatter(at, open_too)
        return times, later

    def _count(self, form: str, times: pl.Series) -> pl.Series:
        if n := len(times) - times.null_count():
            self.forms[form] += n
        return times

    def _guess(self, texts: pl.Series, final: bool) -> tuple[pl.Series, pl.Series]:
        numbers = texts.cast(pl.Float64, strict=False)
        times = self._numbers(texts, numbers, final)
        later = _none_of(texts)
        if not final and self._small:
            later = self._open_numbers(numbers, times)
        rest = times.is_null() & texts.is_not_null() & numbers.is_null()
        if not rest.any():
            return times, later
        first = texts.filter(rest).head(1)
        fast = _FAST if self._order != MONTH_FIRST else {**_FAST, _MIND: MONTH_FIRST}
        for form in (form for form in fast if _strptime(first, form)[0] is not None):
            read = _strptime(texts, form)
            self._count(fast[form], read.filter(rest))
            times = times.zip_with(~rest, read)
            rest &= read.is_null()
        for form, pattern in sorted(_WRITTEN.items(), key=lambda one: not _matches(first, one[1])):
            if not rest.any():
                break
            parts = texts.filter(rest).str.extract_groups(_whole(pattern)).struct.unnest()
            if form == _OPEN:
                read, open_ = self._ordered(texts.filter(rest), parts, final)
                later = later.scatter(rest.arg_true(), open_)
            else:
                read = self._count(form, _from_parts(parts, "y", "m", "d"))
            times = times.scatter(rest.arg_true(), read)
            rest &= times.is_null() & ~later
        return times, later

    def _numbers(self, texts: pl.Series, numbers: pl.Series, final: bool) -> pl.Series:
        times = _no_times(texts)
        if numbers.null_count() == len(numbers):
            return times
        rounded = texts.str.contains(r"[eE]") & ~texts.str.replace_all(r"[eE].*|\D", "").str.contains(
            r"^\d{10}"
        )
        for form, (low, high) in _RANGES.items():
            if form == "excel" and not (final and self._small == {"excel"}):
                continue
            good = (numbers.is_between(low, high, closed="left") & ~rounded).fill_null(False)
            if good.any():
                read = _from_numbers(numbers, form)
                self._count(form, read.filter(good))
                times = times.zip_with(~good, read)
        if final and self._small == {ORDER}:
            times = self._count(ORDER, _from_numbers(numbers, "epoch-s"))
        compact = (texts.str.contains(_COMPACT) & times.is_null()).fill_null(False)
        if compact.any():
            digits = texts.filter(compact).str.replace(r"\..*", "").str.pad_end(14, "0")
            read = digits.str.to_datetime("%Y%m%d%H%M%S", strict=False, time_unit="us")
            read = self._count("compact", read.dt.replace_time_zone("UTC"))
            times = times.scatter(compact.arg_true(), read)
        return times

    def _open_numbers(self, numbers: pl.Series, times: pl.Series) -> pl.Series:
        """Return which numbers are small, and exclude impossible meanings: Excel's days, or an order."""
        rest = (times.is_null() & numbers.is_not_null()).fill_null(False)
        days = numbers.is_between(*_RANGES["excel"], closed="left") | numbers.is_in([0.0, -1.0])
        small = rest & numbers.is_between(*_ORDER_RANGE, closed="left").fill_null(False)
        if not (days | ~rest).all():
            self._small.discard("excel")
        if not (small | ~rest).all():
            self._small.discard(ORDER)
        return small

    def _ordered(self, texts: pl.Series, parts: pl.DataFrame, final: bool) -> tuple[pl.Series, pl.Series]:
        """Read numeric dates with the year at the end, once their order is known."""
        times, open_ = _no_times(texts), _none_of(texts)
        for width, evidence in self._evidence.items():
            mine = (parts["c"].str.len_bytes() == width).fill_null(False)
            if not mine.any():
                continue
            mine_parts = parts.filter(mine)
            order = self._order if self._order in _orders(width) else evidence.order
            at = mine.arg_true()
            if order is not None:
                read = self._count(order, _from_parts(mine_parts, *_ORDERS[order]))
                times = times.scatter(at, read)
            elif not final:
                readings = {order: _from_parts(mine_parts, *_ORDERS[order]) for order in _orders(width)}
                some = evidence.add(texts.filter(mine), readings)
                open_ = open_.scatter(at, some)
        return times, open_

    def decide(self) -> None:
        """Decide how the texts that were left open are read.

        Small numbers alone, none of them a possible date, give an order only.

        Raises:
            DataError: none or several fit the whole column.
        """
        for evidence in self._evidence.values():
            evidence.decide(self._where)
        if "excel" in self._small or self.forms or any(e.order for e in self._evidence.values()):
            self._small.discard(ORDER)

    @property
    def order_only(self) -> bool:
        """Whether the texts are numbers that give an order and no times; they are read as if since 1970."""
        return self._small == {ORDER} and ORDER in self.forms


class _Evidence:
    """Evidence of a column for the order of day, month and year."""

    def __init__(self) -> None:
        self.order: str | None = None
        self._against: dict[str, str] = {}  # reading -> a text that it does not fit
        self._differs = ""  # a text with several readings
        self._readings: list[str] = []

    def add(self, texts: pl.Series, readings: dict[str, pl.Series]) -> pl.Series:
        """Add texts and their readings; return which have one."""
        self._readings = list(readings)
        table = pl.DataFrame(readings)
        some = table.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        for order, times in readings.items():
            if order not in self._against and (wrong := some & times.is_null()).any():
                self._against[order] = texts.filter(wrong)[0]
        if not self._differs:
            several = table.select(pl.min_horizontal(pl.all()) != pl.max_horizontal(pl.all())).to_series()
            if several.any():
                self._differs = texts.filter(several.fill_null(False))[0]
        return some

    def decide(self, where: str) -> None:
        left = [order for order in self._readings if order not in self._against]
        named = " or ".join(f"--time-format {order}" for order in self._readings)
        if not self._readings:
            return
        if not left:
            found = " and ".join(repr(text) for text in dict.fromkeys(self._against.values()))
            raise DataError(f"{where}: {found} cannot be read in one order of day and month; give {named}.")
        if len(left) > 1 and self._differs:
            raise DataError(
                f"{where}: {self._differs!r} can be read {' or '.join(left)}, and no row decides; "
                f"give {named}."
            )
        self.order = left[0]


def _no_times(texts: pl.Series) -> pl.Series:
    return pl.repeat(None, len(texts), dtype=TIME, eager=True)


def _none_of(texts: pl.Series) -> pl.Series:
    return pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)


def _matches(text: pl.Series, date: str) -> bool:
    return bool(text.str.contains(_whole(date)).any())


def _strptime(texts: pl.Series, form: str) -> pl.Series:
    zone = "UTC" if "%#z" in form else None
    times = texts.str.to_datetime(form, strict=False, time_unit="us", time_zone=zone)
    times = times if zone else times.dt.replace_time_zone("UTC")
    return times.set(~times.dt.epoch("us").is_between(*_YEARS_1_TO_9999).fill_null(True), None)


def _whole(date: str) -> str:
    return f"(?i)^{date}{_CLOCK}$".replace(r"\d", "[0-9]")  # digits of other scripts are no numbers here


def _orders(width: int) -> Sequence[str]:
    return (DAY_FIRST, MONTH_FIRST) if width == 4 else tuple(_ORDERS)


def _from_parts(parts: pl.DataFrame, year: str, month: str, day: str) -> pl.Series:
    """Return the times of parts of texts; null where there is none, or no such day or time of day."""
    names = {name: number for number, name in enumerate(_MONTHS, start=1)}
    y = pl.col(year).cast(pl.Int32)
    y = (
        pl.when(pl.col(year).str.len_bytes() > 2)
        .then(y)
        .otherwise(y + pl.when(y < 69).then(2000).otherwise(1900))
    )
    by_name = pl.col(month).str.to_lowercase().str.head(3).replace_strict(names, default=None)
    m = pl.coalesce(pl.col(month).cast(pl.Int32, strict=False), by_name.cast(pl.Int32))
    hour, half = pl.col("h").cast(pl.Int32).fill_null(0), pl.col("half").str.to_lowercase()
    twelve = pl.when(hour.is_between(1, 12)).then(hour % 12 + pl.when(half == "p").then(12).otherwise(0))
    hour = pl.when(half.is_null()).then(hour).otherwise(twelve)
    clock = [hour, *(pl.col(part).cast(pl.Int32).fill_null(0) for part in ("min", "s"))]
    fraction = pl.col("f").fill_null("0").str.pad_end(6, "0").str.head(6).cast(pl.Int64)
    zone = pl.col("zone").cast(pl.Int64).fill_null(0)
    shift = zone.abs() * 60 + pl.col("zone_min").cast(pl.Int64).fill_null(0)
    shift = pl.when(pl.col("zone").str.starts_with("-")).then(-shift).otherwise(shift)
    within = clock[0].is_between(0, 23) & clock[1].is_between(0, 59) & clock[2].is_between(0, 59)
    good = m.is_between(1, 12) & y.is_between(1, 9999) & within
    d = pl.col(day).cast(pl.Int64)
    first = pl.date(pl.when(good).then(y), pl.when(good).then(m), pl.lit(1))
    micros = first.cast(pl.Int64) * _DAY + (d - 1) * _DAY + fraction
    micros += (clock[0].cast(pl.Int64) * 3600 + clock[1] * 60 + clock[2] - shift * 60) * 1_000_000
    good = good & d.is_between(1, first.dt.days_in_month()) & micros.is_between(*_YEARS_1_TO_9999)
    return parts.select(pl.when(good).then(micros).cast(TIME).alias("time")).to_series()


def _from_numbers(numbers: pl.Series, form: str) -> pl.Series:
    unit, zero = NUMBERS[form]
    since = (pl.col("n") * unit + zero).round()
    good = since.is_between(*_YEARS_1_TO_9999)
    return (
        numbers.to_frame("n")
        .select(pl.when(good).then(since).cast(pl.Int64, strict=False).cast(TIME))
        .to_series()
    )


def _in_format(texts: pl.Series, form: str) -> pl.Series:
    """Read texts in a format that the user named."""
    if form in NUMBERS:
        return _from_numbers(
            texts.str.replace(r"^(-?\d+),(\d+)$", "${1}.${2}").cast(pl.Float64, strict=False), form
        )
    pattern = re.sub(r"\.%f", "%.f", form).replace("%z", "%#z").replace("%:z", "%#z")
    if re.search(r"%[HI]", pattern) and "%M" not in pattern and not re.search(r"%[TRXcr]", pattern):
        pattern, texts = pattern + " %M", texts + " 00"  # the reader wants minutes with an hour
    try:
        return _strptime(texts, pattern)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"The time format {form!r} cannot be used ({reason}); name another --time-format."
        ) from error


def _tidy(texts: pl.Series) -> pl.Series:
    for pattern, plain in _TIDY:
        texts = texts.str.replace_all(pattern, plain)
    return texts.str.strip_chars()
