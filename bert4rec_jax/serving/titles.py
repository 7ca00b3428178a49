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
    text = "".join(
        c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)
    ).casefold()
    text = _TRAILING.sub(r"\2 \1", text.strip())
    return " ".join(re.sub(r"[^\w]+", " ", text.replace("&", " and ").replace("'", "")).split())


def _forms(title: str) -> list[str]:
    """The ways to write a title: whole, without its parentheses, and what stands in them (`a.k.a. Se7en`)."""
    inside = [
        re.sub(r"^a\.?k\.?a\.?\s+", "", part, flags=re.IGNORECASE)
        for part in re.findall(r"\(([^()]*)\)", title)
    ]
    return [title, re.sub(r"\s*\([^()]*\)", "", title), *inside]


class AmbiguousTitle(UserError):
    """A text that names several items."""


class TitleIndex:
    """Titles of a catalogue, looked up regardless of case, accents, punctuation, articles and year."""

    def __init__(self, catalogue: pd.DataFrame):
        """Indexes `catalogue`: index = item number, columns item (original id) and, where known, title and year."""
        self._catalogue = catalogue
        self._by_id = {str(item): number for number, item in catalogue["item"].items()}
        self._by_form: dict[str, list[int]] = {}
        if "title" in catalogue:
            for number, title in catalogue["title"].dropna().items():
                for form in dict.fromkeys(filter(None, map(_plain, _forms(title)))):
                    for key in {form, _LEADING.sub("", form)}:
                        self._by_form.setdefault(key, []).append(number)

    def labels(self) -> list[str]:
        """Returns the `label` of every item, that of number i + 1 at place i; of a million in seconds."""
        table = self._catalogue
        label = table["item"].astype(str)
        if "title" in table:
            label = table["title"].astype(object).where(table["title"].notna(), label)
            if "year" in table:
                dated = table["title"].notna() & table["year"].notna()
                label = label.where(
                    ~dated, label + " (" + table["year"].fillna(0).astype(int).astype(str) + ")"
                )
        return label.tolist()

    def label(self, number: int) -> str:
        """Returns `Title (year)` of an item number, as far as it is known, else the original id."""
        row = self._catalogue.loc[number]
        title, year = row.get("title"), row.get("year")
        if pd.isna(title):
            return str(row["item"])
        return title if pd.isna(year) else f"{title} ({int(year)})"

    def find(self, text: str) -> int:
        """Returns the item number of a title, with or without its year, or of an original id.

        `id:187` and `title:187` say which of the two is meant.

        Raises:
          UserError: there is none (names the three nearest), or several (lists them).
        """
        kind, _, rest = text.partition(":")
        if kind == "id" and rest:
            if rest not in self._by_id:
                raise UserError(
                    f"there is no item with the id {shortened(rest)} in the catalogue"
                    f"{self._hint(difflib.get_close_matches(rest, self._by_id, n=3, cutoff=0.6))}."
                )
            return self._by_id[rest]
        if kind == "title" and rest:
            return self._by_title(rest)
        if text in self._by_id:
            number = self._by_id[text]
            others = [n for n in self._titled(text) if n != number]
            if others:
                raise AmbiguousTitle(
                    f"{shortened(text)} is the id of {self.label(number)!r} and the title of "
                    f"{self.label(others[0])!r}; write 'id:{text}' or 'title:{text}'."
                )
            return number
        return self._by_title(text)

    def _titled(self, text: str) -> list[int]:
        """Returns the numbers of all items with that title, best first; several where it is ambiguous."""
        year = _YEAR.search(text)
        wanted = _plain(_YEAR.sub("", text))
        bare = _LEADING.sub("", wanted)
        # As typed first, article included: `The Kid` is not `Kid`.
        for key in dict.fromkeys((_plain(text), wanted, bare)):
            found = list(dict.fromkeys(self._by_form.get(key, [])))
            if year and key != _plain(text):
                found = [n for n in found if self._year(n) == int(year[1])]
            if len(found) > 1:
                exact = [n for n in found if _plain(str(self._catalogue.loc[n, "title"])) == key]
                found = exact if len(exact) == 1 else found
            if found:
                return found
        return []

    def _by_title(self, text: str) -> int:
        found = self._titled(text)
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(f"id:{self._catalogue.loc[n, 'item']}" for n in found[:8])
            labels = list(dict.fromkeys(self.label(n) for n in found[:8]))
            if len(labels) == 1:
                raise AmbiguousTitle(
                    f"{shortened(text)} is the title of {len(found)} items; write the id of one: {ids}."
                )
            raise AmbiguousTitle(
                f"{shortened(text)} could be {', '.join(map(repr, labels))}; give the title with its "
                f"year, or the item's id ({ids})."
            )
        raise UserError(
            f"there is no {shortened(text)} in the catalogue{self._hint(self._nearest(text))}."
        )

    def _hint(self, nearest: list[str]) -> str:
        return (
            "; the nearest are " + ", ".join(repr(x) for x in nearest)
            if nearest
            else "; nothing is like it"
        )

    def _year(self, number: int) -> int | None:
        year = self._catalogue["year"].get(number) if "year" in self._catalogue else None
        return None if year is None or pd.isna(year) else int(year)

    def _nearest(self, text: str) -> list[str]:
        """Returns labels of up to three items: those with the typed words in their title, then those spelt alike."""
        words = _LEADING.sub("", _plain(_YEAR.sub("", text))).split()
        forms = []
        if words:
            holds = [form for form in self._by_form if f" {' '.join(words)}" in f" {form}"]
            whole = [form for form in holds if f" {' '.join(words)} " in f" {form} "]
            # The best known first: someone who types `star` means Star Wars and not Stag.
            forms = [*sorted(whole, key=self._fame)[:2], *sorted(holds, key=self._fame)[:3]]
        forms += difflib.get_close_matches(" ".join(words) or text, self._by_form, n=9, cutoff=0.4)
        labels = [self.label(self._by_form[form][0]) for form in forms]
        labels += (
            difflib.get_close_matches(text, self._by_id, n=3, cutoff=0.4) if not labels else []
        )
        return list(dict.fromkeys(labels))[:3]

    def _fame(self, form: str) -> tuple[float, int]:
        counts = self._catalogue.get("training_interactions")
        return (0.0 if counts is None else -float(counts.loc[self._by_form[form][0]]), len(form))


def shortened(text: str) -> str:
    """Returns what somebody typed, quoted and short enough for a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
