"""A translation task that needs no download: dates as people write them -> ISO dates.

    Sunday, May 3rd, 1998        1998-05-03
    le dimanche 3 mai 1998       1998-05-03
    1998年5月3日(日)              1998-05-03

Every way of writing names one date only: years have four digits, and a numeric date begins with the year or
is in the German order with dots, so that nobody has to guess which number is the month.
"""

import datetime
import random
from typing import NamedTuple

from attention_zoo.training.text_data import ParallelText

FIRST_DATE = datetime.date(1900, 1, 1)
LAST_DATE = datetime.date(2099, 12, 31)
# There are about six million ways of writing all the dates; the more are drawn, the slower is a new one.
MOST_PAIRS = 1_000_000


class Language(NamedTuple):
    """Names, and ways of writing a date with them. Weekdays begin with Monday.

    The fields of a form: {y} year, {m} {d} month and day as numbers, {mm} {dd} with two digits, {month} {mon}
    name of the month, in full and short, {weekday} {wd} likewise, {nth} ordinal day.
    """

    months: str
    short_months: str
    weekdays: str
    short_weekdays: str
    forms: tuple[str, ...]


LANGUAGES = {
    "english": Language(
        months="January February March April May June July August September October November December",
        short_months="Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
        weekdays="Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        short_weekdays="Mon Tue Wed Thu Fri Sat Sun",
        forms=(
            "{month} {d}, {y}",
            "{month} {nth}, {y}",
            "{d} {month} {y}",
            "the {nth} of {month} {y}",
            "{weekday}, {month} {nth}, {y}",
            "{weekday} {d} {month} {y}",
            "{wd}, {d} {mon} {y}",
            "{mon} {d}, {y}",
            "{dd}-{mon}-{y}",
        ),
    ),
    "german": Language(
        months="Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        short_months="Jan. Feb. März Apr. Mai Juni Juli Aug. Sept. Okt. Nov. Dez.",
        weekdays="Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
        short_weekdays="Mo Di Mi Do Fr Sa So",
        forms=(
            "{d}. {month} {y}",
            "den {d}. {month} {y}",
            "{weekday}, {d}. {month} {y}",
            "{weekday}, der {d}. {month} {y}",
            "{wd}, {d}. {mon} {y}",
            "{d}. {mon} {y}",
            "{d}.{m}.{y}",
            "{dd}.{mm}.{y}",
        ),
    ),
    "french": Language(
        months="janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        short_months="janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc.",
        weekdays="lundi mardi mercredi jeudi vendredi samedi dimanche",
        short_weekdays="lun. mar. mer. jeu. ven. sam. dim.",
        forms=(
            "{nth} {month} {y}",
            "le {nth} {month} {y}",
            "{weekday} {nth} {month} {y}",
            "le {weekday} {nth} {month} {y}",
            "{nth} {mon} {y}",
            "{wd} {nth} {mon} {y}",
        ),
    ),
    "spanish": Language(
        months="enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        short_months="ene. feb. mar. abr. may. jun. jul. ago. sept. oct. nov. dic.",
        weekdays="lunes martes miércoles jueves viernes sábado domingo",
        short_weekdays="lun mar mié jue vie sáb dom",
        forms=(
            "{d} de {month} de {y}",
            "el {d} de {month} de {y}",
            "{weekday}, {d} de {month} de {y}",
            "el {weekday} {d} de {month} de {y}",
            "{d} {mon} {y}",
            "{wd}, {d} {mon} {y}",
        ),
    ),
    # In these three the months have numbers, not names.
    "korean": Language(
        months="1월 2월 3월 4월 5월 6월 7월 8월 9월 10월 11월 12월",
        short_months="1월 2월 3월 4월 5월 6월 7월 8월 9월 10월 11월 12월",
        weekdays="월요일 화요일 수요일 목요일 금요일 토요일 일요일",
        short_weekdays="월 화 수 목 금 토 일",
        forms=(
            "{y}년 {month} {d}일",
            "{y}년 {month} {d}일 {weekday}",
            "{y}년 {month} {d}일 ({wd})",
            "{y}. {m}. {d}.",
            "{y}. {m}. {d}. ({wd})",
        ),
    ),
    "japanese": Language(
        months="1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
        short_months="1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
        weekdays="月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日",
        short_weekdays="月 火 水 木 金 土 日",
        forms=("{y}年{month}{d}日", "{y}年{month}{d}日({wd})", "{y}年{month}{d}日{weekday}"),
    ),
    "chinese": Language(
        months="1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
        short_months="1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
        weekdays="星期一 星期二 星期三 星期四 星期五 星期六 星期日",
        short_weekdays="周一 周二 周三 周四 周五 周六 周日",
        forms=("{y}年{month}{d}日", "{y}年{month}{d}日{weekday}", "{y}年{mm}月{dd}日 {wd}"),
    ),
}

# Belong to no language.
NUMERIC_FORMS = ("{y}-{mm}-{dd}", "{y}/{mm}/{dd}", "{y}/{m}/{d}", "{y}.{mm}.{dd}")

# Mostly as written, sometimes all in capitals or in small letters.
CASES = (str, str, str, str, str.upper, str.lower)


def surface_forms(date: datetime.date) -> dict[str, list[str]]:
    """All ways of writing a date, in their usual case.

    Args:
        date: The date.

    Returns:
        Language (or "numeric") -> strings.

    Example:
        >>> surface_forms(datetime.date(1998, 5, 3))["japanese"]
        ['1998年5月3日', '1998年5月3日(日)', '1998年5月3日日曜日']
    """
    forms = {name: [_write(date, name, form) for form in LANGUAGES[name].forms] for name in LANGUAGES}
    return forms | {"numeric": [_write(date, "english", form) for form in NUMERIC_FORMS]}


def generate(count: int, seed: int = 0) -> ParallelText:
    """Draws dates and ways of writing them. The same arguments give the same pairs.

    Args:
        count: Number of pairs, from 1 to a million.
        seed: Seed of the draw.

    Returns:
        Pairs such as ("May 3rd, 1998", "1998-05-03"); all sources are different.

    Raises:
        ValueError: If `count` is out of range.

    Example:
        >>> len(generate(10, seed=1))
        10
    """
    if not 1 <= count <= MOST_PAIRS:
        raise ValueError(f"generate: expected count from 1 to {MOST_PAIRS:,}, received {count}")
    draw = random.Random(seed)
    choices = [(name, form) for name, language in LANGUAGES.items() for form in language.forms]
    choices += [("english", form) for form in NUMERIC_FORMS]
    days = (LAST_DATE - FIRST_DATE).days + 1
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        date = FIRST_DATE + datetime.timedelta(days=draw.randrange(days))
        name, form = draw.choice(choices)
        surface = draw.choice(CASES)(_write(date, name, form))
        pairs[surface] = date.isoformat()
    return ParallelText.from_pairs(pairs.items())


def training_and_held_out(
    training_count: int, held_out_count: int, seed: int = 0
) -> tuple[ParallelText, ParallelText]:
    """Two sets of pairs that share no source.

    Args:
        training_count: Number of pairs to train on.
        held_out_count: Number of pairs to test on.
        seed: Seed of the draw.

    Returns:
        The training pairs and the held-out pairs.

    Raises:
        ValueError: If a count is less than 1, or their sum is more than a million.

    Example:
        >>> training, held_out = training_and_held_out(30, 10)
        >>> set(training.sources) & set(held_out.sources)
        set()
    """
    if training_count < 1 or held_out_count < 1:
        raise ValueError(
            "training_and_held_out: expected counts of at least 1, received "
            f"{training_count} training and {held_out_count} held-out"
        )
    pairs = generate(training_count + held_out_count, seed)
    return pairs[:training_count], pairs[training_count:]


def _write(date: datetime.date, name: str, form: str) -> str:
    """Fills in one form of one language."""
    language = LANGUAGES[name]
    return form.format(
        y=date.year,
        m=date.month,
        d=date.day,
        mm=f"{date.month:02d}",
        dd=f"{date.day:02d}",
        month=language.months.split()[date.month - 1],
        mon=language.short_months.split()[date.month - 1],
        weekday=language.weekdays.split()[date.weekday()],
        wd=language.short_weekdays.split()[date.weekday()],
        nth=_french_day(date.day) if name == "french" else _english_ordinal(date.day),
    )


def _english_ordinal(day: int) -> str:
    """1st, 2nd, 3rd, 4th, ... 11th, 12th, 13th, ... 21st, ..."""
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def _french_day(day: int) -> str:
    """French has an ordinal for the first day only."""
    return "1er" if day == 1 else str(day)
