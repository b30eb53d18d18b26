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
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; at += 1) {
    const number = at + 1;
    const line = checkedLine(lines[at] ?? "", number).replace(/^[ \t]+/, "");
    if (line.trim() === "" || line.startsWith("#")) continue;
    const equals = line.indexOf("=");
    if (equals === -1) throw invalid(number, "a line must have the form KEY='value'");
    const name = line.slice(0, equals);
    if (name === "") throw invalid(number, "the name before = is empty");
    if (/[ \t]$/.test(name)) throw invalid(number, "blanks before = are not allowed");
    let rest = line.slice(equals + 1);
    let value = "";
    if (!/^\s|^$/.test(rest)) {
      if (!rest.startsWith("'")) throw invalid(number, "the value must stand in single quotes");
      rest = rest.slice(1);
      while (!rest.includes("'")) {
        value += `${rest}\n`;
        at += 1;
        const next = lines[at];
        if (next === undefined) throw invalid(number, "the quote is not closed");
        rest = checkedLine(next, at + 1);
      }
      const end = rest.indexOf("'");
      value += rest.slice(0, end);
      const after = rest.slice(end + 1).trimStart();
      if (after !== "" && !after.startsWith("#")) throw invalid(at + 1, "only a comment may follow the closing quote");
    }
    if (name === key) return value === "" ? undefined : value;
  }
  return undefined;
}

function checkedLine(line: string, number: number): string {
  if (Buffer.byteLength(line) > envFileLineBytesMax) {
    throw invalid(number, `the line is longer than ${envFileLineBytesMax} bytes`);
  }
  return line;
}

function invalid(line: number, why: string): AgentError {
  return new AgentError("Invalid", `line ${line}: ${why}`);
}
