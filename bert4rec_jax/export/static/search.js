// SPDX-License-Identifier: Apache-2.0
// Finds titles despite differences in accents, case, punctuation, articles, word order, endings and typos.

const ARTICLES = new Set("the a an le la les l el los las il lo der die das un une".split(" "));
const TRAILING = new RegExp(`^(.*),\\s*(${[...ARTICLES].join("|")})'?\\s*$`, "i");

/** Lower case, no accents, no punctuation, a trailing article in front: `Matrix, The` -> `the matrix`. */
export function plain(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replace(/ß/g, "ss").trim()
    .replace(TRAILING, "$2 $1").replace(/&/g, " and ").replace(/['’]/g, "")
    .replace(/[^\p{L}\p{N}_]+/gu, " ").trim();
}

/** The names of a title: `Title (a.k.a. Other)` -> `Title` and `Other`. */
function forms(title) {
  const inside = [...title.matchAll(/\(([^()]*)\)/g)].map((m) => m[1].replace(/^a\.?k\.?a\.?\s+/i, ""));
  return [title.replace(/ ?\([^()]*\)/g, ""), ...inside].map(plain).filter(Boolean);
}

export class TitleSearch {
  /** titles[i] and years[i] belong to item number i + 1; weights[i] breaks ties (larger first). */
  constructor(titles, years, weights) {
    this.titles = titles;
    this.years = years;
    this.weights = weights;
    this.plain = titles.map((title) => plain(title));
    this.postings = new Map();
    const add = (word, item) => {
      const list = this.postings.get(word);
      if (!list) this.postings.set(word, [item]);
      else if (list[list.length - 1] !== item) list.push(item);
    };
    titles.forEach((title, item) => {
      for (const form of forms(title)) {
        const words = form.split(" ");
        for (const word of words) add(word, item);
        if (words.length > 1) add(words.filter((w) => !ARTICLES.has(w)).join(""), item); // `starwars`
      }
      if (years[item]) add(String(years[item]), item);
    });
    this.words = [...this.postings.keys()].sort();
    this.letters = Uint32Array.from(this.words, letters);
  }

  /** Returns up to `limit` item numbers, best first. Words may have typos if too few titles match exactly. */
  find(text, limit = 8) {
    const strict = this.#find(text, limit, false);
    if (strict.length >= limit) return strict;
    return [...new Set([...strict, ...this.#find(text, limit, true)])].slice(0, limit);
  }

  #find(text, limit, typos) {
    const words = plain(text).split(" ").filter(Boolean);
    if (!words.length) return [];
    const needed = words.length > 1 ? words.filter((word, i) => !ARTICLES.has(word) || i === words.length - 1) : words;
    const scores = new Map();
    const perWord = needed.map((word, i) => this.#matches(word, i === needed.length - 1, needed.length > 1, typos));
    perWord.forEach((matches, i) => {
      for (const [item, quality] of matches) {
        const before = scores.get(item);
        if (i === 0) scores.set(item, [quality, 1]);
        else if (before && before[1] === i) scores.set(item, [before[0] + quality, i + 1]);
      }
    });
    const joined = words.join("");
    const typed = words.join(" ");
    const bare = words.length > 1 && ARTICLES.has(words[0]) ? words.slice(1).join(" ") : typed;
    const whole = (item) => {
      const title = this.plain[item];
      const tail = title.replace(/^\S+ /, (first) => (ARTICLES.has(first.trim()) ? "" : first));
      return title === typed || tail === bare || title.replaceAll(" ", "") === joined ? 3
        : title.startsWith(typed) || tail.startsWith(bare) ? 2 : title.includes(typed) ? 1 : 0;
    };
    return [...scores].filter(([, [, found]]) => found === needed.length)
      .map(([item, [quality]]) => ({item, quality: quality / needed.length, whole: whole(item)}))
      .sort((a, b) => b.whole - a.whole || b.quality - a.quality || (this.weights[b.item] ?? 0) - (this.weights[a.item] ?? 0)
        || this.titles[a.item].length - this.titles[b.item].length || a.item - b.item)
      .slice(0, limit).map(({item}) => item + 1);
  }

  /** Items with a word and the quality of the match: exact 1, as a beginning .8, less with typos. */
  #matches(word, unfinished, several, typos) {
    const found = new Map();
    const take = (key, quality) => {
      for (const item of this.postings.get(key)) {
        if ((found.get(item) ?? 0) < quality) found.set(item, quality);
      }
    };
    if (this.postings.has(word)) take(word, 1);
    if (unfinished || word.length > 3) {
      for (let i = this.#first(word); i < this.words.length && this.words[i].startsWith(word); i++) {
        if (this.words[i] !== word) take(this.words[i], 0.8);
      }
    }
    // A short word may have a typo only if there are other words.
    const allowed = word.length < (several ? 3 : 4) ? 0 : word.length < 8 ? 1 : 2;
    if (allowed && typos) {
      const typed = letters(word);
      for (let i = 0; i < this.words.length; i++) {
        // An edit adds at most one new letter, so most words can be skipped.
        if (ones(typed & ~this.letters[i]) > allowed) continue;
        const key = this.words[i];
        if (key.length < word.length - allowed) continue;
        const errors = distance(word, key, allowed, unfinished);
        if (errors <= allowed && errors > 0) take(key, 0.7 - 0.2 * errors);
      }
    }
    return found;
  }

  #first(word) {
    let low = 0;
    let high = this.words.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.words[middle] < word) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The set of letters and digits of a word, as bits. */
function letters(word) {
  let bits = 0;
  for (let i = 0; i < word.length; i++) bits |= 1 << (word.charCodeAt(i) % 32);
  return bits;
}

function ones(bits) {
  let count = 0;
  for (let left = bits; left; left &= left - 1) count++;
  return count;
}

const LONGEST = 64;
let [before, last, row] = [0, 1, 2].map(() => new Uint8Array(LONGEST + 1));

/** Number of edits (a swap counts once) from a to b, or to a beginning of b; limit + 1 if there are more. */
export function distance(a, b, limit, prefix) {
  if ((!prefix && b.length - a.length > limit) || a.length + limit > LONGEST) return limit + 1;
  const width = Math.min(b.length, a.length + limit);
  for (let j = 0; j <= width; j++) last[j] = j;
  for (let i = 1; i <= a.length; i++) {
    row[0] = i;
    let least = i;
    const letter = a.charCodeAt(i - 1);
    for (let j = 1; j <= width; j++) {
      let cost = Math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter === b.charCodeAt(j - 1) ? 0 : 1));
      if (i > 1 && j > 1 && letter === b.charCodeAt(j - 2) && a.charCodeAt(i - 2) === b.charCodeAt(j - 1)) {
        cost = Math.min(cost, before[j - 2] + 1);
      }
      row[j] = cost;
      if (cost < least) least = cost;
    }
    if (least > limit) return limit + 1;
    [before, last, row] = [last, row, before];
  }
  if (!prefix) return last[width] + (b.length - width);
  let least = limit + 1;
  for (let j = 0; j <= width; j++) least = Math.min(least, last[j]);
  return least;
}
