import { parseArgs, type ParseArgsOptionsConfig } from "node:util";
import { messageOf } from "../lib/errors.ts";
import { ConfigError } from "./problems.ts";

/** What `--output` says; "text" unless given. @throws ConfigError */
export function outputFormat(given: string | undefined): "text" | "json" {
  const output = given ?? "text";
  if (output !== "text" && output !== "json") throw new ConfigError([`--output: must be text or json, not ${output}`]);
  return output;
}

/**
 * Reads the arguments that follow a word of the command line, such as `explain`.
 *
 * @returns flags by their long names, and all that is no flag
 * @throws ConfigError with where to read more, for a flag that the word does not have
 */
export function readWordArguments<T extends ParseArgsOptionsConfig>(
  word: string,
  args: readonly string[],
  options: T,
): ReturnType<typeof parseArgs<{ args: string[]; allowPositionals: true; options: T }>> {
  try {
    return parseArgs({ args: [...args], allowPositionals: true, options });
  } catch (err) {
    // What follows is advice on how to pass such words on, which is of no use here.
    const [message = ""] = messageOf(err).split(". ");
    throw new ConfigError([`${message}; see nodelet ${word} --help`]);
  }
}
