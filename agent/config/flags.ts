import { At, ConfigError, type Problem, suggestion } from "./problems.ts";
import { type Field, type FieldAt, fieldsOf, type Table } from "./schema.ts";

/** A flag, the field it sets, and the table that the field is in. */
export interface Flag extends FieldAt {
  flag: string;
  table: Table;
}

export type Flags = ReadonlyMap<string, Flag>;

/** The flags of some tables, by name. */
export function flagsOf(...tables: readonly Table[]): Flags {
  const flags = new Map<string, Flag>();
  for (const table of tables) {
    for (const { flag, ...rest } of fieldsOf(table)) {
      if (flag !== undefined) flags.set(flag, { ...rest, flag, table });
    }
  }
  return flags;
}

/** What a command line says, before it means anything. */
export interface ParsedFlags {
  /** Values in the order in which their flags first came. */
  given: Map<Flag, unknown>;
  help: boolean;
  version: boolean | "raw";
}

/**
 * Parses a command line as Go's pflag does: `--name value`, `--name=value`, `--bool`, `-v=5`, `_` for `-` in names.
 *
 * @throws ConfigError for unknown flags, missing or bad values, and arguments that are no flags
 */
export function parseFlags(args: readonly string[], flags: Flags): ParsedFlags {
  const parsed: ParsedFlags = { given: new Map(), help: false, version: false };
  const problems: Problem[] = [];
  const shorthands = new Map([...flags.values()].map((flag) => [flag.field.options.shorthand, flag]));
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] ?? "";
    const { name, text } = splitFlag(arg, shorthands);
    if (name === "help") {
      parsed.help = true;
      continue;
    }
    if (name === "version") {
      parsed.version = parseVersionFlag(text ?? "true");
      continue;
    }
    const flag = flags.get(name);
    // As with pflag, everything after an unknown flag is guesswork, so stop at the first.
    if (flag === undefined) {
      throw new ConfigError([
        `unknown flag ${arg.split("=", 1)[0]}${suggestion(
          `--${name}`,
          [...flags.keys()].map((f) => `--${f}`),
        )}`,
      ]);
    }
    let value = text;
    if (value === undefined && flag.field.kind.type === "bool") value = "true";
    if (value === undefined) {
      i += 1;
      value = args[i];
      if (value === undefined) throw new ConfigError([`--${name}: needs a value (${flag.field.kind.type})`]);
    }
    addValue(parsed.given, flag, value, new At(problems, `--${name}`));
  }
  if (problems.length > 0) throw new ConfigError(problems.map(({ path, message }) => `${path}: ${message}`));
  return parsed;
}

function splitFlag(arg: string, shorthands: ReadonlyMap<string | undefined, Flag>): { name: string; text?: string } {
  const long = /^--([^=]+)(?:=(.*))?$/s.exec(arg);
  if (long !== null) {
    const name = (long[1] ?? "").replaceAll("_", "-");
    return long[2] === undefined ? { name } : { name, text: long[2] };
  }
  if (arg === "-h") return { name: "help" };
  const short = /^-([A-Za-z])=?(.*)$/s.exec(arg);
  const flag = shorthands.get(short?.[1]);
  if (short === null || flag === undefined) {
    throw new ConfigError([arg.startsWith("-") ? `unknown flag ${arg}` : `unknown command "${arg}"`]);
  }
  return short[2] === "" ? { name: flag.flag } : { name: flag.flag, text: short[2] ?? "" };
}

function parseVersionFlag(text: string): boolean | "raw" {
  if (text === "raw" || text === "true" || text === "false") return text === "raw" ? "raw" : text === "true";
  throw new ConfigError([`--version: must be true, false or raw, not "${text}"`]);
}

function addValue(given: Map<Flag, unknown>, flag: Flag, text: string, at: At): void {
  const { kind }: Field<unknown> = flag.field;
  const inner = flag.field.options.secret ? at.withoutValues() : at;
  const value = kind.parseFlag(text, inner);
  if (value === undefined) return;
  const wrong = kind.check?.(value);
  if (wrong !== undefined) inner.fail(`${wrong}, not "${text}"`);
  const earlier = given.get(flag);
  given.set(flag, earlier === undefined || kind.combine === undefined ? value : kind.combine(earlier, value));
}
