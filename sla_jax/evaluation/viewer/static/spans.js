// Which part of a text belongs to which token. Python counts characters (code points), JavaScript halves of them.

const PART = "\ufffd"; // in the text of a token that is only part of a character

/**
 * A text and the texts of its tokens → [{text, first, count}]: what was said, and the tokens that say it. Tokens that
 * are parts of a character share a span; a token that is not in the text (an end token, one that a stop string cut) has
 * an empty one. A token that stands alone may have lost the space before it. The spans' texts are the text.
 */
export function spans(text, pieces) {
  const found = [];
  let at = 0;
  for (let first = 0; first < pieces.length; ) {
    if (!pieces[first].includes(PART)) {
      const whole = [pieces[first], ` ${pieces[first]}`].find((piece) => text.startsWith(piece, at)) ?? "";
      found.push({ text: whole, first, count: 1 });
      at += whole.length;
      first += 1;
      continue;
    }
    let last = first;
    while (last < pieces.length && pieces[last].includes(PART)) last += 1;
    const end = last < pieces.length ? placeOf(text, pieces[last], at) : text.length;
    found.push({ text: text.slice(at, end), first, count: last - first });
    at = end;
    first = last;
  }
  if (at < text.length) found.push({ text: text.slice(at), first: pieces.length, count: 0 });
  return found;
}

/** What the first `count` tokens of a text say. */
export function textUpTo(text, pieces, count) {
  if (count === pieces.length) return text;
  const said = spans(text, pieces).filter((span) => span.first + Math.max(span.count, 1) <= count);
  return said.map((span) => span.text).join("");
}

function placeOf(text, piece, from) {
  const place = piece ? text.indexOf(piece, from) : -1;
  return place < 0 ? text.length : place;
}

/** Slices of a text by code points, as Python's offsets count. */
export function slicer(text) {
  const points = Array.from(text);
  return (start, end) => points.slice(start, end).join("");
}
