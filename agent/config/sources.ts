import { isDeepStrictEqual } from "node:util";
import type { Flag } from "./flags.ts";
import { At, ConfigError, type Problem } from "./problems.ts";
import { decodeTable, fieldsOf, type Table, type Values, valueAt } from "./schema.ts";

/** Who set a field: field path → file, or flag with dashes. The last one counts. */
export type Sources = Map<string, string>;

/**
 * Decodes a document.
 *
 * @param warnings takes fields that nobody knows; absent: they are problems
 * @throws ConfigError with a line `file: field: problem` for each problem
 */
export function decodeFields(table: Table, raw: Values, file: string, warnings?: string[]): Values {
  const problems: Problem[] = [];
  const unknown: Problem[] = warnings === undefined ? problems : [];
  const given = decodeTable(table, raw, new At(problems, "", false, unknown));
  const lineOf = ({ path, message }: Problem) => `${file}: ${path} ${message}`;
  if (problems.length > 0) throw new ConfigError(problems.map(lineOf));
  warnings?.push(...unknown.map(lineOf));
  return given;
}

/** Notes that `source` says something about each field of `values`. */
export function noteSources(sources: Sources, table: Table, values: Values, source: string): void {
  for (const { path } of fieldsOf(table)) if (valueAt(values, path) !== undefined) sources.set(path.join("."), source);
}

/** Throws a ConfigError if there are problems; each line begins with who set the field, or with `fallback`. */
export function fail(problems: readonly Problem[], sources: Sources, fallback: string): void {
  if (problems.length === 0) return;
  throw new ConfigError(
    problems.map(({ path, message }) => {
      if (path.startsWith("--")) return `${path}: ${message}`;
      return `${sourceOf(path, sources) ?? fallback}: ${path} ${message}`;
    }),
  );
}

// The path may lead into the field's value: `registerWithTaints[0].key`, `featureGates.NodeSwap`.
function sourceOf(path: string, sources: Sources): string | undefined {
  for (const [field, source] of sources) {
    const rest = path.slice(field.length);
    if (path.startsWith(field) && (rest === "" || rest.startsWith(".") || rest.startsWith("["))) return source;
  }
  return undefined;
}

/** One line for each field that was set to something that is not its default and does not work yet. */
export function supportWarnings(table: Table, values: Values, sources: Sources): string[] {
  return [...fieldsOf(table)].flatMap(({ path, field }) => {
    const name = path.join(".");
    const source = sources.get(name);
    const value = valueAt(values, path);
    if (source === undefined || value === undefined || isDeepStrictEqual(value, field.default)) return [];
    if (field.support === "works" || field.support === "noEffect" || field.options.quiet?.(value)) return [];
    const what = source.startsWith("--") ? source : `${source}: ${name}`;
    const note = field.support === "partly" ? field.options.note : "is not supported yet and has no effect";
    return [`${what}${field.support === "partly" ? ":" : ""} ${note}`];
  });
}

/** At most one line: the flags that the reference deprecates in favour of fields of `table`. */
export function deprecatedFlagWarnings(given: ReadonlyMap<Flag, unknown>, table: Table): string[] {
  const names = [...given.keys()]
    .filter((flag) => flag.table === table && !flag.field.options.flagStays)
    .map(({ flag, path }) => `--${flag} (${path.join(".")})`);
  return names.length === 0 ? [] : [`deprecated flags, better set in the --config file: ${names.join(", ")}`];
}
