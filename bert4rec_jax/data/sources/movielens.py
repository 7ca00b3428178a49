# SPDX-License-Identifier: Apache-2.0
"""MovieLens in the original files of GroupLens.

The releases use tabs and bars (100K), `::` (1M, 10M) or csv (20M and later).
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass

import pyarrow as pa

from bert4rec_jax.data.sources import text
from bert4rec_jax.data.sources.delimited import TextFile, TextLog, sniff
from bert4rec_jax.data.sources.log import Roles
from bert4rec_jax.errors import UserError

# In the order of the 0/1 columns of u.item.
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRES = ("", "unknown", "(no genres listed)")
_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_MOVIE_COLUMNS = ("movieId", "title", "genres")
_MOVIE_COLUMNS_100K = ("movieId", "title", "released", "video", "url", *GENRES_100K)
# "(1995)", also "(2006–2007)", "(2009– )" and a stray second parenthesis, at the end of a title.
_YEAR = re.compile(r"^(.*\S)\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\s*\)+$")


@dataclass(frozen=True)
class Release:
    """File names and format of a MovieLens release.

    Attributes:
      ratings: name of the file with the ratings.
      movies: name of the file with the movies.
      separator: between the fields of the ratings.
      movies_separator: between the fields of the movies.
      header: whether both files have a header.
      md5: checksum of the zip as published by GroupLens; "" if the release changes over time.
    """

    ratings: str
    movies: str
    separator: str
    movies_separator: str
    header: bool = False
    md5: str = ""


_DAT = Release("ratings.dat", "movies.dat", "::", "::")
_CSV = Release("ratings.csv", "movies.csv", ",", ",", header=True)
RELEASES = {
    "ml-100k": Release("u.data", "u.item", "\t", "|", md5="0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": dataclasses.replace(_DAT, md5="c4d9eecfca2ab87c1945afe126590906"),
    "ml-10m": dataclasses.replace(_DAT, md5="ce571fd55effeba0271552578f2648bd"),
    "ml-20m": dataclasses.replace(_CSV, md5="cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": dataclasses.replace(_CSV, md5="6b51fb2759a8657d3bfcbfc42b592ada"),
    "ml-32m": dataclasses.replace(_CSV, md5="d472be332d4daa821edc399621853b57"),
    "ml-latest-small": _CSV,
}


def files_in(name: str, folder: str) -> tuple[str, str]:
    """Returns the paths of the ratings and the movies in a folder with the original files.

    Raises:
      UserError: one of the files is missing.
    """
    release = RELEASES[name]
    ratings = os.path.join(folder, release.ratings)
    movies = os.path.join(folder, release.movies)
    for path in (ratings, movies):
        if not os.path.isfile(path):
            raise UserError(
                f"{name} needs the original files {release.ratings} and {release.movies}, but "
                f"{path} does not exist; set config.data.path to the unpacked folder, or to '' to "
                "download it."
            )
    return ratings, movies


def open_ratings(name: str, ratings: str) -> TextLog:
    """Opens the ratings.

    Raises:
      UserError: the file cannot be read; names the file and the line.
    """
    release = RELEASES[name]
    names: tuple[str, ...] = _COLUMNS
    if release.header:
        names = sniff(ratings, release.separator, list(_COLUMNS)).names
    file = TextFile(ratings, release.separator, names, header=release.header, quotes=False)
    return TextLog([file], Roles(*_COLUMNS[:2], time="timestamp", rating="rating"))


def read_movies(name: str, path: str) -> pa.Table:
    """Reads a movie file into the columns item, title, year and genres.

    Raises:
      UserError: the file cannot be read; names the file and the line.
    """
    release = RELEASES[name]
    has_flags = release.movies_separator == "|"
    names = _MOVIE_COLUMNS_100K if has_flags else _MOVIE_COLUMNS
    file = TextFile(
        path,
        release.movies_separator,
        names,
        release.header,
        quotes=release.header,
        encoding=text.encoding_of(path),
    )
    columns: dict[str, list] = {"item": [], "title": [], "year": [], "genres": []}
    for number, row in file.rows():
        if len(row) != len(names):
            raise UserError(
                f"{path} line {number} has {len(row)} fields where {len(names)} are expected; "
                "correct that line."
            )
        if has_flags:
            genres = [genre for genre, flag in zip(GENRES_100K, row[5:]) if flag == "1"]
        else:
            genres = [genre.strip() for genre in row[2].split("|")]
        known_genres = [genre for genre in genres if genre not in _NO_GENRES]
        title, year = split_title(row[1])
        columns["item"].append(row[0].strip())
        columns["title"].append(title or None)
        columns["year"].append(year)
        columns["genres"].append("|".join(known_genres) or None)
    kinds = {"item": pa.string(), "title": pa.string(), "year": pa.int64(), "genres": pa.string()}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})


def split_title(title: str) -> tuple[str, int | None]:
    """Splits "Matrix, The (1999)" into ("Matrix, The", 1999); without a year, the year is None.

    Runs of spaces become one space.
    """
    title = " ".join(title.split())
    match = _YEAR.match(title)
    return (match[1], int(match[2])) if match else (title, None)
