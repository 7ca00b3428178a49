# SPDX-License-Identifier: Apache-2.0
"""MovieLens in GroupLens's original files: tabs and bars (100K), `::` (1M, 10M), csv (20M and later)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pyarrow as pa

from bert4rec_jax.data.sources import text
from bert4rec_jax.data.sources.delimited import TextFile, TextLog, sniff
from bert4rec_jax.data.sources.log import Roles
from bert4rec_jax.errors import UserError

# The order of the 0/1 columns of u.item.
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRES = ("", "unknown", "(no genres listed)")
_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_MOVIE_COLUMNS = ("movieId", "title", "genres")
# "(1995)", also "(2006–2007)", "(2009– )" and a stray second parenthesis, at the end of a title.
_YEAR = re.compile(r"^(.*\S)\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\s*\)+$")


@dataclass(frozen=True)
class Layout:
    """File names and form of one generation of MovieLens files."""

    ratings: str
    movies: str
    separator: str
    movies_separator: str
    header: bool = False


_DAT = Layout("ratings.dat", "movies.dat", "::", "::")
_CSV = Layout("ratings.csv", "movies.csv", ",", ",", header=True)
LAYOUTS = {
    "ml-100k": Layout("u.data", "u.item", "\t", "|"),
    "ml-1m": _DAT,
    "ml-10m": _DAT,
    "ml-20m": _CSV,
    "ml-25m": _CSV,
    "ml-32m": _CSV,
    "ml-latest-small": _CSV,
}


def files_in(name: str, folder: str) -> tuple[str, str]:
    """Returns the paths of ratings and movies in a user's folder.

    Raises:
      UserError: one of the original files is not there.
    """
    layout = LAYOUTS[name]
    paths = os.path.join(folder, layout.ratings), os.path.join(folder, layout.movies)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(
                f"{name} needs the original files {layout.ratings} and {layout.movies}, but there is no "
                f"{path}; set config.data.path to the unpacked folder, or to '' to download it."
            )
    return paths


def open_ratings(name: str, ratings: str) -> TextLog:
    """Opens the ratings.

    Raises:
      UserError: with the file and the line.
    """
    layout = LAYOUTS[name]
    if layout.header:
        file = sniff(ratings, layout.separator, list(_COLUMNS))
        file = TextFile(ratings, layout.separator, file.names, quotes=False)
    else:
        file = TextFile(ratings, layout.separator, _COLUMNS, header=False, quotes=False)
    return TextLog([file], Roles(*_COLUMNS[:2], time="timestamp", rating="rating"))


def read_movies(name: str, path: str) -> pa.Table:
    """Reads a movie file into the columns item, title, year, genres."""
    layout = LAYOUTS[name]
    flags = layout.movies_separator == "|"
    names = (
        ("movieId", "title", "released", "video", "url", *GENRES_100K) if flags else _MOVIE_COLUMNS
    )
    file = TextFile(
        path,
        layout.movies_separator,
        names,
        layout.header,
        quotes=layout.header,
        encoding=text.encoding_of(path),
    )
    columns: dict[str, list] = {"item": [], "title": [], "year": [], "genres": []}
    for number, row in file.rows():
        if len(row) != len(names):
            raise UserError(
                f"{path} line {number} has {len(row)} fields where {len(names)} are expected; correct that "
                "line."
            )
        title, year = split_title(row[1])
        genres = (
            [g for g, flag in zip(GENRES_100K, row[5:]) if flag == "1"]
            if flags
            else row[2].split("|")
        )
        columns["item"].append(row[0].strip())
        columns["title"].append(title or None)
        columns["year"].append(year)
        columns["genres"].append(
            "|".join(g for g in map(str.strip, genres) if g not in _NO_GENRES) or None
        )
    kinds = {"item": pa.string(), "title": pa.string(), "year": pa.int64(), "genres": pa.string()}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})


def split_title(title: str) -> tuple[str, int | None]:
    """Splits "Matrix, The (1999)" into ("Matrix, The", 1999); no year: None. Runs of spaces become one."""
    title = " ".join(title.split())
    match = _YEAR.match(title)
    return (match[1], int(match[2])) if match else (title, None)
