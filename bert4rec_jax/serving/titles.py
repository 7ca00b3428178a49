# SPDX-License-Identifier: Apache-2.0
"""Finds items by the titles that users type."""

import difflib
import re
import unicodedata

import pandas as pd

from bert4rec_jax.errors import UserError

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_ARTICLES = "the|a|an|le|la|les|l|el|los|las|il|lo|der|die|das|un|une"
_LEADING = re.compile(rf"^(?:{_ARTICLES})\s+(?=\S)")
_ALSO_KNOWN_AS = re.compile(r"^a\.?k\.?a\.?\s+", re.IGNORECASE)
_TRAILING = re.compile(rf"^(.*),\s*({_ARTICLES})'?\s*$", re.IGNORECASE)


def _plain(text: str) -> str:
    """Returns lower case without accents and punctuation, the article first: `Matrix, The` -> `the
    matrix`.
    """
    letters = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    text = "".join(letters).casefold()
    text = _TRAILING.sub(r"\2 \1", text.strip())
    text = text.replace("&", " and ").replace("'", "")
    return " ".join(re.sub(r"[^\w]+", " ", text).split())


def _forms(title: str) -> list[str]:
    """Returns the ways to write a title: complete, without parentheses, and their contents (`a.k.a.
    Se7en`).
    """
    parts = re.findall(r"\(([^()]*)\)", title)
    inside = [_ALSO_KNOWN_AS.sub("", part) for part in parts]
    return [title, re.sub(r"\s*\([^()]*\)", "", title), *inside]


class AmbiguousTitle(UserError):
    """The text matches several items."""


class TitleIndex:
    """The titles of a catalogue. Case, accents, punctuation, articles and year are ignored in
    searches.
    """

    def __init__(self, items_table: pd.DataFrame):
        """Indexes the items.

        Args:
          items_table: the item numbers as index, the columns item (original id) and, if known,
            title, year and training_interactions.
        """
        self._table = items_table
        self._by_id = {str(item): number for number, item in items_table["item"].items()}
        self._by_form: dict[str, list[int]] = {}
        if "title" in items_table:
            for number, title in items_table["title"].dropna().items():
                self._add(number, title)

    def _add(self, number: int, title: str) -> None:
        forms = {_plain(form) for form in _forms(title)} - {""}
        keys = forms | {_LEADING.sub("", form) for form in forms}
        for key in keys:
            self._by_form.setdefault(key, []).append(number)

    def labels(self) -> list[str]:
        """Returns the `label` of every item, with number i + 1 at index i; a million items take
        seconds.
        """
        table = self._table
        labels = table["item"].astype(str)
        if "title" in table:
            has_title = table["title"].notna()
            labels = table["title"].astype(object).where(has_title, labels)
            if "year" in table:
                years = table["year"].fillna(0).astype(int).astype(str)
                has_year = has_title & table["year"].notna()
                labels = labels.where(~has_year, labels + " (" + years + ")")
        return labels.tolist()

    def label(self, number: int) -> str:
        """Returns `Title (year)` of an item number as far as known, else the original id."""
        row = self._table.loc[number]
        title, year = row.get("title"), row.get("year")
        if pd.isna(title):
            return str(row["item"])
        return title if pd.isna(year) else f"{title} ({int(year)})"

    def find(self, text: str) -> int:
        """Returns the item number of a title, with or without its year, or of an original id.

        `id:187` is always an id and `title:187` always a title.

        Raises:
          UserError: the item is unknown (lists the three nearest), or the title is ambiguous
            (lists all matches).
        """
        kind, _, rest = text.partition(":")
        if kind == "id" and rest:
            return self.find_id(rest)
        if kind == "title" and rest:
            return self._by_title(rest)
        if text in self._by_id:
            number = self._by_id[text]
            others = [n for n in self._titled(text) if n != number]
            if others:
                raise AmbiguousTitle(
                    f"{_shortened(text)} is the id of {self.label(number)!r} and the title of "
                    f"{self.label(others[0])!r}; write 'id:{text}' or 'title:{text}'."
                )
            return number
        return self._by_title(text)

    def find_id(self, item: str) -> int:
        """Returns the item number of an original id.

        Raises:
          UserError: the item is unknown; lists the nearest ids.
        """
        if item not in self._by_id:
            nearest = difflib.get_close_matches(item, self._by_id, n=3, cutoff=0.6)
            raise UserError(
                f"the catalogue does not contain an item with the id {_shortened(item)}"
                f"{_hint(nearest)}."
            )
        return self._by_id[item]

    def _titled(self, text: str) -> list[int]:
        """Returns the numbers of all items with that title, best first; several if it is
        ambiguous.
        """
        year = _YEAR.search(text)
        wanted = _plain(_YEAR.sub("", text))
        bare = _LEADING.sub("", wanted)
        # First as typed, with the article: `The Kid` is not `Kid`.
        for key in dict.fromkeys((_plain(text), wanted, bare)):
            found = list(dict.fromkeys(self._by_form.get(key, [])))
            if year and key != _plain(text):
                found = [n for n in found if self._year(n) == int(year[1])]
            if len(found) > 1:
                exact = [n for n in found if _plain(str(self._table.loc[n, "title"])) == key]
                found = exact if len(exact) == 1 else found
            if found:
                return found
        return []

    def _by_title(self, text: str) -> int:
        found = self._titled(text)
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(f"id:{self._table.loc[n, 'item']}" for n in found[:8])
            labels = list(dict.fromkeys(self.label(n) for n in found[:8]))
            if len(labels) == 1:
                raise AmbiguousTitle(
                    f"{_shortened(text)} is the title of {len(found)} items; write the id of one: "
                    f"{ids}."
                )
            raise AmbiguousTitle(
                f"{_shortened(text)} could be {', '.join(map(repr, labels))}; give the title with "
                "its "
                f"year, or the item's id ({ids})."
            )
        raise UserError(
            f"there is no {_shortened(text)} in the catalogue{_hint(self._nearest(text))}."
        )

    def _year(self, number: int) -> int | None:
        year = self._table["year"].get(number) if "year" in self._table else None
        return None if year is None or pd.isna(year) else int(year)

    def _nearest(self, text: str) -> list[str]:
        """Returns labels of up to three items: first titles that contain the typed words, then
        similar spellings.
        """
        words = " ".join(_LEADING.sub("", _plain(_YEAR.sub("", text))).split())
        forms = []
        if words:
            containing = [form for form in self._by_form if f" {words}" in f" {form}"]
            whole_words = [form for form in containing if f" {words} " in f" {form} "]
            # The most popular first: users who type `star` mean Star Wars and not Stag.
            forms += sorted(whole_words, key=self._by_popularity)[:2]
            forms += sorted(containing, key=self._by_popularity)[:3]
        forms += difflib.get_close_matches(words or text, self._by_form, n=9, cutoff=0.4)
        labels = [self.label(self._by_form[form][0]) for form in forms]
        if not labels:
            labels = difflib.get_close_matches(text, self._by_id, n=3, cutoff=0.4)
        return list(dict.fromkeys(labels))[:3]

    def _by_popularity(self, form: str) -> tuple[float, int]:
        """Returns the sort key that puts popular titles first, then short ones."""
        counts = self._table.get("training_interactions")
        if counts is None:
            return 0.0, len(form)
        return -float(counts.loc[self._by_form[form][0]]), len(form)


def _hint(nearest: list[str]) -> str:
    if not nearest:
        return "; no title or id is similar"
    return "; the nearest are " + ", ".join(repr(label) for label in nearest)


def _shortened(text: str) -> str:
    """Returns typed text, quoted and short enough for one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
