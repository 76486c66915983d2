import datetime
import re

import pytest

from attention_zoo.training import generated_dates
from attention_zoo.training.generated_dates import LANGUAGES, generate, surface_forms, training_and_held_out


def test_forms_by_hand():
    forms = surface_forms(datetime.date(1998, 5, 3))  # a Sunday
    assert "Sunday, May 3rd, 1998" in forms["english"]
    assert "So, 3. Mai 1998" in forms["german"]
    assert "le dimanche 3 mai 1998" in forms["french"]
    assert "el domingo 3 de mayo de 1998" in forms["spanish"]
    assert "1998년 5월 3일 일요일" in forms["korean"]
    assert "1998年5月3日(日)" in forms["japanese"]
    assert "1998年05月03日 周日" in forms["chinese"]
    assert "1998/05/03" in forms["numeric"]


def test_ordinals():
    english = {day: surface_forms(datetime.date(2000, 1, day))["english"][1] for day in range(1, 32)}
    ordinals = [english[day].split()[1] for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 30, 31)]
    assert " ".join(ordinals) == "1st, 2nd, 3rd, 4th, 11th, 12th, 13th, 21st, 22nd, 23rd, 30th, 31st,"
    french = [surface_forms(datetime.date(2000, 1, day))["french"][0] for day in (1, 2)]
    assert french == ["1er janvier 2000", "2 janvier 2000"]


def test_every_language_names_twelve_months_and_seven_days():
    for language in LANGUAGES.values():
        for names, count in [
            (language.months, 12),
            (language.short_months, 12),
            (language.weekdays, 7),
            (language.short_weekdays, 7),
        ]:
            assert len(set(names.split())) == count


def test_no_way_of_writing_names_two_dates():
    # Four years in which all orders of two-digit groups could be confused, in every case.
    meaning: dict[str, datetime.date] = {}
    for year in (1901, 1911, 1912, 2011):
        for day in range(365):
            date = datetime.date(year, 1, 1) + datetime.timedelta(day)
            for forms in surface_forms(date).values():
                for form in forms:
                    for surface in {form, form.upper(), form.lower()}:
                        assert meaning.setdefault(surface, date) == date, surface


def test_targets_are_iso_dates_in_range_and_sources_are_short():
    text = generate(2000, seed=3)
    for source, target in text:
        date = datetime.date.fromisoformat(target)
        assert generated_dates.FIRST_DATE <= date <= generated_dates.LAST_DATE
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", target)
        assert source.lower() in {form.lower() for forms in surface_forms(date).values() for form in forms}
        assert len(source) <= 40


def test_generation_is_repeatable_varied_and_without_repetition():
    text = generate(3000, seed=1)
    assert text.sources == generate(3000, seed=1).sources
    assert text.sources != generate(3000, seed=2).sources
    assert len(set(text.sources)) == len(text) == 3000
    assert any(source.isupper() for source in text.sources) and any(
        source.islower() for source in text.sources
    )
    drawn = {source.lower() for source in text.sources}
    for language in (*LANGUAGES, "numeric"):
        assert any(
            form.lower() in drawn
            for target in text.targets
            for form in surface_forms(datetime.date.fromisoformat(target))[language]
        )


def test_held_out_shares_no_source_with_training():
    training, held_out = training_and_held_out(500, 100, seed=5)
    assert (len(training), len(held_out)) == (500, 100)
    assert not set(training.sources) & set(held_out.sources)


@pytest.mark.parametrize("count", [0, -1, 1_000_001])
def test_count_is_checked(count):
    with pytest.raises(ValueError, match="expected count from 1 to 1,000,000, received"):
        generate(count)


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (1_000_000, 1)])
def test_counts_of_the_parts_are_checked(counts):
    with pytest.raises(ValueError, match="expected count"):
        training_and_held_out(*counts)
