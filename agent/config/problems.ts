/** One thing wrong with the configuration: `path` is a field path such as `authentication.webhook.cacheTTL`. */
export interface Problem {
  path: string;
  message: string;
}

// More than this tells a reader nothing new, and a file of the wrong kind has a problem on every line.
const problemLinesMax = 10;

/** The command line or a configuration file cannot be used. `lines` are for people: one problem each. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly lines: readonly string[];

  constructor(lines: readonly string[]) {
    const shown = lines.slice(0, problemLinesMax);
    if (lines.length > shown.length) shown.push(`… and ${lines.length - shown.length} more problems`);
    super(shown.join("\n"));
    this.lines = shown;
  }
}

/** A place in a document, where decoders report what is wrong with what they find there. */
export class At {
  readonly path: string;
  readonly #problems: Problem[];
  readonly #hideValues: boolean;
  readonly #unknown: Problem[];

  /** `unknown` takes fields that nobody knows, where these are to be told and passed over; default: they are problems. */
  constructor(problems: Problem[], path = "", hideValues = false, unknown = problems) {
    this.path = path;
    this.#problems = problems;
    this.#hideValues = hideValues;
    this.#unknown = unknown;
  }

  /** Reports a problem; returns undefined so that a decoder can `return at.fail(…)`. */
  fail(message: string): undefined {
    const shown = this.#hideValues ? message.replace(/, not .*$/s, " (its value is not shown)") : message;
    this.#problems.push({ path: this.path, message: shown });
    return undefined;
  }

  /** Reports that nobody knows the field that is here. */
  unknown(message: string): void {
    this.#unknown.push({ path: this.path, message });
  }

  /** The same place, but messages do not show what was found there: it may be a secret. */
  withoutValues(): At {
    return new At(this.#problems, this.path, true, this.#unknown);
  }

  /** The place of field `key`, or of list element `key`. */
  child(key: string | number): At {
    const path = typeof key === "number" ? `${this.path}[${key}]` : this.path === "" ? key : `${this.path}.${key}`;
    return new At(this.#problems, path, this.#hideValues, this.#unknown);
  }
}

const shownLengthMax = 60;

/** A value as messages show it: JSON, shortened. */
export function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > shownLengthMax ? `${text.slice(0, shownLengthMax)}…` : text;
}

/** ` (did you mean "maxPods"?)` for the candidate nearest to `name`, or nothing if none is near. */
export function suggestion(name: string, candidates: Iterable<string>): string {
  let best: { name: string; distance: number } | undefined;
  for (const candidate of candidates) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (best === undefined || distance < best.distance) best = { name: candidate, distance };
  }
  // A third of the name may be wrong: far enough for typing errors, near enough to be no riddle.
  if (best === undefined || best.distance > Math.max(2, Math.floor(name.length / 3))) return "";
  return ` (did you mean "${best.name}"?)`;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(substituted, (previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1));
    }
    previous = row;
  }
  return previous[b.length] ?? 0;
}
