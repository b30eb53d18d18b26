import { valueAt } from "./json.ts";
import { badRequest } from "./status.ts";
import type { ApiObject } from "./types.ts";

export type Matcher = (object: ApiObject) => boolean;

const name = "[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?";
const setForm = new RegExp(`^(${name})\\s+(in|notin)\\s*\\(([^()]*)\\)$`);
const compareForm = new RegExp(`^(${name})\\s*(==|!=|=|>|<)\\s*([-A-Za-z0-9_.]*)$`);
const existsForm = new RegExp(`^(!?)\\s*(${name})$`);

/** Parses a label selector, all operators. Throws 400 BadRequest when it is none. */
export function parseLabelSelector(text: string): Matcher {
  const tests = splitRequirements(text).map((part) => labelRequirement(part, text));
  return (object) => {
    const labels = object.metadata.labels ?? {};
    return tests.every((test) => test(labels));
  };
}

function labelRequirement(part: string, whole: string): (labels: Record<string, string>) => boolean {
  const set = setForm.exec(part);
  if (set !== null) {
    const [, key = "", , operator, list = ""] = set;
    const values = list.split(",").map((v) => v.trim());
    return operator === "in"
      ? (labels) => labels[key] !== undefined && values.includes(labels[key])
      : (labels) => labels[key] === undefined || !values.includes(labels[key]);
  }
  const exists = existsForm.exec(part);
  if (exists !== null) {
    const [, not, key = ""] = exists;
    return not === "!" ? (labels) => labels[key] === undefined : (labels) => labels[key] !== undefined;
  }
  const compare = compareForm.exec(part);
  if (compare === null) throw badRequest(`unable to parse requirement: found '${part}' in '${whole}'`);
  const [, key = "", , operator, value = ""] = compare;
  switch (operator) {
    case "!=":
      return (labels) => labels[key] !== value;
    case ">":
      return (labels) => labels[key] !== undefined && Number(labels[key]) > Number(value);
    case "<":
      return (labels) => labels[key] !== undefined && Number(labels[key]) < Number(value);
    default:
      return (labels) => labels[key] === value;
  }
}

// Commas inside parentheses belong to a set.
function splitRequirements(text: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let part = "";
  for (const char of text) {
    if (char === "(") depth++;
    if (char === ")") depth--;
    if (char === "," && depth === 0) {
      parts.push(part.trim());
      part = "";
    } else {
      part += char;
    }
  }
  parts.push(part.trim());
  return parts.filter((p) => p !== "");
}

/** Parses a field selector over any path of plain fields. A field that is absent equals "". */
export function parseFieldSelector(text: string): Matcher {
  const tests = splitEscaped(text)
    .filter((part) => part !== "")
    .map((part) => {
      const form = /^([A-Za-z0-9_.\-[\]/]+?)(==|!=|=)(.*)$/.exec(part);
      if (form === null) throw badRequest(`invalid field selector: "${text}": can't understand "${part}"`);
      const [, path = "", operator, rawValue = ""] = form;
      const fields = path.split(".");
      const value = rawValue.replaceAll(/\\([\\,=])/g, "$1");
      return (object: ApiObject) => {
        const found = valueAt(object, fields);
        const actual =
          found === undefined || found === null ? "" : typeof found === "string" ? found : JSON.stringify(found);
        return operator === "!=" ? actual !== value : actual === value;
      };
    });
  return (object) => tests.every((test) => test(object));
}

function splitEscaped(text: string): string[] {
  const parts: string[] = [];
  let part = "";
  for (let i = 0; i < text.length; i++) {
    const char = text[i] ?? "";
    if (char === "\\") {
      part += char + (text[++i] ?? "");
    } else if (char === ",") {
      parts.push(part);
      part = "";
    } else {
      part += char;
    }
  }
  parts.push(part);
  return parts;
}

/** Both selectors of a request in one. */
export function matcherOf(labelSelector: string | undefined, fieldSelector: string | undefined): Matcher {
  const byLabel = labelSelector === undefined || labelSelector === "" ? undefined : parseLabelSelector(labelSelector);
  const byField = fieldSelector === undefined || fieldSelector === "" ? undefined : parseFieldSelector(fieldSelector);
  return (object) => (byLabel?.(object) ?? true) && (byField?.(object) ?? true);
}

/** True if every pair of `selector` is among `labels`; an empty selector matches nothing, as in a Service. */
export function selects(selector: Record<string, string> | undefined, labels: Record<string, string> = {}): boolean {
  const pairs = Object.entries(selector ?? {});
  return pairs.length > 0 && pairs.every(([key, value]) => labels[key] === value);
}
