# SPDX-License-Identifier: Apache-2.0
"""Finding items by the titles that people type."""

import difflib
import re
import unicodedata

import pandas as pd

from bert4rec_jax.errors import UserError

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_ARTICLES = "the|a|an|le|la|les|l|el|los|las|il|lo|der|die|das|un|une"
_LEADING = re.compile(rf"^(?:{_ARTICLES})\s+(?=\S)")
_TRAILING = re.compile(rf"^(.*),\s*({_ARTICLES})'?\s*$", re.IGNORECASE)


def _plain(text: str) -> str:
    """Lower case, no accents, no punctuation, a trailing article in front: `Matrix, The` -> `the matrix`."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    text = _TRAILING.sub(r"\2 \1", text.strip())
    return " ".join(re.sub(r"[^\w]+", " ", text.replace("&", " and ").replace("'", "")).split())


def _forms(title: str) -> list[str]:
    """The ways to write a title: whole, without its parentheses, and what stands in them (`a.k.a. Se7en`)."""
    inside = [re.sub(r"^a\.?k\.?a\.?\s+", "", part, flags=re.IGNORECASE) for part in re.findall(r"\(([^()]*)\)", title)]
    return [title, re.sub(r"\s*\([^()]*\)", "", title), *inside]


class TitleIndex:
    """Titles of a catalogue, looked up regardless of case, accents, punctuation, articles and year."""

    def __init__(self, catalogue: pd.DataFrame):
        """Indexes `catalogue`: index = item id, columns item (original id) and, where known, title and year."""
        self._catalogue = catalogue
        self._by_id = {str(item): number for number, item in catalogue["item"].items()}
        self._by_form: dict[str, list[int]] = {}
        if "title" in catalogue:
            for number, title in catalogue["title"].dropna().items():
                for form in dict.fromkeys(filter(None, map(_plain, _forms(title)))):
                    for key in {form, _LEADING.sub("", form)}:
                        self._by_form.setdefault(key, []).append(number)

    def label(self, number: int) -> str:
        """Returns `Title (year)` of an item id, as far as it is known, else the original id."""
        row = self._catalogue.loc[number]
        title, year = row.get("title"), row.get("year")
        if pd.isna(title):
            return str(row["item"])
        return title if pd.isna(year) else f"{title} ({int(year)})"

    def find(self, text: str) -> int:
        """Returns the item id of a title, with or without its year, or of an original id.

        Raises:
          UserError: there is none (names the three nearest), or several (lists them).
        """
        year = _YEAR.search(text)
        wanted = _plain(_YEAR.sub("", text))
        bare = _LEADING.sub("", wanted)
        # What was typed with its article is looked up so first: `The Kid` is not `Kid`.
        for key in dict.fromkeys((_plain(text), wanted, bare)):
            found = list(dict.fromkeys(self._by_form.get(key, [])))
            if year and key != _plain(text):
                found = [n for n in found if self._year(n) == int(year[1])]
            if len(found) > 1:
                exact = [n for n in found if _plain(str(self._catalogue.loc[n, "title"])) == key]
                found = exact if len(exact) == 1 else found
            if len(found) == 1:
                return found[0]
            if found:
                raise UserError(f"{text!r} could be " + ", ".join(repr(self.label(n)) for n in found[:8])
                                + "; give the title with its year, or the item's id "
                                + f"({', '.join(str(self._catalogue.loc[n, 'item']) for n in found[:8])}).")
        if text in self._by_id:
            return self._by_id[text]
        nearest = self._nearest(bare or text)
        hint = "the nearest are " + ", ".join(repr(x) for x in nearest) if nearest else "nothing is like it"
        raise UserError(f"there is no {text!r} in the catalogue; {hint}.")

    def _year(self, number: int) -> int | None:
        year = self._catalogue["year"].get(number) if "year" in self._catalogue else None
        return None if year is None or pd.isna(year) else int(year)

    def _nearest(self, text: str) -> list[str]:
        forms = difflib.get_close_matches(text, self._by_form, n=9, cutoff=0.4)
        labels = [self.label(self._by_form[form][0]) for form in forms]
        labels += difflib.get_close_matches(text, self._by_id, n=3, cutoff=0.4) if not labels else []
        return list(dict.fromkeys(labels))[:3]
