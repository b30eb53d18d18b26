import { AgentError } from "../lib/errors.ts";

// A line longer than this is refused, as by line readers with a fixed buffer: nobody writes one by hand.
export const envFileLineBytesMax = 64 * 1024;

/**
 * Finds `key` in an environment file: `KEY='value'` per line, single quotes required, values may span lines and are
 * literal, blank and `#` lines are skipped. The first match wins.
 * @returns undefined if the key is not there or its value is empty
 * Rejects with code Invalid, naming the line, for anything else up to the match.
 */
export function findInEnvFile(text: string, key: string): string | undefined {
  // By position: a file of nothing but line ends would be a million lines, and more work than all else in it.
  let number = 1;
  for (let at = 0; at < text.length; number += 1) {
    let end = endOfLine(text, at, number);
    const start = at;
    at = end + 1;
    if (start === end) continue;
    const line = text.slice(start, end).replace(/^[ \t]+/, "");
    if (line.trim() === "" || line.startsWith("#")) continue;
    const equals = line.indexOf("=");
    if (equals === -1) throw invalid(number, "a line must have the form KEY='value'");
    const name = line.slice(0, equals);
    if (name === "") throw invalid(number, "the name before = is empty");
    if (/[ \t]$/.test(name)) throw invalid(number, "blanks before = are not allowed");
    const rest = line.slice(equals + 1);
    let value = "";
    if (!/^\s|^$/.test(rest)) {
      if (!rest.startsWith("'")) throw invalid(number, "the value must stand in single quotes");
      const opened = number;
      const valueStart = end - rest.length + 1;
      const quote = text.indexOf("'", valueStart);
      const valueEnd = quote === -1 ? text.length : quote;
      while (end < valueEnd) {
        number += 1;
        end = endOfLine(text, end + 1, number);
      }
      if (quote === -1) throw invalid(opened, "the quote is not closed");
      value = text.slice(valueStart, quote);
      const after = text.slice(quote + 1, end).trimStart();
      if (after !== "" && !after.startsWith("#")) throw invalid(number, "only a comment may follow the closing quote");
      at = end + 1;
    }
    if (name === key) return value === "" ? undefined : value;
  }
  return undefined;
}

/** Where the line that begins at `start` ends: at its newline, or at the end of the text. */
function endOfLine(text: string, start: number, number: number): number {
  const newline = text.indexOf("\n", start);
  const end = newline === -1 ? text.length : newline;
  // A character is one to three bytes: most lines need not be measured.
  const chars = end - start;
  if (chars * 3 > envFileLineBytesMax && Buffer.byteLength(text.slice(start, end)) > envFileLineBytesMax) {
    throw invalid(number, `the line is longer than ${envFileLineBytesMax} bytes`);
  }
  return end;
}

function invalid(line: number, why: string): AgentError {
  return new AgentError("Invalid", `line ${line}: ${why}`);
}
