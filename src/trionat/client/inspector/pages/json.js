// JSON with line breaks. What stands in it stays as it was written: numbers are not read, so none loses a digit.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+|\s+|"/gy;
const DEEPEST = 40;
const LONGEST = 4 * 1024 * 1024;

// Returns null where the text is no JSON, or would become too long.
export function pretty(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  const pieces = [];
  let depth = 0, length = 0, emptyBefore = false;
  const line = () => "\n" + "  ".repeat(Math.min(depth, DEEPEST));
  TOKEN.lastIndex = 0;
  for (const [token] of text.matchAll(TOKEN)) {
    if (/^\s/.test(token)) continue;
    let piece = token;
    if (token === "{" || token === "[") {
      if (emptyBefore) piece = line() + token;
      depth++;
      emptyBefore = true;
    } else if (token === "}" || token === "]") {
      depth--;
      piece = emptyBefore ? token : line() + token;
      emptyBefore = false;
    } else {
      if (emptyBefore) piece = line() + token;
      emptyBefore = false;
      if (token === ",") piece += line();
      else if (token === ":") piece += " ";
    }
    pieces.push(piece);
    length += piece.length;
    if (length > LONGEST) return null;
  }
  return pieces.join("");
}
