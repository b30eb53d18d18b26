import { parseObject } from "./json.ts";

// What a plugin says goes into events and log lines.
const wordsMax = 500;

/** The versions in a plugin's answer to VERSION; `undefined` if it cannot be read. Pure. */
export function parseVersions(stdout: string): string[] | undefined {
  const answer = parseObject(stdout);
  const listed = answer?.["supportedVersions"];
  if (Array.isArray(listed)) return listed.filter((version): version is string => typeof version === "string");
  // 0.1.0: it answers with nothing but its version.
  return typeof answer?.["cniVersion"] === "string" ? [answer["cniVersion"]] : undefined;
}

/** A plugin's error object: its code, and the rest in words; `undefined` if it printed none. Pure. */
export function parseErrorObject(stdout: string): { code: number; words: string } | undefined {
  const object = parseObject(stdout);
  if (object === undefined) return undefined;
  const { code, msg, details } = object;
  if (typeof msg !== "string" || msg === "") return undefined;
  const number = typeof code === "number" ? code : 0;
  const more = typeof details === "string" && details !== "" ? `; ${oneLine(details)}` : "";
  return { code: number, words: `${oneLine(msg)}${more}${number === 0 ? "" : ` (error code ${number})`}` };
}

/** What a plugin said, made printable, one line, and short. Pure. */
export function oneLine(text: string): string {
  const line = text.replaceAll(/[\p{Cc}\s\u{FFFD}]+/gu, " ").trim();
  return line.length <= wordsMax ? line : `${line.slice(0, wordsMax)}…`;
}
